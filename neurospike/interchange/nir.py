"""What writing and reading NIR share: the package, time constants, kinds of neurons, and `Scale`.

NIR (Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9) describes neurons by their equations in
continuous time, `tau dv/dt = v_leak - v + r I`. A step of `dt` by Euler's forward method is

    v_t = (1 - dt / tau) v_{t-1} + (dt / tau) v_leak + (r dt / tau) I_t

so the decay per step is `beta = 1 - dt / tau`, and with `r = tau / dt` and `v_leak = 0` the current
is added unscaled: that is the LIF of this library.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import MissingDependencyError
from neurospike.neurons import zoo
from neurospike.neurons.record import record

# 1 - beta of neurons without a leak among others with one: NIR needs a finite time constant.
NO_LEAK = 2.0**-60


def package() -> Any:
    """Return the package `nir`; raise MissingDependencyError if it does not import."""
    try:
        import nir
    except ImportError as error:
        raise MissingDependencyError(
            f"NIR files need nir, which does not import ({error}): pip install nir"
        ) from error
    return nir


def tau_of(beta: np.ndarray, dt: float) -> np.ndarray:
    """Return the time constant in seconds of a decay per step."""
    return np.asarray(dt / np.maximum(1.0 - beta, NO_LEAK))


def beta_of(tau: np.ndarray, dt: float) -> np.ndarray:
    """Return the decay per step of a time constant in seconds."""
    return np.asarray(1.0 - dt / tau)


@dataclass(frozen=True)
class Kind:
    """A kind of spiking neurons: with a synaptic current or without, and with which reset.

    reset: `"subtract"`, `"zero"`, `"none"`, `"to"` a value, or `"cleared"`, which sets membrane and
    current to zero. delayed: the reset is at the step after the spike. detached: no gradient flows
    through it.
    """

    synaptic: bool
    reset: str
    delayed: bool
    detached: bool = False

    @property
    def is_of_nir(self) -> bool:
        """True for kinds that NIR can express: no reset, or at once to zero or a value."""
        return self.reset == "none" or (self.reset in ("zero", "to") and not self.delayed)


@functools.cache
def kinds() -> dict[str, Kind]:
    """Return the kinds of neurons that can be written, by the text of their recorded function."""
    found = {}
    for key, function in zoo.LIF.items():
        reset, timing = key.split()
        found[record(function).text] = Kind(False, reset, timing == "delayed", timing == "detached")
    for reset in zoo.RESETS:
        at_once = record(zoo.synaptic_at_once(zoo.RESETS_AT_ONCE[reset])).text
        found[at_once] = Kind(True, reset, False)
        found[record(zoo.synaptic(zoo.RESETS[reset])).text] = Kind(True, reset, reset != "none")
    found[record(zoo.lif_cleared).text] = Kind(False, "cleared", True)
    found[record(zoo.lif_to).text] = Kind(False, "to", False)
    found[record(zoo.synaptic_to).text] = Kind(True, "to", False)
    return found


class Scale(nn.Module):
    """Multiply each feature by a constant, as NIR's node `Scale` does.

    scale: a tensor that broadcasts against the features `F`, kept as a buffer. The output has the
    input's number format.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x * scale`, `[B, *F]`."""
        return x * self.scale.to(x.dtype)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        one = self.scale.numel() == 1
        return f"scale={self.scale.item():g}" if one else f"scale=tensor{tuple(self.scale.shape)}"


def outputs(layers: list[tuple[str, nn.Module]], x: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Run layers in a row over `[T, B, *F]`; return the name, input and output of each."""
    found = []
    for name, layer in layers:
        if getattr(layer, "carries_state", False):
            y = layer(x)[0]
        else:
            y = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        found.append((name, x, y))
        x = y
    return found


def as_tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return an array as a tensor, with size 1 or no axis where its values are all the same."""
    for axis in range(values.ndim):
        first = np.take(values, [0], axis) if values.shape[axis] else values
        if values.size and np.array_equal(np.broadcast_to(first, values.shape), values):
            values = first
    while values.ndim and values.shape[0] == 1:
        values = values[0]
    return torch.as_tensor(np.array(values), dtype=dtype)
