"""Conversion of vectors of 16-bit numbers to float32 and back, written as LLVM IR.

bfloat16 is the upper half of a float32. float16 is converted by the processor if it can do so;
otherwise LLVM would call a function that no process has, so the bits are moved here (after Giesen,
"Half to float done quick", 2012). Numbers are rounded to even, and NaN stays NaN.
"""

import functools
from typing import Any

import torch
from llvmlite import binding as llvm
from llvmlite import ir

FORMS = {torch.float16: "half", torch.bfloat16: "bfloat16"}  # what `form` is in functions here
I16, I32, FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


@functools.cache
def _converts() -> bool:
    """Whether the processor has instructions that convert float16."""
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        return True
    try:
        return bool(llvm.get_host_cpu_features().get("f16c"))
    except RuntimeError:  # on processors that LLVM cannot ask
        return False


class _Bits:
    """Types of vectors of float32, of their bits and of 16-bit numbers, and constants of them."""

    def __init__(self, count: int) -> None:
        self.floats, self.words = ir.VectorType(FLOAT, count), ir.VectorType(I32, count)
        self.halves = ir.VectorType(I16, count)
        self.native = ir.VectorType(ir.HalfType(), count)

    def word(self, number: int) -> Any:
        return ir.Constant(self.words, [number] * self.words.count)

    def number(self, number: float) -> Any:
        return ir.Constant(self.floats, [number] * self.floats.count)


def widened(build: Any, value: Any, form: str) -> Any:
    """Return as float32 a vector of 16-bit numbers, which is given as integers."""
    v = _Bits(value.type.count)
    if form == "half" and _converts():
        return build.fpext(build.bitcast(value, v.native), v.floats)
    bits = build.zext(value, v.words)
    if form == "bfloat16":
        return build.bitcast(build.shl(bits, v.word(16)), v.floats)
    sign = build.shl(build.and_(bits, v.word(0x8000)), v.word(16))
    size = build.shl(build.and_(bits, v.word(0x7FFF)), v.word(13))
    # The biases of the two formats' exponents differ by 112, for subnormal numbers too.
    scaled = build.fmul(build.bitcast(size, v.floats), v.number(2.0**112))
    last = build.icmp_unsigned(">=", size, v.word(0x7C00 << 13))  # infinity or NaN
    found = build.select(last, build.or_(size, v.word(0x7F800000)), build.bitcast(scaled, v.words))
    return build.bitcast(build.or_(found, sign), v.floats)


def narrowed(build: Any, value: Any, form: str) -> Any:
    """Return a vector of float32 as 16-bit numbers, which are returned as integers."""
    v = _Bits(value.type.count)
    if form == "half" and _converts():
        return build.bitcast(build.fptrunc(value, v.native), v.halves)
    bits = build.bitcast(value, v.words)
    none = build.fcmp_unordered("uno", value, value)
    if form == "bfloat16":
        odd = build.and_(build.lshr(bits, v.word(16)), v.word(1))
        rounded = build.lshr(build.add(bits, build.add(odd, v.word(0x7FFF))), v.word(16))
        return build.trunc(build.select(none, v.word(0x7FC0), rounded), v.halves)
    sign = build.lshr(build.and_(bits, v.word(0x80000000)), v.word(16))
    size = build.and_(bits, v.word(0x7FFFFFFF))
    odd = build.and_(build.lshr(size, v.word(13)), v.word(1))
    # The biases differ by 112; a carry beyond the largest number gives the bits of infinity.
    rounded = build.sub(build.add(size, build.add(odd, v.word(0xFFF))), v.word(112 << 23))
    rounded = build.lshr(rounded, v.word(13))
    # Adding a half rounds to the last digit of float16's subnormal numbers.
    half = v.number(0.5)
    small = build.fadd(build.bitcast(size, v.floats), half)
    small = build.sub(build.bitcast(small, v.words), build.bitcast(half, v.words))
    found = build.select(build.icmp_unsigned("<", size, v.word(113 << 23)), small, rounded)
    large = build.icmp_unsigned(">=", size, v.word(143 << 23))  # 2^16 and more
    found = build.select(large, v.word(0x7C00), found)
    found = build.select(none, v.word(0x7E00), found)
    return build.trunc(build.or_(found, sign), v.halves)
