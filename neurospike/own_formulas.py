"""Formulas that users bring: recorded once, so that what one backend runs every backend runs.

A surrogate or a function of a neuron is called once, on symbols in place of numbers. Each operation
on a symbol writes a line of a new function, such as `t0 = u * u`, which torch runs and every
compiler takes. Whatever else a formula does, such as an `if` on a value that differs from neuron to
neuron, raises an error that names the line.

Numbers that a surrogate reads from outside become arguments of the new function. Their values are
those of the moment of recording, but they are no part of its text: where only such a number
changes, as in a surrogate that is annealed, nothing is compiled anew.
"""

import builtins
import functools
import hashlib
import inspect
import linecache
import re
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import FunctionType
from typing import Any

from . import binding, formulas, symbols
from .symbols import MAY_USE, Condition, Number, Scalar, Tape, UnfitError

# What a formula finds beside its own names. Of symbols they raise; of plain numbers they are right.
_BUILTINS = ("bool", "enumerate", "float", "int", "len", "max", "min", "range", "sum", "zip")


def record(
    function: Callable[..., Any],
    what: str,
    arguments: Sequence[str],
    given: Sequence[float] = (),
    results: Sequence[str] = ("",),
    fixed: bool = False,
) -> tuple[FunctionType, tuple[float, ...]]:
    """Return a formula in the form that every backend runs, and the numbers that it reads.

    Args:
        function: a plain Python function of numbers.
        what: how errors name it, such as `"the surrogate"`.
        arguments: names of its arguments that differ from neuron to neuron.
        given: numbers that it is called with after these.
        results: names of what it must return; a single result is returned as it is.
        fixed: write the numbers from outside into the text of the new function.

    Returns:
        `new, numbers`: `new(*arguments, *numbers)` is what `function(*arguments, *given)` is.

    Raises:
        TypeError: it does something that not every backend can run; the line is named.
    """
    plain = binding.plain(function)
    if hasattr(plain, "formula"):  # it was recorded before
        return plain, tuple(given)
    what = f"{what} {plain.__name__!r}"
    tape = Tape(arguments, fixed)
    numbers = map(Number, (*given, *_defaults(plain, what, arguments, given)))
    try:
        bound = _Binder(tape).function(plain)
    except RecursionError as error:
        raise TypeError(f"{what} calls itself, which no compiler runs here") from error
    try:
        found = bound(*tape.arguments, *numbers)
    except UnfitError as error:
        raise TypeError(f"{what} {error}{_place(error)}") from error
    except NameError as error:
        raise TypeError(
            f"{what} uses {error.name!r}, which is no number or function known where it is "
            f"written; it may use {MAY_USE}{_place(error)}"
        ) from error
    except Exception as error:
        raise TypeError(f"{what} may use {MAY_USE}; got {error}{_place(error)}") from error
    texts = [tape.text(value) for value in _results(tape, found, what, results)]
    names = [*arguments, *(f"number{k}" for k in range(len(tape.numbers)))]
    lines = [*tape.lines, f"return {', '.join(texts)}"]
    name = re.sub(r"\W", "_", plain.__name__)
    source = f"def {name}({', '.join(names)}):\n" + "".join(f"    {line}\n" for line in lines)
    return load(name, source), tuple(map(float, tape.numbers))


@functools.lru_cache
def load(name: str, source: str) -> FunctionType:
    """Return the function that the text of a recorded formula defines."""
    file = f"<neurospike formula {_digest(source)}>"
    # Triton reads a function's text where Python's tracebacks do.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {name: getattr(formulas, name) for name in formulas.FREE_NAMES}
    names["__name__"] = __name__  # Triton asks in which module a function was made
    exec(compile(source, file, "exec"), names)
    function = names[name]
    function.formula = source
    return function


def key_of(function: Callable[..., Any]) -> str:
    """Return a short name of a recorded formula, the same for the same text."""
    return f"{function.__name__}-{_digest(vars(function)['formula'])}"


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


class _Binder(binding.Binder):
    """Gives a function, and those it calls, the symbols' `exp` and the numbers from outside."""

    def __init__(self, tape: Tape) -> None:
        names = {"exp": tape.exp, "abs": abs, "where": tape.where, "cast": tape.cast}
        allowed = {name: getattr(builtins, name) for name in _BUILTINS}
        super().__init__(names, builtins=allowed)

    def known(self, function: FunctionType) -> dict[str, object]:
        """Return what names stand for in `function`: a `where` of the user's own stays theirs."""
        found = {name: function.__globals__.get(name) for name in self.names}
        own = {name for name, value in found.items() if _is_own(value)}
        return {name: value for name, value in self.names.items() if name not in own}

    def value(self, value: object) -> Any:
        """Return what a name stands for in the function that is called with symbols."""
        if isinstance(value, Real) and not isinstance(value, bool):
            return Number(value)
        return super().value(value)


def _is_own(value: object) -> bool:
    return isinstance(value, FunctionType) and value.__module__ != formulas.__name__


def _defaults(
    function: FunctionType, what: str, arguments: Sequence[str], given: Sequence[float]
) -> tuple[float, ...]:
    """Return the defaults of the arguments that a formula is not called with.

    They are numbers from outside as well: a loop's variable is often handed to a lambda as one.
    """
    code = function.__code__
    defaults = function.__defaults__ or ()
    count, called = code.co_argcount, len(arguments) + len(given)
    rest = count - called
    takes_any = bool(code.co_flags & inspect.CO_VARARGS)
    if (rest < 0 and not takes_any) or rest > len(defaults) or code.co_kwonlyargcount:
        call = ", ".join([*arguments, *(f"{number:g}" for number in given)])
        raise TypeError(
            f"{what} takes {code.co_varnames[:count]}; it must be callable with ({call}); give its "
            "other arguments defaults, and none that is keyword-only"
        )
    return defaults[len(defaults) - rest :] if rest > 0 else ()


def _place(error: BaseException) -> str:
    """Return where in the user's own text an error was raised."""
    ours = (__file__, symbols.__file__)
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if file not in ours:
            text = linecache.getline(file, line).strip()
            place = f" (line {line} of {Path(file).name}{': ' * bool(text)}{text})"
        trace = trace.tb_next
    return place


def _results(tape: Tape, found: Any, what: str, names: Sequence[str]) -> list[Scalar]:
    """Return what a formula returned as numbers of each neuron, as many as there are `names`."""
    several = found if isinstance(found, (tuple, list)) else (found,)
    if len(several) != len(names) or isinstance(found, (tuple, list)) != (len(names) > 1):
        wanted = f"{len(names)}: {', '.join(names)}" if len(names) > 1 else "one number"
        raise TypeError(f"{what} returns {len(several)} values, wanted {wanted}")
    for value in several:
        if isinstance(value, Condition):
            raise TypeError(f"{what} returns a comparison; return cast(condition, u)")
        if not isinstance(value, (Scalar, int, float)):
            raise TypeError(f"{what} returns a {type(value).__name__}, wanted a number")
    return [value if isinstance(value, Scalar) else tape.constant(value) for value in several]
