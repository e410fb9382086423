"""A linear layer and its neurons in one loop, against the two in a row."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.layers.break_even import Policy, use_policy
from neurospike.layers.spike_layer import _Layer

BUDGET = {torch.float32: 1e-5, torch.float64: 1e-12}
RULES = [
    {},
    {"reset": "zero"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
    {"grad_window": 0.4, "surrogate": "triangular"},
]
SHAPES = [  # steps, batch, inputs, outputs
    (1, 1, 1, 1),
    (7, 3, 70, 130),
    (5, 9, 64, 128),
    (12, 4, 201, 77),
]

pytestmark = pytest.mark.skipif(
    dispatch.unsupported_reasons("numba") != [], reason="needs the numba backend"
)


@pytest.fixture
def together(monkeypatch):
    """Layers run in one loop whatever it costs; the calls are counted."""
    # The product alone then takes sums of single rows too, and the order is the same.
    monkeypatch.setattr(dispatch.load(".kernels.cpu.events"), "TABLE", 1 << 40)
    torch.set_num_threads(1)  # more threads than panels of neurons take the two apart
    always = Policy(least_products=0, margin=math.inf, events=1 << 30, trained_events=1 << 30)
    with use_policy(always):
        yield counted(monkeypatch)
    torch.set_num_threads(1)


def counted(monkeypatch):
    calls, apply = [], _Layer.apply
    monkeypatch.setattr(_Layer, "apply", lambda *given: calls.append(1) or apply(*given))
    return calls


def problem(shape, state=torch.float32, density=0.2, bias=True, **options):
    steps, batch, inputs, outputs = shape
    drawn = torch.Generator().manual_seed(sum(shape))
    linear = ns.SpikeLinear(inputs, outputs, bias=bias, dtype=state)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn, dtype=state) * 0.5)
    neurons = ns.LIF(**{"beta": 0.9, **options}).to(state)
    spikes = (torch.rand(steps, batch, inputs, generator=drawn) < density).to(torch.uint8)
    mem = torch.randn(batch, outputs, generator=drawn, dtype=state).requires_grad_()
    return linear, neurons, spikes, mem


def answer(run, linear, neurons, mem):
    """Spikes and last membrane, and every gradient of a loss of both."""
    out, last = run()
    drawn = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=drawn).to(out)
    leaves = [*linear.parameters(), *neurons.parameters(), *([] if mem is None else [mem])]
    grads = torch.autograd.grad((out * weight).sum() + (last * last).sum(), leaves)
    return out, last, grads


def compare(linear, neurons, spikes, mem, calls):
    before = len(calls)
    found = answer(lambda: ns.spike_layer(linear, neurons, spikes, mem), linear, neurons, mem)
    assert len(calls) == before + 1
    wanted = answer(lambda: neurons(linear(spikes), mem), linear, neurons, mem)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert found[0].any() or spikes.numel() == 1
    for ours, theirs in zip(found[2], wanted[2], strict=True):
        assert ours.shape == theirs.shape
        distance = (ours - theirs).norm() / theirs.norm().clamp_min(1e-30)
        assert distance <= BUDGET[linear.weight.dtype], float(distance)
    with torch.no_grad():
        silent = ns.spike_layer(linear, neurons, spikes, mem)
    assert torch.equal(silent[0], found[0]) and torch.equal(silent[1], found[1])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_two_in_a_row(shape, rule, together, poisoned):
    compare(*problem(shape, **rule), together)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_double_precision(shape, together, poisoned):
    compare(*problem(shape, torch.float64, surrogate="sigmoid"), together)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("rule", RULES[::3], ids=str)
def test_decay_and_threshold_of_all_or_of_each(rule, each, learn, together, poisoned):
    outputs = SHAPES[1][3]
    beta = torch.linspace(0, 1, outputs) if each else 0.8
    if each and learn:  # training may have taken them beyond the bounds
        beta = nn.Parameter(torch.linspace(-0.2, 1.2, outputs))
    threshold = torch.linspace(0.3, 1.5, outputs) if each else 0.7
    options = {"beta": beta, "threshold": threshold, "learn_beta": learn, "learn_threshold": learn}
    compare(*problem(SHAPES[1], **options, **rule), together)


@pytest.mark.parametrize("spikes", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_formats_of_spikes_without_a_bias_and_from_rest(spikes, bias, start, together):
    linear, neurons, given, mem = problem(SHAPES[1], bias=bias)
    compare(linear, neurons, given.to(spikes), mem if start else None, together)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_silent_and_all_active(density, together, poisoned):
    compare(*problem(SHAPES[3], density=density), together)


def test_views_of_spikes_weights_and_states(together):
    linear, neurons, spikes, mem = problem(SHAPES[1])
    turned = linear.weight.detach().t().contiguous().t()
    linear.weight = nn.Parameter(turned)
    swapped = spikes.transpose(0, 1).contiguous().transpose(0, 1)
    compare(linear, neurons, swapped, mem.detach().t().contiguous().t().requires_grad_(), together)


@pytest.mark.parametrize("of", ["count", "last step", "membrane"])
def test_gradients_that_are_the_same_at_each_step_or_not_there(of, together):
    linear, neurons, spikes, _ = problem(SHAPES[1])
    loss = {
        "count": lambda out, _: (out.sum(0) ** 2).sum(),
        "last step": lambda out, _: out[-1].sum(),
        "membrane": lambda _, mem: (mem**2).sum(),
    }[of]
    found = torch.autograd.grad(loss(*ns.spike_layer(linear, neurons, spikes)), linear.weight)
    assert together
    wanted = torch.autograd.grad(loss(*neurons(linear(spikes))), linear.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_against_the_reference_in_double_precision(together):
    linear, neurons, spikes, mem = problem(SHAPES[3], torch.float64, surrogate="sigmoid")
    found = answer(lambda: ns.spike_layer(linear, neurons, spikes, mem), linear, neurons, mem)
    assert together
    plain = ns.LIF(0.9, surrogate="sigmoid", backend="reference").double()

    def reference():
        current = nn.functional.linear(spikes.double(), linear.weight, linear.bias)
        return plain(current, mem)

    wanted = answer(reference, linear, plain, mem)
    assert torch.equal(found[0], wanted[0])
    for ours, theirs in zip(found[2], wanted[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_number_of_threads_changes_no_bit(together):
    linear, neurons, spikes, mem = problem((9, 20, 70, 300))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = answer(lambda: ns.spike_layer(linear, neurons, spikes, mem), linear, neurons, mem)
        found.append([*run[:2], *run[2]])
    assert len(together) == 3
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_only_what_is_asked_for_is_differentiated(together):
    linear, neurons, spikes, mem = problem(SHAPES[1])
    linear.bias.requires_grad_(False)
    out, last = ns.spike_layer(linear, neurons, spikes, mem.detach())
    assert torch.autograd.grad(out.sum(), linear.weight, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(last.sum(), linear.bias)
    linear.requires_grad_(False)
    assert ns.spike_layer(linear, neurons, spikes)[0].grad_fn is None
    _, last = ns.spike_layer(linear, neurons, spikes, mem)
    assert torch.autograd.grad(last.sum(), mem)[0].any()


def test_backward_twice_second_derivatives_and_a_weight_changed_meanwhile(together):
    linear, neurons, spikes, _ = problem(SHAPES[1])
    out, _ = ns.spike_layer(linear, neurons, spikes)
    first = torch.autograd.grad(out.sum(), linear.weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(out.sum(), linear.weight, retain_graph=True))
    (once,) = torch.autograd.grad(out.sum(), linear.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        once.sum().backward()
    with torch.no_grad():
        linear.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_several_gradients_at_once_are_those_of_each(together):
    linear, neurons, spikes, mem = problem(SHAPES[1])
    out, _ = ns.spike_layer(linear, neurons, spikes, mem)
    wanted, several = (*linear.parameters(), mem), torch.randn(3, *out.shape)
    each = [torch.autograd.grad(out, wanted, one, retain_graph=True) for one in several]
    found = torch.autograd.grad(out, wanted, several, is_grads_batched=True)
    assert together
    assert all(map(torch.equal, found, map(torch.stack, zip(*each))))


# When it is two layers after all


class Own(ns.SpikeLinear):
    """Somebody's layer."""


