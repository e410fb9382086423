"""How sequences lie in memory, and how they are handed to loops over time.

Steps in blocks, `[T, N]` with `N = B * F`, or by sample, `[B, T, F]`; one row for all steps that
are alike. What is written past the caches has to fill whole lines.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from neurospike.backend import buffers
from neurospike.kernels.cpu import _function

STREAMED = 4 << 20  # bytes of an output that is not kept in a cache for whoever reads it
HELD = 32 << 20  # the same where a constant current leaves the caches to the output
ALIGNED = 16  # bytes that have to divide a place for stores past the caches
WHOLE = 2048  # bytes of a row, from which on lines that it shares with others count little

Given = TypeVar("Given", Tensor, "Tensor | None")


def rows(tensor: Given, state: torch.dtype) -> Given:
    """Return a sequence `[T, ...]` contiguous in the state's format; one row if all are alike."""
    if tensor is None or (tensor.dtype == state and tensor.is_contiguous()):
        return tensor
    if tensor.numel() > 0 and tensor.stride(0) == 0:
        tensor = tensor[0]
        if tensor.dtype == state and tensor.is_contiguous():
            return tensor
    return buffers.empty(tensor.shape, state).copy_(tensor)


def by_samples(tensor: Given, state: torch.dtype, each: int | None = None) -> Given:
    """Return a sequence by sample, or as `rows` does if all steps are alike.

    each: numbers between two samples, if they have to be so many.
    """
    if tensor is None or tensor.numel() == 0 or tensor.stride(0) == 0:
        return rows(tensor, state)
    if tensor.dtype == state and tensor[:, 0].is_contiguous() and each in (None, tensor.stride(1)):
        return tensor
    steps, batch, *shape = tensor.shape
    return buffers.empty((batch, steps, *shape), state).transpose(0, 1).copy_(tensor)


def strides_of(tensor: Tensor | None, dim: int, features: int) -> tuple[int, int]:
    """Return the numbers between two steps, and between two samples, of what there is to read.

    A row `[B, *F]` for all steps has as many axes as `dim`.
    """
    if tensor is None or tensor.dim() == dim:
        return 0, features
    return tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


NOT_PAST = (False, 0)  # what `past_of` returns of outputs that stay in the caches


def past_of(out: Tensor, least: int, samples: int) -> tuple[bool, int]:
    """Return whether an output goes past the caches, and how many bytes divide its rows' places."""
    if out.nbytes < least or out.numel() == 0:
        return NOT_PAST
    row = out.nbytes // (len(out) * (samples or 1))
    place = math.gcd(out.data_ptr(), row, _function.LINE)
    if place < _function.LINE and row < WHOLE:
        return NOT_PAST
    return True, place if place >= ALIGNED else 0
