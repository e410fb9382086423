"""Neurons of the user's own formulas: on every backend what torch's autograd makes of them."""

import copy
import pickle

import pytest
import torch
from torch import cos, exp, log, maximum, minimum, sigmoid, sin, sqrt, tanh

import neurospike as ns
from neurospike.formulas import fire, where


def quadratic(current, mem, beta, threshold):
    up = where(mem > 0.0, mem, 0.0)
    v = beta * mem + 2.0 * (1.0 - beta) * up * up + current
    spike = fire(v - threshold)
    return spike, v * (1.0 - spike)


def linear(current, mem, beta, threshold):
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, v * (1.0 - spike)


QUADRATIC, LINEAR = ns.Neuron(quadratic), ns.Neuron(linear)


def run(backend, dtype, neuron=QUADRATIC, **options):
    """Outputs, and gradients for current, membrane, decays and thresholds."""
    drawn = torch.Generator().manual_seed(0)
    values = (
        torch.randn(9, 2, 70, generator=drawn) * 0.7,
        torch.randn(2, 70, generator=drawn),
        0.5 + 0.5 * torch.rand(70, generator=drawn),
        0.5 + torch.rand(70, generator=drawn),
    )
    inputs = [value.to(dtype).requires_grad_() for value in values]
    current, mem, beta, threshold = inputs
    options = {"return_trace": True, "backend": backend, "neuron": neuron, **options}
    outputs = ns.lif(current, mem, beta=beta, threshold=threshold, **options)
    weights = [torch.randn(out.shape, generator=drawn).to(dtype) for out in outputs]
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights))
    return [out.detach() for out in outputs], torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("surrogate", ["atan", "triangular"])
def test_own_recurrence_is_the_same_on_every_backend(backend, surrogate):
    outputs, gradients = run(backend, torch.float32, surrogate=surrogate)
    wanted, _ = run("reference", torch.float32, surrogate=surrogate)
    for got, want in zip(outputs, wanted):
        assert torch.equal(got, want)
    spikes, exact = run("reference", torch.float64, surrogate=surrogate)
    assert torch.equal(spikes[0].float(), outputs[0]), "choose another seed"
    assert 0.1 < outputs[0].mean() < 0.9
    for got, want in zip(gradients, exact):
        assert (got.double() - want).norm() <= 1e-5 * want.norm()


def test_formulas_of_the_lif_are_the_lif(backend):
    outputs, gradients = run(backend, torch.float32, LINEAR)
    wanted, exact = run(backend, torch.float32, None, reset="zero", reset_delay=False)
    for got, want in zip([*outputs, *gradients], [*wanted, *exact]):
        assert torch.equal(got, want)
    other, _ = run(backend, torch.float32)
    assert not torch.equal(other[0], outputs[0])


def test_layer_keeps_its_neuron_through_copies_segments_and_a_network(backend):
    layer = ns.LIF(0.8, neuron=QUADRATIC, learn_beta=True, backend=backend)
    assert "neuron=quadratic" in repr(layer)
    x = torch.randn(12, 2, 7)
    wanted, final = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x)[0], wanted)
    first, state = layer(x[:5])
    second, state = layer(x[5:], state)
    assert torch.equal(torch.cat([first, second]), wanted)
    assert torch.equal(state, final)
    out, _ = ns.Sequential(torch.nn.Linear(7, 7), layer)(x[0], num_steps=6)
    out.sum().backward()
    assert layer.beta.grad is not None


SWITCH = True


def with_branch(current, mem, beta, threshold):
    if mem > 0.0:
        return mem, mem
    return fire(mem - threshold), beta * mem + current


def misspelt(current, mem, beta, threshold):
    return fire(mem - threshold), beta * mem + curent  # noqa: F821


def integrating(current, mem, threshold):
    return fire(mem - threshold), mem + current


