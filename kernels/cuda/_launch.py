"""What Triton kernels share: how they are jitted, and the launch with what can go wrong."""

import errno
import functools
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.cache import FileCacheManager

from neurospike.errors import BackendError

# What Triton says, beside errors of its own kind, of code that it cannot compile.
NOT_COMPILED = ("error encountered during parsing", "PassManager::run failed")


def jit(function: FunctionType) -> Any:
    """Jit a rebound function; numbers from outside become the constants that Triton insists on."""
    free, cells = function.__globals__, function.__closure__ or ()
    free.update((name, c.cell_contents) for name, c in zip(function.__code__.co_freevars, cells))
    if not triton.knobs.runtime.interpret:
        numbers = {k: tl.constexpr(v) for k, v in free.items() if isinstance(v, (int, float))}
        free.update(numbers)
        for name, cell in zip(function.__code__.co_freevars, cells):
            cell.cell_contents = free[name]
    # Triton's interpreter knows no captured names, and wants to see its language everywhere.
    free["tl"] = tl
    return triton.jit(function, do_not_specialize=["steps", "numbers"])


def launch(kernel: Any, programs: int, warps: int, *arguments: Any) -> None:
    """Run a kernel on the device of its tensors, on that device's current stream.

    Raises:
        BackendError: a surrogate that Triton cannot compile, no C compiler that works, or no folder
            in which Triton can keep what it compiled.
    """

    def run() -> None:
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
            kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=False)

    try:
        try:
            _run(kernel, run)
        except OSError as error:
            if not _is_of_the_cache(error):
                raise
            _keep_elsewhere(error)
            _run(kernel, run)
        # At every launch Triton compares each constant with what it was when it was compiled, which
        # takes longer than all the rest. Those here are the kernel's own, which nobody can change.
        kernel.used_global_vals = {}
    except (TritonError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        advice = _advice(error)
        if advice is None:
            raise
        raise BackendError(f"backend 'triton' {advice}; or use backend='reference'") from error


def _run(kernel: Any, run: Callable[[], None]) -> None:
    """Run a launch; where what Triton kept on disk is damaged, it is compiled anew and kept."""
    try:
        return run()
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        if not isinstance(kernel, triton.JITFunction) or not _may_be_damage(error):
            raise
    kernel.device_caches.clear()  # which may hold what cannot be loaded
    with triton.knobs.cache.scope():
        triton.knobs.cache.manager_class = _Anew
        return run()


class _Anew(FileCacheManager):
    """Triton's folder where it finds nothing, and keeps what it compiles."""

    def get_group(self, filename: str) -> None:
        """Return None, as for what was never compiled."""
        return


def _may_be_damage(error: Exception) -> bool:
    """True for an error that a damaged file in Triton's cache can cause."""
    if isinstance(error, OSError):
        return _is_of_the_cache(error)
    if isinstance(error, RuntimeError):  # the device's driver, of machine code that is cut off
        return "kernel image" in str(error)
    return True


def _is_of_the_cache(error: OSError) -> bool:
    """True for a file of Triton's cache that cannot be read or written, or a disk that is full."""
    folder = str(triton.knobs.cache.dir)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return is_full or str(error.filename or "").startswith(folder)


def _keep_elsewhere(error: OSError) -> None:
    """Let Triton keep its compiled kernels in a folder of this process, and say so."""
    wanted = triton.knobs.cache.dir
    try:
        triton.knobs.cache.dir = _own_folder().name
    except OSError:
        return  # then the first error comes again, and is told
    warnings.warn(
        f"Triton cannot keep compiled kernels in {wanted} ({error.strerror or error}); this "
        "process compiles its own. Set TRITON_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def _own_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="neurospike-triton-", ignore_cleanup_errors=True)


def _advice(error: Exception) -> str | None:
    """Return what the backend cannot do and what would help; None for the device's own errors."""
    if isinstance(error, TritonError) or str(error) in NOT_COMPILED:
        return f"cannot compile this layer: {_innermost(error)}"
    if isinstance(error, OSError) and _is_of_the_cache(error):
        return (
            f"cannot keep what it compiles: {error}. Set TRITON_CACHE_DIR to a folder that can be "
            "written and has room"
        )
    if isinstance(error, RuntimeError) and "C compiler" not in str(error):
        return None
    return (
        "needs a C compiler and Python's headers to start its kernels, and compiling failed: "
        f"{error}. Install them (apt install gcc python3-dev) or name the compiler in the "
        "environment variable CC"
    )


def _innermost(error: BaseException) -> str:
    """Return what is wrong, from the end of the chain of errors: each names a function's caller.

    The last one knows the line of the function that cannot be compiled.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    said = getattr(error, "error_message", None) or str(error)
    reason = said.strip().splitlines()[-1]
    node, source = getattr(error, "node", None), getattr(error, "src", None)
    if node is None or not source or not hasattr(node, "lineno"):
        return reason
    lines = source.splitlines()
    return f"{reason}, in {lines[node.lineno - 1].strip()!r} of {lines[0].strip()!r}"


def bits_of(parameters: Sequence[float]) -> tuple[int, ...]:
    """Return each number's bits: as a float it would reach the kernel in single precision."""
    return struct.unpack(f"{len(parameters)}q", struct.pack(f"{len(parameters)}d", *parameters))
