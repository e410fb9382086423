"""`ns.Recurrent`: equal on every backend, carried, cut, lived with in a network, and its errors."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.formulas import fire
from neurospike.ops.wants import OVERWRITE
from neurospike.training.energy import count_operations


def three_states(current, syn, mem, tired, alpha, beta, rho):
    syn = alpha * syn + current
    mem = beta * mem + syn
    spike = fire(mem - 1.0 - tired)
    return spike, syn, mem * (1.0 - spike), rho * tired + spike


# Neurons with the scale and the mean of currents at which they fire now and then.
NEURONS = {
    "subtract": (lambda: ns.LIF(0.9), 0.5, 0.1),
    "zero": (lambda: ns.LIF(0.9, reset="zero"), 0.5, 0.1),
    "none": (lambda: ns.LIF(0.9, reset="none"), 0.3, 0.0),
    "at once": (lambda: ns.LIF(0.9, reset_delay=False, learn_beta=True), 0.5, 0.1),
    "detached": (lambda: ns.LIF(0.9, reset_delay=False, detach_reset=True), 0.5, 0.1),
    "synaptic": (lambda: ns.Synaptic(0.7, 0.8), 0.4, 0.1),
    "alpha": (lambda: ns.Alpha(0.9, 0.8), 0.5, 0.2),
    "plif": (lambda: ns.PLIF(0.8), 0.5, 0.3),
    "alif": (lambda: ns.ALIF(learn=("rise", "rho")), 0.5, 0.2),
    "se_adlif": (lambda: ns.SEAdLIF(learn=("a", "b")), 5.0, 4.0),
    "izhikevich": (lambda: ns.Izhikevich(), 6.0, 8.0),
    "brf": (lambda: ns.BRF(), 60.0, 60.0),
    "own": (lambda: ns.Spiking(three_states, alpha=0.7, beta=0.8, rho=0.9, learn="beta"), 0.5, 0.1),
}


def dyadic(layer):
    """The layer with weights that are multiples of 1/32: spikes add up alike in any order."""
    with torch.no_grad():
        for one in (layer.weight, layer.bias):
            if one is not None:
                one.copy_((one * 32).round() / 32)
    return layer


def made(name, size, steps=25, batch=3, dtype=torch.float32, **options):
    """A layer whose sums are exact, and a current for it."""
    make, scale, mean = NEURONS[name]
    layer = dyadic(ns.Recurrent(make(), size, **options))
    current = ((torch.randn(steps, batch, size) * scale + mean) * 32).round() / 32
    return layer.to(dtype), current.to(dtype).requires_grad_()


def outcome(layer, current, state=None, **options):
    """Spikes, states and traces, and the gradients of all that can have one, of a mixed loss."""
    leaves = [current, *(state or ()), *layer.parameters()]
    leaves = [one for one in leaves if one.requires_grad]
    spikes, states, traces = layer(current, state, return_trace=True, **options)
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for one in (spikes, *states, *traces):
        total = total + (one * torch.randn(one.shape, generator=generator)).sum()
    # Without a step the reference never looks at the weight, whose gradient is 0 then.
    return (spikes, *states, *traces), torch.autograd.grad(total, leaves, materialize_grads=True)


def both(layer, fused, *given, **options):
    """What the reference and a fused backend make of the same."""
    found = []
    for layer.neuron.backend in ("reference", fused):
        found.append(outcome(layer, *given, **options))
    return found


def check_alike(wanted, got, budget=1e-5):
    for one, other in zip(got[0], wanted[0], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(got[1], wanted[1], strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= budget * max(1e-3, float(other.norm()))


@pytest.mark.parametrize("name", NEURONS)
def test_spikes_and_states_are_the_references_bit_for_bit(name, fused):
    layer, current = made(name, 7, bias=True)
    wanted, got = both(layer, fused, current)
    assert 0.0 < wanted[0][0].mean() < 1.0
    check_alike(wanted, got)


@pytest.mark.parametrize("name", ["subtract", "se_adlif"])
def test_in_float64(name, fused):
    layer, current = made(name, 5, dtype=torch.float64)
    check_alike(*both(layer, fused, current), budget=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_currents_of_16_bits(dtype, fused):
    layer, current = made("subtract", 6)
    current = current.detach().to(dtype).requires_grad_()
    wanted, got = both(layer, fused, current)
    assert got[0][0].dtype == dtype and got[1][0].dtype == dtype
    assert got[0][1].dtype == got[0][-1].dtype == got[1][1].dtype == torch.float32
    check_alike(wanted, got, budget=1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_autocast_changes_neither_sums_nor_states(backend):
    layer = ns.Recurrent(ns.LIF(0.9, backend=backend), 6)
    current = torch.randn(25, 3, 6, requires_grad=True)
    spikes, states = layer(current)
    wanted = torch.autograd.grad(spikes.square().sum(), [current, layer.weight])
    with torch.autocast("cpu", torch.bfloat16):
        got, ends = layer(current)
    found = torch.autograd.grad(got.square().sum(), [current, layer.weight])
    for one, other in zip((got, *ends, *found), (spikes, *states, *wanted)):
        assert torch.equal(one, other)


def test_nor_does_a_backward_pass_within(fused):
    layer = ns.Recurrent(ns.LIF(0.9, backend=fused), 6)
    current = torch.randn(25, 3, 6, requires_grad=True)
    wanted = outcome(layer, current)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(layer, current)
    check_alike(wanted, got)


@pytest.mark.parametrize("name", ["subtract", "own"])
def test_a_state_carried_on_gives_the_whole(name, backend):
    layer, current = made(name, 5)
    layer.neuron.backend = backend
    spikes, states = layer(current)
    first, middle = layer(current[:11])
    rest, after = layer(current[11:], middle)
    assert torch.equal(middle[0], first[-1]) and spikes.sum() > 0
    assert torch.equal(torch.cat([first, rest]), spikes)
    for one, other in zip(after, states, strict=True):
        assert torch.equal(one, other)
    whole = torch.autograd.grad(spikes.sum() + states[-1].sum(), (current, layer.weight))
    parts = torch.autograd.grad(first.sum() + rest.sum() + after[-1].sum(), (current, layer.weight))
    for one, other in zip(parts, whole):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_gradients_of_a_state_handed_in(fused):
    layer, current = made("synaptic", 5)
    state = [torch.rand(3, 5).round(), *(torch.randn(2, 3, 5) * 32).round() / 32]
    check_alike(*both(layer, fused, current, [one.requires_grad_() for one in state]))


def test_segments_cut_the_gradient_and_nothing_else(backend):
    layer, current = made("subtract", 5, steps=10)
    layer.neuron.backend = backend
    whole, _ = layer(current)
    layer.neuron.segment = 4
    spikes, _ = layer(current)
    assert torch.equal(spikes, whole)
    (cut,) = torch.autograd.grad(spikes[8:].sum(), current)
    assert not cut[:8].any() and cut[8:].any()
    (uncut,) = torch.autograd.grad(whole[8:].sum(), current)
    assert uncut[:8].any()


def test_a_mask_and_an_empty_diagonal(fused):
    mask = torch.rand(6, 6) < 0.5
    layer, current = made("subtract", 6, mask=mask, zero_diagonal=True)
    kept = mask & ~torch.eye(6, dtype=torch.bool)
    wanted, got = both(layer, fused, current)
    check_alike(wanted, got)
    grad = got[1][1]
    assert not grad[~kept].any() and grad[kept].all()
    with torch.no_grad():
        layer.weight[~kept] = 100.0  # which no one sees
    assert torch.equal(layer(current)[0], got[0][0])
    assert f"{int(kept.sum())} weights" in repr(layer)


def test_a_bias_reaches_every_step(backend):
    layer, current = made("subtract", 4, bias=True)
    layer.neuron.backend = backend
    other = ns.Recurrent(layer.neuron, 4)
    other.weight = layer.weight
    assert torch.equal(layer(current)[0], other(current + layer.bias)[0])


def test_a_constant_current(backend):
    layer, current = made("subtract", 4, bias=True)
    layer.neuron.backend = backend
    got = outcome(layer, current[0].detach().requires_grad_(), num_steps=9)
    expanded = current[0].detach().requires_grad_()
    spikes, states, traces = layer(expanded.expand(9, 3, 4), return_trace=True)
    for one, other in zip(got[0], (spikes, *states, *traces), strict=True):
        assert torch.equal(one, other)
    assert got[1][0].shape == (3, 4)


def test_expanded_gradients_and_outputs_that_are_not_used(fused):
    layer, current = made("subtract", 4)
    found = []
    for layer.neuron.backend in ("reference", fused):
        spikes, _ = layer(current)  # whose gradient is one number, expanded
        _, (_, mem) = layer(current)
        _, (last, _) = layer(current)
        leaves = (current, layer.weight)
        found.append([g for y in (spikes, mem, last) for g in torch.autograd.grad(y.sum(), leaves)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * max(1e-3, float(other.norm()))


def test_without_gradients_and_in_evaluation_spikes_are_the_same(backend):
    layer, current = made("alif", 5)
    layer.neuron.backend = backend
    spikes, states = layer(current)
    with torch.no_grad():
        quiet, after = layer(current)
    assert torch.equal(quiet, spikes) and not quiet.requires_grad
    assert torch.equal(layer.eval()(current)[0], spikes)
    for one, other in zip(after, states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(5, 0, 4), (0, 2, 4), (1, 2, 4), (5, 2, 1), (5, 1, 33)], ids=str)
def test_sizes_at_the_edge(shape, fused):
    steps, batch, size = shape
    layer, current = made("synaptic", size, steps, batch, bias=True)
    wanted, got = both(layer, fused, current)
    assert got[0][0].shape == shape and got[1][0].shape == shape
    check_alike(wanted, got)


def test_no_steps_leave_the_state_as_it_was(backend):
    layer = ns.Recurrent(ns.Izhikevich(backend=backend), 3)
    spikes, states = layer(torch.zeros(0, 2, 3))
    assert spikes.shape == (0, 2, 3)
    assert [one.unique().tolist() for one in states] == [[0.0], [-65.0], [-13.0]]
    again = layer(torch.zeros(0, 2, 3), (torch.ones(2, 3), *states[1:]))[1]
    assert torch.equal(again[0], torch.ones(2, 3))


def network(**options):
    torch.manual_seed(2)
    return ns.Sequential(
        ns.SpikeLinear(9, 8), ns.Recurrent(ns.ALIF(), 8, bias=True, **options),
        nn.Linear(8, 6), ns.Recurrent(ns.LIF(0.9, learn_beta=True), 6), nn.Linear(6, 3), ns.LI(0.9),
    )  # fmt: skip


def test_a_network_carries_it(backend):
    net = network()
    for layer in (net[1], net[3]):
        layer.neuron.backend = backend
    events = torch.rand(13, 2, 9) < 0.4
    out, states = net(events)
    first, middle = net(events[:5])
    rest, after = net(events[5:], middle)
    assert torch.equal(torch.cat([first, rest]), out)
    assert [len(state) for state in states[:2]] == [3, 2]
    assert torch.equal(after[1][1], states[1][1])
    out.sum().backward()
    assert all(one.grad is not None for one in net.parameters())
    constant, _ = net(events[0].float(), num_steps=4)
    assert torch.equal(constant, net(events[:1].float().expand(4, 2, 9))[0])


def test_copies_pickles_and_saved_weights(backend):
    net = network(zero_diagonal=True)
    net[1].neuron.backend = net[3].neuron.backend = backend
    events = torch.rand(13, 2, 9) < 0.4
    wanted, _ = net(events)
    torch.manual_seed(4)
    other = ns.Sequential(*copy.deepcopy(net))
    for one in other.parameters():
        nn.init.zeros_(one)
    other.load_state_dict(net.state_dict())
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), other):
        assert torch.equal(again(events)[0], wanted)
    assert {"1.weight", "1.bias", "1.mask", "1.neuron.beta", "3.neuron.beta"} <= {*net.state_dict()}


def test_other_number_formats(backend):
    net = network()
    net[1].neuron.backend = net[3].neuron.backend = backend
    events = torch.rand(13, 2, 9) < 0.4
    assert net.double()(events.double())[0].dtype == torch.float64
    net = network().half()
    assert net[1].weight.dtype == torch.float16 and net[1].neuron.rho.dtype == torch.float32
    out, states = net(events.half())
    assert states[0][0].dtype == torch.float32 and not out.isnan().any()


def test_compiled_whole_and_exported(fused):
    net = network()
    net[1].neuron.backend = net[3].neuron.backend = fused
    events = (torch.rand(6, 2, 9) < 0.4).float()
    wanted, states = net(events)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    out, after = compiled(events)
    assert torch.equal(out, wanted) and torch.equal(after[0][1], states[0][1])
    found = [
        torch.autograd.grad(y.sum(), list(net.parameters()), retain_graph=True)
        for y in (out, wanted)
    ]
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)
    exported = torch.export.export(net, (events,)).module()
    assert torch.equal(exported(events)[0], wanted)


def test_its_synaptic_operations_are_counted():
    layer = ns.Recurrent(ns.LIF(0.9), 5, zero_diagonal=True)
    current = torch.rand(8, 3, 5)
    spikes = layer(current)[0].detach()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, images):
            return self.inner(current)[0]

    counted = count_operations(Model(), torch.rand(3, 4))
    assert spikes[:-1].sum() > 0
    assert counted.acs == pytest.approx(float(spikes[:-1].sum()) * 4 / 3)  # each reaches 4 others
    assert (counted.macs, counted.dense_macs) == (0.0, 20.0)


LIF = functools.partial(ns.LIF, 0.9)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: ns.Recurrent(ns.LI(0.9), 4), TypeError, "an LI, whose neurons never spike"),
        (lambda: ns.Recurrent(nn.ReLU(), 4), TypeError, r"that spike, .* got ReLU\(\)"),
        (lambda: ns.Recurrent(LIF(), 0), ValueError, "size must be 1 or more, got 0"),
        (lambda: ns.Recurrent(LIF(), 4.0), TypeError, r"size must be a whole number, got 4\.0"),
        (lambda: ns.Recurrent(LIF(), True), TypeError, "size must be a whole number, got True"),
        (
            lambda: ns.Recurrent(LIF(), 4, mask=torch.ones(4, 3)),
            ValueError,
            r"mask must have the shape \(4, 4\), got \(4, 3\)",
        ),
        (
            lambda: ns.Recurrent(LIF(), 4, mask=torch.full((4, 4), 0.5)),
            ValueError,
            "mask must hold 0 and 1",
        ),
    ],
)
def test_what_no_layer_is_made_of(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda r, x: r(x[..., :3]), ValueError, r"N=4 neurons must be \[T, B, N\], got .*5, 2, 3"),
        (lambda r, x: r(x[..., None]), ValueError, r"must be \[T, B, N\], got shape \(5, 2, 4, 1"),
        (lambda r, x: r(x, num_steps=5), ValueError, r"must be \[B, N\], got shape \(5, 2, 4\)"),
        (lambda r, x: r(x.int()), TypeError, "current must be float16"),
        (lambda r, x: r(x, torch.zeros(2, 4)), TypeError, r"a tuple \(spike, mem\) of 2, got Tens"),
        (lambda r, x: r(x, (x[0],)), TypeError, r"\(spike, mem\) of 2, got tuple of 1"),
        (lambda r, x: r(x, (x[0], x[0, :1])), ValueError, r"mem must have the shape .*\(2, 4\)"),
        (lambda r, x: r(x, (x[0, :, :3], x[0])), ValueError, "spike must have the shape"),
        (
            lambda r, x: r(x, (x[0], x[0].double())),
            TypeError,
            r"mem must be torch.float32 for .* got torch.float64",
        ),
        (lambda r, x: r.to("meta")(x), ValueError, r"weight is on meta, current on cpu"),
    ],
)
def test_what_no_call_takes(call, kind, message):
    with pytest.raises(kind, match=message):
        call(ns.Recurrent(LIF(), 4), torch.rand(5, 2, 4))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_the_meta_device_shapes_are_known(backend):
    layer = ns.Recurrent(LIF(backend=backend), 4).to("meta")
    current = torch.rand(5, 2, 4, device="meta", requires_grad=True)
    spikes, (_, mem) = layer(current)
    spikes.sum().backward()
    assert spikes.is_meta and spikes.shape == (5, 2, 4)
    assert mem.is_meta and mem.shape == (2, 4)
    assert current.grad.shape == current.shape


def test_weights_of_another_shape_are_refused():
    layer = ns.Recurrent(LIF(), 4)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.zeros(5, 5)})
    layer.weight = nn.Parameter(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"weight must be \[N, N\]"):
        layer(torch.rand(5, 2, 4))
    net = ns.Sequential(nn.Identity(), ns.Recurrent(LIF(), 4))
    with pytest.raises(ValueError, match=r"layer 1 \(Recurrent\): the current of a recurrent"):
        net(torch.rand(5, 2, 3))


def test_a_bias_is_no_pass_of_its_own(fused):
    layer = ns.Recurrent(ns.LIF(0.9, backend=fused), 5, bias=True)
    current = torch.randn(20, 3, 5, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as seen:
        layer(current)[0].backward(torch.ones(20, 3, 5))
    whole = {event.name for event in seen.events() if [20, 3, 5] in event.input_shapes}
    assert any("recurrent_backward" in name for name in whole)
    assert not {"aten::add", "aten::add_", "aten::sum"} & whole


def test_a_bias_of_narrow_currents_is_added_in_the_states_format(backend):
    layer = ns.Recurrent(ns.LIF(0.9, backend=backend), 3, bias=True)
    layer.weight.data.zero_()
    layer.bias.data.copy_(torch.tensor([0.001, 0.002, -0.001]))
    current = torch.full((1, 1, 3), 4.0, dtype=torch.bfloat16)  # which has no digits for as much
    _, (_, mem) = layer(current)
    torch.testing.assert_close(mem[0], 4.0 + layer.bias.detach())


@pytest.mark.parametrize("size", [7, 64])
def test_a_weight_may_lie_in_memory_by_columns(size, fused):
    layer, current = made("subtract", size, steps=6)
    wanted = outcome(layer, current)
    layer.weight.data = layer.weight.data.T.contiguous().T
    assert not layer.weight.is_contiguous()
    layer.neuron.backend = fused
    check_alike(wanted, outcome(layer, current))


@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept"])
def test_the_sums_of_a_graph_that_is_gone_are_written_over(kept, monkeypatch):
    kernel = dispatch.load(".kernels.cpu.recurrent")
    forward, sums = kernel.forward, []

    def spied(**given):
        sums.append(given["currents"].data_ptr())
        forward(**given)

    monkeypatch.setattr(kernel, "forward", spied)
    layer, current = made("se_adlif", 7, batch=9, bias=True)
    layer.neuron.backend = "numba"
    grad = torch.randn(current.shape)
    leaves = [current, *layer.parameters()]
    wanted = torch.autograd.grad(layer(current)[0], leaves, grad, retain_graph=True)
    spikes, _ = layer(current)
    for _ in range(1 + kept):  # as long as it is kept, it gives the same again
        found = torch.autograd.grad(spikes, leaves, grad, retain_graph=kept)
        assert (found[0].data_ptr() == sums[-1]) is not kept
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)


def test_what_is_traced_is_not_written_over():
    layer, current = made("subtract", 7)
    layer.neuron.backend = "numba"

    def step(current):
        return torch.autograd.grad(layer(current)[0].square().sum(), [current, layer.weight])

    wanted = step(current)
    traced = make_fx(step)(current)
    with torch.no_grad():
        found = traced(current)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    asked = [node.args[-1] for node in traced.graph.nodes if "recurrent_backward" in str(node)]
    assert [one & OVERWRITE for one in asked if isinstance(one, int)] == [0]


def keep_all(kept):
    """Hooks of somebody who keeps every saved tensor."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or len(kept) - 1, lambda place: kept[place]
    )


