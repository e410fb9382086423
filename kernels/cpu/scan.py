"""The fused CPU backend of any recorded neuron: the whole time loop in one compiled kernel.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. A block of neurons keeps its states in
the first-level cache while the loop runs over T; blocks are divided among threads. Each row is one
vectorised loop over the block, written for the neuron's number of states and parameters, around the
neuron's own operations (`neurospike.neurons`).

Forward, per block:                            Backward, per block:
    states  S rows   <- start                      history[0] <- start
    for t: step, write spikes[t] (and traces)      for t: history[t + 1] <- step(history[t])
    final <- states                                for t in reverse: gradient at history[t]

Saved for backward: nothing but the inputs. The history, the states before each step, is computed
again into a scratch that fits the second-level cache. That moves 8 bytes per neuron-step forward
(read current, write spikes) and 12 backward (read current and the spikes' gradient, write the
current's), for any number of states.

What is the same at every step is one row: an array of N numbers in the place of T * N. With lengths
a block lies within a sample and its loop ends with the sample; what comes after is only filled,
never read. What nobody asked for is compiled away. Number formats: state float32, or float64 if the
current is; 16-bit currents are converted before, their spikes and gradients after.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers, parallel
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, row_of, run
from neurospike.kernels.cpu._memory import fence, prefetch, stream, take
from neurospike.kernels.cpu._rows import advancing, formulas, retracing, retreating
from neurospike.neurons.program import Program
from neurospike.ops.wants import mask_of

BLOCK = 512  # neurons whose states stay in the first-level cache
AHEAD = 2  # time steps ahead that rows are fetched: a row is computed faster than one arrives
STREAMED = 4 << 20  # bytes of an output that is not kept in a cache for whoever reads it
HELD = 32 << 20  # the same where a constant current leaves the caches to the output
GRAIN = 1 << 16  # neuron-steps that are worth waking a thread for: some 30 us of work
SCRATCH = 1 << 17  # numbers of a block's history that stay in the second-level cache

# Sizes of a job: steps, neurons in a block, neurons in all, blocks, neurons of a sample.
STEPS, WIDTH, COUNT, PARTS, FEATURES = SIZES, SIZES + 1, SIZES + 2, SIZES + 3, SIZES + 4

# What a kernel is compiled for; rebound for each variant.
STATES = 1
PARAMETERS = 2
SPIKES = True
TRACE = False
TRACED = 1
WANTED = 0
CONSTANT = False
STREAM = False
LENGTHS = False
NUMBER = np.float32(0)


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


def _step_of(array, size):
    """Return the stride over time of a sequence; 0 if one row stands for all."""
    return 0 if array.size == size else size


def _place(job, lengths, part):
    """Return a block's first neuron, how many it has, and how many steps they are taken."""
    block = job[WIDTH]
    if not LENGTHS:
        low = part * block
        return low, min(block, job[COUNT] - low), job[STEPS]
    each = (job[FEATURES] + block - 1) // block
    sample, first = part // each, part % each * block
    steps = max(0, min(lengths[sample], job[STEPS]))
    return sample * job[FEATURES] + first, min(block, job[FEATURES] - first), steps


def _begin(job_at, scratch, states_at, parameters_at, block, low, n):
    """Write a block's first states and its parameters into rows of the scratch."""
    for s in range(STATES):
        _start(row_of(scratch, states_at + s * block, n), _array(job_at, 1 + s), low)
    for p in range(PARAMETERS):
        row = row_of(scratch, parameters_at + p * block, n)
        _fill(row, _array(job_at, 1 + STATES + p), low)


def lay(scratch, at, then, block, n):
    """Return the rows of a block's states and parameters; see `_rows`."""


def sums_of(job_at, wanted, low, n):
    """Return the rows of the gradients of parameters that are asked for; see `_rows`."""


def advance(x, rows, spikes, numbers):
    """Take a row of neurons one step on; see `_rows`."""


def retrace(x, scratch, before, rows, block, numbers):
    """Write the states after a step behind those before it; see `_rows`."""


