"""Data for pictures: any tensor or array of spikes or membranes as plain numpy `[T, N]`.

The sample is taken out before anything is converted, so that a batch on a GPU is not copied
whole to draw one of its pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def to_numpy(name: str, data: Any) -> Array:
    """Return numbers on the CPU: bool and integers as they are, 16-bit floats as float32.

    name: what the data are called in errors. Raises TypeError for what holds no real numbers.
    """
    if isinstance(data, Tensor):
        data = data.detach()
        if data.is_floating_point() and data.dtype != torch.float64:
            data = data.float()
        data = data.cpu().numpy()
    try:
        array = np.asarray(data)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be a tensor or array of real numbers, got {type(data).__name__} of "
            f"{array.dtype}"
        )
    return array.astype(np.float32) if array.dtype == np.float16 else array


def over_time(name: str, data: Any, sample: int) -> Array:
    """Return `[T, N]` of `[T]`, `[T, N]` or, of one `sample`, `[T, B, *F]` with F flattened.

    Raises ValueError for data without time steps or neurons, or a sample that is not there;
    TypeError as `to_numpy`.
    """
    data = data if isinstance(data, Tensor) else to_numpy(name, data)
    _check_filled(name, data.shape)
    if data.ndim > 2:
        if not -data.shape[1] <= sample < data.shape[1]:
            raise ValueError(
                f"{name} of shape {tuple(data.shape)} is [T, B, *F] with {data.shape[1]} samples; "
                f"there is no sample {sample}"
            )
        data = data[:, sample]
    return to_numpy(name, data).reshape(len(data), -1)


def are_spikes(array: Array) -> bool:
    """True if all numbers are 0, 1 or, as delta coding has them, -1."""
    return bool(((array == 0) | (np.abs(array) == 1)).all())


def spikes_over_time(name: str, data: Any, sample: int) -> Array:
    """Return `over_time` of spikes; raises ValueError for numbers that are no spikes."""
    train = over_time(name, data, sample)
    if not are_spikes(train):
        other = train[(train != 0) & (np.abs(train) != 1)][0]
        raise ValueError(
            f"{name} must be 0 or 1 (or -1, or bool), got {other:g} among them; membranes are "
            "drawn by plot_membrane_potential, currents by plot_firing_rates or "
            f"plot_input_encoding, and spikes that carry a weight as `{name} != 0`"
        )
    return train


def mean_over_samples(name: str, data: Any) -> Array:
    """Return `[T, N]` of `[T]`, `[T, N]` or the mean over the batch of `[T, B, *F]`.

    Where all numbers are spikes each counts as 1, also a negative one; other numbers as they are.
    """
    array = to_numpy(name, data)
    _check_filled(name, array.shape)
    rates = (array != 0 if are_spikes(array) else array).astype(np.float32, copy=False)
    if rates.ndim > 2:
        rates = rates.mean(1)
    return rates.reshape(len(rates), -1)


def _check_filled(name: str, shape: Sequence[int]) -> None:
    if not shape or 0 in shape:
        raise ValueError(
            f"{name} must be [T], [T, N] or [T, B, *F] with at least one step and one neuron, got "
            f"shape {tuple(shape)}"
        )


def evenly(count: int, limit: int) -> Array:
    """Return at most `limit` of the indices 0 to `count - 1`, spread evenly from the first."""
    return np.arange(0, count, max(1, -(-count // limit)))


def spread(count: int, limit: int) -> Array:
    """Return `limit` of the indices 0 to `count - 1`, or all, the first and the last among them.

    As even as whole numbers can be: two gaps differ by 1 at most.
    """
    return np.linspace(0, count - 1, min(count, limit)).round().astype(int)


def binned(array: Array, axis: int, limit: int) -> tuple[Array, int]:
    """Return means of neighbours along an axis, at most `limit` of them, and of how many they are.

    The last mean may be of fewer.
    """
    width = max(1, -(-array.shape[axis] // limit))
    if width == 1:
        return array, 1
    starts = np.arange(0, array.shape[axis], width)
    counts = np.diff(np.append(starts, array.shape[axis]))
    sums = np.add.reduceat(array, starts, axis=axis)
    return sums / (counts if axis else counts[:, None]), width


def layers_of(data: Any) -> dict[str, Any]:
    """Return `{layer: values}` as it is; one tensor or array as a layer without a name."""
    if isinstance(data, Mapping):
        if not data:
            raise ValueError("there is no layer to draw: the mapping of layers is empty")
        return dict(data)
    return {"": data}


def chosen(name: str, wanted: Sequence[int] | None, count: int, limit: int) -> Array:
    """Return the indices asked for, or `limit` of them spread over all. Raises ValueError."""
    if wanted is None:
        return spread(count, limit)
    indices = np.asarray(list(wanted))
    if indices.size == 0 or indices.dtype.kind not in "iu":
        raise ValueError(f"{name} must be indices of neurons, got {list(wanted)!r}")
    if indices.min() < -count or indices.max() >= count:
        raise ValueError(f"{name} must be below {count}, the number of them, got {list(wanted)!r}")
    return indices % count
