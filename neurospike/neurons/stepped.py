"""A recorded neuron stepped over time in torch: what the fused backends have to equal.

Gradients are torch's own: the spike is an `autograd.Function` with the surrogate as its derivative,
everything else is differentiated by torch, so the derived gradient is checked by another one.
"""

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .program import Program, written


def _heaviside(u: Tensor) -> Tensor:
    return (u > 0.0).to(u.dtype)


def _rounded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compute in float64 and round, as every backend does: else they would differ in last bits."""
    return lambda u: function(u.double()).to(u.dtype)


_NAMES: dict[str, Any] = {
    "heaviside": _heaviside,
    "detach": torch.detach,
    "where": torch.where,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "divide": torch.div,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    **{
        name: _rounded(getattr(torch, name))
        for name in ("exp", "log", "tanh", "sigmoid", "sin", "cos")
    },
    "number": lambda value, like: torch.as_tensor(value, dtype=like.dtype, device=like.device),
}


@functools.lru_cache(maxsize=256)
def _function(name: str, text: str, file: str) -> FunctionType:
    names = dict(_NAMES)
    exec(compile(text, file, "exec"), names)
    made: FunctionType = names[name]
    return made


def slope_of(program: Program) -> Callable[..., Tensor]:
    """Return the surrogate in torch, `slope(u, *numbers)`."""
    count = sum(program.numbers)
    operations = tuple((n, *("x" if o == "u" else o for o in os)) for n, *os in program.surrogate)
    slope = "x" if program.slope == "u" else program.slope
    arguments = ("x", *(f"n{k}" for k in range(count)))
    made = _function("slope", written("slope", arguments, operations, (slope,)), "<surrogate>")
    return lambda u, *numbers: made(u, *numbers)[0]


class _Fire(torch.autograd.Function):
    """H(u) forward, the surrogate backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, program: Program, numbers: tuple[Tensor, ...]) -> Tensor:
        return _heaviside(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.program, ctx.numbers = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad * slope_of(ctx.program)(u, *ctx.numbers), None, None


def scan(
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    program: Program,
    numbers: Sequence[float],
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return `(spikes, states, traces)`, all differentiable.

    Shapes: `current` `[T, B, *F]`, float32 or float64; each state `[B, *F]` in the same format;
    parameters broadcast against F. Spikes and each trace are `[T, B, *F]`.
    """
    dtype, device = current.dtype, current.device
    values = tuple(torch.tensor(value, dtype=dtype, device=device) for value in numbers)
    text = written("step", program.inputs, program.operations, program.results)
    recorded = _function("step", text, "<neuron>")
    step = _with_fire(recorded, lambda u: _Fire.apply(u, program, values))
    spikes, traces = [], []
    for current_t in current.unbind(0):
        spike, *states = step(current_t, *states, *parameters, *values)
        spikes.append(spike.expand_as(current_t))
        traces.append(tuple(state.expand_as(current_t) for state in states))
        states = traces[-1]
    if not spikes:
        nothing = current.sum() * 0.0 + sum((p.sum() * 0.0 for p in parameters), 0.0)
        empty = current + nothing
        return empty, tuple(states), (empty,) * len(states)
    return torch.stack(spikes), tuple(states), tuple(torch.stack(each) for each in zip(*traces))


def _with_fire(step: FunctionType, fire: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Return the step with its `fire`, which holds this call's numbers."""
    names = {**_NAMES, "fire": fire}
    return FunctionType(step.__code__, names)
