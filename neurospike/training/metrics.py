"""What training measures, without slowing it down.

Reading a value from a GPU makes the program wait for it, so a training step only notes its
tensors where they are; the notes are read together, a few times a second. What an evaluation
measures is in `evaluation.py`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neurospike.errors import NeuroSpikeError

from .answering import is_class, is_of_classes

SATURATED = 0.95  # spikes per step above which a neuron's firing carries hardly any information

NO_SAMPLES = (
    "no samples to run; look at the data set, and at batch_size and drop_last of a "
    "DataLoader, which drops what fills no batch"
)


@dataclass(frozen=True)
class Activity:
    """How a layer's neurons fired. rate: spikes per neuron and time step.

    dead, saturated: share of its neurons that never fired, and at over `SATURATED` of the steps.
    channels: what has weights of its own: each neuron, or of feature maps each map. dead_channels:
    share of those of which no neuron ever fired.
    """

    rate: float
    dead: float
    saturated: float
    channels: int
    dead_channels: float

    @classmethod
    def of(cls, rates: Tensor) -> "Activity":
        """Make it of the spikes per step of each neuron, `[*F]`; waits for their device."""
        silent = rates == 0
        shares = torch.stack([rates, silent, rates > SATURATED]).flatten(1).mean(1)
        # Of feature maps [C, H, W] a map is a channel.
        channels = silent.flatten(1).all(1) if silent.dim() > 1 else silent
        rate, dead, saturated = shares.tolist()
        return cls(rate, dead, saturated, channels.numel(), float(channels.double().mean()))


@dataclass(frozen=True)
class Metrics(Mapping[str, Any]):
    """Averages over the samples of an epoch, or of the part of it that was run so far.

    It is also a mapping: `metrics["loss"]` and, where targets are classes, `metrics["accuracy"]`,
    your own measures by their names, `spike_rates`, `dead_neurons` and `saturated_neurons` by
    layer, `seconds` and `samples_per_second`; `dict(metrics)` is all of it, as plain numbers.

    Attributes:
        loss: mean over the samples that count: those whose label is a class, and not, say, -100,
            which criteria ignore.
        accuracy: share of right answers of the same samples, 0 to 1; None where targets are not
            classes.
        samples: how many were run.
        seconds: how long it took.
        activity: how each layer's neurons fired, by its name; of an evaluation only.
        confusion: samples by label, then by answer; of an evaluation only.
        own: measures of one's own by name; of an evaluation only.
    """

    loss: float
    accuracy: float | None
    samples: int
    seconds: float
    activity: dict[str, Activity] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"loss": self.loss}
        if self.accuracy is not None:
            values["accuracy"] = self.accuracy
        if self.confusion:
            values |= {"class_accuracy": self.class_accuracy, "confusion": self.confusion}
        return {
            **values,
            **self.own,
            "spike_rates": self.spike_rates,
            "dead_neurons": {name: layer.dead for name, layer in self.activity.items()},
            "saturated_neurons": {name: layer.saturated for name, layer in self.activity.items()},
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
        }

    @property
    def samples_per_second(self) -> float:
        """Samples a second, all work of the loop counted."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def guessing(self) -> bool:
        """True if always giving the most frequent label would be right as often.

        False where it is not known which labels there were.
        """
        rows = [sum(row) for row in self.confusion]
        most = max(rows, default=0)
        if self.accuracy is None:
            return False
        return self.accuracy < 1 and self.accuracy * sum(rows) <= most and most > 0

    @property
    def class_accuracy(self) -> list[float | None]:
        """Share of right answers by label; None for a label that no picture has."""
        rows = enumerate(self.confusion)
        return [row[label] / sum(row) if sum(row) else None for label, row in rows]

    @property
    def spike_rates(self) -> dict[str, float]:
        """Spikes per neuron and time step, by layer."""
        return {name: layer.rate for name, layer in self.activity.items()}


