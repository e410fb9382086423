"""What arguments of other libraries' neurons are called here, for users who port their code."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable
from numbers import Real
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _tau(value: Any) -> str:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 1.0
    number = f"beta=1 - 1/tau = {1 - 1 / float(value):g}" if is_number else "beta=1 - 1/tau"
    return f"give {number} instead, the share of the membrane that a step leaves"


def _v_reset(value: Any) -> str:
    if value is None:
        return "give reset='subtract' instead"
    return "give reset='zero' instead: here membranes go back to 0"


def _reset(value: Any) -> str:
    known = value in ("subtract", "zero", "none")
    return f"give reset={value!r} instead" if known else "give reset= instead"


def _learned(parameter: str) -> str:
    return f"give learn=({parameter!r},) instead, with all parameters that learn"


_STATE = "leave it out: the state is handed on, as in spikes, mem = layer(current, mem)"
_LACKS = "it is not in this layer"
_SURROGATE = "give surrogate= instead, as in surrogate='atan'"
_RECURRENT = (
    "ns.Recurrent(ns.LIF(0.9), size) connects all neurons to all, ns.OneToOne each to itself"
)
# For each argument of snnTorch, SpikingJelly, Norse or torch: what to write instead, or a function
# that returns it for the argument's value.
OTHER_NAMES: dict[str, str | Callable[[Any], str]] = {
    "spike_grad": _SURROGATE,
    "surrogate_function": _SURROGATE,
    "surrogate_disable": "give a surrogate without gradient: surrogate=lambda u: 0.0 * u",
    "method": _SURROGATE,
    "reset_mechanism": _reset,
    "init_hidden": _STATE,
    "output": "leave it out: a call returns the output and the state",
    "inhibition": _LACKS,
    "state_quant": _LACKS,
    "graded_spikes_factor": "multiply the spikes by it",
    "learn_graded_spikes_factor": "multiply the spikes by an nn.Parameter",
    "learn_beta": _learned("beta"),
    "learn_alpha": _learned("alpha"),
    "learn_threshold": _learned("threshold"),
    "learn_recurrent": "its weight learns; freeze it by layer.weight.requires_grad_(False)",
    "all_to_all": _RECURRENT,
    "linear_features": _RECURRENT,
    "hidden_size": _RECURRENT,
    "input_size": "leave it out and put an nn.Linear before the layer",
    "tau": _tau,
    "init_tau": _tau,
    "tau_mem": _tau,
    "tau_mem_inv": "give beta= instead, 1 - dt * tau_mem_inv",
    "tau_syn_inv": "ns.Synaptic has a synaptic current, with alpha = 1 - dt * tau_syn_inv",
    "alpha": "ns.Synaptic has a decay alpha; a surrogate's goes into it: ns.surrogate.atan(alpha)",
    "decay_input": "leave it out and multiply the current by 1/tau",
    "decay": "give beta= instead",
    "v_threshold": "give threshold= instead",
    "v_th": "give threshold= instead",
    "v_reset": _v_reset,
    "hard_reset": "give reset='zero' instead, or reset='subtract' for hard_reset=False",
    "v_leak": "the membrane leaks towards 0; add a constant to the current",
    "step_mode": "leave it out: a call takes all time steps, [T, B, *F], layer.step one frame",
    "store_v_seq": "leave it out: layer(current, return_trace=True) returns all membranes",
    "batch_first": "leave it out: time is the first axis; swap the two by current.transpose(0, 1)",
    "device": "leave it out and move the layer with .to(device)",
    "dtype": "leave it out and convert the layer with .to(dtype)",
}


_ANY = inspect.Parameter.VAR_KEYWORD
OF_SPIKING = ("learn", "surrogate", "grad_window", "backend", "batch_first")
_GIVES = re.compile(r"give (\w+)=")


def explain_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise a TypeError that says what another library's argument is called here.

    The same error suggests a name for a misspelt argument of the function itself.
    """
    every = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in every.values())
    known = [name for name, one in every.items() if name != "self" and one.kind is not _ANY]
    known += OF_SPIKING if takes_any else ()
    accepted = frozenset(known)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        if not accepted.issuperset(options):
            refuse(options)
        return function(*args, **options)

    def refuse(options: dict[str, Any]) -> None:
        for name, value in options.items():
            if name not in accepted and (name in OTHER_NAMES or not takes_any):
                what = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{what} has no argument {name}=; {instead(name, value, known)}")

    return checked


def instead(name: str, value: Any, known: list[str]) -> str:
    """Return what to write instead of `name=value` where the arguments `known` can be given."""
    entry = OTHER_NAMES.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, known, 1)
        return f"did you mean {near[0]}=?" if near else f"it takes {', '.join(known)}"
    found = entry if isinstance(entry, str) else entry(value)
    gives = _GIVES.match(found)
    if gives is None or gives[1] in known:
        return found
    if "size" in known and "neuron" in known:  # of ns.Recurrent
        return "give what concerns its neurons to them, as in ns.Recurrent(ns.LIF(0.9), size)"
    return _LACKS
