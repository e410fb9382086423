"""How the trainer calls a network on a batch, whatever kind of network it is.

The trainer knows networks by this file only. A network is a module that is called with the inputs
of a batch; it returns scores, or an output over time of which a readout makes scores. Its spikes
are read by hooks, unless it returns them itself, as the networks in `neurospike.models` do.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neurospike.coding import decoding
from neurospike.layers.recording import recording, spiking_layers

Activity = Mapping[str, Tensor]
Readout = Callable[..., Tensor]
READOUTS: dict[str, Readout] = {
    "membrane": decoding.membrane,
    "counts": decoding.counts,
    "first_spike": decoding.first_spike,
}
EVERY_STEP = "every_step"  # targets have a step for each of the output's
NONE = "none"  # targets are compared with the output [B, *] itself
WANTED = (
    "scores [B, C], scores over time [T, B, C], or a tuple that begins with one of them, such as "
    "(output, state)"
)


@dataclass(frozen=True)
class Answer:
    """What a network returned for a batch.

    scores: what measures are computed of, `[B, C]` where targets are classes. output: time first,
    `[T, B, C]`, of a network that answers over time, else the scores. activity: spikes `[T, B, *F]`
    by layer, where they were asked for.
    """

    scores: Tensor
    output: Tensor
    activity: Activity = field(default_factory=dict)


class Network(Protocol):
    """How a kind of network is run on a batch."""

    def __call__(
        self, forward: Callable[..., Any], inputs: Tensor, own: dict[str, Tensor], spikes: bool
    ) -> tuple[Any, Activity]:
        """Call the network by `forward`; return its output, and its spikes if wanted.

        own: `{"lengths": ...}` for sequences, else empty.
        """
        ...


class AnyModule:
    """Any module; its spikes are read by hooks on its layers, unless it is compiled."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(
        self, forward: Callable[..., Any], inputs: Tensor, own: dict[str, Tensor], spikes: bool
    ) -> tuple[Any, Activity]:
        """Call it; see `Network`."""
        is_compiled = hasattr(self.model, "_orig_mod")
        if not spikes or is_compiled or not spiking_layers(self.model):
            return forward(inputs, **own), {}
        with recording(self.model, states=False) as seen:
            found = forward(inputs, **own)
        return found, seen.spikes


class ReturnsActivity:
    """A module that returns its spikes for `return_activity=True`, as `SpikingNetwork` does.

    on_output: it is also asked for `return_output=True`, the output over time of its own readout.
    """

    def __init__(self, on_output: bool) -> None:
        self.on_output = on_output

    def __call__(
        self, forward: Callable[..., Any], inputs: Tensor, own: dict[str, Tensor], spikes: bool
    ) -> tuple[Any, Activity]:
        """Call it; see `Network`."""
        if self.on_output:
            scores, activity, output = forward(
                inputs, return_activity=True, return_output=True, **own
            )
            return ScoresAndOutput(scores, output), activity
        if not spikes:
            return forward(inputs, **own), {}
        scores, activity = forward(inputs, return_activity=True, **own)
        return scores, activity


@dataclass(frozen=True)
class ScoresAndOutput:
    """Scores of a network that has its own readout, and the output they were read from."""

    scores: Tensor
    output: Tensor


