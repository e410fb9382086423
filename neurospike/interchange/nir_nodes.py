"""Make NIR's nodes of layers: their equations in continuous time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import InterchangeError
from neurospike.layers.delay import Delay
from neurospike.layers.lif import LI, LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spike_linear import SpikeLinear
from neurospike.layers.spiking import Spiking
from neurospike.neurons.surrogate import is_built_in

from .nir import Kind, Scale, beta_of, kinds, tau_of

# Each makes the nodes of a layer: (nir, layer, shape before, shape after, dt).
Maker = Callable[[Any, Any, torch.Size, torch.Size, float], list[Any]]


def maker_of(layer: nn.Module) -> Maker:
    """Return the function that makes a layer's nodes; raise InterchangeError if there is none."""
    for kind, maker in _MAKERS.items():
        if isinstance(layer, kind):
            if type(layer).forward is not kind.forward:
                raise InterchangeError(f"it overrides the forward of {kind.__name__}; use that")
            return maker
    raise InterchangeError(_REMEDIES.get(type(layer).__name__, "") or _ANY)


_ANY = (
    "NIR has no node for it, and to_nir writes layers in a row: ns.LIF, ns.LI, ns.Synaptic, "
    "ns.Recurrent of them, ns.Delay, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Flatten, nn.AvgPool2d; "
    "build the network as an ns.Sequential of these"
)
_BATCH_NORM = (
    "NIR has no node for it; fold it into the layer before, with "
    "torch.nn.utils.fusion.{}(layer.eval(), norm.eval())"
)
_REMEDIES = {
    "MaxPool2d": "NIR has no node for it; use nn.AvgPool2d",
    "LPPool2d": "NIR has no node for it; nn.AvgPool2d(size, divisor_override=1) sums",
    "BatchNorm1d": _BATCH_NORM.format("fuse_linear_bn_eval"),
    "BatchNorm2d": _BATCH_NORM.format("fuse_conv_bn_eval"),
    "OneToOne": "write it as an ns.Recurrent of ns.LIF whose weight is a diagonal matrix",
}


def _linear(nir: Any, layer: nn.Linear, before: torch.Size, after: Any, dt: float) -> list[Any]:
    if len(before) != 1:
        raise InterchangeError(f"NIR multiplies vectors, this gets {tuple(before)}; flatten it")
    metadata = {"spikes": 1} if isinstance(layer, SpikeLinear) else {}
    weight = _array(layer.weight)
    if layer.bias is None:
        return [nir.Linear(weight=weight, metadata=metadata)]
    return [nir.Affine(weight=weight, bias=_array(layer.bias), metadata=metadata)]


def _conv(nir: Any, layer: Any, before: torch.Size, after: torch.Size, dt: float) -> list[Any]:
    if layer.padding_mode != "zeros":
        raise InterchangeError(f"NIR pads with zeros, this with {layer.padding_mode!r}")
    is_flat = isinstance(layer, nn.Conv1d)
    options = {
        name: value[0] if is_flat and isinstance(value, tuple) else value
        for name, value in ((key, getattr(layer, key)) for key in ("stride", "padding", "dilation"))
    }
    bias = layer.weight.new_zeros(after[0]) if layer.bias is None else layer.bias
    node = (nir.Conv1d if is_flat else nir.Conv2d)(
        input_shape=before[1] if is_flat else tuple(before[1:]),
        weight=_array(layer.weight),
        bias=_array(bias),
        groups=layer.groups,
        metadata={} if layer.bias is not None else {"bias": 0},
        **options,
    )
    return [_typed(node, before, after)]


def _flatten(nir: Any, layer: nn.Flatten, before: torch.Size, after: Any, dt: float) -> list[Any]:
    start, end = (one - 1 if one >= 0 else one for one in (layer.start_dim, layer.end_dim))
    start = start if start >= 0 else start + len(before)
    end = end if end >= -1 else end + len(before)
    return [nir.Flatten(input_type=np.array(before), start_dim=start, end_dim=end)]


