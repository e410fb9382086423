"""The fused CPU backend of `Delay`: each channel of a sequence, its own number of steps later.

Layout: a sequence is `[T, N]`, `N = B * P`, rows contiguous; `lag [P]` and `weights [taps, P]` are
those of the P channels of a sample. The output is `y_t = sum_j weights[j] * x_{t - lag - j}`.

Blocks of channels are divided among threads. The last rows of a block's input lie in a ring in the
caches, from which each channel picks the one that is `lag` steps old; what it picked at the steps
before are its other taps. So the input is read once, whatever the delays and however many taps.
Backward is the same in reverse: each channel picks the gradient that is `lag` steps ahead, and the
products of what was picked with the input add up to the weights' gradient.

That moves 8 bytes per channel-step forward (read x, write y) and 12 backward (read x and the
gradient of y, write that of x) in float32; 16-bit sequences are converted before and after. Saved
for backward: nothing but the inputs. Number formats: float32, or float64 if the input is.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers, parallel
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, row_of, run
from neurospike.kernels.cpu._memory import fence, prefetch, stream, take
from neurospike.kernels.cpu.scan import AHEAD, GRAIN, STREAMED, rows

BLOCK = 512  # channels at most whose rows stay in the second-level cache
CACHED = 1 << 16  # numbers in them

# Sizes of a job: steps; channels of a block, of a sample, and in all; rows of the ring; taps;
# whether to write past the caches.
STEPS, WIDTH, CHANNELS, COUNT, RING, TAPS, STREAMS = range(SIZES, SIZES + 7)
# Arrays of a job, the same ones first in both directions.
X, HISTORY, WEIGHTS, LAG, ENDS, PLACES, FIRST = range(7)

NUMBER = np.float32(0)
WHOLE = np.int32(0)


def _array(job_at, k):
    """Return the `k`-th array of a job; one of size 0 is not there."""
    return array_of(job_at, k, NUMBER)


def _zero(out):
    """Fill a row with zeros."""
    for i in range(out.size):
        out[i] = 0.0


def _copy(out, values):
    """Copy a row."""
    for i in range(out.size):
        out[i] = values[i]


def _repeat(out, values, start):
    """Write the values of the channels, which repeat for every sample, from channel `start` on."""
    k = start % values.size
    for i in range(out.size):
        out[i] = values[k]
        k += 1
        if k == values.size:
            k = 0


def _cut(row, ends, t):
    """Set to 0 what lies behind the end of its sample."""
    for i in range(row.size):
        row[i] = row[i] if t < ends[i] else 0.0


def _pick(picked, ring, newest, offsets):
    """Pick of each column of the ring the row that is the channel's lag older than the newest."""
    for i in range(picked.size):
        at = newest - offsets[i]
        at += ring.size if at < 0 else 0
        picked[i] = ring[at]


def _mix(out, first, one, second, other):
    """Sum two taps, each a weight and what was picked."""
    for i in range(out.size):
        out[i] = first[i] * one[i] + second[i] * other[i]


def _add_products(out, one, other):
    """Add the products of two rows."""
    for i in range(out.size):
        out[i] += one[i] * other[i]


