"""The fused CPU backend of any recorded neuron: the whole time loop in one compiled kernel.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous, or by sample `[B, T, F]`. A block of
neurons keeps its states in a cache while the loop runs over T; blocks are divided among threads. A
few rows at a time are taken by vectorised loops, written of the neuron's own operations (`_rows`);
the loops over time below run them by their addresses, and are the same for every neuron.

Forward, per block:                            Backward, per block:
    states  S rows   <- start                      history[0] <- start
    for t: step, write spikes[t] (and traces)      for t: history[t + 1] <- step(history[t])
    final <- states                                for t in reverse: gradient at history[t]

Saved for backward: nothing but the inputs. The history, the states before each step, is computed
again into a scratch of at most `HISTORY` bytes. That moves 8 bytes per neuron-step forward
(read current, write spikes) and 12 backward (read current and the spikes' gradient, write the
current's), for any number of states.

What is the same at every step is one row: an array of N numbers in the place of T * N. By sample,
and with lengths, a block lies within a sample; with lengths its loop ends with the sample, and what
comes after is only filled, never read. Number formats: state float32, or float64 if the current is;
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
from neurospike.kernels.cpu._intrinsics import address, array_at, call, fence, stream, take
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, Plan, array_of, job_of, place_of, row_of
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

BLOCK = 1344  # neurons that are taken through time together: rows that memory reads at full speed
UNIT = 64  # neurons that a block is a multiple of
HISTORY = 3 << 19  # bytes of a block's history, at most
PAD = 16  # numbers between rows of scratch, else those of some steps meet in few lines of a cache
TOGETHER = 4  # time steps that a row is taken at once
GRAIN = 1 << 16  # neuron-steps that are worth waking a thread for: some 30 us of work

# Sizes of a job: steps, neurons in a block, neurons in all, blocks, neurons of a sample (of all, if
# blocks may lie in several); states and parameters of a neuron; 1 if what is written goes past the
# caches; bytes of a number of the current, of the spikes or their gradient, and of the current's
# gradient. Numbers between two steps and between two samples: of the current, of the spikes'
# gradient, of the current's gradient, and of all other sequences; no numbers between two steps that
# are one row. Then addresses of `_rows`: of `advance` or `retrace`, and of `retreat`.
STEPS, WIDTH, COUNT, PARTS, FEATURES, STATES, PARAMETERS, PAST = range(SIZES, SIZES + 8)
X_BYTES, SPIKES_BYTES, OUT_BYTES = range(PAST + 1, PAST + 4)
X_STEP, X_EACH, GRAD_STEP, GRAD_EACH, OUT_STEP, OUT_EACH, STEP, EACH = range(PAST + 4, PAST + 12)
ONWARD, BACK = range(PAST + 12, PAST + 14)

NUMBER = np.float32(0)  # rebound to the state's format
BYTE = np.uint8(0)


def _array(job_at, k):
    """Return the `k`-th array of a job; one of size 0 is not there."""
    return array_of(job_at, k, NUMBER)


def _fill(out, values, start):
    """Write one value a neuron, from neuron `start` on; `values` repeats with its own length."""
    if values.size == 1:
        for i in range(out.size):
            out[i] = values[0]
        return
    k = start % values.size
    for i in range(out.size):
        out[i] = values[k]
        k += 1
        if k == values.size:
            k = 0


def _start(out, values, low):
    """Begin a block: a row of `values` from neuron `low` on, or zeros if there are none."""
    for i in range(out.size):
        out[i] = values[low + i] if values.size > 0 else 0.0


def _step_of(count, size):
    """Return the stride over time of a sequence of `count` numbers; 0 if one row stands for all."""
    return 0 if count == size else size


def _place(job, lengths, part):
    """Return a block's sample, its first neuron there, how many it has, and how many steps."""
    block = job[WIDTH]
    each = (job[FEATURES] + block - 1) // block
    sample, first = part // each, part % each * block
    steps = job[STEPS]
    if lengths.size > 0:
        steps = max(0, min(lengths[sample], steps))
    return sample, first, min(block, job[FEATURES] - first), steps


def _begin(job_at, scratch, states_at, parameters_at, apart, low, n):
    """Write a block's first states and its parameters into rows of the scratch."""
    job = job_of(job_at)
    states = job[STATES]
    for s in range(states):
        _start(row_of(scratch, states_at + s * apart, n), _array(job_at, 1 + s), low)
    for p in range(job[PARAMETERS]):
        row = row_of(scratch, parameters_at + p * apart, n)
        _fill(row, _array(job_at, 1 + states + p), low)


def _keep(job_at, states, scratch, own, apart, first, at, n):
    """Write states, rows of the scratch, into arrays of a job, those that are there."""
    for s in range(states):
        array = _array(job_at, first + s)
        if array.size > 0:
            _start(row_of(array, at, n), scratch, own + s * apart)


