"""Read an answer out of spikes or membranes over time.

The inverse of `neurospike.encoding`: every function takes what the output neurons did, `[T, B, C]`,
and returns scores `[B, C]` of which the greatest is the answer. Gradients flow back to every one
of them, so each can be trained through. Scores are float32, or float64 of float64: the 16-bit
formats, in which spikes come out of autocast, cannot tell counts or times above 256 apart.

What is not floating-point `[T, B, C]` of at least one step is refused with TypeError or ValueError.

With `lengths`, int64 `[B]` as of `neurospike.lif`, a sample's scores are those of its own steps
alone, as if it were read on its own; a sample of no steps scores 0.

Sources: S. Thorpe, A. Delorme, R. van Rullen, "Spike-based strategies for rapid processing", Neural
Networks 14, 2001 (the first spike decides); A. P. Georgopoulos et al., Science 233, 1986 (many
neurons vote for one thing); J. K. Eshraghian et al., Proc. IEEE 111(9), 2023 (counts, membranes).
"""

import torch
from torch import Tensor

from neurospike.ops.formats import state_dtype

from . import own_steps
from .own_steps import Lengths


def counts(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Return the number of spikes over time: `[T, B, C]` to `[B, C]`."""
    own_steps.check_output("spikes", spikes)
    return own_steps.total(spikes, lengths, state_dtype(spikes.dtype))


def first_spike(spikes: Tensor, lengths: Lengths = None) -> Tensor:
    """Return how many steps were left at the first spike: the earlier, the greater.

    Shapes: spikes (0 or 1) `[T, B, C]` to `[B, C]`: `T - t` for a first spike at step t (counted
    from 0), and 0 for a neuron that stays silent. The gradient of a step is `T - t` up to and with
    the first spike, 0 after it: a spike there would have changed the score by so much. T is a
    sample's length where it has one.
    """
    own_steps.check_output("spikes", spikes)
    steps = len(spikes)
    scores = state_dtype(spikes.dtype)
    left = torch.arange(steps, 0, -1, dtype=scores, device=spikes.device).view(-1, 1, 1)
    if lengths is not None:
        own = own_steps.lengths_of(spikes, lengths)
        left = (left - (steps - own)).clamp(min=0)
        spikes = torch.where(left > 0, spikes, 0.0)
    fired = spikes.detach().ne(0).to(torch.int32)
    none_before = fired.cumsum(0).sub_(fired) == 0
    return (spikes * none_before * left).sum(0)


def membrane(trace: Tensor, how: str = "mean", lengths: Lengths = None) -> Tensor:
    """Return the membranes' `"mean"` over time, their `"max"`, or the `"last"`.

    Shapes: trace `[T, B, C]` to `[B, C]`. Raises ValueError for another `how`.
    """
    own_steps.check_output("trace", trace)
    scores = state_dtype(trace.dtype)
    if how == "mean":
        return own_steps.mean(trace, lengths, scores)
    if how == "max":
        return own_steps.greatest(trace, lengths, scores)
    if how == "last":
        return own_steps.last(trace, lengths, scores)
    raise ValueError(f"membrane got how={how!r}; use 'mean', 'max' or 'last'")


def population(spikes: Tensor, classes: int, lengths: Lengths = None) -> Tensor:
    """Return the mean spike count of the neurons that stand for each class.

    Shapes: spikes `[T, B, classes * K]` to `[B, classes]`; neurons `c * K` to `c * K + K - 1` stand
    for class c. Raises ValueError if they cannot be shared out evenly.
    """
    own_steps.check_output("spikes", spikes)
    if classes < 1 or spikes.shape[2] % classes:
        raise ValueError(
            f"population cannot share {spikes.shape[2]} neurons out among {classes} classes: make "
            "their number a multiple of the classes"
        )
    return counts(spikes, lengths).unflatten(1, (classes, -1)).mean(2)
