"""From snnTorch to fused layers: one `Leaky`, or a network of them in a row.

snnTorch steps a network through time in Python, a kernel launch or more per operator and step. The
layers made here compute the same over the whole sequence. Needs no snnTorch that is not loaded.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from .layers import LIF
from .sequential import Sequential, library_of
from .snntorch_surrogates import NAMES, none, surrogate_of
from .surrogate import Surrogate

Layer = TypeVar("Layer", bound=LIF)
Replacement = str | Surrogate | Callable[..., Any] | None  # of the surrogates; None keeps them

_RESETS = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}
_MISSING = {  # what to do about neurons of snnTorch that no fused layer computes
    "Synaptic": "examples/own_neuron.py makes one of two fused layers, with the same spikes",
    "Lapicque": "its equation is that of ns.LIF(beta=1 - time_step / (R * C)) with every current "
    "scaled by time_step / C: scale the weights before it and use that",
}
_OWN = (
    "write it as a module with carries_state = True for ns.Sequential, as docs/extend/neuron.md "
    "shows, or keep the network in snnTorch"
)


def convert(module: nn.Module, *, surrogate: Replacement = None) -> LIF | Sequential:
    """Return the network with every `snntorch.Leaky` replaced by a fused layer over all steps.

        net = ns.convert(net)                      # an nn.Sequential with Leaky layers
        spikes, states = net(images, num_steps=25) # was: a loop of 25 calls of net(images)

    The other layers, and the decays and thresholds that are learned, are those of `module` itself,
    not copies; the new network begins at rest. A last `Leaky` that returns its membrane too
    (`output=True`, or without `init_hidden`) gives `(spikes, membranes)`, both `[T, B, *F]`, as the
    output: `(spikes, mems), states = net(...)`. Spikes are equal bit for bit wherever the layers
    between give the same bits for a larger batch. A layer that stands in the network twice is run
    twice. In training, batch normalisation takes its statistics over all steps at once, where
    snnTorch takes them step by step; dropout and other layers that draw at random draw for every
    step, as there. Hooks on a `Leaky` are not carried over.

    Args:
        module: a `snntorch.Leaky`, or an `nn.Sequential` of such and of layers without memory,
            which may be nested. A subclass of `Leaky` is converted if it overrides nothing that
            `Leaky` computes with.
        surrogate: for every converted layer, in place of its own `spike_grad`: a name, an object of
            `neurospike.surrogate`, or the derivative as a function of u.

    Raises:
        TypeError: another neuron of snnTorch; a module that steps neurons in a `forward` of its
            own, which has to be rewritten with `LIF.from_snntorch`.
        ValueError: a `Leaky` with an option that a fused layer does not have, which is named, or
            one that stands in the network twice.
    """
    converted = _Conversion(surrogate).of(module, "", last=True)
    if not isinstance(converted, (LIF, Sequential)):
        raise TypeError(
            f"convert takes a snntorch.Leaky or an nn.Sequential, got {type(module).__name__}"
        )
    return converted


def from_leaky(kind: type[Layer], leaky: Any, surrogate: Replacement, backend: str) -> Layer:
    """Return a layer of class `kind` that computes what `leaky` does; see `LIF.from_snntorch`."""
    if not _is_leaky(leaky):
        raise TypeError(f"from_snntorch takes a snntorch.Leaky, got {_refusal(leaky)}")
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


class _Conversion:
    """One call of `convert`: the surrogate asked for, and where each `Leaky` was met."""

    def __init__(self, surrogate: Replacement) -> None:
        self.surrogate = surrogate
        self.met: dict[int, str] = {}

    def of(self, module: nn.Module, path: str, last: bool) -> nn.Module:
        """Return what stands for `module` in the new network."""
        if _is_leaky(module):
            return self.neurons(module, path, last)
        if _is_plain_sequential(module):
            names = list(module._modules)
            children = {  # not named_children(), which passes over a module met before
                name: self.of(child, f"{path}.{name}" if path else name, last and name == names[-1])
                for name, child in module._modules.items()
                if child is not None
            }
            if path and not any(
                getattr(child, "carries_state", False) for child in children.values()
            ):
                return module
            return Sequential(OrderedDict(children)).train(module.training)
        for name, inner in module.named_modules():
            if library_of(inner) == "snntorch":
                where = ".".join(part for part in (path, name) if part) or "the module"
                inside = (
                    f" inside a {type(module).__name__}, whose forward steps it" if name else ""
                )
                raise TypeError(f"cannot convert {where}, {_refusal(inner, inside)}")
        return module

    def neurons(self, leaky: Any, path: str, last: bool) -> LIF:
        """Return the fused layer of a `Leaky`."""
        before = self.met.setdefault(id(leaky), path)
        if before != path:
            raise ValueError(
                f"layers {before} and {path} are one and the same Leaky, which keeps one membrane "
                "for both places; fused layers cannot share it: make a Leaky for each place"
            )
        returns_mem = last and bool(leaky.output or not leaky.init_hidden)
        try:
            return from_leaky(_TracedLIF if returns_mem else LIF, leaky, self.surrogate, "auto")
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}" if path else str(error)) from None


def _is_plain_sequential(module: nn.Module) -> bool:
    """True for an `nn.Sequential` that runs its layers in a row, as its class does."""
    forward = type(module).forward
    return isinstance(module, nn.Sequential) and forward in (
        nn.Sequential.forward,
        Sequential.forward,
    )


def _is_leaky(module: object) -> bool:
    library = sys.modules.get("snntorch")
    return library is not None and isinstance(module, library.Leaky) and not _overridden(module)


def _overridden(module: Any) -> list[str]:
    """Return the methods of `snntorch.Leaky` that a subclass, or the object itself, replaces."""
    leaky: Any = sys.modules["snntorch"].Leaky
    theirs = {
        name
        for kind in leaky.__mro__
        if kind.__module__.startswith("snntorch.")
        for name in vars(kind)
        if not name.startswith("__")
    }
    kinds = type(module).__mro__
    found = {name for kind in kinds[: kinds.index(leaky)] for name in vars(kind)}
    found |= {name for name, value in vars(module).items() if callable(value)}
    return sorted(found & theirs)


def _refusal(module: object, inside: str = "") -> str:
    """Return what a module is that cannot be converted, and what to do: the end of an error."""
    name = type(module).__name__
    library = sys.modules.get("snntorch")
    if not isinstance(module, nn.Module) or library_of(module) != "snntorch" or library is None:
        return f"{name}; of snnTorch's neurons that is the one with the equations of LIF"
    if _is_leaky(module):
        return (
            f"a snntorch.{name}{inside}; convert takes Leaky layers in an nn.Sequential: write the "
            "network as one, or use ns.LIF.from_snntorch and hand whole sequences [T, B, *F] on in "
            "its forward"
        )
    if isinstance(module, library.Leaky):
        return (
            f"{name}, a snntorch.Leaky that overrides {', '.join(_overridden(module))}{inside}: "
            "its equations may be others than those of ns.LIF; use snntorch.Leaky itself, or "
            f"{_OWN}"
        )
    missing = _MISSING.get(name, _OWN)
    return (
        f"a snntorch.{name}{inside}: Leaky is the one neuron of snnTorch that has a fused layer, "
        f"ns.LIF. For {name}, {missing}"
    )


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
    step = getattr(leaky.state_function, "__name__", "")
    if step != _RESETS[leaky.reset_mechanism]:
        raise ValueError(
            f"this Leaky says reset_mechanism={leaky.reset_mechanism!r} and steps with "
            f"{step or leaky.state_function!r}, that of another: its reset_mechanism was changed "
            "after it was made; make a new Leaky with the one you want"
        )
    if leaky.reset_delay or leaky.reset_mechanism == "none":
        return
    if leaky.reset_mechanism == "subtract" or bool((leaky.threshold < 0).any()):
        raise ValueError(
            "this Leaky has reset_delay=False; where its membrane is still above the threshold "
            "after a reset, snnTorch adds the threshold back on the next step, and ns.LIF fires "
            "again. For the latter, make ns.LIF(..., reset_delay=False) yourself"
        )


def _surrogate(leaky: Any) -> Surrogate:
    """Return the surrogate of a `Leaky`."""
    if leaky.surrogate_disable:
        return Surrogate(none)
    found = surrogate_of(leaky.spike_grad)
    if found is None:
        raise ValueError(
            f"this Leaky has the spike_grad {leaky.spike_grad!r}, which is none of "
            f"snntorch.surrogate's {NAMES}; give its derivative as surrogate=, a name or a "
            "function of u, to ns.convert or ns.LIF.from_snntorch"
        )
    return found
