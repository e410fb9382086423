"""`SNNTrainer.fit`: epochs, what is checked and kept after them, and how they end early."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurospike.errors import CheckpointError, NeuroSpikeError

from .arguments import check_source, length_of
from .diagnosis import dead_in_training
from .judging import name_of
from .metrics import Metrics
from .progress import epoch_line, measured, progress_bar
from .records import Run
from .resume import newest_state
from .stopping import stopping_whole

if TYPE_CHECKING:
    from .trainer import SNNTrainer


class Stopped(KeyboardInterrupt):
    """`fit` was interrupted after a whole step, with several processes all after the same one."""


class Fit:
    """One call of `SNNTrainer.fit`, with its arguments."""

    def __init__(
        self,
        trainer: "SNNTrainer",
        train: Any,
        validation: Any,
        epochs: int,
        run: Run | None,
        *,
        check_every: int | None = None,
        patience: int | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        world = trainer.fabric.world_size
        check_source("train", train, world)
        if validation is not None:
            check_source("validation", validation, world)
        self.trainer, self.run = trainer, run
        self.train, self.validation, self.epochs = train, validation, epochs
        self.check_every, self.patience, self.on_record = check_every, patience, on_record

    def __call__(self) -> None:
        """Train; KeyboardInterrupt after Ctrl-C, once the state is saved."""
        try:
            with stopping_whole(self.trainer.interrupt):
                self._train()
        except KeyboardInterrupt as interrupt:
            self._keep_interrupted(together=isinstance(interrupt, Stopped))
            kept = "" if self.run is None else self.run.kept()
            if kept and not interrupt.args:
                interrupt.args = (kept,)
            raise

    def _train(self) -> None:
        trainer = self.trainer
        while trainer.epoch < self.epochs and not self._has_waited():
            if not trainer.epoch_step:
                trainer.learning_rate = float(trainer.optimizer.param_groups[0]["lr"])
            title = f"epoch {trainer.epoch + 1}/{self.epochs}"
            with progress_bar(title, length_of(self.train)) as show:
                trained = trainer.train_epoch(self.train, show, self._after_step)
            self._check(trained)
            if trainer.is_stopping():
                raise Stopped

    def _has_waited(self) -> bool:
        return self.patience is not None and self.trainer.waited >= self.patience

    def _after_step(self) -> None:
        trainer = self.trainer
        if self.check_every is not None and trainer.step % self.check_every == 0:
            trained = trainer.read()
            trainer.meter.stop()  # an epoch's time is that of its training
            self._check(trained, within_epoch=True)
            trainer.model.train()
            trainer.meter.start()

    def _check(self, trained: Metrics, *, within_epoch: bool = False) -> None:
        """Validate, record and save, after an epoch or within it."""
        trainer = self.trainer
        trainer.is_whole = False
        checked, is_best = self._validate(within_epoch)
        record = {
            "kind": "step" if within_epoch else "epoch",
            "epoch": trainer.epoch + within_epoch,
            "step": trainer.step,
            **measured(trained, checked),
            "learning_rate": trainer.learning_rate,
            "gradient_norm": trainer.meter.gradient_norm,
        }
        trainer.history.append(record)
        first = trainer.fabric.is_global_zero
        if self.run is not None or trainer.fabric.world_size > 1:
            state = trainer.state_dict(self.train)
            if self.run is not None and first:
                self.run.save_epoch(state, is_best=is_best)
                self.run.write(record)
        if first:
            # Last, so that an epoch whose line is printed has been saved.
            print(epoch_line(record, self.epochs, is_best), flush=True)  # noqa: T201 (its progress)
        if checked is not None and not (within_epoch or trainer.warned_of_dead):
            dead = dead_in_training(trainer, checked.activity, self.train)
            trainer.warned_of_dead = dead is not None
            if dead is not None and first:
                print(dead, flush=True)  # noqa: T201
        trainer.is_whole = True
        if self.on_record is not None and first:
            self.on_record(record)

    def _validate(self, within_epoch: bool) -> tuple[Metrics | None, bool]:
        """Return what the validation measured, and whether it is the best so far."""
        trainer = self.trainer
        after = f"step {trainer.step}" if within_epoch else f"epoch {trainer.epoch}"
        checked, score = None, None
        if self.validation is not None:
            checked = trainer.evaluate(self.validation, f"validation after {after}")
            score = (checked.accuracy or 0.0, -checked.loss)
        is_best = score is None or trainer.best is None or score > trainer.best
        trainer.best = score if is_best else trainer.best
        trainer.waited = 0 if is_best else trainer.waited + 1
        trainer.guessing = checked is not None and checked.guessing
        if checked is not None and hasattr(trainer.scheduler, "report"):
            trainer.scheduler.report(checked.loss)
        return checked, is_best

    def _keep_interrupted(self, *, together: bool) -> None:
        """Save the state at Ctrl-C, and let another `fit` continue from it.

        together: all processes have stopped here. One alone cannot save the state of all.
        """
        trainer = self.trainer
        trainer.was_interrupted()
        if not trainer.is_whole:  # the weights are neither the old ones nor the new
            return
        if together or trainer.fabric.world_size == 1:
            state = trainer.state_dict(self.train)
            if self.run is not None:
                self.run.save(state, self.run.interrupted)
        trainer.order.go_on(self.train, trainer.epoch_step)


def open_run(
    trainer: "SNNTrainer", folder: Path, train: Any, epochs: int, *, resume: bool
) -> Run | None:
    """Make a new run in a folder, or continue the one there; None but in the first process.

    Raises NeuroSpikeError for a folder that holds a run where `resume` is False, CheckpointError
    for the run of another network.
    """
    is_there = (folder / "config.yaml").is_file()
    if is_there and not resume:
        raise NeuroSpikeError(
            f"{folder} holds a run already: pass resume=True to go on with it, or name another "
            "folder"
        )
    fabric = trainer.fabric
    fabric.barrier()  # before the first process makes the folder
    state = newest_state(folder) if is_there else None
    fabric.barrier()  # before the first process changes what it finds there
    if state is not None:
        name = type(trainer.model).__name__
        go_on(trainer, state, train, f"this {name} and its optimiser cannot go on from it:")
    run = None
    if fabric.is_global_zero:
        network = type(trainer.model)
        config = {"own_network": f"{network.__module__}.{network.__qualname__}", "epochs": epochs}
        record = {
            "device": str(trainer.device),
            "processes": fabric.world_size,
            "criterion": name_of(trainer.criterion),
        }
        run = Run(folder, config=config, record=record, resumed=is_there)
        if is_there:
            run.go_on(trainer.history, trainer.step, None if state is None else state["path"])
            print(_how_it_goes_on(trainer, folder, epochs, state), flush=True)  # noqa: T201
    return run


def go_on(trainer: "SNNTrainer", state: dict[str, Any], batches: Any, why_not: str) -> None:
    """Let a trainer continue from a run's state.

    Raises CheckpointError if it cannot, with `why_not` before the reason.
    """
    try:
        trainer.load_state_dict(state, batches)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{state['path']}: {why_not} {first}") from None


def _how_it_goes_on(trainer: "SNNTrainer", folder: Path, epochs: int, state: Any) -> str:
    if state is None:
        return f"{folder}: nothing was saved yet, the run starts anew"
    done = f"{folder}: {trainer.epoch} of {epochs} epochs are done"
    if trainer.epoch_step:
        return f"{done}, and {trainer.epoch_step} steps of the next; the run goes on"
    more = "the run goes on" if trainer.epoch < epochs else "pass more epochs to train on"
    return f"{done}; {more}"
