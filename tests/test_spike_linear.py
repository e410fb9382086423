"""Event-driven linear layers against torch's dense product in double precision."""

import copy
import io
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.errors import BackendError
from neurospike.layers import break_even
from neurospike.layers.break_even import Policy, use_policy

EVENT_DRIVEN = [name for name, row in dispatch.TABLE.items() if row.linear]
BUDGET = {torch.float32: 1e-5, torch.float64: 1e-12}
FORMATS = [
    (torch.bool, torch.float32),
    (torch.uint8, torch.float32),
    (torch.uint8, torch.float64),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
]
SHAPES = [  # rows, inputs, outputs
    (1, 1, 1),
    (5, 3, 130),
    (65, 64, 64),
    (130, 201, 77),
    (1025, 65, 5),
    (2100, 130, 129),
]

pytestmark = pytest.mark.skipif(
    dispatch.unsupported_reasons("numba") != [], reason="needs the numba backend"
)


@pytest.fixture
def events():
    """Events are taken whatever they cost."""
    with use_policy(Policy(least_products=0, margin=math.inf)):
        yield


def problem(rows, inputs, outputs, density, spikes, state, graded=False):
    drawn = torch.Generator().manual_seed(rows + inputs)
    active = torch.rand(rows, inputs, generator=drawn) < density
    values = active.to(spikes)
    if graded:
        values = values * torch.randn(rows, inputs, generator=drawn).to(spikes)
    weight = torch.randn(outputs, inputs, generator=drawn, dtype=state).requires_grad_()
    bias = torch.randn(outputs, generator=drawn, dtype=state).requires_grad_()
    grad = torch.randn(rows, outputs, generator=drawn, dtype=state)
    return values, weight, bias, grad


def close(found, wanted, state):
    distance = (found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)
    assert distance <= BUDGET[state], float(distance)


def compare(values, weight, bias, grad):
    """Output and all gradients, against double precision."""
    leaves = [weight, bias]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wide = values.detach().double().requires_grad_()
    if values.is_floating_point():
        values = values.detach().requires_grad_()
        leaves, exact = [*leaves, values], [*exact, wide]
    out = ns.spike_linear(values, weight, bias)
    assert "Events" in type(out.grad_fn).__name__
    wanted = functional.linear(wide, exact[0], exact[1])
    close(out, wanted, weight.dtype)
    found = torch.autograd.grad(out, leaves, grad)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact, grad.double())):
        close(ours, theirs, weight.dtype)


