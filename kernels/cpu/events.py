"""The active inputs of spikes: found once, as one bit each, and listed by rows or by columns.

Layout: spikes `[M, K]`, bits `[M, ceil(K / 64)]`, the lists of all rows one after another. Formats:
spikes bool, uint8, float32 or float64.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import parallel
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._intrinsics import graded, lowest, nonzero, ones, take
from neurospike.kernels.cpu._job import FLAG, NEXT, SIZES, SLOT, array_of, job_of, run

WORD = 64  # inputs whose bits are one integer
TABLE = 40  # additions that take as long as a table of sums of four, per row that it sums
GRAIN = 1 << 17  # additions that are worth waking another thread for

# Compile-time constants of a kernel, rebound for each variant.
NUMBER = np.float32(0)
SPIKE = np.uint8(0)
INDEX = np.int32(0)
GRADED = False
GROUPED = False


def _groups(bits):
    """Return a 1 at the lowest bit of each group of four bits that is not 0."""
    return (bits | bits >> 1 | bits >> 2 | bits >> 3) & 0x1111111111111111


def _find(job_at):
    """Turn spikes `[M, K]` into bits `[M, W]`; count each row's events and groups of four with any.

    The counts are `[1 + M]`, of which the first is not written.
    """
    job = job_of(job_at)
    rows, width, words, block = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    spikes, bits = array_of(job_at, 0, SPIKE), array_of(job_at, 1, 0)
    counts, groups = array_of(job_at, 2, 0), array_of(job_at, 3, 0)
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
    """Transpose bits `[M, W]` to `[chunks, W * 64, chunk / 64]`; count them as `_find` does."""
    job = job_of(job_at)
    rows, words, high, chunks = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    bits, out = array_of(job_at, 0, 0), array_of(job_at, 1, 0)
    counts, groups = array_of(job_at, 2, 0), array_of(job_at, 3, 0)
    scratch = array_of(job_at, 4, 0)
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
    """List the places of the bits `[R, W]` that are 1, row after row, and the spikes at them."""
    job = job_of(job_at)
    rows, words, block = job[SIZES], job[SIZES + 1], job[SIZES + 2]
    group, far, stride = job[SIZES + 3], job[SIZES + 4], job[SIZES + 5]
    bits, starts, places = (
        array_of(job_at, 0, 0),
        array_of(job_at, 1, 0),
        array_of(job_at, 2, INDEX),
    )
    values, spikes = array_of(job_at, 3, NUMBER), array_of(job_at, 4, SPIKE)
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


FORMATS = {
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
        "SPIKE": FORMATS[spikes](0),
        "INDEX": np.int32(0),
        "GRADED": valued,
        "GROUPED": grouped,
    }
    return compiled(function, names, FORMATS[state])


def threads(work: int, parts: int) -> int:
    """Return how many threads are worth using for `work` additions in so many parts."""
    return parallel.threads(1 + work // GRAIN, parts)


def words(width: int) -> int:
    """Return how many integers hold the bits of a row."""
    return -(-width // WORD)


class Found(NamedTuple):
    """What `find` counted in spikes.

    counts: `[2, 1 + M]`, the events of each row and its groups of four with any, after a 0 each.
    events, groups: their sums over all rows. valued: whether a spike is neither 0 nor 1.
    """

    counts: Tensor
    events: int
    groups: int
    valued: bool

    def grouped(self, lists: int) -> bool:
        """Whether a table of sums of four, of `lists` rows, saves more additions than it takes."""
        return not self.valued and self.events - self.groups > TABLE * lists

    def starts(self, grouped: bool) -> Tensor:
        """Return where each row's list begins and, last, where the last one ends."""
        return self.counts[1 if grouped else 0].cumsum(0)


def _counted(counts: Tensor, valued: bool) -> Found:
    events, groups = counts.sum(1).tolist()
    return Found(counts, events, groups, valued)


def find(spikes: Tensor, bits: Tensor) -> Found:
    """Fill `bits` `[M, W]` with a 1 for each of the spikes `[M, K]` that is not 0; count them."""
    rows, width = spikes.shape
    counts = torch.zeros((2, rows + 1), dtype=torch.int64, device="cpu")
    if bits.numel() == 0:
        return _counted(counts, False)
    job = run(
        _compiled(_find, spikes=spikes.dtype),
        (spikes, bits, counts[0], counts[1]),
        (rows, width, words(width), WORD),
        threads(spikes.numel() // 8, -(-rows // WORD)),
    )
    return _counted(counts, bool(job[FLAG]))


def transposed(
    bits: Tensor, rows: int, width: int, chunk: int, valued: bool
) -> tuple[Tensor, Found]:
    """Return bits `[M, W]` by columns, `[chunks * W * 64, chunk / 64]`, and their counts.

    chunk: how many rows, a multiple of 64, have their bits of a column in one row of the result.
    """
    chunks, padded = -(-rows // chunk), words(width) * WORD
    columns = torch.empty((chunks * padded, chunk // WORD), dtype=torch.int64, device="cpu")
    counts = torch.zeros((2, 1 + chunks * padded), dtype=torch.int64, device="cpu")
    run(
        _compiled(_transpose),
        (bits, columns, counts[0], counts[1]),
        (rows, words(width), chunk // WORD, chunks),
        threads(bits.numel() * 8, chunks * words(width)),
        WORD,
        torch.int64,
    )
    return columns, _counted(counts, valued)


def listed(
    bits: Tensor,
    starts: Tensor,
    grouped: bool,
    spikes: Tensor | None,
    state: torch.dtype,
    strides: tuple[int, int, int],
) -> tuple[Tensor, Tensor | None]:
    """Return the places of the bits `[R, W]` that are 1 and, if given, the spikes at them.

    grouped: return instead, for each group of four bits with any, 16 times its number plus its bits
    as a number. strides: `(a, b, c)`: spikes of row `r` are at `r // a * b + r % a + place * c`.
    """
    rows, count = bits.shape[0], int(starts[-1])
    places = torch.empty(count, dtype=torch.int32, device="cpu")
    valued = spikes is not None
    values = torch.empty(count, dtype=state, device="cpu") if valued else None
    kernel = (
        _compiled(_list, state, spikes.dtype, True)
        if spikes is not None
        else _compiled(_list, grouped=grouped)
    )
    sizes = (rows, bits.shape[1], WORD, *strides)
    arrays = (bits, starts, places, values, spikes)
    run(kernel, arrays, sizes, threads(count * 4, -(-rows // WORD)))
    return places, values
