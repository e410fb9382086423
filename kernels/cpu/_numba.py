"""Loops compiled by Numba to LLVM modules that need neither Numba nor Python when they run."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, njit, types
from numba.core.compiler import Compiler

from neurospike.backend.binding import bind
from neurospike.errors import BackendError
from neurospike.kernels.cpu import _code, _memory, _vectors

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
FINE = (0, -2)  # status of Numba's functions if nothing was raised: with a result, or with None
FOREIGN = re.compile("numba_|NRT_|_?Py").match  # names of functions of Numba's or Python's runtime
# Functions of Numba's that free memory it owns. Our arrays own none, so these are never called.
NEVER = ("NRT_MemInfo_call_dtor", "NRT_Free")


class _NoAlias(Compiler):
    """Tell LLVM that the arrays of a call do not overlap: else it gives up on vectorising."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


_compiled: dict[tuple[Any, ...], Any] = {}


def _inner(function: Any) -> Any:
    """Return a jitted function that loops call, one object for all functions that are equal.

    So its compiled code, for each signature, serves every kernel of the process.
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
        _compiled[key] = njit(pipeline_class=_NoAlias, **OPTIONS)(function)
    return _compiled[key]


def _same(value: Any) -> tuple[Any, ...]:
    """Return a key that is equal for values that compile to the same code."""
    return (id(value),) if callable(value) else (type(value), repr(value))


def written(
    function: Callable[..., Any], names: Mapping[str, Any], literal: Any, entry: str
) -> llvm.ModuleRef:
    """Return a module with `function(job_at)` as the C function `entry`.

    `names` gives the values of its free names beside the `_intrinsics`; `literal` is the format of
    the numbers written in it.

    Raises:
        RuntimeError: the function calls something of Numba's or of Python's runtime.
        BackendError: Numba is told to compile nothing.
    """
    if vars(config)["DISABLE_JIT"]:  # set as Numba is imported, which a type checker does not see
        raise BackendError(
            "backend 'numba' has to compile its loops, which NUMBA_DISABLE_JIT forbids: unset it, "
            "or use backend='reference'"
        )
    known = {**names, **_memory.INTRINSICS, **_vectors.INTRINSICS}

    def jit(bound: Any) -> Any:
        return (njit(**OPTIONS) if bound.__name__ == function.__name__ else _inner)(bound)

    loop = bind(function, known, jit, literal)
    kind = (types.intp,)
    loop.compile(kind)
    module = llvm.parse_assembly(loop.inspect_llvm(kind))
    (core,) = (
        one.name
        for one in module.functions
        if not one.is_declaration and one.linkage == llvm.Linkage.external
    )
    module.link_in(llvm.parse_assembly(str(_entry(entry, core))))
    for one in (*module.functions, *module.global_variables):
        if one.name != entry and not one.is_declaration:
            one.linkage = llvm.Linkage.internal
    module = _code.optimised(module, level=1)
    foreign = [one.name for one in module.functions if one.is_declaration and FOREIGN(one.name)]
    if foreign:
        raise RuntimeError(f"{function.__qualname__} calls {', '.join(foreign)}")
    return module


def _entry(name: str, core: str) -> ir.Module:
    """Return a module with a C function that calls a function of Numba's, and stubs of `NEVER`."""
    module = ir.Module()
    pointer = ir.IntType(8).as_pointer()
    nothing, integer = ir.VoidType(), ir.IntType(64)
    places = [pointer.as_pointer(), pointer.as_pointer()]  # for its result, and for an error
    inner = ir.Function(module, ir.FunctionType(ir.IntType(32), [*places, integer]), core)
    outer = ir.Function(module, ir.FunctionType(nothing, [integer]), name)
    build = ir.IRBuilder(outer.append_basic_block())
    status = build.call(inner, [build.alloca(pointer), build.alloca(pointer), outer.args[0]])
    fine = [build.icmp_signed("==", status, ir.Constant(status.type, one)) for one in FINE]
    with build.if_then(build.not_(build.or_(*fine)), likely=False):
        build.call(module.declare_intrinsic("llvm.trap", (), ir.FunctionType(nothing, [])), [])
    build.ret_void()
    for one in NEVER:
        unused = ir.Function(module, ir.FunctionType(nothing, [pointer]), one)
        ir.IRBuilder(unused.append_basic_block()).ret_void()
    return module
