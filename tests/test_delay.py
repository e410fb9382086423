"""`Delay`: every backend against the oracle and autograd, the segments, the lengths, the door."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import neurospike as ns

BUDGET = {torch.float64: 1e-12, torch.float32: 1e-5}
SHAPES = [
    (20, 3, 7, 5),
    (3, 2, 37, 8),
    (1, 1, 1, 1),
    (70, 2, 9, 16),
    (40, 5, 19, 1),
    (70, 4, 8, 20),
]
KERNELS = ("linear", "gaussian")


def values(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def delays(features, longest):
    """Delays of which some are 0, the longest, whole and fractions."""
    generator = torch.Generator().manual_seed(1)
    found = longest * torch.rand(features, generator=generator, dtype=torch.float64)
    chosen = [0.0, float(longest), float(longest // 2)][:features]
    found[: len(chosen)] = torch.tensor(chosen, dtype=torch.float64)
    return found


def results(backend, dtype, shape, kernel, history=False, lengths=None):
    """Outputs and gradients of a call."""
    steps, batch, features, longest = shape
    layer = ns.Delay(features, longest, delays(features, longest).to(dtype), True, kernel, 2.0)
    layer.backend = backend
    x = values((steps, batch, features), dtype).requires_grad_()
    before = values((longest, batch, features), dtype, 1).requires_grad_() if history else None
    late, state = layer(x, before, lengths=lengths)
    grads = [values(one.shape, dtype, 2 + k) for k, one in enumerate((late, state))]
    torch.autograd.backward((late, state), grads)
    return late, state, x.grad, layer.delay.grad, *([before.grad] if history else [])


def some_lengths(steps, batch):
    return torch.tensor([steps, 0, max(steps - 1, 0), steps // 2, steps][:batch])


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("history", [False, True], ids=["rest", "carried"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_oracle(fused, shape, kernel, history, cut):
    lengths = some_lengths(*shape[:2]) if cut else None
    for dtype, budget in BUDGET.items():
        wanted = results("reference", dtype, shape, kernel, history, lengths)
        found = results(fused, dtype, shape, kernel, history, lengths)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        for one, other in zip(found[2:], wanted[2:]):
            assert torch.linalg.norm(one - other) <= budget * torch.linalg.norm(other)


def check(backend, shape):
    lengths = torch.tensor([shape[0] - 3, shape[0] // 2, *[shape[0]] * shape[1]][: shape[1]])
    for history, ends in ((False, None), (True, None), (True, lengths)):
        for dtype, budget in BUDGET.items():
            wanted = results("reference", dtype, shape, "linear", history, ends)
            found = results(backend, dtype, shape, "linear", history, ends)
            assert torch.equal(found[0], wanted[0])
            for one, other in zip(found[2:], wanted[2:]):
                assert torch.linalg.norm(one - other) <= budget * torch.linalg.norm(other)


@pytest.mark.parametrize("shape", [(300, 2, 9, 16), (310, 1, 18, 140)], ids=str)
def test_sequences_of_many_chunks(fused, shape):
    check(fused, shape)


@pytest.mark.parametrize(
    "shape",
    [
        (300, 2, 8, 140),  # many chunks, in place
        (20, 2, 800, 9),  # more than one block of channels
        *((40, 16, 1680, 9), (40, 1, 26881, 9)),  # written past the caches, in lines or not
        (20, 1, 3, 150_000),  # delays that no cache holds
    ],
    ids=str,
)
def test_blocks_and_places_in_memory(shape):
    pytest.importorskip("numba")
    check("numba", shape)


def test_only_the_gradient_of_the_steps_before(fused):
    layer = ns.Delay(16, 9, delays(16, 9), backend=fused)
    oracle = ns.Delay(16, 9, layer.delay.detach(), backend="reference")
    found = []
    for one in (layer, oracle):
        before = values((9, 2, 16), seed=1).requires_grad_()
        late, _ = one(values((30, 2, 16)), before)
        found += torch.autograd.grad(late, before, values(late.shape, seed=2))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def in_words(x, before, d):
    """The definition, a step and a channel at a time."""
    steps, _, features = x.shape
    longest = len(before)
    whole = torch.cat((before, x))
    y = torch.zeros_like(x)
    for c in range(features):
        k = int(d[c])
        f = float(d[c]) - k
        for t in range(steps):
            y[t, :, c] = (1 - f) * whole[longest + t - k, :, c]
            if f > 0:
                y[t, :, c] += f * whole[longest + t - k - 1, :, c]
    return y


def test_it_is_what_the_docstring_says(backend):
    d = torch.tensor([0.0, 3.0, 1.0, 2.25, 0.5, 2.999], dtype=torch.float64)
    layer = ns.Delay(6, 3, d, learn=False, backend=backend)
    for steps in (0, 1, 2, 9):
        x, before = values((steps, 2, 6)), values((3, 2, 6), seed=1)
        late, state = layer(x, before)
        torch.testing.assert_close(late, in_words(x, before, d), rtol=1e-14, atol=1e-14)
        assert torch.equal(state, torch.cat((before, x))[-3:])


def test_whole_delays_move_spikes_exactly(backend):
    spikes = (values((30, 4, 5)) > 0.5).float()
    late, _ = ns.Delay(5, 7, torch.tensor([0.0, 1, 3, 6, 7]), learn=False, backend=backend)(spikes)
    for c, d in enumerate((0, 1, 3, 6, 7)):
        assert torch.equal(late[d:, :, c], spikes[: 30 - d, :, c])
        assert not late[:d, :, c].any()


def test_the_gradient_of_the_oracle_is_that_of_finite_differences():
    layer = ns.Delay(4, 3, torch.tensor([0.3, 1.6, 2.4, 0.8], dtype=torch.float64))
    for kernel in KERNELS:
        wide = ns.Delay(4, 3, layer.delay.detach(), True, kernel, 0.9, "reference")

        def run(x, before, d, wide=wide):
            return torch.func.functional_call(wide, {"delay": d}, (x, before))

        given = (values((5, 2, 4)), values((3, 2, 4), seed=1), layer.delay.detach().clone())
        assert torch.autograd.gradcheck(run, tuple(one.requires_grad_() for one in given))


@pytest.mark.parametrize("kernel", KERNELS)
def test_segments_equal_the_whole(backend, kernel):
    # At a bound each call decides by its own gradient whether a step would lead out.
    layer = ns.Delay(5, 6, delays(5, 6).clamp(0.1, 5.9), True, kernel, 1.5, backend)
    x = values((23, 3, 5)).requires_grad_()
    whole, last = layer(x)
    grad = values(whole.shape, seed=3)
    wanted = torch.autograd.grad(whole, (x, layer.delay), grad)
    state, parts = None, []
    for part in x.split([1, 2, 9, 0, 4, 7]):
        late, state = layer(part, state)
        parts.append(late)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, last)
    found = torch.autograd.grad(torch.cat(parts), (x, layer.delay), grad)
    for one, other in zip(found, wanted):
        assert torch.linalg.norm(one - other) <= 1e-12 * torch.linalg.norm(other)


def test_lengths_equal_samples_run_one_by_one(backend):
    layer = ns.Delay(5, 6, delays(5, 6).clamp(0.1, 5.9), backend=backend)
    x, before = values((11, 5, 5)).requires_grad_(), values((6, 5, 5), seed=1).requires_grad_()
    poisoned = x.detach().clone()
    for sample, length in enumerate(some_lengths(11, 5)):
        poisoned[length:, sample] = float("nan")  # what lies behind the end has no effect
    poisoned.requires_grad_()
    lengths = some_lengths(11, 5)
    late, state = layer(poisoned, before, lengths=lengths)
    grads = values(late.shape, seed=2), values(state.shape, seed=3)
    found = torch.autograd.grad((late, state), (poisoned, before, layer.delay), grads)
    total = torch.zeros(5, dtype=torch.float64)
    for sample, length in enumerate(lengths.tolist()):
        alone = [x[:length, sample : sample + 1], before[:, sample : sample + 1]]
        one, after = layer(*alone)
        assert torch.equal(late[:length, sample], one[:, 0])
        assert not late[length:, sample].any()
        assert torch.equal(state[:, sample], after[:, 0])
        given = (grads[0][:length, sample : sample + 1], grads[1][:, sample : sample + 1])
        dx, dbefore, d = torch.autograd.grad((one, after), (*alone, layer.delay), given)
        torch.testing.assert_close(found[0][:length, sample], dx[:, 0])
        assert not found[0][length:, sample].any()
        torch.testing.assert_close(found[1][:, sample], dbefore[:, 0])
        total += d
    torch.testing.assert_close(found[2], total)


def test_no_step_of_any_sample_leaves_the_state(backend):
    layer = ns.Delay(5, 6, delays(5, 6), backend=backend)
    before = values((6, 2, 5)).requires_grad_()
    for x, lengths in ((values((0, 2, 5)), None), (values((9, 2, 5)), torch.zeros(2).long())):
        late, state = layer(x, before, lengths=lengths)
        assert not late.any()
        assert torch.equal(state, before)
        grad = values((6, 2, 5), seed=3)
        found = torch.autograd.grad((late, state), (before, layer.delay), (late.detach(), grad))
        assert torch.equal(found[0], grad)
        assert not found[1].any()


def test_gradients_that_are_one_row_for_all_steps(fused):
    x = values((37, 3, 5), torch.float32)
    for backend in ("reference", fused):
        layer = ns.Delay(5, 4, delays(5, 4).float(), backend=backend)
        late, _ = layer(x.requires_grad_())
        late.sum().backward()
        if backend == "reference":
            wanted = x.grad, layer.delay.grad
            x = x.detach().clone()
    for one, other in zip((x.grad, layer.delay.grad), wanted):
        torch.testing.assert_close(one, other)


def test_a_constant_input_is_one_at_every_step(backend):
    layer = ns.Delay(5, 4, delays(5, 4), backend=backend)
    x, before = values((3, 5)).requires_grad_(), values((4, 3, 5), seed=1)
    late, state = layer(x, before, num_steps=9)
    wanted, last = layer(x.expand(9, 3, 5).contiguous(), before)
    assert torch.equal(late, wanted)
    assert torch.equal(state, last)
    grad = values(late.shape, seed=2)
    found = torch.autograd.grad(late, (x, layer.delay), grad)
    for one, other in zip(found, torch.autograd.grad(wanted, (x, layer.delay), grad)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_summed_in_32(backend, dtype):
    layer = ns.Delay(9, 4, delays(9, 4).float(), backend=backend).to(dtype)
    assert layer.delay.dtype == torch.float32
    x = values((20, 2, 9), dtype).requires_grad_()
    late, state = layer(x)
    wanted, _ = layer(x.float())
    assert late.dtype == state.dtype == dtype
    assert torch.equal(late, wanted.to(dtype))
    late.sum().backward()
    assert x.grad.dtype == dtype
    assert layer.delay.grad.dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(20, 2, 9, 5), (30, 3, 32, 20)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_those_of_32_rounded(dtype, shape, kernel, fused):
    check_16_bits(dtype, shape, kernel, fused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_past_the_caches(dtype):
    pytest.importorskip("numba")
    check_16_bits(dtype, (40, 24, 2560, 9), "linear", "numba")


def check_16_bits(dtype, shape, kernel, backend):
    steps, batch, features, longest = shape
    layer = ns.Delay(features, longest, delays(features, longest).float(), True, kernel, 2.0)
    layer.backend = backend
    x, before = values(shape[:3], dtype), values((longest, batch, features), dtype, 1)
    grad = values(shape[:3], dtype, 2)
    for lengths in (None, some_lengths(steps, batch) if batch < 4 else None):
        found = []
        for form in (dtype, torch.float32):
            given = [one.detach().to(form).requires_grad_() for one in (x, before)]
            late, _ = layer(*given, lengths=lengths)
            more = torch.autograd.grad(late, (*given, layer.delay), grad.to(form))
            found.append([one.to(dtype) for one in (late, *more[:2])] + [more[2]])
        for one, other in zip(*found):
            assert torch.equal(one, other)


def test_only_what_is_asked_for(fused):
    """The gradient of one alone is that of it among others."""
    shape = (20, 3, 7, 5)
    wanted = results(fused, torch.float64, shape, "linear", True)
    grads = values((20, 3, 7), seed=2), values((5, 3, 7), seed=3)
    places = {"x": 2, "delay": 3, "before": 4}
    for name, place in places.items():
        layer = ns.Delay(7, 5, delays(7, 5), learn=name == "delay", backend=fused)
        x, before = values((20, 3, 7)), values((5, 3, 7), seed=1)
        one = {"x": x, "before": before, "delay": layer.delay}[name]
        found = layer(x.requires_grad_(name == "x"), before.requires_grad_(name == "before"))
        torch.autograd.backward(
            [y for y in found if y.requires_grad], grads[: 1 + found[1].requires_grad]
        )
        torch.testing.assert_close(one.grad, wanted[place], rtol=1e-12, atol=1e-12)


def test_threads_and_repetition_give_the_same_bits():
    x = values((40, 16, 300), torch.float32)
    grads = []
    for threads in (1, 2, 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            layer = ns.Delay(300, 9, delays(300, 9).float())
            layer(x)[0].square().sum().backward()
        finally:
            torch.set_num_threads(before)
        grads.append(layer.delay.grad)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_a_delay_beyond_its_bounds_comes_back():
    layer = ns.Delay(4, 5, 0.0)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([-0.5, -0.5, 5.5, 5.5]))
    x = values((20, 2, 4))
    late, _ = layer(x)
    assert torch.equal(late[:, :, :2], x[:, :, :2])
    assert torch.equal(late[5:, :, 2:], x[:-5, :, 2:])
    # A step against the gradient would lead in for the first and third of these.
    slope = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    layer._taps(x)[1][1].backward(slope.double())
    assert layer.delay.grad.tolist() == [-1.0, 0.0, 1.0, 0.0]


def test_at_the_longest_delay_the_gradient_leads_back(backend):
    """There is no later step to learn from, but there is the one before."""
    layer = ns.Delay(1, 3, 3.0, backend=backend)
    spikes = torch.zeros(8, 1, 1)
    spikes[1] = 1.0
    late, _ = layer(spikes)
    assert late.flatten().nonzero().tolist() == [[4]]
    (-late[3]).sum().backward()  # it should have come a step earlier
    assert layer.delay.grad.item() == 1.0


def test_a_gaussian_that_was_shrunk_is_the_nearest_step(backend):
    x = values((12, 2, 3))
    layer = ns.Delay(3, 4, torch.tensor([0.2, 1.8, 3.0]), False, "gaussian", 2.0, backend)
    wide, _ = layer(x)
    layer.sigma.zero_()
    narrow, _ = layer(x)
    layer.kernel = "linear"
    layer.delay.round_()
    torch.testing.assert_close(narrow, layer(x)[0])
    assert not torch.allclose(wide, narrow)


@pytest.mark.parametrize("size", [(), 1, (3, 1, 1), (3, 4, 5), (5,)], ids=str)
def test_one_delay_per_channel_map_or_in_all(backend, size):
    layer = ns.Delay(size, 4, backend=backend)
    x = values((9, 2, 3, 4, 5))
    late, state = layer(x)
    wide = ns.Delay((3, 4, 5), 4, layer.delay.detach().expand(3, 4, 5), backend=backend)
    assert torch.equal(late, wide(x)[0])
    assert state.shape == (4, 2, 3, 4, 5)
    late.sum().backward()
    assert layer.delay.grad.shape == layer.delay.shape


def test_it_takes_part_in_a_sequential(backend):
    net = ns.Sequential(
        nn.Linear(4, 6), ns.Delay(6, 3, backend=backend), ns.LIF(0.9), nn.Linear(6, 2)
    )
    x = torch.randn(12, 3, 4)
    out, states = net(x)
    current, _ = net[1](net[0](x))
    assert torch.equal(out, net[3](net[2](current)[0]))
    first, states = net(x[:5])
    second, _ = net(x[5:], states)
    torch.testing.assert_close(torch.cat((first, second)), out)
    constant, _ = net(x[0], num_steps=7)
    torch.testing.assert_close(constant, net(x[0].expand(7, 3, 4))[0])


class SynapticDelay(nn.Module):
    """That of snnTorch's main branch as its users see it, where the installed one has none."""

    def __init__(self, max_delay, delay=0.0, channels=None, learn_delay=False, kernel="linear"):
        super().__init__()
        self.max_delay, self.kernel, self.sigma, self.channels = max_delay, kernel, 1.0, channels
        self.step_mode = True
        value = torch.as_tensor(delay, dtype=torch.float)
        value = value if channels is None or value.dim() else value.expand(channels).clone()
        self.delay = nn.Parameter(value) if learn_delay else value
        self.last: list[torch.Tensor] = []

    def forward(self, x):
        """Delay one step `[B, C]`."""
        self.last = [x, *self.last][: self.max_delay + 1]
        ago = torch.arange(self.max_delay + 1.0).unsqueeze(1)
        distance = ago - self.delay.clamp(0.0, self.max_delay).expand(x.shape[1])
        if self.kernel == "linear":
            weights = (1.0 - distance.abs()).clamp(min=0.0)
        else:
            weights = torch.exp(-(distance**2) / (2.0 * self.sigma**2))
        weights = weights / weights.sum(0)
        return sum(weight * one for weight, one in zip(weights, self.last))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [None, 6])
