"""Readouts and losses of the field, as plain functions of what the output neurons did.

A readout makes scores `[B, C]` of the output over time `[T, B, C]`: membranes of neurons that never
fire, or spikes. A loss is the mean over a batch, of the output over time or of scores. All are
computed for every step at once; none loops over T. Spikes and membranes of 16-bit formats are added
up in float32, and scores are float32: above 256 steps those formats cannot tell counts or times
apart. float64 stays float64.

With `lengths`, int64 `[B]` as of `neurospike.lif`, a sample's score and its part of a loss are
those of its own steps alone, as if it were read on its own; a sample of no steps scores 0.

Sources: J. K. Eshraghian et al., Proc. IEEE 111(9), 2023, section IV (rate, count, membrane and
latency objectives); H. Mostafa, IEEE TNNLS 29(7), 2018 (cross-entropy on spike times); F. Zenke and
T. P. Vogels, Neural Computation 33(4), 2021 (bounds on firing rates, max-over-time readout).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from neurospike.ops.arguments import refuse_ragged
from neurospike.ops.formats import state_dtype

from . import own_steps
from .own_steps import Lengths
from .rates import rates_of

Loss = Callable[..., Tensor]  # of the output over time, labels and, where they are given, lengths=

# So many classes that torch's softmax on a CPU takes no longer where they lie together than where
# they lie apart: of 10 it takes three to five times as long, of 1000 a tenth.
SHORT = 16

# Readouts: output over time [T, B, C] -> scores [B, C]


def mean_membrane(trace: Tensor, lengths: Lengths = None) -> Tensor:
    """The membrane `[T, B, C]` averaged over time."""
    return own_steps.mean(trace, lengths, _scores(trace))


def max_membrane(trace: Tensor, lengths: Lengths = None) -> Tensor:
    """The highest membrane that each neuron reached."""
    return own_steps.greatest(trace, lengths, _scores(trace))


def spike_count(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """The number of spikes (0 or 1) `[T, B, C]` over time."""
    return own_steps.total(spikes, lengths, _scores(spikes))


def first_spike(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Minus the step of the first spike, counted from 0; minus T, or its length, if there is none.

    The first step is the number of steps up to which no spike was, `sum_t prod_{k<=t} (1 - s_k)`,
    so a gradient reaches every spike that decides it.
    """
    scores = _scores(spikes)
    if lengths is not None:
        # What lies beyond may be anything, and 0 times NaN would be its gradient.
        spikes = torch.where(own_steps.within(spikes, lengths), spikes, 0.0)
    return -own_steps.total(_running_product(1 - spikes), lengths, scores)


def _running_product(factors: Tensor) -> Tensor:
    """Return the product of each step's factor and all before it, as `cumprod(0)` does.

    Its gradient looks for zeros in torch, for which a GPU is waited for, and which no CUDA graph
    records. So where one is asked for, products of 1, 2, 4, ... neighbours are multiplied.
    """
    if not factors.requires_grad or torch.compiler.is_compiling():
        return factors.cumprod(0)
    reach = 1
    while reach < len(factors):
        factors = torch.cat((factors[:reach], factors[reach:] * factors[:-reach]))
        reach *= 2
    return factors


READOUTS: dict[str, Callable[..., Tensor]] = {
    "membrane": mean_membrane,
    "max_membrane": max_membrane,
    "spikes": spike_count,
    "first_spike": first_spike,
}
SPIKING_READOUTS = ("spikes", "first_spike")  # the others read neurons that never fire


# Losses on the output over time [T, B, C] and labels int64 [B]; a scalar


def cross_entropy_membrane(trace: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Cross-entropy of the membranes at every step, summed over steps."""
    if lengths is None:
        return _every_step(trace, labels)
    return _own_steps(trace, labels, lengths).sum(0).mean()


def cross_entropy_max_membrane(trace: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Cross-entropy of each neuron's highest membrane."""
    return F.cross_entropy(max_membrane(trace, lengths), labels)


def cross_entropy_count(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Cross-entropy of the spike counts."""
    return F.cross_entropy(spike_count(spikes, lengths), labels)


def cross_entropy_rate(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Cross-entropy of the spikes at every step, averaged over steps: fire at each, or never."""
    if lengths is None:
        return _every_step(spikes, labels) / len(spikes)
    each = _own_steps(spikes, labels, lengths)
    return own_steps.mean(each, lengths, each.dtype).mean()


def mse_count(
    spikes: Tensor,
    labels: Tensor,
    right: float = 0.8,
    wrong: float = 0.2,
    lengths: Lengths = None,
) -> Tensor:
    """Mean squared error of the firing rates from their targets.

    right, wrong: spikes a step wanted of the label's neuron, and of the others, 0 to 1.
    """
    rates = own_steps.mean(spikes, lengths, _scores(spikes))
    wanted = torch.where(F.one_hot(labels, rates.shape[1]).bool(), right, wrong)
    return F.mse_loss(rates, wanted.to(rates.dtype))


def cross_entropy_first_spike(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
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
    lengths: Lengths = None,
) -> Tensor:
    """How far neurons are from firing at a rate between two bounds: 0 if all are within.

    activity: spikes `[T, B, *F]` by layer. low, high: spikes a step. Each neuron's rate is its
    mean over time and batch (with lengths, over all steps that belong to a sample); the penalty is
    the squared distance from the bounds, averaged over neurons and summed over layers.
    """
    penalties = []
    for spikes in activity.values():
        rates = rates_of(spikes, lengths)
        penalties.append(((low - rates).relu() ** 2 + (rates - high).relu() ** 2).mean())
    if not penalties:
        raise ValueError("rate_penalty needs the spikes of at least one layer, got none")
    return torch.stack(penalties).sum()


def _every_step(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy averaged over the batch and summed over steps."""
    output = output.to(_scores(output))
    return len(output) * _cross_entropy(output, labels, "mean")


def _own_steps(output: Tensor, labels: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Cross-entropy at every step of each sample, `[T, B]`; 0 where a step is not the sample's."""
    output = output.to(_scores(output))
    is_own = own_steps.within(output, lengths)
    output = torch.where(is_own, output, 0.0)  # what lies beyond may be anything
    each = _cross_entropy(output, labels, "none").view(output.shape[:2])
    return torch.where(is_own.squeeze(2), each, 0.0)


def _cross_entropy(output: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Return torch's cross-entropy of every step of `output` `[T, B, C]`, one row or `[T, B]`."""
    steps, _, classes = output.shape
    if classes < SHORT and output.device.type == "cpu":
        turned, wanted = output.transpose(1, 2), labels.expand(steps, -1)
        return F.cross_entropy(turned, wanted, reduction=reduction)
    return F.cross_entropy(output.flatten(0, 1), labels.repeat(steps), reduction=reduction)


def _scores(output: Tensor) -> torch.dtype:
    """Return the number format of scores."""
    refuse_ragged("the output over time", output)
    return state_dtype(output.dtype)
