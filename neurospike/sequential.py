"""`Sequential`: ordinary torch layers and spiking neurons in one line, over whole sequences.

A layer without memory does the same at every step, so it runs once over `[T*B, *F]`: one large
matrix product or convolution instead of T small ones. Neurons run over `[T, B, *F]`.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .layers import LI, LIF
from .spike_layer import spike_layer
from .spike_linear import SpikeLinear
from .spiking import Spiking

# A state is a tensor, or a tuple of states where layers are nested.
State = Any

_OTHER_LIBRARIES = ("snntorch", "spikingjelly", "norse")


class Sequential(nn.Sequential):
    """Layers in a row, as `torch.nn.Sequential`, over sequences `[T, B, *F]`.

        net = ns.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), ns.LIF(0.9), nn.Flatten(), nn.Linear(1728, 10)
        )
        out, states = net(frames)                  # [T, B, 1, 28, 28] -> [T, B, 10], (mem,)
        out, states = net(more_frames, states)     # carry on
        out, states = net(image, num_steps=25)     # a constant picture [B, 1, 28, 28]

    Neurons are `LIF`, `LI`, another `Sequential`, and any module of yours with the attribute
    `carries_state = True`, which is called as `module(x, state)` with `x [T, B, *F]` and the state
    it returned last (None at first) and returns `(output, state)`. Everything else is run over
    `[T*B, *F]`: batch normalisation takes its statistics over steps and samples, dropout draws
    anew at every step.
    """

    carries_state = True

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a layer at the end; called for each by the constructor and `append`.

        Raises:
            TypeError: the layer holds neurons that would lose track of time.
        """
        if module is not None and not carries_state(module):
            _check_without_memory(name, module)
        super().add_module(name, module)

    def forward(
        self, x: Tensor, states: Sequence[State] | None = None, *, num_steps: int | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Return `(output [T, B, *G], states)`.

        Args:
            x: `[T, B, *F]`; with `num_steps` `[B, *F]`, the same at every step. The layers before
                the first neurons run once on it then, and their output is held.
            states: what an earlier call returned, one for each layer that carries a state, to
                carry on from there. Default: all at rest.
            num_steps: number of steps `T >= 0` of a constant input.

        Raises:
            TypeError: `x` is no tensor; a layer returns something else than a tensor.
            ValueError: `x` has no time or batch axis; another number of states than of layers that
                carry one; a layer that changes the length of the batch.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor [T, B, *F], got {type(x).__name__}")
        if x.dim() < (2 if num_steps is None else 1):
            raise ValueError(
                f"x must be [T, B, *F], got shape {tuple(x.shape)}, which has no time or no batch "
                "axis; for a constant input [B, *F] pass num_steps="
            )
        before = self._checked(states)
        after: list[State] = []
        without: list[tuple[str, nn.Module]] = []  # layers since the last neurons
        for name, layer in self.named_children():
            if not carries_state(layer):
                without.append((name, layer))
                continue
            together = num_steps is None and isinstance(layer, LIF) and _linear_last(without)
            first = without[:-1] if together else without
            x = _time_batched(first, x, constant=num_steps is not None)
            state = before[len(after)]
            if together:
                x, state = spike_layer(without[-1][1], layer, x, state)
            elif num_steps is None:
                x, state = layer(x, state)
            elif isinstance(layer, (LIF, LI, Spiking, Sequential)):
                x, state = layer(x, state, num_steps=num_steps)
            else:
                x, state = layer(x.expand(num_steps, *x.shape), state)
            num_steps = None
            without = []
            after.append(state)
        x = _time_batched(without, x, constant=num_steps is not None)
        if num_steps is not None:
            x = x.expand(num_steps, *x.shape)
        return x, tuple(after)

    def _checked(self, states: Sequence[State] | None) -> Sequence[State]:
        names = [name for name, layer in self.named_children() if carries_state(layer)]
        if states is None:
            return [None] * len(names)
        if isinstance(states, Tensor) or not isinstance(states, Sequence):
            raise TypeError(
                "states must be the tuple that an earlier call returned, got "
                f"{type(states).__name__}"
            )
        if len(states) != len(names):
            raise ValueError(
                f"states must hold one state for each of the {len(names)} layers that carry one "
                f"({', '.join(names)}), got {len(states)}"
            )
        return states


def carries_state(module: nn.Module) -> bool:
    """Return whether a layer is called with its state, over `[T, B, *F]`."""
    return bool(getattr(module, "carries_state", False))


def _linear_last(layers: list[tuple[str, nn.Module]]) -> bool:
    return len(layers) > 0 and isinstance(layers[-1][1], SpikeLinear)


def _time_batched(layers: list[tuple[str, nn.Module]], x: Tensor, constant: bool) -> Tensor:
    """Run layers without memory over `[T*B, *F]`; over `[B, *F]` if the input is constant."""
    if not layers:
        return x
    lead = x.shape[: 1 if constant else 2]
    size = math.prod(lead)
    y = x if constant else x.flatten(0, 1)
    for name, layer in layers:
        y = layer(y)
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
    return y if constant else y.unflatten(0, lead)


def _check_without_memory(name: str, module: nn.Module) -> None:
    for inner in module.modules():
        if carries_state(inner):
            raise TypeError(
                f"layer {name} ({type(module).__name__}) holds a {type(inner).__name__}, whose "
                "state it does not hand on; use ns.Sequential in its place"
            )
        library = type(inner).__module__.partition(".")[0]
        if library in _OTHER_LIBRARIES:
            raise TypeError(
                f"layer {name} ({type(module).__name__}) holds a {type(inner).__name__} of "
                f"{library}, which steps through time on its own; use ns.LIF, or ns.convert for "
                "networks of snnTorch"
            )
