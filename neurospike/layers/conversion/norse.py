"""Norse for `convert`: its neurons without recurrence, and the containers that hold them.

Norse's neurons fire above the threshold, as ours do, and reset at once. Converted neurons compute
in the order of its own steps, from the same products of `dt` and inverse time constants, so that
membranes are equal in every bit. Norse is never imported here.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurospike import formulas
from neurospike.formulas import abs, exp, fire, sqrt, tanh, where
from neurospike.layers.leaky import Replacement
from neurospike.layers.libraries import overridden, refusal_of
from neurospike.layers.spiking import Spiking
from neurospike.neurons.snntorch_surrogates import none
from neurospike.neurons.surrogate import Surrogate

from .library import Library, Opened

_OWN = (
    "write it as one function for ns.Spiking, as docs/extend/neuron.md shows, or keep the network "
    "in Norse"
)
_RECURRENT = (
    "use ns.Recurrent around what ns.convert makes of the kind without recurrence, behind "
    "an nn.Linear with the input weights"
)
_MISSING = {
    "LIFRecurrent": _RECURRENT,
    "LIFRecurrentCell": _RECURRENT,
    "SequentialState": "leave return_hidden=True out; a hook on a layer shows what it returns",
}


# The neurons, one step each in Norse's order of operations. The parameters `..._inv` are `dt` times
# an inverse time constant.


def lif(current, v, i, tau_mem_inv, tau_syn_inv, v_leak, v_th, v_reset):  # noqa: ANN001, ANN201
    """`lif_feed_forward_step`."""
    i = i + current
    v = v + tau_mem_inv * ((v_leak - v) + i)
    z = fire(v - v_th)
    return z, (1.0 - z) * v + z * v_reset, i + -tau_syn_inv * i


def lif_box(current, v, tau_mem_inv, v_leak, v_th, v_reset):  # noqa: ANN001, ANN201
    """`lif_box_feed_forward_step`, reset to the value `v_reset`."""
    v = v + tau_mem_inv * (current + v_leak - v)
    z = fire(v - v_th)
    return z, (1.0 - z) * v + z * v_reset


def lif_box_subtract(current, v, tau_mem_inv, v_leak, v_th):  # noqa: ANN001, ANN201
    """`lif_box_feed_forward_step`, reset by subtraction."""
    v = v + tau_mem_inv * (current + v_leak - v)
    z = fire(v - v_th)
    return z, (1.0 - z) * v + z * (v - v_th)


def iaf(current, v, v_th, v_reset):  # noqa: ANN001, ANN201
    """`iaf_feed_forward_step`."""
    v = v + current
    z = fire(v - v_th)
    return z, (1.0 - z) * v + z * v_reset


def li(current, v, i, tau_mem_inv, tau_syn_inv, v_leak):  # noqa: ANN001, ANN201
    """`li_feed_forward_step`, which never fires."""
    i = i + current
    return 0.0, v + tau_mem_inv * ((v_leak - v) + i), i + -tau_syn_inv * i


def li_box(current, v, tau_mem_inv, v_leak):  # noqa: ANN001, ANN201
    """`li_box_feed_forward_step`, which never fires."""
    return 0.0, v + tau_mem_inv * ((v_leak - v) + current)


# Norse's surrogates, named by the `method` of its parameters, by the formulas that it computes.


def triangle(u, alpha):  # noqa: ANN001, ANN201
    """`Triangle`, whose alpha is its height."""
    z = 1.0 - abs(u)
    return alpha * where(z > 0.0, z, 0.0)


def tanh_slope(u, alpha):  # noqa: ANN001, ANN201
    """`HeaviTanh`."""
    z = tanh(u * alpha)
    return 1.0 - z * z


def circ(u, alpha):  # noqa: ANN001, ANN201
    """`HeaviCirc`."""
    z = alpha * alpha + u * u
    return (1.0 / sqrt(z) - u * u / (z * sqrt(z))) * alpha


def erfc_slope(u, alpha):  # noqa: ANN001, ANN201
    """`HeaviErfc`."""
    z = alpha * u
    return 2.0 / 1.7724538509055159 * exp(-(z * z))


_METHODS: dict[str, Callable[..., Any]] = {
    "triangle": triangle,
    "tanh": tanh_slope,
    "circ": circ,
    "heavi_erfc": erfc_slope,
}


class Euler(Spiking):
    """Neurons by Euler steps of `dt` seconds; parameters are Norse's inverse time constants."""

    def __init__(self, function: Callable[..., Any], *, dt: float, **options: Any) -> None:
        super().__init__(function, **options)
        self.dt = dt

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Euler":
        """Move constants but keep their number formats, as Norse does: products with `dt` round."""
        constants = {id(one) for one in self._buffers.values()}

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            is_converted = id(tensor) in constants and found.dtype != tensor.dtype
            return tensor.to(found.device) if is_converted else found

        super()._apply(moved, recurse)
        return self

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return the parameters, inverse time constants times `dt`."""
        return tuple(
            self.dt * getattr(self, name) if name.endswith("_inv") else getattr(self, name)
            for name in self.parameter_names
        )


class Integrator(Euler):
    """Neurons that never fire, and return their membranes at every step."""

    def forward(
        self, current: Tensor, state: Any = None, **options: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return `(v [T, B, *F], state)`; options are `num_steps` and `lengths`."""
        _, state, traces = super().forward(current, state, return_trace=True, **options)
        return traces[0], state


