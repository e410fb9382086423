"""An independent, naive implementation of the contract: a Python loop under torch's autograd.

It uses nothing of `neurospike.formulas`, so that a mistake there shows. In float64 it is what
gradients are compared with.
"""

import math

import torch
from torch import Tensor

RULES = [
    {"reset": "subtract"},
    {"reset": "zero"},
    {"reset": "none"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False},
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
]
SURROGATES = {
    "atan": lambda u: 1.0 / (1 + (math.pi * u) ** 2),
    "fast_sigmoid": lambda u: 1 / (25 * u.abs() + 1) ** 2,
    "sigmoid": lambda u: 25 * torch.sigmoid(25 * u) * torch.sigmoid(-25 * u),
    "triangular": lambda u: (1 - u.abs()).clamp(min=0),
    "straight_through": torch.ones_like,
    "boxcar": lambda u: (u.abs() < 0.5).to(u.dtype),
    "gaussian": lambda u: torch.exp(-2 * u**2) * 2 / math.sqrt(2 * math.pi),
}


def spike(u: Tensor, surrogate: str) -> Tensor:
    """Return H(u) with the surrogate h(u) as its derivative: that of h(u) * u with h detached."""
    h = SURROGATES[surrogate](u.detach())
    fired = (u > 0).to(u.dtype).detach()
    return fired + h * (u - u.detach())


def lif(
    current: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    surrogate: str = "atan",
    reset: str = "subtract",
    reset_delay: bool = True,
    detach_reset: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(spikes [T, B, *F], mem [B, *F], trace [T, B, *F])` of a current `[T, B, *F]`."""
    beta = beta.clamp(0, 1)
    spikes, trace = [], []
    for x in current:
        if reset_delay:
            fired = (mem - threshold > 0).to(mem.dtype)
            if reset == "subtract":
                mem = beta * mem + x - fired * threshold
            elif reset == "zero":
                mem = beta * ((1 - fired) * mem) + x
            else:
                mem = beta * mem + x
            s = spike(mem - threshold, surrogate)
        else:
            u = beta * mem + x
            s = spike(u - threshold, surrogate)
            through = s.detach() if detach_reset else s
            if reset == "subtract":
                mem = u - through * threshold
            elif reset == "zero":
                mem = u * (1 - through)
            else:
                mem = u
        spikes.append(s)
        trace.append(mem)
    return torch.stack(spikes), mem, torch.stack(trace)