def test_converted_from_snntorch(monkeypatch, kernel, channels):
    snntorch = pytest.importorskip("snntorch")
    theirs = getattr(snntorch, "SynapticDelay", SynapticDelay)
    monkeypatch.setattr(snntorch, "SynapticDelay", theirs, raising=False)
    if theirs is SynapticDelay:
        monkeypatch.setattr(theirs, "__module__", "snntorch")
    torch.manual_seed(1)
    delay = theirs(5, delay=1.7, channels=channels, learn_delay=True, kernel=kernel)
    net = nn.Sequential(nn.Linear(4, 6), delay, nn.Linear(6, 3))
    x = torch.randn(12, 2, 4)
    ours = ns.convert(net)
    assert isinstance(ours[1], ns.Delay)
    assert ours[1].delay is delay.delay
    late, _ = ours(x)
    stepped = torch.stack([net(step) for step in x])
    torch.testing.assert_close(late, stepped)
    grad = torch.randn_like(late)
    found = torch.autograd.grad(late, delay.delay, grad)
    torch.testing.assert_close(found, torch.autograd.grad(stepped, delay.delay, grad))
    with pytest.raises(ValueError, match="layers 0 and 1 are one and the same SynapticDelay"):
        ns.convert(nn.Sequential(delay, delay))


