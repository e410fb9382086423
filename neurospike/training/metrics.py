"""What is measured, without slowing down what it measures.

Reading a value from a GPU makes the program wait for it, so a training step only notes its
tensors where they are; the notes are fetched together, a few times a second. What an evaluation
measures is in `evaluation.py`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neurospike.errors import NeuroSpikeError

SATURATED = 0.95  # spikes a step above which a neuron tells little but that it is on


@dataclass(frozen=True)
class Activity:
    """How a layer's neurons fired. rate: spikes a neuron and time step.

    dead, saturated: share of its neurons that never fired, and at over `SATURATED` of the steps.
    """

    rate: float
    dead: float
    saturated: float


@dataclass(frozen=True)
class Metrics:
    """Averages over the pictures of an epoch, or of the part of it that was run so far.

    The lists and mappings are filled by an evaluation only.
    """

    loss: float
    accuracy: float  # share of right answers, 0 to 1
    samples: int
    seconds: float
    activity: dict[str, Activity] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)  # pictures by label, then by answer

    @property
    def samples_per_second(self) -> float:
        """Pictures a second, all work of the loop counted."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def class_accuracy(self) -> list[float | None]:
        """Share of right answers by label; None for a label that no picture has."""
        rows = enumerate(self.confusion)
        return [row[label] / sum(row) if sum(row) else None for label, row in rows]

    @property
    def spike_rates(self) -> dict[str, float]:
        """Spikes a neuron and time step, by layer."""
        return {name: layer.rate for name, layer in self.activity.items()}


class NotFiniteError(NeuroSpikeError):
    """A loss became NaN or infinite. step: of those noted since the last reading, from 0."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__(f"the loss became {value}")
        self.value, self.step = value, step


class Meter:
    """Averages of loss and accuracy over the steps of an epoch of training."""

    def __init__(self, name: str, sums: tuple[float, int, int] = (0.0, 0, 0)) -> None:
        """name: what is being run, for errors. sums: of an epoch gone on with, as `sums`."""
        self.name = name
        self.steps = 0
        self._start = time.perf_counter()
        self._notes: list[tuple[int, Tensor, Tensor]] = []
        self._loss, self._correct, self._samples = sums
        self._samples_before = self._samples

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Note one batch; waits for nothing. loss: scalar, the batch's mean."""
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        self._notes.append((len(labels), loss.detach(), correct))
        self.steps += 1

    @property
    def sums(self) -> tuple[float, int, int]:
        """Sum of losses, right answers and pictures up to the last reading."""
        return self._loss, self._correct, self._samples

    def read(self, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Averages so far; `together` adds a tensor up over processes that train together.

        Raises NotFiniteError if a loss was NaN or infinite, NeuroSpikeError if there was none.
        """
        if self._notes:
            self._collect()
        loss, correct, samples = self.sums
        new = samples - self._samples_before
        if together is not None:
            every = torch.tensor([loss, correct, samples, new], dtype=torch.float64)
            loss, correct, samples, new = together(every).tolist()
        if not samples:
            raise NeuroSpikeError(f"{self.name}: no pictures to run; the data set is empty")
        seconds = time.perf_counter() - self._start
        # Time is only known of this process's own part of an epoch that is gone on with.
        return Metrics(loss / samples, correct / samples, int(samples), seconds * samples / new)

    def _collect(self) -> None:
        sizes, losses, corrects = zip(*self._notes, strict=True)
        self._notes = []
        for step, (size, loss) in enumerate(zip(sizes, torch.stack(losses).tolist(), strict=True)):
            if not math.isfinite(loss):
                raise NotFiniteError(loss, step)
            self._loss += loss * size
        self._samples += sum(sizes)
        self._correct += int(torch.stack(corrects).sum())
