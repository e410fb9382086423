"""The fused CPU backend of `Delay`: each channel of a sequence, its own number of steps later.

Layout: a sequence is `[T, N]`, `N = B * P`, rows contiguous; `lag [P]` and `weights [taps, P]` are
those of the P channels of a sample. The output is `y_t = sum_j weights[j] * x_{t - lag - j}`.

Blocks of channels are divided among threads, and go through time a chunk of a few steps at once
(`_late`): so the input is read once, in the order in which it lies in memory, whatever the delays
and however many taps. The backward pass does the same from the last step to the first with the
output's gradient, and gets the input's; the products with the input add up to the weights'
gradient, in an order that does not depend on the threads.

That moves 8 bytes per channel-step forward (read x, write y) and 12 backward (read x and the
gradient of y, write that of x) in float32. Saved for backward: nothing but the inputs. Number
formats: float32, or float64 if the input is; sequences of 16 bits are read and written as such.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers, parallel
from neurospike.kernels.cpu import _halves, _late
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._function import LINE
from neurospike.kernels.cpu._intrinsics import address, array_at, call, fence, take
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, run
from neurospike.kernels.cpu._sequences import ALIGNED, STREAMED, rows
from neurospike.kernels.cpu.scan import GRAIN

BLOCK = 528  # channels that are taken through time together, at most
CACHED = 1 << 17  # numbers of scratch that stay in the second-level cache
CHUNK, FINE = _late.CHUNK, _late.FINE

# Sizes of a job: steps; channels of a block, of a sample, and in all; taps; the longest delay, and
# the bits of the longest lag, which is that without the taps; 1 to go from the first step to the
# last, -1 for the reverse. Then addresses of functions of `_late`: for a chunk that is read and
# written in place, and for one that is copied to and from scratch.
STEPS, WIDTH, CHANNELS, COUNT, TAPS, DELAY, STAGES, WAY, INSIDE, EDGE = range(SIZES, SIZES + 10)
# Arrays of a job: the sequence that is delayed, the one that it is multiplied with for the sums,
# and the one that is written, each followed by the steps before its first; and the sums.
SOURCE, SOURCE_BEFORE, GIVEN, GIVEN_BEFORE, OUT, OUT_BEFORE, SUMS = range(7)
WEIGHTS, LAG, ENDS, SCRATCH = range(7, 11)

# Compile-time constants of the kernel, rebound for each number format.
NUMBER = np.float32(0)
SEQUENCE = np.float32(0)  # format in memory; 16-bit numbers are copied as integers
WHOLE = np.int32(0)
LANES = 16


def _array(job_at, k):
    """Return the `k`-th array of a job, in the state's format; size 0 if it is absent."""
    return array_of(job_at, k, NUMBER)


def _sequence(job_at, k):
    """Return the `k`-th array of a job, a sequence in its format; size 0 if it is absent."""
    return array_of(job_at, k, SEQUENCE)


def _part(array, start, size):
    """Return `array[start : start + size]` without checking bounds."""
    return array_at(address(array, start), size, NUMBER)


def _piece(sequence, start, size):
    """Return `sequence[start : start + size]` without checking bounds."""
    return array_at(address(sequence, start), size, SEQUENCE)


def _zero(out):
    """Fill a row with zeros."""
    for i in range(out.size):
        out[i] = 0.0


def _copy(out, values):
    """Copy as many numbers as `out` has."""
    for i in range(out.size):
        out[i] = values[i]


