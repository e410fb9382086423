"""Neurons with another recurrence: own formulas, fused layers in a row, and a loop in torch.

With one state it is `ns.Neuron`, three functions that every backend compiles. Any other
neuron is a module with `carries_state = True` that is called as `neuron(x, state)`, with
`x [T, B, *F]` and what it returned last, and returns `(spikes, state)`. `ns.Sequential` takes it
like its own. `python examples/own_neuron.py`
"""

import snntorch as snn
import torch
from torch import nn

import neurospike as ns
from neurospike.formulas import heaviside, where


# --8<-- [start:formulas]
def charge(mem, current, beta, threshold):
    """Quadratic integrate and fire: leaks below a membrane of 1/2, and drives itself on above."""
    up = where(mem > 0.0, mem, 0.0)
    return beta * mem + 2.0 * (1.0 - beta) * up * up + current


def settle(v, spike, threshold):
    """A spike sets the membrane to 0, at once."""
    return v * (1.0 - spike)


def step_vjp(mem, v, beta, threshold, surrogate, grad_spike, grad_mem):
    """The chain rule of both: gradients for the current, `mem`, `beta` and the threshold."""
    up = where(mem > 0.0, mem, 0.0)
    total = grad_spike - grad_mem * v
    d = total * surrogate + (1.0 - heaviside(v - threshold)) * grad_mem
    slope = beta + 4.0 * (1.0 - beta) * up
    return d, slope * d, d * (mem - 2.0 * up * up), -(total * surrogate)


quadratic = ns.Neuron(charge, settle, step_vjp)
# --8<-- [end:formulas]


# --8<-- [start:fused]
class Synaptic(nn.Module):
    """Neurons behind synapses whose current decays: two states, two fused time loops.

    `syn_t = alpha * syn_{t-1} + x_t` is a leaky integrator, and its trace is the current of a LIF.
    """

    carries_state = True

    def __init__(self, alpha, beta):
        super().__init__()
        self.synapse, self.soma = ns.LI(alpha), ns.LIF(beta)

    def forward(self, x, state=None):
        """`[T, B, *F]` to spikes of that shape, and the states `[B, *F]` of synapse and soma."""
        syn, mem = state or (None, None)
        current, syn = self.synapse(x, syn)
        spikes, mem = self.soma(current, mem)
        return spikes, (syn, mem)


# --8<-- [end:fused]


# --8<-- [start:stepped]
class Adaptive(nn.Module):
    """Neurons that tire: every spike raises the threshold by `rise`, which then decays by `rho`.

    The threshold depends on the neuron's own spikes, so no chain of fused layers makes it; this is
    a loop over time in torch, with one of our surrogates (Bellec et al. 2018, arXiv:1803.09574).
    """

    carries_state = True

    def __init__(self, beta=0.9, rho=0.95, rise=0.5, surrogate="atan"):
        super().__init__()
        self.beta, self.rho, self.rise = beta, rho, rise
        self.surrogate = ns.surrogate.resolve(surrogate)

    def fire(self, u):
        """H(u), whose derivative is the surrogate's."""
        u0 = u.detach()
        return (u0 > 0).to(u.dtype) + self.surrogate(u0) * (u - u0)

    def forward(self, x, state=None):
        """`[T, B, *F]` to spikes of that shape, and `(membrane, adaptation, last spikes)`."""
        mem, tired, spike = state or (torch.zeros_like(x[0]) for _ in range(3))
        spikes = []
        for current in x.unbind(0):
            tired = self.rho * tired + spike
            threshold = 1.0 + self.rise * tired
            mem = self.beta * mem + current - spike.detach() * threshold
            spike = self.fire(mem - threshold)
            spikes.append(spike)
        return torch.stack(spikes), (mem, tired, spike)


# --8<-- [end:stepped]


def snntorch_synaptic(x, alpha, beta):
    """What `snntorch.Synaptic` makes of the same currents, stepped in Python."""
    neuron = snn.Synaptic(alpha=alpha, beta=beta)
    syn, mem = neuron.reset_mem()
    spikes = []
    for current in x.unbind(0):
        spike, syn, mem = neuron(current, syn, mem)
        spikes.append(spike)
    return torch.stack(spikes)


# --8<-- [start:proof]
def run_quadratic(backend):
    """Spikes, membranes, and gradients for current, first membrane, decays and threshold."""
    drawn = torch.Generator().manual_seed(0)
    current, mem = torch.randn(20, 4, 50, generator=drawn), torch.randn(4, 50, generator=drawn)
    beta = 0.5 + 0.5 * torch.rand(50, generator=drawn)
    inputs = [t.requires_grad_() for t in (current, mem, beta, torch.tensor(0.9))]
    current, mem, beta, threshold = inputs
    options = {"neuron": quadratic, "return_trace": True, "backend": backend}
    spikes, mem, trace = ns.lif(current, mem, beta=beta, threshold=threshold, **options)
    total = (spikes + trace.cos()).sum() + mem.sum()
    return (spikes, trace), torch.autograd.grad(total, inputs)


def prove_quadratic():
    """Compare the fused kernel with torch's autograd; return the largest distance."""
    (spikes, trace), gradients = run_quadratic("numba")
    (same, traced), wanted = run_quadratic("reference")
    assert torch.equal(spikes, same)
    assert torch.equal(trace, traced)
    return max(float((g - w).norm() / w.norm()) for g, w in zip(gradients, wanted))


# --8<-- [end:proof]


def main():
    """Return spikes of the last two, and what a network with all of them in it answers."""
    torch.manual_seed(0)
    x = torch.rand(60, 2, 100) * 0.3
    spikes, _ = Synaptic(0.8, 0.9)(x)
    assert torch.equal(spikes, snntorch_synaptic(x, 0.8, 0.9))

    steady = torch.full((60, 1, 1), 0.5)
    tireless, _ = ns.LIF(0.9)(steady)
    tiring, _ = Adaptive()(steady)

    network = ns.Sequential(
        nn.Linear(100, 32),
        Synaptic(0.8, 0.9),
        nn.Linear(32, 32),
        ns.LIF(0.9, neuron=quadratic, learn_beta=True),
        nn.Linear(32, 32),
        Adaptive(),
        nn.Linear(32, 4),
    )
    whole, _ = network(x)
    first, states = network(x[:25])
    second, _ = network(x[25:], states)
    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-6)
    whole.square().mean().backward()
    return spikes, tireless, tiring, network


if __name__ == "__main__":
    spikes, tireless, tiring, network = main()
    print(
        f"quadratic: numba's spikes and membranes are torch's, gradients to {prove_quadratic():.1e}"
    )
    print(f"Synaptic: {int(spikes.sum())} spikes, equal to snnTorch's")
    for name, train in (("LIF", tireless), ("Adaptive", tiring)):
        print(f"{name:9}{''.join('|' if s else '.' for s in train.flatten())}")
    norm = network[0].weight.grad.norm()
    print(f"gradient through all three: {norm:.2g}; a sequence in two parts: the same")
