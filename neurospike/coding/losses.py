"""Readouts and losses of the field, as plain functions of what the output neurons did.

A readout makes scores `[B, C]` of the output over time `[T, B, C]`: membranes of neurons that never
fire, or spikes. A loss is the mean over a batch, of the output over time or of scores. All are
computed for every step at once; none loops over T. Spikes and membranes of 16-bit formats are added
up in float32, and scores are float32: above 256 steps those formats cannot tell counts or times
apart. float64 stays float64.

With `lengths`, int64 `[B]` as of `neurospike.lif`, a sample's score and its part of a loss are
those of its own steps alone, as if it were read on its own; a sample of no steps scores 0.

Labels are integers `[B]`, 0 to C - 1; a sample whose label is -100 does not count, as of torch's
`cross_entropy`. An output that is not floating-point `[T, B, C]` of at least one step, and labels
of another kind or shape, are refused with TypeError or ValueError. So are labels that are no class,
where looking at them makes nobody wait: on the CPU, outside of torch.compile.

Sources: J. K. Eshraghian et al., Proc. IEEE 111(9), 2023, section IV (rate, count, membrane and
latency objectives); H. Mostafa, IEEE TNNLS 29(7), 2018 (cross-entropy on spike times); F. Zenke and
T. P. Vogels, Neural Computation 33(4), 2021 (bounds on firing rates, max-over-time readout).
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from neurospike.ops.arguments import INTEGERS
from neurospike.ops.formats import state_dtype
from neurospike.ops.watching import is_watched

from . import own_steps
from .intensities import extremes
from .own_steps import Lengths
from .rates import rates_of

Loss = Callable[..., Tensor]  # of the output over time, labels and, where they are given, lengths=

# With fewer classes torch's softmax on a CPU is faster over an axis that is not the last: over the
# last one it takes three to five times as long for 10 classes, but a tenth of the time for 1000.
SHORT = 16
IGNORED = -100  # a label of torch's cross_entropy: the sample does not count

# Readouts: output over time [T, B, C] -> scores [B, C]


def mean_membrane(trace: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the membranes `[T, B, C]` averaged over time, `[B, C]`."""
    return own_steps.mean(trace, lengths, _scores("trace", trace))


