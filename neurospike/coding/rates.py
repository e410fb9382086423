"""How often neurons fire: over all steps and samples, of each neuron on its own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from neurospike.ops.arguments import refuse_ragged
from neurospike.ops.formats import state_dtype

from . import own_steps
from .own_steps import Lengths


def spike_rates(seen: Any, lengths: Lengths = None) -> dict[str, Tensor]:
    """Return how often each neuron fired per step, `[*F]` of each layer, with gradients.

        rates = ns.spike_rates(ns.record(net, x))
        {name: float((rate == 0).float().mean()) for name, rate in rates.items()}  # dead neurons

    Args:
        seen: what `ns.record` or the `record` of a ready network returned, or spikes
            `[T, B, *F]` by layer.
        lengths: how many of the steps belong to each sample, `[B]`, of spikes by layer; a recording
            has its own. Only these count.

    Returns:
        Means over time and batch, from 0 to 1, float32, or float64 of float64 spikes.

    Raises:
        TypeError: neither a recording nor a mapping.
    """
    spikes = seen if isinstance(seen, Mapping) else getattr(seen, "spikes", None)
    if not isinstance(spikes, Mapping):
        raise TypeError(
            "spike_rates needs what ns.record returned, or spikes [T, B, *F] by layer, got "
            f"{type(seen).__name__}"
        )
    own = getattr(seen, "lengths", None) if lengths is None else lengths
    return {name: rates_of(one, own) for name, one in spikes.items()}


def rates_of(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Return spikes per step `[*F]` of `[T, B, *F]`, of each sample's own steps."""
    refuse_ragged("spikes", spikes)
    scores = state_dtype(spikes.dtype)
    if lengths is None:
        return spikes.mean((0, 1), dtype=scores)
    steps = own_steps.lengths_of(spikes, lengths).sum()
    return own_steps.total(spikes, lengths, scores).sum(0) / steps.clamp(min=1)
