"""Recorded neurons: what is written down is what the function does, and its gradient is derived."""

import random

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike import ops
from neurospike.backend import reference
from neurospike.neurons import stepped, zoo
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Program, text_of
from neurospike.neurons.record import FREE_NAMES, arguments_of, record, record_surrogate
from neurospike.ops.wants import SPIKES, TRACES

ATAN = ns.surrogate.atan().text

MAKERS = (zoo.synaptic, zoo.one_to_one, zoo.synaptic_one_to_one)
ZOO = [make(reset) for make in MAKERS for reset in zoo.RESETS.values()]
ZOO += [zoo.synaptic_at_once(reset) for reset in zoo.RESETS_AT_ONCE.values()]
ZOO += [
    zoo.lif_to,
    zoo.synaptic_to,
    *zoo.LIF.values(),
    zoo.li,
    *zoo.ALPHA.values(),
    zoo.alif,
    zoo.se_adlif,
    zoo.izhikevich,
    zoo.qif,
    zoo.eif,
    zoo.brf,
]


def random_neuron(seed):
    """A scalar function of 1 to 4 states and up to 4 parameters, of operations drawn at random."""
    draw = random.Random(seed)
    states, parameters = draw.randint(1, 4), draw.randint(0, 4)
    length = draw.randint(3, 20)
    names = dict.fromkeys(FREE_NAMES)

    def operation(values, use):
        a, b = draw.choice(values), draw.choice(values)
        kind = draw.choice(("+", "-", "*", "/", "neg", *FREE_NAMES, "condition"))
        number = round(draw.uniform(-2.0, 2.0), 3)
        if kind == "+":
            return a + (number if draw.random() < 0.3 else b)
        if kind == "-":
            return number - a if draw.random() < 0.3 else a - b
        if kind == "*":
            return number * a if draw.random() < 0.3 else a * b
        if kind == "/":  # away from the pole
            return a / (b * b + 1.0) if draw.random() < 0.7 else number / (a * a + 1.0)
        if kind == "neg":
            return -a
        if kind == "condition":
            both = (a > b) & (a < 2.0) if draw.random() < 0.5 else (a <= b) | (b >= 0.5)
            return use["where"](both, a, b)
        if kind == "where":
            return use["where"](a > number, a, number if draw.random() < 0.5 else b)
        if kind in ("minimum", "maximum"):
            return use[kind](a, number if draw.random() < 0.3 else b)
        if kind == "exp":
            return use["exp"](-(a * a))
        if kind in ("log", "sqrt"):
            return use[kind](a * a + 0.5)
        return use[kind](a)

    def neuron(current, *rest):
        use = {name: names[name] for name in FREE_NAMES}
        values = [current, *rest]
        for _ in range(length):
            values.append(operation(values, use))
        spike = use["fire"](values[-1] - 0.1)
        return spike, *(draw.choice(values[1 + len(rest) :]) for _ in range(states))

    return neuron, states, parameters, draw, names


def recorded(seed):
    """The program of a random neuron: the recorder's own symbols are what it computes with."""
    from neurospike.neurons.record import _Recorder, _Symbol

    neuron, states, parameters, _, names = random_neuron(seed)
    recorder = _Recorder("neuron", neuron)
    names.update(recorder.names)
    inputs = [f"s{k}" for k in range(states)] + [f"p{k}" for k in range(parameters)]
    found = neuron(_Symbol(recorder, "x"), *(_Symbol(recorder, one) for one in inputs))
    results = tuple(recorder._operand(one) for one in found)
    text = text_of((states, parameters, 0), recorder.operations, results)
    return Program.parse(f"{text}|{ATAN}"), (2.0,)


