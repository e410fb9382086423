"""Linear layers of spikes on the CPU: add up the rows of active inputs instead of multiplying.

Layout: spikes `[M, K]`, weight `[N, K]`. Which inputs are active is found once, as one bit each
(kernels/cpu/events.py); the forward product goes through the bits by rows, the weight's gradient
by columns, after a transposition of the bits. Both are the same kind of sum: a row of the result is
the sum of those rows of a matrix (the transposed weight; the gradient) whose numbers are in a list.
It is computed by panels of columns (`PANEL_BYTES`), so that the matrix's panel stays in the
second-level cache and the sums in registers.

Every sum has one order, whatever the number of threads; nothing is added atomically. Formats: sums
in the weight's, float32 or float64; spikes in that one, bool or uint8. The values of active inputs
are read, and rows multiplied by them, only if some are not 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._intrinsics import prefetch_line, sum_graded_rows, sum_rows, take, turn
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, run
from neurospike.kernels.cpu.events import FORMATS, WORD, Found, find, listed, transposed, words
from neurospike.kernels.cpu.events import threads as threads_for

__all__ = ["backward", "find", "forward", "words"]  # what `neurospike.layers.spike_linear` needs

PANEL_BYTES = 256  # columns of a result that are summed together, in bytes
CHUNK = 256  # rows of a gradient whose panel, of 64 kB, is summed while it is in a cache
AHEAD = 8  # rows ahead that a gradient or an output is prefetched
PARTS = 4  # parts per thread that sums are divided into, if there are so many

# Compile-time constants of a kernel, rebound for each variant.
NUMBER = np.float32(0)
INDEX = np.int32(0)
PANEL = 64
TILE = 16  # rows and columns that are transposed together: numbers of 64 bytes
GRADED = False
GROUPED = False


def turn_block(out, at, out_stride, source, start, stride, rows, columns):
    """Write a block of `source`, `rows` by `columns`, transposed to `out` from `at` on."""
    if rows < TILE or columns < TILE:
        for i in range(rows):
            for k in range(columns):
                out[at + k * out_stride + i] = source[start + i * stride + k]
        return
    for row in range(0, rows, TILE):
        i = min(row, rows - TILE)  # the last squares overlap those before them
        for column in range(0, columns, TILE):
            k = min(column, columns - TILE)
            turn(out, at + k * out_stride + i, out_stride, source, start + i * stride + k, stride)


def _pack(job_at):
    """Copy a weight `[N, K]` to panels `[N / PANEL, K, PANEL]`, the last padded with zeros."""
    job = job_of(job_at)
    outputs, width, panels, blocks = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    weight, out = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    part = take(job, NEXT)
    while part < panels * blocks:
        panel, block = part // blocks, part % blocks
        low, high = block * width // blocks, (block + 1) * width // blocks
        n = min(PANEL, outputs - panel * PANEL)
        begin = panel * PANEL * width
        turn_block(out, begin + low * PANEL, PANEL, weight, begin + low, width, n, high - low)
        for k in range(low, high):
            for j in range(n, PANEL):
                out[begin + k * PANEL + j] = 0.0
        part = take(job, NEXT)


def _tabulate(table, row, inputs):
    """Complete a table of sums of four inputs, 16 rows: row `n` sums those whose bits are 1 in `n`.

    Rows 1, 2, 4 and 8 hold the inputs themselves, of which there may be fewer than four.
    """
    for n in range(3, 1 << min(inputs, 4)):
        one, rest = n & -n, n & (n - 1)
        if rest != 0:
            to, first, second = (row + n) * PANEL, (row + one) * PANEL, (row + rest) * PANEL
            for j in range(PANEL):
                table[to + j] = table[first + j] + table[second + j]


def _forward(job_at):
    """Add to the bias the rows of panels `[P, K, PANEL]` in each list, for a result `[M, N]`."""
    job = job_of(job_at)
    rows, outputs, width, panels, blocks = (
        job[SIZES],
        job[SIZES + 1],
        job[SIZES + 2],
        job[SIZES + 3],
        job[SIZES + 4],
    )
    packed, bias = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    starts, places, values = (
        array_of(job_at, 2, 0),
        array_of(job_at, 3, INDEX),
        array_of(job_at, 4, NUMBER),
    )
    out, scratch = array_of(job_at, 5, NUMBER), array_of(job_at, 6, NUMBER)
    lines = 64 // out.itemsize
    tables = (width + 3) // 4 * 16 if GROUPED else 0
    own = take(job, SLOT) * (2 + tables) * PANEL
    first, last = scratch[own : own + PANEL], scratch[own + PANEL : own + 2 * PANEL]
    table = scratch[own + 2 * PANEL : own + (2 + tables) * PANEL]
    part = take(job, NEXT)
    while part < panels * blocks:
        panel, block = part // blocks, part % blocks
        low = panel * PANEL
        n = min(PANEL, outputs - low)
        for j in range(PANEL):
            first[j] = bias[low + j] if bias.size > 0 and j < n else 0.0
        panel_rows = packed[low * width : (low + PANEL) * width]
        if GROUPED:
            for k in range(width):
                at = (k // 4 * 16 + (1 << (k & 3))) * PANEL
                sum_rows(table, at, panel_rows, k * PANEL, panel_rows, places, 0, 0, PANEL)
            for k in range(0, width, 4):
                _tabulate(table, k * 4, width - k)
        matrix = table if GROUPED else panel_rows
        for row in range(block * rows // blocks, (block + 1) * rows // blocks):
            at = row * outputs + low
            whole = n == PANEL
            for j in range(0, PANEL, lines):
                prefetch_line(out, at + AHEAD * outputs + j)
            target = out[at : at + n] if whole else last
            if GRADED:
                sum_graded_rows(
                    target, 0, first, 0, matrix, places, starts[row], starts[row + 1], values, PANEL
                )
            else:
                sum_rows(target, 0, first, 0, matrix, places, starts[row], starts[row + 1], PANEL)
            if not whole:
                for j in range(n):
                    out[at + j] = last[j]
        part = take(job, NEXT)


def _backward(job_at):
    """Sum the rows of the gradient `[M, N]` in each input's lists, for the weight's `[N, K]`."""
    job = job_of(job_at)
    rows, outputs, width, panels, blocks, chunk, padded = (
        job[SIZES],
        job[SIZES + 1],
        job[SIZES + 2],
        job[SIZES + 3],
        job[SIZES + 4],
        job[SIZES + 5],
        job[SIZES + 6],
    )
    grad, starts, places = (
        array_of(job_at, 0, NUMBER),
        array_of(job_at, 1, 0),
        array_of(job_at, 2, INDEX),
    )
    values, out, scratch = (
        array_of(job_at, 3, NUMBER),
        array_of(job_at, 4, NUMBER),
        array_of(job_at, 5, NUMBER),
    )
    height = 4 * chunk if GROUPED else chunk
    own = take(job, SLOT) * (height + width) * PANEL
    matrix = scratch[own : own + height * PANEL]
    sums = scratch[own + height * PANEL : own + (height + width) * PANEL]
    lines = 64 // grad.itemsize
    part = take(job, NEXT)
    while part < panels * blocks:
        panel, block = part // blocks, part % blocks
        low = panel * PANEL
        n = min(PANEL, outputs - low)
        inputs, end = block * width // blocks, (block + 1) * width // blocks
        for i in range(inputs * PANEL, end * PANEL):
            sums[i] = 0.0
        for c in range((rows + chunk - 1) // chunk):
            end_row = min(rows, c * chunk + chunk)
            for m in range(c * chunk, end_row):
                i = m - c * chunk
                at = (i // 4 * 16 + (1 << (i & 3)) if GROUPED else i) * PANEL
                source = m * outputs + low
                for j in range(0, PANEL, lines):
                    prefetch_line(grad, source + AHEAD * outputs + j)
                if n == PANEL:
                    sum_rows(matrix, at, grad, source, matrix, places, 0, 0, PANEL)
                else:
                    for j in range(n):
                        matrix[at + j] = grad[source + j]
                    for j in range(n, PANEL):
                        matrix[at + j] = 0.0
            if GROUPED:
                for i in range(0, end_row - c * chunk, 4):
                    _tabulate(matrix, i * 4, end_row - c * chunk - i)
            for k in range(inputs, end):
                r = c * padded + k
                at = k * PANEL
                if GRADED:
                    sum_graded_rows(
                        sums, at, sums, at, matrix, places, starts[r], starts[r + 1], values, PANEL
                    )
                else:
                    sum_rows(sums, at, sums, at, matrix, places, starts[r], starts[r + 1], PANEL)
        for j in range(0, n, TILE):
            at = (low + j) * width + inputs
            start = inputs * PANEL + j
            turn_block(out, at, width, sums, start, PANEL, end - inputs, min(n - j, TILE))
        part = take(job, NEXT)


@functools.cache
def _compiled(
    function: Callable[..., Any],
    state: torch.dtype,
    panel: int,
    valued: bool = False,
    grouped: bool = False,
) -> Any:
    names = {
        "INDEX": np.int32(0),
        "GRADED": valued,
        "GROUPED": grouped,
        "PANEL": panel,
        "TILE": 64 // state.itemsize,
    }
    return compiled(function, names, FORMATS[state])


def pack(weight: Tensor, panel: int) -> Tensor:
    """Return a weight `[N, K]` as panels `[N / panel, K, panel]`, the last padded with zeros."""
    outputs, width = weight.shape
    panels, parts = -(-outputs // panel), words(width)
    packed = buffers.empty((panels, width, panel), weight.dtype)
    run(
        _compiled(_pack, weight.dtype, panel),
        (weight.contiguous(), packed),
        (outputs, width, panels, parts),
        threads_for(packed.numel(), panels * parts),
    )
    return packed


def forward(
    *, spikes: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor, found: Found
) -> Tensor:
    """Return `spikes @ weight.T + bias` `[M, N]` from what `find` found."""
    (rows, width), outputs, state = spikes.shape, weight.shape[0], weight.dtype
    grouped = found.grouped(width)
    starts, given = found.starts(grouped), spikes if found.valued else None
    places, values = listed(bits, starts, grouped, given, state, (1, width, 1))
    panel = PANEL_BYTES // state.itemsize
    packed = pack(weight, panel)
    panels = packed.shape[0]
    out = buffers.empty((rows, outputs), state)
    parts = _parts(panels, rows)
    run(
        _compiled(_forward, state, panel, found.valued, grouped),
        (packed, None if bias is None else bias.contiguous(), starts, places, values, out),
        (rows, outputs, width, panels, parts),
        threads_for((places.numel() + rows) * outputs, panels * parts),
        (2 + (-(-width // 4) * 16 if grouped else 0)) * panel,
        state,
    )
    return out


def backward(
    *, grad: Tensor, spikes: Tensor, bits: Tensor, valued: bool, out: Tensor | None = None
) -> Tensor:
    """Return the weight's gradient, `grad.T @ spikes` `[N, K]`, in `out` if it is given."""
    (rows, outputs), width, state = grad.shape, spikes.shape[1], grad.dtype
    chunk = min(CHUNK, words(rows) * WORD)
    columns, found = transposed(bits, rows, width, chunk, valued)
    grouped = found.grouped(rows)
    starts, given = found.starts(grouped), spikes if valued else None
    padded = words(width) * WORD
    strides = (padded, chunk * width, width)
    places, values = listed(columns, starts, grouped, given, state, strides)
    panel = PANEL_BYTES // state.itemsize
    panels = -(-outputs // panel)
    out = buffers.empty((outputs, width), state) if out is None else out
    parts = _parts(panels, width)
    run(
        _compiled(_backward, state, panel, valued, grouped),
        (grad.contiguous(), starts, places, values, out),
        (rows, outputs, width, panels, parts, chunk, padded),
        threads_for((places.numel() + rows) * outputs, panels * parts),
        ((4 if grouped else 1) * chunk + width) * panel,
        state,
    )
    return out


def _parts(panels: int, size: int) -> int:
    """Return into how many parts to divide a panel's sums, so that all threads have work."""
    wanted = PARTS * torch.get_num_threads()
    return max(1, min(-(-size // WORD), -(-wanted // panels)))
