"""Symbols that write down what is done to them: how a formula of the user's is recorded.

`neurospike.own_formulas` calls a formula with a `Scalar` for each argument. Every operation on it
writes a line on the `Tape`; what a compiler could not run raises `UnfitError`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .formulas import FREE_NAMES

MAY_USE = "arithmetic, comparison, and exp, abs, where and cast of neurospike.formulas"


class UnfitError(Exception):
    """What a formula may not do, and what to write instead."""


def _of_numbers(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    def method(self: float, *others: Any) -> Any:
        if not all(isinstance(other, (int, float)) for other in others):
            return NotImplemented
        return Number(plain(float(self), *map(float, others)))

    return method


class Number(float):
    """A number from outside the formula. Two numbers make a number, in Python."""

    __add__, __radd__ = _of_numbers("__add__"), _of_numbers("__radd__")
    __sub__, __rsub__ = _of_numbers("__sub__"), _of_numbers("__rsub__")
    __mul__, __rmul__ = _of_numbers("__mul__"), _of_numbers("__rmul__")
    __truediv__, __rtruediv__ = _of_numbers("__truediv__"), _of_numbers("__rtruediv__")
    __pow__, __rpow__ = _of_numbers("__pow__"), _of_numbers("__rpow__")
    __neg__, __abs__ = _of_numbers("__neg__"), _of_numbers("__abs__")

    def __index__(self) -> int:
        if not self.is_integer():
            raise TypeError(f"{float(self)} is not an integer")
        return int(self)


class Recorded:
    """A value that is known only where the formula runs; `text` is its name there."""

    def __init__(self, tape: "Tape", text: str) -> None:
        self.tape, self.text = tape, text

    def _branch(self) -> NoReturn:
        raise UnfitError(
            "asks if, and, or, not, min, max or a loop about a value that differs from neuron to "
            "neuron; write where(condition, a, b), and join conditions with & and |"
        )

    __bool__ = __iter__ = __len__ = _branch

    def _value(self) -> NoReturn:
        raise UnfitError("asks for the value of what differs from neuron to neuron; leave that out")

    __float__ = __int__ = __index__ = _value

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        instead = f"{name}(...)" if name in FREE_NAMES else MAY_USE
        raise UnfitError(
            f"uses .{name} of a tensor, and a formula is one of numbers; write {instead}"
        )


class Condition(Recorded):
    """The result of a comparison."""

    def _number(self, *others: Any) -> NoReturn:
        raise UnfitError("calculates with a comparison; make a number of it: cast(condition, u)")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _number
    __truediv__ = __rtruediv__ = __neg__ = __invert__ = __abs__ = _number

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._number()

    def _join(self, sign: str, other: Any) -> "Condition":
        if not isinstance(other, Condition):
            raise UnfitError(
                f"joins a comparison and a number with {sign}; put comparisons in brackets"
            )
        return Condition(self.tape, self.tape.line("{} " + sign + " {}", self, other))

    def __and__(self, other: Any) -> "Condition":
        return self._join("&", other)

    def __or__(self, other: Any) -> "Condition":
        return self._join("|", other)


def _operation(
    sign: str, swapped: bool = False, kind: type[Recorded] | None = None
) -> Callable[..., Any]:
    def method(self: Recorded, other: Any) -> Any:
        if not isinstance(other, (Scalar, int, float)):
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return (kind or Scalar)(self.tape, self.tape.line("{} " + sign + " {}", *pair))

    return method


class Scalar(Recorded):
    """A number of each neuron."""

    __add__, __radd__ = _operation("+"), _operation("+", swapped=True)
    __sub__, __rsub__ = _operation("-"), _operation("-", swapped=True)
    __mul__, __rmul__ = _operation("*"), _operation("*", swapped=True)
    __truediv__, __rtruediv__ = _operation("/"), _operation("/", swapped=True)
    __gt__, __ge__ = _operation(">", kind=Condition), _operation(">=", kind=Condition)
    __lt__, __le__ = _operation("<", kind=Condition), _operation("<=", kind=Condition)
    __eq__, __ne__ = _operation("==", kind=Condition), _operation("!=", kind=Condition)
    __hash__ = object.__hash__

    def __neg__(self) -> "Scalar":
        return self.tape.scalar("-{}", self)

    def __pos__(self) -> "Scalar":
        return self

    def __abs__(self) -> "Scalar":
        return self.tape.scalar("abs({})", self)

    def __pow__(self, exponent: Any) -> Any:
        if not isinstance(exponent, (int, float)) or exponent not in (2, 3):
            raise UnfitError("takes a power other than 2 or 3; write products, or exp")
        return self * self if exponent == 2 else self * self * self


class Tape:
    """The lines of the new function, and the numbers from outside that they read."""

    def __init__(self, arguments: Sequence[str], fixed: bool = False) -> None:
        self.fixed = fixed
        self.arguments = [Scalar(self, name) for name in arguments]
        self.lines: list[str] = []
        self.numbers: list[float] = []

    def line(self, template: str, *operands: Any) -> str:
        """Write a line; return the name of its result."""
        texts = map(self.text, operands)  # before the line: it may write one
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {template.format(*texts)}")
        return name

    def scalar(self, template: str, *operands: Any) -> Scalar:
        """Write a line; return its result."""
        return Scalar(self, self.line(template, *operands))

    def text(self, value: Any) -> str:
        """Return what a value is called in the new function: a name, or a number in digits."""
        if isinstance(value, Recorded):
            return value.text
        if math.isfinite(value) and (self.fixed or not isinstance(value, Number)):
            return repr(float(value))  # in digits 1 is 1.0: an integer would widen the format
        if self.fixed:
            raise UnfitError(f"uses the number {value}; write a finite one")
        known = [id(number) for number in self.numbers]
        if id(value) not in known:
            self.numbers.append(value)
            known.append(id(value))
        return f"number{known.index(id(value))}"

    def constant(self, value: float) -> Scalar:
        """Return a number as one of each neuron, in the state's format."""
        first = self.arguments[0]
        return self.where(first == first, value, value)

    # What the free names of a formula stand for while it is recorded.

    def exp(self, x: Any) -> Any:
        """Record `exp`."""
        return self.scalar("exp({})", x) if isinstance(x, Scalar) else Number(math.exp(x))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Record `where`."""
        if isinstance(condition, Scalar):
            raise UnfitError("gives where a number for a condition; compare it, as in u > 0.0")
        if not isinstance(condition, Condition):
            return a if condition else b
        if isinstance(a, Scalar) or isinstance(b, Scalar):
            return self.scalar("where({}, {}, {})", condition, a, b)
        # Of two plain numbers a compiler would not know the format.
        chosen = self.cast(condition, self.arguments[0])
        return chosen * a + (1.0 - chosen) * b

    def cast(self, condition: Any, like: Any) -> Any:
        """Record `cast`."""
        if isinstance(condition, Scalar):
            raise UnfitError("casts a number; compare it, as in cast(u > 0.0, u)")
        if not isinstance(condition, Condition):
            return Number(float(condition))
        like = like if isinstance(like, Scalar) else self.arguments[0]
        return self.scalar("cast({}, {})", condition, like)
