"""What an evaluation measures: sums kept on the device, and added up over the processes."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from neurospike.errors import NeuroSpikeError

from .answering import is_class, is_of_classes
from .judging import Measures
from .metrics import Activity, Metrics, averages

MOST_CLASSES = 2000  # with more there is no confusion matrix, whose size is their square


class Evaluation:
    """Sums over the batches of one evaluation; `read` gives the averages."""

    def __init__(
        self,
        name: str,
        device: torch.device | str = "cpu",
        measures: Mapping[str, Any] | None = None,
    ) -> None:
        """name: what is evaluated, for the error message. measures: see `judging.Measures`."""
        self.name, self.device = name, device
        self._start = time.perf_counter()
        # Over samples: the loss, how many there are, how many of them are judged, and right
        # answers, NaN without classes.
        self._sums = self._zeros(4)
        self._measures = Measures(measures or {}, device)
        self._confusion: Tensor | None = None  # int64 [C, C], by label, then by answer
        # Of each layer: its neurons' spikes, and at the end how many there could have been.
        self._spikes: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}  # of its neurons

    def add(
        self,
        loss: Tensor,
        scores: Tensor,
        targets: Tensor,
        activity: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        count: int | None = None,
    ) -> None:
        """Add one batch; waits for nothing.

        loss: scalar, the batch's mean; scores `[B, C]`; targets: labels `[B]` of integers, or
        anything else that belongs to the scores. Labels that are no class, such as -100, which
        criteria ignore, count neither for the loss nor for the accuracy, and are in no row of the
        confusion matrix. activity: spikes `[T, B, *F]` by layer; lengths: how many of the steps
        belong to each sample, `[B]`; count: samples, if not one per target.
        """
        activity = activity or {}
        count = len(targets) if count is None else count
        judged = is_of_classes(scores, targets)
        classes = scores.shape[1] if judged and scores.shape[1] <= MOST_CLASSES else 0
        if self._confusion is None:
            self._confusion = self._zeros((classes, classes), torch.int64)
        for name, spikes in activity.items():
            if name not in self._spikes:
                self._spikes[name] = self._zeros(spikes.shape[2:].numel() + 1)
                self._shapes[name] = spikes.shape[2:]
        if not count:
            return  # this process's part of a last batch that is smaller than the processes
        self._sums[1] += count
        if judged:
            answers = scores.argmax(1)
            counted = is_class(scores, targets)
            number = counted.sum()
            # The mean over no samples is NaN, and must not be added.
            self._sums[0] += torch.where(number > 0, loss * number, 0.0)
            self._sums[2] += number
            self._sums[3] += (answers == targets).sum()
            if classes:
                # Not `bincount`, which reads the values and so waits for a GPU.
                labels = targets.long()  # in fewer bits the product could overflow
                pairs = torch.where(counted, labels * classes + answers, 0)
                self._confusion.view(-1).index_add_(0, pairs, counted.long())
        else:
            self._sums[0] += loss * count
            self._sums[2] += count
            self._sums[3] += math.nan
        self._measures.add(scores, targets, count)
        for name, spikes in activity.items():
            sums = self._spikes[name]
            fired, steps = _own(spikes, lengths)
            sums[:-1] += fired.flatten()
            sums[-1] += steps

    def read(self, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return the averages. Raises NeuroSpikeError for a loss that is not finite, or no samples.

        together: adds a tensor up over the processes that train together, all of which call this
        and get the same averages.
        """
        confusion = self._zeros((0, 0)) if self._confusion is None else self._confusion.clone()
        parts = [self._sums, self._measures.sums, *self._spikes.values()]
        sums = torch.cat(parts)
        if together is not None:
            confusion, sums = together(confusion), together(sums)
        first, own, *layers = sums.split([len(part) for part in parts])
        total, samples, judged, correct = first.tolist()
        loss, accuracy = averages(self.name, total, correct, judged, samples)
        if not math.isfinite(loss):
            raise NeuroSpikeError(
                f"{self.name}: the loss became {loss}; try a smaller learning rate. Checkpoints "
                "saved before are good."
            )
        measured = self._measures.read(own, int(samples))
        if isinstance(measured.get("accuracy"), float):
            accuracy = measured.pop("accuracy")
        return Metrics(
            loss=loss,
            accuracy=accuracy,
            samples=int(samples),
            seconds=time.perf_counter() - self._start,
            activity={
                name: _activity(layer, shape)
                for (name, shape), layer in zip(self._shapes.items(), layers, strict=True)
            },
            confusion=confusion.tolist(),
            own=measured,
        )

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _own(spikes: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Return each neuron's spikes in the steps that belong to a sample, and how many these are.

    Layers that are given no lengths, or other steps than the network, run beyond a sample's end.
    """
    if lengths is None or len(lengths) != spikes.shape[1]:
        return spikes.sum((0, 1), dtype=torch.float32), spikes.shape[0] * spikes.shape[1]
    # Not `own_steps`, which refuses lengths above T: a layer may run fewer steps than the input.
    own = torch.arange(len(spikes), device=spikes.device)[:, None] < lengths.to(spikes.device)
    beyond = ~own.view(*own.shape, *(1,) * (spikes.dim() - 2))
    return spikes.masked_fill(beyond, 0).sum((0, 1), dtype=torch.float32), own.sum()


def _activity(sums: Tensor, shape: torch.Size) -> Activity:
    """Return how a layer fired, of its neurons' spikes and, last, the most that one could have."""
    return Activity.of((sums[:-1] / sums[-1].clamp(min=1)).view(shape))  # 0 of no steps
