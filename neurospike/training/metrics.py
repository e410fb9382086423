"""What is measured while training, without slowing it down.

Reading a value from a GPU makes the program wait for it, so a step only notes its tensors
where they are; the notes are fetched together, a few times a second.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neurospike.errors import NeuroSpikeError


@dataclass(frozen=True)
class Metrics:
    """Averages over the pictures of an epoch, or of the part of it that was run so far."""

    loss: float
    accuracy: float  # share of right answers, 0 to 1
    samples: int
    seconds: float
    spike_rates: dict[str, float] = field(default_factory=dict)  # spikes a neuron and time step

    @property
    def samples_per_second(self) -> float:
        """Pictures a second, all work of the loop counted."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0


class Meter:
    """Collects the batches of one epoch; `read` gives their averages."""

    def __init__(self, name: str) -> None:
        """name: what is being run, for the error message: "epoch 3"."""
        self.name = name
        self.steps = 0
        self._start = time.perf_counter()
        self._notes: list[tuple[int, Tensor, Tensor]] = []
        self._rate_notes: dict[str, list[Tensor]] = {}
        self._steps_read = self._samples = self._correct = 0
        self._loss = 0.0
        self._spikes: dict[str, float] = {}

    def add(
        self,
        loss: Tensor,
        scores: Tensor,
        labels: Tensor,
        activity: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Note one batch; waits for nothing.

        loss: scalar, the batch's mean; scores `[B, C]`; labels int64 `[B]`; activity: spikes
        `[T, B, *F]` by layer.
        """
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        self._notes.append((len(labels), loss.detach(), correct))
        for layer, spikes in (activity or {}).items():
            rate = spikes.detach().mean(dtype=torch.float32) * len(labels)
            self._rate_notes.setdefault(layer, []).append(rate)
        self.steps += 1

    def read(self) -> Metrics:
        """Averages so far. Raises NeuroSpikeError if a loss was NaN or infinite."""
        if self._notes:
            self._collect()
        if not self._samples:
            raise NeuroSpikeError(f"{self.name}: no pictures to run; the data set is empty")
        return Metrics(
            loss=self._loss / self._samples,
            accuracy=self._correct / self._samples,
            samples=self._samples,
            seconds=time.perf_counter() - self._start,
            spike_rates={name: total / self._samples for name, total in self._spikes.items()},
        )

    def _collect(self) -> None:
        sizes, losses, corrects = zip(*self._notes, strict=True)
        for size, loss in zip(sizes, torch.stack(losses).tolist(), strict=True):
            self._steps_read += 1
            if not math.isfinite(loss):
                raise NeuroSpikeError(
                    f"{self.name}: the loss became {loss} at step {self._steps_read}; try a "
                    "smaller learning rate. Checkpoints saved before are good."
                )
            self._loss += loss * size
        self._samples += sum(sizes)
        self._correct += int(torch.stack(corrects).sum())
        for layer, rates in self._rate_notes.items():
            self._spikes[layer] = self._spikes.get(layer, 0.0) + sum(torch.stack(rates).tolist())
        self._notes, self._rate_notes = [], {}
