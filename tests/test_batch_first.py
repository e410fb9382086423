"""`batch_first`: the same numbers with the first two axes exchanged, states as they are."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import neurospike as ns
from neurospike.ops import decomposed
from neurospike.training.energy import count_operations

LAYERS = {
    "LIF": (lambda **o: ns.LIF(0.9, **o), True),
    "LI": (lambda **o: ns.LI(0.9, **o), False),
    "Synaptic": (lambda **o: ns.Synaptic(0.5, 0.9, **o), True),
    "PLIF": (lambda **o: ns.PLIF(0.9, **o), True),
    "Recurrent": (lambda **o: ns.Recurrent(ns.ALIF(), 6, zero_diagonal=True, **o), True),
    "Delay": (lambda **o: ns.Delay(6, 3, **o), False),
}


def both(name):
    """A layer with time first and its copy with the batch first."""
    make, has_trace = LAYERS[name]
    one, other = make(), make(batch_first=True)
    other.load_state_dict(one.state_dict())
    return one, other, {"return_trace": True} if has_trace else {}


def network(batch_first=False):
    return ns.Sequential(
        nn.Linear(6, 6),
        ns.LIF(0.9),
        ns.Sequential(nn.Linear(6, 6), ns.ALIF(), batch_first=batch_first),
        nn.Dropout(0.5),
        ns.Delay(6, 2, delay=1.0),
        nn.Linear(6, 4),
        ns.LI(0.9),
        batch_first=batch_first,
    ).eval()


def exchanged(out):
    if isinstance(out, tuple):
        return tuple(exchanged(one) for one in out)
    return out.transpose(0, 1)


def same(one, other):
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_and_give_the_batch_first(name):
    one, other, options = both(name)
    x = torch.rand(5, 3, 6) * 4
    (out, state, *traces), found = one(x, **options), other(x.transpose(0, 1), **options)
    assert same(exchanged(out), found[0])
    assert same(state, found[1])
    assert same(exchanged(tuple(traces)), found[2:])
    more = other(x.transpose(0, 1), found[1])
    assert same(exchanged(one(x, state)[0]), more[0])


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_and_a_constant_current_mean_what_they_do(name):
    one, other, _ = both(name)
    x, lengths = torch.rand(5, 3, 6) * 4, torch.tensor([5, 0, 2])
    out, state = one(x, lengths=lengths)
    found, end = other(x.transpose(0, 1), lengths=lengths)
    assert same(exchanged(out), found)
    assert same(state, end)
    out, state = one(x[0], num_steps=4, lengths=[4, 1, 0])
    found, end = other(x[0], num_steps=4, lengths=[4, 1, 0])
    assert found.shape[:2] == (3, 4)
    assert same(exchanged(out), found)
    assert same(state, end)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same(name):
    one, other, _ = both(name)
    x = torch.rand(5, 3, 6) * 4
    given = x.clone().requires_grad_(), x.transpose(0, 1).clone().requires_grad_()
    one(given[0])[0].square().sum().backward()
    other(given[1])[0].square().sum().backward()
    assert torch.allclose(given[0].grad.transpose(0, 1), given[1].grad, rtol=1e-6)
    for wanted, found in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(wanted.grad, found.grad, rtol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_spikes_may_be_changed_in_place(batch_first, backend):
    results = []
    for inplace in (False, True):
        layer = ns.LIF(0.9, learn_beta=True, backend=backend, batch_first=batch_first)
        x = torch.linspace(-1.0, 3.0, 60).view(4, 5, 3).requires_grad_()
        spikes, _ = layer(x)
        nn.functional.hardtanh(spikes, 0.0, 0.5, inplace=inplace).sum().backward()
        results.append((x.grad, layer.beta.grad))
    assert same(*results)


# How a batch first may lie in memory: as it is, time first, a part of more steps or of every second
# one, one sample for all, one step for all.
LAYOUTS = {
    "by sample": lambda x: x,
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "some of the steps": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every second step": lambda x: torch.stack([x, -x], 2).flatten(1, 2)[:, ::2],
    "one sample": lambda x: x[:1].expand_as(x),
    "one step": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 9, 40), (2, 1, 7), (1, 4, 64), (5, 6, 3, 2), (4, 0, 5)])
@pytest.mark.parametrize("laid", LAYOUTS)
def test_no_layout_in_memory_changes_a_bit(laid, shape, dtype, fused):
    layer = ns.ALIF(learn=("rise", "rho"), backend=fused)
    layer.batch_first = True
    whole = LAYOUTS[laid](torch.randn(shape).mul(2).to(dtype))
    lengths = (torch.arange(shape[0]) * 2).clamp(max=shape[1])
    grad = LAYOUTS[laid](torch.randn(shape).to(dtype))
    found = []
    for options in ({}, {"lengths": lengths}, {"return_trace": True}):
        for layer.segment in (None, 4):
            for layer.batch_first in (False, True):
                x = whole.detach().requires_grad_()
                given = x if layer.batch_first else x.transpose(0, 1).contiguous()
                spikes, state, *traces = layer(given, **options)
                sequences = (spikes, *(traces[0] if traces else ()))
                if not layer.batch_first:
                    sequences = exchanged(sequences)
                total = sum((one * grad).sum() for one in sequences) + sum(map(torch.sum, state))
                grads = torch.autograd.grad(total, [x, *layer.parameters()])
                found.append((sequences, state, grads))
            (spikes, state, grads), (others, ends, slopes) = found[-2:]
            assert same(spikes, others)
            assert same(state, ends)
            assert torch.equal(grads[0], slopes[0])
            torch.testing.assert_close(grads[1:], slopes[1:])


@pytest.mark.parametrize("steps", [1, 6])
def test_a_cpu_copies_no_sequence(steps):
    layer = ns.LIF(0.9, backend="numba", batch_first=True)
    x = torch.randn(3, steps, 40, requires_grad=True)
    grad = torch.randn(3, steps, 40)
    layer(x)[0].backward(grad)
    with torch.profiler.profile() as seen:
        spikes, _ = layer(x)
        spikes.backward(grad)
    assert not [one.name for one in seen.events() if one.name in ("aten::copy_", "aten::clone")]
    assert spikes.is_contiguous()
    assert x.grad.is_contiguous()


def test_what_runs_without_this_library_lies_in_memory_alike():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = ns.LIF(0.9, backend="numba", batch_first=True)

        def forward(self, x):
            return self.lif(x)[0].view(-1, 4)

    net, x = Flat(), torch.randn(3, 5, 4)
    program = torch.export.export(net, (x,)).run_decompositions(decomposed.table())
    assert not [node for node in program.graph.nodes if "neurospike" in str(node.target)]
    assert torch.equal(program.module()(x), net(x))


def test_a_network_exchanges_the_axes_at_its_ends_and_nowhere_else():
    one, other = network(), network(batch_first=True)
    other.load_state_dict(one.state_dict())
    x, lengths = torch.rand(5, 3, 6) * 4, [5, 0, 2]
    shapes = []
    other[0].register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    other[1].register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    for options in ({}, {"lengths": lengths}):
        out, states = one(x, **options)
        found, ends = other(x.transpose(0, 1), **options)
        assert same(exchanged(out), found)
        assert same(states, ends)
    assert shapes[:2] == [(15, 6), (5, 3, 6)]
    assert same(exchanged(one(x, states)[0]), other(x.transpose(0, 1), ends)[0])
    assert same(exchanged(one(x[0], num_steps=4)[0]), other(x[0], num_steps=4)[0])


def test_what_is_without_neurons_is_exchanged_too():
    net = ns.Sequential(nn.Linear(6, 4), batch_first=True)
    x = torch.rand(3, 5, 6)
    assert torch.allclose(net(x)[0], net[0](x))
    assert net(x[:, 0], num_steps=5)[0].shape == (3, 5, 4)


def test_a_recording_has_time_first():
    net, x = network(batch_first=True), torch.rand(3, 5, 6) * 4
    seen = ns.record(net, x)
    assert {one.shape[:2] for one in seen.spikes.values()} == {(5, 3)}
    assert torch.equal(seen.current, x.transpose(0, 1))
    assert torch.equal(seen.output, net(x)[0].transpose(0, 1))
    layer = ns.LIF(0.9, batch_first=True)
    assert torch.equal(ns.record(layer, x).spikes["LIF"], layer(x)[0].transpose(0, 1))


def test_operations_are_those_of_time_first():
    one, other = network(), network(batch_first=True)
    other.load_state_dict(one.state_dict())
    x, lengths = torch.rand(5, 3, 6) * 4, torch.tensor([5, 0, 2])
    batch = x.transpose(0, 1)
    assert count_operations(one, x) == count_operations(other, batch)
    assert count_operations(one, x, lengths) == count_operations(other, batch, lengths)


def test_it_is_kept_by_copies_slices_and_what_is_shown():
    net = network(batch_first=True)
    assert "batch_first=True" in repr(net)
    assert "batch_first" not in repr(network())
    for other in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        net[1:],
        net + nn.Sequential(ns.LIF(0.9)),
        nn.Sequential(ns.LIF(0.9)) + net,
        net * 2,
    ):
        assert other.batch_first
    assert isinstance(net[1], ns.LIF)
    assert ns.convert(net).batch_first
    for make, _ in LAYERS.values():
        layer = make(batch_first=True)
        assert repr(layer).count("batch_first=True") == 1
        assert pickle.loads(pickle.dumps(layer)).batch_first
        assert "batch_first" not in repr(make())


def test_torch_compile_runs_it():
    for layer in (ns.LIF(0.9, batch_first=True), network(batch_first=True)):
        x = torch.rand(3, 5, 6) * 4
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert same(compiled(x)[0], layer(x)[0])


def test_a_linear_layer_with_its_neurons_is_not_run_with_time_first():
    from neurospike.layers.break_even import Policy, use_policy
    from neurospike.layers.spike_layer import spike_layer

    linear, lif = ns.SpikeLinear(64, 512), ns.LIF(0.9, batch_first=True)
    x = (torch.rand(4, 6, 64) < 0.05).float()
    with use_policy(Policy(least_products=1)):
        spikes, _ = spike_layer(linear, lif, x)
    assert torch.equal(spikes, lif(linear(x))[0])
    net = ns.Sequential(linear, lif, batch_first=True)
    with use_policy(Policy(least_products=1)):
        assert torch.equal(net(x)[0], spikes)


def test_refusals():
    with pytest.raises(ValueError, match=r"batch_first=True the input must be \[B, T, \*F\], g"):
        ns.LIF(0.9, batch_first=True)(torch.rand(3))
    ragged = torch.nested.nested_tensor([torch.rand(2, 5)] * 2, layout=torch.jagged)
    for given in ([0.5], ragged):
        with pytest.raises(TypeError) as caught:
            ns.LIF(0.9)(given)
        with pytest.raises(TypeError, match=re.escape(str(caught.value))):
            ns.LIF(0.9, batch_first=True)(given)
    with pytest.raises(ValueError, match=r"give batch_first=True to ns.Recurrent, not to them"):
        ns.Recurrent(ns.LIF(0.9, batch_first=True), 3)
    inner = ns.LIF(0.9, batch_first=True)
    told = r"layer 1 \(LIF\) has batch_first=True and the network around it has not"
    with pytest.raises(ValueError, match=told):
        ns.Sequential(nn.Linear(3, 3), inner)
    with pytest.raises(ValueError, match=told):
        ns.Sequential(nn.Linear(3, 3)).append(inner)
    with pytest.raises(ValueError, match=told):
        ns.Sequential(nn.Linear(3, 3), ns.LIF(0.9))[1] = inner
    with pytest.raises(ValueError, match=told):
        ns.Sequential(nn.Linear(3, 3), ns.LIF(0.9)).insert(1, inner)
    told = r"read as \[B=2, T=7, \*F=\[5\]\].* for time first leave batch_first out"
    with pytest.raises(RuntimeError, match=told):
        ns.Sequential(nn.Linear(3, 3), ns.LIF(0.9), batch_first=True)(torch.rand(2, 7, 5))