class NetworkCaller:
    """Calls a network on batches, and refuses in a sentence what does not fit their targets.

    readout: a name, a function, or None: the mean over time where there is a time axis. Raises
    ValueError for an unknown name, TypeError for anything else.
    """

    def __init__(
        self, model: nn.Module, readout: str | Readout | None = None, on_output: bool = False
    ) -> None:
        self.name = type(model).__name__
        self.batch_first = bool(getattr(model, "batch_first", False))
        # The network has no `batch_first`, and a layer in it does.
        self._may_be_either = not hasattr(model, "batch_first") and any(
            getattr(layer, "batch_first", False) for layer in model.modules()
        )
        self.on_output = on_output
        self.readout = _readout_of(readout)
        self._is_named = readout is not None
        # The axis of the batch in targets, and in an output that they are compared with as it is.
        self._batch_axis = int(readout == EVERY_STEP and not self.batch_first)
        inner = getattr(model, "_orig_mod", model)  # what torch.compile was given
        self.has_encoder = hasattr(inner, "encoding")  # which refuses inputs that are not finite
        self._takes_lengths = takes(inner.forward, "lengths")
        has_activity = "return_activity" in inspect.signature(inner.forward).parameters
        self.run: Network = ReturnsActivity(on_output) if has_activity else AnyModule(model)

    def __call__(
        self,
        forward: Callable[..., Any],
        inputs: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        *,
        spikes: bool = False,
    ) -> Answer:
        """Return the answer to a batch.

        Raises TypeError or ValueError, in a sentence that says what the network returned and what
        is expected, for an answer that does not fit the targets.
        """
        if lengths is not None and not self._takes_lengths:
            raise TypeError(
                f"the batches are (sequences, lengths, labels), and {self.name}.forward takes no "
                "lengths: give it a keyword lengths=None, or let the batches be (inputs, targets)"
            )
        own = {} if lengths is None else {"lengths": lengths}
        found, activity = self.run(forward, inputs, own, spikes)
        if isinstance(found, ScoresAndOutput):
            return Answer(found.scores, found.output, activity)
        output = self._tensor_of(found)
        return self._read(output, targets, own, activity)

    def count(self, targets: Tensor) -> int:
        """Return the number of samples. Raises ValueError for targets without a batch axis."""
        if targets.ndim <= self._batch_axis:
            wanted = "[T, B, ...], with readout='every_step'" if self._batch_axis else "[B, ...]"
            raise ValueError(
                f"the targets of a batch must be {wanted}, got the shape {list(targets.shape)}"
            )
        return targets.shape[self._batch_axis]

    def _tensor_of(self, found: Any) -> Tensor:
        first = found[0] if isinstance(found, tuple) and found else found
        if isinstance(first, Tensor) and first.is_floating_point():
            return first
        advice = f"expected {WANTED}"
        if isinstance(found, list):
            advice = "stack the steps, as in torch.stack(steps), which makes them [T, B, C]"
        elif isinstance(first, Tensor):
            advice = f"expected floating-point {WANTED}"
        raise TypeError(f"{self.name} returned {_described(found)}; {advice}")

    def _read(
        self, output: Tensor, targets: Tensor, own: dict[str, Tensor], activity: Activity
    ) -> Answer:
        """Make scores of an output, time first or without a time axis."""
        batch = self.count(targets)
        if self.readout in (NONE, EVERY_STEP):
            self._check_batch(output, batch, self._batch_axis)
            return Answer(output, output, activity)
        if output.ndim < 3:
            if self._is_named:
                raise ValueError(
                    f"{self.name} returned {_described(output)}, which has no time axis that a "
                    "readout could look at: leave readout out"
                )
            if self.on_output:
                raise ValueError(
                    f"{self.name} returned {_described(output)}, and on_output gives the criterion "
                    "the output over time [T, B, C]: leave on_output out"
                )
            self._check_batch(output, batch, 0)
            return Answer(output, output, activity)
        if targets.shape == output.shape:
            raise ValueError(
                f"{self.name} returned {_described(output)}, and the targets have that shape too: "
                "pass readout='every_step' to compare them step by step, or readout='none' if the "
                "first axis is the batch"
            )
        if output.ndim != 3 and not self._is_named:
            raise ValueError(
                f"{self.name} returned {_described(output)}; expected {WANTED}: pass a function "
                "as readout that makes scores [B, C] of it, or readout='none' to compare it with "
                "targets as it is"
            )
        if self.batch_first:
            output = output.transpose(0, 1)
        self._check_batch(output, batch, 1)
        options = own if takes(self.readout, "lengths") else {}
        scores = self.readout(output, **options)
        if not isinstance(scores, Tensor) or scores.ndim == 0 or len(scores) != batch:
            raise ValueError(
                f"readout made {_described(scores)} of {_described(output)} for a batch of "
                f"{batch}; expected scores [B, C]"
            )
        return Answer(scores, output, activity)

    def _check_batch(self, output: Tensor, batch: int, axis: int) -> None:
        if axis and self._may_be_either and output.ndim > 2 and output.shape[0] == batch:
            raise ValueError(
                f"{self.name} returned {_described(output)} for a batch of {batch}, and a layer of "
                "it has batch_first=True: set batch_first = True on the network too if its output "
                "is [B, T, C], or batch_first = False if it is [T, B, C]"
            )
        if output.ndim > axis and output.shape[axis] == batch:
            return
        message = f"{self.name} returned {_described(output)} for a batch of {batch}; "
        swapped = output.ndim > 2 and output.shape[1 - axis] == batch
        if swapped and axis == 1:
            message += (
                "over time it is to be [T, B, C]: return output.transpose(0, 1), or set "
                "batch_first = True on the network"
            )
        elif swapped:
            message += "the batch is to be the first axis: return output.transpose(0, 1)"
        else:
            message += f"expected {WANTED}"
        raise ValueError(message)


def takes(function: Callable[..., Any], name: str) -> bool:
    """True if a function, or a module's forward, can be given the keyword `name`."""
    if isinstance(function, nn.Module):
        function = function.forward
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of some functions written in C
        return False
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def _readout_of(readout: Any) -> Any:
    if readout is None:
        return decoding.membrane
    if isinstance(readout, str):
        names = (*READOUTS, EVERY_STEP, NONE)
        if readout not in names:
            raise ValueError(
                f"unknown readout {readout!r}; choose one of {', '.join(names)}, or pass a "
                "function from the output over time [T, B, C] to scores [B, C]"
            )
        return READOUTS.get(readout, readout)
    if not callable(readout):
        raise TypeError(
            f"readout must be a name or a function from the output over time [T, B, C] to scores "
            f"[B, C], got {type(readout).__name__}"
        )
    return readout


def _described(found: Any) -> str:
    """Return a description of what a network returned: shapes of tensors, else the type."""
    if isinstance(found, Tensor):
        kind = (
            "" if found.is_floating_point() else f" and {str(found.dtype).removeprefix('torch.')}"
        )
        return f"a tensor of shape {list(found.shape)}{kind}"
    if isinstance(found, tuple) and found:
        inner = ", ".join(_described(one).removeprefix("a ") for one in found[:3])
        return f"a tuple ({inner}{', ...' if len(found) > 3 else ''})"
    if isinstance(found, (list, tuple)) or found == {}:
        return f"a {type(found).__name__} of {len(found)}"
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} of {', '.join(map(repr, list(found)[:3]))}"
    return "None" if found is None else f"a {type(found).__name__}"


def is_of_classes(scores: Tensor, targets: Tensor) -> bool:
    """True if scores `[B, C]` have classes and targets `[B]` are integers, their labels."""
    plain = targets.ndim == 1 and scores.ndim == 2 and scores.shape[1] > 1
    return plain and not targets.is_floating_point() and targets.dtype != torch.bool


def is_class(scores: Tensor, targets: Tensor) -> Tensor:
    """Return which labels `[B]` are classes of scores `[B, C]`, bool `[B]`.

    The others, such as -100, are those that a criterion ignores.
    """
    labels = targets.long()  # 8 bits cannot be compared with 200 classes
    return (labels >= 0) & (labels < scores.shape[1])
