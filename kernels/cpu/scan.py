"""The fused CPU backend of any recorded neuron: the whole time loop in one compiled kernel.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous, or by sample `[B, T, F]`. A block of
neurons keeps its states in a cache while the loop runs over T; blocks are divided among threads.
Vectorised loops, generated from the neuron's own operations (`_rows`), take a block through a few
steps at a time. The loops over time (`_scan_loop`) call them by their addresses, and are the same
for every neuron.

Forward, per block:                            Backward, per block:
    states  S rows   <- start                      history[0] <- start
    for t: step, write spikes[t] (and traces)      for t: history[t + 1] <- step(history[t])
    final <- states                                for t in reverse: gradient at history[t]

Saved for backward: nothing but the inputs. The history, the states before each step, is computed
again into a scratch of at most `HISTORY` bytes. That moves 8 bytes per neuron-step forward
(read current, write spikes) and 12 backward (read current and the spikes' gradient, write the
current's), for any number of states.

A sequence that is the same at every step is one row: N numbers in place of T * N. By sample, and
with lengths, a block lies within one sample; with lengths its loop ends with the sample, and later
steps are only filled, never read. Number formats: state float32, or float64 if the current is;
sequences of 16 bits are read and written as such, a vector at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import parallel
from neurospike.backend.tensors import are_same, sum_over_batch
from neurospike.kernels.cpu import _halves, _rows
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._job import SIZES, Plan
from neurospike.kernels.cpu._scan_loop import BYTE, PAD, WIDTH, _backward, _forward
from neurospike.kernels.cpu._sequences import (
    HELD,
    NOT_PAST,
    STREAMED,
    by_samples,
    past_of,
    rows,
    strides_of,
)
from neurospike.neurons.program import Program
from neurospike.ops.wants import mask_of

BLOCK = 1344  # neurons of a block, at most: its rows are long enough for memory's full speed
UNIT = 64  # a block is a multiple of so many neurons
HISTORY = 3 << 19  # bytes of a block's history, at most
GRAIN = 1 << 16  # neuron-steps per thread, at least, to be worth waking it: some 30 us of work


@functools.cache
def _compiled(backward: bool, double: bool) -> Any:
    """Return the forward or backward kernel, for any neuron, compiled for a number format."""
    literal = np.float64 if double else np.float32
    return compiled(_backward if backward else _forward, {"BYTE": BYTE}, literal)


def alike_of(parameters: Sequence[Tensor]) -> int:
    """Return a bit mask of the parameters that have one value for all neurons."""
    return mask_of([one.numel() == 1 for one in parameters])


def _given(tensors: Sequence[Tensor | None], count: int) -> Sequence[Tensor | None]:
    """Return the tensors, or `count` times None where there are none."""
    return tensors or [None] * count


@functools.lru_cache(maxsize=4096)
def as_tensor(values: tuple[float, ...], state: torch.dtype) -> Tensor:
    """Return numbers as a tensor, the same tensor each time."""
    return torch.tensor(values, dtype=state, device="cpu")


def _divided(
    steps: int, size: int, samples: int, state: torch.dtype, rows_each: int
) -> tuple[tuple[int, ...], int]:
    """Return the first five sizes of a job, and how many threads share it.

    samples: their number if each block must lie within one (by sample, or with lengths), else 0.
    rows_each: rows of scratch of a block, if they should fit into a cache; else 0.
    """
    most = BLOCK if rows_each == 0 else min(BLOCK, HISTORY // (rows_each * state.itemsize))
    most = max(UNIT, most)
    batch = samples or 1
    features = size // batch
    threads = parallel.threads(size * steps // GRAIN, -(-size // UNIT))
    parts = max(1, -(-features // most))
    if not samples:  # as many blocks for each thread
        parts = -(-parts // threads) * threads
    block = UNIT * max(1, -(-features // (parts * UNIT)))
    parts = batch * -(-features // block)
    return (steps, block, size, parts, features), min(threads, max(1, parts))


# Plans by all that they depend on: the program, how many neurons and steps there are, which arrays
# are present, and the shapes of those whose size does not follow from that.
_plans: dict[tuple[Any, ...], Plan] = {}
PLANS = 4096  # how many are kept


def _plan(
    key: tuple[Any, ...],
    arrays: Sequence[Tensor | None],
    neuron: str,
    state: torch.dtype,
    formats: tuple[torch.dtype, ...],
    parameters: Sequence[Tensor],
    backward: tuple[int, bool, bool] | None,
    sizes: tuple[int, int, int],
    past: tuple[bool, int],
    strides: tuple[int, ...],
) -> Plan:
    """Make the plan of calls like this one.

    formats: of the current, the spikes or their gradient, and the current's gradient.
    backward: None for the forward pass; for the backward pass, a bit mask of the parameters whose
        gradients are wanted, whether the current is constant, and whether the spikes have a
        gradient.
    sizes: steps, neurons, and `samples` as of `_divided`.
    past: what `past_of` returned.
    strides: the eight of a job from `X_STEP` on.
    """
    states, many = Program.parse(neuron).states, len(parameters)
    alike, double = alike_of(parameters), state == torch.float64
    forms = tuple([_halves.FORMS.get(one, "") for one in formats])
    if backward is None:
        has_spikes = arrays[1 + states + many] is not None
        rows_each, scratch_rows = 0, states + many + 1
        functions = [_rows.advance(neuron, double, alike, has_spikes, past[1], forms[:2])]
    else:
        wanted, constant, has_spikes = backward
        rows_each = scratch_rows = states + 2 * many + 1 + sizes[0] * states
        functions = [
            _rows.retrace(neuron, double, alike, forms[0]),
            _rows.retreat(neuron, double, alike, has_spikes, wanted, constant, past[1], forms),
        ]
    blocks, threads = _divided(*sizes, state, rows_each)
    plan = Plan(
        _compiled(backward is not None, double),
        [0 if one is None else one.numel() for one in arrays],
        (*blocks, states, many, past[0], *[one.itemsize for one in formats], *strides, *functions),
        threads,
        scratch_rows * (blocks[WIDTH - SIZES] + PAD),
        state,
    )
    if len(_plans) >= PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


def forward(
    *,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    steps: int,
    constant: bool,
    spikes: Tensor | None,
    traces: Sequence[Tensor],
    finals: Sequence[Tensor],
    lengths: Tensor | None = None,
    by_sample: bool = False,
) -> Callable[..., None] | None:
    """Fill `spikes` `[T, B, *F]`, `traces` (one for each state, or none) and `finals` `[B, *F]`.

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `states` are `[B, *F]` each, or empty to
    start from zeros; `parameters` have one number or `[P]`, which repeat over the neurons. All but
    `current` and `spikes` are in the state's format. `lengths` are int64 `[B]`, clamped to 0 to
    `steps`.
    """
    state = finals[0].dtype
    read = by_samples if by_sample else rows

    def laid_out(
        current: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        x = current.to(state).contiguous() if constant else read(current, current.dtype)
        return x, [one.contiguous() for one in states], [one.contiguous() for one in parameters]

    x, starts, values = laid_out(current, states, parameters)
    spikes_format = state if spikes is None else spikes.dtype
    size, batch = finals[0].numel(), finals[0].shape[0]
    samples = batch if by_sample or lengths is not None else 0
    features = size // (batch or 1)
    # Without `by_sample` the strides follow from the shape.
    x_strides = strides_of(x, finals[0].dim(), features) if by_sample else None
    least = HELD if constant else STREAMED
    past = NOT_PAST if spikes is None else past_of(spikes, least, samples)
    formats, threads = (x.dtype, spikes_format, state), torch.get_num_threads()
    key = (
        *("forward", neuron, formats, x.shape, size, steps, past, samples, threads),
        *(
            x_strides,
            by_sample,
            lengths is None,
            bool(states),
            spikes is None,
            bool(traces),
            *[one.numel() for one in parameters],
        ),
    )
    nothing = (None,) * len(finals)

    def arrays_of(
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        numbers: Sequence[float],
        lengths: Tensor | None,
        spikes: Tensor | None,
        finals: Sequence[Tensor],
        traces: Sequence[Tensor],
    ) -> tuple[Tensor | None, ...]:
        constants = as_tensor(tuple(numbers), state)
        given = (x, *(states or nothing), *parameters)
        return (*given, spikes, *(traces or nothing), *finals, constants, lengths)

    arrays = arrays_of(x, starts, values, numbers, lengths, spikes, finals, traces)
    plan = _plans.get(key)
    if plan is None:
        sizes = (steps, size, samples)
        layout = (features, steps * features) if by_sample else (size, features)
        x_strides = x_strides or strides_of(x, finals[0].dim(), features)
        strides = (*x_strides, 0, 0, 0, 0, *layout)
        plan = _plan(key, arrays, neuron, state, formats, parameters, None, sizes, past, strides)
    plan.run(arrays)
    if spikes is not None and spikes.nbytes >= least:
        return None  # the address of the next call's spikes decides how they are written
    used = (x, *starts, *values)
    is_same = are_same((current, *states, *parameters), used, whole=True)

    def again(
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        numbers: Sequence[float],
        lengths: Tensor | None,
        spikes: Tensor | None,
        finals: Sequence[Tensor],
        traces: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> None:
        given = (current, states, parameters)
        if not is_same:
            given = laid_out(*given)
        plan.run(arrays_of(*given, numbers, lengths, spikes, finals, traces))

    return again


def backward(
    *,
    grad_spikes: Tensor | None,
    grad_traces: Sequence[Tensor | None],
    grad_finals: Sequence[Tensor | None],
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    steps: int,
    constant: bool,
    out: Tensor,
    out_states: Sequence[Tensor],
    out_parameters: Sequence[Tensor | None],
    lengths: Tensor | None = None,
    by_sample: bool = False,
) -> Callable[..., None] | None:
    """Fill the gradients of current, states (all or none) and parameters (all but None)."""
    nothing = (None,) * len(grad_finals)
    state = torch.float64 if current.dtype == torch.float64 else torch.float32
    shape = current.shape if constant else current.shape[1:]
    size, batch, dim = math.prod(shape), shape[0], len(shape)
    features = size // (batch or 1)
    layout = (features, steps * features) if by_sample else (size, features)
    read = by_samples if by_sample else rows

    def laid_out(
        grad_spikes: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_traces: Sequence[Tensor | None],
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> tuple[Any, ...]:
        each = layout[1] if by_sample else None
        traces = [
            by_samples(one, state, each) if by_sample else rows(one, state) for one in grad_traces
        ]
        return (
            read(grad_spikes, current.dtype),
            [None if one is None else one.to(state).contiguous() for one in grad_finals],
            traces,
            current.to(state).contiguous() if constant else read(current, current.dtype),
            [one.contiguous() for one in states],
            [one.contiguous() for one in parameters],
        )

    found = laid_out(grad_spikes, grad_finals, grad_traces, current, states, parameters)
    gs, gfs, gts, x, starts, values = found
    # The gradient of a constant current is summed in the state's format and rounded once.
    wide = out.new_empty(out.shape, dtype=state) if constant and out.dtype != state else out
    samples = batch if by_sample or lengths is not None else 0
    past = NOT_PAST if constant else past_of(wide, STREAMED, samples)
    wanted = tuple([one is not None for one in out_parameters])
    formats, threads = (x.dtype, current.dtype, wide.dtype), torch.get_num_threads()
    strides: tuple[int, ...] | None = None  # without `by_sample` they follow from the shapes
    if by_sample:
        strides = (*strides_of(x, dim, features), *strides_of(gs, dim, features))
    key = (
        *("backward", neuron, formats, x.shape, size, steps, past, samples, threads),
        *(strides, by_sample, lengths is None, bool(states), constant, bool(out_states), wanted),
        *[None if one is None else one.shape for one in (gs, *(gts or nothing), *gfs)],
        *[one.numel() for one in parameters],
    )

    def arrays_of(
        gs: Tensor | None,
        gfs: Sequence[Tensor | None],
        gts: Sequence[Tensor | None],
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        numbers: Sequence[float],
        lengths: Tensor | None,
        out: Tensor,
        out_states: Sequence[Tensor],
        asked: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, ...]:
        constants = as_tensor(tuple(numbers), state)
        given = (x, *(states or nothing), *parameters, gs, *(gts or nothing), *gfs)
        return (*given, out, *(out_states or nothing), *asked, constants, lengths)

    def each_of(parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if one is None else one.new_empty(size) for one in parameters]

    asked = each_of(out_parameters)
    arrays = arrays_of(gs, gfs, gts, x, starts, values, numbers, lengths, wide, out_states, asked)
    plan = _plans.get(key)
    if plan is None:
        kind = (mask_of(wanted), constant, gs is not None)
        sizes = (steps, size, samples)
        strides = strides or (*strides_of(x, dim, features), *strides_of(gs, dim, features))
        strides += (*strides_of(out, dim, features), *layout)
        plan = _plan(key, arrays, neuron, state, formats, parameters, kind, sizes, past, strides)
    plan.run(arrays)
    sum_over_batch(asked, out_parameters)
    if wide is not out:
        out.copy_(wide)
        return None
    if not constant and out.nbytes >= STREAMED:
        return None  # the address of the next call's gradient decides how it is written
    given = (grad_spikes, current, *grad_traces, *grad_finals, *states, *parameters)
    is_same = are_same(given, (gs, x, *gts, *gfs, *starts, *values), whole=True)

    def again(
        grad_spikes: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_traces: Sequence[Tensor | None],
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        numbers: Sequence[float],
        lengths: Tensor | None,
        saved: Sequence[Tensor],
        out: Tensor,
        out_states: Sequence[Tensor],
        out_parameters: Sequence[Tensor | None],
    ) -> None:
        asked = each_of(out_parameters)
        given = (grad_spikes, grad_finals, grad_traces, current, states, parameters)
        if not is_same:
            given = laid_out(*given)
        plan.run(arrays_of(*given, numbers, lengths, out, out_states, asked))
        sum_over_batch(asked, out_parameters)

    return again
