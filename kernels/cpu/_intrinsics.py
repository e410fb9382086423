"""Functions that compiled loops use for what Python cannot express: memory, threads, vectors.

When Numba compiles a loop, those without a body are replaced by the functions of the same names in
`_memory` and `_vectors`, which generate LLVM IR. They are declared here so that a loop can be read,
and imported without loading Numba.

Memory larger than the caches: a store normally reads its cache line first, and the data that it
writes push others out; `stream` writes past the caches, as the C library's copy does. `prefetch`
fetches a row before it is needed: a block of neurons is a new page at each time step, where the
hardware does not prefetch.

Threads: a loop is given one array of integers, its job, from which several threads `take` one part
after another. `array_at` makes arrays of addresses in a job, `call` runs functions at addresses.

Vectors of a fixed width, where Numba would leave them to chance: `sum_rows` keeps a row of sums in
registers while it adds up others; a loop over an array of sums would load and store each of them at
every row. `nonzero` and `graded` compare 64 numbers at once and return the 64 bits of an integer,
which `ones` counts and `lowest` helps to go through.
"""

LINE_BYTES = 64


def address(array, index):
    """Return the address of `array[index]`."""


def array_at(address, size, like):
    """Return an array of the `size` numbers at an address, in the format of `like`."""


def call(function, arguments):
    """Run the C function at the address `function` with a tuple of integers as arguments."""


def take(job, index):
    """Return `job[index]` and add one to it, atomically."""


def fence():
    """Make streamed data visible to other threads before anything that is written later."""


def prefetch_line(array, index):
    """Prefetch the cache line that holds `array[index]`."""


def stream_line(out, at, row, start):
    """Write the cache line that begins at `out[at]` from `row[start:]`, past the caches."""


def nonzero(array, at):
    """Return which of `array[at : at + 64]` are not 0, as bits."""


def graded(array, at):
    """Return which of `array[at : at + 64]` are neither 0 nor 1, as bits."""


def ones(bits):
    """Return how many bits are 1."""


def lowest(bits):
    """Return the position of the lowest bit that is 1."""


def sum_rows(out, at, first, first_at, rows, indices, low, high, width):
    """Write `first[first_at:] + sum(rows[indices[e]] for e in range(low, high))` to `out[at:]`.

    `rows` are `[K, width]`, and `width` numbers are written; `width` is a compile-time constant.
    """


def sum_graded_rows(out, at, first, first_at, rows, indices, low, high, values, width):
    """Do as `sum_rows`, with each row times `values[e]`."""


def multiply_rows(
    out, at, out_stride, given, first, stride, matrix, start, apart, depth, rows, width
):
    """Write the product of `rows` rows of numbers and a matrix of `width` columns to `out[at:]`.

    Rows of `given` begin at `first`, `stride` apart, and have `depth` numbers; those of `matrix`
    begin at `start`, `apart` from one another, those of `out` at `at`, `out_stride` apart. `rows`
    and `width` are compile-time constants, so that the sums stay in registers.
    """


def turn(out, at, out_stride, source, start, stride):
    """Write the transpose of a square part of a matrix, of as many rows as 64 bytes hold numbers.

    Rows of `source` begin at `start` and are `stride` apart, those of `out` at `at`, `out_stride`
    apart.
    """


def prefetch(array, start, size):
    """Prefetch `array[start : start + size]`."""
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
