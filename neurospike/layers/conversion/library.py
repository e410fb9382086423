"""What `convert` has to know of a library of spiking neurons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from neurospike.layers.leaky import Replacement


@dataclass(frozen=True)
class Opened:
    """A container or a wrapper of a library, opened.

    Attributes:
        layers: what it holds, by the names there, run in a row.
        by_steps: it is given all steps, and gives its layers one step at a time.
        keeps_no_state: it takes all steps for samples of one batch, which neurons cannot do.
        hands_states: it keeps the state of any layer whose forward takes an argument `state`.
    """

    layers: Mapping[str, nn.Module]
    by_steps: bool = False
    keeps_no_state: bool = False
    hands_states: bool = False


@dataclass(frozen=True)
class Library:
    """How the layers of one library are told apart, and what stands for each here.

    Attributes:
        name: of the package, and of what its classes begin with.
        kind_of: which of its neurons that have a fused layer a module is; "" if none of them.
        fused: neurons of a kind as a layer of ours: `(theirs, kind, shown, surrogate)`.
        refusal: what a module is that cannot be converted, and what to do: `(module, inside)`.
        takes_sequences: whether its neurons are called with all steps, `[T, B, *F]`, at once.
        opened: what a container of it holds; None for other modules.
        other: our layer for one of its layers that are no neurons; None if there is none.
        is_shown: whether neurons that come last return their states beside their spikes.
    """

    name: str
    kind_of: Callable[[Any], str]
    fused: Callable[[Any, str, bool, Replacement], nn.Module]
    refusal: Callable[[Any, str], str]
    takes_sequences: Callable[[Any], bool] = lambda module: False
    opened: Callable[[Any], Opened | None] = lambda module: None
    other: Callable[[Any], nn.Module | None] = lambda module: None
    is_shown: Callable[[Any], bool] = lambda module: False
