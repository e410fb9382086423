"""The launch of a Triton kernel, and what to do about its errors."""

import errno
import functools
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.cache import FileCacheManager

from neurospike.errors import BackendError

# Messages of the errors, beside its own TritonError, that Triton raises if it cannot compile code.
NOT_COMPILED = ("error encountered during parsing", "PassManager::run failed")


# First and last version of Triton whose compiled kernels can be run without its jit, with the grid,
# the stream, the function, its packed metadata, the hooks' metadata, both hooks and the arguments.
DIRECT = ((3, 5), (3, 8))


class Launch:
    """A kernel and its grid, for arguments of the same formats and sizes at every call.

    Triton's jit inspects every argument to find the kernel that it compiled for such ones, which
    takes longer than the launch. That kernel is kept here, and run again if all tensors are at
    addresses that are multiples of 16, on the current device.

    Args:
        kernel: a jitted function.
        programs: how many programs the grid has.
        warps: how many warps each program has.
        device: the index of the tensors' device.
    """

    def __init__(self, kernel: Any, programs: int, warps: int, device: int) -> None:
        self.kernel, self.programs, self.warps, self.device = kernel, programs, warps, device
        self.found: Any = None

    def __call__(self, given: Iterable[Tensor | None], arguments: tuple[Any, ...]) -> None:
        """Run the kernel; see `launch`.

        Args:
            given: the tensors among the arguments that may be unaligned; those allocated here are
                aligned.
            arguments: those of the kernel.
        """
        bits = 0
        for one in given:
            if one is not None:
                bits |= one.data_ptr()
        if not bits & 15 and self.found is not None:
            run, function, packed = self.found
            driver, hooks = triton.runtime.driver.active, triton.knobs.runtime
            told = hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls
            if not told and driver.get_current_device() == self.device:
                stream = driver.get_current_stream(self.device)
                run(self.programs, 1, 1, stream, function, packed, None, None, None, *arguments)
                return
        found = launch(self.kernel, self.programs, self.warps, *arguments)
        if found is not None and self.found is None and not bits & 15 and runs_direct():
            self.found = (found.run, found.function, found.packed_metadata)


@functools.cache
def runs_direct() -> bool:
    """Whether this version of Triton is one of `DIRECT`."""
    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return DIRECT[0] <= found <= DIRECT[1]


def launch(kernel: Any, programs: int, warps: int, *arguments: Any) -> Any:
    """Run a kernel on the device of its tensors, on that device's current stream.

    Returns what Triton compiled; None in its interpreter.

    Raises:
        BackendError: a surrogate that Triton cannot compile, no C compiler that works, or no folder
            in which Triton can keep what it compiled.
    """

    def run() -> Any:
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
            return kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=False)

    try:
        try:
            found = _run(kernel, run)
        except OSError as error:
            if not _is_of_the_cache(error):
                raise
            _keep_elsewhere(error)
            found = _run(kernel, run)
        # At every launch Triton compares each global constant with its value at compilation, which
        # takes longer than all the rest. Here they belong to the kernel alone and never change.
        kernel.used_global_vals = {}
        return found
    except (TritonError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        advice = _advice(error)
        if advice is None:
            raise
        raise BackendError(f"backend 'triton' {advice}; or use backend='reference'") from error


def _run(kernel: Any, run: Callable[[], Any]) -> Any:
    """Run a launch; if Triton's cache on disk may be damaged, compile the kernel again."""
    try:
        return run()
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        if not isinstance(kernel, triton.JITFunction) or not _may_be_damage(error):
            raise
    kernel.device_caches.clear()  # they may hold a kernel that cannot be loaded
    with triton.knobs.cache.scope():
        triton.knobs.cache.manager_class = _Anew
        return run()


class _Anew(FileCacheManager):
    """Triton's cache folder, in which it finds nothing but stores what it compiles."""

    def get_group(self, filename: str) -> None:
        """Return None, as for what was never compiled."""
        return


def _may_be_damage(error: Exception) -> bool:
    """True for an error that a damaged file in Triton's cache can cause."""
    if isinstance(error, OSError):
        return _is_of_the_cache(error)
    if isinstance(error, RuntimeError):  # from the device's driver, for truncated machine code
        return "kernel image" in str(error)
    return True


def _is_of_the_cache(error: OSError) -> bool:
    """True for a file of Triton's cache that cannot be read or written, or a disk that is full."""
    folder = str(triton.knobs.cache.dir)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return is_full or str(error.filename or "").startswith(folder)


def _keep_elsewhere(error: OSError) -> None:
    """Let Triton keep compiled kernels in a temporary folder of this process, with a warning."""
    wanted = triton.knobs.cache.dir
    try:
        triton.knobs.cache.dir = _own_folder().name
    except OSError:
        return  # the next try then raises the first error again
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
    """Return what the backend cannot do and what would help; None for errors of the device."""
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
    """Return the reason and the source line from the last error in the chain of causes.

    The errors before it name the callers of the function that cannot be compiled.
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
