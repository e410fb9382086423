"""What `convert` has to know about a library of spiking neurons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from neurospike.layers.leaky import Replacement


@dataclass(frozen=True)
class Opened:
    """The contents of a container or a wrapper of a library.

    Attributes:
        layers: the layers in it, which run in a row, by their names there.
        by_steps: it is given all steps, and passes them to its layers one at a time.
        keeps_no_state: it treats all steps as samples of one batch, so it cannot hold neurons.
        hands_states: it keeps the state of any layer whose forward takes an argument `state`.
    """

    layers: Mapping[str, nn.Module]
    by_steps: bool = False
    keeps_no_state: bool = False
    hands_states: bool = False


@dataclass(frozen=True)
class Library:
    """How the layers of one library are recognised, and what replaces each of them.

    Attributes:
        name: of its package.
        kind_of: returns the class name of neurons that have a fused layer; "" for other modules.
        fused: makes the fused layer of neurons, `(theirs, kind, shown, surrogate)`.
        refusal: returns the end of an error, why a module cannot be converted and what to do,
            `(module, inside)`.
        takes_sequences: whether a module is called with all steps, `[T, B, *F]`, at once.
        opened: returns the contents of a container; None for other modules.
        other: returns the replacement of a layer that is not neurons; None if there is none.
        is_shown: whether neurons that are the last layer return their states beside their spikes.
    """

    name: str
    kind_of: Callable[[Any], str]
    fused: Callable[[Any, str, bool, Replacement], nn.Module]
    refusal: Callable[[Any, str], str]
    takes_sequences: Callable[[Any], bool] = lambda module: False
    opened: Callable[[Any], Opened | None] = lambda module: None
    other: Callable[[Any], nn.Module | None] = lambda module: None
    is_shown: Callable[[Any], bool] = lambda module: False
