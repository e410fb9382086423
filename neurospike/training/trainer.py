"""The training loop, to be read from top to bottom.

It knows nothing of backends, files or flags: it gets a model, an optimiser, a criterion and
batches, and hands what happened to a `Run` if it is given one. Device, number format and number
of processes are the business of its `fabric` (`scale.py`).
"""

import math
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neurospike.coding.intensities import can_look
from neurospike.errors import NeuroSpikeError

from .batch import Parts, parts_of
from .diagnosis import dead_in_training, find_not_finite
from .evaluation import Evaluation
from .metrics import Meter, Metrics, NotFiniteError, figures
from .progress import OnStep, epoch_line, measured, progress_bar
from .records import Run
from .scale import make_fabric
from .state import order_of, restore, set_order, state_of
from .stepping import Mode, Stepper

READ_INTERVAL = 0.1  # seconds between two looks at the metrics, each of which makes a GPU wait
KEPT_BATCHES = 128  # at most before such a look, for want of which they would fill the memory
AGREE_STEPS = 8  # after so many steps several processes agree whether to stop, which makes one wait


class Stopped(KeyboardInterrupt):
    """`fit` was interrupted after a whole step: all processes together, if there are several."""


class BatchSource(Iterable[tuple[Tensor, ...]], Sized, Protocol):
    """What the trainer iterates once an epoch: `(images [B, *F], labels [B])`, and a length.

    Batches of sequences are `(sequences [T, B, *F], lengths [B], labels [B])`, as of a `DataLoader`
    with `neurospike.data.collate`.
    To be resumed it has what `Batches` has: a `generator`, or `state_dict(done)` and
    `load_state_dict`. One of several processes' parts of the same batches has a `share`.
    """


