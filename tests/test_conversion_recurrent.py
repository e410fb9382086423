"""`ns.convert` of snnTorch's `RLeaky` and `RSynaptic` whose neurons all act on each other."""

import copy
import pickle

import pytest
import snntorch
import torch
from snntorch import surrogate as surrogates
from torch import nn

import neurospike as ns
from neurospike.backend import dispatch

KINDS = {
    "RLeaky": lambda size, **options: snntorch.RLeaky(0.9, linear_features=size, **options),
    "RSynaptic": lambda size, **options: snntorch.RSynaptic(
        0.7, 0.85, linear_features=size, **options
    ),
}
RESETS = ["subtract", "zero", "none"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def wide_atan(u):
    """The default surrogate with spikes in the format of `u`, as a product in float64 needs them."""
    return surrogates.atan()(u).to(u.dtype)


def stepped(theirs, current):
    """Spikes and states at every step of snnTorch's neurons from rest, each `[T, B, N]`."""
    state = [torch.zeros_like(current[0])] * (3 if isinstance(theirs, snntorch.RSynaptic) else 2)
    steps = []
    for x in current:
        state = theirs(x, *state)
        steps.append(state)
    return [torch.stack(one) for one in zip(*steps)]


def drive(reset, *shape, dtype=torch.float32):
    """A current at which neurons without a reset fire now and then, too."""
    return torch.randn(*shape, dtype=dtype) * 0.5 + (-0.02 if reset == "none" else 0.1)


@pytest.mark.parametrize("reset", RESETS)
def test_under_one_spike_in_ten_thousand_differs_by_another_order_of_additions(kind, reset):
    theirs = KINDS[kind](64, reset_mechanism=reset)
    current = drive(reset, 100, 32, 64)
    with torch.no_grad():
        wanted, *wanted_states = stepped(theirs, current)
        (spikes, *traces), _ = ns.convert(theirs)(current)
    assert 0.02 < wanted.mean() < 0.6
    assert (spikes != wanted).sum() < 1e-4 * wanted.sum()
    agree = (spikes == wanted).all(2).all(0)
    assert agree.float().mean() > 0.9
    for one, other in zip(traces, wanted_states):
        torch.testing.assert_close(one[:, agree], other[:, agree], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reset", RESETS)
def test_replayed_currents_give_equal_spikes(kind, reset):
    """Neurons alone, given the currents that reach them here, are stepped by snnTorch to the bit."""
    theirs = KINDS[kind](16, reset_mechanism=reset)
    layer = ns.convert(theirs)
    current = drive(reset, 50, 4, 16)
    with torch.no_grad():
        (spikes, *traces), _ = layer(current)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        returning = before.double() @ layer.weight.double().T + layer.bias
        rule = layer.neuron.rule
        # The sums in float64, rounded once, are not those of any order of float32; so the neurons
        # are compared on sums that every order of additions gives alike.
        for one in (layer.weight, layer.bias):
            one.mul_(32).round_().div_(32)
        current = (current * 32).round() / 32
        (spikes, *traces), _ = layer(current)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        returning = before @ layer.weight.T + layer.bias
        theirs.recurrent = nn.Identity()
        states = [torch.zeros(4, 16) for _ in traces]
        for t, total in enumerate(current + returning):
            spike, *states = theirs(total, torch.zeros(4, 16), *states)
            assert torch.equal(spike, spikes[t])
            for state, trace in zip(states, traces):
                assert torch.equal(state, trace[t])
    assert rule.states == ("syn", "mem")[-len(traces) :]
    assert spikes.sum() > 50
