"""The steps of an output `[T, B, *F]` that belong to each sample, where samples have lengths.

Sums, means and maxima are those of a sample that is read on its own. Of a sample of no steps they
are 0. Without lengths every step counts, and torch computes it as ever.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurospike.ops.arguments import check_lengths, refuse_ragged

Lengths = Tensor | Sequence[int] | None


def check_output(name: str, output: Tensor) -> None:
    """Raise TypeError or ValueError unless an output is floating-point `[T, B, C]`, T at least 1.

    name: what the caller calls it.
    """
    refuse_ragged(name, output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {found}: use .float()")
    if output.ndim != 3 or not len(output):
        raise ValueError(
            f"{name} must be [T, B, C] with at least one step, got shape {tuple(output.shape)}"
        )


def lengths_of(output: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Return the lengths `[B, 1, ..]`, one axis for each of a step of the output, 0 to T."""
    own = check_lengths(lengths, output, -1).clamp(0, output.shape[0])
    return own.view(-1, *(1,) * (output.dim() - 2))


def within(output: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Return which steps belong to each sample, `[T, B, 1, ..]`."""
    own = lengths_of(output, lengths)
    steps = torch.arange(output.shape[0], device=output.device)
    return steps.view(-1, *(1,) * own.dim()) < own


def total(output: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
    """Return the sum over a sample's steps, `[B, *F]`."""
    if lengths is not None:
        output = torch.where(within(output, lengths), output, 0.0)
    return output.sum(0, dtype=dtype)


def mean(output: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
    """Return the mean over a sample's steps."""
    if lengths is None:
        return output.mean(0, dtype=dtype)
    return total(output, lengths, dtype) / lengths_of(output, lengths).clamp(min=1)


def greatest(output: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
    """Return the maximum over a sample's steps."""
    if lengths is None:
        return output.amax(0).to(dtype)
    # Not of all steps: a trace stays as it ends, and equal maxima share their gradient.
    found = torch.where(within(output, lengths), output, -torch.inf).amax(0)
    return torch.where(lengths_of(output, lengths) > 0, found, 0.0).to(dtype)


def last(output: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
    """Return what there is at a sample's last step."""
    if lengths is None:
        return output[-1].to(dtype)
    own = lengths_of(output, lengths)
    at = (own - 1).clamp(min=0).expand(output.shape[1:])
    found = output.gather(0, at.unsqueeze(0)).squeeze(0)
    return torch.where(own > 0, found, 0.0).to(dtype)
