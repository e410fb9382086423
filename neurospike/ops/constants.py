"""Constant tensors, made once and shared; they must not be written to."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .watching import is_watched


def constant(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor `[len(values)]`, the same one each time.

    So values are copied to a GPU once, and no copy is in the way when a CUDA graph is captured
    after a first step.
    """
    if is_watched(()):
        return torch.tensor(values, dtype=dtype, device=device)
    return (_kept if device.type == "cpu" else _kept_for_good)(tuple(values), dtype, device)


def _make(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


_kept = functools.lru_cache(maxsize=1024)(_make)
_kept_for_good = functools.cache(_make)  # never freed: captured CUDA graphs read their addresses
