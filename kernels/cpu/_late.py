"""The inner loop of `delay`: a few steps of a block of channels, each by its own delay later.

It computes the same as this, on a chunk of `CHUNK` successive steps, rows of one number per
channel:

    def late(source, given, out, rings, bits, weights, recent, sums, chunk, taps, n):
        for i in range(n):
            x = [source[r][i] for r in range(CHUNK)]
            for k in reversed(range(stages)):             # x[-d] is of so many steps before
                x = [x[r - 2**k] if bits[k][i] else x[r] for r in range(CHUNK)]
            for r in range(CHUNK):
                out[r][i] = sum(weights[j][i] * x[r - j] for j in range(taps))
                for j in range(taps):
                    sums[j][i] += given[r][i] * x[r - j]

So a delay of any length takes one selection per bit, and no address that differs from channel to
channel. The steps before the chunk are kept between calls: for each bit in a ring of as many steps
as it reaches back, for the lowest three together in a ring of one chunk, from which they select in
registers; and in `recent` the delayed steps that the taps reach back. Each holds one number per
channel and step.
"""

from typing import Any

from llvmlite import ir

from neurospike.kernels.cpu._function import I64, LINE, Function, once

# Arguments of the function: addresses of rows; how many numbers apart the rows of successive steps
# lie; the chunk's number; how many taps and channels there are (the latter a multiple of the
# numbers in a cache line); and how many numbers apart the rows of scratch lie.
LATE = (
    *("source", "given", "out", "rings", "bits", "weights", "recent", "sums"),
    *("source_stride", "given_stride", "out_stride", "chunk", "taps", "n", "apart"),
)
FINE = 3  # bits of a delay that reach back less than a chunk
CHUNK = 1 << FINE  # steps taken together
AHEAD = 8  # cache lines ahead that sequences are prefetched


def ring_rows(stages: int) -> int:
    """Return how many rows the rings of all bits have; that of bit k >= 3 begins at row 2^k."""
    return 1 << max(FINE, stages)


