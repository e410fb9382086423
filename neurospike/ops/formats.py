"""The number format and the shape of a state."""

import contextlib

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a state for a current of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step_shape(current: Tensor, num_steps: int) -> torch.Size:
    """Return `[B, *F]`; a current with `num_steps >= 0` is held constant and has no time axis."""
    return current.shape if num_steps >= 0 else current.shape[1:]


def in_full(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let products on a device be in the format of what is multiplied, under autocast, too."""
    if not torch.amp.is_autocast_available(device.type):  # as on the meta device
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
