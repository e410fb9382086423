"""States between calls: cut off, put back to rest, moved; gradients truncated in any network."""

from collections import namedtuple

import pytest
import torch
from torch import nn

import neurospike as ns
from neurospike import formulas

Pair = namedtuple("Pair", "one other")


def network():
    net = ns.Sequential(
        nn.Linear(6, 6),
        ns.Izhikevich(),
        ns.Sequential(ns.Delay(6, 3), ns.LIF(0.9, 0.1)),
        nn.Linear(6, 6),
        ns.Recurrent(ns.Izhikevich(), 6),
        ns.LI(0.8),
    )
    with torch.no_grad():  # so that neurons fire within a few steps
        for layer in (net[0], net[3]):
            layer.weight.abs_().mul_(50)
    return net


def x():
    return torch.rand(5, 4, 6) * 30


def flat(state):
    return [state] if isinstance(state, torch.Tensor) else [t for s in state for t in flat(s)]


def test_detached_states_hold_the_same_and_no_past():
    _, states = network()(x())
    for given in (states, [None, {"a": states}], Pair(states, None), None):
        found = ns.detach(given)
        assert type(found) is type(given)
    found = ns.detach(states)
    assert all(map(torch.equal, flat(found), flat(states)))
    assert any(one.requires_grad for one in flat(states))
    assert not any(one.requires_grad for one in flat(found))
    assert ns.detach(Pair(states[3], None)).other is None
    with pytest.raises(TypeError, match="or None, got int"):
        ns.detach((states, 3))


def test_moved_states_are_those_of_another_format_or_device():
    _, states = network()(x())
    moved = ns.move(states, torch.float64)
    assert {one.dtype for one in flat(moved)} == {torch.float64}
    assert {one.device.type for one in flat(ns.move(states, "meta"))} == {"meta"}


@pytest.mark.parametrize("samples", [[2], 2, -2, torch.tensor([2]), torch.arange(4) == 2])
def test_a_sample_that_is_reset_starts_anew_and_the_others_go_on(samples):
    net, first, second = network(), x(), x()
    _, states = net(first)
    out, ends = net(second, ns.reset(net, states, samples))
    fresh, rested = net(second)
    other, gone_on = net(second, states)
    assert not torch.allclose(fresh[:, 2], other[:, 2])
    keeps = torch.arange(4) != 2
    assert torch.equal(out[:, 2], fresh[:, 2])
    assert torch.equal(out[:, keeps], other[:, keeps])
    for found, rest, on in zip(flat(ends), flat(rested), flat(gone_on), strict=True):
        axis = int(found.dim() == 3)  # the state of a Delay
        assert torch.equal(found.select(axis, 2), rest.select(axis, 2))
        assert torch.equal(found.select(axis, 0), on.select(axis, 0))


def test_layers_and_modules_of_ones_own_are_reset():
    layer = ns.Izhikevich()
    _, state = layer(x())
    v, u = ns.reset(layer, state, [0, 3])
    assert v[[0, 3]].unique().tolist() == [-65.0]
    assert u[[0, 3]].unique().tolist() == [-13.0]
    assert torch.equal(v[1:3], state[0][1:3])
    assert ns.reset(layer, None, 1) is None
    _, mem = ns.LIF(0.9)(x())
    assert ns.reset(ns.LIF(0.9), mem, [])[0].any()

    class Own(nn.Module):
        carries_state = True

    kept = ns.reset(Own(), {"a": torch.ones(4, 2)}, 1)
    assert kept["a"].sum(1).tolist() == [2, 0, 2, 2]


def test_states_without_a_rest_of_their_own_rest_at_0():
    layer = ns.ALIF()
    _, state = layer(x())
    for before, after in zip(state, ns.reset(layer, state, [0, 3]), strict=True):
        assert before[[0, 3]].any()
        assert not after[[0, 3]].any()


def test_gradients_of_the_other_samples_flow_on():
    layer = ns.LI(0.9)
    mem = torch.ones(4, 2, requires_grad=True)
    ns.reset(layer, mem, [1]).sum().backward()
    assert mem.grad.sum(1).tolist() == [2, 0, 2, 2]


def test_refusals():
    layer, state = ns.LIF(0.9), torch.zeros(4, 2)
    with pytest.raises(TypeError, match="Linear carries no state; give the layer"):
        ns.reset(nn.Linear(2, 2), state, 1)
    with pytest.raises(ValueError, match=r"must be \[B\] = \[4\], got the shape \[3\]"):
        ns.reset(layer, state, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="samples must be indexes of the batch, or a mask"):
        ns.reset(layer, state, "2")
    with pytest.raises(TypeError, match="samples must be indexes"):
        ns.reset(layer, state, 1.5)
    with pytest.raises(IndexError):
        ns.reset(layer, state, 4)
    with pytest.raises(ValueError, match="the state of this ALIF is a tuple of 2, got Tensor"):
        ns.reset(ns.ALIF(), state, 1)
    with pytest.raises(ValueError, match="this Sequential is a tuple of 1, got tuple of 2"):
        ns.reset(ns.Sequential(layer), (state, state), 1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        ns.truncate(layer, 0)
    with pytest.raises(TypeError, match=r"whole number of steps, or None, got 2\.5"):
        ns.truncate(layer, 2.5)
    with pytest.raises(TypeError, match="whole number of steps, or None, got True"):
        ns.truncate(layer, True)


def test_gradients_are_truncated_in_any_network():
    """As if the states were detached between segments: the answer and its gradients."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lif = nn.Linear(6, 6), ns.LIF(0.9)
            self.rest = ns.Sequential(ns.Recurrent(ns.ALIF(), 6), ns.LI(0.8))

        def forward(self, given, states=(None, None)):
            spikes, mem = self.lif(self.first(given), states[0])
            out, after = self.rest(spikes, states[1])
            return out, (mem, after)

    net, given = Own(), torch.rand(6, 4, 6) * 4

    def gradients(out):
        return torch.autograd.grad(out.square().sum(), list(net.parameters()))

    whole = gradients(net(given)[0])
    parts, states = [], (None, None)
    for chunk in given.split(2):
        out, states = net(chunk, ns.detach(states))
        parts.append(out)
    wanted = gradients(torch.cat(parts))
    ns.truncate(net, 2)
    found = gradients(net(given)[0])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0], whole[0], rtol=1e-4)
    ns.truncate(net, None)
    assert torch.allclose(gradients(net(given)[0])[0], whole[0])


def test_detach_of_the_package_is_the_formula_in_a_neurons_function():
    detach, cut = ns.detach, formulas.detach

    def own(current, mem, beta):
        v = beta * mem + current
        spike = fire(v - 1.0)  # noqa: F821
        return spike, v * (1.0 - detach(spike))

    def other(current, mem, beta):
        v = beta * mem + current
        spike = fire(v - 1.0)  # noqa: F821
        return spike, v * (1.0 - cut(spike))

    current = torch.randn(9, 2, 3, requires_grad=True)
    grads = []
    for function in (own, other):
        spikes, mem = ns.Spiking(function, beta=0.9)(current)
        grads.append(torch.autograd.grad(spikes.sum() + mem[0].sum(), current)[0])
    assert torch.equal(*grads) and grads[0].any()
