"""One call of a layer: its arguments checked, a backend chosen, the time loop run."""

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, ops, rule
from .arguments import check_current, check_mem, flat_parameter, parameters_of


class Outputs(NamedTuple):
    """What a call gives; what was not asked for is empty."""

    spikes: Tensor
    mem: Tensor
    trace: Tensor


def run_in_segments(
    segment: int | None, current: Tensor, mem: Tensor | None, num_steps: int | None, *rest: Any
) -> Outputs:
    """Run `segment` steps at a time, carrying the membrane on without its gradient.

    That is truncated backpropagation through time (Williams and Peng, Neural Computation 2(4),
    1990). Time enters a network of such layers through their membranes alone, so cutting these is
    cutting the whole network. None, or without gradients: all steps at once, the same values.
    """
    if segment is None or not torch.is_grad_enabled():
        return run(current, mem, num_steps, *rest)
    steps = check_current(current, num_steps)
    total = steps if steps >= 0 else current.shape[0]
    if segment >= total:
        return run(current, mem, num_steps, *rest)
    parts = []
    for start in range(0, total, segment):
        length = min(segment, total - start)
        given = current if steps >= 0 else current[start : start + length]
        parts.append(run(given, mem, length if steps >= 0 else None, *rest))
        mem = parts[-1].mem.detach()
    spikes, mems, traces = zip(*parts, strict=True)
    return Outputs(torch.cat(spikes), mems[-1], torch.cat(traces))


def run(
    current: Tensor,
    mem: Tensor | None,
    num_steps: int | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_gradient: str,
    key: str,
    parameters: tuple[float, ...],
    want_spikes: bool,
    want_trace: bool,
    backend: str,
) -> Outputs:
    """Check the arguments, choose the backend and call it."""
    steps = check_current(current, num_steps)
    shape = ops.step_shape(current, steps)
    state = ops.state_dtype(current.dtype)
    if mem is not None:
        check_mem(mem, current, shape, state)
    beta, threshold = parameters_of(beta, threshold, beta_gradient, current, shape, state)
    row = dispatch.choose(backend, current.device)
    if row.fused:
        flat = (flat_parameter(beta, shape), flat_parameter(threshold, shape))
        return Outputs(
            *ops.fused_lif(
                row.name, current, mem, *flat, key, parameters, steps, want_spikes, want_trace
            )
        )
    whole = current.to(state)
    if steps >= 0:
        whole = whole.expand(steps, *shape)
    start = whole.new_zeros(shape) if mem is None else mem
    # Not by `dispatch.load`, of whose cache torch.compile would warn.
    lif_of = importlib.import_module(row.module, __package__).lif
    spikes, mem, trace = lif_of(whole, start, beta, threshold, rule.from_key(key), parameters)
    return Outputs(spikes.to(current.dtype), mem, trace)