def retreat(x, scratch, before, rows, sums, block, grad_spikes, out, numbers):
    """Take a row of neurons one step back; see `_rows`."""


def _forward(job_at):
    job = job_of(job_at)
    current = _array(job_at, 0)
    outputs = 1 + STATES + PARAMETERS
    spikes, numbers = _array(job_at, outputs), _array(job_at, outputs + 1 + 2 * STATES)
    lengths = array_of(job_at, outputs + 2 + 2 * STATES, 0)
    scratch = _array(job_at, outputs + 3 + 2 * STATES)
    block, size = job[WIDTH], job[COUNT]
    stride = _step_of(current, size)
    own = take(job, SLOT) * (STATES + PARAMETERS + 1) * block
    last = own + (STATES + PARAMETERS) * block
    part = take(job, NEXT)
    while part < job[PARTS]:
        low, n, steps = _place(job, lengths, part)
        _begin(job_at, scratch, own, own + STATES * block, block, low, n)
        rows = lay(scratch, own, own + STATES * block, block, n)
        for t in range(steps):
            x = t * stride + low
            out = t * size + low
            if t + AHEAD < steps:
                prefetch(current, x + AHEAD * stride, n)
            row = row_of(scratch, last, n) if STREAM else row_of(spikes, out, n if SPIKES else 0)
            advance(row_of(current, x, n), rows, row, numbers)
            if STREAM:
                stream(spikes, out, row)
            if TRACE:
                for s in range(STATES):
                    trace = _array(job_at, outputs + 1 + s)
                    _start(row_of(trace, out, n), scratch, own + s * block)
        if LENGTHS:
            for t in range(steps, job[STEPS]):
                if SPIKES:
                    _zero(spikes, t * size + low, row_of(scratch, last, n))
                if TRACE:
                    for s in range(STATES):
                        trace = _array(job_at, outputs + 1 + s)
                        row = row_of(trace, t * size + low, n)
                        _start(row, scratch, own + s * block)
        for s in range(STATES):
            final = _array(job_at, outputs + 1 + STATES + s)
            _start(row_of(final, low, n), scratch, own + s * block)
        part = take(job, NEXT)
    if STREAM:
        fence()


def _backward(job_at):
    job = job_of(job_at)
    current = _array(job_at, 0)
    given = 1 + STATES + PARAMETERS
    grad_spikes = _array(job_at, given)
    traces, finals = given + 1, given + 1 + STATES
    outputs = finals + STATES
    out = _array(job_at, outputs)
    wanted = outputs + 1 + STATES
    numbers = _array(job_at, wanted + PARAMETERS)
    lengths = array_of(job_at, wanted + PARAMETERS + 1, 0)
    scratch = _array(job_at, wanted + PARAMETERS + 2)
    nothing = row_of(scratch, 0, 0)
    block, size = job[WIDTH], job[COUNT]
    x_stride, spikes_stride = _step_of(current, size), _step_of(grad_spikes, size)
    # Rows of the scratch: gradients of the states, parameters, a row to stream, the history.
    own = take(job, SLOT) * (STATES + PARAMETERS + 1 + job[STEPS] * STATES) * block
    parameters_at = own + STATES * block
    last = parameters_at + PARAMETERS * block
    history = last + block
    part = take(job, NEXT)
    while part < job[PARTS]:
        low, n, steps = _place(job, lengths, part)
        _begin(job_at, scratch, history, parameters_at, block, low, n)
        rows = lay(scratch, own, parameters_at, block, n)
        sums = sums_of(job_at, wanted, low, n)
        for t in range(steps - 1):
            x = t * x_stride + low
            if t + AHEAD < steps:
                prefetch(current, x + AHEAD * x_stride, n)
            before = history + t * STATES * block
            retrace(row_of(current, x, n), scratch, before, rows, block, numbers)
        for s in range(STATES):
            _start(row_of(scratch, own + s * block, n), _array(job_at, finals + s), low)
        if CONSTANT:
            _start(row_of(out, low, n), nothing, 0)
        for p in range(PARAMETERS):
            if WANTED >> p & 1:
                _start(row_of(_array(job_at, wanted + p), low, n), nothing, 0)
        for t in range(steps - 1, -1, -1):
            g = t * spikes_stride + low
            o = low if CONSTANT else t * size + low
            if SPIKES and t >= AHEAD:
                prefetch(grad_spikes, g - AHEAD * spikes_stride, n)
            if TRACE:
                for s in range(STATES):
                    if TRACED >> s & 1:
                        trace = _array(job_at, traces + s)
                        at = t * _step_of(trace, size) + low
                        _add(row_of(scratch, own + s * block, n), row_of(trace, at, n))
            row = row_of(scratch, last, n) if STREAM else row_of(out, o, n)
            retreat(
                row_of(current, t * x_stride + low, n),
                scratch,
                history + t * STATES * block,
                rows,
                sums,
                block,
                row_of(grad_spikes, g, n if SPIKES else 0),
                row,
                numbers,
            )
            if STREAM:
                stream(out, o, row)
        if LENGTHS and not CONSTANT:
            for t in range(steps, job[STEPS]):
                _zero(out, t * size + low, row_of(scratch, last, n))
        for s in range(STATES):
            target = _array(job_at, outputs + 1 + s)
            if target.size > 0:
                _start(row_of(target, low, n), scratch, own + s * block)
        part = take(job, NEXT)
    if STREAM:
        fence()


