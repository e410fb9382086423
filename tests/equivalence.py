"""Checks of a backend against independent implementations, which no broken kernel passes.

They run on the package as it is, and in `test_mutants.py` on copies of it broken on purpose.
"""

import oracle
import torch

import neurospike as ns
from neurospike.formulas import detach, exp, fire, minimum, where

STEPS, BATCH, NEURONS = 9, 2, 1031  # more neurons than a block, and a multiple of no block's size


def problem(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return current, state, and each neuron's decay and threshold; some membranes are at it."""
    g = torch.Generator().manual_seed(2)
    current = torch.randn(STEPS, BATCH, NEURONS, generator=g) * 0.8
    mem = torch.randn(BATCH, NEURONS, generator=g)
    beta = 0.5 + 0.5 * torch.rand(NEURONS, generator=g)
    threshold = 0.4 + torch.rand(NEURONS, generator=g)
    mem[:, ::3] = 0.0
    current[0, :, ::3] = threshold[::3]  # beta * 0 + threshold: at the threshold, not above it
    mem[:, 1::3] = threshold[1::3]  # at the threshold: no reset is due
    return [t.to(dtype).requires_grad_() for t in (current, mem, beta, threshold)]


def check(backend: str, rule: dict, surrogate: str = "atan") -> None:
    """Raise `AssertionError` where spikes or membranes differ by a bit, or gradients by 1e-5.

    Checked with the trace of the membrane and without it, where kernels take several steps at once.
    """
    for traced in (True, False):
        torch.use_deterministic_algorithms(True)  # memory left unwritten holds NaN
        try:
            current, mem, beta, threshold = inputs = problem(torch.float32)
            found = ns.lif(
                current,
                mem,
                beta=beta,
                threshold=threshold,
                surrogate=surrogate,
                return_trace=traced,
                backend=backend,
                **rule,
            )
            # Compared before any gradient: if the forward pass is wrong, nothing more is compiled.
            wanted = oracle.lif(*(t.detach() for t in inputs), surrogate=surrogate, **rule)
            gradients = gradients_where_equal(found, wanted, inputs)
        finally:
            torch.use_deterministic_algorithms(False)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        in_double = oracle.lif(*exact, surrogate=surrogate, **rule)
        assert torch.equal(in_double[0].float(), wanted[0]), "choose another seed"
        check_gradients(gradients, in_double[: len(found)], exact)


def loss_of(outputs) -> torch.Tensor:
    """Return a weighted sum of all outputs, with the same random weights at every call."""
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(out.shape, generator=g) for out in outputs]
    return sum((out * weight.to(out.dtype)).sum() for out, weight in zip(outputs, weights))


def gradients_where_equal(found, wanted, inputs) -> tuple[torch.Tensor, ...]:
    """Return the gradients of the inputs, if the outputs equal the wanted ones bit for bit."""
    for got, want in zip(found, wanted):
        assert torch.equal(got, want)
    return torch.autograd.grad(loss_of(found), inputs)


def check_gradients(gradients, in_double, exact) -> None:
    """Raise `AssertionError` where gradients differ from those in float64 by 1e-5 in norm."""
    for got, want in zip(gradients, torch.autograd.grad(loss_of(in_double), exact)):
        assert (got.double() - want).norm() <= 1e-5 * want.norm()


def mixed(current, mem, slow, decay, rise):
    """A neuron of many operations, so that the derivative of each of them is checked."""
    slow = decay * slow + (1.0 - decay) * abs(current)
    v = minimum(decay * mem + current, 1.5) - exp(-rise) * slow
    spike = fire(v - rise)
    return spike, where(v > rise, 0.25 * v, v) - 0.125 * detach(spike), slow


def mixed_in_torch(current, mem, slow, decay, rise):
    """Return what `mixed` computes over time, by a loop in torch written by hand."""
    factor = torch.exp(-rise.double()).to(rise.dtype)
    spikes, mems, slows = [], [], []
    for x in current.unbind(0):
        slow = decay * slow + (1.0 - decay) * x.abs()
        v = torch.minimum(decay * mem + x, torch.tensor(1.5, dtype=x.dtype)) - factor * slow
        spike = oracle.spike(v - rise, "atan")
        mem = torch.where(v > rise, 0.25 * v, v) - 0.125 * spike.detach()
        for each, one in ((spikes, spike), (mems, mem), (slows, slow)):
            each.append(one)
    return torch.stack(spikes), mem, slow, torch.stack(mems), torch.stack(slows)


def check_neuron(backend: str) -> None:
    """Check a neuron of one's own as `check` does: it has two states, both with traces."""
    current, mem, decay, rise = problem(torch.float32)
    slow = torch.rand(mem.shape, generator=torch.Generator().manual_seed(4)).requires_grad_()
    decay, rise = (torch.nn.Parameter(one.detach()) for one in (decay, rise))
    inputs = [current, mem, slow, decay, rise]
    layer = ns.Spiking(mixed, decay=decay, rise=rise, backend=backend)
    wanted = mixed_in_torch(*(t.detach() for t in inputs))
    for traced in (True, False):
        spikes, states, *traces = layer(current, (mem, slow), return_trace=traced)
        found = (spikes, *states, *(traces[0] if traced else ()))
        gradients = gradients_where_equal(found, wanted, inputs)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        check_gradients(gradients, mixed_in_torch(*exact)[: len(found)], exact)
