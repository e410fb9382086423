"""Check the arguments of layers and bring them into the form that backends take."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .bounds import clamped
from .watching import is_watched

PAIR = (
    "a layer of neurons returns (output, state): hand on the output alone, or put the layers in "
    "ns.Sequential in place of nn.Sequential"
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_current(current: Tensor, num_steps: int | None) -> int:
    """Check a current; return the steps of a constant one, -1 for one with a time axis."""
    if type(current) is Tensor and num_steps is None:
        usual = current.dtype in FLOATS and current.layout is torch.strided
        if usual and current.dim() >= 2 and not current.is_nested:
            return -1
    refuse_ragged("current", current)
    if not isinstance(current, Tensor):
        hint = "; " + PAIR if isinstance(current, tuple) else ""
        raise TypeError(f"current must be a tensor [T, B, *F], got {type(current).__name__}{hint}")
    if current.dtype not in FLOATS:
        raise TypeError(
            f"current must be float16, bfloat16, float32 or float64, got {current.dtype}; "
            "convert it with .float()"
        )
    if current.layout != torch.strided:
        raise TypeError(f"current must be dense, got {current.layout}; convert it with .to_dense()")
    if num_steps is None:
        if current.dim() < 2:
            raise ValueError(
                f"current must be [T, B, *F], got shape {tuple(current.shape)}, which has no time "
                "or no batch axis; for a constant current [B, *F] pass num_steps="
            )
        return -1
    if current.dim() < 1:
        raise ValueError("a constant current must be [B, *F], got a tensor without axes")
    return check_steps(num_steps)


def check_flag(name: str, value: object) -> bool:
    """Return a flag as a bool; raise TypeError for anything but bools, 0 and 1."""
    if isinstance(value, (bool, np.bool_)) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def check_module(name: str, value: object) -> None:
    """Raise TypeError for anything but a `torch.nn.Module`."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`; raise TypeError or ValueError for all else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    return int(value)


def check_steps(num_steps: int) -> int:
    """Return the number of steps of a constant input; raise unless it is a whole number >= 0."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, (Integral, torch.SymInt)):
        raise TypeError(f"num_steps must be an integer, got {num_steps!r}")
    if num_steps < 0:
        raise ValueError(f"num_steps must be 0 or more, got {num_steps}")
    return num_steps if isinstance(num_steps, torch.SymInt) else int(num_steps)


def check_lengths(lengths: Tensor | Sequence[int], current: Tensor, num_steps: int) -> Tensor:
    """Check lengths; return the steps of each sample, int64 `[B]` on the current's device.

    The values are checked only on the CPU and outside of torch.compile and transforms, where that
    need not wait for a device. So a kernel has to treat a length below 0 as 0 and one above T as T.

    Args:
        lengths: `[B]` of any integer format, on the CPU or on the current's device; or a list of
            integers.
        current: `[T, B, *F]`, or `[B, *F]` if `num_steps >= 0`.
        num_steps: what `check_current` returned.
    """
    if not isinstance(lengths, Tensor):
        lengths = _listed_lengths(lengths)
    if lengths.dtype not in INTEGERS:
        raise TypeError(
            f"lengths must be integers [B], got {lengths.dtype}; convert them with .to(torch.int64)"
        )
    steps, batch = (num_steps, *current.shape[:1]) if num_steps >= 0 else current.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths must be [B], one for each of the {batch} samples of the current, got the "
            f"shape {tuple(lengths.shape)}"
        )
    if lengths.device.type == "cpu" and not is_watched((lengths,)):
        _check_values(lengths, steps)
    elif lengths.device != current.device and lengths.device.type != "cpu":
        raise ValueError(
            f"lengths are on {lengths.device}, current on {current.device}; move them with "
            f".to({str(current.device)!r}), or leave them on the CPU"
        )
    # The copy to a GPU is asynchronous, so the host does not wait for the device.
    return lengths.to(current.device, torch.int64, non_blocking=True).contiguous()


def _listed_lengths(lengths: Any) -> Tensor:
    is_list = isinstance(lengths, Sequence) and not isinstance(lengths, str)
    if not is_list or any(
        isinstance(one, bool) or not isinstance(one, (Integral, torch.SymInt)) for one in lengths
    ):
        raise TypeError(
            f"lengths must be a tensor of integers [B] or a list of them, got {lengths!r}"
        )
    return torch.tensor(lengths, dtype=torch.int64, device="cpu")


def _check_values(lengths: Tensor, steps: int) -> None:
    """Raise ValueError for a length outside 0 to `steps`; the error names the sample."""
    if lengths.numel() == 0:
        return
    low, high = (int(one) for one in lengths.aminmax())
    if low >= 0 and high <= steps:
        return
    wrong = low if low < 0 else high
    sample = lengths.tolist().index(wrong)
    raise ValueError(
        f"lengths must lie between 0 and the {steps} steps of the current, got {wrong} for sample "
        f"{sample}"
    )


def refuse_ragged(name: str, value: object) -> None:
    """Raise TypeError for a `PackedSequence` or nested tensor, with what to write instead."""
    if isinstance(value, PackedSequence):
        raise TypeError(
            f"{name} is a PackedSequence; hand on the padded sequences [T, B, *F] and their "
            "lengths: x, lengths = torch.nn.utils.rnn.pad_packed_sequence(x), then lengths=lengths"
        )
    if isinstance(value, Tensor) and value.is_nested:
        raise TypeError(
            f"{name} is a nested tensor of sequences of several lengths; hand them on padded, as "
            "torch.nested.to_padded_tensor(x, 0.0).transpose(0, 1), which is [T, B, *F], with "
            "lengths=[len(one) for one in x.unbind()]"
        )


def check_state(
    name: str, mem: Tensor, current: Tensor, shape: torch.Size, state: torch.dtype
) -> None:
    """Raise TypeError or ValueError unless a state has the shape, format and device needed."""
    if not isinstance(mem, Tensor):
        raise TypeError(f"{name} must be a tensor [B, *F], got {type(mem).__name__}")
    if mem.shape != shape:
        read = ""
        if shape != current.shape:
            read = (
                f"; the current {tuple(current.shape)} was read as [T, B, *F]. In a loop over "
                "time, hand the whole sequence over at once, or one step by layer.step(current, "
                "state); for a constant current [B, *F] pass num_steps="
            )
        raise ValueError(
            f"{name} must have the shape [B, *F] of one step, {tuple(shape)}, got "
            f"{tuple(mem.shape)}{read}"
        )
    if mem.dtype != state:
        raise TypeError(
            f"{name} must be {state} for a current of {current.dtype}, got {mem.dtype}; "
            f"convert it with .to({state})"
        )
    if mem.device != current.device:
        raise ValueError(
            f"{name} is on {mem.device}, current on {current.device}; move one of them"
        )


def window_of(grad_window: float | None) -> tuple[float, ...]:
    """Check a gradient window; return it as parameters to add to the surrogate's, () for None."""
    if grad_window is None:
        return ()
    if isinstance(grad_window, bool) or not isinstance(grad_window, Real) or not grad_window > 0:
        raise ValueError(
            f"grad_window must be a number above 0, a distance from the threshold, or None for no "
            f"window, got {grad_window!r}"
        )
    return (float(grad_window),)


