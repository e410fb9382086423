"""Immediate resets against SpikingJelly, where its contract is ours: it fires at `>=`."""

import pytest
import torch

import neurospike as ns

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
def test_soft_and_hard_reset(reset, detach, backend):
    """In float64, where its `v - v / tau + x` is our `beta * v + x` but for the last bits."""
    x = torch.randn(15, 3, 40, dtype=torch.float64, requires_grad=True)
    theirs = neuron.LIFNode(
        tau=4.0,
        decay_input=False,
        v_threshold=0.8,
        v_reset=None if reset == "subtract" else 0.0,
        surrogate_function=surrogate.ATan(alpha=2.0),
        detach_reset=detach,
        step_mode="m",
    ).double()
    theirs.store_v_seq = True
    wanted = theirs(x)
    spikes, _, trace = ns.lif(
        x,
        beta=0.75,
        threshold=0.8,
        reset=reset,
        reset_delay=False,
        detach_reset=detach,
        return_trace=True,
        backend=backend,
    )
    assert wanted.sum() > 0
    assert torch.equal(spikes, wanted)
    assert torch.allclose(trace, theirs.v_seq, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    want = torch.autograd.grad((wanted * weight).sum(), x)[0]
    got = torch.autograd.grad((spikes * weight).sum(), x)[0]
    assert (got - want).norm() <= 1e-10 * want.norm()
