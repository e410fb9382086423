"""Recurrent layers: every backend computes what the equations say, whatever it does at once."""

import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.kernels.cpu import _recurrent_loop
from neurospike.kernels.cpu import recurrent as kernel
from neurospike.neurons import stepped
from neurospike.ops import recurrent as operators
from neurospike.ops.wants import SAVED, TRACES

NEURONS = {
    "subtract": lambda **o: ns.LIF(0.9, learn_beta=True, learn_threshold=True, **o),
    "zero": lambda **o: ns.LIF(0.9, reset="zero", learn_beta=True, learn_threshold=True, **o),
    "immediate": lambda **o: ns.LIF(0.9, reset_delay=False, learn_beta=True, **o),
    "synaptic": lambda **o: ns.Synaptic(0.8, 0.9, learn=("alpha", "beta"), **o),
    "alif": lambda **o: ns.ALIF(learn=("beta", "rho", "rise"), **o),
    "se_adlif": lambda **o: ns.SEAdLIF(q=1.0, d_u=0.5, learn=("d_u", "d_w", "a", "b"), **o),
    "brf": lambda **o: ns.BRF(3.0, threshold=0.05, dt=0.1, learn=("omega", "offset"), **o),
}
every_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)


def made(neuron, size, backend="numba", gain=3.0, **options):
    torch.manual_seed(1)
    layer = ns.Recurrent(neuron(backend=backend), size, **options)
    with torch.no_grad():
        layer.weight *= gain
    return layer


def currents(*shape, dtype=torch.float32, scale=1.2):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(2)) * scale


def answers(layer, current, state=None, **options):
    """Spikes, states, traces, and the gradients of everything in one sum of all of them."""
    current = current.clone().requires_grad_()
    state = None if state is None else tuple(one.clone().requires_grad_() for one in state)
    spikes, after, traces = layer(current, state, return_trace=True, **options)
    weights = currents(*spikes.shape, dtype=spikes.dtype)
    total = (spikes * weights).sum() + sum((k + 1) * one.sum() for k, one in enumerate(after))
    total = total + sum((one * weights.flip(0)).sum() for one in traces)
    inputs = [current, *layer.parameters(), *(state or ())]
    return (spikes, *after, *traces), torch.autograd.grad(total, inputs)