@pytest.mark.parametrize(("spikes", "state"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_over_events_are_the_dense_product(shape, spikes, state, events, poisoned):
    for density in (0.02, 0.5):
        compare(*problem(*shape, density, spikes, state))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("spikes", [torch.uint8, torch.float32])
def test_all_silent_and_all_active(spikes, density, events, poisoned):
    compare(*problem(1030, 70, 66, density, spikes, torch.float32))


@pytest.mark.parametrize("table", [0, 1 << 40])
def test_sums_of_four_from_a_table_and_one_by_one(table, events, poisoned, monkeypatch):
    monkeypatch.setattr(dispatch.load(".kernels.cpu.events"), "TABLE", table)
    for shape in SHAPES[1:]:
        compare(*problem(*shape, 0.6, torch.bool, torch.float32))


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_graded_and_negative_spikes(state, events, poisoned):
    for shape in SHAPES:
        compare(*problem(*shape, 0.3, state, state, graded=True))


def test_counts_in_bytes_are_graded_spikes(events):
    _, weight, bias, grad = problem(40, 70, 66, 0.5, torch.uint8, torch.float32)
    compare(torch.randint(0, 4, (40, 70), dtype=torch.uint8), weight, bias, grad)


def test_nan_and_infinity_spread_as_in_the_dense_product(events):
    values, weight, bias, _ = problem(40, 70, 66, 0.2, torch.float32, torch.float32)
    values[3, 5], values[7, 69], values[8, 0] = torch.nan, torch.inf, -0.0
    found, wanted = ns.spike_linear(values, weight, bias), functional.linear(values, weight, bias)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    assert found[3].isnan().all()
    rest = torch.arange(40) != 3
    torch.testing.assert_close(found[rest], wanted[rest])


@pytest.mark.parametrize("shape", [(0, 70), (4, 0, 70), (7, 3, 2, 70), (70,)])
def test_any_leading_axes_also_none_and_empty(shape, events):
    spikes = (torch.rand(shape) < 0.3).float()
    layer = ns.SpikeLinear(70, 9)
    assert torch.allclose(
        layer(spikes), functional.linear(spikes, layer.weight, layer.bias), atol=1e-6
    )
    layer(spikes).sum().backward()
    assert layer.weight.grad.shape == (9, 70)


def test_views_of_spikes_weights_and_gradients(events):
    values, weight, bias, grad = problem(90, 66, 70, 0.3, torch.uint8, torch.float32)
    turned = weight.detach().t().contiguous().t().requires_grad_()
    compare(values.t().contiguous().t(), turned, bias, grad.t().contiguous().t())
    compare(values[::2, :], turned, bias, grad[:1].expand(45, 70))


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_threads_changes_no_bit(count, events):
    values, weight, bias, grad = problem(2100, 130, 200, 0.2, torch.uint8, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, count):
        torch.set_num_threads(threads)
        out = ns.spike_linear(values, weight, bias)
        found.append([out, *torch.autograd.grad(out, [weight], grad)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_only_what_is_asked_for_is_differentiated(events):
    values, weight, bias, _ = problem(40, 70, 66, 0.2, torch.float32, torch.float32)
    weight, bias = weight.detach(), bias.detach()
    assert not ns.spike_linear(values, weight, bias).requires_grad
    values.requires_grad_()
    ns.spike_linear(values, weight, bias).sum().backward()
    assert torch.allclose(values.grad, weight.sum(0).expand(40, 70), atol=1e-4)
    with torch.no_grad():
        assert not ns.spike_linear(values, weight.requires_grad_(), None).requires_grad


def test_second_derivatives_are_those_of_the_dense_product(events):
    values, weight, bias, _ = problem(6, 7, 5, 0.5, torch.float64, torch.float64)
    values.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda *a: ns.spike_linear(*a).pow(2), (values, weight, bias)
    )


def test_a_large_dense_product_lends_the_memory_of_its_input_gradient():
    values = (torch.rand(25, 60, 200) < 0.4).float()  # over a MB
    linear = ns.SpikeLinear(200, 10)
    found = []
    for layer in (linear, nn.functional.linear):
        spikes = values.clone().requires_grad_()
        arguments = (spikes,) if layer is linear else (spikes, linear.weight, linear.bias)
        out = layer(*arguments)
        wanted = (spikes, linear.weight, linear.bias)
        first = torch.autograd.grad(out.pow(2).sum(), wanted, create_graph=layer is not linear)
        again = layer(*arguments).pow(2).sum()
        (second,) = torch.autograd.grad(again, spikes, create_graph=True)
        found.append((out, *first, *torch.autograd.grad(second.pow(2).sum(), wanted[:2])))
    assert "_Product" in type(found[0][0].grad_fn.next_functions[0][0]).__name__
    for ours, theirs in zip(*found):
        close(ours, theirs, torch.float32)
    lent = found[0][1].untyped_storage().data_ptr()
    del found, first, spikes, wanted, arguments, out, again, second, ours, theirs
    out = linear(values.requires_grad_())
    out.sum().backward()
    assert values.grad.untyped_storage().data_ptr() == lent  # the block lent before


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_several_gradients_at_once_are_those_of_each(density, events):
    values = (torch.rand(25, 60, 200) < density).float().requires_grad_()  # over a MB
    linear = ns.SpikeLinear(200, 10)
    if density == 1:  # a dense product
        with use_policy(Policy()):
            out = linear(values)
    else:
        out = linear(values)
    wanted, several = (values, *linear.parameters()), torch.randn(3, *out.shape)
    each = [torch.autograd.grad(out, wanted, one, retain_graph=True) for one in several]
    found = torch.autograd.grad(out, wanted, several, is_grads_batched=True)
    for ours, theirs in zip(found, map(torch.stack, zip(*each))):
        close(ours, theirs, torch.float32)


# The choice.


@pytest.mark.parametrize("deterministic", [False, True])
def test_few_events_are_summed_and_many_multiplied(deterministic, request):
    if deterministic:
        request.getfixturevalue("poisoned")
    layer = ns.SpikeLinear(700, 800)
    for density, kind in ((0.01, "Events"), (1.0, "ViewBackward")):
        spikes = (torch.rand(3, 100, 700) < density).float()
        if kind != "Events":
            spikes = spikes * torch.rand_like(spikes)
        out = layer(spikes)
        node = type(out.grad_fn).__name__ + type(out.grad_fn.next_functions[0][0]).__name__
        assert ("Events" in node) == (kind == "Events"), node


def path(out):
    """Which product a result with a graph came from."""
    nodes = (out.grad_fn, *(node for node, _ in out.grad_fn.next_functions if node is not None))
    return "events" if any("Events" in type(node).__name__ for node in nodes) else "dense"


def test_a_small_layer_is_dense_at_once():
    layer = ns.SpikeLinear(10, 10)
    with use_policy(Policy(margin=math.inf)):
        assert path(layer(torch.zeros(5, 4, 10))) == "dense"
    with use_policy(Policy(margin=math.inf, least_products=0)):
        assert path(layer(torch.zeros(5, 4, 10))) == "events"


@pytest.mark.unpoisoned("deterministic algorithms neither measure nor rest")
def test_after_a_look_in_vain_some_batches_are_not_looked_at():
    layer = ns.SpikeLinear(70, 256)
    active, silent = torch.ones(40, 70) * 0.5, torch.zeros(40, 70)
    with use_policy(Policy(least_products=0, rest=3, look=0.0, write=0.0, read=0.0, pack=0.0)):
        assert path(layer(silent)) == "events"
        found = [path(layer(given)) for given in (active, silent, silent, silent, silent)]
        assert found == ["dense", "dense", "dense", "dense", "events"]
        layer(active)
        layer.eval()  # which is looked at each time, and leaves the training as it was
        assert [path(layer(given)) for given in (silent, active, silent)] == [
            "events",
            "dense",
            "events",
        ]
        layer.train()
        assert [path(layer(silent)) for _ in range(4)] == ["dense", "dense", "dense", "events"]
        layer(active)
        torch.use_deterministic_algorithms(True)  # then all are; conftest.py ends it
        assert path(layer(silent)) == "events"


def test_a_sample_that_misleads_costs_no_wrong_answer():
    """Nearly all events are in rows that are not looked at: all are counted once found."""
    policy = Policy(least_products=0)
    spikes = torch.ones(1281, 140)
    spikes[:: max(1, 1281 // policy.sample) | 1] = 0
    spikes *= 0.5
    layer = ns.SpikeLinear(140, 256)
    row = dispatch.TABLE["numba"]
    with use_policy(policy):
        assert break_even.promising(row, spikes, layer.weight, False)
        out = layer(spikes)
    out.sum().backward()
    twin = nn.Linear(140, 256)
    twin.load_state_dict(layer.state_dict())
    wanted = twin(spikes)
    wanted.sum().backward()
    assert torch.equal(out, wanted)
    assert torch.equal(layer.weight.grad, twin.weight.grad)


@pytest.mark.unpoisoned("deterministic algorithms neither measure nor rest")
def test_the_choice_depends_on_no_clock(monkeypatch):
    """Only a policy without a factor measures; it is measured once."""
    spikes = (torch.rand(25, 32, 784) < 0.2).to(torch.uint8)
    layer = ns.SpikeLinear(784, 256)

    def choose(slow):
        """The path, the looks at the clock it took, and the path where the clock decides."""
        looks, now = [0], [0.0]

        def clock():  # asked before and after each product, the dense one and the sums in turn
            now[0] += 1.0 if looks[0] % 4 == slow else 0.01
            looks[0] += 1
            return now[0]

        break_even.machine_factor.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr("time.perf_counter", clock)
            found = path(layer(spikes)), looks[0]
            with use_policy(Policy(factor=None)):
                measured = path(layer(spikes))
                once = looks[0]
                layer(spikes)
                assert looks[0] == once
        break_even.machine_factor.cache_clear()
        return *found, measured

    layer.eval()  # which looks at every batch
    assert choose(1) == ("events", 0, "events")  # a machine slow at dense products
    assert choose(3) == ("events", 0, "dense")


def test_a_measured_factor_is_plausible():
    row = dispatch.TABLE["numba"]
    low, high = break_even.PLAUSIBLE
    assert low <= break_even.machine_factor(row, torch.float32, torch.get_num_threads()) <= high


def test_a_policy_holds_for_its_block_and_thread():
    outer, inner = Policy(margin=1.0), Policy(margin=2.0)
    with use_policy(outer):
        with use_policy(inner):
            assert break_even.policy() is inner
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(break_even.policy).result() == Policy()
        assert break_even.policy() is outer
    assert break_even.policy() == Policy()


# Where torch's own product is taken.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_layers_are_dense(dtype, events):
    layer = ns.SpikeLinear(70, 66, dtype=dtype)
    spikes = torch.rand(40, 70) < 0.2
    wanted = functional.linear(spikes.to(dtype), layer.weight, layer.bias)
    assert torch.equal(layer(spikes), wanted)


def test_autocast_is_dense_as_of_nn_linear(events):
    layer, spikes = ns.SpikeLinear(70, 66), torch.rand(40, 70) < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(spikes)
        wanted = functional.linear(spikes.float(), layer.weight, layer.bias)
        assert torch.equal(layer(spikes.bfloat16()), wanted)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


def test_function_transforms_are_dense(events):
    values, weight, bias, _ = problem(6, 7, 5, 0.5, torch.float32, torch.float32)
    found = torch.func.vmap(lambda row: ns.spike_linear(row, weight, bias))(values)
    assert torch.allclose(found, functional.linear(values, weight, bias), atol=1e-6)
    jacobian = torch.func.jacrev(ns.spike_linear)(values[0], weight, bias)
    assert torch.allclose(jacobian, weight)


@pytest.mark.parametrize("name", ["reference", "numba"])
def test_backends_are_chosen_as_for_neurons(name, events):
    if dispatch.unsupported_reasons(name):
        pytest.skip(f"{name} cannot run here")
    spikes = torch.rand(40, 70) < 0.2
    layer = ns.SpikeLinear(70, 66)
    with ns.use_backend(name):
        scoped = layer(spikes)
    named = ns.SpikeLinear(70, 66, backend=name)
    named.load_state_dict(layer.state_dict())
    assert torch.equal(named(spikes), scoped)
    assert ("Events" in type(scoped.grad_fn).__name__) == bool(dispatch.TABLE[name].linear)


def test_a_backend_that_cannot_run_is_an_error():
    if dispatch.unsupported_reasons("triton", "cpu") == []:
        pytest.skip("triton runs on the CPU here")
    with pytest.raises(BackendError, match="'triton' cannot run on cpu tensors"):
        ns.spike_linear(torch.zeros(2, 3), torch.zeros(4, 3), backend="triton")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        ns.SpikeLinear(3, 4, backend="fast")


# As torch calls it.


def test_the_operators_keep_torchs_rules(events):
    values, weight, bias, grad = problem(40, 70, 66, 0.2, torch.uint8, torch.float32)
    operator = torch.ops.neurospike.numba_linear.default
    for given in (bias, None):
        arguments = (values, weight.detach(), given, True)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    _, found = operator(values, weight, bias, True)
    torch.library.opcheck(
        torch.ops.neurospike.numba_linear_backward.default,
        (grad, values, found),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("density", [0.01, 1.0])
def test_compiled_whole_it_gives_the_same(density):
    net = nn.ModuleList([ns.SpikeLinear(70, 66), ns.LIF(0.9)])
    spikes = (torch.rand(5, 20, 70) < density).to(torch.uint8)

    def run(x):
        return net[1](net[0](x))[0].sum()

    found = []
    for function in (run, torch.compile(run, fullgraph=True)):
        net.zero_grad()
        with use_policy(Policy(least_products=1 << 14)):
            out = function(spikes)
            out.backward()
        found.append((out.detach(), net[0].weight.grad.clone()))
    torch.testing.assert_close(*found)


def test_state_copies_and_pickles_are_those_of_nn_linear():
    layer, twin = ns.SpikeLinear(70, 66), nn.Linear(70, 66)
    assert list(layer.state_dict()) == list(twin.state_dict())
    layer.load_state_dict(twin.state_dict())
    spikes = torch.rand(4, 70) < 0.3
    wanted = layer(spikes)
    wanted.sum().backward()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(copied(spikes), wanted)
        assert repr(copied) == repr(layer)
    assert repr(layer) == "SpikeLinear(in_features=70, out_features=66, bias=True, backend='auto')"
    assert list(ns.SpikeLinear(3, 4, bias=False).state_dict()) == ["weight"]


# What users pass.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spikes": [1, 0, 1]}, TypeError, "spikes must be a tensor, got list"),
        ({"weight": 3}, TypeError, "weight must be a tensor, got int"),
        ({"bias": 0.5}, TypeError, "bias must be a tensor, got float"),
        ({"spikes": torch.zeros(2, 3).int()}, TypeError, r"bool, uint8 or torch.float32.*int32"),
        ({"spikes": torch.zeros(2, 3).double()}, TypeError, r"got torch.float64; convert them"),
        ({"spikes": torch.zeros(2, 3).to_sparse()}, TypeError, "must be dense"),
        ({"spikes": torch.zeros(2, 5)}, ValueError, r"spikes must be \[\.\.\., 3\].*\(2, 5\)"),
        ({"spikes": torch.zeros(())}, ValueError, r"spikes must be \[\.\.\., 3\]"),
        ({"spikes": torch.zeros(2, 3, device="meta")}, ValueError, "spikes are on meta"),
        ({"weight": torch.zeros(4, 3).int()}, TypeError, "weight must be floating point"),
        ({"weight": torch.zeros(4, 3, 1)}, ValueError, r"weight must be \[N, K\]"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias \[N\], got \(4, 3\) and \(3,\)"),
        ({"bias": torch.zeros(4).double()}, TypeError, "bias must be torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {"spikes": torch.zeros(2, 3), "weight": torch.zeros(4, 3), "bias": torch.zeros(4)}
    with pytest.raises(error, match=message):
        ns.spike_linear(**{**given, **change})
