"""The workload of open-neuromorphic's benchmark of frameworks, done right.

`Linear(n, n)` and LIF, batch 16, 500 steps, `randn` input, loss: the sum of all spikes
(https://github.com/open-neuromorphic/open-neuromorphic). Every rival gets the linear layer over the
whole sequence at once, a graph for each backward pass, and a clock that waits for the device. The
input has a gradient, as in a hidden layer, so that a step has three products of matrices; those
alone are the floor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import rivals
from .gate import gate

BATCH, STEPS = 16, 500


class Workload:
    """One size of the workload, with its weights and its input."""

    def __init__(
        self, neurons: int, device: str = "cpu", batch: int = BATCH, steps: int = STEPS
    ) -> None:
        """Draw `neurons` by `neurons` weights and an input `[steps, batch, neurons]`."""
        torch.manual_seed(0)
        self.linear = nn.Linear(neurons, neurons).to(device)
        self.x = torch.randn(steps, batch, neurons).to(device).requires_grad_()
        self.case = f"Linear({neurons}, {neurons}) + LIF, batch {batch}, T={steps}"

    def prove(self, name: str, layer: rivals.Layer, oracle: rivals.Layer, rounding: bool) -> float:
        """Hold a layer against its oracle on the currents that it will be given."""
        with torch.no_grad():
            current = self.linear(self.x)
        grad = current.new_ones(()).expand_as(current)
        return gate(f"{self.case}, {name}", layer, oracle, current, grad, rounding=rounding)

    def step(self, layer: rivals.Layer) -> Callable[[], object]:
        """Return forward, loss and backward."""
        if hasattr(layer, "workload"):  # of a library with arrays of its own
            return layer.workload(self.linear, self.x)

        leaves = [*self.linear.parameters(), self.x]
        # `backward()` would copy the gradient of the input, which has the shape of a view.
        return lambda: torch.autograd.grad(layer(self.linear(self.x)).sum(), leaves)

    def floor(self) -> Callable[[], object]:
        """Return the products of a step alone, into memory that is there."""
        weight = self.linear.weight.detach()
        x = self.x.detach().flatten(0, 1)
        grad = torch.randn_like(x)
        out, grad_x, grad_weight = torch.empty_like(x), torch.empty_like(x), weight.clone()

        def products() -> Tensor:
            torch.mm(x, weight.t(), out=out)
            torch.mm(grad, weight, out=grad_x)
            return torch.mm(grad.t(), x, out=grad_weight)

        return products


def contenders(work: Workload, backends: list[str]) -> dict[str, Any]:
    """Return what to time, by name, the floor last; each passed its gate.

    Without compiled rivals: unrolled 500 times they compile for an hour.
    """
    steps: dict[str, Any] = {}
    for name in backends:
        layer = rivals.ours(name)
        work.prove(name, layer, rivals.snntorch_loop(), rounding=False)
        steps[name] = work.step(layer)
    for rival in rivals.here():
        layer = rival.make()
        work.prove(rival.name, layer, rival.wanted(), rival.rounding)
        steps[rival.name] = work.step(layer)
    return {**steps, "products alone": work.floor()}
