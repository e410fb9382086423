"""A search for inputs on which a fused backend is not the oracle: shapes, edges, NaN, infinity."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_spiking import ZOO

import neurospike as ns

pytestmark = pytest.mark.usefixtures("poisoned")

THRESHOLD = 0.75
# On the threshold and next to it, beyond every range, and what is no number.
EDGES = [0.0, -0.0, THRESHOLD, 0.7500001, 0.7499999, 1.5, -0.75, 1e-45, 1e-30, 3e38, -3e38]
EDGES += [float("inf"), float("-inf"), float("nan")]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(-3, 3, width=32))
# Two rules, which every backend has compiled for other tests: a search is for values.
RULES = st.sampled_from([{}, {"reset": "zero", "reset_delay": False}])

# Triton's interpreter takes a third of a second for each.
EXAMPLES = 40 if os.environ.get("TRITON_INTERPRET") == "1" else 150


@st.composite
def problems(draw):
    """Current `[T, B, N]` and state `[B, N]`, of a few values drawn and repeated in any order."""
    shape = [draw(st.integers(0, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 70))]
    values = torch.tensor(draw(st.lists(NUMBERS, min_size=1, max_size=12)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def fill(shape):
        return values[torch.randint(len(values), shape, generator=g)]

    beta = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    return fill(shape), fill(shape[1:]), beta


def same_bits(found, wanted):
    return torch.equal(found.isnan(), wanted.isnan()) and torch.equal(
        found.nan_to_num(), wanted.nan_to_num()
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # the same search in every run; a longer one is a matter of this number
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(), rule=RULES)
def test_the_same_bits_and_the_same_nans_as_the_reference(fused, problem, rule):
    current, mem, beta = problem

    def run(backend):
        x, state = current.clone().requires_grad_(), mem.clone().requires_grad_()
        b = torch.tensor(beta, requires_grad=True)
        out = ns.lif(
            x, state, beta=b, threshold=THRESHOLD, return_trace=True, backend=backend, **rule
        )
        grads = torch.autograd.grad([o.sum() for o in out], (x, state), materialize_grads=True)
        return [o.detach() for o in out], grads

    (found, got), (wanted, want) = run(fused), run("reference")
    for one, other in zip(found, wanted):
        assert same_bits(one, other)
    for one, other in zip(got, want):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.isinf(), other.isinf())
        finite = other.isfinite()
        # Spikes decide most of a sum, so an error is one of rounding or a wrong branch.
        scale = other[finite].abs().max().clamp(min=1) if finite.any() else 1.0
        assert ((one - other)[finite].abs() <= 1e-5 * scale).all()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(), cut=st.integers(0, 6), rule=RULES)
def test_segments_equal_the_whole_for_any_values(fused, problem, cut, rule):
    current, mem, beta = problem
    options = {"beta": beta, "threshold": THRESHOLD, "return_trace": True, "backend": fused, **rule}
    spikes, last, trace = ns.lif(current, mem, **options)
    first = ns.lif(current[:cut], mem, **options)
    second = ns.lif(current[cut:], first[1], **options)
    assert same_bits(torch.cat([first[0], second[0]]), spikes)
    assert same_bits(torch.cat([first[2], second[2]]), trace)
    assert same_bits(second[1], last)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(), kind=st.sampled_from(list(ZOO)))
def test_every_neuron_has_the_same_bits_and_the_same_nans(fused, problem, kind):
    make, scale, mean = ZOO[kind]
    layer, (current, *_) = make(), problem
    found = {}
    for layer.backend in ("reference", fused):
        spikes, states, traces = layer(current * scale + mean, return_trace=True)
        found[layer.backend] = (spikes, *states, *traces)
    for one, other in zip(found[fused], found["reference"]):
        assert same_bits(one, other)
