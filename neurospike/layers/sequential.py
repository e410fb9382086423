"""`Sequential`: ordinary torch layers and spiking neurons in a row, over whole sequences.

A layer without a state does the same at every step, so it runs once over `[T*B, *F]`: one large
matrix product or convolution instead of T small ones. Neurons run over `[T, B, *F]`.
"""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.ops.arguments import check_flag, check_lengths, check_steps, refuse_ragged

from .delay import Delay
from .held import run_once
from .libraries import library_of
from .lif import LI, LIF
from .other_names import explain_other_names
from .recurrent import Recurrent
from .spike_layer import spike_layer
from .spike_linear import SpikeLinear
from .spiking import Spiking
from .time_axis import swapped, time_first

# A state is a tensor, or a tuple of states where layers are nested.
State = Any

# Errors raised again with the layer's name; subclasses, such as torch's for too little memory, pass
# unchanged.
_RETOLD = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)


class Sequential(nn.Sequential):
    """Layers in a row, as `torch.nn.Sequential`, over sequences `[T, B, *F]`.

        net = ns.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), ns.LIF(0.9), nn.Flatten(), nn.Linear(1728, 10)
        )
        out, states = net(frames)                  # [T, B, 1, 28, 28] -> [T, B, 10], (mem,)
        out, states = net(more_frames, states)     # continue
        out, states = net(image, num_steps=25)     # a constant picture [B, 1, 28, 28]

    Layers that carry a state are `LIF`, `LI`, `Spiking`, `Recurrent`, `Delay`, another
    `Sequential`, and any module of yours with the attribute `carries_state = True`. Such a module
    is called as `module(x, state)`, with `x [T, B, *F]` and the state that it returned last (None
    at first), and with `lengths=` if the network is given lengths; it returns `(output, state)`.
    All other layers run over `[T*B, *F]`: batch normalisation takes its statistics over steps and
    samples, dropout draws anew at every step.

    A module that is in the network twice runs at both places with the same weights, as in
    `nn.Sequential`; neurons then have a state at each place. In a float16 or bfloat16 network the
    membranes of an `LI` are float32 if it is the last layer, else in the format of its current.

        net = ns.Sequential(nn.Linear(64, 32), ns.LIF(0.9), batch_first=True)
        out, states = net(x)                       # [B, T, 64] -> [B, T, 32], (mem [B, 32],)

    With `batch_first` it takes and returns `[B, T, *F]`. Its layers still have the time axis first,
    so the input is transposed once, not at every layer; for nested networks the outermost one
    decides. A layer with `batch_first=True` is refused in a network without it.

    Args:
        layers: modules in their order, or one `OrderedDict` of them by name, as for
            `nn.Sequential`.
        batch_first: take and return `[B, T, *F]`; states stay `[B, *F]`.

    Raises:
        TypeError: a layer that contains neurons and does not return their state.
        ValueError: a layer with `batch_first=True` in a network without it.
    """

    carries_state = True
    batch_first: bool = False

    @explain_other_names
    def __init__(self, *layers: Any, batch_first: bool = False) -> None:
        # Set first: adding the layers checks them against it.
        self.batch_first = check_flag("batch_first", batch_first)
        super().__init__(*layers)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a layer at the end; the constructor and `append` call this for each layer.

        Raises:
            TypeError, ValueError: as the constructor does.
        """
        _check_layer(name, module, self.batch_first)
        super().add_module(name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        _check_layer(name, value, self.batch_first)  # net[1] = layer calls this, too
        super().__setattr__(name, value)

    def insert(self, index: int, module: nn.Module) -> "Sequential":
        """Insert a layer at a place; raises as the constructor does."""
        _check_layer(str(index), module, self.batch_first)
        super().insert(index, module)
        return self

    def __add__(self, other: nn.Sequential) -> "Sequential":
        return Sequential(*super().__add__(other), batch_first=self.batch_first)

    def __radd__(self, other: nn.Sequential) -> "Sequential":
        return Sequential(*other, *self, batch_first=self.batch_first)

    def __mul__(self, other: int) -> "Sequential":
        return Sequential(*super().__mul__(other), batch_first=self.batch_first)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and self.batch_first:
            layers = OrderedDict(list(self._modules.items())[index])
            return type(self)(layers, batch_first=True)
        return super().__getitem__(index)

    def step(
        self, x: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run one frame `[B, *F]` and return `(output [B, *G], states)`.

        The result equals that of a call over a sequence of one step, bit for bit, without its time
        axis. Arguments and errors are those of `forward`.
        """
        if isinstance(x, Tensor):
            x = x.unsqueeze(1 if self.batch_first else 0)
        out, after = self(x, states)
        return out.squeeze(1 if self.batch_first else 0), after

    def extra_repr(self) -> str:
        """Return what `print` shows beside the layers."""
        return "batch_first=True" if self.batch_first else ""

    def forward(
        self,
        x: Tensor,
        states: Sequence[State] | None = None,
        *,
        num_steps: int | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Return `(output [T, B, *G], states)`.

        Args:
            x: `[T, B, *F]`, or `[B, T, *F]` with `batch_first`, and so is the output; with
                `num_steps` `[B, *F]`, the same at every step. Then the layers before the first
                neurons run once on it, and their output is held constant, up to the first layer
                that draws at random, such as dropout in training: from there on every step is run.
                Batch normalisation sees the B samples once, so its running variance is theirs.
            states: what an earlier call returned, one for each layer that carries a state, to
                continue from. Default: all at rest.
            num_steps: number of steps `T >= 0` of a constant input.
            lengths: how many of the T steps belong to each sample, `[B]`; see `neurospike.lif`.
                They are passed to every layer that carries a state. Layers without a state run over
                all steps, and batch normalisation takes its statistics over all: after a sample's
                end they see the zeros of neurons that are silent there, or the padding of `x`. Pass
                the same `lengths` to a readout, so that it leaves these steps out.

        Raises:
            TypeError: `x` is not a dense tensor; a layer returns the wrong kind of result, or
                carries a state and takes no lengths.
            ValueError: `x` has no time or batch axis; the number of states is not that of the
                layers that carry one; a layer changes the size of the batch.
            Exception: a layer's own error, with the layer's name and how `x` was read.
        """
        refuse_ragged("x", x)
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor [T, B, *F], got {type(x).__name__}")
        steps = None if num_steps is None else check_steps(num_steps)
        shape, turn = x.shape, self.batch_first
        if turn and steps is None:
            x = time_first(x)
        if x.dim() < (2 if steps is None else 1):
            raise ValueError(
                f"x must be [T, B, *F], got shape {tuple(x.shape)}, which has no time or no batch "
                "axis; for a constant input [B, *F] pass num_steps="
            )
        layers = [(name, layer) for name, layer in self._modules.items() if layer is not None]
        before = _checked(states, layers)
        own = None
        if lengths is not None:
            own = check_lengths(lengths, x, -1 if steps is None else steps)
            _check_all_take_lengths(layers)
        call = _Caller(shape, steps, own, turn)
        after: list[State] = []
        without: list[tuple[str, nn.Module]] = []  # layers since the last neurons
        for place, (name, layer) in enumerate(layers):
            if not carries_state(layer):
                without.append((name, layer))
                continue
            together = isinstance(layer, LIF) and not layer.batch_first and _linear_last(without)
            x, steps = _time_batched(call, without[:-1] if together else without, x, steps)
            if together and steps is not None:
                x, steps = _time_batched(call, without[-1:], x, steps)
                together = False
            linear = without[-1][1] if together else None
            current = x
            x, state = _with_memory(call, name, layer, linear, current, before[len(after)], steps)
            if place < len(layers) - 1:
                x = _narrowed(layer, x, current)
            steps = None
            without = []
            after.append(state)
        x, steps = _time_batched(call, without, x, steps)
        if steps is not None:
            x = x.expand(steps, *x.shape)
        return (swapped(x) if turn else x), tuple(after)

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward


_OURS = (LIF, LI, Spiking, Recurrent, Delay, Sequential)  # take `num_steps` and `lengths`


def _check_all_take_lengths(layers: list[tuple[str, nn.Module]]) -> None:
    """Raise TypeError for a layer that carries a state and whose forward takes no lengths."""
    for name, layer in layers:
        if carries_state(layer) and not isinstance(layer, _OURS):
            taken = inspect.signature(layer.forward).parameters.values()
            if not any(one.name == "lengths" or one.kind is one.VAR_KEYWORD for one in taken):
                raise TypeError(
                    f"layer {name} ({type(layer).__name__}) carries a state and its forward takes "
                    "no lengths: give it a keyword lengths=None, int64 [B], after which a sample's "
                    "state stays as it is; or run the samples one by one"
                )


def carries_state(module: nn.Module) -> bool:
    """Return whether a layer is called with its state, over `[T, B, *F]`."""
    return bool(getattr(module, "carries_state", False))


class _Caller:
    """Calls layers; adds to their errors the layer's name and how the network's input was read."""

    def __init__(
        self, shape: torch.Size, steps: int | None, lengths: Tensor | None, batch_first: bool
    ) -> None:
        self.shape, self.steps, self.batch_first = shape, steps, batch_first
        self.options = {} if lengths is None else {"lengths": lengths}  # for layers with a state

    def __call__(
        self, name: str, layer: nn.Module, function: Callable[..., Any], *given: Any, **options: Any
    ) -> Any:
        """Return `function(*given, **options)`, which is the call of `layer`."""
        if torch.compiler.is_compiling():
            return function(*given, **options)
        try:
            return function(*given, **options)
        except _RETOLD as error:
            if type(error) not in _RETOLD:
                raise
            text = f"layer {name} ({type(layer).__name__}): {error}"
            if not isinstance(layer, Sequential):  # whose own error has the hint already
                text += self.hint(given)
            raise type(error)(text) from error

    def hint(self, given: tuple[Any, ...]) -> str:
        """Return how the input was read, and what to write if another reading was meant."""
        shape = list(self.shape)
        for tensor in given:
            if isinstance(tensor, Tensor) and not tensor.dtype.is_floating_point:
                return (
                    f"; it was given {tensor.dtype}: convert spikes with .float(), or use "
                    "ns.SpikeLinear, which takes bool and uint8 as they are"
                )
        if self.steps is None:
            rest = f", *F={shape[2:]}" if shape[2:] else ""
            first, second = "BT" if self.batch_first else "TB"
            other = (
                "time first leave batch_first out"
                if self.batch_first
                else ("a batch [B, T, *F] make the network with batch_first=True")
            )
            return (
                f"; x {shape} was read as [{first}={shape[0]}, {second}={shape[1]}{rest}]: for a "
                f"constant input [B, *F] pass num_steps=, for {other}"
            )
        return (
            f"; x {shape} was read as [B={shape[0]}, *F={shape[1:]}], the same at each of "
            f"num_steps={self.steps} steps: leave num_steps out for a sequence [T, B, *F]"
        )


def _checked(
    states: Sequence[State] | None, layers: list[tuple[str, nn.Module]]
) -> Sequence[State]:
    carrying = [(name, layer) for name, layer in layers if carries_state(layer)]
    if states is None:
        return [None] * len(carrying)
    if isinstance(states, Tensor) or not isinstance(states, Sequence):
        raise TypeError(
            f"states must be the tuple that an earlier call returned, got {type(states).__name__}"
        )
    if len(states) != len(carrying):
        names = [f"{name} ({type(layer).__name__})" for name, layer in carrying]
        if not names:
            wanted = "be empty or left out, as no layer carries one"
        elif len(names) == 1:
            wanted = f"hold one state, that of layer {names[0]}"
        else:
            wanted = f"hold {len(names)} states, those of the layers {', '.join(names)}"
        raise ValueError(f"states must {wanted}; got {len(states)}")
    return states


def _linear_last(layers: list[tuple[str, nn.Module]]) -> bool:
    return len(layers) > 0 and isinstance(layers[-1][1], SpikeLinear)


def _with_memory(
    call: _Caller,
    name: str,
    layer: nn.Module,
    linear: nn.Module | None,
    x: Tensor,
    state: State,
    steps: int | None,
) -> tuple[Any, State]:
    """Run a layer with its state, fused with the linear layer before it if one is given."""
    turn = isinstance(layer, _OURS) and layer.batch_first
    if turn and steps is None:
        x = swapped(x)
    if linear is not None:
        found = call(name, layer, spike_layer, linear, layer, x, state, **call.options)
    elif steps is None:
        found = call(name, layer, layer, x, state, **call.options)
    elif isinstance(layer, _OURS):
        found = call(name, layer, layer, x, state, num_steps=steps, **call.options)
    else:
        found = call(name, layer, layer, x.expand(steps, *x.shape), state, **call.options)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(
            f"layer {name} ({type(layer).__name__}) returned a {type(found).__name__}, wanted "
            "(output, state): it has the attribute carries_state = True"
        )
    return (swapped(found[0]) if turn else found[0]), found[1]


def _narrowed(layer: nn.Module, x: Any, current: Tensor) -> Any:
    """Convert float32 membranes to the 16-bit format of their current, for the next layer."""
    if (
        isinstance(layer, (LI, Sequential))
        and isinstance(x, Tensor)
        and x.dtype == torch.float32
        and current.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_autocast_enabled(x.device.type)
    ):
        return x.to(current.dtype)
    return x


def _time_batched(
    call: _Caller, layers: list[tuple[str, nn.Module]], x: Tensor, steps: int | None
) -> tuple[Tensor, int | None]:
    """Run layers without a state over `[T*B, *F]`; once over a constant `[B, *F]`.

    Returns the output and `steps`, which is None if the output is a sequence: because the input is
    one, or because a layer draws at random at every step of a constant input.
    """
    done = 0
    while steps is not None and done < len(layers):
        name, layer = layers[done]
        y = call(name, layer, run_once, layer, x)
        if y is None:
            x, steps = x.expand(steps, *x.shape), None
        else:
            x = _same_batch(name, layer, y, x.shape[0])
            done += 1
    if done == len(layers):
        return x, steps
    lead = x.shape[:2]
    x = x.flatten(0, 1)
    for name, layer in layers[done:]:
        x = _same_batch(name, layer, call(name, layer, layer, x), math.prod(lead))
    return x.unflatten(0, lead), None


def _same_batch(name: str, layer: nn.Module, y: Any, size: int) -> Tensor:
    """Check that a layer without a state returned a tensor with a batch of `size`; return it."""
    if not isinstance(y, Tensor):
        raise TypeError(
            f"layer {name} ({type(layer).__name__}) returned a {type(y).__name__}, wanted one "
            "tensor; a layer with a state of its own needs the attribute carries_state = True"
        )
    if y.dim() == 0 or y.shape[0] != size:
        raise ValueError(
            f"layer {name} ({type(layer).__name__}) made {tuple(y.shape)} of a batch of {size} "
            "(steps times samples); a layer without a state must keep the first axis"
        )
    return y


def _check_layer(name: str, module: Any, batch_first: bool) -> None:
    """Raise TypeError for a layer that contains neurons and does not return their state.

    Raises ValueError for a layer with the batch first in a network with time first.
    """
    if not isinstance(module, nn.Module):
        return
    if isinstance(module, _OURS) and module.batch_first and not batch_first:
        raise ValueError(
            f"layer {name} ({type(module).__name__}) has batch_first=True and the network around "
            "it has not; give it to the network, as in ns.Sequential(..., batch_first=True)"
        )
    if carries_state(module):
        return
    for inner in module.modules():
        if carries_state(inner):
            raise TypeError(
                f"layer {name} ({type(module).__name__}) holds a {type(inner).__name__}, whose "
                "state it does not hand on; use ns.Sequential in its place"
            )
        library = library_of(inner)
        if library is not None:
            raise TypeError(
                f"layer {name} ({type(module).__name__}) holds a {type(inner).__name__} of "
                f"{library}, which steps through time on its own; use ns.LIF, or ns.convert for "
                "the whole network"
            )