def _pool(nir: Any, layer: Any, before: torch.Size, after: torch.Size, dt: float) -> list[Any]:
    is_sum = layer.divisor_override == 1
    padding = np.array(_pair(layer.padding))
    if layer.ceil_mode:
        raise InterchangeError("NIR has no ceil_mode; leave it out")
    if layer.divisor_override not in (None, 1):
        raise InterchangeError("NIR divides by the window's size or not at all")
    if padding.any() and not (layer.count_include_pad or is_sum):
        raise InterchangeError("NIR counts the padding in an average; give count_include_pad=True")
    node = (nir.SumPool2d if is_sum else nir.AvgPool2d)(
        kernel_size=np.array(_pair(layer.kernel_size)),
        stride=np.array(_pair(layer.stride)),
        padding=padding,
    )
    return [_typed(node, before, after)]


def _scale(nir: Any, layer: Scale, before: torch.Size, after: Any, dt: float) -> list[Any]:
    return [nir.Scale(scale=_full(layer.scale, before).astype(_array(layer.scale).dtype))]


def _delay(nir: Any, layer: Delay, before: torch.Size, after: Any, dt: float) -> list[Any]:
    if layer.kernel != "linear":
        raise InterchangeError(
            f"NIR delays by one time, this spreads over several (kernel={layer.kernel!r}); set "
            "kernel = 'linear' when sigma has been shrunk"
        )
    steps = _full(layer.delay.clamp(0, layer.max_delay), before)
    metadata = {"max_delay": layer.max_delay, **_format(layer.delay), **_learned(layer)}
    if not np.array_equal((steps * dt / dt).astype(_array(layer.delay).dtype), steps):
        metadata["delay"] = steps  # for the last bits, as `_exact` does for decays
    return [nir.Delay(delay=steps * dt, metadata=metadata)]


def _integrator(nir: Any, layer: LI, before: torch.Size, after: Any, dt: float) -> list[Any]:
    metadata = {**_format(layer.beta), **_learned(layer)}
    return [_leak(nir, layer._decay(), before, dt, metadata)]


def _leak(nir: Any, decay: Tensor, shape: torch.Size, dt: float, metadata: dict[str, Any]) -> Any:
    """Return the node of a leaky integrator."""
    beta = _full(decay, shape)
    if (beta == 1).all():
        return nir.I(r=np.full(shape, 1.0 / dt), metadata=metadata)
    metadata = {**metadata, **_exact(dt, beta=beta)}
    tau = tau_of(beta, dt)
    return nir.LI(tau=tau, r=tau / dt, v_leak=np.zeros(shape), metadata=metadata)


def _neurons(nir: Any, layer: Any, before: torch.Size, after: Any, dt: float) -> list[Any]:
    """Return the node of spiking neurons; without a reset, an integrator and a threshold.

    NIR's spiking nodes all reset, so only the latter is exact for neurons without one.
    """
    kind, values = kind_of(layer), _values_of(layer)
    decays = {"alpha": values.pop("alpha")} if kind.synaptic else {}
    decays["beta"] = values.pop("beta")
    metadata = {
        "reset": kind.reset,
        "reset_delay": int(kind.delayed),
        "detach_reset": int(kind.detached),
        **_surrogate(layer),
        **_format(decays["beta"]),
        **_learned(layer),
    }
    full = {name: _full(value, before) for name, value in decays.items()}
    threshold = _full(values["threshold"], before)
    beta, silent = full["beta"], kind.reset == "none"
    if silent and not kind.synaptic:
        leak = _leak(nir, decays["beta"], before, dt, metadata)
        return [leak, nir.Threshold(threshold=threshold)]
    tau, zeros = tau_of(beta, dt), np.zeros(before)
    reset = _full(values["reset"], before) if kind.reset == "to" else zeros
    if not kind.synaptic and (beta == 1).all() and kind.reset != "to":
        spiking = {"v_threshold": threshold, "v_reset": reset, "metadata": metadata}
        return [nir.IF(r=np.full(before, 1.0 / dt), **spiking)]
    rest = {"r": tau / dt, "v_leak": zeros, "metadata": {**metadata, **_exact(dt, **full)}}
    if kind.synaptic:
        tau_syn = tau_of(full["alpha"], dt)
        rest |= {"tau_syn": tau_syn, "tau_mem": tau, "w_in": tau_syn / dt}
        if silent:
            return [nir.CubaLI(**rest), nir.Threshold(threshold=threshold)]
        return [nir.CubaLIF(v_threshold=threshold, v_reset=reset, **rest)]
    return [nir.LIF(tau=tau, v_threshold=threshold, v_reset=reset, **rest)]


