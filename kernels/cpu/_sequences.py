"""How sequences lie in memory, and how they are passed to loops over time.

They lie by step, `[T, N]` with `N = B * F`, or by sample, `[B, T, F]`; a sequence that is the same
at all steps is one row. Outputs written past the caches should fill whole cache lines.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from neurospike.backend import buffers
from neurospike.kernels.cpu import _function

STREAMED = 4 << 20  # bytes from which an output is written past the caches
HELD = 32 << 20  # the same where a constant current leaves the caches to the output
ALIGNED = 16  # least alignment in bytes for stores past the caches
WHOLE = 2048  # bytes of a row from which the cache lines it shares with other rows matter little

Given = TypeVar("Given", Tensor, "Tensor | None")


def rows(tensor: Given, state: torch.dtype) -> Given:
    """Return a sequence `[T, ...]` contiguous in a format; one row if all steps share memory."""
    if tensor is None or (tensor.dtype == state and tensor.is_contiguous()):
        return tensor
    if tensor.numel() > 0 and tensor.stride(0) == 0:
        tensor = tensor[0]
        if tensor.dtype == state and tensor.is_contiguous():
            return tensor
    return buffers.empty(tensor.shape, state).copy_(tensor)


def by_samples(tensor: Given, state: torch.dtype, each: int | None = None) -> Given:
    """Return a sequence by sample in a format, or as `rows` does if all steps share memory.

    each: the stride between two samples, in numbers, that it must have; None for any.
    """
    if tensor is None or tensor.numel() == 0 or tensor.stride(0) == 0:
        return rows(tensor, state)
    if tensor.dtype == state and tensor[:, 0].is_contiguous() and each in (None, tensor.stride(1)):
        return tensor
    steps, batch, *shape = tensor.shape
    return buffers.empty((batch, steps, *shape), state).transpose(0, 1).copy_(tensor)


def strides_of(tensor: Tensor | None, dim: int, features: int) -> tuple[int, int]:
    """Return the strides of a sequence, in numbers, between two steps and between two samples.

    A tensor of `dim` axes is one row `[B, *F]` for all steps: its stride between steps is 0.
    """
    if tensor is None or tensor.dim() == dim:
        return 0, features
    return tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


NOT_PAST = (False, 0)  # what `past_of` returns for outputs that are written to the caches


def past_of(out: Tensor, least: int, samples: int) -> tuple[bool, int]:
    """Return whether an output is written past the caches, and its rows' alignment in bytes.

    The alignment is 0 if it is below `ALIGNED`. least: bytes from which the caches are bypassed.
    """
    if out.nbytes < least or out.numel() == 0:
        return NOT_PAST
    row = out.nbytes // (len(out) * (samples or 1))
    place = math.gcd(out.data_ptr(), row, _function.LINE)
    if place < _function.LINE and row < WHOLE:
        return NOT_PAST
    return True, place if place >= ALIGNED else 0
