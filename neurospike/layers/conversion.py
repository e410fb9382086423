"""From snnTorch to fused layers: one layer of neurons, or a network of them in a row.

snnTorch steps a network through time in Python, a kernel launch or more per operator and step. The
layers made here compute the same over the whole sequence. Needs no snnTorch that is not loaded.
"""

import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.neurons import zoo
from neurospike.neurons.rule import Neuron

from .delay import Delay
from .leaky import (
    Replacement,
    check_options,
    from_leaky,
    kind_of,
    lif_with,
    refusal,
    surrogate_within,
)
from .libraries import library_of
from .lif import LIF
from .recurrent import Recurrent
from .sequential import Sequential
from .spiking import Spiking
from .zoo import Alpha, OneToOne, Synaptic

Converted = LIF | Spiking | Recurrent | Delay | Sequential


def convert(module: nn.Module, *, surrogate: Replacement = None) -> Converted:
    """Return the network with every layer of snnTorch's neurons replaced by a fused one.

    `Leaky` becomes `LIF`, `Synaptic` and `Alpha` become ours of the same names, `RLeaky` and
    `RSynaptic` become `OneToOne` with `all_to_all=False`, and `Recurrent` with `linear_features`,
    whose current is `[T, B, N]`. `SynapticDelay` becomes `Delay`.

        net = ns.convert(net)                      # an nn.Sequential with Leaky layers
        spikes, states = net(images, num_steps=25) # was: a loop of 25 calls of net(images)

    The other layers, the recurrent weights, and the decays and thresholds that are learned, are
    those of `module` itself, not copies; the new network begins at rest. Last neurons that return
    their states too (`output=True`, or without `init_hidden`) give them at every step, each
    `[T, B, *F]`, in the order of snnTorch: `(spikes, mems), states = net(...)` for a `Leaky`. A
    layer that stands in the network twice is run twice. In training, batch normalisation takes its
    statistics over all steps at once, where snnTorch takes them step by step; dropout and other
    layers that draw at random draw for every step, as there. Hooks on neurons are not carried over.

    Spikes are equal bit for bit wherever the layers between give the same bits for a larger batch,
    except those of a `Recurrent`. It adds up `beta * mem + (input + (weight @ spikes + bias))`, the
    product in an order of its own, where snnTorch has `(beta * mem + input) + (weight @ spikes +
    bias)`. Membranes differ in their last bits, and a spike where one comes that close to the
    threshold, after which the neurons that it reaches may go another way.

    Args:
        module: such neurons, or an `nn.Sequential` of them and of layers without memory, which may
            be nested. A subclass is converted if it overrides nothing that its base computes with.
        surrogate: for every converted layer, in place of its own `spike_grad`: a name, an object of
            `neurospike.surrogate`, or the derivative as a function of u.

    Raises:
        TypeError: another neuron of snnTorch; a module that steps neurons in a `forward` of its
            own, which has to be rewritten with `LIF.from_snntorch`.
        ValueError: neurons with an option that a fused layer does not have, such as recurrence by
            convolution, which is named, or neurons that stand in the network twice.
    """
    converted = _Conversion(surrogate).of(module, "", last=True)
    if not isinstance(converted, Converted):
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


class _TracedRecurrent(Recurrent):
    """Last neurons, dense weights between them, that give their states at every step, too."""

    def forward(self, current: Tensor, state: Any = None, **options: Any) -> tuple[Any, ...]:
        """Return `((spikes, *traces), state)`."""
        spikes, state, traces = super().forward(current, state, return_trace=True, **options)
        return (spikes, *traces), state


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


def _from_others(neurons: Any, name: str, last: bool, surrogate: Replacement) -> Any:
    """Return the fused layer of neurons of snnTorch that have more states than a membrane."""
    check_options(neurons)
    if not getattr(neurons, "reset_delay", True) and neurons.reset_mechanism != "none":
        raise ValueError(
            f"this {name} has reset_delay=False, which the fused layer does not have; leave it "
            "out, or keep the layer in snnTorch"
        )
    if getattr(neurons, "all_to_all", False):
        return _from_dense(neurons, name, last, surrogate)
    ours, traced, parameters = _KINDS[name]
    return _with_states(traced if last else ours, neurons, parameters, surrogate)