def _recurrent(nir: Any, layer: Recurrent, before: torch.Size, after: Any, dt: float) -> list[Any]:
    """Return the sub-graph of neurons with recurrent weights."""
    shape = torch.Size((layer.size,))
    made = _neurons(nir, layer.neuron, shape, shape, dt)
    weight = layer.weight if layer.mask is None else layer.weight * layer.mask
    metadata = {} if layer.mask is None else {"mask": _array(layer.mask)}
    dense = {"weight": _array(weight), "metadata": metadata}
    back = (
        nir.Linear(**dense) if layer.bias is None else nir.Affine(bias=_array(layer.bias), **dense)
    )
    size = np.array(shape)
    last = "threshold" if len(made) == 2 else "lif"
    nodes = {"input": nir.Input(size), "lif": made[0], "w_rec": back, "output": nir.Output(size)}
    edges = [("input", "lif"), (last, "w_rec"), ("w_rec", "lif"), (last, "output")]
    if last != "lif":
        nodes[last] = made[1]
        edges.append(("lif", last))
    return [nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)]


_MAKERS: dict[Any, Maker] = {
    SpikeLinear: _linear,
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Flatten: _flatten,
    nn.AvgPool2d: _pool,
    Scale: _scale,
    Delay: _delay,
    LI: _integrator,
    LIF: _neurons,
    Spiking: _neurons,
    Recurrent: _recurrent,
}


def kind_of(layer: Any) -> Kind:
    """Return the kind of spiking neurons; raise InterchangeError if NIR has no node for it."""
    if getattr(layer, "rest", None):
        raise InterchangeError("NIR has no word for a state at rest other than 0")
    kind = kinds().get("|".join(layer.rule.program.split("|")[:3]))
    if kind is None:
        raise InterchangeError(
            _REMEDIES.get(type(layer).__name__)
            or "NIR has no node for these neurons; it has those of ns.LIF, ns.Synaptic, ns.PLIF "
            "and ns.LI, and no adaptive ones and none of your own"
        )
    return kind


def _values_of(layer: Any) -> dict[str, Tensor]:
    """Return the values of a layer's parameters by their names in the library's functions."""
    if isinstance(layer, Spiking):
        values = layer.parameter_values()
    else:
        values = (layer._decay(), layer.threshold)
    kind = kind_of(layer)
    names = [*(["alpha"] if kind.synaptic else []), "beta", "threshold", "reset"]
    return dict(zip(names, values))


def is_of_nir(layer: nn.Module) -> bool:
    """True for a layer that NIR expresses exactly, without the metadata of `to_nir`."""
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    return not isinstance(neuron, (LIF, Spiking)) or kind_of(neuron).is_of_nir


def _array(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().contiguous().numpy())


def _full(value: Tensor, shape: torch.Size) -> np.ndarray:
    """Return a value per feature in float64, precise enough for a float32 and its time constant."""
    return np.array(value.detach().double().expand(shape).numpy())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _typed(node: Any, before: torch.Size, after: torch.Size) -> Any:
    """Set a node's input and output shapes, which nir infers for some kinds of nodes only."""
    node.input_type, node.output_type = {"input": np.array(before)}, {"output": np.array(after)}
    return node


def _format(value: Tensor) -> dict[str, Any]:
    return {"format": "float64"} if value.dtype == torch.float64 else {}


def _exact(dt: float, **decays: np.ndarray) -> dict[str, Any]:
    """Return the decays that are not recovered bit for bit from their time constants."""
    return {
        name: value
        for name, value in decays.items()
        if not np.array_equal(beta_of(tau_of(value, dt), dt).astype(np.float32), value)
    }


def _learned(layer: nn.Module) -> dict[str, Any]:
    names = (name for name, _ in layer.named_parameters(recurse=False))
    learned = ["beta" if name == "logit" else name for name in names]  # `logit` of a PLIF
    return {"learn": ",".join(learned)} if learned else {}


def _surrogate(layer: Any) -> dict[str, Any]:
    """Return name and parameters of a built-in surrogate; empty for a surrogate of the user's."""
    surrogate = layer.surrogate
    if not is_built_in(surrogate.function):
        return {}
    numbers = np.array(surrogate.parameters, dtype=np.float64)
    return {"surrogate": surrogate.name, "surrogate_numbers": numbers}
