"""Numbers as tensors, made once: nobody writes into them."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .watching import is_watched


def constant(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor `[len(values)]`, the same one each time.

    So a GPU waits for no copy, and none stands in the way of a CUDA graph once a step was run.
    """
    if is_watched(()):
        return torch.tensor(values, dtype=dtype, device=device)
    return (_kept if device.type == "cpu" else _kept_for_good)(tuple(values), dtype, device)


def _make(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


_kept = functools.lru_cache(maxsize=1024)(_make)
_kept_for_good = functools.cache(_make)  # a graph that was recorded reads them where they are
