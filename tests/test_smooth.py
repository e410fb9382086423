"""Everything smooth against finite differences: membranes, readout, the surrogates' primitives.

With a reset that lets no gradient through its spikes the membrane is a polynomial of current,
state, decay and threshold as long as no neuron fires otherwise: `gradcheck` holds as it is.
"""

import math

import pytest
import torch

import neurospike as ns

CUT = [
    {"reset": "subtract"},
    {"reset": "zero"},
    {"reset": "none"},
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
]


def inputs():
    g = torch.Generator().manual_seed(4)
    current = torch.randn(6, 2, 5, generator=g)
    mem = torch.randn(2, 5, generator=g)
    beta = 0.2 + 0.7 * torch.rand(5, generator=g)
    threshold = 0.4 + torch.rand(5, generator=g)
    return [t.double().requires_grad_() for t in (current, mem, beta, threshold)]


@pytest.mark.parametrize("rule", CUT, ids=lambda r: "-".join(map(str, r.values())))
def test_membranes(rule, backend):
    def membranes(current, mem, beta, threshold):
        options = {"beta": beta, "threshold": threshold, "backend": backend, **rule}
        return ns.lif(current, mem, return_trace=True, **options)[1:]

    given = inputs()
    spikes, *_ = ns.lif(given[0], given[1], beta=given[2], threshold=given[3], backend=backend)
    assert 0 < spikes.mean() < 1
    assert torch.autograd.gradcheck(membranes, given, eps=1e-6, atol=1e-7)


def test_the_readout_and_a_constant_current(backend):
    current, mem, beta, _ = inputs()
    layer = ns.LI(0.5, learn_beta=True, backend=backend).double()

    def readout(current, mem, beta):
        return torch.func.functional_call(layer, {"beta": beta}, (current, mem))

    def held(current, mem):
        return layer(current, mem, num_steps=7)

    assert torch.autograd.gradcheck(readout, (current, mem, beta), eps=1e-6, atol=1e-7)
    once = current[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(held, (once, mem), eps=1e-6, atol=1e-7)


# What a surrogate is the derivative of, and its parameters.
PRIMITIVES = {
    "atan": (lambda u: torch.atan(math.pi * 3 * u / 2) / math.pi, (3.0,)),
    "fast_sigmoid": (lambda u: u / (1 + 25 * u.abs()), (25.0,)),
    "sigmoid": (lambda u: torch.sigmoid(5 * u), (5.0,)),
    "triangular": (
        lambda u: torch.where(u.abs() < 2, u / 2 - u * u.abs() / 8, u.sign() / 2),
        (2.0,),
    ),
    "straight_through": (lambda u: u, ()),
    "boxcar": (lambda u: (u / 2).clamp(-0.5, 0.5), (2.0,)),
    "gaussian": (lambda u: torch.erf(u / (0.5 * math.sqrt(2))) / 2, (0.5,)),
}


@pytest.mark.parametrize("name", ns.surrogate.BUILT_IN)
def test_each_surrogate_is_the_derivative_of_its_primitive(name):
    primitive, parameters = PRIMITIVES[name]
    u = torch.linspace(-3.1, 3.3, 400, dtype=torch.float64)
    step = 1e-6
    slope = (primitive(u + step) - primitive(u - step)) / (2 * step)
    found = ns.surrogate.BUILT_IN[name](*parameters)(u)
    assert torch.allclose(found, slope, rtol=1e-6, atol=1e-8)
