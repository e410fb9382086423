"""Make layers of NIR's nodes: those without memory, delays, and the table of all nodes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from neurospike.errors import InterchangeError
from neurospike.layers.delay import Delay
from neurospike.layers.spike_linear import SpikeLinear

from .nir import Scale, as_tensor
from .nir_neurons import NeuronReading, numbers, weight_of
from .nir_row import Place


class Reading(NeuronReading):
    """One call of `from_nir`, which makes the layers of each node."""

    def layers_of(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return the layers of a node, each with a suffix to append to the node's name."""
        try:
            if place.kind not in _LAYERS:
                known = ", ".join(_LAYERS)
                raise InterchangeError(f"no layer computes this; known are {known}")
            return _LAYERS[place.kind](self, place)
        except (InterchangeError, ValueError, TypeError, RuntimeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InterchangeError(f"node {place.name} ({place.kind}): {reason}") from None

    def linear(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a linear layer."""
        node, bias = place.node, getattr(place.node, "bias", None)
        if node.weight.ndim != 2:
            raise InterchangeError(f"weight has the shape {node.weight.shape}, wanted two axes")
        kind = SpikeLinear if self.kept(node).get("spikes") else nn.Linear
        layer = kind(1, 1, bias is not None, device="meta")  # so that no weights are drawn
        layer.out_features, layer.in_features = node.weight.shape
        return [("", _filled(layer, node.weight, bias))]

    def conv(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a convolution."""
        node = place.node
        flat = place.kind == "Conv1d"
        options = {key: _steps(getattr(node, key)) for key in ("stride", "padding", "dilation")}
        groups = int(node.groups)
        has_bias = bool(self.kept(node).get("bias", True)) and node.bias is not None
        layer = (nn.Conv1d if flat else nn.Conv2d)(
            node.weight.shape[1] * groups,
            node.weight.shape[0],
            node.weight.shape[2:],
            groups=groups,
            bias=has_bias,
            device="meta",
            **options,
        )
        return [("", _filled(layer, node.weight, node.bias if has_bias else None))]

    def pool(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a pooling layer that averages or sums."""
        node = place.node
        sums = 1 if place.kind == "SumPool2d" else None
        size, stride, padding = map(_steps, (node.kernel_size, node.stride, node.padding))
        return [("", nn.AvgPool2d(size, stride, padding, divisor_override=sums))]

    def flatten(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a layer that flattens; NIR counts axes without the batch."""
        start, end = int(place.node.start_dim), int(place.node.end_dim)
        return [("", nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end))]

    def scale(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a layer that scales."""
        values = np.asarray(place.node.scale)
        dtype = torch.float64 if values.dtype == np.float64 else torch.float32
        return [("", Scale(as_tensor(values, dtype)))]

    def delay(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a `Delay` in steps; exactly the delays that `to_nir` wrote, if dt is the same."""
        kept = self.kept(place.node)
        found = numbers(place.node.delay) / self.dt
        exact = np.asarray(kept.get("delay", math.nan))
        if exact.shape == found.shape and np.allclose(exact, found, rtol=1e-12, atol=0):
            found = exact
        steps = torch.as_tensor(found, dtype=self.dtype(place.node))
        longest = int(kept.get("max_delay", 0)) or max(1, math.ceil(float(steps.max())))
        learn = "delay" in str(kept.get("learn", ""))
        return [("", Delay(tuple(steps.shape), longest, steps, learn, backend=self.backend))]


_LAYERS: dict[str, Callable[[Reading, Place], list[tuple[str, nn.Module]]]] = {
    "Affine": Reading.linear,
    "Linear": Reading.linear,
    "Conv1d": Reading.conv,
    "Conv2d": Reading.conv,
    "AvgPool2d": Reading.pool,
    "SumPool2d": Reading.pool,
    "Flatten": Reading.flatten,
    "Scale": Reading.scale,
    "Delay": Reading.delay,
    "I": Reading.integrator,
    "LI": Reading.integrator,
    "CubaLI": Reading.integrator,
    "Threshold": Reading.fires,
    "IF": Reading.neurons,
    "LIF": Reading.neurons,
    "CubaLIF": Reading.neurons,
}


def _steps(value: Any) -> Any:
    """Return sizes as torch takes them: a word, a number or a tuple of numbers."""
    if isinstance(value, str):
        return value
    found = np.asarray(value)
    return int(found.reshape(-1)[0]) if found.size == 1 else tuple(int(one) for one in found)


def _filled(layer: Any, weight: Any, bias: Any) -> nn.Module:
    """Return a layer with these weights."""
    layer.weight = weight_of(weight)
    if bias is not None:
        layer.bias = weight_of(bias)
    filled: nn.Module = layer
    return filled
