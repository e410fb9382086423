"""The gates of the benchmarks pass for rivals that are here, and fail for another neuron."""

import pytest
import torch

from benchmarks import networks, rivals, saved, step, workload
from benchmarks.gate import GateError, gate
from benchmarks.timing import tensors

TORCH = [r for r in rivals.here() if r.package != "spyx"]  # JAX takes seconds to load


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("rival", TORCH, ids=lambda rival: rival.name)
def test_a_rival_computes_what_its_row_says(rival):
    current, grad = tensors("12x3x40")
    assert gate(rival.name, rival.make(), rival.wanted(), current, grad) <= 1e-6


ON_GPUS = [r for r in TORCH if r.package in ("snntorch", "spikingjelly")]


@pytest.mark.parametrize("rival", ON_GPUS, ids=lambda rival: rival.name)
def test_a_rival_runs_where_its_current_is(rival):
    current = torch.randn(3, 2, 4, device="meta", requires_grad=True)  # any device but the CPU
    spikes = rival.make()(current)
    assert spikes.device.type == "meta"
    rivals.layer_step(rival.make(), current, torch.empty(3, 2, 4, device="meta"))()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_spikingjelly_is_given_a_state_that_its_kernels_take(dtype, monkeypatch):
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    given, whole = [], functional.lif_multi_step

    def seen(current, state, **options):
        given.append(state.dtype)
        return whole(current, state, **options)

    monkeypatch.setattr(functional, "lif_multi_step", seen)
    assert rivals.spikingjelly_multi_step()(torch.randn(3, 2, 4, dtype=dtype)).dtype == dtype
    assert given == [torch.float64 if dtype == torch.float64 else torch.float32]


@pytest.mark.parametrize("network", [networks.Tutorial5, networks.FusedTutorial5])
def test_a_network_runs_where_its_pictures_are(network):
    net = network(16, 12, 10, steps=3).to("meta")
    images = torch.empty(4, 16, device="meta")
    net.loss(images, torch.zeros(4, dtype=torch.int64, device="meta")).backward()
    assert {p.grad.device.type for p in net.parameters()} == {"meta"}


def test_spyx_computes_what_its_row_says():
    """Its spikes are those of snnTorch a step later; its gradient also goes through the reset."""
    current, grad = tensors("12x3x40")
    oracle = rivals.spyx_oracle()
    theirs, snntorch = oracle(current), rivals.snntorch_loop()(current)
    assert torch.equal(theirs[1:], snntorch[:-1])
    assert not theirs[0].any()
    shifted = torch.autograd.grad(
        snntorch, current, grad.roll(-1, 0).index_fill(0, torch.tensor([11]), 0)
    )[0]
    assert not torch.allclose(torch.autograd.grad(theirs, current, grad)[0], shifted)


def test_the_gate_refuses_another_neuron():
    current, grad = tensors("12x3x400")
    ours = rivals.ours("reference")

    def few(x):  # one neuron of 1200 fires once too often
        spikes = ours(x)
        extra = torch.zeros_like(spikes)
        extra[5, 1, 7] = 1 - 2 * spikes[5, 1, 7].detach()
        return spikes + extra

    with pytest.raises(GateError, match=r"few: 1 of 14400 spikes differ from the oracle's"):
        gate("few", few, ours, current, grad)
    assert gate("few", few, ours, current, grad, rounding=True) == 0.0
    other = rivals.ours("reference", reset="none")
    with pytest.raises(GateError, match=r"other: \d+ of 14400 spikes differ"):
        gate("other", other, ours, current, grad, rounding=True)
    slope = rivals.ours("reference", surrogate="sigmoid")
    with pytest.raises(GateError, match=r"slope: gradient differs by .*, at most 1e-05 allowed"):
        gate("slope", slope, ours, current, grad, rounding=True)


def test_a_fused_layer_keeps_nothing_but_its_current(fused):
    if fused != "numba":
        pytest.skip("this one keeps checkpoints of its membrane")
    current, _ = tensors("12x3x400")
    kept = saved.bytes_saved(rivals.ours(fused), current)
    assert current.nbytes <= kept <= current.nbytes + 64
    assert saved.bytes_saved(rivals.snntorch_loop(), current) > kept
    with torch.no_grad():
        assert saved.bytes_saved(rivals.ours(fused), current) == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
def test_the_workload_has_a_floor_and_passes_its_gates(monkeypatch):
    monkeypatch.setattr(rivals, "RIVALS", TORCH)
    work = workload.Workload(24, batch=2, steps=9)
    steps = workload.contenders(work, ["reference"])
    assert next(iter(steps)) == "reference"
    assert list(steps)[-1] == "products alone"
    weight, bias, x = steps["reference"]()
    assert (weight.shape, bias.shape, x.shape) == ((24, 24), (24,), (9, 2, 24))
    for name in list(steps)[1:-1]:
        assert len(steps[name]()) == 3
    assert steps["products alone"]().shape == weight.shape


def test_operators_of_a_step_are_sorted_into_parts():
    times = {
        "aten::addmm [1000] x [128, 784] x [784, 1000]": 3.0,
        "neurospike::numba_scan_backward": 2.0,
        "Optimizer.step#Adam.step": 1.0,
        "aten::_log_softmax": 0.5,
        "aten::mul": 0.25,
        "something else": 0.125,
    }
    assert list(step.by_part(times).values()) == list(times.values())