@dataclass(frozen=True)
class _Kind:
    function: Callable[..., Any]
    activation: str  # the name of Norse's function that computes a step
    made: type[Euler] = Euler
    takes_sequences: bool = False


_KINDS = {
    "LIFCell": _Kind(lif, "lif_feed_forward_step"),
    "LIF": _Kind(lif, "lif_feed_forward_step", takes_sequences=True),
    "LIFBoxCell": _Kind(lif_box, "lif_box_feed_forward_step"),
    "IAFCell": _Kind(iaf, "iaf_feed_forward_step"),
    "IAF": _Kind(iaf, "iaf_feed_forward_step", takes_sequences=True),
    "LICell": _Kind(li, "li_feed_forward_step", Integrator),
    "LI": _Kind(li, "li_feed_forward_step", Integrator, takes_sequences=True),
    "LIBoxCell": _Kind(li_box, "li_box_feed_forward_step", Integrator),
}


def _base_of(module: object) -> Any:
    library = sys.modules.get("norse.torch")
    bases = (getattr(library, name, None) for name in _KINDS)
    return next((base for base in bases if base and isinstance(module, base)), None)


def _kind_of(module: Any) -> str:
    base = _base_of(module)
    return base.__name__ if base is not None and not overridden(module, base) else ""


def _surrogate_of(theirs: Any, kind: str, surrogate: Replacement) -> Replacement | Surrogate:
    """Return the surrogate asked for, or that of Norse's `method`."""
    method = getattr(theirs.p, "method", "heaviside")
    if surrogate is not None:
        return surrogate
    if method == "super":  # Norse's alpha is not used in it
        return Surrogate(formulas.fast_sigmoid, (1.0,))
    if method == "heaviside":
        return Surrogate(none)
    if method not in _METHODS:
        raise ValueError(
            f"this {kind} has method={method!r}, whose gradient the fused layer does not compute; "
            f"use one of super, heaviside, {', '.join(_METHODS)}, or give a surrogate to ns.convert"
        )
    return Surrogate(_METHODS[method], (float(theirs.p.alpha),))


def _function_of(theirs: Any, kind: str) -> Callable[..., Any]:
    """Return the neurons' function; raise ValueError if they compute something else."""
    known = _KINDS[kind]
    step = getattr(theirs.activation, "__name__", repr(theirs.activation))
    if step not in (known.activation, known.activation.replace("_step", "_adjoint_step")):
        raise ValueError(
            f"this {kind} steps with {step}, not with {known.activation}, as others of its class; "
            "make a new one without an activation of its own"
        )
    reset = getattr(getattr(theirs.p, "reset_method", None), "__name__", "reset_value")
    if reset == "reset_value":
        return known.function
    if reset != "reset_subtract":
        raise ValueError(
            f"this {kind} has the reset_method {reset}, which the fused layer does not have; use "
            "reset_value or reset_subtract"
        )
    return lif_box_subtract


def _fused(theirs: Any, kind: str, shown: bool, surrogate: Replacement) -> Spiking:
    """Return the fused layer of neurons of Norse."""
    if getattr(theirs, "record_states", False):
        raise ValueError(
            f"this {kind} has record_states=True; leave it out, and ask the fused layer for all "
            "states with layer(current, return_trace=True)"
        )
    function = _function_of(theirs, kind)
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    values = {name: _value(theirs, name) for name in names if hasattr(theirs.p, name)}
    first = values["v_reset" if kind.startswith("IAF") else "v_leak"]  # v before the first step
    if first.numel() != 1 or isinstance(first, nn.Parameter):
        raise ValueError(
            f"this {kind} begins at a membrane that is learned or not one number, {first!r}, which "
            "the fused layer does not; make it one number, and add what differs to the current"
        )
    layer = _KINDS[kind].made(
        function,
        dt=theirs.dt,
        rest={"v": float(first)},
        surrogate=_surrogate_of(theirs, kind, surrogate),
        **values,
    )
    return layer.train(theirs.training)


def _value(theirs: Any, name: str) -> Tensor:
    value = torch.as_tensor(getattr(theirs.p, name))
    # The first call of an IAF makes its v_reset require a gradient, which was not asked for.
    is_marked = name == "v_reset" and not hasattr(theirs.p, "v_leak")
    return value.detach() if is_marked and not isinstance(value, nn.Parameter) else value


def _refusal(module: nn.Module, inside: str) -> str:
    """Return the end of an error: why a module cannot be converted, and what to do."""
    return refusal_of(
        module,
        _base_of(module),
        inside,
        library="Norse",
        kinds=_KINDS,
        missing=_MISSING,
        own=_OWN,
        container="a SequentialState",
    )


def _opened(module: Any) -> Opened | None:
    library = sys.modules.get("norse.torch")
    if type(module) is getattr(library, "Lift", None):
        lifted = {"lifted_module": module.lifted_module}
        return Opened(lifted, by_steps=True, hands_states=True)
    if type(module) is not getattr(library, "SequentialState", None) or module.return_hidden:
        return None
    layers = {name: one for name, one in module._modules.items() if one is not None}
    return Opened(layers, hands_states=True)


LIBRARY = Library(
    name="norse",
    kind_of=_kind_of,
    fused=_fused,
    refusal=_refusal,
    takes_sequences=lambda module: _KINDS[_kind_of(module)].takes_sequences,
    opened=_opened,
)
