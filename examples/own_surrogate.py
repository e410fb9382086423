"""A surrogate gradient of one's own: one scalar function, and every backend compiles it.

`python examples/own_surrogate.py`
"""

# --8<-- [start:surrogate]
import torch

import neurospike as ns
from neurospike.formulas import abs, exp, where

WIDTH = 0.5


def soft_edge(u):
    """A flat top of height 1 around the threshold, whose edges fall off exponentially."""
    beyond = abs(u) - WIDTH
    return where(beyond > 0.0, exp(-4.0 * beyond), 1.0)


# --8<-- [end:surrogate]


def gradient(backend, surrogate=soft_edge):
    """Spikes of some neurons on one backend, and their gradient for the current."""
    drawn = torch.Generator().manual_seed(0)
    current = torch.randn(25, 4, 300, generator=drawn).requires_grad_()
    spikes, _ = ns.lif(current, beta=0.9, surrogate=surrogate, backend=backend)
    spikes.sum().backward()
    return spikes.detach(), current.grad


def one_step():
    """Membranes of one step, and the derivative of the spike there: the surrogate itself."""
    current = torch.linspace(-1, 3, 81).view(1, 1, -1).requires_grad_()
    spikes, _ = ns.lif(current, beta=0.9, surrogate=soft_edge)
    spikes.sum().backward()
    return current.detach().flatten(), current.grad.flatten()


def main():
    """Return, for each backend, how far its gradient is from the reference's."""
    spikes, wanted = gradient("reference")
    found = {}
    for name in ("reference", "numba"):
        same, grad = gradient(name)
        assert torch.equal(spikes, same)  # a surrogate changes gradients, never spikes
        found[name] = float((grad - wanted).norm() / wanted.norm())
    return found


if __name__ == "__main__":
    membrane, derivative = one_step()
    assert torch.allclose(derivative, soft_edge(membrane - 1.0))
    for name, distance in main().items():
        print(f"{name}: spikes equal, gradient within {distance:.1e} of the reference")
