"""Record a scalar function as a `Program`, or refuse it, naming the line and what to write instead.

The function is run once on symbols, each of which records the operations done with it. Calls of its
free names (`exp`, `fire`, `where` and so on) are recorded as operations; numbers that it reads from
outside are passed with every call, so that a surrogate whose slope changes during training stays
the same program; plain functions that it calls are recorded as part of it.
"""

import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any, NoReturn

import torch

from neurospike import formulas

from .program import TEXTS, Operation, is_negative_zero, needed, text_of

# The functions that it may use by name, with their numbers of arguments.
FREE_NAMES = {
    name: TEXTS[name][0]
    for name in (
        *("fire", "heaviside", "detach", "where", "minimum", "maximum"),
        *("abs", "exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos"),
    )
}
_KNOWN = ", ".join(FREE_NAMES)
# Built-ins that it may call. Given a symbol they raise; given anything else they work as usual.
_BUILTINS = {one.__name__: one for one in (range, len, sum, zip, enumerate)}
_INSTEAD = {
    "max": "use maximum(a, b)",
    "min": "use minimum(a, b)",
    "pow": "multiply, as in u * u",
    "float": "leave it out: every value is a floating-point number",
    "int": "leave it out: every value is a floating-point number",
    "print": "leave it out; look at a layer's trace instead",
    "clamp": "use minimum(maximum(u, low), high)",
    "sign": "use where(u > 0.0, 1.0, -1.0)",
    "relu": "use maximum(u, 0.0)",
}


class Refusal(TypeError):
    """Raised for a function that not every backend can run; says where, and what to write."""


class _Symbol:
    """A value inside the function, identified by its operand; records what is done with it."""

    __slots__ = ("is_condition", "operand", "recorder")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: "_Recorder", operand: str, is_condition: bool = False) -> None:
        self.recorder, self.operand, self.is_condition = recorder, operand, is_condition

    def __getattr__(self, name: str) -> NoReturn:
        if self.is_condition:
            self._refuse(f"uses .{name} of a condition", "use where(condition, 1.0, 0.0)")
        self._refuse(f"uses .{name} of a value", f"write {_call_of(name)}")

    def __bool__(self) -> NoReturn:
        self._refuse(
            "asks whether a value is true (if, while, and, or, not, a chained comparison)",
            "use where(condition, a, b), and & and | between conditions in parentheses",
        )

    def __float__(self) -> NoReturn:
        self._refuse("turns a value into a Python number", "leave that out")

    __int__ = __index__ = __len__ = __iter__ = __float__

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse("takes a value apart", "a value is one number: leave the index out")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        self._refuse("calls a value", "leave the parentheses out")

    def __pow__(self, exponent: object) -> "_Symbol":
        if exponent not in (2, 3):
            self._refuse(
                "takes a power other than 2 or 3", "multiply, as in u * u, or use exp, log or sqrt"
            )
        square = self.recorder.do("mul", self, self)
        return square if exponent == 2 else self.recorder.do("mul", square, self)

    def __rpow__(self, base: object) -> NoReturn:
        self._refuse("takes a number to the power of a value", "use exp")

    def _other(self, other: object) -> NoReturn:
        self._refuse(
            "uses an operator other than + - * / > >= < <= & |",
            f"use these, and {_KNOWN}",
        )

    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __matmul__ = __rmatmul__ = _other
    __xor__ = __rxor__ = __lshift__ = __rshift__ = _other

    def _equal(self, other: object) -> NoReturn:
        self._refuse(
            "compares with == or !=, which rounding decides",
            "use a condition with > or <",
        )

    __eq__ = __ne__ = _equal

    def __invert__(self) -> NoReturn:
        self._refuse("uses ~", "turn the comparison round, as in u <= 0.0 for u > 0.0")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise self.recorder.refusal(what, instead)

    def __neg__(self) -> "_Symbol":
        return self.recorder.do("neg", self)

    def __pos__(self) -> "_Symbol":
        return self

    def __abs__(self) -> "_Symbol":
        return self.recorder.do("abs", self)


class _Number(_Symbol):
    """A number from outside, which may also be used as an integer, as by `range`."""

    __slots__ = ("value",)

    def __init__(self, recorder: "_Recorder", operand: str, value: float) -> None:
        super().__init__(recorder, operand)
        self.value = value

    def __index__(self) -> int:  # type: ignore[override]
        if not self.value.is_integer():
            self._refuse(f"uses {self.value} for an integer", "write a whole number")
        return int(self.value)


