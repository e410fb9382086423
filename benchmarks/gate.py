"""The equivalence gate: nothing is timed before it was shown to compute the same."""

from torch import Tensor

from .rivals import Layer

BUDGET = 1e-5  # relative norm; float32 rounding in another order of summation


class GateError(AssertionError):
    """A candidate does not compute what its oracle computes."""


def gate(name: str, candidate: Layer, oracle: Layer, current: Tensor, grad: Tensor) -> float:
    """Compare spikes bit for bit and the current's gradient; return the gradient's distance.

    Raises:
        GateError: a spike differs, or the gradient by more than `BUDGET` in relative norm.
    """
    spikes, gradient = _run(candidate, current, grad)
    wanted, wanted_gradient = _run(oracle, current, grad)
    flipped = int((spikes != wanted).sum())
    if flipped or spikes.isnan().any():
        raise GateError(f"{name}: {flipped} of {wanted.numel()} spikes differ from the oracle's")
    return check_close(name, gradient, wanted_gradient)


def check_close(name: str, found: Tensor, wanted: Tensor) -> float:
    """Return the distance in relative norm. Raises `GateError` if it exceeds `BUDGET`."""
    distance = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    if not distance <= BUDGET:
        raise GateError(f"{name}: gradient differs by {distance:.1e}, at most {BUDGET:.0e} allowed")
    return distance


def _run(layer: Layer, current: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = current.detach().clone().requires_grad_()
    spikes = layer(leaf)
    spikes.backward(grad)
    assert leaf.grad is not None
    return spikes.detach(), leaf.grad