class SNNTrainer:
    """Trains a network and keeps count of what it learns.

    model: `scores = model(images)`, and `scores, activity = model(images, return_activity=True)`
    as `SNNModel` does. criterion: `criterion(scores [B, C], labels [B])`, the mean loss; with
    `on_output` it is given the output neurons' `[T, B, C]` instead, which the model gives for
    `return_output=True` (`neurospike.losses`). penalty: of the spikes by layer, added to the loss.
    Of sequences the model is called with `lengths=`, and so are a criterion with `on_output` and
    the penalty.
    device: ignored if a `fabric` is given (`make_fabric`), which also says number format and
    processes. scheduler: anything with `step()`, called after every *step* (batch), not every
    epoch; if it has `report(loss)`, told every validation loss. clip: largest norm of all
    gradients together, which are scaled down to it.

    cuda_graph: `"auto"` records the whole step as a CUDA graph after 3 steps and replays it, where
    device, precision, model and optimiser allow, and else says in a line why not; `"on"` makes
    that an error; `"off"` runs it operation by operation. Weights are the same, bit for bit.
    `replayed` counts the steps that were replayed. A replay repeats what the device did and runs no
    Python: encoders do not check the pictures' range there (NaN is found on the device), and a
    model with hooks, or one that counts or draws in Python, is not recorded. The
    optimiser has to be made with `fused=True` or `capturable=True`.

    Raises ValueError for another `cuda_graph`, GraphError for `"on"` where it cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[..., Tensor],
        *,
        device: torch.device | str = "cpu",
        fabric: Any = None,
        scheduler: Any = None,
        on_output: bool = False,
        penalty: Callable[..., Tensor] | None = None,
        clip: float | None = None,
        cuda_graph: Mode = "auto",
    ) -> None:
        self.fabric = make_fabric(device) if fabric is None else fabric
        self.device = self.fabric.device
        self._forward = self.fabric.setup_module(model.to(self.device))
        self._optimizer = self.fabric.setup_optimizers(optimizer)
        self.model, self.optimizer = model, optimizer
        self.criterion, self.on_output, self.penalty = criterion, on_output, penalty
        self.scheduler, self.clip = scheduler, clip
        self.epoch = 0  # epochs finished
        self.step = 0  # steps taken in all of them, and in the one under way
        self.epoch_step = 0  # steps taken in the epoch under way
        self.best: tuple[float, float] | None = None  # accuracy and negative loss
        self.waited = 0  # evaluations since the best
        self.guessing = False  # as the last evaluation was, see `Metrics.guessing`
        self.told_of_dead = False  # neurons, which is told once
        self.history: list[dict[str, Any]] = []  # the records of `metrics.jsonl`
        self.learning_rate = optimizer.param_groups[0]["lr"]  # at the start of the epoch
        self._whole = True  # False within a step or a check: half of it would be saved
        self._stop = False
        self._batches: list[Parts] = []  # since the last look at the metrics
        # Set to 1 for good by the first gradient that is not finite: a fused optimiser then leaves
        # the weights as they are, so that the failing step can be looked at. Nothing waits for it.
        self._failed = torch.zeros((), device=self.device)
        self._scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if getattr(optimizer, "_step_supports_amp_scaling", False) and self._scaler is None:
            optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        self.meter = self.new_meter()  # of the epoch under way, or else of the last one
        self._stepper = Stepper(self, cuda_graph)

    @property
    def replayed(self) -> int:
        """Steps that were replayed as a CUDA graph."""
        return self._stepper.replayed

    def train_epoch(
        self,
        batches: BatchSource,
        on_step: OnStep | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> Metrics:
        """Take one optimiser step per batch; averages over the epoch, as the weights moved.

        An epoch that is under way goes on, if the batches do. on_step: called with the steps taken
        and the metrics so far, at most 10 times a second. after_step: called after every step.
        Raises NeuroSpikeError, within a tenth of a second, when the loss or a gradient is NaN or
        infinite; says at which step, and in which layer.
        """
        self.model.train()
        if not self.epoch_step:
            self.meter = self.new_meter()
        self.meter.start()
        self._stepper.start()
        next_read = time.perf_counter() + READ_INTERVAL
        for batch in batches:
            images, labels, lengths = parts_of(batch, self.device)
            self._whole = False
            share = getattr(batches, "share", 1.0)
            found = self._train_step(images, labels, share, lengths)
            self.step += 1
            self.epoch_step += 1
            self.meter.add(len(labels), found)
            self._batches.append((images, labels, lengths))
            self._whole = True
            if time.perf_counter() >= next_read:
                metrics = self._read()
                if on_step is not None:
                    on_step(self.epoch_step, metrics)
                next_read = time.perf_counter() + READ_INTERVAL
            elif len(self._batches) == KEPT_BATCHES:
                self.collect()
            if after_step is not None:
                after_step()
            if self._is_stopping(within_epoch=True):
                raise Stopped
        metrics = self._read(self._together)
        self.meter.stop()
        self.epoch += 1
        self.epoch_step = 0
        return metrics

    def _train_step(
        self, images: Tensor, labels: Tensor, share: float, lengths: Tensor | None
    ) -> Tensor:
        """Take a step, replayed or not, and move the schedule on."""
        found = self._stepper.step(images, labels, share, lengths)
        if self.scheduler is not None:
            self.scheduler.step()
        return found

    def compute_step(
        self, images: Tensor, labels: Tensor, share: float, lengths: Tensor | None = None
    ) -> Tensor:
        """Move the weights once; returns the `figures` of the batch, the norm before clipping.

        All of it is the device's work, and nothing waits for it, so that it can be recorded.
        """
        try:
            loss, scores = self._loss(self._forward, images, labels, lengths)
        except ValueError:
            if bool(images.isfinite().all()):
                raise
            # An encoder has refused them.
            where = "the pictures of that batch"
            raise self._not_finite("bad pictures", self.epoch_step + 1, where) from None
        self.fabric.backward(loss if share == 1 else loss * share)
        if self._scaler is not None:
            # Before the norm is taken. Lightning's `unscale_gradients` refuses fused optimisers.
            self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if images.is_cuda or not can_look(images):
            # No encoder looks at what a graph replays, and neurons would hide NaN.
            norm = torch.where(images.isnan().any(), math.nan, norm)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm, foreach=True)
        torch.maximum(self._failed, (~norm.isfinite()).float(), out=self._failed)
        self._optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return figures(loss, scores, labels, norm)

    def _loss(
        self,
        forward: Callable[..., Any],
        images: Tensor,
        labels: Tensor,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and scores, with their graph."""
        own = {} if lengths is None else {"lengths": lengths}
        if self.penalty is None and not self.on_output:
            scores = forward(images, **own)
        else:
            scores, activity, output = forward(
                images, return_activity=True, return_output=True, **own
            )
        if not len(labels):
            # This process's part of a last batch smaller than the processes: all gradients are 0.
            return scores.sum(), scores
        loss = (
            self.criterion(output, labels, **own)
            if self.on_output
            else self.criterion(scores, labels)
        )
        if self.penalty is not None:
            loss = loss + self.penalty(activity, **own)
        return loss, scores

    @torch.no_grad()
    def evaluate(self, batches: BatchSource, name: str = "evaluation") -> Metrics:
        """Loss, accuracy, confusion matrix and activity of each layer, weights untouched.

        name: for the error message. Raises NeuroSpikeError when the loss is NaN or infinite.
        """
        self.model.eval()
        evaluation = Evaluation(name, self.device)
        for batch in batches:
            images, labels, lengths = parts_of(batch, self.device)
            own = {} if lengths is None else {"lengths": lengths}
            if self.on_output:
                scores, activity, output = self._forward(
                    images, return_activity=True, return_output=True, **own
                )
                loss = self.criterion(output, labels, **own)
            else:
                scores, activity = self._forward(images, return_activity=True, **own)
                loss = self.criterion(scores, labels)
            evaluation.add(loss, scores, labels, activity, lengths)
        return evaluation.read(self._together)

    def fit(
        self,
        train: BatchSource,
        validation: BatchSource | None,
        epochs: int,
        run: Run | None = None,
        *,
        check_every: int | None = None,
        patience: int | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are finished; the records of `metrics.jsonl`, one per epoch.

        validation: chooses the best model by accuracy, then loss; None makes the last the best.
        run: where records and checkpoints go; at Ctrl-C the state is saved there first.
        check_every: also validate and save after so many steps. patience: stop after so many
        validations without a better one. on_record: given each record by the first process.
        Prints a line per epoch, and shows a progress bar if stderr is a terminal. After a
        KeyboardInterrupt another call goes on where it stopped.
        """

        def check(trained: Metrics, *, within_epoch: bool = False) -> None:
            self._whole = False
            record = self._check(trained, train, validation, epochs, run, within_epoch)
            self._whole = True
            if on_record is not None and self.fabric.is_global_zero:
                on_record(record)

        def after_step() -> None:
            if check_every is not None and self.step % check_every == 0:
                check(self._read(self._together), within_epoch=True)
                self.model.train()

        try:
            while self.epoch < epochs and (patience is None or self.waited < patience):
                if not self.epoch_step:
                    self.learning_rate = self.optimizer.param_groups[0]["lr"]
                with progress_bar(f"epoch {self.epoch + 1}/{epochs}", len(train)) as show:
                    trained = self.train_epoch(train, show, after_step)
                check(trained)
                if self._is_stopping():
                    raise Stopped
        except KeyboardInterrupt as interrupt:
            self._keep_interrupted(train, run, isinstance(interrupt, Stopped))
            raise
        return [row for row in self.history if row["kind"] == "epoch"]

    def interrupt(self) -> None:
        """Make `fit` end with KeyboardInterrupt once the step under way is whole.

        Of several processes one need be told; all stop after the same step, up to 8 later.
        """
        self._stop = True

    def _is_stopping(self, *, within_epoch: bool = False) -> bool:
        """True once a process was interrupted. All call it after the same steps, and agree."""
        if self.fabric.world_size == 1:
            return self._stop
        if within_epoch and self.step % AGREE_STEPS:
            return False
        return float(self._together(torch.tensor(float(self._stop)))) > 0

    def _keep_interrupted(self, train: BatchSource, run: Run | None, together: bool) -> None:
        """Save the state at Ctrl-C, and let another `fit` go on from it.

        together: all processes are here. One alone cannot save what belongs to all.
        """
        self._stop = False
        self.meter.stop()
        if not self._whole:  # the weights are neither the old ones nor the new
            return
        if together or self.fabric.world_size == 1:
            state = self.state_dict(train)
            if run is not None:
                run.save(state, run.interrupted)
        if hasattr(train, "load_state_dict"):
            set_order(train, order_of(train, self.epoch_step))

    def _check(
        self,
        trained: Metrics,
        train: BatchSource,
        validation: BatchSource | None,
        epochs: int,
        run: Run | None,
        within_epoch: bool,
    ) -> dict[str, Any]:
        """Validate, record and save, after an epoch or within it."""
        after = f"step {self.step}" if within_epoch else f"epoch {self.epoch}"
        checked = (
            self.evaluate(validation, f"validation after {after}")
            if validation is not None
            else None
        )
        score = (checked.accuracy, -checked.loss) if checked is not None else None
        is_best = score is None or self.best is None or score > self.best
        self.best = score if is_best else self.best
        self.waited = 0 if is_best else self.waited + 1
        self.guessing = checked is not None and checked.guessing
        if checked is not None and hasattr(self.scheduler, "report"):
            self.scheduler.report(checked.loss)
        record = {
            "kind": "step" if within_epoch else "epoch",
            "epoch": self.epoch + within_epoch,
            "step": self.step,
            **measured(trained, checked),
            "learning_rate": self.learning_rate,
            "gradient_norm": self.meter.gradient_norm,
        }
        self.history.append(record)
        if run is not None or self.fabric.world_size > 1:
            state = self.state_dict(train)
            if run is not None and self.fabric.is_global_zero:
                run.save_epoch(state, is_best=is_best)
                run.write(record)
        if self.fabric.is_global_zero:
            # Last, so that an epoch told of is an epoch kept.
            print(epoch_line(record, epochs, is_best), flush=True)  # noqa: T201 (its progress)
        if checked is not None and not (within_epoch or self.told_of_dead):
            dead = dead_in_training(self, checked.activity, train)
            self.told_of_dead = dead is not None
            if dead is not None and self.fabric.is_global_zero:
                print(dead, flush=True)  # noqa: T201
        return record

    def state_dict(self, batches: BatchSource | None = None) -> dict[str, Any]:
        """All that a continued run needs, as tensors and plain values.

        batches: the training batches, for their order. Of several processes all call it; what
        each has of its own, by rank, is in all their states. Raises NeuroSpikeError if a loss or a
        gradient of the last steps was NaN or infinite.
        """
        self.collect()
        return state_of(self, batches)

    def load_state_dict(self, state: dict[str, Any], batches: BatchSource | None = None) -> None:
        """Carry on from `state_dict`: the same steps follow that would have followed then.

        So they do in as many processes as saved it; in another number each has a stream of random
        numbers of its own. Raises ValueError where the batches cannot go on in mid-epoch.
        """
        self._batches = []
        self._stepper.forget()
        restore(self, state, batches)

    def _together(self, values: Tensor) -> Tensor:
        """Add up over the processes that train together."""
        summed: Tensor = self.fabric.all_reduce(values.to(self.device), reduce_op="sum")
        return summed

    def new_meter(self) -> Meter:
        """A meter of the epoch under way."""
        # A scaled loss overflows now and then by design: the step is then left out.
        return Meter(f"epoch {self.epoch + 1}", scaled=self._scaler is not None)

    def collect(self) -> None:
        """Look at the steps since the last look; NeuroSpikeError for one that was not finite."""
        batches, self._batches = self._batches, []
        try:
            self.meter.collect()
        except NotFiniteError as error:
            raise self._explain(error, self.epoch_step - len(batches), batches) from None

    def _read(self, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Averages over the epoch so far, of all processes by `together`."""
        self.collect()
        return self.meter.read(together)

    def _explain(self, error: NotFiniteError, before: int, batches: list[Parts]) -> NeuroSpikeError:
        """Build the error for a NaN or infinite number: at which step, and where in the network.

        before: steps of the epoch before those of `batches`.
        """
        images, labels, lengths = batches[error.step]

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            with self.fabric.autocast():
                return self._loss(self.model, images, labels, lengths)[0]

        where = find_not_finite(self.model, loss_of, images, labels)
        return self._not_finite(error, before + error.step + 1, where)

    def _not_finite(self, what: object, step: int, where: str) -> NeuroSpikeError:
        return NeuroSpikeError(
            f"epoch {self.epoch + 1}: {what} at step {step}; not finite first: {where}. "
            "Try a smaller learning rate or training.clip. Checkpoints saved before are good."
        )