def _operator(name: str, turned: bool = False) -> Callable[[_Symbol, Any], _Symbol]:
    def method(self: _Symbol, other: Any) -> _Symbol:
        return self.recorder.do(name, *((other, self) if turned else (self, other)))

    return method


for _method, _name, _turned in (
    ("__add__", "add", False),
    ("__radd__", "add", True),
    ("__sub__", "sub", False),
    ("__rsub__", "sub", True),
    ("__mul__", "mul", False),
    ("__rmul__", "mul", True),
    ("__truediv__", "div", False),
    ("__rtruediv__", "div", True),
    ("__gt__", "gt", False),
    ("__ge__", "ge", False),
    ("__lt__", "lt", False),
    ("__le__", "le", False),
    ("__and__", "both", False),
    ("__rand__", "both", True),
    ("__or__", "either", False),
    ("__ror__", "either", True),
):
    setattr(_Symbol, _method, _operator(_name, _turned))


class _Recorder:
    """Records the operations of one function and of those that it calls."""

    def __init__(self, kind: str, function: FunctionType) -> None:
        self.kind, self.function = kind, function
        self.letter = "h" if kind == "surrogate" else "n"  # first letter of numbers' operands
        self.operations: list[Operation] = []
        self.numbers: list[float] = []
        self.codes: set[CodeType] = set()
        self.bound: dict[FunctionType, FunctionType] = {}
        self.names = {name: self._free(name, count) for name, count in FREE_NAMES.items()}
        self.names["cast"] = lambda condition, like: self.do("where", condition, 1.0, 0.0)

    def do(self, name: str, *operands: Any) -> _Symbol:
        wants_conditions = name in ("both", "either")
        texts = []
        for k, operand in enumerate(operands):
            condition = wants_conditions or (name == "where" and k == 0)
            texts.append(self._operand(operand, condition))
        self.operations.append((name, *texts))
        is_condition = name in ("gt", "ge", "lt", "le", "both", "either")
        return _Symbol(self, f"@{len(self.operations) - 1}", is_condition)

    def _operand(self, value: Any, condition: bool = False) -> str:
        if isinstance(value, _Symbol):
            if value.is_condition != condition:
                if condition:
                    raise self.refusal("uses a number as a condition", "compare it, as in u > 0.0")
                raise self.refusal(
                    "computes with a condition as with a number", "use where(condition, 1.0, 0.0)"
                )
            return value.operand
        if isinstance(value, _Unknown):
            value._refuse()
        if condition or type(value) is bool:
            raise self.refusal(f"uses {value!r} as a condition or number", "compare values of it")
        if type(value) is int and self.kind == "surrogate":
            return repr(float(value))
        if type(value) is int:
            raise self.refusal(
                f"uses the integer {value}, which would widen the number format",
                f"write {value}.0",
            )
        if type(value) is not float:
            raise self.refusal(
                f"computes with {value!r}, a {type(value).__name__}",
                f"use numbers, arithmetic, comparison, and {_KNOWN}",
            )
        if is_negative_zero(value):  # compilers would treat the literal as 0.0
            return self.do("neg", self.do("detach", 0.0)).operand
        return repr(value)

    def _free(self, name: str, count: int) -> Callable[..., _Symbol]:
        def free(*arguments: Any, **named: Any) -> _Symbol:
            if named or len(arguments) != count:
                raise self.refusal(
                    f"calls {name} with {len(arguments) + len(named)} arguments",
                    f"{name} takes {count}, without names",
                )
            return self.do(name, *arguments)

        free.__name__ = name
        return free

    def follow(self, function: FunctionType) -> FunctionType:
        """Return a copy of the function whose free names are those of this recorder."""
        if function not in self.bound:
            code = function.__code__
            self.codes.add(code)
            held = zip(code.co_freevars, function.__closure__ or ())
            cells = tuple(self._cell(name, cell) for name, cell in held)
            names: dict[str, Any] = {
                "__builtins__": {**_BUILTINS, "__import__": self._refuse_import}
            }
            # Defaults are numbers from outside, too: a lambda often gets a loop variable that way.
            defaults = tuple(self._outside("a default", one) for one in function.__defaults__ or ())
            new = FunctionType(code, names, function.__name__, defaults, cells)
            self.bound[function] = new
            for name in _globals_of(code):
                if name in function.__globals__:
                    value = function.__globals__[name]
                    is_constant = function.__globals__ is vars(formulas) and type(value) is float
                    names[name] = value if is_constant else self._outside(name, value)
                elif name in self.names:
                    names[name] = self.names[name]
        return self.bound[function]

    def _cell(self, name: str, cell: CellType) -> CellType:
        """Return what stands for a variable of the function around this one."""
        try:
            value = cell.cell_contents
        except ValueError:  # it has no value yet: whoever reads it gets a NameError with its name
            return CellType()
        return CellType(self._outside(name, value))

    def _refuse_import(self, name: str, *_: Any) -> NoReturn:
        raise self.refusal(f"imports {name}", "import outside of the function")

    def _outside(self, name: str, value: Any) -> Any:
        """Return the stand-in for a value that the function reads from outside."""
        if isinstance(value, FunctionType):  # `ns.detach` has the name of a formula
            value = vars(value).get("formula", value)
        for free, stand_in in self.names.items():
            # `formulas.sigmoid` is a surrogate, so the free name means `torch.sigmoid`.
            meant = torch.sigmoid if free == "sigmoid" else getattr(formulas, free, None)
            if value is meant:
                return stand_in
        if type(value) is bool or isinstance(value, (list, tuple, dict, str)):
            return _Unknown(self, name, value)
        if isinstance(value, Real):  # of Python or NumPy
            self.numbers.append(float(value))
            return self.number(len(self.numbers) - 1)
        if isinstance(value, FunctionType):
            return self.follow(value)
        return _Unknown(self, name, value)

    def number(self, k: int) -> _Symbol:
        """Return the symbol of the `k`-th number that is passed with every call.

        -0.0 is written into the program instead, since a look-up by value would find 0.0 for it.
        """
        value = self.numbers[k]
        if is_negative_zero(value):
            return _Symbol(self, self._operand(value))
        return _Number(self, f"{self.letter}{k}", value)

    def refusal(self, what: str, instead: str) -> Refusal:
        """Return the error for what the function does at the line that it is running."""
        where = f"the {self.kind} {self.function.__name__!r}"
        frame = self._frame()
        if frame is not None:
            line, file = frame.f_lineno, frame.f_code.co_filename
            text = linecache.getline(file, line).strip()
            where += f", line {line}" + (f" ({text})" if text else "")
        return Refusal(f"{where} {what}, which not every backend can run; {instead}")

    def _frame(self) -> FrameType | None:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code not in self.codes:
            frame = frame.f_back
        return frame


