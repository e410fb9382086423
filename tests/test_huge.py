"""More than 2^31 neuron-steps and inputs: places in memory are counted in 64 bits."""

import math
from pathlib import Path

import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.layers.break_even import Policy, use_policy

STEPS, NEURONS = (1 << 15) + 8, 1 << 16  # 2^31 + 2^19 spikes

pytestmark = pytest.mark.skipif(
    dispatch.unsupported_reasons("numba") != [], reason="needs the numba backend"
)


def free_gb():
    """Memory that a test may take, in GB; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) / 1e6


@pytest.mark.skipif(free_gb() < 12, reason="needs 12 GB of free memory")
def test_spikes_beyond_2_31_are_where_they_belong():
    """Without a memory, a current of 1.5 fires, is reset by 1, does not, and so on."""
    current = torch.where(torch.arange(NEURONS) % 3 == 0, 1.5, 0.5).view(1, -1)
    with torch.no_grad():
        spikes, mem = ns.lif(current, beta=0.0, num_steps=STEPS, backend="numba")
    assert spikes.numel() > 1 << 31
    fires = (current > 1).float()
    for t in (*range(4), *range((1 << 15) - 4, STEPS)):
        assert torch.equal(spikes[t], fires * (t % 2 == 0)), t
    assert torch.equal(mem, current - fires)


@pytest.mark.skipif(free_gb() < 8, reason="needs 8 GB of free memory")
def test_inputs_beyond_2_31_are_found_and_summed():
    rows, inputs = (1 << 21) + 64, 1024
    spikes = torch.zeros(rows, inputs, dtype=torch.uint8)
    assert spikes.numel() > 1 << 31
    active = torch.tensor([0, rows // 2, rows - 65, rows - 1])
    places = torch.tensor([3, 1023, 0, 700])
    spikes[active, places] = 1
    layer = ns.SpikeLinear(inputs, 2, backend="numba")
    with use_policy(Policy(margin=math.inf)):
        out = layer(spikes)
    assert "Events" in type(out.grad_fn).__name__
    wanted = layer.bias + layer.weight[:, places].t()
    assert torch.equal(out[active], wanted)
    assert torch.equal(out[rows - 2], layer.bias)
    grad = torch.randn(rows, 2)
    (found,) = torch.autograd.grad(out, layer.weight, grad)
    expected = torch.zeros_like(found)
    expected[:, places] = grad[active].t()
    assert torch.equal(found, expected)
