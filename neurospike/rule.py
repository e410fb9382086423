"""Which formulas a layer follows: the reset, its timing and the surrogate, under one short key.

Torch operators take tensors, numbers and strings, so a rule travels through them, and through
graphs that torch.compile or torch.export make of them, as a string. The parameters of a surrogate
travel beside it as numbers: another slope is no other rule and compiles nothing anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import formulas, own_formulas
from .binding import bind
from .surrogate import BUILT_IN, is_built_in

RESETS = ("subtract", "zero", "none")

# Recorded functions of users, by their names in a key: one for each text, whatever the numbers.
_own_surrogates: dict[str, Callable[..., Any]] = {}
_own_neurons: dict[str, "Neuron"] = {}  # likewise
_rules: dict[str, "Rule"] = {}  # those met so far; torch.compile warns of functools.cache


@dataclass(frozen=True)
class Neuron:
    """Another recurrence of one state, in place of the LIF's: three plain scalar functions.

    They are written as those of `neurospike.formulas`: arithmetic, comparison, and `exp`, `abs`,
    `where` and `heaviside` of that module. Every backend runs them; what not every backend could
    run is refused when a layer is made, with its line and what to write instead.

    Args:
        charge: `(mem, current, beta, threshold)` to `v`, the membrane that is compared with the
            threshold.
        settle: `(v, spike, threshold)` to the membrane for the next step.
        step_vjp: `(mem, v, beta, threshold, surrogate, grad_spike, grad_mem)` to the gradients for
            `(current, mem, beta, threshold)`. The reference backend does not use it, so that a
            comparison with another backend proves it.
    """

    charge: Callable[..., Any]
    settle: Callable[..., Any]
    step_vjp: Callable[..., Any]

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """The functions by the names they replace."""
        return {"charge": self.charge, "settle": self.settle, "step_vjp": self.step_vjp}


@dataclass(frozen=True)
class Rule:
    """Reset (`subtract`, `zero` or `none`), its timing, the surrogate, whether it has a window.

    The window is then the last of the parameters that travel beside the rule.
    """

    reset: str
    delayed: bool
    detached: bool
    surrogate: Callable[..., Any]
    neuron: Neuron | None = None
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
            **({} if self.neuron is None else self.neuron.functions),
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
    neuron: Neuron | None = None,
    windowed: bool = False,
) -> str:
    """Return the key under which `from_key` finds the rule.

    Raises:
        ValueError: an unknown reset, or one given for a neuron that has its own.
        TypeError: a neuron that is none, or a function of it that not every backend can run.
    """
    if reset not in RESETS:
        raise ValueError(f"unknown reset {reset!r}; choose one of {', '.join(RESETS)}")
    name = surrogate.__name__
    if not is_built_in(surrogate):
        name = own_formulas.key_of(surrogate)
        _own_surrogates.setdefault(name, surrogate)
    # Without a reset there is nothing to delay; with a delayed one there is nothing to detach.
    timing = "delayed" if delayed or reset == "none" else "detached" if detached else "immediate"
    end = " windowed" * windowed
    if neuron is None:
        return f"{reset} {timing} {name}{end}"
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a Neuron(charge, settle, step_vjp), got {neuron!r}")
    if (reset, delayed, detached) != ("subtract", True, False):
        raise ValueError(
            f"got reset={reset!r}, reset_delay={delayed}, detach_reset={detached} beside a neuron, "
            "whose functions say what a spike does; leave them out"
        )
    return f"none immediate {name} {_keep(neuron)}{end}"


# Of a neuron's functions: what they are called with, and what they return.
_CHARGE = ("mem", "current", "beta", "threshold")
_SETTLE = ("v", "spike", "threshold")
_VJP = ("mem", "v", "beta", "threshold", "surrogate", "grad_spike", "grad_mem")
_GRADIENTS = tuple(f"the gradient of {name}" for name in ("current", "mem", "beta", "threshold"))


def _keep(neuron: Neuron) -> str:
    """Keep a neuron's functions as they are now; the name they are found by."""
    parts = (
        ("charge", neuron.charge, _CHARGE, ("",)),
        ("settle", neuron.settle, _SETTLE, ("",)),
        ("step_vjp", neuron.step_vjp, _VJP, _GRADIENTS),
    )
    found = {}
    for what, function, arguments, results in parts:
        found[what], _ = own_formulas.record(
            function, f"the neuron's {what}", arguments, results=results, fixed=True
        )
    name = "neuron-" + "".join(own_formulas.key_of(one)[-16:] for one in found.values())
    _own_neurons.setdefault(name, Neuron(**found))
    return name


def from_key(key: str) -> Rule:
    """Return the rule of a key that `key_of` made.

    Raises:
        LookupError: it names a surrogate or a neuron of the user's that this process has not seen.
    """
    if key not in _rules:
        _rules[key] = _parse(key)
    return _rules[key]


def _parse(key: str) -> Rule:
    reset, timing, name, *more = key.split(" ")
    own = [one for one in more if one != "windowed"]
    if own and own[0] not in _own_neurons:
        raise LookupError(
            f"the neuron {own[0]!r} is one that this process has not seen; before you run a graph "
            "that was made elsewhere, make a layer with it, as in ns.LIF(0.9, neuron=...)"
        )
    if name not in BUILT_IN and name not in _own_surrogates:
        raise LookupError(
            f"the surrogate {name!r} is a function that this process has not seen; before you run "
            "a graph that was made elsewhere, make a layer with that function, as in "
            "ns.LIF(0.9, surrogate=...)"
        )
    function = getattr(formulas, name) if name in BUILT_IN else _own_surrogates[name]
    return Rule(
        reset,
        timing == "delayed",
        timing == "detached",
        function,
        _own_neurons[own[0]] if own else None,
        "windowed" in more,
    )
