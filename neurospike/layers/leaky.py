"""Read a layer of snnTorch: which neurons it has, and whether a fused layer computes the same.

It never imports snnTorch: whoever has such a layer has imported it.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from neurospike.neurons.snntorch_surrogates import NAMES, derivative_of, none
from neurospike.neurons.surrogate import Surrogate

from .libraries import library_of, overridden, refusal_of

# Neurons of snnTorch besides Leaky that have a fused layer; see `conversion`.
OTHERS = ("Synaptic", "Alpha", "RLeaky", "RSynaptic")
Layer = TypeVar("Layer", bound=Any)
Replacement = str | Surrogate | Callable[..., Any] | None  # surrogate to use; None keeps their own

_RESETS = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}
_MISSING = {  # what to do about neurons of snnTorch that no fused layer computes
    "Lapicque": "its equation is that of ns.LIF(beta=1 - time_step / (R * C)) with every current "
    "scaled by time_step / C: scale the weights before it and use that",
}
_OWN = (
    "write it as a module with carries_state = True for ns.Sequential, as docs/extend/neuron.md "
    "shows, or keep the network in snnTorch"
)


def from_leaky(kind: type[Layer], leaky: Any, surrogate: Replacement, backend: str) -> Layer:
    """Return a layer of class `kind` that computes what `leaky` does; see `LIF.from_snntorch`."""
    if kind_of(leaky) != "Leaky":
        raise TypeError(f"from_snntorch takes a snntorch.Leaky, got {refusal(leaky)}")
    check_options(leaky)
    options = {"reset": leaky.reset_mechanism, "reset_delay": leaky.reset_delay}
    return lif_with(kind, leaky, surrogate, backend=backend, **options)


def lif_with(kind: type[Layer], leaky: Any, surrogate: Replacement, **options: Any) -> Layer:
    """Return a layer of class `kind` with the decay, threshold and surrogate of `leaky`."""
    chosen = surrogate_within(leaky) if surrogate is None else surrogate
    layer = kind(0.0, 1.0, chosen, beta_gradient="clamp", **options)
    for name in ("beta", "threshold"):  # learned values, in range or not
        delattr(layer, name)
        layer._keep(name, getattr(leaky, name))
    layer._clamp_constant()
    return layer.train(leaky.training)


def kind_of(module: object) -> str:
    """Return the name of a module's snnTorch class if it has a fused layer, else ""."""
    base = _base_of(module)
    return base.__name__ if base is not None and not overridden(module, base) else ""


def _base_of(module: object) -> Any:
    """Return the snnTorch class with a fused layer that `module` is an instance of, or None."""
    library = sys.modules.get("snntorch")
    for name in ("Leaky", *OTHERS) if library is not None else ():
        base = getattr(library, name, None)
        if base is not None and isinstance(module, base):
            return base
    return None


def refusal(module: object, inside: str = "") -> str:
    """Return the end of an error: why a module cannot be converted, and what to do."""
    if not isinstance(module, nn.Module) or library_of(module) != "snntorch":
        name = type(module).__name__
        return f"{name}; of snnTorch's neurons that is the one with the equations of LIF"
    return refusal_of(
        module,
        _base_of(module),
        inside,
        library="snnTorch",
        kinds=("Leaky", *OTHERS),
        missing=_MISSING,
        own=_OWN,
    )


def check_options(leaky: Any) -> None:
    """Raise ValueError for an option that a fused layer does not have; the error names it."""
    name = type(leaky).__name__
    factor = leaky.graded_spikes_factor
    if factor.is_meta:
        raise ValueError(
            f"this {name} is on the meta device, where its constants have no values; convert the "
            "network before it is moved there, and move the one that ns.convert returns"
        )
    refused = {
        "inhibition=True": leaky.inhibition,
        "state_quant": leaky.state_quant,
        "learn_graded_spikes_factor=True": isinstance(factor, nn.Parameter),
        f"graded_spikes_factor={factor.tolist()}": bool((factor != 1).any()),
    }
    for option, present in refused.items():
        if present:
            raise ValueError(
                f"this {name} has {option}, which the fused layer does not have; leave it out, or "
                "keep the layer in snnTorch"
            )
    step = getattr(leaky.state_function, "__name__", "")
    if step != _RESETS[leaky.reset_mechanism]:
        raise ValueError(
            f"this {name} says reset_mechanism={leaky.reset_mechanism!r} and steps with "
            f"{step or leaky.state_function!r}, that of another: its reset_mechanism was changed "
            "after it was made; make a new one with the reset you want"
        )
    if kind_of(leaky) != "Leaky" or leaky.reset_delay or leaky.reset_mechanism == "none":
        return
    if leaky.reset_mechanism == "subtract" or bool((leaky.threshold < 0).any()):
        raise ValueError(
            "this Leaky has reset_delay=False; where its membrane is still above the threshold "
            "after a reset, snnTorch adds the threshold back on the next step, and ns.LIF fires "
            "again. For the latter, make ns.LIF(..., reset_delay=False) yourself"
        )


def surrogate_within(leaky: Any) -> Surrogate:
    """Return the surrogate of neurons of snnTorch; raise ValueError for an unknown one."""
    if leaky.surrogate_disable:
        return Surrogate(none)
    found = derivative_of(leaky.spike_grad)
    if found is None:
        raise ValueError(
            f"this {type(leaky).__name__} has the spike_grad {leaky.spike_grad!r}, which is none "
            f"of snntorch.surrogate's {NAMES}; give its derivative as surrogate=, a name or a "
            "function of u, to ns.convert or ns.LIF.from_snntorch"
        )
    return Surrogate(*found)