class _Unknown:
    """Stand-in for a value that a function must not use, refused where it is used."""

    def __init__(self, recorder: _Recorder, name: str, value: object) -> None:
        self.__dict__.update(recorder=recorder, name=name, kind=type(value).__name__)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise self.recorder.refusal(
            f"uses {self.name!r}, a {self.kind}",
            _INSTEAD.get(self.name, f"use numbers, arithmetic, comparison, and {_KNOWN}"),
        )

    def __getattr__(self, name: str) -> NoReturn:
        instead = f"write {_call_of(name)}" if name in FREE_NAMES else f"use {_KNOWN}"
        raise self.recorder.refusal(f"uses {self.name}.{name}", instead)

    __call__ = __bool__ = __getitem__ = __iter__ = __len__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse
    __rtruediv__ = __neg__ = __gt__ = __ge__ = __lt__ = __le__ = __pow__ = __rpow__ = _refuse


def _globals_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _call_of(name: str) -> str:
    return f"{name}(u)" if name in FREE_NAMES else f"the formula with {_KNOWN}"


def _run(recorder: _Recorder, arguments: list[_Symbol]) -> Any:
    """Run the function on symbols and return its result."""
    name = recorder.function.__name__
    try:
        return recorder.follow(recorder.function)(*arguments)
    except Refusal:
        raise
    except RecursionError:
        raise Refusal(
            f"the {recorder.kind} {name!r} calls itself; write the steps one after the other"
        ) from None
    except NameError as error:
        line = _line_of(recorder, error)
        unknown = getattr(error, "name", None) or str(error)
        advice = _INSTEAD.get(
            unknown, f"a function may use numbers, arithmetic, comparison and {_KNOWN}"
        )
        raise Refusal(
            f"the {recorder.kind} {name!r}{line} uses {unknown!r}, which is not known where it is "
            f"written; {advice}"
        ) from None
    except Exception as error:
        line = _line_of(recorder, error)
        raise Refusal(
            f"the {recorder.kind} {name!r}{line} cannot be run: {error}; it may use numbers, "
            f"arithmetic, comparison and {_KNOWN}"
        ) from error


def _line_of(recorder: _Recorder, error: BaseException) -> str:
    trace, found = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code in recorder.codes:
            text = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
            found = f", line {trace.tb_lineno}" + (f" ({text})" if text else "")
        trace = trace.tb_next
    return found


