"""Linear layers of spikes on the CPU: add up the rows of active inputs instead of multiplying.

Layout: spikes `[M, K]`, weight `[N, K]`. Which inputs are active is found once, as one bit each;
the forward product goes through the bits by rows, the weight's gradient by columns, after a
transposition of the bits. Both are the same sum: a row of the result is the sum of the rows of a
matrix (the transposed weight; the gradient) that a list of places names. It is taken by panels of
`PANEL_BYTES`, so that the matrix's panel stays in the second-level cache and the sums in registers.

Every sum has one order, whatever the number of threads; nothing is added atomically. Formats: sums
in the weight's, float32 or float64; spikes in that one, bool or uint8. Active inputs other than 1
are multiplied, and only then are their values read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from neurospike.kernels.numba_jit import compiled
from neurospike.kernels.numba_memory import array_at, prefetch_line, take
from neurospike.kernels.numba_vectors import (
    graded,
    lowest,
    nonzero,
    ones,
    sum_graded_rows,
    sum_rows,
    turn,
)
from torch import Tensor

from neurospike import buffers, parallel

WORD = 64  # inputs whose bits are one integer
PANEL_BYTES = 256  # columns of a result that are summed together, in bytes
CHUNK = 1024  # rows of a gradient whose panel stays in the second-level cache
AHEAD = 8  # rows ahead that a gradient is fetched
PARTS = 4  # a thread, at least, that sums are divided in
TABLE = 40  # additions, in the time of which a row of a table of sums of four is made
GRAIN = 1 << 17  # additions that are worth waking a thread for

# A job is a row of integers: counters that threads take from, sizes, then each array's address and
# size.
NEXT, SLOT, FLAG, SIZES, HEAD = 0, 1, 2, 3, 10

# What a kernel is compiled for; rebound for each variant.
NUMBER = np.float32(0)
SPIKE = np.uint8(0)
INDEX = np.int32(0)
PANEL = 64
TILE = 16  # rows and columns that are transposed together: numbers of 64 bytes
GRADED = False
GROUPED = False


def _array(job, k, like):
    """Return the `k`-th array of a job, of numbers like `like`."""
    at = HEAD + 2 * k
    return array_at(job[at], job[at + 1], like)


def _groups(bits):
    """Return which groups of four bits are not 0, at the lowest bit of each."""
    return (bits | bits >> 1 | bits >> 2 | bits >> 3) & 0x1111111111111111


def _find(job_at):
    """Spikes `[M, K]` to bits `[M, W]`, with counts `[1 + M]` of events and of groups with any."""
    job = array_at(job_at, HEAD + 2 * 4, 0)
    rows, width, words, block = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    spikes, bits = _array(job, 0, SPIKE), _array(job, 1, 0)
    counts, groups = _array(job, 2, 0), _array(job, 3, 0)
    part = take(job, NEXT)
    odd = 0
    while part * block < rows:
        for row in range(part * block, min(rows, part * block + block)):
            count, group = 0, 0
            for word in range(words):
                start = row * width + word * WORD
                found = 0
                if word * WORD + WORD <= width:
                    found = nonzero(spikes, start)
                    odd |= graded(spikes, start)
                else:
                    for k in range(width - word * WORD):
                        value = spikes[start + k]
                        found |= (1 if value != 0 else 0) << k
                        odd |= 1 if value != 0 and value != 1 else 0
                bits[row * words + word] = found
                count += ones(found)
                group += ones(_groups(found))
            counts[1 + row] = count
            groups[1 + row] = group
        part = take(job, NEXT)
    if odd != 0:
        job[FLAG] = 1


def _flip(block):
    """Transpose 64 integers as a matrix of bits (Warren, Hacker's Delight, 7-3)."""
    width, mask = 32, 0xFFFFFFFF
    while width > 0:
        for k in range(WORD):
            if k & width == 0:
                a, b = block[k], block[k + width]
                swap = ((a >> width) ^ b) & mask
                block[k] = a ^ (swap << width)
                block[k + width] = b ^ swap
        width >>= 1
        mask ^= mask << width


def _transpose(job_at):
    """Bits `[M, W]` to `[chunks, W * 64, chunk / 64]`, counted as `_find` does."""
    job = array_at(job_at, HEAD + 2 * 5, 0)
    rows, words, high, chunks = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    bits, out = _array(job, 0, 0), _array(job, 1, 0)
    counts, groups = _array(job, 2, 0), _array(job, 3, 0)
    scratch = _array(job, 4, 0)
    own = take(job, SLOT) * WORD
    block = scratch[own : own + WORD]
    part = take(job, NEXT)
    while part < chunks * words:
        chunk, word = part // words, part % words
        first = part * WORD
        for k in range(WORD):
            counts[1 + first + k] = 0
            groups[1 + first + k] = 0
        for b in range(high):
            low = chunk * high * WORD + b * WORD
            for k in range(WORD):
                block[k] = bits[(low + k) * words + word] if low + k < rows else 0
            _flip(block)
            for k in range(WORD):
                out[(first + k) * high + b] = block[k]
                counts[1 + first + k] += ones(block[k])
                groups[1 + first + k] += ones(_groups(block[k]))
        part = take(job, NEXT)


def _list(job_at):
    """Bits `[R, W]` to the places of those that are 1, row after row, and what stood there."""
    job = array_at(job_at, HEAD + 2 * 5, 0)
    rows, words, block = job[SIZES], job[SIZES + 1], job[SIZES + 2]
    group, far, stride = job[SIZES + 3], job[SIZES + 4], job[SIZES + 5]
    bits, starts, places = _array(job, 0, 0), _array(job, 1, 0), _array(job, 2, INDEX)
    values, spikes = _array(job, 3, NUMBER), _array(job, 4, SPIKE)
    part = take(job, NEXT)
    while part * block < rows:
        for row in range(part * block, min(rows, part * block + block)):
            at = starts[row]
            base = row // group * far + row % group
            for word in range(words):
                found = bits[row * words + word]
                left = _groups(found) if GROUPED else found
                while left != 0:
                    bit = lowest(left)
                    place = word * WORD + bit
                    if GROUPED:
                        places[at] = 4 * place + (found >> bit & 15)
                    else:
                        places[at] = place
                    if GRADED:
                        values[at] = spikes[base + place * stride]
                    at += 1
                    left &= left - 1
        part = take(job, NEXT)


def _turn(out, at, out_stride, source, start, stride, rows, columns):
    """Write a block of `source`, `rows` by `columns`, transposed to `out` from `at` on."""
    for row in range(0, rows, TILE):
        for column in range(0, columns, TILE):
            to = at + column * out_stride + row
            begin = start + row * stride + column
            if row + TILE <= rows and column + TILE <= columns:
                turn(out, to, out_stride, source, begin, stride)
            else:
                for i in range(min(TILE, rows - row)):
                    for k in range(min(TILE, columns - column)):
                        out[to + k * out_stride + i] = source[begin + i * stride + k]


def _pack(job_at):
    """Weight `[N, K]` to panels `[N / PANEL, K, PANEL]`, what is missing filled with 0."""
    job = array_at(job_at, HEAD + 2 * 2, 0)
    outputs, width, panels, blocks = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    weight, out = _array(job, 0, NUMBER), _array(job, 1, NUMBER)
    part = take(job, NEXT)
    while part < panels * blocks:
        panel, block = part // blocks, part % blocks
        low, high = block * width // blocks, (block + 1) * width // blocks
        n = min(PANEL, outputs - panel * PANEL)
        begin = panel * PANEL * width
        _turn(out, begin + low * PANEL, PANEL, weight, begin + low, width, n, high - low)
        for k in range(low, high):
            for j in range(n, PANEL):
                out[begin + k * PANEL + j] = 0.0
        part = take(job, NEXT)


def _tabulate(table, row, inputs):
    """Complete 16 rows of sums of four: row `n` of those whose bits are 1 in `n`.

    Rows 1, 2, 4 and 8 are there, as far as there are so many inputs.
    """
    for n in range(3, 1 << min(inputs, 4)):
        one, rest = n & -n, n & (n - 1)
        if rest != 0:
            to, first, second = (row + n) * PANEL, (row + one) * PANEL, (row + rest) * PANEL
            for j in range(PANEL):
                table[to + j] = table[first + j] + table[second + j]


def _forward(job_at):
    """Sum panels `[P, K, PANEL]` over each row's list, beginning with the bias: `[M, N]`."""
    job = array_at(job_at, HEAD + 2 * 7, 0)
    rows, outputs, width, panels, blocks = (
        job[SIZES],
        job[SIZES + 1],
        job[SIZES + 2],
        job[SIZES + 3],
        job[SIZES + 4],
    )
    packed, bias = _array(job, 0, NUMBER), _array(job, 1, NUMBER)
    starts, places, values = _array(job, 2, 0), _array(job, 3, INDEX), _array(job, 4, NUMBER)
    out, scratch = _array(job, 5, NUMBER), _array(job, 6, NUMBER)
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
    """Sum rows of the gradient `[M, N]` over each input's lists: the weight's, `[N, K]`."""
    job = array_at(job_at, HEAD + 2 * 6, 0)
    rows, outputs, width, panels, blocks, chunk, padded = (
        job[SIZES],
        job[SIZES + 1],
        job[SIZES + 2],
        job[SIZES + 3],
        job[SIZES + 4],
        job[SIZES + 5],
        job[SIZES + 6],
    )
    grad, starts, places = _array(job, 0, NUMBER), _array(job, 1, 0), _array(job, 2, INDEX)
    values, out, scratch = _array(job, 3, NUMBER), _array(job, 4, NUMBER), _array(job, 5, NUMBER)
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
            _turn(out, at, width, sums, start, PANEL, end - inputs, min(n - j, TILE))
        part = take(job, NEXT)


_FORMATS = {
    torch.bool: np.uint8,
    torch.uint8: np.uint8,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


@functools.cache
def _compiled(
    function: Callable[..., Any],
    state: torch.dtype = torch.float32,
    spikes: torch.dtype = torch.uint8,
    valued: bool = False,
    grouped: bool = False,
) -> Any:
    names = {
        "SPIKE": _FORMATS[spikes](0),
        "INDEX": np.int32(0),
        "GRADED": valued,
        "GROUPED": grouped,
        "PANEL": _panel(state),
        "TILE": 64 // state.itemsize,
    }
    return compiled(function, names, _FORMATS[state])


def _panel(state: torch.dtype) -> int:
    return PANEL_BYTES // state.itemsize


def _run(
    kernel: Any,
    arrays: Sequence[Tensor | None],
    sizes: Sequence[int],
    parts: int,
    work: int,
    scratch: int = 0,
    state: torch.dtype = torch.float32,
) -> list[int]:
    """Hand `kernel` a job of `arrays`, and last a scratch a thread; return it as it was left."""
    threads = parallel.threads(1 + work // GRAIN, parts)
    places = [(0, 0) if a is None else (a.data_ptr(), a.numel()) for a in arrays]
    held = buffers.empty((threads * scratch,), state)
    places.append((held.data_ptr(), held.numel()))
    sizes = (*sizes, *(0 for _ in range(HEAD - SIZES - len(sizes))))
    job = [0, 0, 0, *sizes, *(number for place in places for number in place)]
    return parallel.run(kernel.address, job, threads)


def words(width: int) -> int:
    """Return how many integers hold the bits of a row."""
    return -(-width // WORD)


class Found(NamedTuple):
    """What there is in spikes: counts before each row, events, groups of four, other values."""

    counts: Tensor
    events: int
    groups: int
    valued: bool

    def grouped(self, lists: int) -> bool:
        """Whether a table of sums of four saves more additions than it takes for `lists` rows."""
        return not self.valued and self.events - self.groups > TABLE * lists

    def starts(self, grouped: bool) -> Tensor:
        """Return where each row's list begins, and the last one ends."""
        return self.counts[1 if grouped else 0].cumsum(0)


def _counted(counts: Tensor, valued: bool) -> Found:
    events, groups = counts.sum(1).tolist()
    return Found(counts, events, groups, valued)


def find(spikes: Tensor, bits: Tensor) -> Found:
    """Fill `bits` `[M, W]` and count them."""
    rows, width = spikes.shape
    counts = torch.zeros((2, rows + 1), dtype=torch.int64)
    valued = (
        bits.numel() > 0
        and _run(
            _compiled(_find, spikes=spikes.dtype),
            (spikes, bits, counts[0], counts[1]),
            (rows, width, words(width), WORD),
            -(-rows // WORD),
            spikes.numel() // 8,
        )[FLAG]
    )
    return _counted(counts, bool(valued))


def _lists(
    bits: Tensor,
    starts: Tensor,
    grouped: bool,
    spikes: Tensor | None,
    state: torch.dtype,
    strides: tuple[int, int, int],
) -> tuple[Tensor, Tensor | None]:
    """Return the places of bits `[R, W]` that are 1 and, if given, the spikes that stood there.

    grouped: the places of groups of four, times 16, plus what the group is as a number. strides:
    the spikes of row `r` are at `r // a * b + r % a + place * c`.
    """
    rows, count = bits.shape[0], int(starts[-1])
    places = torch.empty(count, dtype=torch.int32)
    valued = spikes is not None
    values = torch.empty(count, dtype=state) if valued else None
    kernel = (
        _compiled(_list, state, spikes.dtype, True)
        if spikes is not None
        else _compiled(_list, grouped=grouped)
    )
    sizes = (rows, bits.shape[1], WORD, *strides)
    _run(kernel, (bits, starts, places, values, spikes), sizes, -(-rows // WORD), count * 4)
    return places, values


def pack(weight: Tensor) -> Tensor:
    """Return a weight `[N, K]` as panels `[N / PANEL, K, PANEL]`."""
    outputs, width = weight.shape
    panel = _panel(weight.dtype)
    panels, parts = -(-outputs // panel), words(width)
    packed = buffers.empty((panels, width, panel), weight.dtype)
    _run(
        _compiled(_pack, weight.dtype),
        (weight.contiguous(), packed),
        (outputs, width, panels, parts),
        panels * parts,
        packed.numel(),
    )
    return packed


def forward(
    spikes: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor, found: Found
) -> Tensor:
    """Return `spikes @ weight.T + bias` `[M, N]` from what `find` found."""
    (rows, width), outputs, state = spikes.shape, weight.shape[0], weight.dtype
    grouped = found.grouped(width)
    starts, given = found.starts(grouped), spikes if found.valued else None
    places, values = _lists(bits, starts, grouped, given, state, (1, width, 1))
    packed = pack(weight)
    panels, _, panel = packed.shape
    out = buffers.empty((rows, outputs), state)
    parts = _parts(panels, rows)
    _run(
        _compiled(_forward, state, valued=found.valued, grouped=grouped),
        (packed, None if bias is None else bias.contiguous(), starts, places, values, out),
        (rows, outputs, width, panels, parts),
        panels * parts,
        (places.numel() + rows) * outputs,
        (2 + (-(-width // 4) * 16 if grouped else 0)) * panel,
        state,
    )
    return out


def backward(grad: Tensor, spikes: Tensor, bits: Tensor, valued: bool) -> Tensor:
    """Return the weight's gradient, `grad.T @ spikes` `[N, K]`."""
    (rows, outputs), width, state = grad.shape, spikes.shape[1], grad.dtype
    chunk = min(CHUNK, words(rows) * WORD)
    chunks, padded = -(-rows // chunk), words(width) * WORD
    columns = torch.empty((chunks * padded, chunk // WORD), dtype=torch.int64)
    counts = torch.zeros((2, 1 + chunks * padded), dtype=torch.int64)
    _run(
        _compiled(_transpose),
        (bits, columns, counts[0], counts[1]),
        (rows, words(width), chunk // WORD, chunks),
        chunks * words(width),
        bits.numel() * 8,
        WORD,
        torch.int64,
    )
    found = _counted(counts, valued)
    grouped = found.grouped(rows)
    starts, given = found.starts(grouped), spikes if valued else None
    strides = (padded, chunk * width, width)
    places, values = _lists(columns, starts, grouped, given, state, strides)
    panel = _panel(state)
    panels = -(-outputs // panel)
    out = buffers.empty((outputs, width), state)
    parts = _parts(panels, width)
    _run(
        _compiled(_backward, state, valued=valued, grouped=grouped),
        (grad.contiguous(), starts, places, values, out),
        (rows, outputs, width, panels, parts, chunk, padded),
        panels * parts,
        (places.numel() + rows) * outputs,
        ((4 if grouped else 1) * chunk + width) * panel,
        state,
    )
    return out


def _parts(panels: int, size: int) -> int:
    """Return how many parts to divide a panel's sums in, so that threads find enough to share."""
    wanted = PARTS * torch.get_num_threads()
    return max(1, min(-(-size // WORD), -(-wanted // panels)))