def _zero(array, start, row):
    """Write zeros into a sequence, as a row's outputs are written; `row` is theirs to stream."""
    size = row.size
    if not STREAM:
        row = row_of(array, start, size)
    for i in range(size):
        row[i] = 0.0
    if STREAM:
        stream(array, start, row)


def _add(out, values):
    """Add a row to another."""
    for i in range(out.size):
        out[i] += values[i]


@functools.lru_cache(maxsize=512)
def _compiled(kind: str, key: str, double: bool, alike: int, wanted: int = 0, **flags: int) -> Any:
    """Return a kernel compiled for a neuron, a number format and what is asked for."""
    program = Program.parse(key)
    spikes = bool(flags["SPIKES"])
    literal = np.float64 if double else np.float32
    if kind == "forward":
        rows = advancing(key, spikes, alike)
    else:
        rows = retracing(key, alike) | retreating(
            key, spikes, wanted, bool(flags["CONSTANT"]), alike
        )
    names = formulas(literal) | rows | flags | {"row_of": row_of, "_array": _array}
    names |= {"STATES": program.states, "PARAMETERS": program.parameters, "WANTED": wanted}
    return compiled(_forward if kind == "forward" else _backward, names, literal)


def alike_of(parameters: Sequence[Tensor]) -> int:
    """Return which parameters have one value for all neurons, as bits."""
    return mask_of([one.numel() == 1 for one in parameters])


def _given(tensors: Sequence[Tensor | None], count: int) -> Sequence[Tensor | None]:
    """Return the tensors, or `count` times None where there are none."""
    return tensors or [None] * count


def rows(tensor: Tensor | None, state: torch.dtype) -> Tensor | None:
    """Return a sequence `[T, ...]` contiguous in the state's format; one row if all are alike."""
    if tensor is None or tensor.numel() == 0:
        return None
    if tensor.stride(0) == 0:
        tensor = tensor[0]
    return (tensor if tensor.dtype == state else tensor.to(state)).contiguous()


@functools.lru_cache
def as_tensor(values: tuple[float, ...], state: torch.dtype) -> Tensor:
    """Return numbers as a tensor, the same one each time."""
    return torch.tensor(values, dtype=state)


