"""Neurons of the user's own formulas: on every backend what torch's autograd makes of them."""

import copy
import pickle

import pytest
import torch

import neurospike as ns
from neurospike import rule
from neurospike.formulas import heaviside, where


def quadratic_charge(mem, current, beta, threshold):
    up = where(mem > 0.0, mem, 0.0)
    return beta * mem + 2.0 * (1.0 - beta) * up * up + current


def to_zero(v, spike, threshold):
    return v * (1.0 - spike)


def quadratic_vjp(mem, v, beta, threshold, surrogate, grad_spike, grad_mem):
    up = where(mem > 0.0, mem, 0.0)
    total = grad_spike - grad_mem * v
    d = total * surrogate + (1.0 - heaviside(v - threshold)) * grad_mem
    slope = beta + 4.0 * (1.0 - beta) * up
    return d, slope * d, d * (mem - 2.0 * up * up), -(total * surrogate)


def linear_charge(mem, current, beta, threshold):
    return beta * mem + current


def linear_vjp(mem, v, beta, threshold, surrogate, grad_spike, grad_mem):
    total = grad_spike - grad_mem * v
    d = total * surrogate + (1.0 - heaviside(v - threshold)) * grad_mem
    return d, beta * d, d * mem, -(total * surrogate)


QUADRATIC = ns.Neuron(quadratic_charge, to_zero, quadratic_vjp)
LINEAR = ns.Neuron(linear_charge, to_zero, linear_vjp)


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
    assert "neuron=quadratic_charge" in repr(layer)
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


def two_values(mem, v, beta, threshold, surrogate, grad_spike, grad_mem):
    return grad_mem, grad_mem


def with_branch(mem, current, beta, threshold):
    if mem > 0.0:
        return mem
    return beta * mem + current


def misspelt(mem, current, beta, threshold):
    return beta * mem + curent  # noqa: F821


def neuron(charge=quadratic_charge, settle=to_zero, step_vjp=quadratic_vjp):
    return ns.Neuron(charge, settle, step_vjp)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            neuron(step_vjp=two_values),
            "step_vjp 'two_values' returns 2 values, wanted 4: the gradient of current, ",
        ),
        (
            neuron(charge=to_zero),
            r"takes \('v', 'spike', 'threshold'\); .* \(mem, current, beta, th",
        ),
        (neuron(settle=lambda v, spike, threshold: (v, v)), "returns 2 values, wanted one number"),
        (neuron(settle=lambda v, spike, threshold: v > 0), r"return cast\(condition, u\)"),
        (neuron(settle=lambda v, spike, threshold: "v"), "returns a str, wanted a number"),
        (neuron(settle=lambda v, spike, threshold: max(v, 0)), r"asks if.* write where\(cond"),
        (neuron(settle=lambda v, spike, threshold: v.relu()), r"uses \.relu of a tensor"),
        (neuron(charge=with_branch), r"test_neuron.py: if mem > 0.0:\)$"),
        (neuron(charge=misspelt), "uses 'curent', which is no number or function"),
    ],
)
def test_what_is_wrong_with_a_neuron_shows_when_the_layer_is_made(own, message):
    with pytest.raises(TypeError, match=message):
        ns.LIF(0.9, neuron=own)


def test_numbers_that_a_neuron_reads_are_part_of_it(backend):
    def leaky(leak):
        return neuron(charge=lambda mem, current, beta, threshold: mem * leak + current)

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
        ({"neuron": quadratic_charge}, TypeError, r"must be a Neuron\(charge, settle, step_vjp\)"),
        ({"neuron": QUADRATIC, "reset": "zero"}, ValueError, "got reset='zero', .* leave them out"),
        ({"neuron": QUADRATIC, "reset_delay": False}, ValueError, "reset_delay=False"),
        (
            {"neuron": ns.Neuron(torch.relu, to_zero, quadratic_vjp)},
            TypeError,
            "a formula must be a plain Python function",
        ),
        (
            {"neuron": ns.Neuron(lambda *a: torch.tanh(a[0]), to_zero, quadratic_vjp)},
            TypeError,
            "uses 'torch', a module",
        ),
    ],
)
def test_neurons_that_no_backend_could_run_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ns.LIF(0.9, **options)
    with pytest.raises(error, match=message):
        ns.lif(torch.rand(2, 3, 4), beta=0.9, **options)


def test_a_neuron_of_another_process_says_what_to_do():
    with pytest.raises(LookupError, match=r"as in ns.LIF\(0.9, neuron=...\)"):
        rule.from_key("none immediate atan neuron-0123")
