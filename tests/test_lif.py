"""The contract: every backend against the two-step table, snnTorch, and a naive float64 oracle."""

import itertools
import math
from collections.abc import Callable

import oracle
import pytest
import snntorch
import torch
from oracle import RULES
from torch import Tensor

import neurospike as ns
from neurospike.formulas import where

pytestmark = pytest.mark.usefixtures("poisoned")

BUDGET = {torch.float32: 1e-5, torch.float64: 1e-12}

TWO_STEPS = {
    # rule: dM2/dx1, dM2/dbeta, dM2/dthreshold, dS2/dx1, dS2/dthreshold (design of the contract)
    ("subtract", True): (0.5, 1.5, -1, 0.0504677, -0.201871),
    ("zero", True): (0, 0, 0, 0, -0.171347),
    ("none", True): (0.5, 1.5, 0, 0.48796, -0.97592),
    ("subtract", False): (0.2371443, 0.3332552, 0.0963453, 0.1186555, -0.452145),
    ("zero", False): (-0.2051816, 0, 0.2565857, -0.0370624, -0.1342847),
}


@pytest.mark.parametrize("rule", TWO_STEPS, ids=str)
def test_two_step_table(rule: tuple[str, bool], backend: str) -> None:
    reset, delay = rule

    def gradients(of: str) -> list[float]:
        x = torch.tensor([1.5, 0.3], dtype=torch.float64).reshape(2, 1, 1).requires_grad_()
        beta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        threshold = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        options = {"reset": reset, "reset_delay": delay, "backend": backend}
        spikes, mem = ns.lif(x, beta=beta, threshold=threshold, **options)
        out = mem.sum() if of == "mem" else spikes[1].sum()
        grads = torch.autograd.grad(out, (x, beta, threshold), materialize_grads=True)
        return [grad.flatten()[0].item() for grad in grads]

    mem, spikes = gradients("mem"), gradients("spikes")
    found = (*mem, spikes[0], spikes[2])
    # The table has 7 significant digits.
    assert found == pytest.approx(TWO_STEPS[rule], rel=3e-6, abs=5e-8)


def problem(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    beta: tuple[int, ...] = (),
    threshold: tuple[int, ...] = (),
    seed: int = 0,
) -> list[Tensor]:
    """`[current, mem, beta, threshold]` of float32 values in `dtype`, each to be differentiated."""
    g = torch.Generator().manual_seed(seed)
    current = torch.randn(shape, generator=g) * 0.8
    mem = torch.randn(shape[1:], generator=g)
    b = 0.5 + 0.5 * torch.rand(beta, generator=g)
    th = 0.4 + torch.rand(threshold, generator=g)
    return [t.to(dtype).requires_grad_() for t in (current, mem, b, th)]


def all_gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed weighted sum of all outputs."""
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=g).to(out.dtype) for out in outputs]
    total = sum((out * w).sum() for out, w in zip(outputs, weights))
    return list(torch.autograd.grad(total, inputs, materialize_grads=True))


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative error in norm."""
    assert not found.isnan().any()
    return (
        (found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)
    ).item()


