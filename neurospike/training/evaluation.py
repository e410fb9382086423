"""What an evaluation measures: sums on the device, over several processes together."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from neurospike.errors import NeuroSpikeError

from .metrics import SATURATED, Activity, Metrics


class Evaluation:
    """Sums over the batches of one evaluation; `read` gives the averages."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """name: what is evaluated, for the error message."""
        self.name, self.device = name, device
        self._start = time.perf_counter()
        self._loss = self._zeros(1)  # the sum over pictures
        self._confusion: Tensor | None = None  # int64 [C, C], by label, then by answer
        # Of each layer: its neurons' spikes, and at the end how many there could have been.
        self._spikes: dict[str, Tensor] = {}
        self._channels: dict[str, int] = {}

    def add(
        self,
        loss: Tensor,
        scores: Tensor,
        labels: Tensor,
        activity: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """Add one batch; waits for nothing.

        loss: scalar, the batch's mean; scores `[B, C]`; labels int64 `[B]`, below C; activity:
        spikes `[T, B, *F]` by layer; lengths: how many of the steps belong to each sample, `[B]`.
        """
        activity = activity or {}
        classes = scores.shape[1]
        if self._confusion is None:
            self._confusion = self._zeros((classes, classes), torch.int64)
        for name, spikes in activity.items():
            if name not in self._spikes:
                self._spikes[name] = self._zeros(spikes.shape[2:].numel() + 1)
                self._channels[name] = spikes.shape[2:3].numel()
        if not len(labels):
            return  # this process's part of a last batch that is smaller than the processes
        self._loss += loss * len(labels)
        # Not `bincount`, which looks at the numbers, and a GPU's program would wait for that.
        pairs = labels * classes + scores.argmax(1)
        self._confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))
        for name, spikes in activity.items():
            sums = self._spikes[name]
            sums[:-1] += spikes.sum((0, 1), dtype=torch.float32).flatten()
            # Beyond its end a sample has no spikes.
            sums[-1] += lengths.sum() if lengths is not None else spikes.shape[0] * spikes.shape[1]

    def read(self, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """The averages. Raises NeuroSpikeError if a loss was NaN or infinite, or for no pictures.

        together: adds a tensor up over processes that train together, which all call this and get
        the same.
        """
        confusion = self._zeros((0, 0)) if self._confusion is None else self._confusion.clone()
        sums = torch.cat([self._loss, *self._spikes.values()])
        if together is not None:
            confusion, sums = together(confusion), together(sums)
        samples = int(confusion.sum())
        if not samples:
            raise NeuroSpikeError(f"{self.name}: no pictures to run; the data set is empty")
        total, *layers = sums.split([1, *map(len, self._spikes.values())])
        loss = float(total) / samples
        if not math.isfinite(loss):
            raise NeuroSpikeError(
                f"{self.name}: the loss became {loss}; try a smaller learning rate. Checkpoints "
                "saved before are good."
            )
        return Metrics(
            loss=loss,
            accuracy=int(confusion.trace()) / samples,
            samples=samples,
            seconds=time.perf_counter() - self._start,
            activity={
                name: _activity(layer, count)
                for (name, count), layer in zip(self._channels.items(), layers, strict=True)
            },
            confusion=confusion.tolist(),
        )

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _activity(sums: Tensor, channels: int) -> Activity:
    """Rate and shares, of a layer's spikes by neuron and, last, their most."""
    rates = sums[:-1] / sums[-1]
    shares = torch.stack([rates, rates == 0, rates > SATURATED]).mean(1)
    silent = rates.view(channels, -1).sum(1) == 0
    rate, dead, saturated = shares.tolist()
    return Activity(rate, dead, saturated, channels, float(silent.double().mean()))