def hooked(linear, _):
    linear.register_forward_hook(lambda *_: None)


def pruned(linear, _):
    prune.random_unstructured(linear, "weight", 0.1)


def segmented(_, neurons):
    neurons.segment = 2


@pytest.mark.parametrize("change", [hooked, pruned, segmented])
def test_what_somebody_made_of_the_modules_is_respected(change, together):
    linear, neurons, spikes, _ = problem(SHAPES[1])
    change(linear, neurons)
    found = ns.spike_layer(linear, neurons, spikes)
    assert not together
    assert torch.equal(found[0], neurons(linear(spikes))[0])


def test_other_layers_inputs_and_backends_run_apart(together):
    linear, neurons, spikes, mem = problem(SHAPES[1])
    ns.spike_layer(Own(70, 130), neurons, spikes)
    ns.spike_layer(nn.Linear(70, 130), neurons, spikes.float())
    ns.spike_layer(linear, neurons, spikes.float().requires_grad_())
    ns.spike_layer(linear, neurons, spikes * 2)  # counts, not spikes
    ns.spike_layer(linear, ns.LIF(0.9, backend="reference"), spikes)
    with ns.use_backend("reference"):
        ns.spike_layer(linear, neurons, spikes)
    with torch.autocast("cpu", torch.bfloat16):
        ns.spike_layer(linear, neurons, spikes)
    torch.func.functional_call(linear, dict(linear.named_parameters()), spikes)
    ns.spike_layer(linear, neurons, spikes[:0])
    torch.set_num_threads(3)  # more than panels of neurons
    ns.spike_layer(linear, neurons, spikes)
    assert not together
    with pytest.raises(ValueError, match=r"spikes must be \[..., 70\]"):
        ns.spike_layer(linear, neurons, spikes[..., 1:])
    with pytest.raises(ValueError, match="mem must have the shape"):
        ns.spike_layer(linear, neurons, spikes, mem[1:])
    with pytest.raises(TypeError, match=r"mem must be torch\.float32"):
        ns.spike_layer(linear, neurons, spikes, mem.double())
    with pytest.raises(ValueError, match="beta of shape"):
        ns.spike_layer(linear, ns.LIF(torch.rand(7)), spikes)


