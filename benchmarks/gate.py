"""The equivalence gate: nothing is timed before it was shown to compute the same."""

from torch import Tensor

from .rivals import Layer

BUDGET = 1e-5  # relative norm; float32 rounding in another order of summation
DIFFERENT = 1e-3  # share of neurons


class GateError(AssertionError):
    """A candidate does not compute what its oracle computes."""


def gate(
    name: str,
    candidate: Layer,
    oracle: Layer,
    current: Tensor,
    grad: Tensor,
    budget: float = BUDGET,
    rounding: bool = False,
) -> float:
    """Compare spikes bit for bit and the current's gradient; return the gradient's distance.

    With `rounding` the candidate rounds in another order than the oracle: a neuron that comes
    within rounding of its threshold may fire otherwise, and is then left out of the comparison of
    gradients. More than `DIFFERENT` of all neurons is another layer.

    Raises:
        GateError: a spike differs, or the gradient by more than `budget` in relative norm.
    """
    spikes, gradient = _run(candidate, current, grad)
    wanted, wanted_gradient = _run(oracle, current, grad)
    flipped = int((spikes != wanted).sum())
    same = (spikes == wanted).all(0)
    most = DIFFERENT if rounding else 0.0
    if spikes.isnan().any() or 1.0 - same.double().mean() > most:
        raise GateError(f"{name}: {flipped} of {wanted.numel()} spikes differ from the oracle's")
    return check_close(name, gradient * same, wanted_gradient * same, budget)


def check_close(name: str, found: Tensor, wanted: Tensor, budget: float = BUDGET) -> float:
    """Return the distance in relative norm. Raises `GateError` if it exceeds `budget`."""
    found, wanted = found.detach().double(), wanted.detach().double()
    distance = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    if not distance <= budget:
        raise GateError(f"{name}: gradient differs by {distance:.1e}, at most {budget:.0e} allowed")
    return distance


def _run(layer: Layer, current: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = current.detach().clone().requires_grad_()
    spikes = layer(leaf)
    spikes.backward(grad)
    assert leaf.grad is not None
    return spikes.detach(), leaf.grad