def assert_equal(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert torch.linalg.norm(one - other) <= tolerance * max(1.0, torch.linalg.norm(other))


@every_neuron
@pytest.mark.parametrize("lengths", [None, [7, 0, 12, 3, 12]], ids=["whole", "lengths"])
def test_equals_the_equations_stepped_in_torch(neuron, lengths):
    current = currents(12, 5, 33, dtype=torch.float64)
    state = [currents(5, 33, dtype=torch.float64).abs() for _ in made(neuron, 33).states]
    both = [
        answers(made(neuron, 33, backend, bias=True).double(), current, state, lengths=lengths)
        for backend in ("numba", "reference")
    ]
    assert both[0][0][0].mean() > 0.01  # there are spikes
    assert torch.equal(both[0][0][0], both[1][0][0])
    assert_equal(both[0][0], both[1][0], 1e-12)
    assert_equal(both[0][1], both[1][1], 1e-12)


@every_neuron
def test_spikes_of_replayed_currents_bit_for_bit(neuron):
    """Sums of rows are ordered otherwise than a product of torch; what follows on them is equal."""
    layer = made(neuron, 100)
    current, rule = currents(40, 9, 100), layer.neuron.rule
    call = operators.Call("numba", rule.program, rule.numbers, TRACES, len(layer.states), 0)
    values = [one.detach().expand(100) for one in layer._values()]
    found = operators._run(call, None, (current, layer.weight.detach(), *values), TRACES | SAVED)
    spikes, traces, total = found[0], found[1 + len(layer.states) : -1], found[-1]
    rest = layer._start(None, current, None)[1:]
    start = rest or [torch.zeros(9, 100) for _ in traces]
    step = stepped.step_of(rule.program, rule.numbers, current)
    wanted, _, states = stepped.over_time(step, total, start, values)
    assert spikes.mean() > 0.01
    assert torch.equal(spikes, wanted)
    for one, other in zip(traces, states, strict=True):
        assert torch.equal(one, other)
    before = torch.cat([torch.zeros(1, 9, 100), spikes[:-1]])
    torch.testing.assert_close(total, current + before @ layer.weight.T)


@pytest.mark.parametrize("size", [1, 31, 32, 64, 130, 257])
def test_dense_and_event_driven_sums_have_the_same_bits(size, monkeypatch):
    found = []
    for share in (-1.0, 2.0):
        monkeypatch.setattr(_recurrent_loop, "SHARE", share)
        kernel._compiled.cache_clear()
        layer = made(NEURONS["subtract"], size)
        found.append(layer(currents(20, 19, size))[0])
    kernel._compiled.cache_clear()
    assert found[0].mean() > 0.01
    assert torch.equal(*found)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_samples_do_not_depend_on_their_batch(threads):
    layer, current = made(NEURONS["alif"], 70), currents(25, 37, 70)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = layer(current)[0]
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([layer(one)[0] for one in current.split(1, dim=1)], 1)
    assert whole.mean() > 0.01
    assert torch.equal(whole, alone)


def test_lengths_are_those_of_samples_run_alone():
    layer, current = made(NEURONS["se_adlif"], 40), currents(30, 21, 40)
    lengths = torch.randint(0, 31, (21,), generator=torch.Generator().manual_seed(0))
    current[lengths.max() :] = torch.nan
    spikes, state, traces = layer(current, lengths=lengths, return_trace=True)
    assert spikes.mean() > 0.01
    for k, length in enumerate(lengths.tolist()):
        alone, after, shown = layer(current[:length, k : k + 1], return_trace=True)
        assert torch.equal(spikes[:length, k], alone[:, 0])
        assert not spikes[length:, k].any()
        for one, other in zip(state, after, strict=True):
            assert torch.equal(one[k], other[0])
        for trace, other, last in zip(traces, shown, state[1:], strict=True):
            assert torch.equal(trace[:length, k], other[:, 0])
            assert torch.equal(trace[length:, k], last[k].expand(30 - length, 40))


def test_a_first_step_may_be_handed_spikes_of_any_size():
    found = []
    for backend in ("numba", "reference"):
        layer = made(NEURONS["subtract"], 50, backend).double()
        state = (currents(4, 50, dtype=torch.float64), torch.zeros(4, 50, dtype=torch.float64))
        found.append(answers(layer, currents(6, 4, 50, dtype=torch.float64), state))
    assert_equal(found[0][0], found[1][0], 1e-12)
    assert_equal(found[0][1], found[1][1], 1e-12)


@pytest.mark.parametrize("share", [0.02, 0.9], ids=["few", "most"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_gradient_by_events(share, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(300, 128, generator=generator).to(dtype)
    spikes = (torch.rand(300, 128, generator=generator) < share).to(dtype)
    taken = []
    backward = kernel.linear.backward
    monkeypatch.setattr(kernel.linear, "backward", lambda **o: taken.append(1) or backward(**o))
    out = torch.empty(128, 128, dtype=dtype)
    kernel.weight_gradient(grad=grad, spikes=spikes, out=out)
    torch.testing.assert_close(out, grad.T @ spikes)
    assert bool(taken) == (share < 0.5)


@every_neuron
@pytest.mark.parametrize("lengths", [None, [7, 0, 12, 3, 12]], ids=["whole", "lengths"])
def test_the_loop_over_a_scan_computes_the_same(neuron, lengths, monkeypatch):
    """What backends without a kernel of their own run, here over numba's scan."""
    current = currents(12, 5, 33, dtype=torch.float64)
    row = dispatch.TABLE["numba"]
    own = answers(made(neuron, 33).double(), current, lengths=lengths)
    loop = operators.SteppedRecurrence(row)
    monkeypatch.setattr(operators, "_recurrence_of", lambda _: loop)
    monkeypatch.setattr(operators, "_keeps_states", lambda _: True)
    found = answers(made(neuron, 33).double(), current, lengths=lengths)
    assert_equal(found[0], own[0], 1e-12)
    assert_equal(found[1], own[1], 1e-12)


def test_its_products_are_in_the_states_format_under_autocast_too(monkeypatch):
    current = currents(12, 5, 33)
    loop = operators.SteppedRecurrence(dispatch.TABLE["numba"])
    monkeypatch.setattr(operators, "_recurrence_of", lambda _: loop)
    monkeypatch.setattr(operators, "_keeps_states", lambda _: True)
    layer = made(lambda **o: ns.LIF(0.9, **o), 33)
    wanted = answers(layer, current)
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(layer, current)
    for one, other in zip(found, wanted):
        assert_equal(one, other, 0)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("lengths", [None, [9, 4, 0, 11]], ids=["whole", "lengths"])
def test_segment_by_segment_equals_the_whole(backend, lengths):
    layer = made(NEURONS["synaptic"], 20, backend).double()
    current = currents(11, 4, 20, dtype=torch.float64)
    whole = layer(current, lengths=lengths)
    left = None if lengths is None else torch.tensor(lengths)
    spikes, state = [], None
    for start in range(0, 11, 4):
        part = current[start : start + 4]
        now = None if left is None else (left - start).clamp(0, len(part))
        found, state = layer(part, state, lengths=now)
        spikes.append(found)
    assert torch.equal(torch.cat(spikes), whole[0])
    for one, other in zip(state, whole[1], strict=True):
        assert torch.equal(one, other)
