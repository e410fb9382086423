"""Bounds of decays and thresholds: constants are checked, learned values are clamped."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from neurospike.neurons import in_one_part

from .watching import is_traced, is_watched

BETA_GRADIENTS = ("inward", "clamp")


class _Inward(torch.autograd.Function):
    """Clamp to 0 to `high`; stop the gradient only where a descent step would lead further out.

    At and beyond a bound torch's clamp lets no gradient through, so a decay that an optimizer took
    there would stay there for ever.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, high: float) -> Tensor:
        return value.clamp(0.0, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        value, ctx.high = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        most = torch.where(value <= 0.0, 0.0, math.inf).to(grad)
        least = torch.where(value >= ctx.high, 0.0, -math.inf).to(grad)
        return grad.clamp(least, most), None


def clamped(value: Tensor, gradient: str, high: float = 1.0) -> Tensor:
    """Clamp a value to 0 to `high`; gradient: `"inward"`, or `"clamp"` for that of torch's."""
    if lies_between(value, 0.0, high):
        return value
    if gradient == "clamp" or not (value.requires_grad and torch.is_grad_enabled()):
        return value.clamp(0.0, high)
    found: Tensor = in_one_part.apply(_Inward, value, high)
    return found


def lies_between(value: Tensor, low: float, high: float) -> bool:
    """Return whether a value was read and lies strictly between its bounds, so needs no clamp.

    Only values on the CPU are read, where that takes less time than a clamp and its gradient.
    """
    if not value.is_cpu or (is_watched((value,)) and is_traced((value,))):
        return False
    if value.numel() == 1:
        return bool(low < value.item() < high)
    if value.numel() == 0:
        return False
    least, most = value.detach().aminmax()
    return bool(low < least.item() and most.item() < high)


def check_beta_gradient(name: str, argument: str = "beta_gradient") -> None:
    """Raise ValueError for an unknown choice."""
    if name not in BETA_GRADIENTS:
        known = ", ".join(BETA_GRADIENTS)
        raise ValueError(f"unknown {argument} {name!r}; choose one of {known}")


def check_beta(beta: Any) -> None:
    """Raise ValueError for a constant decay outside 0 to 1; learned values are not checked."""
    if type(beta) is float and 0.0 <= beta <= 1.0:
        return
    for value in _extremes(beta):
        if 0.0 <= value <= 1.0:
            continue
        text = f"beta must lie between 0 and 1, got {value:g}; it is the share of the membrane "
        text += "that a step leaves"
        if 1.0 < value < math.inf:
            text += (
                f". A time constant of tau={value:g} steps is beta = 1 - 1/tau = "
                f"{1 - 1 / value:.4g}, or exp(-1/tau) = {math.exp(-1 / value):.4g}"
            )
        raise ValueError(text)


def check_threshold(threshold: Any, reset: str, is_own_neuron: bool) -> None:
    """Raise ValueError for a constant threshold that is NaN, not above 0, or not subtractable.

    A neuron of the user's own may have any threshold but NaN.
    """
    if type(threshold) is float and 0.0 < threshold < math.inf:
        return
    for value in _extremes(threshold):
        if math.isnan(value) or (value <= 0.0 and not is_own_neuron):
            raise ValueError(f"threshold must be above 0, got {value:g}")
    if not is_own_neuron:
        check_subtraction(threshold, reset)


def check_subtraction(threshold: Any, reset: str) -> None:
    """Raise ValueError for a constant threshold of infinity that a reset would subtract."""
    if reset == "subtract" and math.inf in _extremes(threshold):
        raise ValueError(
            "threshold=inf with reset='subtract' would subtract 0 * inf, which is not a number; "
            "for neurons that never fire use ns.LI(beta), or reset='none'"
        )


def _extremes(value: Any) -> tuple[float, ...]:
    """Return the least and the largest constant; empty for learned and for unreadable values."""
    if isinstance(value, Real):
        return (float(value),)
    readable = (
        type(value) is Tensor
        and not value.requires_grad
        and value.device.type == "cpu"  # elsewhere reading would wait for the device
        and value.is_floating_point()
        and value.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
    return tuple(end.item() for end in torch.aminmax(value)) if readable else ()
