"""Memory, threads and calls of compiled loops, as `_intrinsics` describes them."""

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from neurospike.kernels.cpu._intrinsics import LINE_BYTES


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return a pointer to `array[index]`, for the code that an intrinsic generates."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def prefetch_line(typing_context, array, index):
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
    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signature.args[0], *arguments)
        return builder.ptrtoint(pointer, ir.IntType(64))

    return types.int64(array, index), generate


@intrinsic
def stream_line(typing_context, out, at, row, start):
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
    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def take(typing_context, job, index):
    def generate(context, builder, signature, arguments):
        target = element_pointer(context, builder, signature.args[0], *arguments)
        return builder.atomic_rmw("add", target, ir.IntType(64)(1), "seq_cst")

    return types.int64(job, index), generate


@intrinsic
def call(typing_context, function, arguments):
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
    return carray(pointer(address, like), (size,))


INTRINSICS: dict[str, Any] = {
    "address": address,
    "array_at": array_at,
    "call": call,
    "fence": fence,
    "prefetch_line": prefetch_line,
    "stream_line": stream_line,
    "take": take,
}
