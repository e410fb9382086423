"""Make layers of NIR's neurons: their equations in steps of dt, as the file's writer meant them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import InterchangeError
from neurospike.layers.delay import Delay
from neurospike.layers.lif import LI, LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spiking import UNIT, Spiking
from neurospike.layers.zoo import Synaptic
from neurospike.neurons import surrogate as surrogates
from neurospike.neurons import zoo
from neurospike.neurons.rule import Neuron

from .nir import Kind, Scale, as_tensor, beta_of
from .nir_row import Place

IS_ONE = 1e-5  # a gain this close to 1 was 1 before the file's time constant was rounded


@dataclass(frozen=True)
class Writer:
    """How the files of a library's exporter deviate from NIR; the defaults are NIR itself.

    Attributes:
        dt: length of a step in seconds in its files.
        reset, delayed: kind of the reset, and whether it is at the step after the spike.
        unscaled: gains that are 1 whatever the file says: `"if"` of neurons without a leak,
            `"synapse"` and `"membrane"`.
        at_threshold: its neurons also fire where the membrane equals the threshold.
        late: spikes of its neurons with a reset leave one step later.
        clears_loops: a reset to zero of its recurrent neurons clears that step's current, too.
        through_weights: it writes the input of a recurrent layer as leading to its recurrent
            weights.
    """

    dt: float = 1e-4
    reset: str = "zero"
    delayed: bool = False
    unscaled: tuple[str, ...] = ()
    at_threshold: bool = False
    late: bool = False
    clears_loops: bool = False
    through_weights: bool = False


# The exporters of snnTorch 1.0.0, Norse 1.1.0, SpikingJelly 2.0.0 and spyx 1.0.0.
WRITERS = {
    "nir": Writer(),
    "snntorch": Writer(reset="subtract", delayed=True, clears_loops=True),
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


class NeuronReading:
    """One call of `from_nir`: its options, and how neurons are made from a file's numbers."""

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

    def kept(self, node: Any) -> dict[str, Any]:
        """Return the metadata that `to_nir` wrote for a node; empty for files of other writers."""
        return dict(node.metadata) if self.ours and isinstance(node.metadata, dict) else {}

    def decay(self, node: Any, tau: Any, name: str) -> np.ndarray:
        """Return the decay per step; exactly the one that `to_nir` wrote, if dt is the same."""
        beta = beta_of(numbers(tau), self.dt)
        if (beta < -1e-6).any():
            raise InterchangeError(
                f"tau={numbers(tau).min():g} s is shorter than a step of dt={self.dt:g} s; give "
                "dt= as the writer meant it, or written_by= if that is another library"
            )
        exact = self.kept(node).get(name)
        if exact is not None and np.allclose(exact, beta, rtol=0, atol=1e-12):
            return np.asarray(exact)
        return np.maximum(beta, 0.0)

    def neurons(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a layer of spiking neurons, with the layers that `around` adds."""
        node = place.node
        kind = self.kind_of(place)
        synaptic = place.kind in ("CubaLIF", "CubaLI")
        dtype = self.dtype(node)
        values, gain = self.membrane(place)
        leak = numbers(getattr(node, "v_leak", 0.0))
        given = node.v_threshold if place.threshold is None else place.threshold.threshold
        home = leak
        if place.kind == "IF":  # has no leak, and starts at its reset value
            home = numbers(node.v_reset)
        values["threshold"] = self.threshold(numbers(given) - home)
        if place.threshold is None:
            reset = numbers(node.v_reset) - home
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
        """Return the kind of the neurons; their reset is the one asked for, else the file's."""
        kept = self.kept(place.node)
        reset, delayed = self.writer.reset, self.writer.delayed
        detached = False
        if "reset" in kept:
            reset, delayed = kept["reset"], bool(kept["reset_delay"])
            detached = bool(kept["detach_reset"])
        if reset == "to":  # `neurons` makes it "to" again if v_reset is not v_leak
            reset = "zero"
        reset = self.reset or reset
        delayed = delayed if self.delayed is None else self.delayed
        if place.threshold is not None:
            reset = "none"
        if self.writer.clears_loops and place.kind == "LIF" and place.back and reset == "zero":
            reset = "cleared" if delayed else reset
        return Kind(place.kind in ("CubaLIF", "CubaLI"), reset, delayed, detached and not delayed)

    def membrane(self, place: Place) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the decay of the membrane by its name, and the gain of its current."""
        node = place.node
        if place.kind in ("IF", "I"):
            gain = numbers(node.r) * self.dt
            if "if" in self.writer.unscaled:
                gain = np.ones_like(gain)
            return {"beta": np.ones_like(gain)}, gain
        tau = node.tau if hasattr(node, "tau") else node.tau_mem
        gain = numbers(node.r) * self.dt / numbers(tau)
        if "membrane" in self.writer.unscaled:
            gain = np.ones_like(gain)
        return {"beta": self.decay(node, tau, "beta")}, gain

    def synapse(self, node: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the decay of the synaptic current, and the gain of its input."""
        gain = numbers(node.w_in) * self.dt / numbers(node.tau_syn)
        if "synapse" in self.writer.unscaled:
            gain = np.ones_like(gain)
        return self.decay(node, node.tau_syn, "alpha"), gain

    def threshold(self, values: np.ndarray) -> np.ndarray:
        """Return thresholds; the next lower float32 for neurons that also fire at them."""
        if not self.writer.at_threshold:
            return values
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf)).astype(np.float64)

    def spiking(self, node: Any, kind: Kind, values: dict[str, Tensor]) -> Any:
        """Return the layer of spiking neurons."""
        options: dict[str, Any] = {"surrogate": self.surrogate_of(node), "backend": self.backend}
        options |= values
        learn = str(self.kept(node).get("learn", "")).split(",")
        resets: dict[str, Any] = {"reset": kind.reset, "reset_delay": kind.delayed}
        if kind.reset == "to":
            function = zoo.synaptic_to if kind.synaptic else zoo.lif_to
            bounds = {str(name): UNIT for name in ("alpha", "beta") if name in values}
            known = [name for name in learn if name in values]
            return Spiking(function, bounds=bounds, learn=known, **options)
        if kind.synaptic:
            known = [name for name in learn if name in values]
            return Synaptic(**resets, learn=known, **options)
        options |= {f"learn_{name}": name in learn for name in ("beta", "threshold")}
        if kind.reset == "cleared":
            return LIF(neuron=Neuron(zoo.lif_cleared), **options)
        return LIF(**resets, detach_reset=kind.detached, **options)

    def around(
        self, place: Place, layer: Any, gain: np.ndarray, dtype: torch.dtype
    ) -> list[tuple[str, nn.Module]]:
        """Return neurons with a scale before them, recurrent weights and a delay after, if any."""
        is_scaled = not np.allclose(gain, 1.0, rtol=0, atol=IS_ONE)
        if place.back is not None:
            layer = self.recurrent(place.back, layer, gain if is_scaled else np.ones(1))
        before = [("_gain", Scale(as_tensor(gain, dtype)))] if is_scaled else []
        after = []
        if self.writer.late and place.threshold is None:
            after = [("_late", Delay((), 1, 1.0, learn=False, backend=self.backend))]
        return [*before, ("", layer), *after]

    def recurrent(self, back: Any, neuron: Any, gain: np.ndarray) -> Recurrent:
        """Return neurons with recurrent weights, which are scaled as their current is."""
        weight = np.asarray(back.weight)
        size = len(weight)
        if weight.shape != (size, size):
            raise InterchangeError(f"its spikes come back through weights {weight.shape}")
        rows = np.broadcast_to(gain.reshape(-1), (size,))
        mask = self.kept(back).get("mask")
        bias = None if (given := getattr(back, "bias", None)) is None else np.asarray(given)
        layer = Recurrent(
            neuron, size, bias is not None, None if mask is None else torch.from_numpy(mask)
        )
        layer.weight = weight_of(weight * rows[:, None].astype(weight.dtype))
        if bias is not None:
            layer.bias = weight_of(bias * rows.astype(bias.dtype))
        return layer

    def integrator(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Return a leaky integrator: spiking neurons if it has a threshold, else one or two `LI`.

        The first of two `LI` is the synaptic current.
        """
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
        """Return neurons without memory, for a `Threshold` node: an `LIF` with a beta of 0."""
        values = as_tensor(numbers(place.node.threshold), torch.float32)
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


def numbers(value: Any) -> np.ndarray:
    """Return a node's numbers in float64."""
    return np.asarray(value, dtype=np.float64)


def weight_of(values: Any) -> nn.Parameter:
    """Return a copy of an array as a learned parameter."""
    return nn.Parameter(torch.from_numpy(np.array(values)))
