"""The training loop, to be read from top to bottom.

It knows nothing of backends, files or flags: it gets a model, an optimiser, a criterion and
batches, and hands what happened to a `Run` if it is given one.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from neurospike.training.metrics import Meter, Metrics
from neurospike.training.records import Run

READ_INTERVAL = 0.1  # seconds between two looks at the metrics, each of which makes a GPU wait


class BatchSource(Iterable[tuple[Tensor, Tensor]], Sized, Protocol):
    """What the trainer iterates once an epoch: `(images [B, *F], labels [B])`, and a length."""


class SNNTrainer:
    """Trains a network and keeps count of what it learns.

    model: `scores = model(images)`, and `scores, activity = model(images, return_activity=True)`
    as `SNNModel` does; moved to `device`. criterion: `criterion(scores [B, C], labels [B])`, the
    mean loss. scheduler: a torch learning-rate schedule, advanced after every *step* (batch),
    not every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        device: torch.device | str = "cpu",
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.criterion = criterion
        self.scheduler = scheduler
        self.epoch = 0  # epochs finished
        self.step = 0  # steps taken in all of them, and in the one under way
        self.best: tuple[float, float] | None = None  # accuracy and negative loss

    def train_epoch(
        self, batches: BatchSource, on_step: Callable[[int, Metrics], None] | None = None
    ) -> Metrics:
        """Take one optimiser step a batch; averages over the epoch, as the weights moved.

        on_step: called with the steps taken and the metrics so far, at most 10 times a second.
        Raises NeuroSpikeError, within a tenth of a second, when the loss is NaN or infinite.
        """
        self.model.train()
        meter = Meter(f"epoch {self.epoch + 1}")
        next_read = time.perf_counter() + READ_INTERVAL
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            scores = self.model(images)
            loss = self.criterion(scores, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            self.step += 1
            meter.add(loss, scores, labels)
            if time.perf_counter() >= next_read:
                metrics = meter.read()
                if on_step is not None:
                    on_step(meter.steps, metrics)
                next_read = time.perf_counter() + READ_INTERVAL
        metrics = meter.read()
        self.epoch += 1
        return metrics

    @torch.no_grad()
    def evaluate(self, batches: BatchSource, name: str = "evaluation") -> Metrics:
        """Loss, accuracy and each layer's spike rate, weights untouched.

        name: for the error message. Raises NeuroSpikeError when the loss is NaN or infinite.
        """
        self.model.eval()
        meter = Meter(name)
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            scores, activity = self.model(images, return_activity=True)
            meter.add(self.criterion(scores, labels), scores, labels, activity)
        return meter.read()

    def fit(
        self,
        train: BatchSource,
        validation: BatchSource | None,
        epochs: int,
        run: Run | None = None,
    ) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are finished; one record an epoch, as in `metrics.jsonl`.

        validation: chooses the best epoch by accuracy, then loss; None makes the last the best.
        run: where records and checkpoints go; at Ctrl-C the state is saved there first.
        Prints a line an epoch, and shows a progress bar if stderr is a terminal.
        """
        history = []
        try:
            while self.epoch < epochs:
                learning_rate = self.optimizer.param_groups[0]["lr"]
                trained = self._train_with_bar(train, epochs)
                name = f"validation after epoch {self.epoch}"
                checked = self.evaluate(validation, name) if validation is not None else None
                score = (checked.accuracy, -checked.loss) if checked is not None else None
                is_best = score is None or self.best is None or score > self.best
                self.best = score if is_best else self.best
                record = _record(self.epoch, learning_rate, trained, checked)
                history.append(record)
                if run is not None:
                    run.save_epoch(self.state_dict(train), is_best=is_best)
                    run.log("epoch", **record)
                # Last, so that an epoch told of is an epoch kept.
                print(_line(record, epochs, is_best), flush=True)  # noqa: T201 (a run's progress)
        except KeyboardInterrupt:
            if run is not None:
                run.save(self.state_dict(train), run.interrupted)
            raise
        return history

    def state_dict(self, batches: BatchSource | None = None) -> dict[str, Any]:
        """All that a continued run needs, as tensors and plain values.

        batches: the training batches, for the state of their shuffling `generator`.
        """
        generator = getattr(batches, "generator", None)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
                "shuffle": None if generator is None else generator.get_state(),
            },
        }

    def _train_with_bar(self, batches: BatchSource, epochs: int) -> Metrics:
        if not sys.stderr.isatty():
            return self.train_epoch(batches)
        title = f"epoch {self.epoch + 1}/{epochs}"
        with tqdm(total=len(batches), desc=title, unit="step", leave=False) as bar:

            def show(step: int, metrics: Metrics) -> None:
                bar.set_postfix_str(
                    f"loss {metrics.loss:.4f}, accuracy {metrics.accuracy:.2%}, "
                    f"{metrics.samples_per_second:,.0f} samples/s",
                    refresh=False,
                )
                bar.update(step - bar.n)

            return self.train_epoch(batches, show)


def _record(
    epoch: int, learning_rate: float, trained: Metrics, checked: Metrics | None
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "validation_loss": checked.loss if checked is not None else None,
        "validation_accuracy": checked.accuracy if checked is not None else None,
        "learning_rate": learning_rate,  # at the start of the epoch
        "seconds": trained.seconds,
        "samples_per_second": trained.samples_per_second,
        "spike_rates": checked.spike_rates if checked is not None else {},
    }


def _line(record: dict[str, Any], epochs: int, is_best: bool) -> str:
    parts = [
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.2%}",
    ]
    if record["validation_loss"] is not None:
        parts.append(
            f"validation loss {record['validation_loss']:.4f} "
            f"accuracy {record['validation_accuracy']:.2%}"
        )
    parts.append(f"{record['seconds']:.1f} s, {record['samples_per_second']:,.0f} samples/s")
    if is_best and record["validation_loss"] is not None:
        parts.append("best so far")
    return " | ".join(parts)