class NotFiniteError(NeuroSpikeError):
    """A loss or a gradient became NaN or infinite. step: of those noted since the last reading."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(f"{what} became {value}")
        self.value, self.step = value, step


class Meter:
    """Averages of loss and accuracy over the steps of an epoch of training.

    The sums of an epoch are kept nowhere else; `state_dict()` has what is needed to continue the
    epoch in another process.
    """

    def __init__(self, name: str, *, scaled: bool = False) -> None:
        """name: what is being run, for errors. scaled: the loss is, so gradients may overflow."""
        self.name, self.scaled = name, scaled
        self.gradient_norm: float | None = None  # of the last step collected; None: not finite
        self._start: float | None = time.perf_counter()
        self._notes: list[tuple[int, Tensor]] = []  # samples of a batch, and its `figures`
        # The right answers are NaN where targets are not classes. Samples whose label is to be
        # ignored are run, and counted in `_samples`, but not in `_judged`.
        self._loss, self._correct, self._judged, self._samples = 0.0, 0.0, 0.0, 0
        self._seconds = 0.0  # up to the last `stop`

    def start(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock until `start`."""
        self._seconds, self._start = self.seconds, None

    def add(self, pictures: int, found: Tensor) -> None:
        """Note one batch, and its `figures`; waits for nothing."""
        self._notes.append((pictures, found))

    def collect(self) -> None:
        """Add what was noted to the sums, which on a GPU waits for the steps.

        Raises NotFiniteError if a loss or a gradient was NaN or infinite, and names the first.
        """
        if not self._notes:
            return
        sizes, found = zip(*self._notes, strict=True)
        self._notes = []
        rows = torch.stack(found).tolist()
        steps = zip(sizes, rows, strict=True)
        for step, (size, (loss, correct, judged, length)) in enumerate(steps):
            if not math.isfinite(loss):
                raise NotFiniteError("the loss", loss, step)
            if not math.isfinite(length) and not self.scaled:
                raise NotFiniteError("the gradient's norm", length, step)
            counted = size if math.isnan(judged) else judged
            self._loss += loss * counted
            self._correct += correct
            self._judged += counted
            self._samples += size
        self.gradient_norm = length if math.isfinite(length) else None

    def read(self, together: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return averages so far; `together` adds a tensor up over the processes that train.

        Raises NotFiniteError as `collect` does, NeuroSpikeError if there were no samples.
        """
        self.collect()
        sums = [self._loss, self._correct, self._judged, self._samples]
        if together is not None:
            sums = together(torch.tensor(sums, dtype=torch.float64)).tolist()
        loss, correct, judged, samples = sums
        loss, accuracy = averages(self.name, loss, correct, judged, samples)
        return Metrics(loss, accuracy, int(samples), self.seconds)

    @property
    def seconds(self) -> float:
        """Time that the epoch took so far, that before it was resumed included."""
        running = 0.0 if self._start is None else time.perf_counter() - self._start
        return self._seconds + running

    def state_dict(self) -> dict[str, Any]:
        """The sums up to the last `collect`, as plain numbers."""
        return {
            "loss": self._loss,
            "correct": self._correct,
            "judged": self._judged,
            "samples": self._samples,
            "seconds": self.seconds,
            "gradient_norm": self.gradient_norm,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._loss, self._correct = state["loss"], state["correct"]
        self._samples, self._seconds = state["samples"], state["seconds"]
        self._judged = judged_of(state)["judged"]
        self.gradient_norm = state["gradient_norm"]
        self._start = None


def judged_of(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Return a meter's `state_dict` with `judged`; earlier versions judged all samples."""
    return {"judged": sums["samples"], **sums}


def averages(
    name: str, loss: float, correct: float, judged: float, samples: float
) -> tuple[float, float | None]:
    """Return the mean loss, and the accuracy or None, of sums over the samples of an epoch.

    correct: NaN where targets are not classes; judged: how many samples count. Raises
    NeuroSpikeError, with the `name` of what was run, where there were none.
    """
    if not samples:
        raise NeuroSpikeError(f"{name}: {NO_SAMPLES}")
    if not judged:
        raise NeuroSpikeError(
            f"{name}: none of the {int(samples)} labels is the number of a class, so there is "
            "nothing to average; look at the labels of the data set"
        )
    return loss / judged, None if math.isnan(correct) else correct / judged


def figures(loss: Tensor, scores: Tensor, targets: Tensor, norm: Tensor) -> Tensor:
    """Return what is noted of one batch, float64 `[4]`.

    These are the loss, the number of right answers, the number of samples judged, and the norm of
    the gradient. A sample whose label is not a class, such as -100, which criteria ignore, is not
    judged. Where targets are not classes, both numbers are NaN.

    loss: scalar, the batch's mean; scores `[B, C]`, labels int64 `[B]`; norm: scalar.
    """
    if is_of_classes(scores, targets):
        correct = (scores.detach().argmax(dim=1) == targets).sum(dtype=torch.float64)
        judged = is_class(scores, targets).sum(dtype=torch.float64)
    else:
        correct = torch.full((), math.nan, dtype=torch.float64, device=loss.device)
        judged = correct
    return torch.stack([loss.detach().double(), correct, judged, norm.detach().double()])
