"""One call of a layer: check its arguments, choose a backend, run the time loop."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike import ops
from neurospike.backend import dispatch
from neurospike.neurons.program import Program, is_negative_zero, with_numbers
from neurospike.neurons.rule import Rule

from .arguments import (
    FLOATS,
    check_current,
    check_lengths,
    check_state,
    fitted,
    flat_parameter,
    parameter_of,
)
from .constants import constant
from .wants import BY_SAMPLE, SPIKES, TRACES, mask_of
from .watching import is_traced, is_watched


class Outputs(NamedTuple):
    """Results of a call: final states; spikes and the states at every step if asked for."""

    spikes: Tensor | None
    states: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]


def outputs_of(found: tuple[Tensor, ...], states: int, wants: int) -> Outputs:
    """Return the flat results of `run` as `Outputs`."""
    first = 1 if wants & SPIKES else 0
    return Outputs(
        found[0] if first else None, found[first : first + states], found[first + states :]
    )


def run(
    rule: Rule,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[float | Tensor],
    num_steps: int | None,
    wants: int,
    backend: str,
    segment: int | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Check the arguments, choose the backend and call it, for the whole sequence or in segments.

    segment: if gradients are recorded, run that many steps at a time and detach the states in
    between. That is truncated backpropagation through time (Williams and Peng, Neural Computation
    2(4), 1990). Layers connect time steps through their states alone, so detaching these truncates
    the whole network. The final states of a sample that ends in an earlier segment keep the
    gradient that they have there. The other arguments, and the results, are those of `run_whole`.
    """
    if segment is None or not torch.is_grad_enabled():
        return run_whole(rule, current, states, parameters, num_steps, wants, backend, lengths)
    steps = check_current(current, num_steps)
    own = None if lengths is None else check_lengths(lengths, current, steps)
    total = steps if steps >= 0 else current.shape[0]
    if segment >= total:
        return run_whole(rule, current, states, parameters, num_steps, wants, backend, own)
    # Split once: the gradient of each slice would be a whole sequence of its own.
    pieces = () if steps >= 0 else current.split(segment)

    # The annotation is in quotes because torch.compile of torch 2.9 cannot evaluate it.
    def part(k: int, length: int, states: Sequence[Tensor], left: "Tensor | None") -> Outputs:
        given, count = (pieces[k], None) if pieces else (current, length)
        found = run_whole(rule, given, states, parameters, count, wants, backend, left)
        return outputs_of(found, len(rule.states), wants)

    found = in_segments(part, total, segment, states, own)
    spikes = () if found.spikes is None else (found.spikes,)
    return (*spikes, *found.states, *found.traces)


def in_segments(
    part: Callable[[int, int, Sequence[Tensor], Tensor | None], Outputs],
    total: int,
    segment: int,
    states: Sequence[Tensor],
    lengths: Tensor | None,
) -> Outputs:
    """Run `part(k, length, states, lengths)` for each `segment` of the steps; see `run`."""
    parts: list[Outputs] = []
    for k, start in enumerate(range(0, total, segment)):
        length = min(segment, total - start)
        left = None if lengths is None else (lengths - start).clamp(0, length)
        found = part(k, length, states, left)
        states = tuple(one.detach() for one in found.states)
        if left is not None and parts:
            found = found._replace(states=_ended(left > 0, found.states, parts[-1].states))
        parts.append(found)
    each_spikes = [found.spikes for found in parts if found.spikes is not None]
    spikes = torch.cat(each_spikes) if each_spikes else None
    traces = tuple(torch.cat(each) for each in zip(*(found.traces for found in parts)))
    return Outputs(spikes, parts[-1].states, traces)


