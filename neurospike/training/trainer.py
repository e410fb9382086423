"""The training loop, to be read from top to bottom.

It knows nothing of backends, files or flags: it gets a model, an optimiser, a criterion and
batches, and hands what happened to a `Run` if it is given one. Device, number format and number
of processes are the business of its `fabric` (`scale.py`).
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.coding.intensities import can_look
from neurospike.errors import CheckpointError, NeuroSpikeError
from neurospike.ops.arguments import check_flag

from .answering import NetworkCaller, Readout
from .arguments import (
    check_batches,
    check_callable,
    check_clip,
    check_counts,
    check_ema,
    check_measures,
    check_parts,
)
from .averaging import Average
from .batch import Parts, parts_of
from .checkpoint import load_checkpoint
from .diagnosis import find_not_finite
from .evaluation import Evaluation
from .fitting import Fit, Stopped, open_run
from .judging import loss_of, penalty_of
from .metrics import Meter, Metrics, NotFiniteError, figures
from .order import Order, start_workers
from .progress import OnStep
from .records import Run
from .scale import Precision, make_fabric
from .state import restore, state_of
from .stepping import Mode, Stepper

READ_INTERVAL = 0.1  # seconds between two readings of the metrics, each of which waits for the GPU
KEPT_BATCHES = 128  # batches kept between two readings at most, so that they do not fill the memory
AGREE_STEPS = 8  # steps after which several processes agree whether to stop: each waits for all

BatchSource = Iterable[Any]  # see SNNTrainer


class SNNTrainer:
    """Trains a network and evaluates it; `fit` can keep the run in a folder and resume it.

        net = ns.Sequential(nn.Linear(64, 128), ns.LIF(0.9), nn.Linear(128, 10), ns.LI(0.9))
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss())
        trainer.fit(train, validation, epochs=10, run="runs/mine")
        trainer.evaluate(test)["accuracy"]

    The network is any `nn.Module`, called with the inputs of a batch. It returns scores `[B, C]`;
    scores over time `[T, B, C]` (`[B, T, C]` if it has an attribute `batch_first` that is True); or
    a tuple that begins with one of them, such as `(output, state)` of `ns.Sequential`. Spikes are
    read by hooks. A network whose forward takes `return_activity`, as `SNNModel`'s does, hands them
    over itself: `scores, activity = model(inputs, return_activity=True)`.

    Batches are `(inputs, targets)`, tensors, from a `DataLoader` or anything else that can be
    iterated again every epoch. Those of sequences are `(sequences [T, B, *F], lengths [B],
    targets)`, as of a `DataLoader` with `neurospike.data.collate`; the network, and a readout,
    criterion or penalty that can take it, are called with `lengths=` then. An interrupted epoch is
    continued in the same order: by `state_dict(done)` and `load_state_dict` of the batches, if they
    have both, else by drawing the epoch's order again. Where several processes train, batches that
    hold one process's part say by `share` what it counts for, as `neurospike.data.Batches` do, and
    a `DataLoader` needs a `DistributedSampler`.

    Args:
        model: the network.
        optimizer: of its parameters. For a CUDA graph made with `fused=True` or `capturable=True`.
        criterion: `criterion(scores, targets)`, the mean loss of the batch, a tensor of one number.
        device: where to train. Not looked at, like `precision`, if a `fabric` is given.
        fabric: a Lightning Fabric, such as `neurospike.training.scale.make_fabric` makes; it says
            how many processes there are.
        scheduler: anything with `step()`, called after every *step* (batch), not every epoch; if it
            has `report(loss)`, that is called with every validation loss.
        on_output: give the criterion the output over time `[T, B, C]` instead of scores, as
            `neurospike.coding.losses` want it; of a network that takes `return_output`, that of its
            own readout.
        penalty: a function of the spikes by layer, `{name: [T, B, *F]}`, added to the loss.
        clip: the largest norm of all gradients together, above 0, to which they are scaled down.
        cuda_graph: `"auto"` records the whole step as a CUDA graph after 3 steps and replays it,
            where device, precision, model and optimiser allow, and else says in a line why not;
            `"on"` makes that an error; `"off"` runs it operation by operation. Weights are the
            same, bit for bit. `replayed` counts the steps that were replayed. A replay repeats what
            the device did and runs no Python: encoders do not check the pictures' range there (NaN
            is found on the device), and a model with hooks, or one that counts or draws in Python,
            is not recorded.
        readout: makes scores of an output over time: the name of a function of
            `neurospike.decoding`, `"membrane"` (the mean over time, the default), `"counts"` or
            `"first_spike"`; a function of `[T, B, C]`; `"every_step"`, for targets `[T, B, ...]`
            that the output is compared with step by step; or `"none"`, for an output `[B, ...]` of
            several axes that is compared with its targets as it is.
        metrics: measures by name that an evaluation also takes: functions `(scores, targets)` of
            the mean of a batch, or objects of torchmetrics. Accuracy is measured anyway where
            targets are integers `[B]` and scores `[B, C]`; labels that are no class, such as -100,
            which criteria ignore, do not count.
        precision: `"32-true"`, `"bf16-mixed"` or `"16-mixed"`.
        ema: decay per step of an exponential moving average of the weights, from 0 (none) to below
            1; 0.998 is the mean of about 500 steps, and of fewer at the start. The network holds
            the average except while it is trained: it is what is evaluated and saved, and often
            better than the last weights by themselves, which are trained as without it. Weights
            that are loaded into the network between two calls are trained on.

    Raises:
        TypeError, ValueError: arguments that do not fit together. What the network returns is
            looked at when the first batch has been through it.
        ConfigError: a device or precision there is not.
        GraphError: `cuda_graph="on"` where it cannot be.
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
        readout: str | Readout | None = None,
        metrics: Mapping[str, Any] | None = None,
        precision: Precision = "32-true",
        ema: float = 0.0,
    ) -> None:
        check_parts(model, optimizer, criterion, scheduler)
        check_ema(ema)
        check_clip(clip)
        check_callable("penalty", penalty, "the spikes by layer, {name: [T, B, *F]}")
        self.caller = NetworkCaller(model, readout, check_flag("on_output", on_output))
        self.measures = check_measures(metrics)
        self.fabric = make_fabric(device, precision) if fabric is None else fabric
        self.device = self.fabric.device
        self._forward = self.fabric.setup_module(model.to(self.device))
        self._optimizer = self.fabric.setup_optimizers(optimizer)
        self.model, self.optimizer = model, optimizer
        self.average = Average(model, ema) if ema else None
        self.criterion, self.penalty = criterion, penalty
        self.on_output = self.caller.on_output
        if isinstance(criterion, nn.Module):
            criterion.to(self.device)
        self.scheduler, self.clip = scheduler, clip
        self.order = Order(self.device, self.fabric.global_rank, self.fabric.world_size)
        self.run: Run | None = None  # that `fit` made in a folder
        self.epoch = 0  # epochs finished
        self.step = 0  # steps taken in all of them, and in the one under way
        self.epoch_step = 0  # steps taken in the epoch under way
        self.best: tuple[float, float] | None = None  # accuracy, 0 without, and negative loss
        self.waited = 0  # evaluations since the best
        self.guessing = False  # `Metrics.guessing` of the last evaluation
        self.warned_of_dead = False  # neurons, once per trainer
        self.history: list[dict[str, Any]] = []  # the records of `metrics.jsonl`
        self.learning_rate = float(optimizer.param_groups[0]["lr"])  # at the start of the epoch
        self.is_whole = True  # False within a step or a check, when the state may not be saved
        self._stop = False
        self._batches: list[Parts] = []  # since the last reading of the metrics
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
        """Take one optimiser step per batch; return averages over the epoch, as the weights moved.

        An epoch that is under way goes on, if the batches do.

        Args:
            batches: see `SNNTrainer`.
            on_step: called with the steps taken and the metrics so far, at most 10 times a second.
            after_step: called after every step.

        Raises:
            NeuroSpikeError: within a tenth of a second, when the loss or a gradient is NaN or
                infinite; says at which step, and in which layer.
        """
        if self.average is None:
            return self._train_epoch(batches, on_step, after_step)
        self.average.train()
        try:
            return self._train_epoch(batches, on_step, after_step)
        finally:
            self.average.rest()

    def _train_epoch(
        self,
        batches: BatchSource,
        on_step: OnStep | None,
        after_step: Callable[[], None] | None,
    ) -> Metrics:
        self.model.train()
        if not self.epoch_step:
            self.meter = self.new_meter()
        self.meter.start()
        self._stepper.start()
        next_read = time.perf_counter() + READ_INTERVAL
        for batch in self.order.begin(batches, self.epoch):
            inputs, targets, lengths = parts_of(batch, self.device, self.caller.batch_first)
            self.is_whole = False
            share = getattr(batches, "share", 1.0)
            found = self._train_step(inputs, targets, share, lengths)
            self.step += 1
            self.epoch_step += 1
            self.meter.add(self.caller.count(targets), found)
            self._batches.append((inputs, targets, lengths))
            self.is_whole = True
            if time.perf_counter() >= next_read:
                metrics = self._read_alone()
                if on_step is not None:
                    on_step(self.epoch_step, metrics)
                next_read = time.perf_counter() + READ_INTERVAL
            elif len(self._batches) == KEPT_BATCHES:
                self.collect()
            if after_step is not None:
                after_step()
            if self.is_stopping(within_epoch=True):
                raise Stopped
        metrics = self.read()
        self.meter.stop()
        self.epoch += 1
        self.epoch_step = 0
        return metrics

    def _train_step(
        self, inputs: Tensor, targets: Tensor, share: float, lengths: Tensor | None
    ) -> Tensor:
        """Take a step, replayed or not, and move the schedule on."""
        found = self._stepper.step(inputs, targets, share, lengths)
        if self.scheduler is not None:
            self.scheduler.step()
        return found

    def compute_step(
        self, inputs: Tensor, targets: Tensor, share: float, lengths: Tensor | None = None
    ) -> Tensor:
        """Move the weights once; return the `figures` of the batch, with the norm before clipping.

        Nothing here waits for the device, so that the step can be recorded as a CUDA graph.
        """
        try:
            loss, scores = self._loss(self._forward, inputs, targets, lengths)
        except ValueError:
            if bool(inputs.isfinite().all()):
                raise
            # The network's encoder has refused the inputs.
            where = "the inputs of that batch"
            raise self._not_finite("bad inputs", self.epoch_step + 1, where) from None
        if not loss.requires_grad:
            raise ValueError(
                f"the loss of {self.caller.name} has no gradient: what it returns must be computed "
                "from its parameters, without detach(), argmax or torch.no_grad()"
            )
        self.fabric.backward(loss if share == 1 else loss * share)
        if self._scaler is not None:
            # Before the norm is taken. Lightning's `unscale_gradients` refuses fused optimisers.
            self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if inputs.is_cuda or not can_look(inputs) or not self.caller.has_encoder:
            # No encoder checks the inputs here, and neurons would hide their NaN.
            norm = torch.where(inputs.isnan().any(), math.nan, norm)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm, foreach=True)
        torch.maximum(self._failed, (~norm.isfinite()).float(), out=self._failed)
        self._optimizer.step()
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        return figures(loss, scores, targets, norm)

    def _loss(
        self,
        forward: Callable[..., Any],
        inputs: Tensor,
        targets: Tensor,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and scores, with their graph."""
        spikes = self.penalty is not None
        answer = self.caller(forward, inputs, targets, lengths, spikes=spikes)
        if not self.caller.count(targets):
            # The last batch has fewer samples than there are processes, and none for this one: its
            # gradients are 0.
            return answer.scores.sum(), answer.scores
        given = answer.output if self.on_output else answer.scores
        loss = loss_of(self.criterion, given, targets, lengths)
        if self.penalty is not None:
            loss = loss + penalty_of(self.penalty, answer.activity, lengths, self.caller.name)
        return loss, answer.scores

    @torch.no_grad()
    def evaluate(self, batches: BatchSource, name: str = "evaluation") -> Metrics:
        """Return loss, accuracy, your own measures and the activity of each layer.

        Args:
            batches: see `SNNTrainer`.
            name: what is evaluated, for the error message.

        Returns:
            `Metrics`, which is also a mapping with `["loss"]`, `["accuracy"]`, names of `metrics`
            and `["spike_rates"]`. Weights are left as they are.

        Raises:
            NeuroSpikeError: the loss is NaN or infinite, there are no samples, or no label is a
                class.
        """
        check_batches("evaluate's batches", batches)
        self.model.eval()
        start_workers(batches, self.device)
        evaluation = Evaluation(name, self.device, self.measures)
        with nullcontext() if self.average is None else self.average.resting():
            for batch in batches:
                inputs, targets, lengths = parts_of(batch, self.device, self.caller.batch_first)
                answer = self.caller(self._forward, inputs, targets, lengths, spikes=True)
                given = answer.output if self.on_output else answer.scores
                loss = loss_of(self.criterion, given, targets, lengths)
                count = self.caller.count(targets)
                evaluation.add(loss, answer.scores, targets, answer.activity, lengths, count)
        return evaluation.read(self._sum_over_processes)

    def fit(
        self,
        train: BatchSource,
        validation: BatchSource | None = None,
        epochs: int | None = None,
        run: Run | str | Path | None = None,
        *,
        resume: bool = False,
        check_every: int | None = None,
        patience: int | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are finished; return the records, one per epoch.

        Prints a line per epoch, and shows a progress bar if stderr is a terminal. After a
        KeyboardInterrupt another call goes on where it stopped.

        Args:
            train: batches, see `SNNTrainer`.
            validation: batches that choose the best model, by accuracy, then loss; without, the
                last is the best.
            epochs: how many in all.
            run: where records and checkpoints go, a folder or a `Run`. At Ctrl-C the step under way
                is finished and the state saved there, then KeyboardInterrupt is raised; a second
                Ctrl-C raises it at once.
            resume: continue the run that is in the folder, if there is one, as if it had never
                stopped; a finished one is trained on, up to `epochs` in all.
            check_every: also validate and save after so many steps.
            patience: stop after so many validations without a better one.
            on_record: given each record by the first process.

        Returns:
            The records of epochs that are in `metrics.jsonl`, too.

        Raises:
            NeuroSpikeError: the folder holds a run already, and `resume` is False.
            CheckpointError: the run is that of another network.
            TypeError, ValueError: batches that cannot be iterated, no `epochs`, and `epochs`,
                `check_every` or `patience` that are not whole numbers of at least 1.
        """
        if epochs is None:
            raise TypeError("fit() needs a number of epochs, such as fit(train, epochs=10)")
        check_counts(epochs=epochs, check_every=check_every, patience=patience)
        check_callable("on_record", on_record, "a record, a dict")
        resume = check_flag("resume", resume)
        if not isinstance(run, (Run, str, os.PathLike, type(None))):
            raise TypeError(f"run must be the path of a folder, a Run, or None, got {run!r}")
        epochs = int(epochs)  # files take no integers of NumPy
        options: dict[str, Any] = {
            "check_every": check_every,
            "patience": patience,
            "on_record": on_record,
        }
        if run is None or isinstance(run, Run):
            Fit(self, train, validation, epochs, run, **options)()
        else:
            self._fit_in(Path(run), train, validation, epochs, resume, options)
        return [row for row in self.history if row["kind"] == "epoch"]

    def _fit_in(
        self,
        folder: Path,
        train: BatchSource,
        validation: BatchSource | None,
        epochs: int,
        resume: bool,
        options: dict[str, Any],
    ) -> None:
        fit = Fit(self, train, validation, epochs, None, **options)  # before there is a folder
        if self.run is None or self.run.folder != folder:
            self.run = open_run(self, folder, train, epochs, resume=resume)
        else:
            self.run.hold()
        try:
            fit.run = self.run
            fit()
        finally:
            if self.run is not None:
                self.run.release()

    def init_from(self, path: str | Path) -> None:
        """Give the network the weights of a checkpoint; all else stays as it is.

        Args:
            path: such as `runs/mine/checkpoints/best_model.pth`.

        Raises:
            CheckpointError: a file that is missing or damaged, or weights of another network.
        """
        state = load_checkpoint(path, self.device)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            first = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{path}: its weights are not those of this {self.caller.name}: {first}"
            ) from None

    def interrupt(self) -> None:
        """Make `fit` end with KeyboardInterrupt once the step under way is whole.

        With several processes, calling it in one is enough: all stop after the same step, at most
        8 steps later.
        """
        self._stop = True

    def is_stopping(self, *, within_epoch: bool = False) -> bool:
        """True once any process was interrupted; all processes call it after the same steps."""
        if self.fabric.world_size == 1:
            return self._stop
        if within_epoch and self.step % AGREE_STEPS:
            return False
        return float(self._sum_over_processes(torch.tensor(float(self._stop)))) > 0

    def was_interrupted(self) -> None:
        """Clear the request to stop, and stop the clock of the epoch until training continues."""
        self._stop = False
        self.meter.stop()

    def state_dict(self, batches: BatchSource | None = None) -> dict[str, Any]:
        """Return all that a continued run needs, as tensors and plain values.

        With several processes all must call it; the state holds what belongs to each, by rank.

        Args:
            batches: the training batches, for their order.

        Raises:
            NeuroSpikeError: a loss or a gradient of the last steps was NaN or infinite.
        """
        self.collect()
        return state_of(self, batches)

    def load_state_dict(self, state: dict[str, Any], batches: BatchSource | None = None) -> None:
        """Continue from `state_dict`: the same steps follow that would have followed then.

        That holds for as many processes as saved the state; in another number, each process draws
        from a stream of random numbers of its own.

        Args:
            state: what `state_dict` returned.
            batches: the training batches.

        Raises:
            ValueError: the batches cannot be continued within an epoch.
        """
        self._batches = []
        self._stepper.forget()
        restore(self, state, batches)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        """Add up over the processes that train together."""
        summed: Tensor = self.fabric.all_reduce(values.to(self.device), reduce_op="sum")
        return summed

    def new_meter(self) -> Meter:
        """Return a meter of the epoch under way."""
        # A scaled loss may overflow by design: the optimiser then skips the step.
        return Meter(f"epoch {self.epoch + 1}", scaled=self._scaler is not None)

    def collect(self) -> None:
        """Read the metrics of the steps since the last reading, and drop their batches.

        Raises NeuroSpikeError for a step whose loss or gradient was not finite.
        """
        batches, self._batches = self._batches, []
        try:
            self.meter.collect()
        except NotFiniteError as error:
            raise self._explain(error, self.epoch_step - len(batches), batches) from None

    def read(self) -> Metrics:
        """Return averages over the epoch so far of all processes, all of which must call it."""
        self.collect()
        return self.meter.read(self._sum_over_processes)

    def _read_alone(self) -> Metrics:
        """Return averages over the epoch so far of this process alone."""
        self.collect()
        return self.meter.read()

    def _explain(self, error: NotFiniteError, before: int, batches: list[Parts]) -> NeuroSpikeError:
        """Build the error for a NaN or infinite number: at which step, and where in the network.

        before: steps of the epoch before those of `batches`.
        """
        inputs, targets, lengths = batches[error.step]

        def compute_loss(inputs: Tensor, targets: Tensor) -> Tensor:
            with self.fabric.autocast():
                return self._loss(self.model, inputs, targets, lengths)[0]

        where = find_not_finite(self.model, compute_loss, inputs, targets)
        return self._not_finite(error, before + error.step + 1, where)

    def _not_finite(self, what: object, step: int, where: str) -> NeuroSpikeError:
        return NeuroSpikeError(
            f"epoch {self.epoch + 1}: {what} at step {step}; not finite first: {where}. "
            "Try a smaller learning rate or gradient clipping (training.clip, in Python clip). "
            "Checkpoints saved before are good."
        )