def test_what_somebody_keeps_is_not_written_over():
    layer, current = made("subtract", 7)
    layer.neuron.backend = "numba"
    kept = []
    with keep_all(kept):
        spikes, _ = layer(current)
    before = [one.clone() for one in kept]
    spikes.sum().backward()
    assert all(map(torch.equal, kept, before))


def test_what_was_written_over_is_not_read_again():
    layer, current = made("subtract", 7)
    layer.neuron.backend = "numba"
    total = layer(current)[0].sum()

    def stop(*_):
        raise KeyboardInterrupt

    node = total.grad_fn.next_functions[0][0]
    assert "_Recurrent" in node.name()
    handle = node.register_hook(stop)  # after it
    with pytest.raises(KeyboardInterrupt):
        total.backward()
    handle.remove()
    with pytest.raises(RuntimeError, match="backward a second time, after an error in the first"):
        total.backward()


def test_saved_tensors_may_come_back_in_another_layout():
    layer, current = made("subtract", 7)
    layer.neuron.backend = "numba"
    layer.weight.requires_grad_(False)
    (wanted,) = torch.autograd.grad(layer(current)[0].square().sum(), current)

    def turned(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, turned):
        spikes, _ = layer(current)
    (found,) = torch.autograd.grad(spikes.square().sum(), current)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("learned", [True, False])
def test_there_is_a_first_derivative_with_create_graph_and_no_second(learned, fused):
    layer, current = made("subtract", 7)
    layer.neuron.backend = fused
    layer.weight.requires_grad_(learned)
    (wanted,) = torch.autograd.grad(layer(current)[0].square().sum(), current)
    (found,) = torch.autograd.grad(layer(current)[0].square().sum(), current, create_graph=True)
    assert torch.equal(found, wanted)
    with pytest.raises(RuntimeError, match="use backend='reference', which has both"):
        found.square().sum().backward()
