"""How the functions of Triton kernels are jitted, and how numbers are passed to them."""

import struct
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import triton
import triton.language as tl


def jit(function: FunctionType) -> Any:
    """Jit a rebound function; numbers among its free names become `tl.constexpr`, as they must."""
    free, cells = function.__globals__, function.__closure__ or ()
    free.update((name, c.cell_contents) for name, c in zip(function.__code__.co_freevars, cells))
    if not triton.knobs.runtime.interpret:
        numbers = {k: tl.constexpr(v) for k, v in free.items() if isinstance(v, (int, float))}
        free.update(numbers)
        for name, cell in zip(function.__code__.co_freevars, cells):
            cell.cell_contents = free[name]
    # Triton's interpreter finds no captured names, and needs `tl` among every function's globals.
    free["tl"] = tl
    return triton.jit(function, do_not_specialize=["steps", "numbers"])


def bits_of(parameters: Sequence[float]) -> tuple[int, ...]:
    """Return each number's float64 bits: a float argument reaches a kernel in single precision."""
    return struct.unpack(f"{len(parameters)}q", struct.pack(f"{len(parameters)}d", *parameters))
