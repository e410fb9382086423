"""`ns.Sequential` against a loop over time, and its refusals."""

import copy

import pytest
import torch
from torch import nn

import neurospike as ns


def network(backend):
    return ns.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.MaxPool2d(2),
        ns.LIF(torch.full((3, 1, 1), 0.8), learn_beta=True, backend=backend),
        nn.Flatten(),
        nn.Linear(27, 5),
        ns.LIF(0.9, reset="zero", backend=backend),
        nn.Linear(5, 4),
        ns.LI(0.7, backend=backend),
    ).double()


@pytest.fixture
def net(backend):
    return network(backend)


@pytest.fixture
def frames():
    return torch.randn(6, 3, 2, 8, 8, dtype=torch.float64)


def by_steps(net, frames):
    """The same network stepped over time, each layer on [B, *F]."""
    states = [None] * len(net)
    outputs = []
    for x in frames:
        for k, layer in enumerate(net):
            if hasattr(layer, "beta"):
                x, states[k] = layer(x[None], states[k])
                x = x[0]
            else:
                x = layer(x)
        outputs.append(x)
    return torch.stack(outputs), [state for state in states if state is not None]


def test_it_is_the_network_stepped_over_time(net, frames):
    out, states = net(frames)
    wanted, last = by_steps(net, frames)
    assert out.shape == (6, 3, 4)
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-12)
    assert [state.shape for state in states] == [(3, 3, 3, 3), (3, 5), (3, 4)]
    for got, want in zip(states, last):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    got = torch.autograd.grad(out.pow(2).sum(), parameters)
    want = torch.autograd.grad(wanted.pow(2).sum(), parameters)
    for g, w in zip(got, want):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)


def test_segments_equal_the_whole(net, frames):
    whole, last = net(frames)
    states, parts = None, []
    for part in frames.split([1, 0, 3, 2]):
        out, states = net(part, states)
        parts.append(out)
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    for got, want in zip(states, last):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_constant_input_is_run_once_up_to_the_first_neurons(net, frames):
    runs = []
    net[0].register_forward_hook(lambda *call: runs.append(call[1][0].shape[0]))
    held, states = net(frames[0], num_steps=7)
    assert runs == [3]
    repeated, wanted = net(frames[:1].expand(7, *frames.shape[1:]))
    assert runs == [3, 21]
    assert torch.allclose(held, repeated, rtol=1e-12, atol=1e-12)
    more, _ = net(frames[0], states, num_steps=2)
    whole, _ = net(frames[0], num_steps=9)
    assert torch.allclose(more, whole[7:], rtol=1e-12, atol=1e-12)
    assert all(torch.allclose(a, b) for a, b in zip(states, wanted))


def test_without_neurons_a_constant_input_gives_a_constant_output():
    linear = nn.Linear(4, 3)
    out, states = ns.Sequential(linear)(torch.ones(2, 4), num_steps=5)
    assert torch.equal(out, linear(torch.ones(2, 4)).expand(5, 2, 3))
    assert states == ()


def test_nested_networks_and_layers_of_the_users(backend):
    class Sum(nn.Module):
        """Output: the sum so far; its state: the last one."""

        carries_state = True

        def forward(self, x, state=None):
            total = x.cumsum(0) + (0 if state is None else state)
            return total, total[-1]

    net = ns.Sequential(Sum(), ns.Sequential(nn.Identity(), ns.LIF(0.9, backend=backend)), Sum())
    x = torch.randn(6, 2, 3)
    out, states = net(x)
    assert [type(state) for state in states] == [torch.Tensor, tuple, torch.Tensor]
    first, carried = net(x[:4])
    second, last = net(x[4:], carried)
    assert torch.allclose(torch.cat([first, second]), out)
    assert torch.allclose(last[1][0], states[1][0])
    held, _ = net(x[0], num_steps=3)
    assert torch.allclose(held, net(x[:1].expand(3, 2, 3))[0])


def test_batch_normalisation_and_dropout_see_every_step():
    normal = nn.BatchNorm1d(3)
    x = torch.randn(5, 4, 3) * 3 + 1
    out, _ = ns.Sequential(normal)(x)
    assert torch.allclose(out.mean((0, 1)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(normal.running_mean, 0.1 * x.mean((0, 1)))
    dropped, _ = ns.Sequential(nn.Dropout(0.5))(torch.ones(50, 4, 3))
    assert not torch.equal(dropped[0], dropped[1])


def test_it_is_a_torch_sequential_in_all_else(net, frames):
    out, _ = net(frames)
    plain = nn.Sequential(*copy.deepcopy(list(net)))
    assert list(plain.state_dict()) == list(net.state_dict())
    assert isinstance(net[2], ns.LIF)
    tail = net[3:]
    assert isinstance(tail, ns.Sequential)
    spikes, _ = net[:3](frames)
    assert torch.allclose(tail(spikes)[0], out)
    net.append(nn.ReLU())
    assert torch.equal(net(frames)[0], out.relu())
    assert torch.equal(copy.deepcopy(net)(frames)[0], out.relu())


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic, fused, frames):
    torch._dynamo.reset()
    net = network(fused)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, want in zip(compiled(frames), net(frames)):
        for a, b in zip(got, want):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, r"x must be a tensor \[T, B, \*F\], got list"),
        ((torch.zeros(4),), ValueError, r"got shape \(4,\), which has no time or no batch"),
        ((torch.zeros(2, 3, 4), torch.zeros(3, 4)), TypeError, "the tuple .* got Tensor"),
        ((torch.zeros(2, 3, 4), 5), TypeError, "the tuple that an earlier call returned, got int"),
        ((torch.zeros(2, 3, 4), (None,)), ValueError, r"each of the 2 layers .*\(1, 3\), got 1"),
        ((torch.zeros(2, 3, 4), (torch.zeros(3, 9), None)), ValueError, "mem must have the shape"),
    ],
    ids=str,
)
def test_wrong_calls(arguments, error, message):
    net = ns.Sequential(nn.Linear(4, 5), ns.LIF(0.9), nn.ReLU(), ns.LI(0.9))
    with pytest.raises(error, match=message):
        net(*arguments)


def test_layers_that_lose_track_of_time_are_refused():
    import snntorch

    with pytest.raises(TypeError, match=r"layer 1 \(Sequential\) holds a LIF, .*ns.Sequential"):
        ns.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), ns.LIF(0.9)))
    with pytest.raises(TypeError, match=r"layer 0 \(Leaky\) holds a Leaky of snntorch, .*convert"):
        ns.Sequential(snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(TypeError, match="holds a Leaky of snntorch"):
        ns.Sequential().append(nn.Sequential(snntorch.Leaky(0.9)))
    with pytest.raises(TypeError, match=r"layer 0 \(LSTM\) returned a tuple.*carries_state = True"):
        ns.Sequential(nn.LSTM(4, 4))(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"layer 0 \(Flatten\) made \(24,\) of a batch of 6"):
        ns.Sequential(nn.Flatten(0))(torch.zeros(2, 3, 4))
