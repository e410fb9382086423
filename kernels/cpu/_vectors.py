"""Vectors of a fixed width in compiled loops, as `_intrinsics` describes them."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from neurospike.kernels.cpu._memory import element_pointer

BITS = 64  # numbers compared at once
VECTOR_BYTES = 64
I64 = ir.IntType(64)


def _look(context: Any, builder: Any, signature: Any, arguments: Any, values: tuple) -> Any:
    """Return 64 bits that are 1 where a number equals none of `values`; NaN equals none."""
    element = context.get_data_type(signature.args[0].dtype)
    wide = ir.VectorType(element, BITS)
    place = builder.bitcast(
        element_pointer(context, builder, signature.args[0], *arguments), wide.as_pointer()
    )
    load = builder.load(place)
    load.align = context.get_abi_sizeof(element)
    found = None
    for value in values:
        constant = ir.Constant(wide, [element(value)] * BITS)
        if isinstance(element, ir.IntType):
            differs = builder.icmp_unsigned("!=", load, constant)
        else:
            differs = builder.fcmp_unordered("!=", load, constant)
        found = differs if found is None else builder.and_(found, differs)
    return builder.bitcast(found, I64)


@intrinsic
def nonzero(typing_context, array, at):
    def generate(context, builder, signature, arguments):
        return _look(context, builder, signature, arguments, (0,))

    return types.int64(array, at), generate


@intrinsic
def graded(typing_context, array, at):
    def generate(context, builder, signature, arguments):
        return _look(context, builder, signature, arguments, (0, 1))

    return types.int64(array, at), generate


@intrinsic
def ones(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def lowest(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


def _sum(context: Any, builder: Any, signature: Any, arguments: Any, width: int) -> None:
    names = ("out", "at", "first", "first_at", "rows", "indices", "low", "high", "values")
    kind = dict(zip(names, signature.args))
    given = dict(zip(names, arguments))
    element = context.get_data_type(kind["out"].dtype)
    size = context.get_abi_sizeof(element)
    lanes = VECTOR_BYTES // size
    count = width // lanes
    vector = ir.VectorType(element, lanes)

    def at(name: str, index: Any) -> Any:
        return element_pointer(context, builder, kind[name], given[name], index)

    def loads(pointer: Any) -> list[Any]:
        base = builder.bitcast(pointer, vector.as_pointer())
        found = []
        for k in range(count):
            load = builder.load(builder.gep(base, [I64(k)]))
            load.align = size
            found.append(load)
        return found

    sums = [cgutils.alloca_once(builder, vector) for _ in range(count)]
    for place in sums:
        builder.store(ir.Constant(vector, [element(0)] * lanes), place)
    with cgutils.for_range_slice(builder, given["low"], given["high"], I64(1), I64) as (e, _):
        index = builder.sext(builder.load(at("indices", e)), I64)
        row = loads(at("rows", builder.mul(index, I64(width))))
        if "values" in given:
            value = builder.load(at("values", e))
            many = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I64(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            many = builder.shuffle_vector(many, ir.Constant(vector, ir.Undefined), zeros)
            row = [builder.fmul(many, part) for part in row]
        for place, part in zip(sums, row):
            builder.store(builder.fadd(builder.load(place), part), place)
    target = builder.bitcast(at("out", given["at"]), vector.as_pointer())
    # `first` is added last: where it is the sum of earlier chunks, each chunk is summed on its own,
    # which loses fewer digits.
    for k, (place, value) in enumerate(zip(sums, loads(at("first", given["first_at"])))):
        store = builder.store(
            builder.fadd(value, builder.load(place)), builder.gep(target, [I64(k)])
        )
        store.align = size


@intrinsic(prefer_literal=True)
def sum_rows(typing_context, out, at, first, first_at, rows, indices, low, high, width):
    size = width.literal_value

    def generate(context, builder, signature, arguments):
        _sum(context, builder, signature, arguments[:8], size)
        return context.get_dummy_value()

    return types.none(out, at, first, first_at, rows, indices, low, high, width), generate


@intrinsic(prefer_literal=True)
def sum_graded_rows(
    typing_context, out, at, first, first_at, rows, indices, low, high, values, width
):
    size = width.literal_value

    def generate(context, builder, signature, arguments):
        _sum(context, builder, signature, arguments[:9], size)
        return context.get_dummy_value()

    return types.none(out, at, first, first_at, rows, indices, low, high, values, width), generate


def _multiply(context: Any, builder: Any, signature: Any, arguments: Any, rows: int, width: int):
    names = ("out", "at", "out_stride", "given", "first", "stride", "matrix", "start", "apart")
    kind = dict(zip(names, signature.args))
    given = dict(zip((*names, "depth"), arguments))
    element = context.get_data_type(kind["out"].dtype)
    size = context.get_abi_sizeof(element)
    lanes = VECTOR_BYTES // size
    count = width // lanes
    vector = ir.VectorType(element, lanes)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    nothing = ir.Constant(vector, ir.Undefined)

    def at(name: str, index: Any) -> Any:
        return element_pointer(context, builder, kind[name], given[name], index)

    sums = [[cgutils.alloca_once(builder, vector) for _ in range(count)] for _ in range(rows)]
    for place in (one for row in sums for one in row):
        builder.store(ir.Constant(vector, [element(0)] * lanes), place)
    with cgutils.for_range(builder, given["depth"], intp=I64) as loop:
        k = loop.index
        begin = builder.add(given["start"], builder.mul(k, given["apart"]))
        base = builder.bitcast(at("matrix", begin), vector.as_pointer())
        parts = []
        for c in range(count):
            load = builder.load(builder.gep(base, [I64(c)]))
            load.align = size
            parts.append(load)
        for row in range(rows):
            index = builder.add(given["first"], builder.mul(given["stride"], I64(row)))
            value = builder.load(at("given", builder.add(index, k)))
            many = builder.shuffle_vector(
                builder.insert_element(nothing, value, I64(0)), nothing, zeros
            )
            for place, part in zip(sums[row], parts):
                # One rounding or two, whichever is faster on the processor.
                product = builder.fmul(many, part, flags=("contract",))
                total = builder.fadd(builder.load(place), product, flags=("contract",))
                builder.store(total, place)
    for row in range(rows):
        index = builder.add(given["at"], builder.mul(given["out_stride"], I64(row)))
        target = builder.bitcast(at("out", index), vector.as_pointer())
        for c, place in enumerate(sums[row]):
            store = builder.store(builder.load(place), builder.gep(target, [I64(c)]))
            store.align = size


@intrinsic(prefer_literal=True)
def multiply_rows(
    typing_context, out, at, out_stride, given, first, stride, matrix, start, apart, depth, rows,
    width,
):  # fmt: skip
    count, size = rows.literal_value, width.literal_value

    def generate(context, builder, signature, arguments):
        _multiply(context, builder, signature, arguments[:10], count, size)
        return context.get_dummy_value()

    kinds = (out, at, out_stride, given, first, stride, matrix, start, apart, depth, rows, width)
    return types.none(*kinds), generate


@intrinsic
def turn(typing_context, out, at, out_stride, source, start, stride):
    def generate(context, builder, signature, arguments):
        element = context.get_data_type(out.dtype)
        size = context.get_abi_sizeof(element)
        lanes = VECTOR_BYTES // size
        wide = ir.VectorType(element, lanes)
        target, first, apart, given, low, step = arguments

        def place(array_type: Any, array: Any, begin: Any, distance: Any, row: int) -> Any:
            index = builder.add(begin, builder.mul(distance, I64(row)))
            pointer = element_pointer(context, builder, array_type, array, index)
            return builder.bitcast(pointer, wide.as_pointer())

        rows = []
        for row in range(lanes):
            load = builder.load(place(source, given, low, step, row))
            load.align = size
            rows.append(load)
        # Swap the off-diagonal quarters of squares of 2, 4, 8, ... numbers (Eklundh 1972).
        half = 1
        while half < lanes:
            for row in range(lanes):
                if row & half:
                    continue
                a, b = rows[row], rows[row + half]
                upper = [k if not k & half else lanes + k - half for k in range(lanes)]
                lower = [k + half if not k & half else lanes + k for k in range(lanes)]
                i32 = ir.VectorType(ir.IntType(32), lanes)
                rows[row] = builder.shuffle_vector(a, b, ir.Constant(i32, upper))
                rows[row + half] = builder.shuffle_vector(a, b, ir.Constant(i32, lower))
            half *= 2
        for row, value in enumerate(rows):
            store = builder.store(value, place(out, target, first, apart, row))
            store.align = size
        return context.get_dummy_value()

    return types.none(out, at, out_stride, source, start, stride), generate


INTRINSICS: dict[str, Any] = {
    "nonzero": nonzero,
    "graded": graded,
    "ones": ones,
    "lowest": lowest,
    "sum_rows": sum_rows,
    "sum_graded_rows": sum_graded_rows,
    "multiply_rows": multiply_rows,
    "turn": turn,
}
