"""A recorded neuron stepped over time in torch: the reference that fused backends have to equal.

Gradients are torch's own: the spike is an `autograd.Function` with the surrogate as its derivative,
and torch differentiates everything else. So the derived gradient is checked against an independent
one.
"""

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from . import in_one_part
from .derive import derived
from .program import Program, half, written


def _heaviside(u: Tensor) -> Tensor:
    return (u > 0.0).to(u.dtype)


def _rounded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compute in float64 and round, as every backend does, so that they agree to the last bit."""
    return lambda u: function(u.double()).to(u.dtype)


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    # Made inside the graph, since a decomposed program must not hold constant tensors.
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=like.dtype, device=like.device)


_NAMES: dict[str, Any] = {
    "heaviside": _heaviside,
    "detach": torch.detach,
    "where": torch.where,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "divide": torch.div,
    "abs": torch.abs,
    **{
        name: _rounded(getattr(torch, name))
        # torch's float32 `sqrt` is MKL's, whose last bit is sometimes wrong.
        for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos")
    },
    **{
        f"quick_{name}": getattr(torch, name)
        for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos")
    },
    "number": _number,
}


@functools.lru_cache(maxsize=256)
def _function(name: str, text: str, file: str) -> FunctionType:
    names = dict(_NAMES)
    exec(compile(text, file, "exec"), names)
    made: FunctionType = names[name]
    return made


# The functions made so far, by their texts, which are few since these hold no values of numbers.
# torch.compile reads them, and does not trace the functions that fill them: see the end of
# `dispatch`.
_surrogates: dict[str, Callable[..., Tensor]] = {}
_steps: dict[str, FunctionType] = {}


@functools.lru_cache(maxsize=256)
def surrogate_of(text: str, name: str = "surrogate") -> Callable[..., Tensor]:
    """Return a recorded surrogate in torch, `slope(u, *numbers)`."""
    handed, operations, slope = half(text)
    arguments = ("x", *(f"h{k}" for k in range(int(handed))))
    named = tuple((n, *("x" if o == "u" else o for o in os)) for n, *os in operations)
    ending = ("x" if slope == "u" else slope,)
    made = _function("slope", written("slope", arguments, named, ending), "<surrogate>")

    def surrogate(u: Tensor, *numbers: float) -> Tensor:
        return made(u, *numbers)[0].expand_as(u)

    surrogate.__name__ = surrogate.__qualname__ = name
    surrogate.text = text  # type: ignore[attr-defined]
    return surrogate


def _know_surrogate(text: str) -> None:
    if text not in _surrogates:
        _surrogates[text] = surrogate_of(text)


def _know_step(neuron: str) -> int:
    """Make the step of a program if it is new; return how many of its numbers are the neuron's."""
    program = Program.parse(neuron)
    if neuron not in _steps:
        arguments = ("fire", *program.inputs)
        text = written("step", arguments, program.operations, program.results)
        _steps[neuron] = _function("step", text, "<neuron>")
    return program.numbers[0]


_know_surrogate._dynamo_marked_constant = True  # type: ignore[attr-defined]
_know_step._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Fire(torch.autograd.Function):
    """H(u) forward, the surrogate backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, slope: Callable[..., Tensor], numbers: tuple[Tensor, ...]) -> Tensor:
        return _heaviside(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.slope, ctx.numbers = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.slope(u, *ctx.numbers), None, None


def stepped_once(
    step: Callable[..., Any],
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    goes: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return spikes and states after one step.

    `current`, spikes and states are `[B, *F]`. `goes`, bool `[B]`, says which samples have this
    step, None that all do; the others do not spike and keep their states.
    """
    if goes is None:
        spike, *after = step(current, *states, *parameters)
        return spike.expand_as(current), tuple(state.expand_as(current) for state in after)
    goes = goes.view(-1, *(1,) * (current.dim() - 1))
    # Currents after a sample's end may be NaN, and the gradient would then be 0 * NaN.
    spike, after = stepped_once(step, torch.where(goes, current, 0.0), states, parameters)
    held = tuple(torch.where(goes, *both) for both in zip(after, states))
    return torch.where(goes, spike, 0.0), held


def over_time(
    step: Callable[..., Any],
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Step a neuron over time; see `neurospike.backend.reference.scan`.

    The current is split by `unbind`, since by indexing, `x[t]`, torch's backward pass would be
    quadratic in T.
    """
    spikes, traces = [], []
    for t, current_t in enumerate(current.unbind(0)):
        goes = None if lengths is None else t < lengths
        spike, states = stepped_once(step, current_t, states, parameters, goes)
        shown = states
        if goes is not None:
            held = goes.view(-1, *(1,) * (current_t.dim() - 1))
            shown = tuple(torch.where(held, state, state.detach()) for state in states)
        spikes.append(spike)
        traces.append(shown)
    if not spikes:
        nothing = current.sum() * 0.0 + sum((p.sum() * 0.0 for p in parameters), 0.0)
        empty = current + nothing  # differentiable as any other output
        return empty, tuple(states), (empty,) * len(states)
    return torch.stack(spikes), tuple(states), tuple(torch.stack(each) for each in zip(*traces))


def step_of(neuron: str, numbers: Sequence[float], like: Tensor) -> Callable[..., Any]:
    """Return one step in torch, `(current, *states, *parameters)` to `(spike, *new_states)`."""
    own = _know_step(neuron)
    made = _steps[neuron]
    values = tuple(torch.tensor(one, dtype=like.dtype, device=like.device) for one in numbers)
    fire = fire_of(neuron, values[own:])
    return lambda *given: made(fire, *given, *values)


def forward_of(neuron: str) -> Callable[..., Any]:
    """Return one step without a gradient, `(current, *states, *parameters, *numbers)`."""
    _know_step(neuron)
    made = _steps[neuron]
    return lambda *given: made(_heaviside, *given)


def adjoint_of(
    neuron: str, numbers: Sequence[float], like: Tensor, given: tuple[bool, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the derived gradient of one step in torch.

    It takes `(current, *states, *parameters, *gradients)`, with the gradients of those of the spike
    and the new states that are `given`, and returns the gradients of current, states and
    parameters.
    """
    program = Program.parse(neuron)
    values = tuple(torch.tensor(one, dtype=like.dtype, device=like.device) for one in numbers)
    many = 1 + program.states + program.parameters
    names = [*program.inputs, *(f"g{k}" for k, is_given in enumerate(given) if is_given)]
    text = written("adjoint", names, *derived(program, given, (True,) * many))
    made = _function("adjoint", text, "<adjoint>")
    return lambda *inputs: made(*inputs[:many], *values, *inputs[many:])


def fire_of(neuron: str, numbers: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """Return H(u) with a neuron's surrogate as its derivative; `numbers` are the surrogate's."""
    text = neuron.split("|", 3)[3]
    _know_surrogate(text)
    slope = _surrogates[text]
    return lambda u: in_one_part.apply(_Fire, u, slope, numbers)
