"""The hidden neurons that `model.neuron` names, with the constants that a layer of them learns."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.layers.lif import LIF
from neurospike.layers.spiking import UNIT, Spiking
from neurospike.neurons import zoo

from .parts import NeuronOptions, check_one_of

ADAPTIVE = ("alif", "se_adlif")
NEURONS = ("lif", *ADAPTIVE)
Range = tuple[float, float]


class InRanges(Spiking):
    """Neurons with constants that are learned per neuron, each within a range.

    A constant is `low + (high - low) * share`; the shares `[size]` are learned from values drawn
    uniformly in [0, 1], and clamped to that where they are used. So one learning rate suits decays
    of 0.98 to 0.997 and factors of 0 to 2 alike (Baronig et al. 2024, arXiv:2408.07517, which
    learns them so).

    Args:
        neuron: see `neurospike.Spiking`.
        size: neurons of the layer.
        ranges: lowest and highest value of each constant to learn, by its name; its share is the
            parameter `<name>_share`.
        options: of `neurospike.Spiking`, and the other constants by their names.
    """

    def __init__(
        self, neuron: Callable[..., Any], size: int, ranges: Mapping[str, Range], **options: Any
    ) -> None:
        self.ranges = dict(ranges)  # before the base, which asks for the names
        shares: dict[str, Any] = {f"{name}_share": torch.rand(size) for name in ranges}
        bounds = dict.fromkeys(shares, UNIT)
        super().__init__(neuron, learn=tuple(shares), bounds=bounds, **shares, **options)

    def _names(self) -> tuple[str, ...]:
        return tuple(
            f"{name}_share" if name in self.ranges else name for name in self.parameter_names
        )

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return the values of the neuron's constants, in its order."""
        return tuple(map(self._value, self.parameter_names))

    def _value(self, name: str) -> Tensor:
        if name not in self.ranges:
            return self._bounded(name)
        low, high = self.ranges[name]
        return low + (high - low) * self._bounded(f"{name}_share")


def hidden_neurons(
    kind: str, size: int, tau: Sequence[float], tau_adaptation: Sequence[float], lif: NeuronOptions
) -> LIF | Spiking:
    """Return a layer of hidden neurons.

    Args:
        kind: `"lif"`, with the options `lif`; `"alif"`, whose decays `beta` and `rho` are learned
            per neuron; `"se_adlif"`, whose `d_u`, `d_w`, `a` and `b` are. Of the options these take
            `threshold`, `surrogate` and `grad_window`.
        size: neurons.
        tau: shortest and longest time constant of the membrane, in steps.
        tau_adaptation: those of the adaptation.
        lif: options of `neurospike.LIF`.

    Raises ValueError for another kind, or time constants that are no two positive numbers, the
    shorter first.
    """
    check_one_of("neuron", kind, NEURONS)
    if kind == "lif":
        # One number is another library's name of the decay, which LIF answers with ours.
        other: dict[str, Any] = {} if isinstance(tau, Sequence) else {"tau": tau}
        return LIF(**lif, **other)
    fast, slow = _decays("tau", tau), _decays("tau_adaptation", tau_adaptation)
    options: dict[str, Any] = {
        "threshold": lif.get("threshold", 1.0),
        "surrogate": lif.get("surrogate", "atan"),
        "grad_window": lif.get("grad_window"),
    }
    if kind == "alif":
        return InRanges(zoo.alif, size, {"beta": fast, "rho": slow}, rise=1.8, **options)
    ranges = {"d_u": fast, "d_w": slow, "a": (0.0, 1.0), "b": (0.0, 2.0)}
    # The paper's 120 for its 60 steps: how far a spike moves the fastest adaptation stays the same.
    return InRanges(zoo.se_adlif, size, ranges, q=2.0 * tau_adaptation[0], **options)


def _decays(name: str, given: Sequence[float]) -> Range:
    """Return the decays per step of the shortest and the longest time constant."""
    if len(given) != 2 or not 0 < given[0] <= given[1] < math.inf:
        raise ValueError(
            f"{name} must be two time constants in steps, the shorter first, such as 5 and 25; got "
            f"{list(given)}"
        )
    return math.exp(-1 / given[0]), math.exp(-1 / given[1])