SHAPES = [
    # shape, beta's and threshold's
    ((7, 3, 5), (), ()),
    ((7, 3, 5), (5,), ()),
    ((4, 2, 3, 5, 2), (3, 1, 1), (5, 2)),
    ((1, 1, 1), (), (1,)),
    ((3, 2), (), ()),
    ((5, 3, 1031), (1031,), (1031,)),
    ((2, 1, 4097), (), ()),
    ((40, 2, 700), (), (700,)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(map(str, r.values())))
@pytest.mark.parametrize(("shape", "beta", "threshold"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_against_the_oracle(
    rule: dict, shape: tuple, beta: tuple, threshold: tuple, dtype: torch.dtype, backend: str
) -> None:
    current, mem, b, th = inputs = problem(shape, dtype, beta, threshold)
    found = ns.lif(current, mem, beta=b, threshold=th, return_trace=True, backend=backend, **rule)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wanted = oracle.lif(*exact, **rule)
    if dtype == torch.float32:
        # A membrane within rounding of the threshold may fire in one format and not in the other;
        # spikes are compared in the same format, by the same oracle.
        same = oracle.lif(*(t.detach() for t in inputs), **rule)
        assert torch.equal(found[0], same[0])
        assert torch.equal(same[0].double(), wanted[0]), "choose another seed"
    assert torch.equal(found[0].double(), wanted[0].detach())
    for got, want in zip(found[1:], wanted[1:]):
        assert relative(got, want) <= BUDGET[dtype]
    for got, want in zip(all_gradients(found, inputs), all_gradients(wanted, exact)):
        assert got.shape == want.shape
        assert relative(got, want) <= BUDGET[dtype]


@pytest.mark.parametrize("surrogate", list(ns.surrogate.BUILT_IN))
@pytest.mark.parametrize("rule", [RULES[0], RULES[4]], ids=["delayed", "immediate"])
def test_every_surrogate_against_the_oracle(surrogate: str, rule: dict, backend: str) -> None:
    for dtype in (torch.float32, torch.float64):
        current, mem, b, th = inputs = problem((9, 3, 33), dtype, (33,), ())
        found = ns.lif(
            current, mem, beta=b, threshold=th, surrogate=surrogate, backend=backend, **rule
        )
        exact = [t.detach().double().requires_grad_() for t in inputs]
        wanted = oracle.lif(*exact, surrogate=surrogate, **rule)[:2]
        assert torch.equal(found[0].double(), wanted[0].detach())
        for got, want in zip(all_gradients(found, inputs), all_gradients(wanted, exact)):
            assert relative(got, want) <= BUDGET[dtype]


@pytest.mark.smoke
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_spikes_and_membranes_are_those_of_snntorch(reset: str, backend: str) -> None:
    """Bit for bit in float32, over random shapes, values on the threshold among them."""
    g = torch.Generator().manual_seed(3)
    for _ in range(20):
        T, B, N = (int(torch.randint(1, high, (), generator=g)) for high in (30, 5, 300))
        beta = float(torch.rand((), generator=g))
        current = torch.randn(T, B, N, generator=g)
        current[torch.rand(T, B, N, generator=g) < 0.1] = 1.0
        leaky = snntorch.Leaky(beta=beta, reset_mechanism=reset)
        mem, spikes, trace = torch.zeros(B, N), [], []
        for x in current:
            spike, mem = leaky(x, mem)
            spikes.append(spike)
            trace.append(mem)
        found = ns.lif(current, beta=beta, reset=reset, return_trace=True, backend=backend)
        assert torch.equal(found[0], torch.stack(spikes))
        assert torch.equal(found[1], mem)
        assert torch.equal(found[2], torch.stack(trace))


def test_immediate_reset_differs_from_snntorch_above_the_threshold(backend: str) -> None:
    """snnTorch 1.0.0 adds the threshold back on the step after an immediate reset."""
    current = torch.tensor([2.5, 0, 0, 0]).reshape(4, 1, 1)
    leaky = snntorch.Leaky(beta=0.9, reset_delay=False)
    mem, theirs = torch.zeros(1, 1), []
    for x in current:
        _, mem = leaky(x, mem)
        theirs.append(mem.item())
    *_, trace = ns.lif(current, beta=0.9, reset_delay=False, return_trace=True, backend=backend)
    assert theirs == pytest.approx([1.5, 1.35, 1.215, 1.0935])
    assert trace.flatten().tolist() == pytest.approx([1.5, 0.35, 0.315, 0.2835])


def test_fires_only_strictly_above_the_threshold(backend: str) -> None:
    one = torch.tensor(1.0)
    above, below = one.nextafter(torch.tensor(2.0)), one.nextafter(torch.tensor(0.0))
    current = torch.stack([one, above, below]).reshape(1, 1, 3)
    spikes, mem = ns.lif(current, beta=0.9, backend=backend)
    assert spikes.flatten().tolist() == [0, 1, 0]
    # A membrane handed in exactly at the threshold is not reset either.
    _, after = ns.lif(torch.zeros(1, 1, 3), mem, beta=1.0, backend=backend)
    assert after.flatten().tolist() == [1, above.item() - 1, below.item()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_currents_keep_a_float32_state(dtype: torch.dtype, backend: str) -> None:
    current = (torch.randn(12, 2, 65) * 0.8).to(dtype).requires_grad_()
    mem = torch.randn(2, 65, requires_grad=True)
    spikes, last, trace = ns.lif(current, mem, beta=0.9, return_trace=True, backend=backend)
    assert (spikes.dtype, last.dtype, trace.dtype) == (dtype, torch.float32, torch.float32)
    wide = current.detach().float().requires_grad_()
    same = ns.lif(wide, mem, beta=0.9, return_trace=True, backend=backend)
    assert torch.equal(spikes.float(), same[0])
    assert torch.equal(trace, same[2])
    narrow = torch.autograd.grad(spikes.sum() + last.sum(), (current, mem))
    full = torch.autograd.grad(same[0].sum() + same[1].sum(), (wide, mem))
    assert torch.equal(narrow[0], full[0].to(dtype))
    assert torch.equal(narrow[1], full[1])


@pytest.mark.parametrize("use", ["plain", "lengths", "constant"])
@pytest.mark.parametrize("shape", [(7, 3, 37), (9, 2, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_those_of_32_rounded(dtype, shape, use, fused) -> None:
    check_16_bits(dtype, shape, use, fused)


@pytest.mark.parametrize("use", ["plain", "lengths", "constant"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_past_the_caches(dtype, use) -> None:
    pytest.importorskip("numba")
    check_16_bits(dtype, (40, 24, 2560), use, "numba")


def check_16_bits(dtype, shape, use, backend) -> None:
    steps, batch, _ = shape
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(shape, generator=generator).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    # Halfway cases are rounded to even; what is no number stays none, in its place.
    grad[0, 0, :6] = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1e-7, -3.0])
    options: dict = {"beta": 0.9, "backend": backend}
    if use == "lengths":
        options["lengths"] = torch.tensor([steps - 2, *[steps] * (batch - 1)])
    if use == "constant":
        current, options["num_steps"] = current[0], steps
    found = []
    for form in (dtype, torch.float32):
        x = current.detach().to(form).requires_grad_()
        spikes, mem = ns.lif(x, **options)
        spikes.backward(grad.to(form))
        found.append([spikes.detach().to(dtype), mem.detach(), x.grad.to(dtype)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert found[0][2].isnan().any()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(map(str, r.values())))
def test_every_rule_in_16_bits_and_from_a_state_of_zeros(rule: dict, backend: str) -> None:
    """The numbers of float32, rounded; no state is the same as one of zeros."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow, _, b, th = problem((7, 3, 33), dtype, (33,), ())
        b, th = (t.detach().float().requires_grad_() for t in (b, th))
        wide = narrow.detach().float().requires_grad_()
        options = {"beta": b, "threshold": th, "return_trace": True, "backend": backend, **rule}
        found = ns.lif(narrow, **options)
        wanted = ns.lif(wide, torch.zeros(3, 33), **options)
        assert found[0].dtype == dtype
        assert torch.equal(found[0].float(), wanted[0])
        assert all(torch.equal(got, want) for got, want in zip(found[1:], wanted[1:]))
        got = torch.autograd.grad([o.float().sum() for o in found], (narrow, b, th))
        want = torch.autograd.grad([o.sum() for o in wanted], (wide, b, th))
        assert torch.equal(got[0], want[0].to(dtype))
        assert torch.equal(got[1], want[1])
        assert torch.equal(got[2], want[2])


def test_calls_that_look_alike_are_told_apart(backend: str) -> None:
    """What one call found out is kept for others like it: of each of these in turn, no other."""
    four = torch.tensor([0.9, 0.5, 0.8, 0.7])
    plain = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3)) + 1.0

    def run(name: str, backend: str) -> list[torch.Tensor]:
        x = plain.clone().requires_grad_()
        given = x[:1].expand(4, 4, 4) if name == "one row for all" else x
        options = {"beta": four if name == "a beta each" else 0.9}
        options |= {"num_steps": 4} if name == "held" else {}
        options |= {"mem": torch.full((4, 4), 0.3)} if name == "a state" else {}
        options |= {"lengths": [1, 2, 3, 4]} if name == "lengths" else {}
        options |= {"return_trace": True} if name == "a trace" else {}
        spikes, mem, *trace = ns.lif(given, backend=backend, **options)
        total = spikes.sum() if name == "one gradient for all" else (spikes * spikes.detach()).sum()
        (
            total + (0.0 if name == "spikes alone" else mem.sum()) + sum(t.sum() for t in trace)
        ).backward()
        return [spikes, mem, *trace, x.grad]

    names = ("as it is", "held", "one row for all", "a beta each", "a state", "lengths", "a trace")
    names += ("one gradient for all", "spikes alone")
    for name in (*names, *reversed(names)):
        for ours, true in zip(run(name, backend), run(name, "reference"), strict=True):
            torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-6, msg=name)


def test_constant_current_is_the_same_as_a_repeated_one(backend: str) -> None:
    for rule in RULES:
        current, mem, b, th = problem((1, 3, 70), torch.float64, (70,), ())
        held = current[0].detach().requires_grad_()
        repeated = held.expand(15, 3, 70)
        options = {"beta": b, "threshold": th, "return_trace": True, "backend": backend, **rule}
        found = ns.lif(held, mem, num_steps=15, **options)
        wanted = ns.lif(repeated, mem, **options)
        assert all(torch.equal(f, w) for f, w in zip(found, wanted))
        leaves = [held, mem, b, th]
        for got, want in zip(all_gradients(found, leaves), all_gradients(wanted, leaves)):
            assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(map(str, r.values())))
def test_segments_equal_the_whole(rule: dict, backend: str) -> None:
    current, mem, b, th = inputs = problem((20, 2, 50), torch.float64)
    options = {"beta": b, "threshold": th, "return_trace": True, "backend": backend, **rule}
    whole = ns.lif(current, mem, **options)
    spikes, state, traces = [], mem, []
    for part in current.split([1, 7, 0, 12]):
        s, state, trace = ns.lif(part, state, **options)
        spikes.append(s)
        traces.append(trace)
    joined = (torch.cat(spikes), state, torch.cat(traces))
    assert all(torch.equal(j, w) for j, w in zip(joined, whole))
    for got, want in zip(all_gradients(joined, inputs), all_gradients(whole, inputs)):
        assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)], ids=str)
def test_empty_sequences(shape: tuple[int, ...], backend: str) -> None:
    current = torch.randn(shape, requires_grad=True)
    mem = torch.randn(shape[1:], requires_grad=True)
    beta = torch.tensor(0.9, requires_grad=True)
    options = {"beta": beta, "return_trace": True, "backend": backend}
    spikes, last, trace = ns.lif(current, mem, **options)
    assert spikes.shape == trace.shape == shape
    total = spikes.sum() + last.sum() + trace.sum()
    leaves = (current, mem, beta)
    for_current, for_mem, for_beta = torch.autograd.grad(total, leaves, materialize_grads=True)
    assert for_current.shape == shape
    assert for_beta.item() == 0
    if shape[0] == 0:
        assert torch.equal(last, mem)
        assert torch.equal(for_mem, torch.ones_like(mem))
        assert torch.equal(ns.lif(current, **options)[1], torch.zeros(shape[1:]))


LAYOUTS = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels last": lambda t: t.unsqueeze(-1).expand(*t.shape, 2)[..., 0],
    "sliced": lambda t: torch.cat([t, t])[: t.shape[0]],
    "stepped": lambda t: t.repeat_interleave(2, 0)[::2],
    "expanded over time": lambda t: t[:1].expand_as(t),
    "expanded": lambda t: t[:1, :1, :1].expand_as(t),
    "flipped batch": lambda t: t.flip(1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs_and_gradients(layout: str, backend: str) -> None:
    strided = LAYOUTS[layout](torch.randn(6, 3, 40))
    plain = strided.contiguous().clone()
    upstream = LAYOUTS[layout](torch.randn(6, 3, 40))
    results = []
    for x, grad in ((strided, upstream), (plain, upstream.contiguous().clone())):
        x = x.detach().requires_grad_()
        spikes, _, trace = ns.lif(x, beta=0.9, return_trace=True, backend=backend)
        results.append((spikes, *torch.autograd.grad([spikes, trace], x, [grad, grad])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.smoke
def test_each_output_alone_gives_its_own_gradient(backend: str) -> None:
    """Unused outputs have no gradient; each one used alone adds up to all of them together."""
    inputs = problem((6, 2, 20), torch.float64)
    current, mem, b, th = inputs
    out = ns.lif(current, mem, beta=b, threshold=th, return_trace=True, backend=backend)
    weights = [torch.randn_like(o) for o in out]
    terms = [(o * w).sum() for o, w in zip(out, weights)]
    together = torch.autograd.grad(sum(terms), inputs, retain_graph=True)
    alone = [
        torch.autograd.grad(t, inputs, retain_graph=True, materialize_grads=True) for t in terms
    ]
    for whole, *parts in zip(together, *alone):
        assert relative(sum(parts), whole) <= 1e-12


def test_training_evaluation_and_inference_agree(backend: str) -> None:
    layer = ns.LIF(0.9, learn_beta=True, backend=backend)
    current = torch.randn(8, 2, 100)
    trained = layer(current.clone().requires_grad_())
    layer.eval()
    with torch.no_grad():
        evaluated = layer(current)
    with torch.inference_mode():
        inferred = layer(current)
    for results in (evaluated, inferred):
        assert all(torch.equal(a, b) for a, b in zip(trained, results))
        assert not any(r.requires_grad for r in results)


@pytest.mark.parametrize(("beta", "inside"), [(-0.5, False), (0.5, True), (1.5, False)])
def test_beta_is_clamped_and_its_gradient_too(beta: float, inside: bool, backend: str) -> None:
    current = torch.randn(6, 2, 9)
    learned = torch.full((9,), beta, requires_grad=True)
    _, mem = ns.lif(current, beta=learned, beta_gradient="clamp", backend=backend)
    clamped = min(max(beta, 0.0), 1.0)
    assert torch.equal(mem, ns.lif(current, beta=clamped, backend=backend)[1])
    mem.sum().backward()
    assert bool(learned.grad.abs().sum() > 0) is inside


def test_far_from_the_threshold_nothing_is_nan(backend: str) -> None:
    values = [0.0, 1e-30, 1e-5, 1.0, 3.5, 88.0, 1e4, 1e15, 1e30]
    current = torch.tensor([*values, *(-v for v in values)]).repeat(3, 1, 1)
    for surrogate in ns.surrogate.BUILT_IN:
        x = current.clone().requires_grad_()
        spikes, _ = ns.lif(x, beta=0.5, surrogate=surrogate, backend=backend)
        spikes.sum().backward()
        assert x.grad.isfinite().all(), surrogate


def test_a_function_of_the_users_is_a_surrogate(backend: str) -> None:
    from neurospike.formulas import abs as magnitude
    from neurospike.formulas import exp

    sharpness = 3.0

    def laplace(u):
        return 0.5 * sharpness * exp(-sharpness * abs(u))

    current, mem, b, th = inputs = problem((9, 3, 33), torch.float64)
    found = ns.lif(current, mem, beta=b, threshold=th, surrogate=laplace, backend=backend)
    oracle.SURROGATES["laplace"] = lambda u: 1.5 * torch.exp(-3 * magnitude(u))
    wanted = oracle.lif(*inputs, surrogate="laplace")[:2]
    for got, want in zip(all_gradients(found, inputs), all_gradients(wanted, inputs)):
        assert relative(got, want) <= 1e-12


def annotated(u: Tensor) -> Tensor:
    """Documented, with a type, and integers."""
    return 1 / (1 + u**2)


def with_helper(u, count=2):
    z = 1
    for _ in range(count):
        z = z * half_of(u)
    return where((u > -1) & (u < 1), 0.3 + z, 0.7)


def half_of(u):
    return u / 2


def with_a_name_that_python_has() -> Callable:
    def max(u):
        return where(u > 0, u, -u)

    return lambda u: max(u) + 1


made: dict = {}
exec("def without_a_file(u): return 1.0 / (1.0 + u * u)", made)
FORMULAS = {
    "annotated": (annotated, lambda u: 1 / (1 + u * u)),
    "lambda": (lambda u: 1 / (1 + u * u), lambda u: 1 / (1 + u * u)),
    "without a file": (made["without_a_file"], lambda u: 1 / (1 + u * u)),
    "helper": (
        with_helper,
        lambda u: torch.where(u.abs() < 1, 0.3 + u * u / 4, torch.full_like(u, 0.7)),
    ),
    "own names": (with_a_name_that_python_has(), lambda u: u.abs() + 1),
    "number": (lambda u: 2, lambda u: torch.full_like(u, 2.0)),
    "choice of numbers": (
        lambda u: where(u > 0, 0.1, 0.7),
        lambda u: (
            torch.where(u > 0, 0.1, 0.7).to(u.dtype) + 0 * u
            if u.dtype == torch.float32
            else torch.where(u > 0, torch.full_like(u, 0.1), torch.full_like(u, 0.7))
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_accepted_is_the_same_on_every_backend(name: str, backend: str) -> None:
    """Integers widen no format; text, types and names of the function do not matter."""
    own, wanted = FORMULAS[name]
    for dtype, budget in BUDGET.items():
        current, mem, b, th = inputs = problem((9, 3, 33), dtype)
        found = ns.lif(current, mem, beta=b, threshold=th, surrogate=own, backend=backend)
        oracle.SURROGATES[name] = wanted
        exact = [t.detach().double().requires_grad_() for t in inputs]
        same = oracle.lif(*exact, surrogate=name)[:2]
        for got, want in zip(all_gradients(found, inputs), all_gradients(same, exact)):
            assert got.dtype == dtype
            assert relative(got, want) <= budget


def test_parameter_shapes_broadcast_against_the_features(backend: str) -> None:
    current = torch.randn(4, 2, 3, 5, 6)
    for shape in [(), (1,), (6,), (5, 1), (3, 1, 1), (1, 5, 6), (3, 5, 6)]:
        beta = torch.rand(shape)
        found = ns.lif(current, beta=beta, backend=backend)
        whole = ns.lif(current, beta=beta.expand(3, 5, 6).clone(), backend=backend)
        assert all(torch.equal(f, w) for f, w in zip(found, whole))


def test_li_is_the_membrane_without_spikes(backend: str) -> None:
    current, mem, b, _ = problem((9, 2, 31), torch.float64)
    layer = ns.LI(b.detach(), learn_beta=True, backend=backend)
    trace, last = layer(current, mem)
    _, _, wanted = ns.lif(
        current, mem, beta=b, reset="none", return_trace=True, backend="reference"
    )
    assert torch.equal(trace, wanted)
    assert torch.equal(last, wanted[-1])
    leaves = [current, mem]
    got = torch.autograd.grad(trace.pow(2).sum(), [*leaves, layer.beta])
    want = torch.autograd.grad(wanted.pow(2).sum(), [*leaves, b])
    assert all(relative(g, w) <= 1e-12 for g, w in zip(got, want))
    constant, _ = ns.LI(0.9, backend=backend)(current[0].detach(), num_steps=4)
    assert constant.shape == (4, 2, 31)


def test_all_backends_give_the_same_bits() -> None:
    """Spikes, states and the gradients of current and state, in float32."""
    fused = [n for n, why in ns.backends().items() if why is None and n != "reference"]
    if not fused:
        pytest.skip("no fused backend runs here")
    for rule, seed in itertools.product(RULES, range(3)):
        inputs = problem((11, 3, 77), torch.float32, (77,), (77,), seed)
        results = {}
        for name in ["reference", *fused]:
            current, mem, b, th = inputs
            out = ns.lif(
                current, mem, beta=b, threshold=th, return_trace=True, backend=name, **rule
            )
            results[name] = [*out, *all_gradients(out, inputs)[:2]]
        for name in fused:
            for got, want in zip(results[name][:3], results["reference"][:3]):
                assert torch.equal(got, want)
            for got, want in zip(results[name][3:], results["reference"][3:]):
                assert relative(got, want) <= 1e-6