def test_copies_and_saved_layers_are_the_same():
    layer = ns.Delay(5, 6, kernel="gaussian")
    assert sorted(layer.state_dict()) == ["delay", "sigma"]
    x = torch.randn(9, 2, 5)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    loaded = ns.Delay(5, 6, kernel="gaussian", sigma=1.0)
    file.seek(0)
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x)[0], layer(x)[0])
    assert "max_delay=6" in repr(layer)


def test_drawn_delays_follow_the_seed_and_fill_the_range():
    torch.manual_seed(3)
    first = ns.Delay(1000, 8).delay
    torch.manual_seed(3)
    assert torch.equal(first, ns.Delay(1000, 8).delay)
    assert 0.0 <= first.min() < 0.2
    assert 7.8 < first.max() <= 8.0


@pytest.mark.unpoisoned("the compiler's own kernels are not ours to fill")
def test_compiled(fused):
    torch._dynamo.reset()
    layer = ns.Delay(5, 4, delays(5, 4).float(), backend=fused)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = values((9, 2, 5), torch.float32).requires_grad_()
    wanted, last = layer(x)
    found, state = whole(x, lengths=None)
    assert torch.equal(found, wanted)
    assert torch.equal(state, last)
    grad = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, (x, layer.delay), grad),
        torch.autograd.grad(wanted, (x, layer.delay), grad),
    ):
        torch.testing.assert_close(one, other)


