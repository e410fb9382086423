"""SpikingJelly for `convert`: its neurons, wrappers of torch's layers, dropout and containers.

Its neurons reset at once, and fire where the membrane reaches the threshold (`>=`), while ours fire
above it (`>`); converted neurons fire as SpikingJelly's do. They compute in the order of
SpikingJelly's own loop over steps, so that membranes are equal in every bit. SpikingJelly is never
imported here.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.formulas import detach, fire, heaviside, where
from neurospike.layers.leaky import Replacement
from neurospike.layers.libraries import overridden, refusal_of
from neurospike.layers.spiking import Spiking
from neurospike.neurons.spikingjelly_surrogates import NAMES, derivative_of
from neurospike.neurons.surrogate import Surrogate

from .library import Library, Opened

KINDS = ("LIFNode", "ParametricLIFNode", "IFNode")
_OWN = (
    "write it as one function for ns.Spiking, as docs/extend/neuron.md shows, or keep the network "
    "in SpikingJelly"
)
_MISSING = {  # what to do about neurons that no fused layer computes as they do
    "SimpleLIFNode": "use neuron.LIFNode, the same equation in another order of operations",
    "SimpleIFNode": "use neuron.IFNode, the same equation",
    "NonSpikingLIFNode": "use ns.LI(beta=1 - 1/tau) behind weights scaled by 1/tau",
    "NonSpikingIFNode": "use ns.LI(beta=1.0)",
}

_AS_A_MODULE = (
    "write it as a module with carries_state = True for ns.Sequential, which is given [T, B, *F]"
)
_INSTEAD = {  # layers that are written as two layers here
    "LinearRecurrentContainer": (
        "give the columns of rc.weight that the input meets to an nn.Linear, and the others with "
        "rc.bias to an ns.Recurrent of the neurons, as examples/columns.py is written"
    ),
}


def _reached(u):  # noqa: ANN001, ANN202
    """A spike where u >= 0, with the surrogate as its derivative."""
    return fire(u) + (where(u >= 0.0, 1.0, 0.0) - heaviside(u))


def _same(spike):  # noqa: ANN001, ANN202
    return spike


def _lif(decay_input: bool) -> Callable[..., Any]:
    """Return the function that charges a membrane; `share` scales a value by `1 / tau`."""

    def decayed(current, v, v_reset, share, tau):  # noqa: ANN001, ANN202
        return v + share(current - (v - v_reset), tau)

    def added(current, v, v_reset, share, tau):  # noqa: ANN001, ANN202
        return v - share(v - v_reset, tau) + current

    return decayed if decay_input else added


def _divided(value, tau):  # noqa: ANN001, ANN202
    return value / tau


def _multiplied(value, rate):  # noqa: ANN001, ANN202
    return value * rate


def _lif_of(theirs: Any, share: Callable[..., Any]) -> Callable[..., Any]:
    """Return the neuron's function of a `LIFNode` or `ParametricLIFNode`, by its options."""
    charge = _lif(theirs.decay_input)
    held = detach if theirs.detach_reset else _same

    def lif_soft(current, v, tau, v_threshold):  # noqa: ANN001, ANN202
        h = charge(current, v, 0.0, share, tau)
        spike = _reached(h - v_threshold)
        return spike, h - held(spike) * v_threshold

    def lif_hard(current, v, tau, v_threshold, v_reset):  # noqa: ANN001, ANN202
        h = charge(current, v, v_reset, share, tau)
        spike = _reached(h - v_threshold)
        return spike, held(spike) * v_reset + (1.0 - held(spike)) * h

    return lif_soft if theirs.v_reset is None else lif_hard


def _if_of(theirs: Any) -> Callable[..., Any]:
    """Return the neuron's function of an `IFNode`, by its options."""
    held = detach if theirs.detach_reset else _same

    def if_soft(current, v, v_threshold):  # noqa: ANN001, ANN202
        h = v + current
        spike = _reached(h - v_threshold)
        return spike, h - held(spike) * v_threshold

    def if_hard(current, v, v_threshold, v_reset):  # noqa: ANN001, ANN202
        h = v + current
        spike = _reached(h - v_threshold)
        return spike, held(spike) * v_reset + (1.0 - held(spike)) * h

    return if_soft if theirs.v_reset is None else if_hard


class ParametricLIF(Spiking):
    """A `ParametricLIFNode`: `1 / tau = sigmoid(w)`, with `w` shared."""

    w: Tensor

    def _names(self) -> tuple[str, ...]:
        return ("w", *self.parameter_names[1:])

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return `1 / tau`, and the neuron's other parameters."""
        return torch.sigmoid(self.w), *map(self._bounded, self.parameter_names[1:])


