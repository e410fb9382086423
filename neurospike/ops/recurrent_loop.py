"""One call of a recurrent layer: check its arguments, choose a backend, run the time loop."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.backend import dispatch
from neurospike.neurons import stepped
from neurospike.neurons.rule import Rule

from .arguments import check_current, check_lengths, check_state, fitted, flat_parameter
from .formats import in_full, state_dtype
from .recurrent import Call, fused_recurrent
from .time_loop import Outputs, in_segments
from .wants import TRACES


def run_recurrent(
    rule: Rule,
    current: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    num_steps: int | None,
    lengths: Tensor | Sequence[int] | None,
    wants: int,
    backend: str,
    segment: int | None = None,
) -> Outputs:
    """Check the arguments, choose the backend and call it.

    Args:
        rule: the rule of the neurons.
        current: `[T, B, N]`, or `[B, N]` with `num_steps`.
        weight: `[N, N]`; `weight[i, j]` leads from the spikes of neuron j to the current of i.
        states: the last spikes and the neuron's states, `[B, N]` each; empty for zeros.
        parameters: within their bounds; each one number or `[N]`.
        num_steps: number of steps of a constant current, else None.
        lengths: `[B]`, how many of the steps belong to each sample, or None; see `check_lengths`.
        wants: `TRACES`, or 0.
        backend: `"auto"` or a name.
        segment: see `time_loop.run`.
    """
    steps = check_current(current, num_steps)
    size = weight.shape[0]
    if weight.shape != (size, size):
        raise ValueError(
            "weight must be [N, N], a row for each neuron that spikes reach, got shape "
            f"{tuple(weight.shape)}"
        )
    if current.dim() != (2 if steps >= 0 else 3) or current.shape[-1] != size:
        wanted = "[B, N]" if steps >= 0 else "[T, B, N]"
        raise ValueError(
            f"the current of a recurrent layer of N={size} neurons must be {wanted}, got shape "
            f"{tuple(current.shape)}"
        )
    own = None if lengths is None else check_lengths(lengths, current, steps)
    if steps >= 0:
        current = current.expand(steps, *current.shape)
    state, shape = state_dtype(current.dtype), current.shape[1:]
    for name, one in zip(("spike", *rule.states), states):
        check_state(name, one, current, shape, state)
    if weight.device != current.device:
        raise ValueError(
            f"weight is on {weight.device}, current on {current.device}; move the layer with .to()"
        )
    values = [
        flat_parameter(fitted(name, value, current, shape, state), shape)
        for name, value in zip(rule.parameters, parameters)
    ]
    given = (rule, weight.to(state), values, wants, dispatch.choose(backend, current.device))
    total = current.shape[0]

    if segment is None or segment >= total or not torch.is_grad_enabled():
        return _run(current, states, own, *given)
    pieces = current.split(segment)

    # The annotation is in quotes because torch.compile of torch 2.9 cannot evaluate it.
    def part(k: int, length: int, states: Sequence[Tensor], left: "Tensor | None") -> Outputs:
        return _run(pieces[k], states, left, *given)

    return in_segments(part, total, segment, states, own)


def _run(
    current: Tensor,
    states: Sequence[Tensor],
    lengths: Tensor | None,
    rule: Rule,
    weight: Tensor,
    values: Sequence[Tensor],
    wants: int,
    row: dispatch.Backend,
) -> Outputs:
    many = 1 + len(rule.states)
    if row.fused:
        call = Call(row.name, rule.program, rule.numbers, wants, many, len(states))
        return Outputs(*fused_recurrent(call, lengths, (current, weight, *states, *values)))
    whole = current.to(weight.dtype)
    start = states or tuple(whole.new_zeros(whole.shape[1:]) for _ in range(many))
    neuron = stepped.step_of(rule.program, rule.numbers, whole)

    def step(x: Tensor, last: Tensor, *others: Tensor) -> Any:
        spike, *after = neuron(x + last @ weight.T, *others)
        return spike, spike, *after

    # Sums are in the state's format, as in every backend.
    with in_full(current.device):
        spikes, finals, traces = stepped.over_time(step, whole, start, values, lengths)
    return Outputs(
        spikes.to(current.dtype), tuple(finals), tuple(traces[1:]) if wants & TRACES else ()
    )
