"""The inner loop of `delay`: a few steps of a block of channels, each as late as it is to be.

It does as this would, on rows of one number per channel, `CHUNK` of them that follow one another:

    def late(source, given, out, rings, bits, weights, recent, sums, chunk, taps, n):
        for i in range(n):
            x = [source[r][i] for r in range(CHUNK)]
            for k in reversed(range(stages)):             # x[-d] is of so many steps before
                x = [x[r - 2**k] if bits[k][i] else x[r] for r in range(CHUNK)]
            for r in range(CHUNK):
                out[r][i] = sum(weights[j][i] * x[r - j] for j in range(taps))
                for j in range(taps):
                    sums[j][i] += given[r][i] * x[r - j]

So a delay of any length takes a choice per bit of it, and no address that differs from channel to
channel. What lies before the chunk is kept between calls: for each bit a ring of the steps that it
reaches back, for the lower three together one of a chunk, which are compared in registers; and
`recent`, the delayed steps that the taps reach back, one number per channel and step each.
"""

from typing import Any

from llvmlite import ir

from neurospike.kernels.cpu._function import I64, LINE, Function, once

# What the function is given: addresses of rows, how many numbers lie between the rows of successive
# steps, which chunk it is, how many taps and channels there are (a multiple of those in a line),
# and how many numbers lie between the rows of scratch.
LATE = (
    *("source", "given", "out", "rings", "bits", "weights", "recent", "sums"),
    *("source_stride", "given_stride", "out_stride", "chunk", "taps", "n", "apart"),
)
FINE = 3  # bits of a delay within a chunk
CHUNK = 1 << FINE  # steps taken together
AHEAD = 8  # lines ahead that memory is asked for


def ring_rows(stages: int) -> int:
    """Return how many rows the rings of so many bits have: that of bit k > 2 begins at 2^k."""
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
        """Return the address of a row of scratch, `k` rows or some bytes behind what was given."""
        distance = self.times(self.apart, k) if isinstance(k, int) else k
        return self.place(argument, i, distance)

    def places(self, argument: str, i: Any) -> list[Any]:
        """Return where the numbers of a chunk of a sequence lie, some bytes of scratch on."""
        if self.form:
            i = self.build.lshr(i, I64(1))
        return [
            self.place(argument, i, self.times(self.strides[argument], r)) for r in range(CHUNK)
        ]

    def read(self, argument: str, i: Any) -> list[Any]:
        """Return a chunk of a sequence, and ask for what comes next of it."""
        places, line = self.places(argument, i), self.vector.count * self.bytes_of(self.form)
        for place in places:
            self.fetch(self.build.add(place, I64(AHEAD * line)), line)
        return [self.load(place, self.vector, self.form) for place in places]

    def chosen(self, k: int, i: Any) -> Any:
        """Return which channels have bit `k`."""
        bit = self.load(self.row("bits", i, k), self.vector)
        return self.build.fcmp_unordered("!=", bit, ir.Constant(self.vector, None))

    def swapped(self, first: Any, rows: list[Any]) -> list[Any]:
        """Put a chunk into a ring, whose rows for it begin at `first`; return what was there."""
        places = [self.build.add(first, self.times(self.apart, r)) for r in range(CHUNK)]
        before = [self.load(place, self.vector) for place in places]
        for place, row in zip(places, rows):
            self.store(row, place)
        return before

    def delayed(self, rows: list[Any], i: Any) -> list[Any]:
        """Return a chunk as late as its channels are."""
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
            # Of the rows before the chunk, those that the lower bits still ask for.
            first = CHUNK - (back - 1)
            both[first:] = [
                build.select(late, both[r - back], both[r]) for r in range(first, 2 * CHUNK)
            ]
        return both[CHUNK:]

    def taps(self, first: int) -> Any:
        """Write a loop over taps from `first` on, which gives how far back their rows lie."""
        end = self.build.add(self.reach, self.apart)
        return self.each(self.times(self.apart, first), end, self.apart)

    def tapped(self, i: Any, ago: Any) -> list[Any]:
        """Return the chunk of a tap, whose row of weights is so many bytes behind the first."""
        place = self.row("recent", i, self.build.sub(self.reach, ago))
        return [
            self.load(self.build.add(place, self.times(self.apart, r)), self.vector)
            for r in range(CHUNK)
        ]

    def slots(self, values: list[Any]) -> list[Any]:
        """Return variables that have these values, for a loop to change."""
        with self.build.goto_entry_block():
            found = [self.build.alloca(self.vector) for _ in values]
        for value, slot in zip(values, found):
            self.build.store(value, slot)
        return found


@once
def late(
    double: bool, stages: int, mixes: bool, learns: bool, past: int = 0, form: str = ""
) -> Function:
    """Return the function, of arguments `LATE`.

    Args:
        double: whether numbers are float64, else they are float32.
        stages: bits of the longest delay.
        mixes: whether `out` is written.
        learns: whether `given` is read and `sums` are added to.
        past: bytes that divide the places of `out`, if it goes past the caches; else 0.
        form: that of `source`, `given` and `out` in memory.
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
                    # One rounding or two, as the processor does sooner.
                    product = build.fmul(value, row, flags=("contract",))
                    total = build.fadd(total, product, flags=("contract",))
                f.store(total, place)
        with f.each(I64(0), f.reach, f.apart) as back:
            row = f.load(build.add(f.row("recent", i, CHUNK), back), f.vector)
            f.store(row, f.row("recent", i, back))
    build.ret_void()
    return f
