"""Names of the axes of a network's arguments whose length an exported file leaves open."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.models.network import WHOLE, SpikingNetwork

Axes = Any  # {axis: name} for the first argument, or a tuple with one such entry per argument
NAMES = (str, torch.export.Dim, type(torch.export.Dim.DYNAMIC))


def axes_of(
    net: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], axes: Axes
) -> tuple[Any, ...]:
    """Return the open axes of each argument and option; for `axes` see `to_onnx`.

    Raises ValueError for axes that do not fit the sample.
    """
    if isinstance(axes, tuple):
        each = axes
    elif len(arguments) == 1:
        is_picture = isinstance(net, SpikingNetwork) and net.encoding in WHOLE
        is_first = is_picture or "num_steps" in options or getattr(net, "batch_first", False)
        batch = 0 if is_first else 1
        each = ({batch: "batch"} if axes is None else axes,)
    else:
        raise ValueError(
            f"the sample has {len(arguments)} arguments, of which axes must say what each leaves "
            'open: axes=({1: "batch"}, ({0: "batch"},)) for a sequence [T, B, *F] and one state '
            "[B, *F], None for an argument that is closed"
        )
    if len(each) == len(arguments):
        of_batch = {0: "batch"}  # of lengths [B]
        each += tuple(of_batch if isinstance(o, Tensor) else None for o in options.values())
    return tuple(_checked(arguments + tuple(options.values()), each))


def _checked(values: Any, axes: Any) -> Any:
    """Return open axes as numbers from 0 on; raise ValueError for axes that do not fit."""
    if axes is None:
        return None
    if isinstance(values, Tensor):
        return _of_tensor(values, axes)
    if not isinstance(values, (tuple, list)):
        return axes
    if not isinstance(axes, (tuple, list)) or len(axes) != len(values):
        raise ValueError(
            f"axes has {_short(axes)} for {len(values)} arguments or states; give a tuple with an "
            "entry for each, None for one that is closed"
        )
    found = [_checked(*pair) for pair in zip(values, axes)]
    return found if isinstance(axes, list) else tuple(found)


def _of_tensor(tensor: Tensor, axes: Any) -> dict[int, Any]:
    shape = tuple(tensor.shape)
    if not isinstance(axes, Mapping) or not all(map(_is_entry, axes.items())):
        raise ValueError(
            f"axes of a tensor {shape} must be the numbers of axes with their names, such as "
            f'{{0: "time", 1: "batch"}}, got {_short(axes)}'
        )
    found = {}
    for axis, name in axes.items():
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"axes names axis {axis} {name!r} of a tensor {shape}, which has {len(shape)} axes"
            )
        if shape[axis] < 2:
            raise ValueError(
                f"the sample {shape} has {shape[axis]} along its open axis {axis} {name!r}, which "
                "torch.export would take for a fixed length; give a sample with 2 or more there"
            )
        found[axis % len(shape)] = name
    return found


def _is_entry(entry: tuple[Any, Any]) -> bool:
    axis, name = entry
    return isinstance(axis, int) and isinstance(name, NAMES)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def name_axes(graph: Any, values: Any, axes: Any) -> None:
    """Rename open axes that torch has named itself, `s34`, as it does with keyword arguments."""
    names = {}
    for value, own in zip(graph.input, _axes_of_tensors(values, axes)):
        for axis, name in own.items():
            word = name if isinstance(name, str) else getattr(name, "__name__", None)
            if word is not None:  # Dim.DYNAMIC has no name
                names[value.type.tensor_type.shape.dim[axis].dim_param] = word
    made_up = "|".join(re.escape(one) for one in names if one)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if made_up and axis.dim_param:  # a name, or a formula with it
                pattern = rf"\b({made_up})\b"
                axis.dim_param = re.sub(pattern, lambda found: names[found[0]], axis.dim_param)


def _axes_of_tensors(values: Any, axes: Any) -> list[dict[int, Any]]:
    """Return the open axes of each tensor among arguments, in order."""
    if isinstance(values, Tensor):
        return [axes or {}]
    if not isinstance(values, (tuple, list)):
        return []
    each = [None] * len(values) if axes is None else axes
    return [one for pair in zip(values, each) for one in _axes_of_tensors(*pair)]
