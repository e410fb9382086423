"""What the networks are made of: neurons' options, normalisation, dropout, first weights.

Time and batch are one axis to layers without a state: `over_steps` makes one call of all steps,
which is many times faster than a call a step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.layers.lif import LIF
from neurospike.layers.other_names import instead
from neurospike.neurons.surrogate import Surrogate
from neurospike.ops.arguments import check_count

NORMALIZATIONS = ("none", "batch", "threshold_batch", "layer")
INITIALIZATIONS = ("torch", "kaiming", "fluctuation")
RATE = 0.1  # spikes per neuron and step that "fluctuation" reckons with; MNIST's mean square too


class NeuronOptions(TypedDict, total=False):
    """The options of `neurospike.LIF` that networks hand on to their hidden layers."""

    beta: float
    threshold: float
    surrogate: str | Surrogate | Callable[..., Any]
    reset: str
    reset_delay: bool
    detach_reset: bool
    grad_window: float | None
    learn_beta: bool
    learn_threshold: bool


def check_options(network: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that is an argument neither of a network nor of its neurons."""
    unknown = next((name for name in options if name not in signature(LIF).parameters), None)
    if unknown is None:
        return
    own = signature(network).parameters.values()
    known = [one.name for one in own if one.kind is not one.VAR_KEYWORD]
    advice = instead(unknown, options[unknown], [*known, *NeuronOptions.__annotations__])
    raise TypeError(f"{network.__name__} has no argument {unknown}=; {advice}")


def over_steps(
    layer: Callable[[Tensor], Tensor], sequence: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Apply a layer without a state to every step: `[T, B, ...]` to `[T, B, ...]`.

    lengths: how many of the steps belong to each sample, int64 `[B]`; the layer sees no others, so
    that none counts where it normalises over the batch, and 0 comes out for them.
    """
    if lengths is not None:
        own = torch.arange(len(sequence), device=sequence.device)[:, None] < lengths
        found = layer(sequence[own])
        return found.new_zeros(*own.shape, *found.shape[1:]).index_put((own,), found)
    return layer(sequence.flatten(0, 1)).unflatten(0, sequence.shape[:2])


class SpikeDropout(nn.Module):
    """Silence each neuron of each sample with probability `p`, the same ones at every step.

    Shapes: `[T, B, *F]` to the same; what is left is scaled by `1 / (1 - p)`. A mask drawn anew at
    each step would average out over time (Lee et al., Front. Neurosci. 14:119, 2020). In evaluation
    mode nothing changes. Raises ValueError for a p outside 0 to below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, Real):
            raise TypeError(f"dropout must be a number, got {p!r}")
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p!r}: it is a share")
        self.p: float = p

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the spikes that are left."""
        if not self.training or not self.p:
            return spikes
        mask = torch.empty_like(spikes[0]).bernoulli_(1 - self.p).div_(1 - self.p)
        return spikes * mask

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"p={self.p}"


def normalization(kind: str, features: int, dimensions: int, threshold: float) -> nn.Module:
    """Return a layer that normalises `[N, features]` (dimensions 1) or `[N, features, H, W]` (2).

    `"batch"`: over the batch and all steps. `"threshold_batch"`: that, scaled to the threshold at
    first, so that currents reach it (tdBN; Zheng et al., AAAI 2021). `"layer"`: over the features
    of each sample and step. `"none"`.

    Raises ValueError for another kind.
    """
    check_one_of("normalization", kind, NORMALIZATIONS)
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return nn.GroupNorm(1, features)
    layer = nn.BatchNorm1d(features) if dimensions == 1 else nn.BatchNorm2d(features)
    if kind == "threshold_batch":
        nn.init.constant_(layer.weight, threshold)
    return layer


@torch.no_grad()
def initialize(
    layer: nn.Linear | nn.Conv2d, kind: str, beta: float, threshold: float, constant: bool
) -> None:
    """Draw a layer's first weights.

    `"torch"`: as torch draws them. `"kaiming"`: normal, of variance 2 / inputs (He et al. 2015).
    `"fluctuation"`: normal, such that membranes of the given `beta` have a standard deviation of
    one `threshold`, so that every neuron fires now and then whatever the layer's size (Rossbroich,
    Gygax and Zenke, Neuromorph. Comput. Eng. 2:044016, 2022); for inputs of mean square 0.1, as
    MNIST's pixels and the spikes of a rate of 0.1 are. constant: the input is the same at every
    step, so its contributions add up instead of averaging out.
    """
    if kind == "kaiming":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    elif kind == "fluctuation":
        inputs = layer.weight[0].numel()
        # Of a beta of 1 the membrane grows for ever; half a per cent short of it, it does not.
        decay = min(max(beta, 0.0), 0.995)
        held, drawn = 1 / (1 - decay) ** 2, 1 / (1 - decay**2)  # a membrane's gain in variance
        # Spikes have a mean, which is held, and a variance about it, which is drawn anew each step.
        square = RATE * held if constant else RATE**2 * held + RATE * (1 - RATE) * drawn
        nn.init.normal_(layer.weight, std=threshold / math.sqrt(inputs * square))
    if kind != "torch" and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")


def sizes_of(name: str, value: int | Sequence[int]) -> list[int]:
    """Return one number or a list of them as a list. Raises TypeError for anything else."""
    found = [value] if isinstance(value, Integral) else value
    if isinstance(found, str) or not isinstance(found, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a whole number or a list of them, got {value!r}")
    if any(isinstance(size, bool) or not isinstance(size, Integral) for size in found):
        raise TypeError(f"{name} must be a whole number or a list of them, got {value!r}")
    return [int(size) for size in found]


def side_of(input_size: int, channels: int = 1) -> int:
    """Return the side of a square picture of `input_size` values. Raises ValueError."""
    check_count("input_size", input_size, 0)
    if check_count("in_channels", channels, 0) < 1:
        raise ValueError(f"in_channels must be at least 1, got {channels}: 1 of grey, 3 of colour")
    side = math.isqrt(max(0, input_size) // channels)
    if side < 1 or channels * side * side != input_size:
        of = f" times in_channels={channels}" if channels > 1 else ""
        hint = ""
        if channels == 1 and math.isqrt(max(0, input_size) // 3) ** 2 * 3 == input_size > 0:
            hint = "; of coloured pictures give in_channels=3 where the network takes them"
        raise ValueError(
            f"input_size must be the pixels of a square picture{of}, such as {784 * channels}, got "
            f"{input_size}{hint}"
        )
    return side