class HeldDropout(nn.Module):
    """SpikingJelly's `Dropout`, which has one mask for all steps; the mask is its state."""

    carries_state = True

    def __init__(self, p: float, whole_maps: bool) -> None:
        super().__init__()
        self.p, self.whole_maps = p, whole_maps

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, lengths: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return `(x * mask [T, B, *F], mask [B, *F])`; in evaluation `(x, mask)`."""
        if not self.training:
            return x, mask
        if mask is None:
            drop = nn.functional.dropout2d if self.whole_maps else nn.functional.dropout
            mask = drop(torch.ones_like(x[0]), self.p, training=True)
        return x * mask, mask

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"p={self.p}, whole_maps={self.whole_maps}"


def _class(place: str, name: str) -> Any:
    return getattr(sys.modules.get(f"spikingjelly.activation_based.{place}"), name, None)


def _base_of(module: object) -> Any:
    """Return the class with a fused layer that a module is an instance of, or None."""
    bases = (_class("neuron", name) for name in KINDS)
    return next((base for base in bases if base and isinstance(module, base)), None)


def _kind_of(module: nn.Module) -> str:
    base = _base_of(module)
    return base.__name__ if base is not None and not overridden(module, base) else ""


def _surrogate_of(theirs: Any, surrogate: Replacement) -> Replacement | Surrogate:
    if surrogate is not None:
        return surrogate
    found = derivative_of(theirs.surrogate_function)
    if found is None:
        raise ValueError(
            f"this {type(theirs).__name__} has the surrogate_function "
            f"{theirs.surrogate_function!r}, which is none of SpikingJelly's {NAMES} that spikes; "
            "give its derivative as surrogate=, a name or a function of u, to ns.convert"
        )
    return Surrogate(*found)


def _exact(value: float) -> float | Tensor:
    """Return a number as a float64 tensor if float32 does not hold it, else as it is.

    SpikingJelly keeps Python's numbers, which have 64 bits, and networks in float64 need all of
    them. A plain number is kept by layers in float32, so that the calls of a float32 network need
    not round it each time.
    """
    is_held = ctypes.c_float(value).value == value
    return value if is_held else torch.tensor(value, dtype=torch.float64)


def _fused(theirs: Any, kind: str, shown: bool, surrogate: Replacement) -> Spiking:
    """Return the fused layer of neurons of SpikingJelly."""
    if theirs._neuron_precision is not None:
        raise ValueError(
            f"this {kind} keeps its membrane in a number format of its own "
            f"({theirs._neuron_precision}), which the fused layer does not; leave that out"
        )
    values: dict[str, Any] = {"v_threshold": _exact(theirs.v_threshold)}
    options: dict[str, Any] = {"surrogate": _surrogate_of(theirs, surrogate)}
    if theirs.v_reset is not None:
        values["v_reset"] = _exact(theirs.v_reset)
        options["rest"] = {"v": theirs.v_reset}
    made: type[Spiking] = Spiking
    if kind == "IFNode":
        function = _if_of(theirs)
    elif kind == "LIFNode":
        function, values["tau"] = _lif_of(theirs, _divided), _exact(theirs.tau)
    else:
        function, values["w"] = _lif_of(theirs, _multiplied), theirs.w
        made = ParametricLIF
    return made(function, **options, **values).train(theirs.training)


def _refusal(module: nn.Module, inside: str) -> str:
    """Return the end of an error: why a module cannot be converted, and what to do."""
    if type(module).__module__.startswith("spikingjelly.activation_based.layer."):
        name = type(module).__name__
        return (
            f"a {name} of SpikingJelly{inside}, a layer without a counterpart here; "
            f"{_INSTEAD.get(name, _AS_A_MODULE)}, or keep the network in SpikingJelly"
        )
    return refusal_of(
        module,
        _base_of(module),
        inside,
        library="SpikingJelly",
        kinds=KINDS,
        missing=_MISSING,
        own=_OWN,
    )


def _opened(module: Any) -> Opened | None:
    """Return the contents of a container of SpikingJelly; None for other modules."""
    name = type(module).__name__
    if type(module) is not _class("layer", name) or not isinstance(module, nn.Sequential):
        return None
    by_steps = {
        "MultiStepContainer": True,
        "SeqToANNContainer": False,
        "StepModeContainer": getattr(module, "stateful", False),
    }.get(name)
    if by_steps is None:
        return None
    layers = {key: one for key, one in module._modules.items() if one is not None}
    if name == "StepModeContainer" and module.step_mode == "s":
        return Opened(layers)
    return Opened(layers, by_steps=by_steps, keeps_no_state=not by_steps)


def _other(module: Any) -> nn.Module | None:
    """Return torch's own layer for a wrapper of it, or `HeldDropout` for dropout; else None."""
    kind = type(module)
    if kind.__name__ in ("Dropout", "Dropout2d") and kind is _class("layer", kind.__name__):
        dropout = HeldDropout(module.p, whole_maps=kind.__name__ == "Dropout2d")
        return dropout.train(module.training)
    wrapped: Any = kind.__mro__[1]
    is_wrapper = (
        kind.__module__.startswith("spikingjelly.activation_based.layer.")
        and wrapped.__module__.startswith("torch.nn.modules.")
        and wrapped.__name__ == kind.__name__
        and "forward" not in vars(module)
    )
    if not is_wrapper:
        return None
    plain: nn.Module = wrapped.__new__(wrapped)
    vars(plain).update(vars(module))  # parameters, buffers and hooks are the same objects
    return plain


def _takes_sequences(module: Any) -> bool:
    return module.step_mode == "m"


LIBRARY = Library(
    name="spikingjelly",
    kind_of=_kind_of,
    fused=_fused,
    refusal=_refusal,
    takes_sequences=_takes_sequences,
    opened=_opened,
    other=_other,
)