def decay_of(beta: float | Tensor, gradient: str) -> float | Tensor:
    """Return a decay clamped to 0 to 1; for `gradient` see `bounds.clamped`."""
    if type(beta) is float and 0.0 <= beta <= 1.0:
        return beta
    if not isinstance(beta, Tensor):
        return min(max(_number("beta", beta), 0.0), 1.0)
    if beta.dtype not in FLOATS:
        return beta  # refused later
    return clamped(beta, gradient)


def flat_parameter(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a single number as it is, else `[P]`, one value for each neuron of F flattened."""
    features = shape[1:]
    if value.numel() == 1 or value.shape == features == (value.numel(),):
        return value
    return value.expand(features).reshape(-1)


def _number(name: str, value: float) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (Real, torch.SymFloat)):
        raise TypeError(f"{name} must be a number or a floating-point tensor, got {value!r}")
    return value


def parameter_of(
    name: str, value: float | Tensor, current: Tensor, shape: torch.Size, state: torch.dtype
) -> float | Tensor:
    """Check a parameter; return a tensor in the state's format, a plain number as it is."""
    if not isinstance(value, Tensor):
        return _number(name, value)
    return fitted(name, value, current, shape, state)


def fitted(
    name: str, value: Tensor, current: Tensor, shape: torch.Size, state: torch.dtype
) -> Tensor:
    """Check a tensor of one number, or one that broadcasts to F; return it in the state's format.

    Raises TypeError for its number format, ValueError for its shape or device.
    """
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point number or tensor, got {value.dtype}")
    if value.device != current.device:
        raise ValueError(
            f"{name} is on {value.device}, current on {current.device}; move the layer with .to()"
        )
    if value.numel() == 1:
        if value.dim() > len(shape):  # a step in torch would otherwise gain axes
            value = value.reshape(1)
        return value if value.dtype == state else value.to(state)
    features = shape[1:]
    padded = (1,) * (len(features) - value.dim()) + tuple(value.shape)
    fits = len(padded) == len(features) and all(p in (1, f) for p, f in zip(padded, features))
    if value.dim() == 1 and len(features) > 1:
        _check_axis(name, value.shape[0], features, fits)
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} does not broadcast against the features "
            f"{tuple(features)} of the current"
        )
    return value if value.dtype == state else value.to(state)


def _check_axis(name: str, size: int, features: torch.Size, fits: bool) -> None:
    """Raise ValueError for values `[size]` that are, or may be, meant for the features' first axis.

    Broadcasting would use them along the last one.
    """
    if size != features[0]:
        return
    rest = len(features) - 1
    first, last = (size, *(1,) * rest), (*(1,) * rest, size)
    shape = f"{name} of shape ({size},) with features {tuple(features)}"
    if not fits:
        raise ValueError(
            f"{shape} of the current does not broadcast against the last axis; for one value per "
            f"channel give it the shape {first}"
        )
    raise ValueError(
        f"{shape} may mean the first axis or the last; give it the shape {first} for one value per "
        f"channel, or {last} for one per column"
    )