class _Late(Function):
    """The function for delays of `stages` bits, with sequences that lie in memory in a `form`."""

    def __init__(self, double: bool, stages: int, form: str) -> None:
        super().__init__(LATE, double)
        self.stages, self.form = stages, form
        self.vector = ir.VectorType(self.kind, LINE // self.size)
        self.end, self.apart = (self.times(self.given[name], self.size) for name in ("n", "apart"))
        self.strides = {
            one: self.times(self.given[f"{one}_stride"], self.bytes_of(form))
            for one in ("source", "given", "out")
        }
        taps = self.build.sub(self.given["taps"], I64(1))
        self.reach = self.build.mul(taps, self.apart)  # bytes from the first tap to the last

    def row(self, argument: str, i: Any, k: int | Any = 0) -> Any:
        """Return an address in a row of scratch, `k` rows (int) or bytes after the first row."""
        distance = self.times(self.apart, k) if isinstance(k, int) else k
        return self.place(argument, i, distance)

    def places(self, argument: str, i: Any) -> list[Any]:
        """Return the addresses of a chunk's rows of a sequence, at `i` bytes in rows of scratch."""
        if self.form:
            i = self.build.lshr(i, I64(1))
        return [
            self.place(argument, i, self.times(self.strides[argument], r)) for r in range(CHUNK)
        ]

    def read(self, argument: str, i: Any) -> list[Any]:
        """Load a chunk of a sequence, and prefetch the next channels of its rows."""
        places, line = self.places(argument, i), self.vector.count * self.bytes_of(self.form)
        for place in places:
            self.fetch(self.build.add(place, I64(AHEAD * line)), line)
        return [self.load(place, self.vector, self.form) for place in places]

    def chosen(self, k: int, i: Any) -> Any:
        """Return for which channels bit `k` of the delay is 1."""
        bit = self.load(self.row("bits", i, k), self.vector)
        return self.build.fcmp_unordered("!=", bit, ir.Constant(self.vector, None))

    def swapped(self, first: Any, rows: list[Any]) -> list[Any]:
        """Store a chunk in a ring's rows from address `first` on; return the one that was there."""
        places = [self.build.add(first, self.times(self.apart, r)) for r in range(CHUNK)]
        before = [self.load(place, self.vector) for place in places]
        for place, row in zip(places, rows):
            self.store(row, place)
        return before

    def delayed(self, rows: list[Any], i: Any) -> list[Any]:
        """Return a chunk with each channel delayed by its own number of steps."""
        build = self.build
        for k in reversed(range(FINE, self.stages)):  # these reach back by whole chunks
            slot = build.and_(self.given["chunk"], I64((1 << (k - FINE)) - 1))
            first = build.add(I64(1 << k), self.times(slot, CHUNK))
            old = self.swapped(self.row("rings", i, build.mul(first, self.apart)), rows)
            late = self.chosen(k, i)
            rows = [build.select(late, before, now) for before, now in zip(old, rows)]
        if self.stages == 0:
            return rows
        both = self.swapped(self.row("rings", i), rows) + rows
        for k in reversed(range(min(FINE, self.stages))):
            late, back = self.chosen(k, i), 1 << k
            # Of the rows before the chunk, only those that the lower bits still reach.
            first = CHUNK - (back - 1)
            both[first:] = [
                build.select(late, both[r - back], both[r]) for r in range(first, 2 * CHUNK)
            ]
        return both[CHUNK:]

    def taps(self, first: int) -> Any:
        """Write a loop over taps from `first` on; it yields how many bytes back their rows lie."""
        end = self.build.add(self.reach, self.apart)
        return self.each(self.times(self.apart, first), end, self.apart)

    def tapped(self, i: Any, ago: Any) -> list[Any]:
        """Return the delayed chunk of the tap whose rows lie `ago` bytes back."""
        place = self.row("recent", i, self.build.sub(self.reach, ago))
        return [
            self.load(self.build.add(place, self.times(self.apart, r)), self.vector)
            for r in range(CHUNK)
        ]

    def slots(self, values: list[Any]) -> list[Any]:
        """Return stack variables with these initial values, for a loop to change."""
        with self.build.goto_entry_block():
            found = [self.build.alloca(self.vector) for _ in values]
        for value, slot in zip(values, found):
            self.build.store(value, slot)
        return found


@once
def late(
    double: bool, stages: int, mixes: bool, learns: bool, past: int = 0, form: str = ""
) -> Function:
    """Return the function, with arguments `LATE`.

    Args:
        double: whether numbers are float64, else they are float32.
        stages: how many bits the longest delay has.
        mixes: whether `out` is written.
        learns: whether `given` is read and `sums` are added to.
        past: alignment of the rows of `out` in bytes, if written past the caches; else 0.
        form: format of `source`, `given` and `out` in memory, one of `_halves.FORMS` or empty.
    """
    f = _Late(double, stages, form)
    build = f.build
    with f.each(I64(0), f.end, I64(LINE)) as i:
        rows = f.delayed(f.read("source", i), i)
        for r, row in enumerate(rows):
            f.store(row, build.add(f.row("recent", i, r), f.reach))
        if mixes:
            weight = f.load(f.row("weights", i), f.vector)
            totals = f.slots([build.fmul(weight, row) for row in rows])
            with f.taps(1) as ago:
                weight = f.load(f.row("weights", i, ago), f.vector)
                for total, row in zip(totals, f.tapped(i, ago)):
                    build.store(build.fadd(build.load(total), build.fmul(weight, row)), total)
            for place, total in zip(f.places("out", i), totals):
                f.store(build.load(total), place, past, form)
        if learns:
            given = f.read("given", i)
            with f.taps(0) as ago:
                place = f.row("sums", i, ago)
                total = f.load(place, f.vector)
                for value, row in zip(given, f.tapped(i, ago)):
                    # One rounding or two, whichever is faster on the processor.
                    product = build.fmul(value, row, flags=("contract",))
                    total = build.fadd(total, product, flags=("contract",))
                f.store(total, place)
        with f.each(I64(0), f.reach, f.apart) as back:
            row = f.load(build.add(f.row("recent", i, CHUNK), back), f.vector)
            f.store(row, f.row("recent", i, back))
    build.ret_void()
    return f
