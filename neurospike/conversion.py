"""From snnTorch to fused layers: one `Leaky`, or a network of them in a row.

snnTorch steps a network through time in Python, a kernel launch or more an operator and step. The
layers made here compute the same over the whole sequence. Needs no snnTorch that is not loaded.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from . import surrogate as surrogates
from .formulas import abs, cast, exp, heaviside
from .layers import LIF
from .sequential import Sequential
from .surrogate import Surrogate

Layer = TypeVar("Layer", bound=LIF)


def convert(module: nn.Module) -> LIF | Sequential:
    """Return the network with every `snntorch.Leaky` replaced by a fused layer over all steps.

        net = ns.convert(net)                      # an nn.Sequential with Leaky layers
        spikes, states = net(images, num_steps=25) # was: a loop of 25 calls of net(images)

    The other layers, and the decays and thresholds that are learned, are those of `module` itself,
    not copies; the new network begins at rest. A last `Leaky` that returns its membrane too
    (`output=True`, or without `init_hidden`) gives `(spikes, membranes)`, both `[T, B, *F]`, as the
    output: `(spikes, mems), states = net(...)`. Spikes are equal bit for bit wherever the layers
    between give the same bits for a larger batch. In training, batch normalisation takes
    its statistics over all steps at once, where snnTorch takes them step by step.

    Args:
        module: a `snntorch.Leaky`, or an `nn.Sequential` of such and of layers without memory,
            which may be nested.

    Raises:
        TypeError: a module of another kind that holds neurons; it steps them in a `forward` of its
            own, which has to be rewritten with `LIF.from_snntorch`.
        ValueError: a `Leaky` with an option that a fused layer does not have, which is named.
    """
    converted = _convert(module, "", last=True)
    if not isinstance(converted, (LIF, Sequential)):
        raise TypeError(
            f"convert takes a snntorch.Leaky or an nn.Sequential, got {type(module).__name__}"
        )
    return converted


def from_leaky(
    kind: type[Layer],
    leaky: Any,
    surrogate: str | Surrogate | Callable[..., Any] | None,
    backend: str,
) -> Layer:
    """Return a layer of class `kind` that computes what `leaky` does; see `LIF.from_snntorch`."""
    if not _is_leaky(leaky):
        raise TypeError(
            f"from_snntorch takes a snntorch.Leaky, got {type(leaky).__name__}; of snnTorch's "
            "neurons that is the one with the equations of LIF"
        )
    _check_options(leaky)
    layer = kind(
        0.0,
        1.0,
        _surrogate(leaky) if surrogate is None else surrogate,
        reset=leaky.reset_mechanism,
        reset_delay=leaky.reset_delay,
        backend=backend,
        beta_gradient="clamp",
    )
    for name in ("beta", "threshold"):  # whatever training made of them, in range or not
        delattr(layer, name)
        layer._keep(name, getattr(leaky, name))
    return layer.train(leaky.training)


class _TracedLIF(LIF):
    """A last layer that gives its membrane at every step beside its spikes."""

    def forward(  # type: ignore[override]
        self, current: Tensor, mem: Tensor | None = None, *, num_steps: int | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return `((spikes, trace), mem)`."""
        spikes, mem, trace = super().forward(current, mem, num_steps=num_steps, return_trace=True)
        return (spikes, trace), mem


def _convert(module: nn.Module, path: str, last: bool) -> nn.Module:
    if _is_leaky(module):
        returns_mem = last and bool(module.output or not module.init_hidden)
        try:
            return from_leaky(_TracedLIF if returns_mem else LIF, module, None, "auto")
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}" if path else str(error)) from None
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        children = {
            name: _convert(child, f"{path}.{name}" if path else name, last and name == names[-1])
            for name, child in module.named_children()
        }
        if path and not any(getattr(child, "carries_state", False) for child in children.values()):
            return module
        return Sequential(OrderedDict(children)).train(module.training)
    for name, inner in module.named_modules():
        if _is_snntorchs(inner):
            where = ".".join(part for part in (path, name) if part) or "the module"
            raise TypeError(
                f"cannot convert {where}, a snntorch.{type(inner).__name__}"
                + (f" inside a {type(module).__name__}, whose forward steps it" if name else "")
                + "; convert takes Leaky layers in an nn.Sequential: write the network as one, or "
                "use ns.LIF.from_snntorch and hand whole sequences [T, B, *F] on in its forward"
            )
    return module