def test_compiled_whole_it_gives_the_same(together):
    linear, neurons, spikes, _ = problem(SHAPES[1])
    compiled = torch.compile(ns.spike_layer, fullgraph=True, backend="aot_eager")
    found, _ = compiled(linear, neurons, spikes)
    assert not together
    assert torch.equal(found, ns.spike_layer(linear, neurons, spikes)[0])


@pytest.mark.parametrize(("density", "calls"), [(0.004, 1), (0.1, 0), (0.6, 0)])
def test_it_is_chosen_where_few_inputs_are_active(density, calls, monkeypatch):
    made = counted(monkeypatch)
    linear, neurons, spikes, _ = problem((25, 16, 784, 600), density=density)
    out, _ = ns.spike_layer(linear, neurons, spikes)
    out.sum().backward()
    assert len(made) == calls


# Where it is used


def test_sequential_runs_the_two_together_and_carries_states(together):
    linear, neurons, spikes, _ = problem(SHAPES[1])
    net = ns.Sequential(nn.Identity(), linear, neurons, nn.Linear(130, 4), ns.LI(0.9))
    apart = copy.deepcopy(net)
    apart[1].register_forward_hook(lambda *_: None)
    states, wanted = None, None
    for part in (spikes[:3], spikes[3:]):
        before = len(together)
        out, states = net(part, states)
        assert len(together) == before + 1
        other, wanted = apart(part, wanted)
        assert len(together) == before + 1
        assert torch.equal(out, other)
        assert all(map(torch.equal, states, wanted))


def test_networks_run_their_first_layer_so(together):
    images = torch.rand(8, 784) * (torch.rand(8, 784) < 0.2)
    model = ns.SNNModel(784, [64, 32], encoding="latency", num_steps=9)
    scores = model(images)
    assert len(together) == 1  # hidden spikes need a gradient
    model.linears[0].register_forward_hook(lambda *_: None)
    assert torch.equal(scores, model(images))
    model.eval()
    with torch.no_grad():
        model(images)
    assert len(together) == 2  # the second layer, without gradients
    normalised = ns.SNNModel(784, 64, encoding="latency", num_steps=9, normalization="batch")
    normalised(images)
    assert len(together) == 2


@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize(
    "unpack",
    [
        lambda one: one.repeat_interleave(2, 0)[::2],
        lambda one: one.movedim(0, -1).contiguous().movedim(-1, 0),
    ],
    ids=["gaps", "turned"],
)
@pytest.mark.parametrize("apart", [False, True])
def test_hooks_of_saved_tensors_may_lay_them_out_anew(apart, unpack, density, together):
    beta = torch.linspace(0.5, 0.9, 128)
    linear, neurons, spikes, mem = problem((5, 9, 64, 128), density=density, beta=beta)

    def run():
        if apart:
            return neurons(linear(spikes), mem)
        return ns.spike_layer(linear, neurons, spikes, mem)

    def hooked():
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: one, lambda one: unpack(one) if one.dim() else one
        ):
            return run()

    found, wanted = (answer(each, linear, neurons, mem)[2] for each in (hooked, run))
    assert all(map(torch.equal, found, wanted))


def test_a_sparse_gradient_is_that_of_its_numbers(together):
    linear, neurons, spikes, mem = problem((5, 9, 64, 128))
    places, results = torch.zeros(5, 9, 2, dtype=torch.int64), []
    for sparse in (False, True):
        out, _ = ns.spike_layer(linear, neurons, spikes, mem)
        loss = torch.gather(out, 2, places, sparse_grad=sparse).sum()
        results.append(torch.autograd.grad(loss, [*linear.parameters(), mem]))
    assert len(together) == 2
    assert all(map(torch.equal, *results))
