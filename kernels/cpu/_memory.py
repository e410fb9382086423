"""What compiled CPU loops need of the machine and Numba does not offer.

Memory larger than the caches: a store normally reads its cache line first, and what it writes
pushes other data out; `stream` writes past the caches, as the C library's copy does. `prefetch`
fetches a row before it is needed: a block of neurons is a new page at each time step, where the
hardware does not look ahead.

Threads: a loop is handed one row of integers, its job, from which several threads `take` part after
part. Addresses in a job become arrays with `array_at`, and functions that are run with `call`.
"""

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_BYTES = 64


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return a pointer to `array[index]`, in what an intrinsic generates."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def prefetch_line(typing_context, array, index):
    """Ask for the cache line that holds `array[index]`."""

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signature.args[0], *arguments)
        byte = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        read, keep, data = i32(0), i32(3), i32(1)
        builder.call(function, [builder.bitcast(pointer, byte), read, keep, data])
        return context.get_dummy_value()

    return types.none(array, index), generate


@intrinsic
def address(typing_context, array, index):
    """Return the address of `array[index]`."""

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signature.args[0], *arguments)
        return builder.ptrtoint(pointer, ir.IntType(64))

    return types.int64(array, index), generate


@intrinsic
def stream_line(typing_context, out, at, row, start):
    """Write one cache line, `out[at:]` which begins it, from `row[start:]`, past the caches."""

    def generate(context, builder, signature, arguments):
        out_type, _, row_type, _ = signature.args
        element = context.get_data_type(out_type.dtype)
        lanes = LINE_BYTES // context.get_abi_sizeof(element)
        line = ir.VectorType(element, lanes).as_pointer()
        source = element_pointer(context, builder, row_type, *arguments[2:])
        target = element_pointer(context, builder, out_type, *arguments[:2])
        load = builder.load(builder.bitcast(source, line))
        load.align = context.get_abi_sizeof(element)
        store = builder.store(load, builder.bitcast(target, line))
        store.align = LINE_BYTES
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(out, at, row, start), generate


@intrinsic
def fence(typing_context):
    """Let other threads see what was streamed before anything that is written later."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def take(typing_context, job, index):
    """Return `job[index]` and add one to it, as one step that no other thread comes between."""

    def generate(context, builder, signature, arguments):
        target = element_pointer(context, builder, signature.args[0], *arguments)
        return builder.atomic_rmw("add", target, ir.IntType(64)(1), "seq_cst")

    return types.int64(job, index), generate


@intrinsic
def call(typing_context, function, arguments):
    """Run the C function at an address; the arguments are a tuple of integers."""

    def generate(context, builder, signature, given):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(arguments))
        place = builder.inttoptr(given[0], kind.as_pointer())
        builder.call(place, cgutils.unpack_tuple(builder, given[1]))
        return context.get_dummy_value()

    return types.none(function, arguments), generate


@intrinsic
def pointer(typing_context, address, like):
    """Return an address as a pointer to numbers of the format of `like`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@njit
def array_at(address, size, like):
    """Return `size` numbers of the format of `like` that lie at an address, as an array."""
    return carray(pointer(address, like), (size,))


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


# What a function that is re-jitted may use of the above by name: all that is compiled already.
INTRINSICS: dict[str, Any] = {
    "address": address,
    "array_at": array_at,
    "call": call,
    "fence": fence,
    "prefetch_line": prefetch_line,
    "stream_line": stream_line,
    "take": take,
}
