"""Compile a loop of ours into a C function that `parallel.run` runs, and keep it on disk."""

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.compiler import Compiler

from neurospike.backend.binding import bind, digest
from neurospike.kernels.cpu import _memory as numba_memory
from neurospike.kernels.cpu import _vectors as numba_vectors
from neurospike.kernels.cpu._cache import c_function

INNER: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


class _NoAlias(Compiler):
    """Tell LLVM that the arrays of a call do not overlap: else it gives up on vectorising."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


class _Telling(Compiler):
    """Say on a terminal what the first call of a kernel waits for; else nothing is printed."""

    AGAIN = "once: the code is kept on disk"

    def define_pipelines(self) -> Any:
        if sys.stderr is not None and sys.stderr.isatty():
            kernel = self.state.func_id.modname.rpartition(".")[2]
            loop = self.state.func_id.func_name.partition("-")[0].strip("_")
            said = f"neurospike: compiling {kernel}.{loop} ({self.AGAIN})"
            print(said, file=sys.stderr)  # noqa: T201 (for a person who waits)
        return super().define_pipelines()


class _TellingEachTime(_Telling):
    AGAIN = "in each process: there is no folder to keep the code in"


@functools.cache
def _beneath() -> str:
    """Return the text of what is compiled in but stands in files that Numba does not watch."""
    files = (__file__, numba_memory.__file__, numba_vectors.__file__)
    return "".join(Path(file).read_text("utf-8") for file in files)


_compiled: dict[tuple[Any, ...], Any] = {}


def _inner(function: Any) -> Any:
    """Return a function that compiled ones call, one object for all that are the same.

    What it is compiled to, for each kind of arguments, then serves every kernel of the process.
    """
    code = function.__code__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = (code.co_consts, cells, function.__defaults__ or ())
    free = {
        name: function.__globals__[name] for name in code.co_names if name in function.__globals__
    }
    known = (tuple(map(_same, group)) for group in (*values, free.values()))
    key = (code.co_code, code.co_names, code.co_varnames, *free, *known)
    if key not in _compiled:
        # Numba names machine code by the function and a counter of the process. Where a process
        # loads code that two others compiled, one function could be run for another of its name.
        held = (*code.co_consts, *cells, *(function.__defaults__ or ()), *free.values())
        content = repr((code.co_code, code.co_names, code.co_varnames, *free, *map(_label, held)))
        function.__qualname__ += "_" + hashlib.sha256(content.encode()).hexdigest()[:16]
        _compiled[key] = njit(pipeline_class=_NoAlias, **INNER)(function)
    return _compiled[key]


def _label(value: Any) -> str:
    """Return what tells a value that is compiled in from others, in every process."""
    if callable(value):
        return str(getattr(value, "py_func", value).__qualname__)
    return f"{type(value).__name__} {value!r}"


def _same(value: Any) -> tuple[Any, ...]:
    """Return what is equal for values that compile to the same."""
    return (id(value),) if callable(value) else (type(value), repr(value))


def compiled(function: Callable[..., Any], names: Mapping[str, Any], literal: Any) -> Any:
    """Return `function(job_at)` as a C function, its `address` for `parallel.run`.

    `names` are what its free names stand for beside the intrinsics of
    `_memory` and `_vectors`; `literal` is the format of the numbers written in it.
    """
    known: dict[str, Any] = (
        {"NUMBER": literal(0)} | numba_memory.INTRINSICS | numba_vectors.INTRINSICS
    )
    known |= names
    label = f"{function.__name__}-{digest(function, known, literal.__name__ + _beneath())}"

    def jit(bound: Any) -> Any:
        if bound.__name__ != function.__name__:
            return _inner(bound)
        # Numba names its files on disk by the function and would run stale code where a callee
        # changed. The digest in the name covers every function that is compiled in.
        bound.__qualname__ = label
        signature = types.void(types.intp)
        return c_function(bound, signature, _Telling, _TellingEachTime, error_model="numpy")

    return bind(function, known, jit, literal)