def _add_traces(job_at, states, scratch, own, apart, first, at, low, size, n):
    """Add the gradients that come to states at a step, those that are there.

    A row for all steps, of `size` numbers, has them at `low`, a sequence at `at`.
    """
    for s in range(states):
        trace = _array(job_at, first + s)
        if trace.size > 0:
            place = low if trace.size == size else at
            _add(row_of(scratch, own + s * apart, n), row_of(trace, place, n))


def _forward(job_at):
    job = job_of(job_at)
    states, parameters, past = job[STATES], job[PARAMETERS], job[PAST] == 1
    current, _ = place_of(job_at, 0)
    outputs = 1 + states + parameters
    spikes, spikes_count = place_of(job_at, outputs)
    numbers = _array(job_at, outputs + 1 + 2 * states)
    traces, finals = outputs + 1, outputs + 1 + states
    lengths = array_of(job_at, outputs + 2 + 2 * states, 0)
    scratch = _array(job_at, outputs + 3 + 2 * states)
    apart, x_step, step = job[WIDTH] + PAD, job[X_STEP], job[STEP]
    traced = states > 0 and _array(job_at, traces).size > 0
    each = 1 if traced else TOGETHER
    # Rows of the scratch: states, parameters, zeros to stream.
    own = take(job, SLOT) * (states + parameters + 1) * apart
    parameters_at = own + states * apart
    zeros_at = parameters_at + parameters * apart
    part = take(job, NEXT)
    while part < job[PARTS]:
        sample, first, n, steps = _place(job, lengths, part)
        low, begin = sample * job[FEATURES] + first, sample * job[EACH] + first
        x_begin = sample * job[X_EACH] + first
        _begin(job_at, scratch, own, parameters_at, apart, low, n)
        for t in range(0, steps, each):
            taken = min(each, steps - t)
            out = t * step + begin
            call(
                job[ONWARD],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, own),
                    address(scratch, parameters_at),
                    spikes + out * job[SPIKES_BYTES],
                    address(numbers, 0),
                    apart,
                    n,
                    taken,
                    x_step,
                    step,
                ),
            )
            if traced:
                _keep(job_at, states, scratch, own, apart, traces, out, n)
        zeros = address(scratch, zeros_at)
        for t in range(steps, job[STEPS]):
            if spikes_count > 0:
                _zero(spikes, t * step + begin, n, job[SPIKES_BYTES], zeros, past)
            _keep(job_at, states, scratch, own, apart, traces, t * step + begin, n)
        _keep(job_at, states, scratch, own, apart, finals, low, n)
        part = take(job, NEXT)
    if past:
        fence()


def _backward(job_at):
    job = job_of(job_at)
    states, parameters, past = job[STATES], job[PARAMETERS], job[PAST] == 1
    current, _ = place_of(job_at, 0)
    given = 1 + states + parameters
    grad_spikes, _ = place_of(job_at, given)
    traces, finals = given + 1, given + 1 + states
    outputs = finals + states
    out, _ = place_of(job_at, outputs)
    wanted = outputs + 1 + states
    numbers = _array(job_at, wanted + parameters)
    lengths = array_of(job_at, wanted + parameters + 1, 0)
    scratch = _array(job_at, wanted + parameters + 2)
    nothing = row_of(scratch, 0, 0)
    size, apart = job[COUNT], job[WIDTH] + PAD
    x_step, grad_step, step = job[X_STEP], job[GRAD_STEP], job[STEP]
    out_step = job[OUT_STEP]
    traced = False
    for s in range(states):
        traced = traced or _array(job_at, traces + s).size > 0
    each = 1 if traced else TOGETHER
    # Rows of the scratch: gradients of the states, parameters, their gradients, zeros to stream,
    # the history.
    own = take(job, SLOT) * (states + 2 * parameters + 1 + job[STEPS] * states) * apart
    parameters_at = own + states * apart
    sums_at = parameters_at + parameters * apart
    zeros_at = sums_at + parameters * apart
    history = zeros_at + apart
    part = take(job, NEXT)
    while part < job[PARTS]:
        sample, first, n, steps = _place(job, lengths, part)
        low, begin = sample * job[FEATURES] + first, sample * job[EACH] + first
        x_begin, grad_begin = sample * job[X_EACH] + first, sample * job[GRAD_EACH] + first
        out_begin = sample * job[OUT_EACH] + first
        _begin(job_at, scratch, history, parameters_at, apart, low, n)
        for t in range(0, steps - 1, TOGETHER):
            call(
                job[ONWARD],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, history + t * states * apart),
                    address(scratch, parameters_at),
                    address(numbers, 0),
                    apart,
                    n,
                    min(TOGETHER, steps - 1 - t),
                    x_step,
                ),
            )
        for s in range(states):
            _start(row_of(scratch, own + s * apart, n), _array(job_at, finals + s), low)
        _start(row_of(scratch, sums_at, parameters * apart), nothing, 0)
        if out_step == 0:
            _start(row_of(_array(job_at, outputs), low, n), nothing, 0)
        t = steps
        while t > 0:
            taken = min(each, t)
            t -= taken
            if traced:
                at = t * step + begin
                _add_traces(job_at, states, scratch, own, apart, traces, at, low, size, n)
            call(
                job[BACK],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, history + t * states * apart),
                    address(scratch, parameters_at),
                    grad_spikes + (t * grad_step + grad_begin) * job[SPIKES_BYTES],
                    address(scratch, own),
                    out + (t * out_step + out_begin) * job[OUT_BYTES],
                    address(scratch, sums_at),
                    address(numbers, 0),
                    apart,
                    n,
                    taken,
                    x_step,
                    grad_step,
                    out_step,
                ),
            )
        zeros = address(scratch, zeros_at)
        if out_step > 0:
            for t in range(steps, job[STEPS]):
                _zero(out, t * step + begin, n, job[OUT_BYTES], zeros, past)
        _keep(job_at, states, scratch, own, apart, outputs + 1, low, n)
        asked = sums_at
        for p in range(parameters):
            target = _array(job_at, wanted + p)
            if target.size > 0:
                _start(row_of(target, low, n), scratch, asked)
                asked += apart
        part = take(job, NEXT)
    if past:
        fence()


