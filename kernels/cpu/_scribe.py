"""A neuron's operations written as LLVM IR, on vectors of numbers.

Functions that a processor has no instruction for are computed in float64 and rounded, as the
other backends do: libraries differ in the last bit of float32, and a spike would show it. Those of
the gradient (`program.QUICK`) stay in the state's format. Where the state is float32, the
exponential function is written out for all numbers of a vector at once. The C library computes the
others, and where the state is float64 this one too, as no rounding hides its last bit: one number
after another.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from neurospike.neurons.program import Operation, is_constant

I32 = ir.IntType(32)
DOUBLE = ir.DoubleType()
COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
# Functions that are intrinsics of LLVM, whether it compiles them to instructions or to calls.
INTRINSIC = frozenset({"exp", "log", "sqrt", "sin", "cos", "fabs"})


class _Exp(NamedTuple):
    """Constants with which the exponential function of a number format is computed.

    Attributes:
        terms: highest power of the series, enough for the last bit on -log(2) / 2 to log(2) / 2.
        low, high: bounds beyond which the result is 0 or infinite.
        digits: bits of the mantissa after the leading one.
        excess: bias of the exponent.
        tens, units: log(2) in two parts, the first of which ends in zero bits, so that its product
            with an exponent is exact.
    """

    terms: int
    low: float
    high: float
    digits: int
    excess: int
    tens: float
    units: float


EXP = {
    64: _Exp(13, -746.0, 710.0, 52, 1023, 0.6931471803691238, 1.9082149292705877e-10),
    32: _Exp(7, -104.0, 89.0, 23, 127, 0.693359375, -2.1219444005469057e-4),
}


class Scribe:
    """Writes operations on vectors of numbers of one format, one after the other."""

    def __init__(self, builder: ir.IRBuilder, kind: Any) -> None:
        self.builder, self.kind = builder, kind

    def constant(self, value: float, kind: Any = None) -> Any:
        return ir.Constant(kind or self.kind, value)

    def function(self, name: str, kind: Any) -> Any:
        """Return the declaration of a function by name, from one value of a type to another."""
        module = self.builder.module
        known = module.globals.get(name)
        return known or ir.Function(module, ir.FunctionType(kind, [kind]), name)

    def exp(self, x: Any) -> Any:
        """Return the exponential function, in the format of its argument, to about the last bit.

        With k the integer nearest to x / log(2), it is 2^k times a series in x - k * log(2).
        """
        build, kind = self.builder, x.type
        bits = 64 if kind.element == DOUBLE else 32
        found = EXP[bits]
        whole = ir.VectorType(ir.IntType(bits), kind.count)
        constant = functools.partial(self.constant, kind=kind)

        def added(one: Any, other: Any, to: Any) -> Any:
            product = build.fmul(one, other, flags=("contract",))
            return build.fadd(product, to, flags=("contract",))

        for sign, bound in (("<", constant(found.low)), (">", constant(found.high))):
            x = build.select(build.fcmp_ordered(sign, x, bound), bound, x)  # NaN stays
        # Added to a number so large that it has no fraction, x / log(2) is rounded to k, which
        # then is in the lowest bits of the sum.
        large = constant(1.5 * 2.0**found.digits)
        shifted = added(x, constant(1.0 / math.log(2.0)), large)
        k = build.fsub(shifted, large)
        rest = added(k, constant(-found.units), added(k, constant(-found.tens), x))
        series = constant(1.0 / math.factorial(found.terms))
        for power in range(found.terms - 1, 1, -1):
            series = added(series, rest, constant(1.0 / math.factorial(power)))
        series = build.fadd(added(build.fmul(rest, rest), series, rest), constant(1.0))
        power = build.sub(build.bitcast(shifted, whole), build.bitcast(large, whole))
        # 2^k as two factors: each is a normal number even where 2^k overflows or is subnormal.
        half = build.ashr(power, self.constant(1, whole))
        for part in (half, build.sub(power, half)):
            exponent = build.add(part, self.constant(found.excess, whole))
            scale = build.shl(exponent, self.constant(found.digits, whole))
            series = build.fmul(series, build.bitcast(scale, kind))
        return series

    def call(self, name: str, value: Any) -> Any:
        """Return the function of a name, of the C library or `exp`, in its argument's format."""
        if name == "exp" and self.kind.element != DOUBLE:
            return self.exp(value)
        build, kind = self.builder, value.type
        element = kind.element
        if name in INTRINSIC:
            full = f"llvm.{name}.v{kind.count}{element.intrinsic_name}"
            return build.call(self.function(full, kind), [value])
        function = self.function(name if element == DOUBLE else f"{name}f", element)
        for k in range(kind.count):
            one = build.call(function, [build.extract_element(value, I32(k))])
            value = build.insert_element(value, one, I32(k))
        return value

    def rounded(self, function: Callable[[Any], Any], value: Any) -> Any:
        """Return a function of a value, computed in float64 and rounded to its format."""
        if self.kind.element == DOUBLE:
            return function(value)
        wide = function(self.builder.fpext(value, ir.VectorType(DOUBLE, self.kind.count)))
        return self.builder.fptrunc(wide, self.kind)

    def sigmoid(self, u: Any) -> Any:
        one = self.constant(1.0, u.type)
        return self.builder.fdiv(
            one, self.builder.fadd(one, self.call("exp", self.builder.fneg(u)))
        )

    def lesser(self, sign: str, a: Any, b: Any) -> Any:
        """Return the lesser of two numbers, or for the sign ">" the greater; NaN if either is."""
        build = self.builder
        first = build.or_(build.fcmp_ordered(sign, a, b), build.fcmp_unordered("!=", a, a))
        return build.select(first, a, b)

    def do(self, name: str, *given: Any) -> Any:
        """Return the result of an operation of `program.TEXTS` or `program.QUICK`."""
        build = self.builder
        quick, name = name.startswith("quick_"), name.removeprefix("quick_")
        if name in COMPARISONS:
            return build.fcmp_ordered(COMPARISONS[name], *given)
        if name in ("add", "sub", "mul", "div", "neg"):
            return getattr(build, f"f{name}")(*given)
        if name in ("both", "either"):
            return (build.and_ if name == "both" else build.or_)(*given)
        if name == "where":
            return build.select(*given)
        if name == "heaviside":
            above = build.fcmp_ordered(">", given[0], self.constant(0.0))
            return build.select(above, self.constant(1.0), self.constant(0.0))
        if name == "detach":
            return given[0]
        if name in ("minimum", "maximum"):
            return self.lesser("<" if name == "minimum" else ">", *given)
        if name in ("abs", "sqrt"):  # rounded once by the processor
            return self.call("fabs" if name == "abs" else name, *given)
        function = self.sigmoid if name == "sigmoid" else functools.partial(self.call, name)
        return function(*given) if quick else self.rounded(function, *given)

    def results(
        self, values: dict[str, Any], operations: Sequence[Operation], results: Sequence[str]
    ) -> list[Any]:
        """Write the operations, adding their values to the operands'; return the results."""

        def value(operand: str) -> Any:
            return self.constant(float(operand)) if is_constant(operand) else values[operand]

        for k, (name, *operands) in enumerate(operations):
            values[f"@{k}"] = self.do(name, *map(value, operands))
        return [value(one) for one in results]