def _with_states(
    kind: type[Spiking], neurons: Any, parameters: dict[str, str], surrogate: Replacement
) -> Spiking:
    """Return a layer of class `kind` with the parameters of `neurons` by their names there."""
    values = {}
    for key, attribute in parameters.items():
        value = getattr(neurons, attribute)
        is_decay = key in ("alpha", "beta") and not isinstance(value, nn.Parameter)
        values[key] = value.clamp(0, 1) if is_decay else value
    layer = kind(
        **values,
        reset=neurons.reset_mechanism,
        surrogate=surrogate_within(neurons) if surrogate is None else surrogate,
        bound_gradient="clamp",
    )
    return layer.train(neurons.training)


def _from_dense(neurons: Any, name: str, last: bool, surrogate: Replacement) -> Recurrent:
    """Return the fused layer of neurons that all act on each other, its weights theirs."""
    dense = _dense_weights(neurons, name)
    neuron: LIF | Spiking
    if name == "RSynaptic":
        neuron = _with_states(Synaptic, neurons, _DECAYS, surrogate)
    elif neurons.reset_mechanism == "zero":  # which, unlike Leaky's, takes the current away too
        neuron = lif_with(LIF, neurons, surrogate, neuron=Neuron(zoo.lif_cleared))
    else:
        neuron = lif_with(LIF, neurons, surrogate, reset=neurons.reset_mechanism)
    with torch.device("meta"):  # draws no weights, as they are replaced
        layer = (_TracedRecurrent if last else Recurrent)(neuron, dense.out_features)
    layer.weight, layer.bias = dense.weight, dense.bias
    return layer.train(neurons.training)


def _dense_weights(neurons: Any, name: str) -> Any:
    """Return the linear layer by which spikes come back; raise ValueError for anything else."""
    if neurons.conv2d_channels:
        raise ValueError(
            f"this {name} has conv2d_channels={neurons.conv2d_channels}: its spikes come back "
            "through a convolution, which the fused layer does not have; use linear_features, or "
            "keep the layer in snnTorch"
        )
    found = neurons.recurrent
    is_plain = (
        type(found) is nn.Linear
        and found.in_features == found.out_features
        and isinstance(found.weight, nn.Parameter)
        and not (found._forward_pre_hooks or found._forward_hooks)
    )
    if not is_plain:
        raise ValueError(
            f"this {name} has the recurrent layer {found!r}, whose weights are not simply those of "
            "a square nn.Linear without hooks and parametrisations, as the fused layer's; make "
            "them so, or keep the layer in snnTorch"
        )
    return found


def _is_delay(module: nn.Module) -> bool:
    """True for a `SynapticDelay` of a snnTorch that has it: its main branch, later than 1.0.0."""
    base = getattr(sys.modules.get("snntorch"), "SynapticDelay", None)
    return base is not None and type(module) is base


def _from_delay(theirs: Any) -> Delay:
    """Return the fused layer; at a whole number of steps theirs takes a slope of both sides."""
    return Delay(
        tuple(theirs.delay.shape),
        theirs.max_delay,
        theirs.delay,
        learn=False,
        kernel=theirs.kernel,
        sigma=theirs.sigma if theirs.kernel == "gaussian" else None,
    ).train(theirs.training)


class _Conversion:
    """One call of `convert`: the surrogate asked for, and where each layer was met."""

    def __init__(self, surrogate: Replacement) -> None:
        self.surrogate = surrogate
        self.met: dict[int, str] = {}

    def of(self, module: nn.Module, path: str, last: bool) -> nn.Module:
        """Return what stands for `module` in the new network."""
        if kind := kind_of(module):
            return self.neurons(module, kind, path, last)
        if _is_delay(module):
            self.meet(module, "SynapticDelay", path)
            return _from_delay(module)
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
            first = getattr(module, "batch_first", False)
            return Sequential(OrderedDict(children), batch_first=first).train(module.training)
        for name, inner in module.named_modules():
            if library_of(inner) == "snntorch":
                where = ".".join(part for part in (path, name) if part) or "the module"
                inside = (
                    f" inside a {type(module).__name__}, whose forward steps it" if name else ""
                )
                raise TypeError(f"cannot convert {where}, {refusal(inner, inside)}")
        return module

    def meet(self, theirs: nn.Module, kind: str, path: str) -> None:
        """Raise ValueError for a layer with a state that stands in the network twice."""
        before = self.met.setdefault(id(theirs), path)
        if before != path:
            raise ValueError(
                f"layers {before} and {path} are one and the same {kind}, which keeps one state "
                f"for both places; fused layers cannot share it: make a {kind} for each place"
            )

    def neurons(self, theirs: Any, kind: str, path: str, last: bool) -> LIF | Spiking | Recurrent:
        """Return the fused layer of neurons of snnTorch's class `kind`."""
        self.meet(theirs, kind, path)
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
