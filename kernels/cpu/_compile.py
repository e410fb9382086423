"""Loops as C functions that `parallel.run` runs; Numba compiles those not yet kept on disk."""

from collections.abc import Callable, Mapping
from typing import Any

from neurospike.backend.binding import digest, plain
from neurospike.kernels.cpu import _code


def compiled(function: Callable[..., Any], names: Mapping[str, Any], literal: Any) -> int:
    """Return the address of `function(job_at)` as a C function, for `parallel.run`.

    `names` gives the values of its free names beside the `_intrinsics`: numbers and their formats;
    `literal` is the format of the numbers written in it.
    """
    known = {"NUMBER": literal(0), **names}
    module, name = plain(function).__module__, function.__name__

    def write(entry: str) -> Any:
        # Imported here, because a process that finds its code on disk need not import Numba.
        from neurospike.kernels.cpu._numba import written

        return written(function, known, literal, entry)

    key = (module, name, digest(function, known, literal.__name__))
    loop = f"{module.rpartition('.')[2].strip('_')}.{name.strip('_')}"
    return _code.address(key, write, loop, packages=["numba"])
