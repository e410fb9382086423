"""Readouts and losses of the field, as plain functions of what the output neurons did.

A readout makes scores `[B, C]` of the output over time `[T, B, C]`: membranes of neurons that never
fire, or spikes. A loss is the mean over a batch, of the output over time or of scores. All are
computed for every step at once; none loops over T. With `lengths`, how many of the T steps belong
to each sample, only those count; of a sample without any, the output at rest does. Spikes and
membranes of 16-bit formats are added up in float32, and scores are float32: above 256 steps those
formats cannot tell counts or times apart. float64 stays float64.

Sources: J. K. Eshraghian et al., Proc. IEEE 111(9), 2023, section IV (rate, count, membrane and
latency objectives); H. Mostafa, IEEE TNNLS 29(7), 2018 (cross-entropy on spike times); F. Zenke and
T. P. Vogels, Neural Computation 33(4), 2021 (bounds on firing rates, max-over-time readout).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from neurospike.ops.arguments import refuse_ragged
from neurospike.ops.scan import state_dtype

Loss = Callable[..., Tensor]

# Readouts: output over time [T, B, C], lengths int64 [B] -> scores [B, C]


def mean_membrane(trace: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The membrane `[T, B, C]` averaged over time."""
    if lengths is None:
        return trace.mean(0, dtype=_scores(trace))
    total = _own_steps(trace, lengths, 0.0).sum(0, dtype=_scores(trace))
    return total / _own_counts(lengths, trace)[:, None]


def max_membrane(trace: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The highest membrane that each neuron reached."""
    # Beyond its end a membrane stays as it was, and would draw a part of the gradient there.
    own = trace if lengths is None else _own_steps(trace, lengths, -math.inf)
    return own.amax(0).to(_scores(trace))


def spike_count(spikes: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The number of spikes (0 or 1) `[T, B, C]` over time."""
    own = spikes if lengths is None else _own_steps(spikes, lengths, 0.0)
    return own.sum(0, dtype=_scores(spikes))


def first_spike(spikes: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Minus the step of the first spike, counted from 0; minus T if there is none.

    The first step is the number of steps up to which no spike was, `sum_t prod_{k<=t} (1 - s_k)`,
    so a gradient reaches every spike that decides it. With lengths T is the sample's own.
    """
    silent = (1 - spikes).cumprod(0)
    own = silent if lengths is None else _own_steps(silent, lengths, 0.0)
    return -own.sum(0, dtype=_scores(spikes))


READOUTS: dict[str, Callable[..., Tensor]] = {
    "membrane": mean_membrane,
    "max_membrane": max_membrane,
    "spikes": spike_count,
    "first_spike": first_spike,
}
SPIKING_READOUTS = ("spikes", "first_spike")  # the others read neurons that never fire


# Losses on the output over time [T, B, C], labels int64 [B] and lengths int64 [B]; a scalar


def cross_entropy_membrane(trace: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Cross-entropy of the membranes at every step, summed over steps."""
    if lengths is None:
        return len(trace) * _every_step(trace, labels)
    return _summed_steps(trace, labels, lengths).mean()


def cross_entropy_max_membrane(
    trace: Tensor, labels: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each neuron's highest membrane."""
    return F.cross_entropy(max_membrane(trace, lengths), labels)


def cross_entropy_count(spikes: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Cross-entropy of the spike counts."""
    return F.cross_entropy(spike_count(spikes, lengths), labels)


def cross_entropy_rate(spikes: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Cross-entropy of the spikes at every step, averaged over steps: fire at each, or never."""
    if lengths is None:
        return _every_step(spikes, labels)
    return (_summed_steps(spikes, labels, lengths) / _own_counts(lengths, spikes)).mean()


def mse_count(
    spikes: Tensor,
    labels: Tensor,
    right: float = 0.8,
    wrong: float = 0.2,
    lengths: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the firing rates from their targets.

    right, wrong: spikes a step wanted of the label's neuron, and of the others, 0 to 1.
    """
    rates = mean_membrane(spikes, lengths)
    wanted = torch.where(F.one_hot(labels, rates.shape[1]).bool(), right, wrong)
    return F.mse_loss(rates, wanted.to(rates.dtype))


def cross_entropy_first_spike(
    spikes: Tensor, labels: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Cross-entropy of minus the first spikes' steps: the label's neuron fires first."""
    return F.cross_entropy(first_spike(spikes, lengths), labels)


MEMBRANE_LOSSES: dict[str, Loss] = {
    "cross_entropy_membrane": cross_entropy_membrane,
    "cross_entropy_max_membrane": cross_entropy_max_membrane,
}
SPIKE_LOSSES: dict[str, Loss] = {
    "cross_entropy_count": cross_entropy_count,
    "cross_entropy_rate": cross_entropy_rate,
    "mse_count": mse_count,
    "cross_entropy_first_spike": cross_entropy_first_spike,
}
LOSSES: dict[str, Loss] = MEMBRANE_LOSSES | SPIKE_LOSSES


def rate_penalty(
    activity: Mapping[str, Tensor],
    low: float = 0.01,
    high: float = 0.3,
    lengths: Tensor | None = None,
) -> Tensor:
    """How far neurons are from firing at a rate between two bounds: 0 if all are within.

    activity: spikes `[T, B, *F]` by layer. low, high: spikes a step. lengths: how many steps belong
    to each sample, int64 `[B]`. Each neuron's rate is its mean over time and batch; the penalty is
    the squared distance from the bounds, averaged over neurons and summed over layers.
    """
    penalties = []
    for spikes in activity.values():
        rates = spikes.mean((0, 1), dtype=_scores(spikes))
        if lengths is not None:  # beyond its end no neuron fires
            rates = rates * (spikes.shape[0] * spikes.shape[1] / _own_counts(lengths, spikes).sum())
        penalties.append(((low - rates).relu() ** 2 + (rates - high).relu() ** 2).mean())
    if not penalties:
        raise ValueError("rate_penalty needs the spikes of at least one layer, got none")
    return torch.stack(penalties).sum()


def _every_step(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy averaged over the batch and over steps."""
    output = output.to(_scores(output))
    # Classes not last: torch's softmax over a short last axis takes five times as long on a CPU.
    return F.cross_entropy(output.transpose(1, 2), labels.expand(output.shape[0], -1))


def _summed_steps(output: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of each sample `[B]`, summed over its own steps."""
    output = output.to(_scores(output))
    every = F.cross_entropy(
        output.transpose(1, 2), labels.expand(output.shape[0], -1), reduction="none"
    )
    return _own_steps(every, lengths, 0.0).sum(0)


def _own_counts(lengths: Tensor, output: Tensor) -> Tensor:
    """How many steps count of each sample `[B]`: at least one, in which the output is at rest."""
    return lengths.to(output.device).clamp_min(1)


def _own_steps(output: Tensor, lengths: Tensor, other: float) -> Tensor:
    """Return the output `[T, B, ...]` with `other` in the steps beyond each sample's end."""
    steps = torch.arange(output.shape[0], device=output.device)
    own = steps[:, None] < _own_counts(lengths, output)
    return torch.where(own.view(*own.shape, *[1] * (output.ndim - 2)), output, other)


def _scores(output: Tensor) -> torch.dtype:
    """Return the number format of scores."""
    refuse_ragged("the output over time", output)
    return state_dtype(output.dtype)
