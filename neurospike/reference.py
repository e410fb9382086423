"""The oracle backend: snnTorch's `Leaky`, stepped over time in Python.

It defines what the other backends must give. Gradients are torch's own autograd. The immediate
reset is `neurospike.formulas` stepped in torch: where the membrane stays above the threshold after
the reset, snnTorch 1.0.0 would add the threshold back on the next step (current 2.5, 0, 0, beta
0.9: membrane 1.5, 1.35, 1.215, one spike) where the contract fires again (1.5, 0.35, 0.315). The
input is taken apart by `unbind`: indexing `x[t]` would make torch's backward quadratic in T.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import formulas
from .binding import bind
from .errors import MissingDependencyError
from .rule import Rule

Fire = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Spike(torch.autograd.Function):
    """H(u) forward, the surrogate backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, rule: Rule, parameters: tuple[float, ...]) -> Tensor:
        return formulas.heaviside(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.rule, ctx.parameters = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.rule.derivative(u, ctx.parameters), None, None


def lif(
    current: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    rule: Rule,
    parameters: tuple[float, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(spikes, mem, trace)`, all differentiable.

    Shapes: `current` `[T, B, *F]` in the state's number format, `mem` `[B, *F]`; `beta` and
    `threshold` broadcast against F. Spikes and trace are `[T, B, *F]`.
    """

    def fire(u: Tensor) -> Tensor:
        return _Spike.apply(u, rule, parameters)

    step = _snntorch_step if rule.delayed else _formula_step
    one_step = step(beta, threshold, rule, fire)
    spikes, trace = [], []
    for current_t in current.unbind(0):
        spike, mem = one_step(current_t, mem)
        spikes.append(spike)
        trace.append(mem)
    if not spikes:
        nothing = current * mem * beta * threshold  # empty, and differentiable as any other output
        return nothing, mem, nothing
    return torch.stack(spikes), mem, torch.stack(trace)


def _snntorch_step(beta: Tensor, threshold: Tensor, rule: Rule, fire: Fire) -> Step:
    try:
        from snntorch import Leaky
    except ImportError as error:
        raise MissingDependencyError(
            "the reference backend needs snntorch: pip install snntorch"
        ) from error
    leaky = Leaky(
        beta=beta,
        threshold=threshold,
        spike_grad=fire,
        reset_mechanism=rule.reset,
    )
    # snnTorch keeps every layer ever made in class-wide lists; this one lives for one call. A call
    # of init() gives a class a list of its own, and another thread may empty them meanwhile.
    for kind in Leaky.__mro__:
        with contextlib.suppress(ValueError):
            vars(kind).get("instances", []).remove(leaky)
    del leaky.beta
    leaky.beta = _Clamped(beta)
    return leaky


class _Clamped:
    """A decay between 0 and 1, for code that clamps it again.

    Where it lies at a bound, torch's clamp would stop the gradient that the first one let through.
    """

    def __init__(self, beta: Tensor) -> None:
        self.beta = beta

    def clamp(self, low: float, high: float) -> Tensor:
        """Return the decay as it is."""
        return self.beta


def _formula_step(beta: Tensor, threshold: Tensor, rule: Rule, fire: Fire) -> Step:
    own = rule.neuron or formulas
    names = {name: getattr(formulas, name) for name in formulas.FREE_NAMES} | rule.names
    charge, settle = bind(own.charge, names), bind(own.settle, names)

    def one_step(current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        v = charge(mem, current, beta, threshold)
        spike = fire(v - threshold)
        return spike, settle(v, spike.detach() if rule.detached else spike, threshold)

    return one_step
