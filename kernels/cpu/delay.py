"""The fused CPU backend of `Delay`: each channel of a sequence, its own number of steps later.

Layout: a sequence is `[T, N]`, `N = B * P`, rows contiguous; `lag [P]` and `weights [taps, P]` are
those of the P channels of a sample. The output is `y_t = sum_j weights[j] * x_{t - lag - j}`.

Blocks of channels are divided among threads. A block takes some steps at once, turned in the
caches so that the steps of a channel lie side by side: then a delay is another place to read from,
and a tap is one product of a row. So the input is read once, whatever the delays and however many
taps. Backward is the same in reverse, from the gradient `lag` steps ahead; the products with the
input add up to the weights' gradient, in an order that does not depend on the threads.

That moves 8 bytes per channel-step forward (read x, write y) and 12 backward (read x and the
gradient of y, write that of x) in float32; 16-bit sequences are converted before and after. Saved
for backward: nothing but the inputs. Number formats: float32, or float64 if the input is.
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
from neurospike.kernels.cpu._intrinsics import (
    add_in_any_order,
    address,
    array_at,
    fence,
    prefetch,
    stream,
    take,
)
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, run
from neurospike.kernels.cpu.linear import turn_block
from neurospike.kernels.cpu.linear_scan import _copy
from neurospike.kernels.cpu.scan import GRAIN, STREAMED, rows

BLOCK = 256  # channels at most
CHUNK = 128  # steps at once, or as many as the longest delay
CACHED = 1 << 17  # numbers of a block that stay in the second-level cache
SQUARE = 16  # steps and delays are rounded up to so many, which divide into vectors

# Sizes of a job: steps, at once; channels of a block, of a sample, and in all; taps; the longest
# delay, times two and one more if what is written goes past the caches.
STEPS, ONCE, WIDTH, CHANNELS, COUNT, TAPS, DELAY = range(SIZES, SIZES + 7)
# Arrays of a job, the same ones first in both directions.
X, HISTORY, WEIGHTS, LAG, ENDS, FIRST = range(6)

NUMBER = np.float32(0)
WHOLE = np.int32(0)


def _array(job_at, k):
    """Return the `k`-th array of a job; one of size 0 is not there."""
    return array_of(job_at, k, NUMBER)


def _part(array, start, size):
    """Return `array[start : start + size]`, in a tenth of the time: columns are short."""
    return array_at(address(array, start), size, NUMBER)


def _zero(out):
    """Fill a row with zeros."""
    for i in range(out.size):
        out[i] = 0.0


def _mix(out, first, one, second, other):
    """Sum two taps, each a weight and a row."""
    for i in range(out.size):
        out[i] = first * one[i] + second * other[i]


def _add(out, weight, values):
    """Add a tap."""
    for i in range(out.size):
        out[i] += weight * values[i]


def _dot(one, other):
    """Return the sum of the products of two rows."""
    total = NUMBER
    for i in range(one.size):
        total = add_in_any_order(total, one[i] * other[i])
    return total


def _turn(out, at, out_stride, source, start, stride, steps, n):
    """Write `steps` rows of `n` channels, which begin at `start`, as `n` columns from `at` on."""
    for row in range(0, steps, SQUARE):
        for k in range(row + SQUARE, min(row + 2 * SQUARE, steps)):
            prefetch(source, start + k * stride, n)
        i = max(0, min(row, steps - SQUARE))
        count = min(SQUARE, steps - i)
        turn_block(out, at + i, out_stride, source, start + i * stride, stride, count, n)


def _write(out, t, size, low, turned, once, steps, n, own, streams):
    """Write some steps of a block's channels, which are turned, as rows of a sequence."""
    if not streams:
        turn_block(out, t * size + low, size, turned, 0, once, n, steps)
        return
    block = own.size // SQUARE
    for step in range(0, steps, SQUARE):
        k = max(0, min(step, steps - SQUARE))
        count = min(SQUARE, steps - k)
        turn_block(own, 0, block, turned, k, once, n, count)
        for r in range(count):
            stream(out, (t + k + r) * size + low, _part(own, r * block, n))


def _tap(out, column, at, way, weights, channel, channels, taps):
    """Sum a channel's taps; the first begins at `at` of its column, each next one `way` on."""
    n = out.size
    _mix(
        out,
        weights[channel],
        _part(column, at, n),
        weights[channels + channel],
        _part(column, at + way, n),
    )
    for j in range(2, taps):
        _add(out, weights[j * channels + channel], _part(column, at + j * way, n))


