"""Nodes of NIR as layers: their equations in steps of dt, as their writer meant them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import InterchangeError
from neurospike.layers.delay import Delay
from neurospike.layers.lif import LI, LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spike_linear import SpikeLinear
from neurospike.layers.spiking import UNIT, Spiking
from neurospike.layers.zoo import Synaptic
from neurospike.neurons import surrogate as surrogates
from neurospike.neurons import zoo
from neurospike.neurons.rule import Neuron

from .nir import Kind, Scale, as_tensor, beta_of
from .nir_row import Place

IS_ONE = 1e-5  # a gain that is so close to 1 was 1 before its time constant was rounded


@dataclass(frozen=True)
class Writer:
    """What a library's exporter means by a file, where that is not what NIR says.

    Attributes:
        dt: step in seconds of its files.
        reset, delayed: what its neurons do at a spike, by default those of NIR.
        unscaled: gains that are 1 whatever the file says: of an `"if"`, of the `"synapse"` and of
            the `"membrane"`.
        at_threshold: its neurons fire at the threshold, too.
        late: its spikes leave a step later.
        through_weights: draws the input of a recurrent layer to its weights.
    """

    dt: float = 1e-4
    reset: str = "zero"
    delayed: bool = False
    unscaled: tuple[str, ...] = ()
    at_threshold: bool = False
    late: bool = False
    through_weights: bool = False


# The exporters of snnTorch 1.0.0, Norse 1.1.0, SpikingJelly 2.0.0 and spyx 1.0.0.
WRITERS = {
    "nir": Writer(),
    "snntorch": Writer(reset="subtract", delayed=True),
    "norse": Writer(dt=1e-6, unscaled=("if", "synapse")),  # writes dt / tau_inv with dt=0.001
    "spikingjelly": Writer(at_threshold=True),
    "spyx": Writer(
        dt=1.0,
        reset="subtract",
        delayed=True,
        unscaled=("if", "synapse", "membrane"),
        late=True,
        through_weights=True,
    ),
}


class Reading:
    """One call of `from_nir`: what a file's numbers mean, and what its layers are to be."""

    def __init__(
        self,
        writer: Writer,
        dt: float,
        ours: bool,
        reset: str | None = None,
        delayed: bool | None = None,
        surrogate: Any = None,
        backend: str = "auto",
    ) -> None:
        self.writer, self.dt, self.ours = writer, dt, ours
        self.reset, self.delayed = reset, delayed
        self.surrogate, self.backend = surrogate, backend

    def layers_of(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return the layers of a node, each with what its name adds to the node's."""
        try:
            if place.kind not in _LAYERS:
                known = ", ".join(_LAYERS)
                raise InterchangeError(f"no layer computes this; known are {known}")
            return _LAYERS[place.kind](self, place)
        except (InterchangeError, ValueError, TypeError, RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InterchangeError(f"node {place.name} ({place.kind}): {reason}") from None

    def kept(self, node: Any) -> dict[str, Any]:
        """Return what `to_nir` wrote beside NIR."""
        return dict(node.metadata) if self.ours and isinstance(node.metadata, dict) else {}

    def decay(self, node: Any, tau: Any, name: str) -> np.ndarray:
        """Return the decay per step, bit for bit if `to_nir` wrote it, for the dt it wrote."""
        beta = beta_of(_numbers(tau), self.dt)
        if (beta < -1e-6).any():
            raise InterchangeError(
                f"tau={float(np.min(tau)):g} s is shorter than a step of dt={self.dt:g} s; give "
                "dt= as the writer meant it, or written_by= if that is another library"
            )
        exact = self.kept(node).get(name)
        if exact is not None and np.allclose(exact, beta, rtol=0, atol=1e-12):
            return np.asarray(exact)
        return np.maximum(beta, 0.0)

    def neurons(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return spiking neurons, with what scales their current and comes back to them."""
        node = place.node
        kind = self.kind_of(place)
        synaptic = place.kind in ("CubaLIF", "CubaLI")
        dtype = self.dtype(node)
        values, gain = self.membrane(place)
        leak = _numbers(getattr(node, "v_leak", 0.0))
        given = node.v_threshold if place.threshold is None else place.threshold.threshold
        home = leak
        if place.kind == "IF":  # has no leak, and begins where a spike leaves it
            home = _numbers(node.v_reset)
        values["threshold"] = self.threshold(_numbers(given) - home)
        if place.threshold is None:
            reset = _numbers(node.v_reset) - home
            if not np.allclose(reset, 0.0):
                if kind.reset != "zero" or kind.delayed:
                    raise InterchangeError(
                        "v_reset is not v_leak, which only neurons that go there at once can do; "
                        "leave reset= and reset_delay= out"
                    )
                kind, values["reset"] = replace(kind, reset="to"), reset
        if synaptic:
            alpha, more = self.synapse(node)
            values, gain = {"alpha": alpha, **values}, gain * more
        layer = self.spiking(node, kind, {k: as_tensor(v, dtype) for k, v in values.items()})
        return self.around(place, layer, gain, dtype)

    def kind_of(self, place: Place) -> Kind:
        """Return what the neurons do at a spike."""
        kept = self.kept(place.node)
        reset, delayed = self.writer.reset, self.writer.delayed
        detached = False
        if "reset" in kept:
            reset, delayed = kept["reset"], bool(kept["reset_delay"])
            detached = bool(kept["detach_reset"])
        if place.threshold is not None:
            reset = "none"
        elif reset == "to" and self.reset is None:
            reset = "zero"
        reset = self.reset or reset
        delayed = delayed if self.delayed is None else self.delayed
        return Kind(place.kind in ("CubaLIF", "CubaLI"), reset, delayed, detached and not delayed)

    def membrane(self, place: Place) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the decay of the membrane by its name, and the gain of its current."""
        node = place.node
        if place.kind in ("IF", "I"):
            gain = _numbers(node.r) * self.dt
            if "if" in self.writer.unscaled:
                gain = np.ones_like(gain)
            return {"beta": np.ones_like(gain)}, gain
        tau = node.tau if hasattr(node, "tau") else node.tau_mem
        gain = _numbers(node.r) * self.dt / _numbers(tau)
        if "membrane" in self.writer.unscaled:
            gain = np.ones_like(gain)
        return {"beta": self.decay(node, tau, "beta")}, gain

    def synapse(self, node: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the decay of the synaptic current, and the gain of what it takes in."""
        gain = _numbers(node.w_in) * self.dt / _numbers(node.tau_syn)
        if "synapse" in self.writer.unscaled:
            gain = np.ones_like(gain)
        return self.decay(node, node.tau_syn, "alpha"), gain

    def threshold(self, values: np.ndarray) -> np.ndarray:
        """Return thresholds; below by a last bit for neurons that fire at them, too."""
        if not self.writer.at_threshold:
            return values
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf)).astype(np.float64)

    def spiking(self, node: Any, kind: Kind, values: dict[str, Tensor]) -> Any:
        """Return the layer of spiking neurons."""
        options = {"surrogate": self.surrogate_of(node), "backend": self.backend}
        learn = str(self.kept(node).get("learn", "")).split(",")
        resets = {"reset": kind.reset, "reset_delay": kind.delayed}
        if kind.reset == "to":
            function = zoo.synaptic_to if kind.synaptic else zoo.lif_to
            bounds = {name: UNIT for name in ("alpha", "beta") if name in values}
            known = [name for name in learn if name in values]
            return Spiking(function, bounds=bounds, learn=known, **values, **options)
        if kind.synaptic:
            known = [name for name in learn if name in values]
            return Synaptic(**values, **resets, learn=known, **options)
        options |= {f"learn_{name}": name in learn for name in ("beta", "threshold")}
        if kind.reset == "cleared":
            return LIF(**values, neuron=Neuron(zoo.lif_cleared), **options)
        return LIF(**values, **resets, detach_reset=kind.detached, **options)

    def around(
        self, place: Place, layer: Any, gain: np.ndarray, dtype: torch.dtype
    ) -> list[tuple[str, nn.Module]]:
        """Return neurons with the scale before them, the weights back, and the step after."""
        is_scaled = not np.allclose(gain, 1.0, rtol=0, atol=IS_ONE)
        if place.back is not None:
            layer = self.recurrent(place.back, layer, gain if is_scaled else np.ones(1))
        before = [("_gain", Scale(as_tensor(gain, dtype)))] if is_scaled else []
        after = []
        if self.writer.late:
            after = [("_late", Delay((), 1, 1.0, learn=False, backend=self.backend))]
        return [*before, ("", layer), *after]

    def recurrent(self, back: Any, neuron: Any, gain: np.ndarray) -> Recurrent:
        """Return neurons whose spikes come back through weights, scaled as their current is."""
        size = back.weight.shape[0]
        if back.weight.shape != (size, size):
            raise InterchangeError(f"its spikes come back through weights {back.weight.shape}")
        rows = np.broadcast_to(gain.reshape(-1), (size,))
        mask = self.kept(back).get("mask")
        bias = getattr(back, "bias", None)
        layer = Recurrent(
            neuron, size, bias is not None, None if mask is None else torch.from_numpy(mask)
        )
        layer.weight = _weight(back.weight * rows[:, None].astype(back.weight.dtype))
        if bias is not None:
            layer.bias = _weight(bias * rows.astype(bias.dtype))
        return layer

    def integrator(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a leaky integrator, which with a threshold fires, or behind one a synapse's."""
        node = place.node
        if place.threshold is not None:
            return self.neurons(place)
        if place.back is not None:
            raise InterchangeError("it does not spike, so nothing can come back from it")
        if not np.allclose(getattr(node, "v_leak", 0.0), 0.0):
            raise InterchangeError("v_leak is not 0, from which an ns.LI leaks to no other value")
        dtype = self.dtype(node)
        values, gain = self.membrane(place)
        decays = [("", values["beta"])]
        if place.kind == "CubaLI":
            alpha, more = self.synapse(node)
            decays, gain = [("_synapse", alpha), *decays], gain * more
        learn = "beta" in str(self.kept(node).get("learn", "")).split(",")
        layers: list[tuple[str, nn.Module]] = [
            (suffix, LI(as_tensor(one, dtype), learn, self.backend)) for suffix, one in decays
        ]
        if not np.allclose(gain, 1.0, rtol=0, atol=IS_ONE):
            layers.insert(0, ("_gain", Scale(as_tensor(gain, dtype))))
        return layers

    def fires(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return neurons without memory, a threshold and nothing else."""
        values = as_tensor(_numbers(place.node.threshold), torch.float32)
        surrogate = self.surrogate_of(place.node)
        return [("", LIF(0.0, values, surrogate, "none", backend=self.backend))]

    def surrogate_of(self, node: Any) -> Any:
        """Return the surrogate asked for, or the file's own."""
        kept = self.kept(node)
        if self.surrogate is None and kept.get("surrogate") in surrogates.BUILT_IN:
            return surrogates.BUILT_IN[kept["surrogate"]](*map(float, kept["surrogate_numbers"]))
        return "atan" if self.surrogate is None else self.surrogate

    def dtype(self, node: Any) -> torch.dtype:
        """Return the number format of a layer's constants."""
        return torch.float64 if self.kept(node).get("format") == "float64" else torch.float32

    def linear(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a linear layer."""
        node, bias = place.node, getattr(place.node, "bias", None)
        if node.weight.ndim != 2:
            raise InterchangeError(f"weight has the shape {node.weight.shape}, wanted two axes")
        kind = SpikeLinear if self.kept(node).get("spikes") else nn.Linear
        layer = kind(1, 1, bias is not None, device="meta")  # draws no weights
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
        sizes = (_steps(one) for one in (node.kernel_size, node.stride, node.padding))
        return [("", nn.AvgPool2d(*sizes, divisor_override=sums))]

    def flatten(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a layer that flattens; NIR counts no batch axis."""
        start, end = int(place.node.start_dim), int(place.node.end_dim)
        return [("", nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end))]

    def scale(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a layer that scales."""
        values = np.asarray(place.node.scale)
        dtype = torch.float64 if values.dtype == np.float64 else torch.float32
        return [("", Scale(as_tensor(values, dtype)))]

    def delay(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return delays in steps."""
        kept = self.kept(place.node)
        steps = torch.as_tensor(_numbers(place.node.delay) / self.dt, dtype=self.dtype(place.node))
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


def _numbers(value: Any) -> np.ndarray:
    return np.asarray(value, dtype=np.float64)


def _steps(value: Any) -> Any:
    """Return sizes as torch takes them: a word, a number or a tuple of numbers."""
    if isinstance(value, str):
        return value
    found = np.asarray(value)
    return int(found.reshape(-1)[0]) if found.size == 1 else tuple(int(one) for one in found)


def _weight(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(values)))


def _filled(layer: Any, weight: Any, bias: Any) -> nn.Module:
    """Return a layer with these weights."""
    layer.weight = _weight(weight)
    if bias is not None:
        layer.bias = _weight(bias)
    filled: nn.Module = layer
    return filled
