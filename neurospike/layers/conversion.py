"""From snnTorch to fused layers: one layer of neurons, or a network of them in a row.

snnTorch steps a network through time in Python, a kernel launch or more per operator and step. The
layers made here compute the same over the whole sequence. Needs no snnTorch that is not loaded.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from .leaky import Replacement, check_options, from_leaky, kind_of, refusal, surrogate_within
from .libraries import library_of
from .lif import LIF
from .sequential import Sequential
from .spiking import Spiking
from .zoo import Alpha, OneToOne, Synaptic


def convert(module: nn.Module, *, surrogate: Replacement = None) -> LIF | Spiking | Sequential:
    """Return the network with every layer of snnTorch's neurons replaced by a fused one.

    `Leaky` becomes `LIF`, `Synaptic` and `Alpha` become ours of the same names, `RLeaky` and
    `RSynaptic` with `all_to_all=False` become `OneToOne`.

        net = ns.convert(net)                      # an nn.Sequential with Leaky layers
        spikes, states = net(images, num_steps=25) # was: a loop of 25 calls of net(images)

    The other layers, and the decays and thresholds that are learned, are those of `module` itself,
    not copies; the new network begins at rest. Last neurons that return their states too
    (`output=True`, or without `init_hidden`) give them at every step, each `[T, B, *F]`, in the
    order of snnTorch: `(spikes, mems), states = net(...)` for a `Leaky`. Spikes are equal bit for
    bit wherever the layers between give the same bits for a larger batch. A layer that stands in
    the network twice is run twice. In training, batch normalisation takes its statistics over all
    steps at once, where snnTorch takes them step by step; dropout and other layers that draw at
    random draw for every step, as there. Hooks on neurons are not carried over.

    Args:
        module: such neurons, or an `nn.Sequential` of them and of layers without memory, which may
            be nested. A subclass is converted if it overrides nothing that its base computes with.
        surrogate: for every converted layer, in place of its own `spike_grad`: a name, an object of
            `neurospike.surrogate`, or the derivative as a function of u.

    Raises:
        TypeError: another neuron of snnTorch; a module that steps neurons in a `forward` of its
            own, which has to be rewritten with `LIF.from_snntorch`.
        ValueError: neurons with an option that a fused layer does not have, which is named, or
            neurons that stand in the network twice.
    """
    converted = _Conversion(surrogate).of(module, "", last=True)
    if not isinstance(converted, (LIF, Spiking, Sequential)):
        raise TypeError(
            "convert takes neurons of snnTorch or an nn.Sequential of them, got "
            f"{type(module).__name__}"
        )
    return converted


class _TracedLIF(LIF):
    """A last layer that gives its membrane at every step beside its spikes."""

    def forward(  # type: ignore[override]
        self, current: Tensor, mem: Tensor | None = None, **options: Any
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return `((spikes, trace), mem)`; options are `num_steps` and `lengths`."""
        spikes, mem, trace = super().forward(current, mem, return_trace=True, **options)
        return (spikes, trace), mem


class _Traced(Spiking):
    """Last neurons that give their states at every step beside their spikes."""

    def forward(
        self, current: Tensor, state: Any = None, **options: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return `((spikes, *traces), state)`; options are `num_steps` and `lengths`."""
        spikes, state, traces = super().forward(current, state, return_trace=True, **options)
        shown = (one for name, one in zip(self.states, traces) if name != "spike")
        return (spikes, *shown), state


class _TracedSynaptic(_Traced, Synaptic):
    pass


class _TracedAlpha(_Traced, Alpha):
    pass


class _TracedOneToOne(_Traced, OneToOne):
    pass


# Neurons of snnTorch: our layer, the same as a last one, and theirs for each of its parameters.
_DECAYS = {"alpha": "alpha", "beta": "beta", "threshold": "threshold"}
_KINDS: dict[str, tuple[type[Spiking], type[Spiking], dict[str, str]]] = {
    "Synaptic": (Synaptic, _TracedSynaptic, _DECAYS),
    "Alpha": (Alpha, _TracedAlpha, _DECAYS),
    "RLeaky": (
        OneToOne,
        _TracedOneToOne,
        {"beta": "beta", "threshold": "threshold", "weight": "V"},
    ),
    "RSynaptic": (OneToOne, _TracedOneToOne, {**_DECAYS, "weight": "V"}),
}


def _from_others(neurons: Any, name: str, last: bool, surrogate: Replacement) -> Spiking:
    """Return the fused layer of neurons of snnTorch that have more states than a membrane."""
    if getattr(neurons, "all_to_all", False):
        raise TypeError(
            f"{name} with all_to_all=True, whose neurons act on each other at every step; a fused "
            "layer has the weights of each neuron to itself (all_to_all=False). Keep it in snnTorch"
        )
    check_options(neurons)
    if not getattr(neurons, "reset_delay", True) and neurons.reset_mechanism != "none":
        raise ValueError(
            f"this {name} has reset_delay=False, which the fused layer does not have; leave it "
            "out, or keep the layer in snnTorch"
        )
    ours, traced, parameters = _KINDS[name]
    values = {}
    for key, attribute in parameters.items():
        value = getattr(neurons, attribute)
        is_decay = key in ("alpha", "beta") and not isinstance(value, nn.Parameter)
        values[key] = value.clamp(0, 1) if is_decay else value
    layer = (traced if last else ours)(
        **values,
        reset=neurons.reset_mechanism,
        surrogate=surrogate_within(neurons) if surrogate is None else surrogate,
        bound_gradient="clamp",
    )
    return layer.train(neurons.training)


class _Conversion:
    """One call of `convert`: the surrogate asked for, and where each layer was met."""

    def __init__(self, surrogate: Replacement) -> None:
        self.surrogate = surrogate
        self.met: dict[int, str] = {}

    def of(self, module: nn.Module, path: str, last: bool) -> nn.Module:
        """Return what stands for `module` in the new network."""
        if kind := kind_of(module):
            return self.neurons(module, kind, path, last)
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
                raise TypeError(f"cannot convert {where}, {refusal(inner, inside)}")
        return module

    def neurons(self, theirs: Any, kind: str, path: str, last: bool) -> LIF | Spiking:
        """Return the fused layer of neurons of snnTorch's class `kind`."""
        before = self.met.setdefault(id(theirs), path)
        if before != path:
            raise ValueError(
                f"layers {before} and {path} are one and the same {kind}, which keeps one membrane "
                f"for both places; fused layers cannot share it: make a {kind} for each place"
            )
        shown = last and bool(theirs.output or not theirs.init_hidden)
        try:
            if kind == "Leaky":
                return from_leaky(_TracedLIF if shown else LIF, theirs, self.surrogate, "auto")
            return _from_others(theirs, kind, shown, self.surrogate)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {path}: {error}" if path else str(error)) from None


def _is_plain_sequential(module: nn.Module) -> bool:
    """True for an `nn.Sequential` that runs its layers in a row, as its class does."""
    forward = type(module).forward
    return isinstance(module, nn.Sequential) and forward in (
        nn.Sequential.forward,
        Sequential.forward,
    )