def _sizes(steps: int, block: int, size: int, lengths: Tensor | None) -> tuple[int, ...]:
    """Return the sizes of a job."""
    batch = 1 if lengths is None else lengths.numel()
    features = size // batch if batch else 0
    return steps, block, size, batch * -(-features // block), features


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
) -> None:
    """Fill `spikes` `[T, B, *F]`, `traces` (one for each state, or none) and `finals` `[B, *F]`.

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `states` one `[B, *F]` each, or none of them
    to start from zeros; `parameters` of one number or `[P]`. All but `current` and `spikes` are in
    the state's format. `lengths` are int64 `[B]`, taken as 0 to `steps`.
    """
    state, size = finals[0].dtype, finals[0].numel()
    x = current.to(state).contiguous() if constant else rows(current, state)
    wide = spikes
    if spikes is not None and spikes.dtype != state:
        wide = buffers.empty(spikes.shape, state)
    large = 0 if wide is None else wide.nbytes
    kernel = _compiled(
        "forward",
        neuron,
        state == torch.float64,
        alike_of(parameters),
        SPIKES=spikes is not None,
        TRACE=len(traces) > 0,
        STREAM=large >= (HELD if constant else STREAMED),
        LENGTHS=lengths is not None,
    )
    count = len(finals)
    arrays = (
        x,
        *_given([one.contiguous() for one in states], count),
        *[one.contiguous() for one in parameters],
        wide,
        *_given(traces, count),
        *finals,
        as_tensor(tuple(numbers), state),
        lengths,
    )
    sizes = _sizes(steps, BLOCK, size, lengths)
    threads = parallel.threads(size * steps // GRAIN, sizes[PARTS - SIZES])
    scratch = (count + len(parameters) + 1) * BLOCK
    run(kernel, arrays, sizes, threads, scratch, state)
    if spikes is not None and wide is not None and wide is not spikes:
        spikes.copy_(wide)


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
) -> None:
    """Fill the gradients of current, states (all or none) and parameters (each that is no None)."""
    program = Program.parse(neuron)
    count = program.states
    state = torch.float64 if current.dtype == torch.float64 else torch.float32
    size = math.prod(current.shape if constant else current.shape[1:])
    x = current.to(state).contiguous() if constant else rows(current, state)
    gs = rows(grad_spikes, state)
    gts = [rows(one, state) for one in grad_traces] or [None] * count
    traced = mask_of([one is not None for one in gts])
    wanted = mask_of([one is not None for one in out_parameters])
    wide = out if out.dtype == state else buffers.empty(out.shape, state)
    kernel = _compiled(
        "backward",
        neuron,
        state == torch.float64,
        alike_of(parameters),
        wanted,
        SPIKES=gs is not None,
        TRACE=traced > 0,
        TRACED=traced,
        CONSTANT=constant,
        STREAM=not constant and wide.nbytes >= STREAMED,
        LENGTHS=lengths is not None,
    )
    asked = [None if one is None else torch.empty(size, dtype=state) for one in out_parameters]
    rows_each = count + len(parameters) + 1 + steps * count
    block = min(BLOCK, max(64, SCRATCH // rows_each // 64 * 64))
    arrays = (
        x,
        *_given([one.contiguous() for one in states], count),
        *[one.contiguous() for one in parameters],
        gs,
        *gts,
        *_given(
            [None if one is None else one.to(state).contiguous() for one in grad_finals], count
        ),
        wide,
        *_given(out_states, count),
        *asked,
        as_tensor(tuple(numbers), state),
        lengths,
    )
    sizes = _sizes(steps, block, size, lengths)
    threads = parallel.threads(size * steps // GRAIN, sizes[PARTS - SIZES])
    run(kernel, arrays, sizes, threads, rows_each * block, state)
    if wide is not out:
        out.copy_(wide)
    sum_over_batch(asked, out_parameters)


def sum_over_batch(each: Sequence[Tensor | None], out: Sequence[Tensor | None]) -> None:
    """Sum each neuron's gradients of parameters, `[B * N]`, over the neurons that share one."""
    for target, found in zip(out, each):
        if target is not None and found is not None and target.numel():
            torch.sum(found.view(-1, target.numel()), 0, out=target.view(-1))
