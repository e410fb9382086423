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

from . import in_one_part
from .derive import derived
from .program import Program, half, written


def _heaviside(u: Tensor) -> Tensor:
    return (u > 0.0).to(u.dtype)


def _rounded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compute in float64 and round, as every backend does: else they would differ in last bits."""
    return lambda u: function(u.double()).to(u.dtype)


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    # Made in the graph: a program that is taken apart holds no constants of its own.
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
        # torch's float32 `sqrt` is MKL's, which is off by a last bit now and then.
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


# Made so far, by their texts; numbers are no part of these, so there are few. torch.compile reads
# them, and does not look into the functions that fill them: see the end of `dispatch`.
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
    """Return how many of a program's numbers are the neuron's."""
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
    """Return spikes and states after one step; of samples that do not go on, 0 and as they were.

    `current`, spikes and states are `[B, *F]`; `goes`, true or false, is `[B]`, None for all.
    """
    if goes is None:
        spike, *after = step(current, *states, *parameters)
        return spike.expand_as(current), tuple(state.expand_as(current) for state in after)
    goes = goes.view(-1, *(1,) * (current.dim() - 1))
    # What lies beyond the end may be anything: with NaN, 0 * NaN would be the gradient.
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

    The current is taken apart by `unbind`: indexing `x[t]` would make torch's backward quadratic in
    T.
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
    """Return one step without a gradient; it takes the numbers, too, behind the parameters."""
    _know_step(neuron)
    made = _steps[neuron]
    return lambda *given: made(_heaviside, *given)


def adjoint_of(
    neuron: str, numbers: Sequence[float], like: Tensor, given: tuple[bool, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the derived gradient of one step in torch.

    It takes `(current, *states, *parameters, *gradients)`, of spike and new states those that are
    `given`, and returns the gradients of current, states and parameters.
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
