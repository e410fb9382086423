"""Rebind the free names of a plain function, so that one formula serves every backend.

`bind(function, names, jit)` makes a new function from the same code object whose global names are
looked up in `names` first. Plain Python functions it calls are bound the same way, numbers stay
what they are, and every function goes through `jit`, the compiler's decorator. No source text is
generated.
"""

import builtins
import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

Jit = Callable[[FunctionType], Any]
Literal = Callable[[float], Any]


def bind(
    function: Callable[..., Any],
    names: Mapping[str, object],
    jit: Jit = lambda function: function,
    literal: Literal = float,
) -> Any:
    """Return `function` with its free names looked up in `names`, passed through `jit`.

    Args:
        function: a plain Python function (`def` or `lambda`).
        names: what a free name stands for: a number, a flag, an already compiled function, or a
            plain Python function, which is bound and jitted as well.
        jit: applied to the rebound function and to each plain function it reaches.
        literal: applied to each float, in the code or behind a name, for a compiler to which the
            literal `1.0` would mean double precision.

    Raises:
        TypeError: `function` is not a plain Python function, or uses a name that is neither in
            `names` nor a number nor a plain function of its own module.
    """
    return _Binder(names, jit, literal).function(function)


def digest(function: Callable[..., Any], names: Mapping[str, object], extra: str = "") -> str:
    """Return a hash of all that `bind(function, names)` would compile: code, constants, callees.

    Two functions with the same digest compute the same; a change in any formula they reach changes
    it. The digest is part of the key of compiled code that is kept on disk.
    """
    seen = hashlib.sha256(extra.encode())
    for part in _parts(plain(function), names, {}):
        seen.update(part.encode())
        seen.update(b"\0")
    return seen.hexdigest()[:16]


def plain(function: object) -> FunctionType:
    """Return a formula if it is a plain Python function; raise TypeError if not."""
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"a formula must be a plain Python function, got {function!r}; "
            "wrap it in a `def` that uses arithmetic, comparison, exp, abs and where"
        )
    return function


class _Binder:
    """Rebinds functions; see `bind`."""

    def __init__(
        self,
        names: Mapping[str, object],
        jit: Jit = lambda function: function,
        literal: Literal = float,
    ) -> None:
        self.names, self.jit, self.literal = names, jit, literal
        self.bound: dict[object, Any] = {}

    def function(self, function: Callable[..., Any]) -> Any:
        """Return `function`, a plain Python function, with its free names rebound."""
        given = plain(function)
        if given not in self.bound:
            free = {name: self.value(value) for name, value in _free(given, self.names)}
            # Torch looks for the builtins among the globals of the frame that it is called from.
            free["__builtins__"] = vars(builtins)
            cells = tuple(CellType(self.value(value)) for _, value in _captured(given, self.names))
            code = self.code(given.__code__)
            new = FunctionType(code, free, given.__name__, given.__defaults__, cells)
            new.__qualname__, new.__module__ = given.__qualname__, given.__module__
            new.__doc__ = given.__doc__
            self.bound[given] = self.jit(new)
        return self.bound[given]

    def value(self, value: object) -> Any:
        """Return what replaces `value` behind a free name: functions are bound, floats literals."""
        if isinstance(value, FunctionType):
            return self.function(value)
        return self.literal(value) if type(value) is float else value

    def code(self, code: CodeType) -> CodeType:
        """Return a function's code with `literal` applied to each float constant."""
        if self.literal is float:
            return code
        constants = (self.literal(c) if type(c) is float else c for c in code.co_consts)
        return code.replace(co_consts=tuple(constants))


def _free(function: FunctionType, names: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield each global name that the code reads, with its value."""
    for name in function.__code__.co_names:
        if name in names:
            yield name, names[name]
        elif name in function.__globals__:
            yield name, _allowed(function, name, function.__globals__[name])


def _captured(function: FunctionType, names: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield each name that the code captured from the function around it, with its value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        if name in names:
            yield name, names[name]
        else:
            yield name, _allowed(function, name, cell.cell_contents)


def _allowed(function: FunctionType, name: str, value: object) -> object:
    if not isinstance(value, (FunctionType, bool, int, float)):
        raise TypeError(
            f"the formula {function.__name__!r} uses {name!r}, a {type(value).__name__}; it may "
            "use exp, abs, where and cast of neurospike.formulas, numbers, and plain functions of "
            "these"
        )
    return value


def _parts(
    function: FunctionType, names: Mapping[str, object], seen: dict[FunctionType, int]
) -> Iterator[str]:
    if function in seen:
        yield f"function {seen[function]}"
        return
    seen[function] = len(seen)
    code = function.__code__
    yield f"{code.co_code!r} {code.co_consts!r} {code.co_names!r} {function.__defaults__!r}"
    for name, value in (*_free(function, names), *_captured(function, names)):
        if isinstance(value, FunctionType):
            yield name
            yield from _parts(value, names, seen)
        else:
            yield f"{name}={getattr(value, '__qualname__', None) or repr(value)}"