def _ends_of(job_at, low, n):
    """Return the earliest and the latest step at which a sample of a block ends."""
    job = job_of(job_at)
    ends, steps = array_of(job_at, ENDS, WHOLE), job[STEPS]
    if ends.size == 0:
        return steps, steps
    first, last = steps, 0
    for sample in range(low // job[CHANNELS], (low + n - 1) // job[CHANNELS] + 1):
        first, last = min(first, ends[sample]), max(last, ends[sample])
    return first, last


def _constants(job_at, scratch, low, n):
    """Write rows of scratch: the bits of a block's lags, and then the weights of its taps."""
    job = job_of(job_at)
    weights, lag = _array(job_at, WEIGHTS), array_of(job_at, LAG, WHOLE)
    channels, stages, block = job[CHANNELS], job[STAGES], job[WIDTH]
    i = 0
    while i < n:
        channel = (low + i) % channels
        count = min(n - i, channels - channel)
        lags = array_at(address(lag, channel), count, WHOLE)
        for k in range(stages):
            row = _part(scratch, k * block + i, count)
            for c in range(count):
                row[c] = NUMBER + ((lags[c] >> k) & 1)
        for j in range(job[TAPS]):
            row = _part(scratch, (stages + j) * block + i, count)
            _copy(row, _part(weights, j * channels + channel, count))
        i += count


def _read(job_at, rows, array, before, begin, low, n):
    """Copy a chunk of a sequence, from step `begin` on, into rows of scratch.

    The array `before` holds the steps before the first, if it is present. Rows are zeros after the
    end of a sample, where nothing holds earlier steps, and where the sequence is absent.
    """
    job = job_of(job_at)
    sequence, history = _sequence(job_at, array), _sequence(job_at, before)
    block, size, delay = job[WIDTH], job[COUNT], job[DELAY]
    stride = size if sequence.size > size else 0
    for r in range(CHUNK):
        t = begin + job[WAY] * r
        row = _piece(rows, r * block, n)
        if t >= 0 and t < job[STEPS] and sequence.size > 0:
            _copy(row, _piece(sequence, t * stride + low, n))
            _cut(job_at, row, low, t)
        elif t < 0 and t >= -delay and history.size > 0:
            _copy(row, _piece(history, (t + delay) * size + low, n))
        else:
            _zero(row)


def _write(job_at, rows, begin, low, n):
    """Copy a chunk in rows of scratch to the output, from step `begin` on."""
    job = job_of(job_at)
    out, before = _sequence(job_at, OUT), _sequence(job_at, OUT_BEFORE)
    block, size, delay = job[WIDTH], job[COUNT], job[DELAY]
    for r in range(CHUNK):
        t = begin + job[WAY] * r
        row = _piece(rows, r * block, n)
        if t >= 0 and t < job[STEPS] and out.size > 0:
            _cut(job_at, row, low, t)
            _copy(_piece(out, t * size + low, n), row)
        elif t < 0 and t >= -delay and before.size > 0:
            _copy(_piece(before, (t + delay) * size + low, n), row)


def _cut(job_at, row, low, t):
    """Set a row of step `t` to 0 for those samples that have ended."""
    ends, channels = array_of(job_at, ENDS, WHOLE), job_of(job_at)[CHANNELS]
    if ends.size == 0:
        return
    i = 0
    while i < row.size:
        sample = (low + i) // channels
        count = min(row.size, (sample + 1) * channels - low) - i
        if t >= ends[sample]:
            _zero(_piece(row, i, count))
        i += count


def _delay(job_at):
    job = job_of(job_at)
    source, given, out = _sequence(job_at, SOURCE), _sequence(job_at, GIVEN), _sequence(job_at, OUT)
    steps, block, size, taps, way = job[STEPS], job[WIDTH], job[COUNT], job[TAPS], job[WAY]
    source_stride = way * size if source.size > size else 0
    given_stride = way * size if given.size > size else 0
    # Rows of scratch: bits, weights, the delayed chunk and the steps that taps reach back, sums,
    # rings; then a chunk of each sequence, for those not read or written in place.
    stages = job[STAGES]
    recent = (stages + taps) * block
    sums = recent + (taps - 1 + CHUNK) * block
    rings = sums + taps * block
    read = rings + max(CHUNK, 1 << stages) * block
    products, written = read + CHUNK * block, read + 2 * CHUNK * block
    numbers = written + CHUNK * block
    scratch = _part(_array(job_at, SCRATCH), take(job, SLOT) * numbers, numbers)
    own = (
        address(scratch, rings),
        address(scratch, 0),
        address(scratch, stages * block),
        address(scratch, recent),
        address(scratch, sums),
    )
    part = take(job, NEXT)
    while part * block < size:
        low = part * block
        n = min(block, size - low)
        lines = (n + LANES - 1) // LANES * LANES
        least, last = _ends_of(job_at, low, n)
        for t in range(last, steps if out.size > 0 else 0):
            _zero(_piece(out, t * size + low, n))
        in_place = n % LANES == 0 and (out.size > 0 or _sequence(job_at, OUT_BEFORE).size == 0)
        begin, end = last - 1, 0
        if _sequence(job_at, GIVEN_BEFORE).size > 0 or _sequence(job_at, OUT_BEFORE).size > 0:
            end = -job[DELAY]
        if way > 0:
            begin, end = 0, last - 1
            if _sequence(job_at, SOURCE_BEFORE).size > 0:
                begin = -job[DELAY]
        chunks = ((end - begin) * way + CHUNK) // CHUNK
        _zero(_part(scratch, 0, rings + CHUNK * block))
        for k in range(FINE, stages):  # as much of each bit's ring as so many chunks use
            _zero(_part(scratch, rings + (block << k), min(1 << k, chunks * CHUNK) * block))
        _constants(job_at, scratch, low, n)
        for chunk in range(chunks):
            t = begin + way * chunk * CHUNK
            other = t + way * (CHUNK - 1)
            inside = in_place and min(t, other) >= 0 and max(t, other) < least
            if inside:
                places = (
                    address(source, t * abs(source_stride) + low),
                    address(given, t * abs(given_stride) + low),
                    address(out, t * size + low),
                )
                strides = (source_stride, given_stride, way * size)
            else:
                rows = _piece(scratch, read, CHUNK * block)
                _read(job_at, rows, SOURCE, SOURCE_BEFORE, t, low, n)
                rows = _piece(scratch, products, CHUNK * block)
                _read(job_at, rows, GIVEN, GIVEN_BEFORE, t, low, n)
                places = (
                    address(scratch, read),
                    address(scratch, products),
                    address(scratch, written),
                )
                strides = (block, block, block)
            call(
                job[INSIDE] if inside else job[EDGE],
                places + own + strides + (chunk, taps, lines, block),
            )
            if not inside:
                _write(job_at, _piece(scratch, written, CHUNK * block), t, low, n)
        target = _array(job_at, SUMS)
        for j in range(taps if target.size > 0 else 0):
            _copy(_part(target, j * size + low, n), _part(scratch, sums + j * block, n))
        part = take(job, NEXT)
    fence()


@functools.cache
def _compiled(double: bool, narrow: bool) -> Any:
    """Return the kernel compiled for a number format, and for sequences in it or of 16 bits."""
    number = np.float64 if double else np.float32
    names: dict[str, Any] = {"WHOLE": WHOLE, "LANES": LINE // number(0).itemsize}
    names["SEQUENCE"] = np.uint16(0) if narrow else number(0)
    return compiled(_delay, names, number)


def _run(
    way: int,
    current: Tensor,
    arrays: Sequence[Tensor | None],
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
) -> None:
    """Run the kernel forward in time (`way` 1) or backward (-1); `arrays`: a job's first seven.

    Sequences have the shape and the format of `current` `[T, B, *F]`.
    """
    state, taps, channels = weights.dtype, len(weights), lag.numel()
    steps, size = current.shape[0], math.prod(current.shape[1:])
    if size == 0:
        return
    _, _, given, _, out, before, _ = arrays
    form = _halves.FORMS.get(current.dtype, "")
    double, lanes = state == torch.float64, LINE // state.itemsize
    stages = (max_delay + 1 - taps).bit_length()  # bits of the longest lag; taps reach back further
    each = stages + 3 * taps - 1 + 4 * CHUNK + _late.ring_rows(stages)
    most = max(lanes, min(BLOCK, CACHED // each))
    threads = parallel.threads(size * steps // GRAIN, -(-size // lanes))
    parts = -(-max(1, -(-size // most)) // threads) * threads
    lines = -(-size // (parts * lanes))
    block = lanes * (lines + 1 - lines % 2)  # odd: rows 2^k apart would share few cache sets
    ends = None if lengths is None else lengths.clamp(0, steps).to(torch.int32)
    kind = (double, stages, out is not None or before is not None, given is not None)
    past = 0
    if out is not None and out.nbytes >= STREAMED:
        place = math.gcd(out.data_ptr(), size * out.itemsize, lanes * out.itemsize)
        past = place if place >= ALIGNED else 0
    run(
        _compiled(double, form != ""),
        (*arrays, weights, lag, ends),
        (steps, block, channels, size, taps, max_delay, stages, way)
        + (_late.late(*kind, past, form), _late.late(*kind, 0, form)),
        threads,
        each * block,
        state,
    )


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
    before = None if history is None else history.contiguous()
    arrays = (rows(current, current.dtype), before, None, None, out, None, None)
    _run(1, current, arrays, lag, weights, lengths, max_delay)


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
    """Fill the gradients that are wanted; see `neurospike.backend.protocols.Delay`."""
    state, (taps, channels) = weights.dtype, weights.shape
    x = before = each = None
    if out_weights is not None:
        each = buffers.empty((taps, current.shape[1], channels), state)
        x = rows(current, current.dtype)
        before = None if history is None else history.contiguous()
    arrays = (rows(grad, current.dtype), None, x, before, out, out_history, each)
    _run(-1, current, arrays, lag, weights, lengths, max_delay)
    if out_weights is not None and each is not None:
        torch.sum(each, 1, out=out_weights)
