"""What loops call of the processor, by name; and what of it needs no more than that.

The functions without a body are stood for by those of their names in `_memory` and `_vectors`,
which are written in LLVM's language, when Numba compiles a loop. Here they are for whoever reads
or imports a loop, which does not load Numba.

Memory larger than the caches: a store normally reads its cache line first, and what it writes
pushes other data out; `stream` writes past the caches, as the C library's copy does. `prefetch`
fetches a row before it is needed: a block of neurons is a new page at each time step, where the
hardware does not look ahead.

Threads: a loop is handed one row of integers, its job, from which several threads `take` part after
part. Addresses in a job become arrays with `array_at`, and functions that are run with `call`.

Vectors of a fixed width, where Numba would leave them to chance: `sum_rows` keeps a row of sums in
registers while it adds up others; a loop over an array of sums would load and store each of them at
every row. `nonzero` and `graded` look at 64 numbers at once and answer in the 64 bits of an
integer, which `ones` counts and `lowest` goes through.
"""

LINE_BYTES = 64


def address(array, index):
    """Return the address of `array[index]`."""


def array_at(address, size, like):
    """Return `size` numbers of the format of `like` that lie at an address, as an array."""


def call(function, arguments):
    """Run the C function at an address; the arguments are a tuple of integers."""


def take(job, index):
    """Return `job[index]` and add one to it, as one step that no other thread comes between."""


def fence():
    """Let other threads see what was streamed before anything that is written later."""


def prefetch_line(array, index):
    """Ask for the cache line that holds `array[index]`."""


def stream_line(out, at, row, start):
    """Write one cache line, `out[at:]` which begins it, from `row[start:]`, past the caches."""


def nonzero(array, at):
    """Return which of `array[at : at + 64]` are not 0, as bits."""


def graded(array, at):
    """Return which of `array[at : at + 64]` are neither 0 nor 1, as bits."""


def ones(bits):
    """Return how many bits are 1."""


def lowest(bits):
    """Return the place of the lowest bit that is 1."""


def sum_rows(out, at, first, first_at, rows, indices, low, high, width):
    """Write `first[first_at:] + sum of rows[indices[e]] for e from low to high` to `out[at:]`.

    `rows` are `[K, width]`, `width` numbers are written; it is a constant.
    """


def sum_graded_rows(out, at, first, first_at, rows, indices, low, high, values, width):
    """Do as `sum_rows`, with each row times `values[e]`."""


def multiply_rows(
    out, at, out_stride, given, first, stride, matrix, start, apart, depth, rows, width
):
    """Write the product of `rows` rows of numbers and a matrix of `width` columns to `out[at:]`.

    Rows of `given` begin at `first`, `stride` apart, and have `depth` numbers; those of `matrix`
    begin at `start`, `apart` from one another, those of `out` at `at`, `out_stride` apart. `rows`
    and `width` are constants: the sums stay in registers.
    """


def turn(out, at, out_stride, source, start, stride):
    """Write a square of a matrix transposed: as many rows as 64 bytes hold numbers.

    Rows of `source` begin at `start` and are `stride` apart, those of `out` at `at`, `out_stride`
    apart.
    """


def prefetch(array, start, size):
    """Ask for `array[start : start + size]`."""
    lanes = LINE_BYTES // array.itemsize
    for i in range(0, size, lanes):
        prefetch_line(array, start + i)


def stream(out, start, row):
    """Write `row` to `out[start:]`, past the caches."""
    lanes = LINE_BYTES // row.itemsize
    head = min(row.size, (-address(out, start) % LINE_BYTES) // row.itemsize)
    for i in range(head):
        out[start + i] = row[i]
    i = head
    while i + lanes <= row.size:
        stream_line(out, start + i, row, i)
        i += lanes
    for j in range(i, row.size):
        out[start + j] = row[j]
