"""Checks of the data and options that encoders are given, and what else encoders share.

Some checks depend on the values of the data, and wait for a CUDA device; see `can_look`.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

Curve = Literal["linear", "logarithmic"]
Subthreshold = Literal["silent", "last"]

FAR = 32.0  # larger values are not intensities, even standardised ones, but pictures of 0..255


def spikes_format(name: str, data: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the number format of the spikes: the one asked for, or the data's."""
    if dtype is None:
        return data.dtype
    if not isinstance(dtype, torch.dtype) or not (
        dtype.is_floating_point or dtype in (torch.bool, torch.uint8)
    ):
        raise TypeError(
            f"{name} got dtype={dtype}; spikes are torch.bool, torch.uint8 or floating point"
        )
    return dtype


def working(data: Tensor) -> Tensor:
    """Return the data in the format that codes are computed in: float32, or float64."""
    return data.detach().to(torch.float64 if data.dtype == torch.float64 else torch.float32)


def numbers(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a table as a tensor; on a GPU the same one each time, so that it is copied once."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    from neurospike.ops.constants import constant

    return constant(values, dtype, device)


def same_device(one: torch.device, other: torch.device) -> bool:
    """True for two names of one device; a name without an index, `cuda`, fits every index."""
    return one.type == other.type and (
        one.index is None or other.index is None or one.index == other.index
    )


def is_whole(value: object) -> bool:
    """True for an integer of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_number(name: str, option: str, value: object) -> None:
    """Raise TypeError for an encoder's option that is not a number."""
    is_number = isinstance(value, (Real, Tensor, torch.SymFloat))
    if isinstance(value, bool) or not is_number:
        raise TypeError(f"{name} got {option}={value!r}; it must be a number")


def check(data: Tensor, num_steps: int) -> int:
    """Return the number of steps as an int; TypeError or ValueError unless it and the data fit."""
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor, got {type(data).__name__}: use torch.as_tensor")
    if data.is_nested:
        raise TypeError(
            "data is a nested tensor; pad it, as in torch.nested.to_padded_tensor(data, 0.0)"
        )
    if not data.is_floating_point():
        raise TypeError(
            f"data must be floating-point intensities in [0, 1], got {data.dtype}: for pictures of "
            "0..255 divide by 255, as in data / 255"
        )
    if data.ndim == 0:
        raise ValueError("data must be [B, *F], got a tensor without dimensions: use data[None]")
    if not is_whole(num_steps):
        raise TypeError(f"num_steps must be an int, got {num_steps!r}: use int(...)")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}: ask for 1 or more steps")
    return int(num_steps)


def can_look(data: Tensor) -> bool:
    """True where a check may read the values of the data.

    It may not in torch.compile and torch.export, under `torch.func`, while a CUDA graph is
    captured, and on the meta device.
    """
    return not (
        torch.compiler.is_compiling()
        or data.is_meta
        or torch._C._are_functorch_transforms_active()
        or (data.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def extremes(data: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value: NaN if there is one, zeros if there are no values.

    It takes one pass over the data, where comparing each value, or `isfinite`, takes several.
    """
    if data.numel() == 0:
        return 0.0, 0.0
    low, high = torch.stack(data.detach().aminmax()).tolist()  # for both a GPU is waited for once
    return low, high


def check_finite(name: str, data: Tensor) -> None:
    """Raise ValueError for NaN and infinity."""
    if can_look(data) and not all(map(math.isfinite, extremes(data))):
        raise ValueError(
            f"{name} got NaN or infinity in {int((~data.isfinite()).sum())} of {data.numel()} "
            "values; neurons would hide them: remove them, as with data.nan_to_num(0, 1, 0)"
        )


def check_probability(data: Tensor, probability: Tensor, gain: float, offset: float) -> None:
    """Raise ValueError for probabilities that are not finite, or come from pictures of 0..255."""
    if not can_look(probability):
        return
    low, high = extremes(probability)
    if low >= -FAR and high <= FAR:
        return
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"rate got NaN or infinity from data with gain={gain}, offset={offset}; a firing "
            "probability must be a number: remove NaN and infinity from the data"
        )
    low, high = extremes(data)
    if low < -FAR or high > FAR:
        raise ValueError(
            f"rate got intensities from {low:g} to {high:g} with "
            f"gain={gain}, offset={offset}; probabilities lie in [0, 1]: for pictures of 0..255 "
            "divide by 255, as in data / 255"
        )


def check_range(name: str, data: Tensor) -> None:
    """Raise ValueError for values outside [0, 1]."""
    if not can_look(data):
        return
    low, high = extremes(data)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} got intensities from {low} to {high}; they must "
            "lie in [0, 1]: scale the data (pictures of 0..255 by 1 / 255), or use "
            "data.clamp(0, 1)"
        )


def check_latency(curve: str, threshold: float, subthreshold: str, tau: float | None) -> None:
    """Raise TypeError or ValueError for options of `latency` that are not valid."""
    if curve not in ("linear", "logarithmic"):
        raise ValueError(f"latency got curve={curve!r}; use 'linear' or 'logarithmic'")
    if subthreshold not in ("silent", "last"):
        raise ValueError(f"latency got subthreshold={subthreshold!r}; use 'silent' or 'last'")
    check_number("latency", "threshold", threshold)
    if tau is not None:
        check_number("latency", "tau", tau)
    if not 0 <= threshold < 1 or (threshold == 0 and curve == "logarithmic"):
        wanted = "[0, 1)" if curve == "linear" else "(0, 1)"
        raise ValueError(
            f"latency got threshold={threshold}; the {curve} curve needs one in {wanted}: "
            "0.01 is the default"
        )
    if tau is not None and curve == "linear":
        raise ValueError(
            f"latency got tau={tau} with curve='linear', which has no time constant: leave tau "
            "out, or use curve='logarithmic'"
        )
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"latency got tau={tau}; it must be positive and finite, in steps")