def gradients(program, numbers, inputs, grads):
    """The derived gradients and torch's own, of current, states and parameters."""
    adjoint = stepped.adjoint_of(str(program), numbers, inputs[0], (True,) * len(grads))
    got = [one.expand_as(inputs[0]) for one in adjoint(*inputs, *grads)]
    leaves = [one.clone().requires_grad_() for one in inputs]
    step = stepped.step_of(str(program), numbers, inputs[0])
    found = [one.expand_as(inputs[0]) for one in step(*leaves)]
    found = [one + 0.0 * leaves[0] for one in found]  # also where nothing depends on them
    total = sum((one * grad).sum() for one, grad in zip(found, grads))
    want = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)
    return got, want


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_of_a_thousand_random_neurons_the_derived_gradient_is_torchs(first):
    compared = 0
    for seed in range(first, first + 100):
        program, numbers = recorded(seed)
        assert Program.parse(str(program)) == program
        generator = torch.Generator().manual_seed(seed)
        many = 1 + program.states + program.parameters
        inputs = [torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(many)]
        grads = [
            torch.randn(50, dtype=torch.float64, generator=generator)
            for _ in range(1 + program.states)
        ]
        got, want = gradients(program, numbers, inputs, grads)
        for one, other in zip(got, want):
            finite = other.isfinite()
            compared += int(finite.sum())
            distance = (one - other)[finite].norm()
            assert distance <= 1e-12 * max(1.0, float(other[finite].norm())), (seed, str(program))
    assert compared > 100 * 50


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(12))
def test_random_neurons_run_fused_as_they_do_in_torch(seed):
    """Spikes and states bit for bit in float32, gradients in float64."""
    pytest.importorskip("numba")
    program, numbers = recorded(seed)
    wants = SPIKES | TRACES
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape, dtype=dtype, generator=generator):
            return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

        inputs = [drawn(6, 2, 37), *(drawn(2, 37) for _ in range(program.states))]
        parameters = [drawn(37) for _ in range(program.parameters)]
        current, *states = inputs
        text, count = str(program), program.states
        call = ops.Call("numba", text, -1, wants, count, count)
        found = ops.fused_scan(call, numbers, (current, *states, *parameters))
        ours = found[0], found[1 : 1 + count], found[1 + count :]
        theirs = reference.scan(current, states, parameters, text, numbers)
        totals = []
        for spikes, finals, traces in (ours, theirs):
            every = (spikes, *finals, *traces)
            weights = torch.Generator().manual_seed(1)
            totals.append(sum((o * torch.randn(o.shape, generator=weights)).sum() for o in every))
        if dtype == torch.float32:
            for one, other in zip(
                (ours[0], *ours[1], *ours[2]), (theirs[0], *theirs[1], *theirs[2])
            ):
                assert torch.equal(one.isnan(), other.isnan())
                assert torch.equal(one.nan_to_num(), other.nan_to_num()), text
            continue
        leaves = [*inputs, *parameters]
        got, want = (
            torch.autograd.grad(t, leaves, allow_unused=True, materialize_grads=True)
            for t in totals
        )
        for one, other in zip(got, want):
            finite = other.isfinite() & one.isfinite()
            distance = (one - other)[finite].norm()
            assert distance <= 1e-9 * max(1.0, float(other[finite].norm())), text


@pytest.mark.parametrize("neuron", ZOO, ids=lambda one: one.__name__)
def test_the_zoos_derived_gradient_is_torchs(neuron):
    program = Program.parse(f"{record(neuron).text}|{ATAN}")
    many = len(arguments_of("neuron", neuron))
    inputs = [torch.rand(200, dtype=torch.float64) * 0.9 + 0.05 for _ in range(many)]
    grads = [torch.randn(200, dtype=torch.float64) for _ in program.results]
    got, want = gradients(program, (*record(neuron).numbers, 2.0), inputs, grads)
    for one, other in zip(got, want):
        assert (one - other).norm() <= 1e-12 * max(1.0, float(other.norm()))


def test_only_what_is_asked_for_is_computed():
    program = Program.parse(f"{record(zoo.synaptic()).text}|{ATAN}")
    everything, results = derived(program, (True,) * 3, (True,) * 6)
    assert len(results) == 6
    current, _ = derived(program, (True,) * 3, (True, *(False,) * 5))
    assert len(current) < len(everything)
    silent, _ = derived(program, (False, True, True), (True,) * 6)
    assert not any(
        "h0" in operation for operation in silent
    )  # no surrogate without a spike's gradient
    nothing, zeros = derived(program, (False,) * 3, (True,) * 6)
    assert nothing == () and set(zeros) == {"0.0"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 0|mul p0 s0|@0 @0|1|mul u h0",
        "1 2 0|import os;|@0|1|neg u|@0",
        "1 2 0|mul p0 __import__('os')|@0 @0|1|neg u|@0",
        "1 2 0|mul p0|@0 @0|1|neg u|@0",
        "one 2 0|mul p0 s0|@0 @0|1|neg u|@0",
    ],
)
def test_what_is_no_program_is_refused_and_never_run(text):
    with pytest.raises(ValueError, match="not a recorded neuron"):
        Program.parse(text)


def test_numbers_from_outside_are_no_part_of_the_program():
    def surrogate_of(slope):
        return lambda u: 1.0 / (1.0 + slope * abs(u))

    texts, numbers = set(), []
    for slope in np.linspace(1.0, 5.0, 9):
        text, outside = record_surrogate(surrogate_of(float(slope)))
        texts.add(text)
        numbers.append(outside)
    assert len(texts) == 1
    assert numbers == [(slope,) for slope in np.linspace(1.0, 5.0, 9)]


@pytest.mark.parametrize("kind", [float, int, np.float64, np.float32, np.int64])
def test_numbers_from_outside_may_be_numpys(kind):
    slope = kind(2)
    text, numbers = record_surrogate(lambda u: 1.0 / (1.0 + slope * abs(u)))
    assert text == record_surrogate(lambda u, slope=2.0: 1.0 / (1.0 + slope * abs(u)))[0]
    assert [(type(one), one) for one in numbers] == [(float, 2.0)]
