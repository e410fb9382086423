"""What arguments of other libraries' neurons are called here, for those who bring their code."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_TAU = "give beta= instead, the share of the membrane that a step leaves: 1 - 1/tau, or exp(-1/tau)"
_STATE = "leave it out: the state is handed on, as in spikes, mem = layer(current, mem)"
_LACKS = "it is not in this layer"
# Argument of snnTorch, SpikingJelly, Norse or torch: what to write instead.
OTHER_NAMES = {
    "spike_grad": "give surrogate= instead, as in surrogate='atan'",
    "surrogate_function": "give surrogate= instead, as in surrogate='atan'",
    "surrogate_disable": "give a surrogate without gradient: surrogate=lambda u: 0.0 * u",
    "reset_mechanism": "give reset= instead: 'subtract', 'zero' or 'none'",
    "init_hidden": _STATE,
    "output": "leave it out: a call returns (spikes, mem)",
    "inhibition": _LACKS,
    "state_quant": _LACKS,
    "graded_spikes_factor": "multiply the spikes by it",
    "learn_graded_spikes_factor": "multiply the spikes by an nn.Parameter",
    "tau": _TAU,
    "tau_mem": _TAU,
    "tau_mem_inv": "give beta= instead, 1 - dt * tau_mem_inv",
    "tau_syn_inv": "it has no synapses with a state; put an ns.LI before it",
    "decay_input": "leave it out and multiply the current by 1/tau",
    "decay": "give beta= instead",
    "v_threshold": "give threshold= instead",
    "v_th": "give threshold= instead",
    "v_reset": "give reset='zero' instead, or reset='subtract' for v_reset=None",
    "hard_reset": "give reset='zero' instead, or reset='subtract' for hard_reset=False",
    "v_leak": "the membrane leaks towards 0; add a constant to the current",
    "step_mode": "leave it out: a call takes all time steps, [T, B, *F]",
    "store_v_seq": "leave it out: layer(current, return_trace=True) returns all membranes",
    "batch_first": "leave it out: time is the first axis; swap the two by current.transpose(0, 1)",
    "device": "leave it out and move the layer with .to(device)",
    "dtype": "leave it out and convert the layer with .to(dtype)",
}


def explain_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """Raise a TypeError with this library's name where a call uses another library's argument."""

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name in OTHER_NAMES:
                what = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{what} has no argument {name}=; {OTHER_NAMES[name]}")
        return function(*args, **options)

    return checked