def _lay(job_at, scratch, places, low, n):
    """Begin a block from channel `low` on; return the step at which the last of its samples ends.

    Rows of the scratch: the ring, what was picked at the last steps, the weights, their gradients,
    and one to write from; all but the weights begin at 0.
    """
    job = job_of(job_at)
    block, channels, taps = job[WIDTH], job[CHANNELS], job[TAPS]
    _zero(scratch)
    weights, weights_at = _array(job_at, WEIGHTS), (job[RING] + taps) * block
    for j in range(taps):
        row = row_of(scratch, weights_at + j * block, n)
        _repeat(row, row_of(weights, j * channels, channels), low)
    offsets, ends = row_of(places, 0, n), row_of(places, block, n)
    _repeat(offsets, array_of(job_at, LAG, WHOLE), low)
    for i in range(n):
        offsets[i] = offsets[i] * block - i
    lengths = array_of(job_at, ENDS, WHOLE)
    if lengths.size == 0:
        return job[STEPS]
    last = 0
    for i in range(n):
        ends[i] = lengths[(low + i) // channels]
        last = max(last, ends[i])
    return last


def _tap(job_at, scratch, places, step, out):
    """Sum the taps of every channel at a step, whose row of the ring is written.

    Steps are counted from the first of the pass, forward or backward.
    """
    job = job_of(job_at)
    block, ring, taps, n = job[WIDTH], job[RING], job[TAPS], out.size
    picked, weights = ring * block, (ring + taps) * block
    now = row_of(scratch, picked + step % taps * block, n)
    before = row_of(scratch, picked + (step - 1) % taps * block, n)
    newest = step % ring * block
    _pick(now, row_of(scratch, 0, ring * block), newest, row_of(places, 0, n))
    first, second = row_of(scratch, weights, n), row_of(scratch, weights + block, n)
    _mix(out, first, now, second, before)
    for j in range(2, taps):
        older = row_of(scratch, picked + (step - j) % taps * block, n)
        _add_products(out, row_of(scratch, weights + j * block, n), older)


def _rows_of(job_at):
    """Return how many numbers a block's rows are, and how many of the first come before step 0."""
    job = job_of(job_at)
    numbers = (job[RING] + 3 * job[TAPS] + 1) * job[WIDTH]
    return numbers, _array(job_at, HISTORY).size // job[COUNT]


def _forward(job_at):
    job = job_of(job_at)
    x, history, y = _array(job_at, X), _array(job_at, HISTORY), _array(job_at, FIRST)
    steps, block, size, streams = job[STEPS], job[WIDTH], job[COUNT], job[STREAMS] > 0
    stride = size if x.size > size else 0
    is_cut = array_of(job_at, ENDS, WHOLE).size > 0
    numbers, before = _rows_of(job_at)
    slot = take(job, SLOT)
    scratch = row_of(_array(job_at, FIRST + 1), slot * numbers, numbers)
    places = row_of(array_of(job_at, PLACES, WHOLE), slot * 2 * block, 2 * block)
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        last = _lay(job_at, scratch, places, low, n)
        own = row_of(scratch, numbers - block, n)
        for t in range(-before, last):
            row = row_of(scratch, (t + before) % job[RING] * block, n)
            if t < 0:
                _copy(row, row_of(history, (t + before) * size + low, n))
                _tap(job_at, scratch, places, t + before, own)
                continue
            if t + AHEAD < last:
                prefetch(x, (t + AHEAD) * stride + low, n)
            _copy(row, row_of(x, t * stride + low, n))
            out = own if streams else row_of(y, t * size + low, n)
            _tap(job_at, scratch, places, t + before, out)
            if is_cut:
                _cut(out, row_of(places, block, n), t)
            if streams:
                stream(y, t * size + low, out)
        for t in range(last, steps):
            _zero(row_of(y, t * size + low, n))
        part = take(job, NEXT)
    fence()


def _backward(job_at):
    job = job_of(job_at)
    x, history, grad = _array(job_at, X), _array(job_at, HISTORY), _array(job_at, FIRST)
    out_x, out_history = _array(job_at, FIRST + 1), _array(job_at, FIRST + 2)
    out_weights = _array(job_at, FIRST + 3)
    steps, block, size, streams = job[STEPS], job[WIDTH], job[COUNT], job[STREAMS] > 0
    taps, sums = job[TAPS], (job[RING] + 2 * job[TAPS]) * block
    x_stride, grad_stride = size if x.size > size else 0, size if grad.size > size else 0
    is_cut = array_of(job_at, ENDS, WHOLE).size > 0
    numbers, before = _rows_of(job_at)
    slot = take(job, SLOT)
    scratch = row_of(_array(job_at, FIRST + 4), slot * numbers, numbers)
    places = row_of(array_of(job_at, PLACES, WHOLE), slot * 2 * block, 2 * block)
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        last = _lay(job_at, scratch, places, low, n)
        own = row_of(scratch, numbers - block, n)
        for t in range(last, steps):
            if out_x.size > 0:
                _zero(row_of(out_x, t * size + low, n))
        for t in range(last - 1, -before - 1, -1):
            step = last - 1 - t
            row = row_of(scratch, step % job[RING] * block, n)
            if t < 0:
                _zero(row)
            else:
                if t >= AHEAD:
                    prefetch(grad, (t - AHEAD) * grad_stride + low, n)
                    prefetch(x, (t - AHEAD) * x_stride + low, n if out_weights.size > 0 else 0)
                _copy(row, row_of(grad, t * grad_stride + low, n))
                if is_cut:
                    _cut(row, row_of(places, block, n), t)
            out = own
            if t >= 0 and out_x.size > 0 and not streams:
                out = row_of(out_x, t * size + low, n)
            if t < 0 and out_history.size > 0:
                out = row_of(out_history, (t + before) * size + low, n)
            _tap(job_at, scratch, places, step, out)
            if t >= 0 and out_x.size > 0 and streams:
                stream(out_x, t * size + low, out)
            if out_weights.size > 0:
                values = row_of(x, t * x_stride + low, n)
                if t < 0:
                    values = row_of(history, (t + before) * size + low, n)
                for j in range(taps):
                    picked = row_of(scratch, (job[RING] + (step - j) % taps) * block, n)
                    _add_products(row_of(scratch, sums + j * block, n), picked, values)
        if out_weights.size > 0:
            for j in range(taps):
                _copy(
                    row_of(out_weights, j * size + low, n), row_of(scratch, sums + j * block, n)
                )
        part = take(job, NEXT)
    fence()


@functools.cache
def _compiled(kind: str, double: bool) -> Any:
    """Return a kernel compiled for a number format."""
    names: dict[str, Any] = {"WHOLE": WHOLE}
    function = _forward if kind == "forward" else _backward
    return compiled(function, names, np.float64 if double else np.float32)


def _run(
    kind: str,
    current: Tensor,
    given: Sequence[Tensor | None],
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    others: Sequence[Tensor | None],
    target: Tensor | None,
) -> None:
    """Run a kernel on `given`, which are input and history, and `others`, its further arrays.

    target: what it writes at every step, which decides whether it goes past the caches.
    """
    state, taps = weights.dtype, len(weights)
    size, channels = current[0].numel() if len(current) else 0, lag.numel()
    size = size or (0 if given[1] is None else given[1][0].numel())
    if size == 0:
        return
    ring = max_delay + 2 - taps
    each = ring + 3 * taps + 1
    block = min(BLOCK, max(64, CACHED // each // 64 * 64))
    steps = len(current)
    threads = parallel.threads(size * steps // GRAIN, -(-size // block))
    ends = None if lengths is None else lengths.clamp(0, steps).to(torch.int32)
    places = torch.empty(threads * 2 * block, dtype=torch.int32)
    arrays = (*given, weights, lag, ends, places, *others)
    streams = int(target is not None and target.nbytes >= STREAMED)
    sizes = (steps, block, channels, size, ring, taps, streams)
    kernel = _compiled(kind, state == torch.float64)
    run(kernel, arrays, sizes, threads, each * block, state)


def _wide(out: Tensor | None, state: torch.dtype) -> Tensor | None:
    """Return where a kernel writes what goes to `out`: itself, or memory in the state's format."""
    return out if out is None or out.dtype == state else buffers.empty(out.shape, state)


def forward(
    *,
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    out: Tensor,
) -> None:
    """Fill `out` `[T, B, *F]`; see `neurospike.backend.protocols.Delay`."""
    state = weights.dtype
    wide = _wide(out, state)
    given = (rows(current, state), None if history is None else history.to(state).contiguous())
    _run("forward", current, given, lag, weights, lengths, max_delay, (wide,), wide)
    if wide is not None and wide is not out:
        out.copy_(wide)


def backward(
    *,
    grad: Tensor,
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    out: Tensor | None,
    out_history: Tensor | None,
    out_weights: Tensor | None,
) -> None:
    """Fill the gradients that are asked for; see `neurospike.backend.protocols.Delay`."""
    state, (taps, channels) = weights.dtype, weights.shape
    wide, wide_history = _wide(out, state), _wide(out_history, state)
    asks_before = out_history is not None or out_weights is not None
    before = history if asks_before else None
    given = (
        rows(current, state) if out_weights is not None else None,
        None if before is None else before.to(state).contiguous(),
    )
    batch = current.shape[1]
    each = None
    if out_weights is not None:
        each = torch.zeros(taps, batch, channels, dtype=state)
    others = (rows(grad, state), wide, wide_history, each)
    _run("backward", current, given, lag, weights, lengths, max_delay, others, wide)
    for target, found in ((out, wide), (out_history, wide_history)):
        if target is not None and found is not None and found is not target:
            target.copy_(found)
    if out_weights is not None and each is not None:
        torch.sum(each, 1, out=out_weights)
