"""The fused CPU backend: the whole time loop in one compiled kernel, forward and backward.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. A block of neurons keeps its state in
the first-level cache while the loop runs over T; blocks are divided among threads. Each row is one
vectorised loop over the block, in the formulas of `neurospike.formulas`, re-jitted here.

Saved for backward: nothing but the inputs. The backward pass first runs the block's forward again
into a scratch that fits the second-level cache, then goes through time in reverse. That moves 8
bytes a neuron-step forward (read current, write spikes) and 12 backward (read current and the
spikes' gradient, write the current's), against 12 and 12 with a saved membrane.

What is the same at every step is one row with the time stride 0: a constant current, the gradient
of a spike count. What nobody asked for is compiled away. Number formats: state float32, or float64
if the current is; 16-bit currents are converted before, their spikes and gradients after.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from neurospike import buffers, formulas, parallel, rule
from neurospike.formulas import step, step_vjp, windowed
from neurospike.kernels.numba_jit import compiled
from neurospike.kernels.numba_job import NEXT, SIZES, SLOT, array_of, job_of, row_of, run
from neurospike.kernels.numba_memory import fence, prefetch, stream, take

BLOCK = 512  # neurons whose state stays in the first-level cache
AHEAD = 2  # time steps ahead that rows are fetched: a row is computed faster than one arrives
STREAMED = 4 << 20  # bytes of an output that is not kept in a cache for whoever reads it
HELD = 32 << 20  # the same where a constant current leaves the caches to the output
SCRATCH = 1 << 17  # recomputed membranes of a block that stay in the second-level cache
GRAIN = 1 << 16  # neuron-steps that are worth waking a thread for: some 30 us of work

# Sizes of a job: steps, neurons a block, strides over time of three arrays.
STEPS, WIDTH, STRIDES = SIZES, SIZES + 1, SIZES + 2

# What a kernel is compiled for; rebound for each variant.
DELAYED = True
SPIKES = True
TRACE = False
CONSTANT = False
WINDOWED = False
PARAMETERS = False
STREAM = False
COUNT = 1
NUMBER = np.float32(0)
surrogate = formulas.atan


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


def forward_row(current, mem, beta, threshold, spikes, trace):
    """Take a row of neurons one step on."""
    for i in range(mem.size):
        spike, new, _ = step(mem[i], current[i], beta[i], threshold[i])
        mem[i] = new
        if SPIKES:
            spikes[i] = spike
        if TRACE:
            trace[i] = new


def _forward(job_at):
    job = job_of(job_at)
    current, mem = _array(job_at, 0), _array(job_at, 1)
    beta, threshold = _array(job_at, 2), _array(job_at, 3)
    spikes, trace, final = _array(job_at, 4), _array(job_at, 5), _array(job_at, 6)
    steps, block, stride = job[STEPS], job[WIDTH], job[STRIDES]
    size = final.size
    scratch = _array(job_at, 7)
    own = take(job, SLOT) * 4 * block
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        state = row_of(scratch, own, n)
        b, th = row_of(scratch, own + block, n), row_of(scratch, own + 2 * block, n)
        _start(state, mem, low)
        _fill(b, beta, low)
        _fill(th, threshold, low)
        for t in range(steps):
            x = t * stride + low
            out = t * size + low
            if t + AHEAD < steps:
                prefetch(current, x + AHEAD * stride, n)
            row = row_of(scratch, own + 3 * block, n) if STREAM else row_of(spikes, out, n)
            forward_row(row_of(current, x, n), state, b, th, row, row_of(trace, out, n))
            if STREAM:
                stream(spikes, out, row)
        _start(row_of(final, low, n), state, 0)
        part = take(job, NEXT)
    if STREAM:
        fence()


def recompute_row(current, mem, beta, threshold, v, after):
    """Do as `forward_row`; keep the charged membranes, and those after an immediate reset."""
    for i in range(mem.size):
        _, new, charged = step(mem[i], current[i], beta[i], threshold[i])
        mem[i] = new
        v[i] = charged
        if not DELAYED:
            after[i] = new


def backward_row(
    grad_spikes,
    grad_trace,
    before,
    v,
    beta,
    threshold,
    parameters,
    window,
    carry,
    out,
    out_beta,
    out_th,
):
    """Take a row of neurons one step back: `carry` is the gradient of their membranes."""
    for i in range(carry.size):
        grad_spike = 0.0
        grad_mem = carry[i]
        if SPIKES:
            grad_spike = grad_spikes[i]
        if TRACE:
            grad_mem = grad_trace[i] + grad_mem
        u = v[i] - threshold[i]
        h = windowed(surrogate(u, *parameters), u, window)
        d, grad_before, d_beta, d_th = step_vjp(
            before[i], v[i], beta[i], threshold[i], h, grad_spike, grad_mem
        )
        carry[i] = grad_before
        if CONSTANT:
            out[i] += d
        else:
            out[i] = d
        if PARAMETERS:
            out_beta[i] += d_beta
            out_th[i] += d_th


def _backward(job_at):
    job = job_of(job_at)
    grad_spikes, grad_trace, grad_final = _array(job_at, 0), _array(job_at, 1), _array(job_at, 2)
    current, mem = _array(job_at, 3), _array(job_at, 4)
    beta, threshold = _array(job_at, 5), _array(job_at, 6)
    out, out_mem = _array(job_at, 7), _array(job_at, 8)
    out_beta, out_th = _array(job_at, 9), _array(job_at, 10)
    numbers = _array(job_at, 11)
    parameters = to_fixed_tuple(numbers, COUNT)
    window = numbers[COUNT] if WINDOWED else 0.0
    nothing = row_of(out, 0, 0)
    steps, block, size = job[STEPS], job[WIDTH], out_mem.size
    # Rows of the scratch: state, beta, threshold, a row to stream; the membrane before the first
    # step, then the charged one of each; with an immediate reset also the membrane after each.
    scratch = _array(job_at, 12)
    own = take(job, SLOT) * (5 + steps if DELAYED else 6 + 2 * steps) * block
    first = own + 4 * block
    later = first if DELAYED else first + (1 + steps) * block
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        state = row_of(scratch, own, n)
        b, th = row_of(scratch, own + block, n), row_of(scratch, own + 2 * block, n)
        _start(state, mem, low)
        _start(row_of(scratch, first, n), state, 0)
        _start(row_of(scratch, later, n), state, 0)
        _fill(b, beta, low)
        _fill(th, threshold, low)
        for t in range(steps):
            x = t * job[STRIDES] + low
            if t + AHEAD < steps:
                prefetch(current, x + AHEAD * job[STRIDES], n)
            recompute_row(
                row_of(current, x, n),
                state,
                b,
                th,
                row_of(scratch, first + (1 + t) * block, n),
                row_of(scratch, later + (1 + t) * block, 0 if DELAYED else n),
            )
        _start(state, grad_final, low)
        if CONSTANT:
            _start(row_of(out, low, n), nothing, 0)
        p = n if PARAMETERS else 0
        d_beta, d_th = row_of(out_beta, low, p), row_of(out_th, low, p)
        _start(d_beta, nothing, 0)
        _start(d_th, nothing, 0)
        for t in range(steps - 1, -1, -1):
            gs = t * job[STRIDES + 1] + low
            gt = t * job[STRIDES + 2] + low
            o = low if CONSTANT else t * size + low
            if SPIKES and t >= AHEAD:
                prefetch(grad_spikes, gs - AHEAD * job[STRIDES + 1], n)
            row = row_of(scratch, own + 3 * block, n) if STREAM else row_of(out, o, n)
            backward_row(
                row_of(grad_spikes, gs, n),
                row_of(grad_trace, gt, n),
                row_of(scratch, later + t * block, n),
                row_of(scratch, first + (1 + t) * block, n),
                b,
                th,
                parameters,
                window,
                state,
                row,
                d_beta,
                d_th,
            )
            if STREAM:
                stream(out, o, row)
        _start(row_of(out_mem, low, n), state, 0)
        part = take(job, NEXT)
    if STREAM:
        fence()


@functools.cache
def _compiled(function: Callable[..., Any], key: str, double: bool, **flags: int) -> Any:
    """Return `function` compiled for a rule, a number format and what is asked for."""
    names = rule.from_key(key).names | flags | {"to_fixed_tuple": to_fixed_tuple}
    return compiled(function, names, np.float64 if double else np.float32)


def _flat(tensor: Tensor | None, state: torch.dtype) -> Tensor | None:
    """Return a contiguous tensor of the state's format with the same numbers."""
    return None if tensor is None else tensor.to(state).contiguous()