def _zero(place, start, n, size, zeros, past):
    """Write `n` zeros of `size` bytes into a sequence that begins at a place.

    They are written as its other numbers are; `zeros` is a row of scratch to stream.
    """
    target = array_at(place + start * size, n * size, BYTE)
    row = array_at(zeros, n * size, BYTE) if past else target
    for i in range(row.size):
        row[i] = 0
    if past:
        stream(target, 0, row)


def _add(out, values):
    """Add a row to another."""
    for i in range(out.size):
        out[i] += values[i]


@functools.cache
def _compiled(backward: bool, double: bool) -> Any:
    """Return the kernel of a direction, for any neuron, compiled for a number format."""
    literal = np.float64 if double else np.float32
    return compiled(_backward if backward else _forward, {"BYTE": BYTE}, literal)


def alike_of(parameters: Sequence[Tensor]) -> int:
    """Return which parameters have one value for all neurons, as bits."""
    return mask_of([one.numel() == 1 for one in parameters])


def _given(tensors: Sequence[Tensor | None], count: int) -> Sequence[Tensor | None]:
    """Return the tensors, or `count` times None where there are none."""
    return tensors or [None] * count


@functools.lru_cache(maxsize=4096)
def as_tensor(values: tuple[float, ...], state: torch.dtype) -> Tensor:
    """Return numbers as a tensor, the same one each time."""
    return torch.tensor(values, dtype=state, device="cpu")


def _divided(
    steps: int, size: int, samples: int, state: torch.dtype, rows_each: int
) -> tuple[tuple[int, ...], int]:
    """Return the first five sizes of a job, and how many threads share it.

    samples: whose blocks are apart, by sample or with lengths; 0 if blocks may lie in several.
    rows_each: rows of scratch that a block has, if they are to lie in a cache; else 0.
    """
    most = BLOCK if rows_each == 0 else min(BLOCK, HISTORY // (rows_each * state.itemsize))
    most = max(UNIT, most)
    batch = samples or 1
    features = size // batch
    threads = parallel.threads(size * steps // GRAIN, -(-size // UNIT))
    parts = max(1, -(-features // most))
    if not samples:  # as many for each thread
        parts = -(-parts // threads) * threads
    block = UNIT * max(1, -(-features // (parts * UNIT)))
    parts = batch * -(-features // block)
    return (steps, block, size, parts, features), min(threads, max(1, parts))


# By all that a plan depends on: the program, how many neurons and steps there are, which arrays
# there are, and the shapes of those whose size does not follow from that.
_plans: dict[tuple[Any, ...], Plan] = {}
PLANS = 4096  # that are kept


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
    backward: of the backward pass, the parameters whose gradients are wanted, as bits, whether the
        current is constant, and whether the spikes have a gradient; None of the forward pass.
    sizes: steps, neurons, and samples whose blocks are apart.
    strides: eight of a job, from `X_STEP` on.
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

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `states` one `[B, *F]` each, or none of them
    to start from zeros; `parameters` of one number or `[P]`. All but `current` and `spikes` are in
    the state's format. `lengths` are int64 `[B]`, taken as 0 to `steps`.
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
    # Those of steps in blocks follow from the shape.
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
        return None  # where the next ones lie decides how they are written
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
    """Fill the gradients of current, states (all or none) and parameters (each that is no None)."""
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
    # What a constant current's gradient adds up to is rounded once.
    wide = out.new_empty(out.shape, dtype=state) if constant and out.dtype != state else out
    samples = batch if by_sample or lengths is not None else 0
    past = NOT_PAST if constant else past_of(wide, STREAMED, samples)
    wanted = tuple([one is not None for one in out_parameters])
    formats, threads = (x.dtype, current.dtype, wide.dtype), torch.get_num_threads()
    strides: tuple[int, ...] | None = None  # those of steps in blocks follow from the shapes
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
        return None  # where the next one lies decides how it is written
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
