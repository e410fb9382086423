"""Which formulas a layer follows: the reset, its timing and the surrogate, under one short key.

Torch operators take tensors, numbers and strings, so a rule travels through them, and through
graphs that torch.compile or torch.export make of them, as a string. The parameters of a surrogate
travel beside it as numbers: another slope is no other rule and compiles nothing anew.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import formulas
from .binding import bind, digest
from .surrogate import BUILT_IN

RESETS = ("subtract", "zero", "none")

# Functions that users brought as surrogates, by their name in a key, with the numbers they read
# from outside as these were: compiled backends fix them, so all do.
_own_surrogates: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Rule:
    """Reset (`subtract`, `zero` or `none`), its timing, the surrogate, whether it has a window.

    The window is then the last of the parameters that travel beside the rule.
    """

    reset: str
    delayed: bool
    detached: bool
    surrogate: Callable[..., Any]
    windowed: bool = False

    @property
    def names(self) -> dict[str, Any]:
        """What the free names of `neurospike.formulas` stand for under this rule."""
        return {
            "DELAYED": self.delayed,
            "SUBTRACT": self.reset == "subtract",
            "ZERO": self.reset == "zero",
            "DETACHED": self.detached,
            "WINDOWED": self.windowed,
            "surrogate": self.surrogate,
        }

    def derivative(self, u: Tensor, parameters: tuple[float, ...]) -> Tensor:
        """Return the surrogate at `u`, in torch."""
        if not self.windowed:
            return self.surrogate(u, *parameters)
        *own, window = parameters
        names = {"abs": formulas.abs, "where": formulas.where, **self.names}
        return bind(formulas.windowed, names)(self.surrogate(u, *own), u, window)


def key_of(
    reset: str,
    delayed: bool,
    detached: bool,
    surrogate: Callable[..., Any],
    windowed: bool = False,
) -> str:
    """Return the key under which `from_key` finds the rule.

    Raises:
        ValueError: an unknown reset.
    """
    if reset not in RESETS:
        raise ValueError(f"unknown reset {reset!r}; choose one of {', '.join(RESETS)}")
    name = surrogate.__name__
    if name not in BUILT_IN or getattr(formulas, name) is not surrogate:
        names = {name: getattr(formulas, name) for name in formulas.FREE_NAMES}
        name += "-" + digest(surrogate, dict.fromkeys(names))
        _own_surrogates.setdefault(name, bind(surrogate, names))
    # Without a reset there is nothing to delay; with a delayed one there is nothing to detach.
    timing = "delayed" if delayed or reset == "none" else "detached" if detached else "immediate"
    return f"{reset} {timing} {name}" + " windowed" * windowed


@functools.cache
def from_key(key: str) -> Rule:
    """Return the rule of a key that `key_of` made.

    Raises:
        LookupError: it names a surrogate of the user's that this process has not seen.
    """
    reset, timing, name, *window = key.split(" ")
    if name not in BUILT_IN and name not in _own_surrogates:
        raise LookupError(
            f"the surrogate {name!r} is a function that this process has not seen; before you run "
            "a graph that was made elsewhere, make a layer with that function, as in "
            "ns.LIF(0.9, surrogate=...)"
        )
    function = getattr(formulas, name) if name in BUILT_IN else _own_surrogates[name]
    return Rule(reset, timing == "delayed", timing == "detached", function, bool(window))