def time_rows(tensor: Tensor | None, state: torch.dtype) -> tuple[Tensor | None, int]:
    """Return a sequence `[T, ...]` contiguous, with its stride over time; 0 if no step differs."""
    if tensor is None or tensor.numel() == 0:
        return None, 0
    if tensor.stride(0) == 0:
        return _flat(tensor[0], state), 0
    return _flat(tensor, state), tensor[0].numel()


@functools.lru_cache
def as_tensor(values: tuple[float, ...], state: torch.dtype) -> Tensor:
    """Return a surrogate's parameters, the same tensor each time."""
    return torch.tensor(values, dtype=state)


def _block(rows: int) -> int:
    """Return how many neurons to take at once when each needs `rows` numbers of scratch."""
    return min(BLOCK, max(64, SCRATCH // rows // 64 * 64))


def _run(
    kernel: Any,
    arrays: Sequence[Tensor | None],
    rows: int,
    block: int,
    size: int,
    steps: int,
    state: torch.dtype,
    strides: tuple[int, int, int],
) -> None:
    """Hand `kernel` a job: `arrays`, and last a scratch of `rows` a thread, blocks to share out."""
    threads = parallel.threads(size * steps // GRAIN, -(-size // block))
    run(kernel, arrays, (steps, block, *strides), threads, rows * block, state)


def forward(
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    key: str,
    parameters: Sequence[float],
    steps: int,
    constant: bool,
    spikes: Tensor,
    final: Tensor,
    trace: Tensor,
) -> None:
    """Fill `spikes` and `trace` `[T, B, *F]` (each only if not empty) and `final` `[B, *F]`.

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `mem` `[B, *F]` or None; `beta` and
    `threshold` `[1]` or `[P]`. All but `current` and `spikes` are in the state's format.
    """
    state = final.dtype
    x, stride = (_flat(current, state), 0) if constant else time_rows(current, state)
    wide = spikes if spikes.dtype == state else buffers.empty(spikes.shape, state)
    kernel = _compiled(
        _forward,
        key,
        state == torch.float64,
        SPIKES=spikes.numel() > 0,
        TRACE=trace.numel() > 0,
        STREAM=wide.nbytes >= (HELD if constant else STREAMED),
    )
    arrays = (x, _flat(mem, state), beta.contiguous(), threshold.contiguous(), wide, trace, final)
    _run(kernel, arrays, 4, BLOCK, final.numel(), steps, state, (stride, 0, 0))
    if wide is not spikes:
        spikes.copy_(wide)


def backward(
    grad_spikes: Tensor | None,
    grad_final: Tensor | None,
    grad_trace: Tensor | None,
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    key: str,
    parameters: Sequence[float],
    steps: int,
    constant: bool,
    out: Tensor,
    out_mem: Tensor,
    out_beta: Tensor,
    out_threshold: Tensor,
) -> None:
    """Fill the gradients of current, `mem`, `beta` and `threshold`, the last three if not empty.

    `grad_spikes` and `grad_trace` are `[T, B, *F]`, `grad_final` `[B, *F]`, each may be None.
    """
    state = out_mem.dtype
    x, x_stride = (_flat(current, state), 0) if constant else time_rows(current, state)
    (gs, gs_stride), (gt, gt_stride) = time_rows(grad_spikes, state), time_rows(grad_trace, state)
    size = math.prod(current.shape if constant else current.shape[1:])
    wide = out if out.dtype == state else buffers.empty(out.shape, state)
    wants_parameters = out_beta.numel() > 0 or out_threshold.numel() > 0
    followed = rule.from_key(key)
    delayed = followed.delayed
    kernel = _compiled(
        _backward,
        key,
        state == torch.float64,
        SPIKES=gs is not None,
        TRACE=gt is not None,
        CONSTANT=constant,
        PARAMETERS=wants_parameters,
        DELAYED=delayed,
        STREAM=not constant and wide.nbytes >= STREAMED,
        COUNT=len(parameters) - followed.windowed,
    )
    d_beta = d_threshold = None
    if wants_parameters:
        d_beta, d_threshold = torch.empty((2, size), dtype=state)
    arrays = (
        gs,
        gt,
        _flat(grad_final, state),
        x,
        _flat(mem, state),
        beta.contiguous(),
        threshold.contiguous(),
        wide,
        out_mem if out_mem.numel() == size else buffers.empty((size,), state),
        d_beta,
        d_threshold,
        as_tensor(tuple(parameters), state),
    )
    rows = 5 + steps * (1 if delayed else 2) + (0 if delayed else 1)
    _run(kernel, arrays, rows, _block(rows), size, steps, state, (x_stride, gs_stride, gt_stride))
    if wide is not out:
        out.copy_(wide)
    for target, found in ((out_beta, d_beta), (out_threshold, d_threshold)):
        if found is not None and target.numel() > 0:
            target.copy_(found.view(-1, target.numel()).sum(0))