def test_second_derivatives_and_forward_mode_are_refused(fused):
    layer = ns.Delay(5, 4, backend=fused)
    x = torch.randn(9, 2, 5, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        first.sum().backward()
    with pytest.raises(RuntimeError, match=r"jvp|forward"):
        torch.func.jvp(lambda one: layer(one)[0], (x.detach(),), (x.detach(),))


def test_operators_are_what_torch_expects(fused):
    x, before = torch.randn(6, 2, 5, requires_grad=True), torch.randn(4, 2, 5)
    lag, weights = torch.tensor([0, 1, 3, 2, 0], dtype=torch.int32), torch.rand(2, 5)
    for history in (None, before):
        given = (x.detach(), history, lag, weights, torch.tensor([6, 3]), 4)
        checks = ("test_schema", "test_faketensor")
        operators = torch.ops.neurospike
        torch.library.opcheck(getattr(operators, f"{fused}_delay"), given, test_utils=checks)
        backward = getattr(operators, f"{fused}_delay_backward")
        for wants in (1, 4, 5) if history is None else (1, 3, 7):
            torch.library.opcheck(backward, (x.detach(), *given, wants), test_utils=checks)


# At the door

X = torch.zeros(9, 2, 5)
REFUSED = [
    (ValueError, "max_delay must be 1 or more, got 0", lambda: ns.Delay(5, 0)),
    (TypeError, "max_delay must be a whole number, got 2.5", lambda: ns.Delay(5, 2.5)),
    (TypeError, "size must be a whole number, got '5'", lambda: ns.Delay("5", 4)),
    (ValueError, "size must be 1 or more, got 0", lambda: ns.Delay((5, 0), 4)),
    (ValueError, "between 0 and max_delay=4 steps, got 4.5", lambda: ns.Delay(5, 4, 4.5)),
    (ValueError, "between 0 and max_delay=4 steps, got -1", lambda: ns.Delay(5, 4, -1)),
    (ValueError, "steps, got nan", lambda: ns.Delay(5, 4, float("nan"))),
    (ValueError, "shape \\(5,\\) that size says", lambda: ns.Delay(5, 4, torch.zeros(4))),
    (TypeError, "delay must be a number or a tensor", lambda: ns.Delay(5, 4, "long")),
    (ValueError, "unknown kernel 'cubic'", lambda: ns.Delay(5, 4, kernel="cubic")),
    (ValueError, "sigma must be a number of steps above 0", lambda: ns.Delay(5, 4, sigma=0.0)),
    (ValueError, r"got \[1.0, 1.0\]", lambda: ns.Delay(5, 4, sigma=torch.ones(2))),
    (ValueError, "unknown backend 'cuda'", lambda: ns.Delay(5, 4, backend="cuda")),
    (TypeError, "current must be float16.*got torch.int64", lambda: ns.Delay(5, 4)(X.long())),
    (ValueError, "does not broadcast against the features", lambda: ns.Delay(4, 4)(X)),
    (ValueError, "no time or no batch axis", lambda: ns.Delay(5, 4)(X[0, 0])),
    (ValueError, "last max_delay steps", lambda: ns.Delay(5, 4)(X, torch.zeros(3, 2, 5))),
    (TypeError, "as the current is", lambda: ns.Delay(5, 4)(X, torch.zeros(4, 2, 5).double())),
    (TypeError, "that an earlier call returned", lambda: ns.Delay(5, 4)(X, (X[:4],))),
    (ValueError, "lengths", lambda: ns.Delay(5, 4)(X, lengths=torch.tensor([10, 9]))),
    (ValueError, "lengths", lambda: ns.Delay(5, 4)(X, lengths=torch.tensor([1, 2, 3]))),
]


@pytest.mark.parametrize(("error", "said", "call"), REFUSED, ids=[said for _, said, _ in REFUSED])
def test_what_is_refused(error, said, call):
    with pytest.raises(error, match=said):
        call()


def test_a_state_dict_out_of_range_is_refused():
    layer = ns.Delay(2, 4, 1.0, learn=False)
    with pytest.raises(RuntimeError, match="between 0 and max_delay=4"):
        layer.load_state_dict({"delay": torch.tensor([1.0, 9.0])})


def test_delays_that_are_no_number_reach_no_foreign_memory(backend):
    layer = ns.Delay(5, 4, 1.0, backend=backend)
    with torch.no_grad():
        layer.delay[2] = float("nan")
    late, _ = layer(torch.ones(9, 2, 5))
    assert late[:, :, 2].isnan().all()
    assert not late[:, :, [0, 1, 3, 4]].isnan().any()


def test_the_benchmark_proves_what_it_times(tmp_path, monkeypatch):
    from benchmarks import delays as benchmark
    from benchmarks.gate import GateError

    threads = torch.get_num_threads()
    options = ["--case", "20x4x6", "--seconds", "0", "--out", str(tmp_path), "--threads", "1"]
    try:
        benchmark.main(options)
        assert (tmp_path / "delays.json").exists()
        monkeypatch.setattr(benchmark, "convolved", lambda delay: lambda x: x + 0.0 * delay)
        with pytest.raises(GateError, match="conv1d"):
            benchmark.main(options)
    finally:
        torch.set_num_threads(threads)


FORMATS = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_machine_code_for_a_hopper_gpu(dtype):
    pytest.importorskip("triton")
    from benchmarks.triton_code import compiling
    from neurospike.kernels.cuda import delay as kernels

    steps, batch, features, longest = 20, 3, 37, 5
    x = torch.zeros(steps, batch, features, dtype=dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    before, lengths = x[:longest].clone(), torch.zeros(batch, dtype=torch.int64)
    with compiling(90) as made:
        for taps, history, ends, learned in (
            (2, None, None, True),
            (6, before, lengths, True),
            (2, before, None, False),
        ):
            given = {"current": x, "history": history, "lengths": ends, "max_delay": longest}
            given["lag"] = torch.zeros(features, dtype=torch.int32)
            given["weights"] = weights = torch.zeros(taps, features, dtype=state)
            kernels.forward(**given, out=x.clone())
            kernels.backward(
                **given,
                grad=x[:1].expand(x.shape),
                out=x.clone(),
                out_history=None if history is None else before.clone(),
                out_weights=weights.clone() if learned else None,
            )
    assert len(made) == 6
    for kernel in made:
        assert kernel.asm["cubin"].startswith(b"\x7fELF")
        assert "fma.rn" not in kernel.asm["ptx"]  # else the bits of a sum would not be the oracle's


def test_a_kernel_that_the_layer_has_nothing_for_is_refused():
    layer, current = ns.Delay(3, 4), torch.rand(5, 2, 3)
    layer.kernel = "gaussian"
    with pytest.raises(ValueError, match=r"made without a sigma.*ns.Delay\(..., sigma=8.0\)"):
        layer(current)
    layer.kernel = "square"
    with pytest.raises(ValueError, match="unknown kernel 'square'; choose one of linear, gaussian"):
        layer(current)
