"""Layers before the first neurons, run once on an input that is the same at every step.

Their output is the same at every step too, so it is computed once and held constant, unless a layer
draws at random. Which modules do cannot be seen from outside, so each is tried: if a call has
advanced a random generator, it is undone, and the layer runs on every step instead.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import dropout
from torch.nn.modules.lazy import LazyModuleMixin

from .spike_linear import SpikeLinear

_DRAW_IN_TRAINING = (dropout._DropoutNd, nn.RReLU)
_DRAW = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # in evaluation, too


def run_once(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return the layer's output for `x [B, *F]`; None if it draws, and has to run at every step.

    Of torch's own layers it is known which ones draw. Any other layer is called on a copy of `x`,
    and the generators that it may draw from are compared before and after: torch's on the CPU and
    on the device of `x`, Python's and NumPy's global ones, and every `torch.Generator` that is an
    attribute of it. If one has advanced, the generators and the layer's buffers are restored. Where
    that is impossible (in torch.compile, torch.export and the capture of a CUDA graph) such a layer
    runs at every step.
    """
    if all(_is_steady(module) for module in layer.modules()):
        return layer(x)
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    sources = _sources(layer, x.device)
    before = [get() for get, _ in sources]
    buffers = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    y = layer(x.clone())
    moved = [not _same(get(), state) for (get, _), state in zip(sources, before)]
    if not any(moved):
        return y
    for (_, put), state in zip(sources, before):
        put(state)
    with torch.no_grad():
        for buffer, kept in buffers:
            buffer.copy_(kept)
    return None


def _is_steady(module: nn.Module) -> bool:
    """True for a module of torch or a `SpikeLinear` without hooks whose output is not random."""
    kind = type(module)
    if isinstance(module, LazyModuleMixin):  # draws its weights at the first call, and only then
        return kind.__module__.startswith("torch.nn.modules.")
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, _DRAW) or (module.training and isinstance(module, _DRAW_IN_TRAINING)):
        return False
    return kind is SpikeLinear or kind.__module__.startswith("torch.nn.modules.")


_Source = tuple[Callable[[], Any], Callable[[Any], Any]]


def _sources(layer: nn.Module, device: torch.device) -> list[_Source]:
    """Return a getter and a setter of each generator's state that a layer may draw from."""
    sources: list[_Source] = [
        (torch.get_rng_state, torch.set_rng_state),
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
    ]
    if device.type not in ("cpu", "meta"):
        theirs = torch.get_device_module(device)
        sources.append((theirs.get_rng_state, theirs.set_rng_state))
    for module in layer.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                sources.append((value.get_state, value.set_state))
    return sources


def _same(one: Any, other: Any) -> bool:
    """True for equal generator states: tensors, or tuples of NumPy arrays, numbers and the like."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other)
    )
