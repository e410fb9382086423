"""What an evaluation measures, in torchmetrics: on the device, and over processes together."""

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from neurospike.errors import NeuroSpikeError

from .metrics import SATURATED, Activity, Metrics


class NeuronActivity(Metric):
    """Rate, dead and saturated neurons of one layer, from its spikes `[T, B, *F]`."""

    spikes: Tensor
    slots: Tensor

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.add_state("spikes", torch.zeros(neurons, dtype=torch.float64), "sum")
        self.add_state("slots", torch.zeros((), dtype=torch.float64), "sum")

    def update(self, spikes: Tensor) -> None:
        """Count the spikes of each neuron."""
        self.spikes += spikes.sum((0, 1), dtype=torch.float32).flatten()
        self.slots += spikes.shape[0] * spikes.shape[1]

    def compute(self) -> Tensor:
        """Spikes a time step of each neuron."""
        return self.spikes / self.slots


class MeanLoss(Metric):
    """The mean over pictures; torchmetrics' own drops the weights if it need not look for NaN."""

    total: Tensor
    pictures: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("pictures", torch.zeros((), dtype=torch.float64), "sum")

    def update(self, loss: Tensor, pictures: int) -> None:
        """Add a batch's mean."""
        self.total += loss * pictures
        self.pictures += pictures

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.pictures


class Evaluation:
    """Sums over the batches of one evaluation; `read` gives the averages."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """name: what is evaluated, for the error message."""
        self.name, self.device = name, device
        self._start = time.perf_counter()
        self._loss = MeanLoss().to(device)
        self._confusion: MulticlassConfusionMatrix | None = None
        self._layers: dict[str, NeuronActivity] = {}

    def add(
        self,
        loss: Tensor,
        scores: Tensor,
        labels: Tensor,
        activity: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add one batch; waits for nothing.

        loss: scalar, the batch's mean; scores `[B, C]`; labels int64 `[B]`; activity: spikes
        `[T, B, *F]` by layer.
        """
        if self._confusion is None:
            # validate_args would look at the labels, and a GPU's program would wait for that.
            confusion = MulticlassConfusionMatrix(scores.shape[1], validate_args=False)
            self._confusion = confusion.to(self.device)
        if not len(labels):
            return  # this process's part of a last batch that is smaller than the processes
        self._loss.update(loss, len(labels))
        self._confusion.update(scores, labels)
        for name, spikes in (activity or {}).items():
            if name not in self._layers:
                self._layers[name] = NeuronActivity(spikes[0, 0].numel()).to(self.device)
            self._layers[name].update(spikes)

    def read(self) -> Metrics:
        """The averages. Raises NeuroSpikeError if a loss was NaN or infinite, or for no pictures.

        Processes that train together all call it, and get the same.
        """
        if self._confusion is None:
            raise NeuroSpikeError(f"{self.name}: no pictures to run; the data set is empty")
        loss = float(self._loss.compute())
        if not math.isfinite(loss):
            raise NeuroSpikeError(
                f"{self.name}: the loss became {loss}; try a smaller learning rate. Checkpoints "
                "saved before are good."
            )
        confusion = self._confusion.compute()
        samples = int(confusion.sum())
        return Metrics(
            loss=loss,
            accuracy=int(confusion.trace()) / samples,
            samples=samples,
            seconds=time.perf_counter() - self._start,
            activity={
                name: _activity(layer.compute().reshape(-1)) for name, layer in self._layers.items()
            },
            confusion=confusion.tolist(),
        )


def _activity(rates: Tensor) -> Activity:
    shares = torch.stack([rates, rates == 0, rates > SATURATED]).mean(1)
    return Activity(*shares.tolist())