def arguments_of(kind: str, function: object) -> tuple[str, ...]:
    """Return the names of a function's arguments.

    Raises:
        TypeError: it is not a plain Python function, or has arguments that are not positional.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"a {kind} must be a plain Python function, got {function!r}; write it as a `def`"
        )
    code = function.__code__
    if code.co_kwonlyargcount or code.co_flags & 0x0C:
        raise TypeError(
            f"the {kind} {function.__name__!r} takes *arguments, **options or arguments by name "
            "only; name each argument in its place"
        )
    if code.co_flags & 0x2A0:
        raise TypeError(
            f"the {kind} {function.__name__!r} is a generator or a coroutine; return its results"
        )
    return code.co_varnames[: code.co_argcount]


@dataclass(frozen=True)
class Recorded:
    """A neuron's function as it was recorded.

    Attributes:
        text: its half of a `Program`, to be completed by that of a surrogate.
        numbers: values of the numbers that it reads from outside, as they were then.
        states: names of its states.
        parameters: names of its parameters.
    """

    text: str
    numbers: tuple[float, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]


def record(neuron: Callable[..., Any]) -> Recorded:
    """Record a neuron.

    Args:
        neuron: `(current, *states, *parameters)` to `(spike, *new_states)`; how many of its
            arguments are states follows from what it returns.

    Raises:
        Refusal: a TypeError, for a function that not every backend can run; it names the line and
            the remedy.
    """
    arguments = arguments_of("neuron", neuron)
    if not arguments:
        raise Refusal(
            f"the neuron {neuron.__name__!r} takes nothing; its first argument is current"
        )
    recorder = _Recorder("neuron", neuron)  # type: ignore[arg-type]
    symbols = [
        _Symbol(recorder, "x"),
        *(_Symbol(recorder, f"a{k}") for k in range(1, len(arguments))),
    ]
    found = _run(recorder, symbols)
    if not isinstance(found, tuple) or not 2 <= len(found) <= len(arguments):
        got = f"{len(found)} results" if isinstance(found, tuple) else "one result that is no tuple"
        raise Refusal(
            f"the neuron {neuron.__name__!r} returns {got} for the arguments "
            f"({', '.join(arguments)}); it must return (spike, *new_states), a value for each "
            "state, and take the current, the states and then the parameters"
        )
    states = len(found) - 1
    results = tuple(recorder._operand(one) for one in found)
    names = {
        f"a{k}": f"s{k - 1}" if k <= states else f"p{k - 1 - states}"
        for k in range(1, len(arguments))
    }
    operations = tuple(
        (name, *(names.get(o, o) for o in operands)) for name, *operands in recorder.operations
    )
    operations, results = needed(operations, tuple(names.get(one, one) for one in results))
    sizes = (states, len(arguments) - 1 - states, len(recorder.numbers))
    return Recorded(
        text_of(sizes, operations, results),
        tuple(recorder.numbers),
        arguments[1 : 1 + states],
        arguments[1 + states :],
    )


def record_surrogate(
    surrogate: Callable[..., Any], given: tuple[float, ...] = ()
) -> tuple[str, tuple[float, ...]]:
    """Record a surrogate, `(u, *given)` to the derivative of the spike at `u`.

    Returns:
        Its half of a `Program`, and its numbers: those given, then those that it reads from
        outside, as they are now.

    Raises:
        Refusal: as for `record`.
    """
    arguments, count = arguments_of("surrogate", surrogate), len(given)
    required = len(arguments) - len(surrogate.__defaults__ or ())
    if len(arguments) < 1 + count or required > 1 + count:
        wanted = "u" if count == 0 else f"u and {count} numbers"
        raise Refusal(
            f"the surrogate {surrogate.__name__!r} takes ({', '.join(arguments)}); it must be "
            f"callable with {wanted}; give its other arguments defaults"
        )
    recorder = _Recorder("surrogate", surrogate)  # type: ignore[arg-type]
    recorder.numbers = [float(one) for one in given]
    symbols = [_Symbol(recorder, "u"), *(recorder.number(k) for k in range(count))]
    found = _run(recorder, symbols)
    if isinstance(found, tuple):
        raise Refusal(
            f"the surrogate {surrogate.__name__!r} returns {len(found)} results, wanted one"
        )
    slope = recorder._operand(found)
    if any(operation[0] == "fire" for operation in recorder.operations):
        raise Refusal(f"the surrogate {surrogate.__name__!r} uses fire, whose derivative it is")
    operations, slopes = needed(tuple(recorder.operations), (slope,))
    return text_of((len(recorder.numbers),), operations, slopes), tuple(recorder.numbers)