def _ended(goes: Tensor, states: Sequence[Tensor], before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the new states of samples that go on, `[B]`, and the states before of the others."""
    goes = goes.view(-1, *(1,) * (states[0].dim() - 1))
    return tuple(torch.where(goes, one, other) for one, other in zip(states, before))


def run_whole(
    rule: Rule,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[float | Tensor],
    num_steps: int | None,
    wants: int,
    backend: str,
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Check the arguments, choose the backend and call it.

    Args:
        rule: the layer's.
        current: `[T, B, *F]`, or `[B, *F]` with `num_steps`.
        states: `[B, *F]` each; empty for zeros.
        parameters: within their bounds; each broadcasts against F.
        num_steps: number of steps of a constant current, else None.
        wants: `SPIKES`, `TRACES` or both; with `BY_SAMPLE` sequences are returned that lie in
            memory as `[B, T, *F]` does, if the backend can do so.
        backend: `"auto"` or a name.
        lengths: `[B]`, how many of the steps belong to each sample; see `check_lengths`.

    Returns:
        The spikes if wanted, each final state, and each state at every step if wanted.
    """
    steps = check_current(current, num_steps)
    own = None if lengths is None else check_lengths(lengths, current, steps)
    if states:
        shape, state = ops.step_shape(current, steps), ops.state_dtype(current.dtype)
        for name, one in zip(rule.states, states):
            check_state(name, one, current, shape, state)
    watched = is_watched((current, *states, *parameters))
    compiling = watched and torch.compiler.is_compiling()
    row = dispatch.choose(backend, current.device)
    if not row.by_sample:
        wants &= ~BY_SAMPLE
    if row.fused and not compiling:
        numbers: Any = tuple(parameters)
        tensors: Sequence[Tensor] = ()
        if not _FLOAT.issuperset(map(type, parameters)) or 0.0 in parameters:
            traced = watched and is_traced((current, *states, *parameters))
            numbers, tensors = _apart(rule, current, parameters, steps, traced)
        call, numbers = _call_of(row.name, rule, numbers, steps, wants, len(states))
        return ops.fused_scan(call, numbers, (current, *states, *tensors), own, watched)
    shape, state = ops.step_shape(current, steps), ops.state_dtype(current.dtype)
    values = [
        parameter_of(name, value, current, shape, state)
        for name, value in zip(rule.parameters, parameters)
    ]
    tensors = [
        one if isinstance(one, Tensor) else _filled(one, state, current.device) for one in values
    ]
    if row.fused:
        flat = [flat_parameter(one, shape) for one in tensors]
        call = ops.Call(row.name, rule.program, steps, wants, len(rule.states), len(states))
        given = (current, *states, *flat)
        return ops.fused_scan(call, rule.numbers, given, own, watched)
    whole = current.to(state)
    if steps >= 0:
        whole = whole.expand(steps, *shape)
    start = states or tuple(whole.new_zeros(shape) for _ in rule.states)
    # Imported without `dispatch.load`, since torch.compile would warn of its cache.
    scan = importlib.import_module(row.module, "neurospike").scan
    found = scan(whole, start, tensors, rule.program, rule.numbers, own)
    spikes, finals, traces = found
    shown = (spikes.to(current.dtype),) if wants & SPIKES else ()
    return (*shown, *finals, *(traces if wants & TRACES else ()))


_FLOAT = frozenset({float})


def _apart(
    rule: Rule, current: Tensor, parameters: Sequence[float | Tensor], steps: int, traced: bool
) -> tuple[tuple[float | None, ...], list[Tensor]]:
    """Split the parameters into numbers, with None in the place of tensors, and those tensors.

    A constant tensor of one number on the CPU is read: as a tensor it would cost the call more
    time.
    """
    shape, state = ops.step_shape(current, steps), ops.state_dtype(current.dtype)
    # In forward-mode AD a tensor may have a tangent, which reading its value would lose.
    reads = current.is_cpu and forward_ad._current_level < 0 and not traced
    numbers: list[float | None] = []
    tensors: list[Tensor] = []
    for name, value in zip(rule.parameters, parameters):
        number: float | None = None
        if not isinstance(value, Tensor):
            number = float(parameter_of(name, value, current, shape, state))
        elif reads and _is_constant(value):
            number = value.item()
        if number is not None and is_negative_zero(number):  # would be looked up as 0.0
            value, number = _filled(number, state, current.device), None
        numbers.append(number)
        if number is None:
            assert isinstance(value, Tensor)
            tensors.append(_flat(name, value, current, shape, state))
    return tuple(numbers), tensors


def _flat(
    name: str, value: Tensor, current: Tensor, shape: torch.Size, state: torch.dtype
) -> Tensor:
    """Return a parameter as backends take it: one number or `[P]`, in the state's format."""
    kind = (value.shape, value.dtype, value.device, current.device, shape, state)
    if kind in _fitting:
        return value
    found = flat_parameter(fitted(name, value, current, shape, state), shape)
    if found is value:
        if len(_fitting) >= FITTING:
            _fitting.clear()
        _fitting.add(kind)
    return found


# Shapes, formats and devices of parameters that need no conversion, with those of their current.
_fitting: set[tuple[Any, ...]] = set()
FITTING = 4096  # entries at most


def _is_constant(value: Any) -> TypeGuard[Tensor]:
    """Return whether a parameter is a CPU tensor of one number that needs no gradient."""
    if not isinstance(value, Tensor):
        return False
    learns = value.requires_grad and torch.is_grad_enabled()
    return value.is_cpu and value.numel() == 1 and value.dtype in FLOATS and not learns


@functools.lru_cache(maxsize=4096)
def _call_of(
    backend: str,
    rule: Rule,
    parameters: tuple[float | None, ...],
    steps: int,
    wants: int,
    given: int,
) -> tuple[ops.Call, tuple[float, ...]]:
    """Return a call of a fused backend, and its numbers with the parameters that are not None.

    As tensors these would cost time at every call, and have to be copied to a GPU.
    """
    program, numbers = rule.program, rule.numbers
    constants = mask_of([one is not None for one in parameters])
    if constants:
        own = Program.parse(program).numbers[0]
        plain = [one for one in parameters if one is not None]
        numbers = (*numbers[:own], *plain, *numbers[own:])
        program = with_numbers(program, constants)
    return ops.Call(backend, program, steps, wants, len(rule.states), given), numbers


def _filled(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of one number; zeros are not cached, as -0.0 would be found as 0.0."""
    if device.type == "cpu" and type(value) is float and value:
        return constant((value,), dtype, device)
    return torch.full((1,), value, dtype=dtype, device=device)