def of_two_states(current, mem, beta, threshold):
    return fire(mem - threshold), mem + current, beta


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (integrating, r"takes \(current, mem, threshold\), of which 1 are states; that of a LIF"),
        (of_two_states, r"\(current, mem, beta, threshold\), of which 2 are states"),
        (lambda current, mem, beta, threshold: mem, "returns one result that is no tuple"),
        (lambda current, mem, beta, threshold: (mem > threshold, mem), "computes with a condition"),
        (lambda current, mem, beta, threshold: ("s", mem), "computes with 's', a str"),
        (lambda current, mem, beta, threshold: (fire(max(mem, 0)), mem), "uses 'max'"),
        (lambda current, mem, beta, threshold: (fire(mem), mem.relu()), r"uses \.relu of a value"),
        (lambda current, mem, beta, threshold: (fire(mem * SWITCH), mem), "uses 'SWITCH', a bool"),
        (with_branch, r"line \d+ \(if mem > 0.0:\) asks whether a value is true"),
        (misspelt, "uses 'curent', which is not known"),
        (torch.relu, "must be a plain Python function"),
        (lambda *a: torch.tanh(a[0]), r"takes \*arguments"),
        (lambda current, mem, beta, threshold: (torch.cosh(mem), mem), r"uses torch\.cosh"),
    ],
)
def test_what_is_wrong_with_a_neuron_shows_when_the_layer_is_made(step, message):
    with pytest.raises(TypeError, match=message):
        ns.LIF(0.9, neuron=ns.Neuron(step))
    with pytest.raises(TypeError, match=message):
        ns.lif(torch.rand(2, 3, 4), beta=0.9, neuron=ns.Neuron(step))


def test_numbers_that_a_neuron_reads_are_part_of_it(backend):
    def leaky(leak):
        def step(current, mem, beta, threshold):
            v = mem * leak + current
            spike = fire(v - threshold)
            return spike, v * (1.0 - spike)

        return ns.Neuron(step)

    x = torch.rand(6, 2, 5)
    for leak in (0.5, 0.75):
        found = ns.LIF(1.0, neuron=leaky(leak), backend=backend)(x)
        wanted = ns.lif(x, beta=leak, reset="zero", reset_delay=False, backend=backend)
        assert all(map(torch.equal, found, wanted))


def test_a_neuron_may_have_a_threshold_below_0():
    layer = ns.LIF(0.9, -0.5, neuron=LINEAR)
    assert layer(torch.zeros(3, 1, 1))[0].all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neuron": quadratic}, TypeError, r"must be a Neuron\(step\), got"),
        ({"neuron": QUADRATIC, "reset": "zero"}, ValueError, "got reset='zero', .* leave them out"),
        ({"neuron": QUADRATIC, "reset_delay": False}, ValueError, "reset_delay=False"),
    ],
)
def test_a_neuron_says_all_of_itself(options, error, message):
    with pytest.raises(error, match=message):
        ns.LIF(0.9, **options)
    with pytest.raises(error, match=message):
        ns.lif(torch.rand(2, 3, 4), beta=0.9, **options)


def test_the_three_functions_of_version_0_1_are_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r"write charge and settle as def step\(current, mem, beta"):
        ns.Neuron(quadratic, linear, linear)
    with pytest.raises(TypeError, match="leave out step_vjp"):
        ns.Neuron(charge=quadratic, settle=linear, step_vjp=linear)


# What a step may use beside arithmetic, as the new state, and what it is in float64.
FUNCTIONS = {
    "exp": (lambda current, mem: (fire(mem), exp(current)), torch.exp),
    "log": (lambda current, mem: (fire(mem), log(current)), torch.log),
    "sqrt": (lambda current, mem: (fire(mem), sqrt(current)), torch.sqrt),
    "tanh": (lambda current, mem: (fire(mem), tanh(current)), torch.tanh),
    "sigmoid": (lambda current, mem: (fire(mem), sigmoid(current)), torch.sigmoid),
    "sin": (lambda current, mem: (fire(mem), sin(current)), torch.sin),
    "cos": (lambda current, mem: (fire(mem), cos(current)), torch.cos),
    "abs": (lambda current, mem: (fire(mem), abs(current)), torch.abs),
    "division": (lambda current, mem: (fire(mem), 3.0 / current), lambda u: 3.0 / u),
    "minimum": (
        lambda current, mem: (fire(mem), minimum(current, 2.0)),
        lambda u: torch.minimum(u, torch.tensor(2.0, dtype=u.dtype)),
    ),
    "maximum": (
        lambda current, mem: (fire(mem), maximum(current, 2.0)),
        lambda u: torch.maximum(u, torch.tensor(2.0, dtype=u.dtype)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_in_a_step_is_rounded_once(backend, name):
    step, exact = FUNCTIONS[name]
    current = torch.cat([torch.linspace(-9.0, 9.0, 40_000), torch.tensor([0.0, torch.nan, 1e30])])
    _, (state,) = ns.Spiking(step, backend=backend)(current.view(1, 1, -1))
    wanted = exact(current.double()).float()
    torch.testing.assert_close(state.view(-1), wanted, rtol=0, atol=0, equal_nan=True)