def _end_of(job_at, low, n):
    """Return the step at which the last of a block's samples ends."""
    job = job_of(job_at)
    ends = array_of(job_at, ENDS, WHOLE)
    if ends.size == 0:
        return job[STEPS]
    last = 0
    for sample in range(low // job[CHANNELS], (low + n - 1) // job[CHANNELS] + 1):
        last = max(last, ends[sample])
    return last


def _cut(out, end, t):
    """Set to 0 what of steps from `t` on lies behind the end of a sample."""
    left = max(0, end - t)
    if left < out.size:
        _zero(_part(out, left, out.size - left))


def _forward(job_at):
    job = job_of(job_at)
    x, history, y = _array(job_at, X), _array(job_at, HISTORY), _array(job_at, FIRST)
    weights, lag = _array(job_at, WEIGHTS), array_of(job_at, LAG, WHOLE)
    steps, once, block, size = job[STEPS], job[ONCE], job[WIDTH], job[COUNT]
    channels, delay, streams = job[CHANNELS], job[DELAY] >> 1, job[DELAY] & 1 > 0
    taps, ends = job[TAPS], array_of(job_at, ENDS, WHOLE)
    stride = size if x.size > size else 0
    # Columns: `past` steps before the chunk, and the chunk. Then the output, and rows to stream.
    past = -(-delay // SQUARE) * SQUARE
    height = past + once
    numbers = (height + once + SQUARE) * block
    scratch = _part(_array(job_at, FIRST + 1), take(job, SLOT) * numbers, numbers)
    turned = _part(scratch, height * block, once * block)
    own = _part(scratch, (height + once) * block, SQUARE * block)
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        last = _end_of(job_at, low, n)
        for i in range(n if history.size == 0 else 0):
            _zero(_part(scratch, i * height, past))
        if history.size > 0:
            _turn(scratch, past - delay, height, history, low, size, delay, n)
        for t in range(0, last, once):
            count = min(once, last - t)
            _turn(scratch, past, height, x, t * stride + low, stride, count, n)
            sample, channel = low // channels, low % channels
            for i in range(n):
                column, out = _part(scratch, i * height, height), _part(turned, i * once, count)
                _tap(out, column, past - lag[channel], -1, weights, channel, channels, taps)
                if ends.size > 0:
                    _cut(out, ends[sample], t)
                if t + once < last:
                    _copy(_part(column, 0, past), _part(column, once, past))
                channel += 1
                if channel == channels:
                    sample, channel = sample + 1, 0
            _write(y, t, size, low, turned, once, count, n, own, streams)
        for t in range(last, steps):
            _zero(_part(y, t * size + low, n))
        part = take(job, NEXT)
    fence()


def _backward_chunk(job_at, columns, inputs, turned, sums, low, n, t, count):
    """Take some steps from `t` on, whose gradient of the output and input are turned, back.

    `columns` hold `count` steps of that gradient and what comes after them.
    """
    job = job_of(job_at)
    weights, lag = _array(job_at, WEIGHTS), array_of(job_at, LAG, WHOLE)
    ends = array_of(job_at, ENDS, WHOLE)
    channels, taps, once, block = job[CHANNELS], job[TAPS], job[ONCE], job[WIDTH]
    height = columns.size // block
    sample, channel = low // channels, low % channels
    for i in range(n):
        column = _part(columns, i * height, height)
        if ends.size > 0 and t >= 0:
            _cut(_part(column, 0, count), ends[sample], t)
            _cut(_part(inputs, i * once, count), ends[sample], t)  # which may be no number
        if turned.size > 0:
            out = _part(turned, i * once, count)
            _tap(out, column, lag[channel], 1, weights, channel, channels, taps)
        if sums.size > 0:
            x = _part(inputs, i * once, count)
            for j in range(taps):
                sums[j * block + i] += _dot(_part(column, lag[channel] + j, count), x)
        channel += 1
        if channel == channels:
            sample, channel = sample + 1, 0


def _next(columns, height, once, n):
    """Make of a chunk what comes after the one before it, whose own gradient is 0 as yet."""
    for i in range(n):
        column = _part(columns, i * height, height)
        _copy(_part(column, once, height - once), _part(column, 0, height - once))
        _zero(_part(column, 0, once))


def _backward(job_at):
    job = job_of(job_at)
    x, history, grad = _array(job_at, X), _array(job_at, HISTORY), _array(job_at, FIRST)
    out_x, out_history = _array(job_at, FIRST + 1), _array(job_at, FIRST + 2)
    out_weights = _array(job_at, FIRST + 3)
    steps, once, block, size = job[STEPS], job[ONCE], job[WIDTH], job[COUNT]
    delay, streams = job[DELAY] >> 1, job[DELAY] & 1 > 0
    x_stride, grad_stride = size if x.size > size else 0, size if grad.size > size else 0
    # Columns: a chunk of the output's gradient, and what comes after it. Then the input's gradient,
    # the input, rows to stream, and the sums.
    after = -(-delay // SQUARE) * SQUARE
    height = once + after
    taps = job[TAPS] if out_weights.size > 0 else 0
    numbers = (height + 2 * once + SQUARE + job[TAPS]) * block
    scratch = _part(_array(job_at, FIRST + 4), take(job, SLOT) * numbers, numbers)
    columns = _part(scratch, 0, height * block)
    turned = _part(scratch, height * block, once * block if out_x.size > 0 else 0)
    before = _part(scratch, height * block, once * block if out_history.size > 0 else 0)
    inputs = _part(scratch, (height + once) * block, once * block)
    own = _part(scratch, (height + 2 * once) * block, SQUARE * block)
    sums = _part(scratch, (height + 2 * once + SQUARE) * block, taps * block)
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        last = _end_of(job_at, low, n)
        begin = max(0, (last - 1) // once * once)
        for i in range(n):  # nothing comes after the end
            _zero(_part(columns, i * height + last - begin, height - last + begin))
        _zero(sums)
        for t in range(last, steps if out_x.size > 0 else 0):
            _zero(_part(out_x, t * size + low, n))
        for t in range(begin, -1, -once):
            count = min(once, last - t)
            _turn(columns, 0, height, grad, t * grad_stride + low, grad_stride, count, n)
            if taps > 0:
                _turn(inputs, 0, once, x, t * x_stride + low, x_stride, count, n)
            _backward_chunk(job_at, columns, inputs, turned, sums, low, n, t, count)
            if out_x.size > 0:
                _write(out_x, t, size, low, turned, once, count, n, own, streams)
            if t > 0 or history.size > 0:
                _next(columns, height, once, n)
        if history.size > 0:
            _zero(inputs)
            _turn(inputs, once - delay, once, history, low, size, delay, n)
            _backward_chunk(job_at, columns, inputs, before, sums, low, n, -once, once)
            if out_history.size > 0:
                late = _part(before, once - delay, before.size - once + delay)
                _write(out_history, 0, size, low, late, once, delay, n, own, False)
        for j in range(taps):
            _copy(_part(out_weights, j * size + low, n), _part(sums, j * block, n))
        part = take(job, NEXT)
    fence()


@functools.cache
def _compiled(kind: str, double: bool) -> Any:
    """Return a kernel compiled for a number format."""
    number = np.float64 if double else np.float32
    names: dict[str, Any] = {"WHOLE": WHOLE, "TILE": 64 // number(0).itemsize}
    return compiled(_forward if kind == "forward" else _backward, names, number)


def _run(
    kind: str,
    shape: Sequence[int],
    given: Sequence[Tensor | None],
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    others: Sequence[Tensor | None],
    target: Tensor | None,
) -> None:
    """Run a kernel on `given`, which are input and history, and `others`, its further arrays.

    shape: `[T, B, *F]`; target: the sequence that it writes, whose size decides whether that goes
    past the caches.
    """
    state, taps, channels = weights.dtype, len(weights), lag.numel()
    steps, size = shape[0], math.prod(shape[1:])
    if size == 0:
        return
    longest = _rounded(max_delay)
    once = max(longest, min(CHUNK, _rounded(steps)))
    each = longest + 3 * once + SQUARE + taps
    block = min(BLOCK, max(SQUARE, CACHED // each // SQUARE * SQUARE))
    streams = target is not None and target.nbytes >= STREAMED
    ends = None if lengths is None else lengths.clamp(0, steps).to(torch.int32)
    sizes = (steps, once, block, channels, size, taps, 2 * max_delay + streams)
    threads = parallel.threads(size * steps // GRAIN, -(-size // block))
    kernel = _compiled(kind, state == torch.float64)
    run(kernel, (*given, weights, lag, ends, *others), sizes, threads, each * block, state)


def _rounded(count: int) -> int:
    """Return a number of steps rounded up to squares, at least one."""
    return max(1, -(-count // SQUARE)) * SQUARE


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
    _run("forward", current.shape, given, lag, weights, lengths, max_delay, (wide,), wide)
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
    _run("backward", current.shape, given, lag, weights, lengths, max_delay, others, wide)
    for target, found in ((out, wide), (out_history, wide_history)):
        if target is not None and found is not None and found is not target:
            target.copy_(found)
    if out_weights is not None and each is not None:
        torch.sum(each, 1, out=out_weights)
