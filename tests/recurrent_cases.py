"""Recurrent layers for the Triton backend's kernels, on whatever device the tensors are."""

import itertools
from typing import Any

import torch

import neurospike as ns
from benchmarks.recurrent_gate import prove
from neurospike.formulas import fire, heaviside

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def three(current, u, v, w, decay, threshold):
    """Three states, of which one is changed by the spike before."""
    w = decay * w + 0.3 * heaviside(u - threshold)
    v = decay * v + current
    u = decay * u + v - w
    return fire(u - threshold), u, v, w


def contrary(current, u, decay):
    """A neuron that fires without any current: those beyond the last one must not act."""
    u = decay * u + current
    return fire(0.1 - u), u


NEURONS: dict[str, Any] = {
    "subtract": lambda size: ns.LIF(0.9, learn_beta=True),
    "zero": lambda size: ns.LIF(0.9, threshold=torch.linspace(0.5, 1.0, size), reset="zero"),
    "none": lambda size: ns.LIF(0.8, reset="none", learn_threshold=True),
    "immediate": lambda size: ns.LIF(0.9, reset_delay=False),
    "seadlif": lambda size: ns.SEAdLIF(),
    "contrary": lambda size: ns.Spiking(contrary, decay=0.8),
    "three": lambda size: ns.Spiking(three, decay=0.8, threshold=0.6, learn=["decay"]),
}


def layer_of(
    neuron: str, size: int, dtype: torch.dtype, device: str, scale: float = 3.0
) -> ns.Recurrent:
    """Return a layer on the Triton backend whose neurons act on each other noticeably."""
    torch.manual_seed(0)
    made = NEURONS[neuron](size)
    made.backend = "triton"
    layer = ns.Recurrent(made, size, bias=True).to(device)
    layer = layer.double() if dtype == torch.float64 else layer
    with torch.no_grad():
        layer.weight *= scale
    return layer


def sequence(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return a current that makes some neurons of each kind fire."""
    generator = torch.Generator().manual_seed(1)
    return (0.5 + 2.0 * torch.randn(shape, generator=generator)).to(device, dtype)


def states_of(layer: ns.Recurrent, batch: int) -> tuple[torch.Tensor, ...]:
    """Return last spikes, of any number, and states."""
    generator = torch.Generator().manual_seed(2)
    many = (torch.rand(batch, layer.size, generator=generator) for _ in layer.states)
    return tuple((one - 0.3).to(layer.weight) for one in many)


def check(
    neuron: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    given: bool = True,
    lengths: bool = False,
) -> float:
    """Prove a layer against its replay, and two segments against the whole."""
    steps, batch, size = shape
    layer = layer_of(neuron, size, dtype, device)
    drive = 10.0 if neuron == "seadlif" else 1.0  # which is slow to fire
    current = drive * sequence(shape, dtype, device)
    state = states_of(layer, batch) if given else ()
    ends = None
    if lengths:
        some = itertools.cycle((steps - 1, 0, steps, 1))
        ends = torch.tensor([next(some) for _ in range(batch)], device=device)
    distance = prove(layer, current, state, ends)
    with torch.no_grad():
        spikes, after = layer(current, state or None, lengths=ends)
        assert 0.02 < spikes.float().mean() < 0.7
        cut = steps // 2
        left = [None, None] if ends is None else [ends.clamp(max=cut), (ends - cut).clamp(min=0)]
        first, middle = layer(current[:cut], state or None, lengths=left[0])
        second, end = layer(current[cut:], middle, lengths=left[1])
    assert torch.equal(torch.cat([first, second]), spikes)
    assert all(map(torch.equal, end, after))
    return distance