def max_membrane(trace: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the highest membrane that each neuron reached, `[B, C]` of `[T, B, C]`."""
    return own_steps.greatest(trace, lengths, _scores("trace", trace))


def spike_count(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the number of spikes (0 or 1) over time, `[B, C]` of `[T, B, C]`."""
    return own_steps.total(spikes, lengths, _scores("spikes", spikes))


def first_spike(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Return minus the step of the first spike, counted from 0; minus T if there is none.

    Shapes: spikes (0 or 1) `[T, B, C]` to `[B, C]`. T is a sample's length where it has one. The
    first step is the number of steps up to which no spike was, `sum_t prod_{k<=t} (1 - s_k)`, so a
    gradient reaches every spike that decides it.
    """
    scores = _scores("spikes", spikes)
    if lengths is not None:
        # Steps beyond a sample's end may hold NaN, whose gradient would be NaN even times 0.
        spikes = torch.where(own_steps.within(spikes, lengths), spikes, 0.0)
    return -own_steps.total(_none_yet(spikes), lengths, scores)


def _none_yet(spikes: Tensor) -> Tensor:
    """Return 1 for each step up to which there was no spike, 0 for the others.

    That is the product of 1 - s of the steps so far, through which gradients flow. The gradient of
    torch's `cumprod` looks for zeros, which waits for a GPU and cannot be recorded as a CUDA graph;
    so where a gradient is wanted, products of 1, 2, 4, ... neighbours are multiplied.
    """
    if torch.compiler.is_exporting():  # ONNX has no such product, and needs no gradient
        return (spikes.cumsum(0) == 0).to(spikes.dtype)
    factors = 1 - spikes
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
    """Return the cross-entropy of the membranes `[T, B, C]` at every step, summed over steps."""
    _scores("trace", trace)
    labels = _labels_of(trace, labels)
    if lengths is None:
        return _every_step(trace, labels)
    return _mean(_own_steps(trace, labels, lengths).sum(0), labels)


def cross_entropy_max_membrane(trace: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the cross-entropy of each neuron's highest membrane, of `[T, B, C]`."""
    return _of_scores(max_membrane(trace, lengths), labels)


def cross_entropy_count(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the cross-entropy of the spike counts, of spikes `[T, B, C]`."""
    return _of_scores(spike_count(spikes, lengths), labels)


def cross_entropy_rate(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the cross-entropy of the spikes `[T, B, C]` at every step, averaged over steps.

    It is least where the label's neuron fires at each step, and the others never.
    """
    _scores("spikes", spikes)
    labels = _labels_of(spikes, labels)
    if lengths is None:
        return _every_step(spikes, labels) / len(spikes)
    each = _own_steps(spikes, labels, lengths)
    return _mean(own_steps.mean(each, lengths, each.dtype), labels)


def mse_count(
    spikes: Tensor,
    labels: Tensor,
    right: float = 0.8,
    wrong: float = 0.2,
    lengths: Lengths = None,
) -> Tensor:
    """Return the mean squared error of the firing rates, of spikes `[T, B, C]`, from their targets.

    right, wrong: spikes per step wanted of the label's neuron, and of the others, 0 to 1.
    """
    for name, value in (("right", right), ("wrong", wrong)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a rate in spikes per step, 0 to 1, got {value!r}")
    rates = own_steps.mean(spikes, lengths, _scores("spikes", spikes))
    labels = _labels_of(rates, labels)
    counted = labels != IGNORED
    is_label = F.one_hot(torch.where(counted, labels, 0), rates.shape[1]).bool()
    wanted = torch.where(is_label, right, wrong).to(rates.dtype)
    each = F.mse_loss(rates, wanted, reduction="none").mean(1)
    return _mean(torch.where(counted, each, 0.0), labels)


def cross_entropy_first_spike(spikes: Tensor, labels: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the cross-entropy of minus the first spikes' steps, of spikes `[T, B, C]`.

    It is least where the label's neuron fires first.
    """
    return _of_scores(first_spike(spikes, lengths), labels)


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
    """Return how far neurons are from firing at a rate between two bounds: 0 if all are within.

    activity: spikes `[T, B, *F]` by layer, T at least 1, such as the `spikes` of `ns.record`. low,
    high: spikes per step. Each neuron's rate is its mean over time and batch (with lengths, over
    all steps that belong to a sample); the penalty is the squared distance from the bounds,
    averaged over neurons and summed over layers. Raises TypeError where `activity` is no mapping,
    ValueError where it has no layer, or no step.
    """
    if not isinstance(activity, Mapping):
        raise TypeError(
            "rate_penalty needs the spikes [T, B, *F] by layer, such as ns.record(net, x).spikes, "
            f"got {type(activity).__name__}"
        )
    penalties = []
    for name, spikes in activity.items():
        if not len(spikes):
            raise ValueError(
                f"rate_penalty needs spikes [T, B, *F] of at least one step, got {name!r} of shape "
                f"{tuple(spikes.shape)}"
            )
        rates = rates_of(spikes, lengths)
        penalties.append(((low - rates).relu() ** 2 + (rates - high).relu() ** 2).mean())
    if not penalties:
        raise ValueError("rate_penalty needs the spikes of at least one layer, got none")
    return torch.stack(penalties).sum()


def _every_step(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy averaged over the batch and summed over steps."""
    output = output.to(state_dtype(output.dtype))
    return len(output) * _cross_entropy(output, labels, "mean")


def _own_steps(output: Tensor, labels: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Cross-entropy at every step of each sample, `[T, B]`; 0 where a step is not the sample's."""
    output = output.to(state_dtype(output.dtype))
    is_own = own_steps.within(output, lengths)
    output = torch.where(is_own, output, 0.0)  # beyond a sample's end may be NaN
    each = _cross_entropy(output, labels, "none").view(output.shape[:2])
    return torch.where(is_own.squeeze(2), each, 0.0)


def _cross_entropy(output: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Return torch's cross-entropy of every step of `output` `[T, B, C]`, one row or `[T, B]`."""
    steps, _, classes = output.shape
    if classes < SHORT and output.device.type == "cpu":
        turned, wanted = output.transpose(1, 2), labels.expand(steps, -1)
        return F.cross_entropy(turned, wanted, reduction=reduction)
    return F.cross_entropy(output.flatten(0, 1), labels.repeat(steps), reduction=reduction)


def _of_scores(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, _labels_of(scores, labels))


def _mean(each: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of losses `[B]` over the labels that count; losses of the others are 0."""
    return each.sum() / (labels != IGNORED).sum()


def _scores(name: str, output: Tensor) -> torch.dtype:
    """Return the number format of scores, once the output is known to be a valid `[T, B, C]`."""
    own_steps.check_output(name, output)
    return state_dtype(output.dtype)


def _labels_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Return labels as int64 `[B]`; TypeError or ValueError unless they fit scores.

    scores: `[B, C]`, or an output over time `[T, B, C]`.
    """
    batch, classes = scores.shape[-2:]
    integers = isinstance(labels, Tensor) and labels.dtype in INTEGERS
    if not integers:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"labels must be a tensor of integers [B], the number of each sample's class, got "
            f"{found}; convert it with torch.as_tensor(labels, dtype=torch.int64)"
        )
    if labels.shape != (batch,):
        raise ValueError(
            f"labels must be [B], one for each of the {batch} samples of the output [T, B, C], got "
            f"the shape {tuple(labels.shape)}"
        )
    if labels.device != scores.device:
        raise ValueError(
            f"labels are on {labels.device}, the output on {scores.device}; move them with "
            f".to({str(scores.device)!r})"
        )
    labels = labels.to(torch.int64)
    if labels.device.type == "cpu" and not is_watched((labels,)):
        _check_classes(labels, classes)
    return labels


def _check_classes(labels: Tensor, classes: int) -> None:
    """Raise ValueError for a label that is neither a class nor to be ignored; name the sample."""
    low, high = extremes(labels)
    if low >= 0 and high < classes:
        return
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if not bool(wrong.any()):
        return
    sample = int(wrong.nonzero()[0])
    raise ValueError(
        f"labels must be 0 to {classes - 1}, for {classes} classes, or {IGNORED} where a sample "
        f"does not count, got {int(labels[sample])} for sample {sample}"
    )