def _is_leaky(module: nn.Module) -> bool:
    library = sys.modules.get("snntorch")
    return library is not None and type(module) is library.Leaky


def _is_snntorchs(module: nn.Module) -> bool:
    library = sys.modules.get("snntorch")
    return library is not None and isinstance(module, library.SpikingNeuron)


def _check_options(leaky: Any) -> None:
    """Raise `ValueError` that names the option a fused layer does not have."""
    factor = leaky.graded_spikes_factor
    refused = {
        "inhibition=True": leaky.inhibition,
        "state_quant": leaky.state_quant,
        "learn_graded_spikes_factor=True": isinstance(factor, nn.Parameter),
        f"graded_spikes_factor={factor.tolist()}": bool((factor != 1).any()),
    }
    for option, present in refused.items():
        if present:
            raise ValueError(
                f"this Leaky has {option}, which ns.LIF does not have; leave it out, or keep the "
                "layer in snnTorch"
            )
    if leaky.reset_delay or leaky.reset_mechanism == "none":
        return
    if leaky.reset_mechanism == "subtract" or bool((leaky.threshold < 0).any()):
        raise ValueError(
            "this Leaky has reset_delay=False; where its membrane is still above the threshold "
            "after a reset, snnTorch adds the threshold back on the next step, and ns.LIF fires "
            "again. For the latter, make ns.LIF(..., reset_delay=False) yourself"
        )


# Surrogates of snnTorch 1.0.0 that are not among ours, in the formulas that it computes.


def none(u):  # noqa: ANN001, ANN201
    """No gradient at all, as with `surrogate_disable=True`."""
    return 0.0 * heaviside(u)


def signed(u, threshold):  # noqa: ANN001, ANN201
    """The `triangular` of snnTorch: the threshold below it, minus the threshold from it on."""
    return threshold * (cast(u < 0.0, u) - cast(u >= 0.0, u))


def sparse(u, slope, bound):  # noqa: ANN001, ANN201
    """The sparse fast sigmoid, `SFS`, of snnTorch: 0 up to the bound."""
    z = slope * abs(u) + 1.0
    return heaviside(u - bound) / (z * z)


def escape(u, beta, slope):  # noqa: ANN001, ANN201
    """The `spike_rate_escape` of snnTorch, around u = 1."""
    return slope * exp(-beta * abs(u - 1.0))


_SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "atan": surrogates.atan,
    "fast_sigmoid": surrogates.fast_sigmoid,
    "sigmoid": surrogates.sigmoid,
    "straight_through_estimator": surrogates.straight_through,
    "SFS": lambda slope, B: Surrogate(sparse, (float(slope), float(B))),
    "heaviside": lambda: Surrogate(heaviside),
    "triangular": lambda threshold: Surrogate(signed, (float(threshold),)),
    "spike_rate_escape": lambda beta, slope: Surrogate(escape, (float(beta), float(slope))),
}


def _surrogate(leaky: Any) -> Surrogate:
    """Return the surrogate of a `Leaky` from the closure that snnTorch made of it."""
    if leaky.surrogate_disable:
        return Surrogate(none)
    function = leaky.spike_grad
    name = getattr(function, "__qualname__", "").partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or name not in _SURROGATES:
        raise ValueError(
            f"this Leaky has the spike_grad {function!r}, which is none of snntorch.surrogate's "
            f"{', '.join(_SURROGATES)}; give its derivative as surrogate=, a function of u"
        )
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    return _SURROGATES[name](**{variable: cell.cell_contents for variable, cell in cells})
