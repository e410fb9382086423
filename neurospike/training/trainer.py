"""The training loop, to be read from top to bottom.

It knows nothing of backends, files or flags: it gets a model, an optimiser, a criterion and
batches, and hands what happened to a `Run` if it is given one. Device, number format and number
of processes are Lightning Fabric's business.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neurospike.errors import NeuroSpikeError
from neurospike.training.diagnosis import find_not_finite
from neurospike.training.metrics import Meter, Metrics, NotFiniteError
from neurospike.training.progress import OnStep, epoch_line, measured, progress_bar
from neurospike.training.records import Run
from neurospike.training.scale import make_fabric
from neurospike.training.state import order_of, random_state, set_order, set_random_state

READ_INTERVAL = 0.1  # seconds between two looks at the metrics, each of which makes a GPU wait


class BatchSource(Iterable[tuple[Tensor, Tensor]], Sized, Protocol):
    """What the trainer iterates once an epoch: `(images [B, *F], labels [B])`, and a length.

    To be resumed it has what `Batches` has: a `generator`, or `state_dict(done)` and
    `load_state_dict`. One of several processes' parts of the same batches has a `share`.
    """


class SNNTrainer:
    """Trains a network and keeps count of what it learns.

    model: `scores = model(images)`, and `scores, activity = model(images, return_activity=True)`
    as `SNNModel` does. criterion: `criterion(scores [B, C], labels [B])`, the mean loss; with
    `on_output` it is given the output neurons' `[T, B, C]` instead, which the model gives for
    `return_output=True` (`neurospike.losses`). penalty: of the spikes by layer, added to the loss.
    device: ignored if a `fabric` is given (`make_fabric`), which also says number format and
    processes. scheduler: anything with `step()`, called after every *step* (batch), not every
    epoch; if it has `report(loss)`, told every validation loss. clip: largest norm of all
    gradients together, which are scaled down to it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        device: torch.device | str = "cpu",
        fabric: Any = None,
        scheduler: Any = None,
        on_output: bool = False,
        penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        clip: float | None = None,
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
        self.history: list[dict[str, Any]] = []  # the records of `metrics.jsonl`
        self.gradient_norm = 0.0  # of the last step
        self._learning_rate = optimizer.param_groups[0]["lr"]
        self._sums = (0.0, 0, 0)  # of an epoch gone on with
        self._within_step = False
        self._stop = False
        self._norms: list[Tensor] = []  # of the gradients, and the batches they are of,
        self._batches: list[tuple[Tensor, Tensor]] = []  # since the last look at the metrics
        # Set to 1 for good by the first gradient that is not finite: a fused optimiser then leaves
        # the weights as they are, so that the failing step can be looked at. Nothing waits for it.
        self._failed = torch.zeros((), device=self.device)
        self._scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        if getattr(optimizer, "_step_supports_amp_scaling", False) and not self._scaled:
            optimizer.found_inf = self._failed  # type: ignore[attr-defined]

    def train_epoch(
        self,
        batches: BatchSource,
        on_step: OnStep | None = None,
        after_step: Callable[[Meter], None] | None = None,
    ) -> Metrics:
        """Take one optimiser step a batch; averages over the epoch, as the weights moved.

        on_step: called with the steps taken and the metrics so far, at most 10 times a second.
        after_step: called after every step. Raises NeuroSpikeError, within a tenth of a second,
        when the loss or a gradient is NaN or infinite; says at which step, and in which layer.
        """
        self.model.train()
        meter = Meter(f"epoch {self.epoch + 1}", self._sums)
        self._sums = (0.0, 0, 0)
        next_read = time.perf_counter() + READ_INTERVAL
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            self._within_step = True
            loss, scores = self._train_step(images, labels, getattr(batches, "share", 1.0))
            self.step += 1
            self.epoch_step += 1
            self._within_step = False
            meter.add(loss, scores, labels)
            self._batches.append((images, labels))
            if time.perf_counter() >= next_read:
                metrics = self._read(meter)
                if on_step is not None:
                    on_step(meter.steps, metrics)
                next_read = time.perf_counter() + READ_INTERVAL
            if after_step is not None:
                after_step(meter)
            if self._stop:
                raise KeyboardInterrupt
        metrics = self._read(meter, self._together)
        self.epoch += 1
        self.epoch_step = 0
        return metrics

    def _train_step(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        loss, scores = self._loss(self._forward, images, labels)
        self.fabric.backward(loss if share == 1 else loss * share)
        if self.clip is not None and self._scaled:
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm, foreach=True)
        torch.maximum(self._failed, (~norm.isfinite()).float(), out=self._failed)
        self._norms.append(norm)
        self._optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach(), scores

    def _loss(
        self, forward: Callable[..., Any], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and scores, with their graph."""
        if self.penalty is None and not self.on_output:
            scores = forward(images)
            judged = scores
        else:
            scores, activity, output = forward(images, return_activity=True, return_output=True)
            judged = output if self.on_output else scores
        if not len(labels):
            # This process's part of a last batch smaller than the processes: all gradients are 0.
            return scores.sum(), scores
        loss = self.criterion(judged, labels)
        if self.penalty is not None:
            loss = loss + self.penalty(activity)
        return loss, scores

    @torch.no_grad()
    def evaluate(self, batches: BatchSource, name: str = "evaluation") -> Metrics:
        """Loss, accuracy, confusion matrix and activity of each layer, weights untouched.

        name: for the error message. Raises NeuroSpikeError when the loss is NaN or infinite.
        """
        # Here, because it takes a second that a program without evaluation need not spend.
        from neurospike.training.evaluation import Evaluation

        self.model.eval()
        evaluation = Evaluation(name, self.device)
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            if self.on_output:
                scores, activity, output = self._forward(
                    images, return_activity=True, return_output=True
                )
            else:
                scores, activity = self._forward(images, return_activity=True)
            loss = self.criterion(output if self.on_output else scores, labels)
            evaluation.add(loss, scores, labels, activity)
        return evaluation.read()

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
        """Train until `epochs` epochs are finished; the records of `metrics.jsonl`, one an epoch.

        validation: chooses the best model by accuracy, then loss; None makes the last the best.
        run: where records and checkpoints go; at Ctrl-C the state is saved there first.
        check_every: also validate and save after so many steps. patience: stop after so many
        validations without a better one. on_record: given each record by the first process.
        Prints a line an epoch, and shows a progress bar if stderr is a terminal.
        """

        def check(trained: Metrics, meter: Meter | None = None) -> None:
            record = self._check(trained, train, validation, epochs, run, meter)
            if on_record is not None and self.fabric.is_global_zero:
                on_record(record)

        def after_step(meter: Meter) -> None:
            if check_every is not None and self.step % check_every == 0:
                check(self._read(meter), meter)
                self.model.train()

        try:
            while self.epoch < epochs and (patience is None or self.waited < patience):
                if not self.epoch_step:
                    self._learning_rate = self.optimizer.param_groups[0]["lr"]
                with progress_bar(f"epoch {self.epoch + 1}/{epochs}", len(train)) as show:
                    trained = self.train_epoch(
                        train, show, None if check_every is None else after_step
                    )
                check(trained)
                if self._stop:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # Within a step the weights are neither the old ones nor the new.
            if run is not None and not self._within_step:
                run.save(self.state_dict(train), run.interrupted)
            raise
        return [row for row in self.history if row["kind"] == "epoch"]

    def interrupt(self) -> None:
        """Make `fit` end with KeyboardInterrupt once the step under way is whole."""
        self._stop = True

    def _check(
        self,
        trained: Metrics,
        train: BatchSource,
        validation: BatchSource | None,
        epochs: int,
        run: Run | None,
        meter: Meter | None,
    ) -> dict[str, Any]:
        """Validate, record and save; `meter` is that of an epoch under way."""
        after = f"step {self.step}" if meter is not None else f"epoch {self.epoch}"
        checked = (
            self.evaluate(validation, f"validation after {after}")
            if validation is not None
            else None
        )
        score = (checked.accuracy, -checked.loss) if checked is not None else None
        is_best = score is None or self.best is None or score > self.best
        self.best = score if is_best else self.best
        self.waited = 0 if is_best else self.waited + 1
        if checked is not None and hasattr(self.scheduler, "report"):
            self.scheduler.report(checked.loss)
        record = {
            "kind": "epoch" if meter is None else "step",
            "epoch": self.epoch + (meter is not None),
            "step": self.step,
            **measured(trained, checked),
            "learning_rate": self._learning_rate,  # at the start of the epoch
            "gradient_norm": self.gradient_norm,  # of the last step
        }
        self.history.append(record)
        if run is not None and self.fabric.is_global_zero:
            self._sums = (0.0, 0, 0) if meter is None else meter.sums
            run.save_epoch(self.state_dict(train), is_best=is_best)
            self._sums = (0.0, 0, 0)
            run.write(record)
        if self.fabric.is_global_zero:
            # Last, so that an epoch told of is an epoch kept.
            print(epoch_line(record, epochs, is_best), flush=True)  # noqa: T201 (its progress)
        return record

    def state_dict(self, batches: BatchSource | None = None) -> dict[str, Any]:
        """All that a continued run needs, as tensors and plain values.

        batches: the training batches, for their order.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "waited": self.waited,
            "history": self.history,
            "order": order_of(batches, self.epoch_step),
            "epoch_step": self.epoch_step,
            "epoch_sums": self._sums,
            "epoch_learning_rate": self._learning_rate,
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any], batches: BatchSource | None = None) -> None:
        """Carry on from `state_dict`: the same steps follow that would have followed then."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.step, self.epoch_step = state["epoch"], state["step"], state["epoch_step"]
        self.best, self.waited = state["best"], state["waited"]
        self.history = list(state["history"])
        self._sums, self._learning_rate = state["epoch_sums"], state["epoch_learning_rate"]
        set_order(batches, state["order"])
        set_random_state(state["random"])

    def _together(self, values: Tensor) -> Tensor:
        """Add up over the processes that train together."""
        summed: Tensor = self.fabric.all_reduce(values.to(self.device), reduce_op="sum")
        return summed

    def _read(self, meter: Meter, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Look at the epoch so far, and whether all its numbers are numbers."""
        first = self.epoch_step - len(self._norms)
        norms = torch.stack(self._norms).tolist() if self._norms else []
        batches, self._norms, self._batches = self._batches, [], []
        wrong = [k for k, norm in enumerate(norms) if not math.isfinite(norm)]
        try:
            metrics = meter.read(together)
        except NotFiniteError as error:
            # A gradient that was not finite a step before is why the loss is not.
            if not wrong or error.step <= wrong[0]:
                raise self._explain(error.step, first, str(error), batches) from None
        if wrong and not self._scaled:  # a scaled loss overflows now and then by design
            text = f"the gradient's norm became {norms[wrong[0]]}"
            raise self._explain(wrong[0], first, text, batches)
        self.gradient_norm = norms[-1] if norms else self.gradient_norm
        return metrics

    def _explain(
        self, step: int, first: int, what: str, batches: list[tuple[Tensor, Tensor]]
    ) -> NeuroSpikeError:
        """The error for a number that is none: the step of the epoch, and where in the network."""

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            with self.fabric.autocast():
                return self._loss(self.model, images, labels)[0]

        where = find_not_finite(self.model, loss_of, *batches[step])
        return NeuroSpikeError(
            f"epoch {self.epoch + 1}: {what} at step {first + step + 1}; not finite first: "
            f"{where}. Try a smaller learning rate or training.clip. Checkpoints saved before "
            "are good."
        )
