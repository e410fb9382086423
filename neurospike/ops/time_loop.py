"""One call of a layer: its arguments checked, a backend chosen, the time loop run."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurospike import ops
from neurospike.backend import dispatch
from neurospike.neurons.program import Program, with_numbers
from neurospike.neurons.rule import Rule

from .arguments import (
    check_current,
    check_lengths,
    check_state,
    flat_parameter,
    is_watched,
    parameter_of,
)
from .constants import constant
from .wants import BY_SAMPLE, SPIKES, TRACES


class Outputs(NamedTuple):
    """What a call gives: each state at last; spikes, and each state at every step, if asked for."""

    spikes: Tensor | None
    states: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]


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
) -> Outputs:
    """Check the arguments, choose the backend and call it.

    Args:
        rule: of the layer.
        current: `[T, B, *F]`, or `[B, *F]` with `num_steps`.
        states: `[B, *F]` each, or none of them, which means zeros.
        parameters: each broadcasts against F; within their bounds.
        num_steps: of a constant current.
        wants: `SPIKES`, `TRACES` or both; with `BY_SAMPLE` what is returned lies in memory as
            `[B, T, *F]` does, where the backend can do so.
        backend: `"auto"` or a name.
        segment: with gradients, run so many steps at a time, and carry states on without theirs.
            That is truncated backpropagation through time (Williams and Peng, Neural Computation
            2(4), 1990). Time enters a network of such layers through their states alone, so cutting
            these is cutting the whole network.
        lengths: `[B]`, how many of the steps belong to each sample; see `check_lengths`. The states
            of one that ends in an earlier segment have the gradient that they have there.
    """
    steps = check_current(current, num_steps)
    own = None if lengths is None else check_lengths(lengths, current, steps)
    total = steps if steps >= 0 else current.shape[0]
    if segment is None or segment >= total or not torch.is_grad_enabled():
        return _run(rule, current, states, parameters, steps, wants, backend, own)
    # The gradient of a split is put together once, where each slice would add a whole sequence.
    pieces = () if steps >= 0 else current.split(segment)

    # In quotes: torch.compile of torch 2.9 cannot evaluate what stands there.
    def part(k: int, length: int, states: Sequence[Tensor], left: "Tensor | None") -> Outputs:
        given, count = (pieces[k], -1) if pieces else (current, length)
        return _run(rule, given, states, parameters, count, wants, backend, left)

    return in_segments(part, total, segment, states, own)


def in_segments(
    part: Callable[[int, int, Sequence[Tensor], Tensor | None], Outputs],
    total: int,
    segment: int,
    states: Sequence[Tensor],
    lengths: Tensor | None,
) -> Outputs:
    """Run `part(k, length, states, lengths)`, `segment` steps after another; see `run`."""
    parts: list[Outputs] = []
    for k, start in enumerate(range(0, total, segment)):
        left = None if lengths is None else (lengths - start).clamp(min=0)
        found = part(k, min(segment, total - start), states, left)
        states = tuple(one.detach() for one in found.states)
        if left is not None and parts:
            found = found._replace(states=_ended(left > 0, found.states, parts[-1].states))
        parts.append(found)
    each_spikes = [found.spikes for found in parts if found.spikes is not None]
    spikes = torch.cat(each_spikes) if each_spikes else None
    traces = tuple(torch.cat(each) for each in zip(*(found.traces for found in parts)))
    return Outputs(spikes, parts[-1].states, traces)


def _ended(goes: Tensor, states: Sequence[Tensor], before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the states of the samples `[B]` that went on, and those before of the others."""
    goes = goes.view(-1, *(1,) * (states[0].dim() - 1))
    return tuple(torch.where(goes, one, other) for one, other in zip(states, before))


def _run(
    rule: Rule,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[float | Tensor],
    steps: int,
    wants: int,
    backend: str,
    lengths: Tensor | None,
) -> Outputs:
    if states:
        shape, state = ops.step_shape(current, steps), ops.state_dtype(current.dtype)
        for name, one in zip(rule.states, states):
            check_state(name, one, current, shape, state)
    row = dispatch.choose(backend, current.device)
    if not row.by_sample:
        wants &= ~BY_SAMPLE
    watched = is_watched((current, *states))
    if row.fused and not watched and {*map(type, parameters)} <= _PLAIN:
        plain: Any = tuple(parameters)  # floats
        call = _call_of(row.name, rule, plain, steps, wants, len(states))
        return Outputs(*ops.fused_scan(call, (current, *states), lengths, watched))
    shape, state = ops.step_shape(current, steps), ops.state_dtype(current.dtype)
    values = [
        value if type(value) is float else parameter_of(name, value, current, shape, state)
        for name, value in zip(rule.parameters, parameters)
    ]
    program, numbers = rule.program, rule.numbers
    if row.fused and not torch.compiler.is_compiling():
        floats = tuple([None if isinstance(one, Tensor) else float(one) for one in values])
        program, numbers = _inlined(program, numbers, floats)
        values = [one for one in values if isinstance(one, Tensor)]
    tensors = [
        one if isinstance(one, Tensor) else _filled(one, state, current.device) for one in values
    ]
    if row.fused:
        flat = tuple([flat_parameter(one, shape) for one in tensors])
        call = ops.Call(row.name, program, numbers, steps, wants, len(rule.states), len(states))
        return Outputs(*ops.fused_scan(call, (current, *states, *flat), lengths))
    whole = current.to(state)
    if steps >= 0:
        whole = whole.expand(steps, *shape)
    start = states or tuple(whole.new_zeros(shape) for _ in rule.states)
    # Not by `dispatch.load`, of whose cache torch.compile would warn.
    scan = importlib.import_module(row.module, "neurospike").scan
    spikes, finals, traces = scan(whole, start, tensors, program, numbers, lengths)
    return Outputs(
        spikes.to(current.dtype) if wants & SPIKES else None,
        tuple(finals),
        traces if wants & TRACES else (),
    )


_PLAIN = {float}


@functools.lru_cache(maxsize=4096)
def _call_of(
    backend: str, rule: Rule, parameters: tuple[float, ...], steps: int, wants: int, given: int
) -> ops.Call:
    """Return a call of a fused backend whose parameters are plain numbers."""
    program, numbers = _inlined(rule.program, rule.numbers, parameters)
    return ops.Call(backend, program, numbers, steps, wants, len(rule.states), given)


def _filled(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of one number."""
    if device.type == "cpu" and type(value) is float:
        return constant((value,), dtype, device)
    return torch.full((1,), value, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def _inlined(
    program: str, numbers: tuple[float, ...], values: tuple[float | None, ...]
) -> tuple[str, tuple[float, ...]]:
    """Return program and numbers with those parameters among the numbers that are not None.

    As tensors they would cost every call time, and have to be copied to a GPU.
    """
    constants = sum(1 << k for k, one in enumerate(values) if one is not None)
    if not constants:
        return program, numbers
    own = Program.parse(program).numbers[0]
    plain = tuple(one for one in values if one is not None)
    return with_numbers(program, constants), (*numbers[:own], *plain, *numbers[own:])
