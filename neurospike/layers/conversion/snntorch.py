"""snnTorch for `convert`: its neurons, with their states, as fused layers.

snnTorch steps a network through time in Python, with one or more kernel launches per operator and
step. The layers made here compute the same over the whole sequence. `layers/leaky.py` reads
`Leaky`, also for `LIF.from_snntorch`. snnTorch is never imported here.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.layers.delay import Delay
from neurospike.layers.leaky import (
    Replacement,
    check_options,
    from_leaky,
    kind_of,
    lif_with,
    refusal,
    surrogate_within,
)
from neurospike.layers.lif import LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spiking import Spiking
from neurospike.layers.zoo import Alpha, OneToOne, Synaptic
from neurospike.neurons import zoo
from neurospike.neurons.rule import Neuron

from .library import Library


class TracedLIF(LIF):
    """An `LIF` as last layer that returns its membrane at every step beside its spikes."""

    def forward(  # type: ignore[override]
        self, current: Tensor, mem: Tensor | None = None, **options: Any
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return `((spikes, trace), mem)`; options are `num_steps` and `lengths`."""
        spikes, mem, trace = super().forward(current, mem, return_trace=True, **options)
        return (spikes, trace), mem


class _Traced(Spiking):
    """Neurons as last layer that return their states at every step beside their spikes."""

    def forward(
        self, current: Tensor, state: Any = None, **options: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return `((spikes, *traces), state)`; options are `num_steps` and `lengths`."""
        spikes, state, traces = super().forward(current, state, return_trace=True, **options)
        shown = (one for name, one in zip(self.states, traces) if name != "spike")
        return (spikes, *shown), state


class TracedRecurrent(Recurrent):
    """Recurrent neurons as last layer that return their states at every step, too."""

    def forward(self, current: Tensor, state: Any = None, **options: Any) -> tuple[Any, ...]:
        """Return `((spikes, *traces), state)`."""
        spikes, state, traces = super().forward(current, state, return_trace=True, **options)
        return (spikes, *traces), state


class TracedSynaptic(_Traced, Synaptic):
    """Synaptic neurons that return their states at every step, as snnTorch's `Synaptic` does."""


class TracedAlpha(_Traced, Alpha):
    """Alpha neurons that return their states at every step, as snnTorch's `Alpha` does."""


class TracedOneToOne(_Traced, OneToOne):
    """OneToOne neurons that return their states at every step, as snnTorch's `RLeaky` does."""


# For neurons of snnTorch: our layer, our layer if it is the last one, and for each parameter of
# ours the name of theirs.
_DECAYS = {"alpha": "alpha", "beta": "beta", "threshold": "threshold"}
_KINDS: dict[str, tuple[type[Spiking], type[Spiking], dict[str, str]]] = {
    "Synaptic": (Synaptic, TracedSynaptic, _DECAYS),
    "Alpha": (Alpha, TracedAlpha, _DECAYS),
    "RLeaky": (
        OneToOne,
        TracedOneToOne,
        {"beta": "beta", "threshold": "threshold", "weight": "V"},
    ),
    "RSynaptic": (OneToOne, TracedOneToOne, {**_DECAYS, "weight": "V"}),
}


def _fused(neurons: Any, name: str, last: bool, surrogate: Replacement) -> Any:
    """Return the fused layer of neurons of snnTorch's class `name`."""
    if name == "Leaky":
        return from_leaky(TracedLIF if last else LIF, neurons, surrogate, "auto")
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
    """Return the fused layer of neurons with all-to-all recurrence, which shares their weights."""
    dense = _dense_weights(neurons, name)
    neuron: LIF | Spiking
    if name == "RSynaptic":
        neuron = _with_states(Synaptic, neurons, _DECAYS, surrogate)
    elif neurons.reset_mechanism == "zero":  # unlike Leaky's, it clears the step's current, too
        neuron = lif_with(LIF, neurons, surrogate, neuron=Neuron(zoo.lif_cleared))
    else:
        neuron = lif_with(LIF, neurons, surrogate, reset=neurons.reset_mechanism)
    with torch.device("meta"):  # so that no weights are drawn, which are replaced below
        layer = (TracedRecurrent if last else Recurrent)(neuron, dense.out_features)
    layer.weight, layer.bias = dense.weight, dense.bias
    return layer.train(neurons.training)


def _dense_weights(neurons: Any, name: str) -> Any:
    """Return the linear layer that feeds spikes back; raise ValueError for anything else."""
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


def _from_delay(theirs: Any) -> Delay | None:
    """Return the fused layer of a `SynapticDelay`, which snnTorch's main branch has after 1.0.0.

    At a whole number of steps, theirs computes the delay's gradient from both sides.
    """
    base = getattr(sys.modules.get("snntorch"), "SynapticDelay", None)
    if base is None or type(theirs) is not base:
        return None
    return Delay(
        tuple(theirs.delay.shape),
        theirs.max_delay,
        theirs.delay,
        learn=False,
        kernel=theirs.kernel,
        sigma=theirs.sigma if theirs.kernel == "gaussian" else None,
    ).train(theirs.training)


def _returns_states(neurons: Any) -> bool:
    return bool(neurons.output or not neurons.init_hidden)


LIBRARY = Library(
    name="snntorch",
    kind_of=kind_of,
    fused=_fused,
    refusal=refusal,
    other=_from_delay,
    is_shown=_returns_states,
)
