"""What Triton kernels share: formulas jitted for Triton, and the launch with what can go wrong."""

import functools
import struct
import subprocess
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from neurospike import rule
from neurospike.binding import bind
from neurospike.errors import BackendError


@triton.jit
def _exp(x):
    """`exp` of the formulas."""
    return tl.exp(x)


@triton.jit
def _abs(x):
    """`abs` of the formulas."""
    return tl.abs(x)


@triton.jit
def _where(condition, a, b):
    """`where` of the formulas."""
    return tl.where(condition, a, b)


@functools.cache
def compiled(function: Callable[..., Any], key: str, **flags: Any) -> Any:
    """Return `function` jitted for a rule and what is asked for."""
    names: dict[str, Any] = {"tl": tl, "exp": _exp, "abs": _abs, "where": _where}
    return bind(function, names | rule.from_key(key).names | flags, _jit)


def _jit(function: FunctionType) -> Any:
    """Jit a rebound function; numbers from outside become the constants that Triton insists on."""
    free, cells = function.__globals__, function.__closure__ or ()
    free.update((name, c.cell_contents) for name, c in zip(function.__code__.co_freevars, cells))
    if isinstance(_exp, triton.JITFunction):
        numbers = {k: tl.constexpr(v) for k, v in free.items() if isinstance(v, (int, float))}
        free.update(numbers)
        for name, cell in zip(function.__code__.co_freevars, cells):
            cell.cell_contents = free[name]
    # Triton's interpreter knows no captured names, and wants to see its language everywhere.
    free["tl"] = tl
    try:
        return triton.jit(function, do_not_specialize=["steps", "parameters"])
    except (ValueError, AttributeError) as error:
        raise BackendError(
            f"backend 'triton' compiles functions from their source text and finds none for "
            f"{function.__qualname__!r}; write the surrogate as a `def` in a file, or use "
            "backend='reference'"
        ) from error


def launch(kernel: Any, programs: int, warps: int, *arguments: Any) -> None:
    """Run a kernel on the device of its tensors, on that device's current stream.

    Raises:
        BackendError: a surrogate that Triton cannot compile, or no C compiler that works.
    """
    try:
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
            kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=False)
        # At every launch Triton compares each constant with what it was when it was compiled, which
        # takes longer than all the rest. Those here are the kernel's own, which nobody can change.
        kernel.used_global_vals = {}
    except triton.CompilationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise BackendError(
            f"backend 'triton' cannot compile this layer: {reason}. A surrogate may use "
            "arithmetic, comparison, exp, abs and where, and no type annotations; or use "
            "backend='reference'"
        ) from error
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        if isinstance(error, RuntimeError) and "C compiler" not in str(error):
            raise
        raise BackendError(
            f"backend 'triton' needs a C compiler and Python's headers to start its kernels, and "
            f"compiling failed: {error}. Install them (apt install gcc python3-dev) or name the "
            "compiler in the environment variable CC; or use backend='reference'"
        ) from error


def bits_of(parameters: Sequence[float]) -> tuple[int, ...]:
    """Return each number's bits: as a float it would reach the kernel in single precision."""
    return struct.unpack(f"{len(parameters)}q", struct.pack(f"{len(parameters)}d", *parameters))
