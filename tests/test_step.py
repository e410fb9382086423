"""One frame at a time is the sequence, bit for bit, without its time axis."""

import pytest
import torch
from torch import nn

import neurospike as ns

LAYERS = {
    "LIF": lambda: ns.LIF(0.9, learn_beta=True),
    "LIF of beta by neuron": lambda: ns.LIF(torch.linspace(0.5, 0.9, 6)),
    "LI": lambda: ns.LI(0.9),
    "Synaptic": lambda: ns.Synaptic(0.5, 0.9),
    "ALIF": ns.ALIF,
    "Izhikevich": ns.Izhikevich,
    "Recurrent": lambda: ns.Recurrent(ns.ALIF(), 6, bias=True),
    "Recurrent at another rest": lambda: ns.Recurrent(ns.Izhikevich(), 6),
    "Delay": lambda: ns.Delay(6, 3),
    "Sequential": lambda: ns.Sequential(
        nn.Linear(6, 6), ns.LIF(0.9), ns.Sequential(ns.Delay(6, 2), ns.LI(0.8)), nn.Linear(6, 4)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_frames_are_the_sequence(name, batch_first):
    layer, x = LAYERS[name](), torch.rand(5, 3, 6) * 20
    wanted, ends = [], None
    for frame in x:  # a sequence of one step each
        out, ends = layer(frame[None], ends)
        wanted.append(out[0])
    layer.batch_first = batch_first
    state, found = None, []
    for frame in x:
        out, state = layer.step(frame, state)
        found.append(out)
    assert torch.equal(torch.stack(found), torch.stack(wanted))
    assert _flat(state).keys() == _flat(ends).keys()
    assert all(torch.equal(one, _flat(state)[key]) for key, one in _flat(ends).items())


def test_spikes_of_frames_are_those_of_one_call(backend):
    layer, x = ns.LIF(0.9, backend=backend), torch.rand(7, 2, 5) * 2
    spikes, mem = layer(x)
    state, found = None, []
    for frame in x:
        out, state = layer.step(frame, state)
        found.append(out)
    assert spikes.any()
    assert torch.equal(torch.stack(found), spikes)
    assert torch.equal(state, mem)


def test_gradients_flow_from_frame_to_frame():
    layer = ns.LIF(0.9, learn_beta=True)
    x = (torch.rand(4, 2, 5) * 2).requires_grad_()
    layer(x)[0].square().sum().backward()
    wanted, beta = x.grad.clone(), layer.beta.grad.clone()
    x.grad = layer.beta.grad = None
    state, total = None, 0.0
    for frame in x:
        out, state = layer.step(frame, state)
        total = total + out.square().sum()
    total.backward()
    assert torch.allclose(x.grad, wanted, rtol=1e-5, atol=0)
    assert torch.allclose(layer.beta.grad, beta, rtol=1e-5)


def test_frames_are_recorded():
    net, x = ns.Sequential(nn.Linear(6, 6), ns.LIF(0.9)), torch.rand(4, 2, 6) * 3
    with ns.recording(net) as seen:
        states, found = None, []
        for frame in x:
            out, states = net.step(frame, states)
            found.append(out)
    assert torch.equal(seen.spikes["1"], torch.stack(found))
    assert torch.equal(seen.output, torch.stack(found))


def test_a_network_is_not_tried_twice_for_a_frame():
    """As it would be for a constant input, to find out what draws at random; see held.py."""
    calls = []

    class Own(nn.Module):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return x

    net = ns.Sequential(Own(), ns.LIF(0.9))
    net.step(torch.rand(2, 5))
    assert calls == [(2, 5)]


def test_a_frame_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="current must be a tensor"):
        ns.LIF(0.9).step([1.0])
    with pytest.raises(TypeError, match="x must be a tensor"):
        ns.Sequential(ns.LIF(0.9)).step([1.0])


def _flat(state, path=()):
    if isinstance(state, torch.Tensor):
        return {path: state}
    parts = [_flat(part, (*path, k)) for k, part in enumerate(state)]
    return {key: one for part in parts for key, one in part.items()}
