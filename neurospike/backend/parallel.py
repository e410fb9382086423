"""Run a compiled loop on the threads that torch computes with.

The loop is a C function that is given an array of integers, its job, from which it takes one part
of the work after another until none is left; it runs no Python. On Linux and wherever else torch
ships an OpenMP runtime with GNU's interface, torch's own threads run it: they are awake just after
torch has computed something, and other threads would have to share the cores with them. A forked
child, where that runtime would wait for threads that do not exist, and any other torch use plain
threads.
"""

import array
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Pool:
    """Plain threads kept between calls; dropped in a forked child, where they do not exist."""

    def __init__(self, forked: bool = False) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        self.forked = forked

    def get(self, size: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.executor is None or self.size < size:
                self.executor = ThreadPoolExecutor(size, thread_name_prefix="neurospike")
                self.size = size
            return self.executor


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # A fork may copy the lock while another thread holds it.
    os.register_at_fork(after_in_child=lambda: _pool.__init__(forked=True))  # type: ignore[misc]


def threads(grains: int, parts: int) -> int:
    """Return how many threads to use: at most torch's, one per grain of work and one per part."""
    return max(1, min(torch.get_num_threads(), grains, parts))


def run(loop: int, job: array.array, count: int) -> None:
    """Call the C function at address `loop` with `job` in `count` threads, and wait for all.

    job: 64-bit integers, some of which the loop may overwrite.
    """
    place, _ = job.buffer_info()
    if count == 1:
        _callable(loop)(place)
        return
    team = None if _pool.forked else _team()
    if team is not None:
        team(loop, place, count, 0)
        return
    call = _callable(loop)
    futures = [_pool.get(count - 1).submit(call, place) for _ in range(count - 1)]
    call(place)
    for future in futures:
        future.result()


@functools.cache
def _callable(loop: int) -> Callable[[int], None]:
    """Return the C function at an address; compiled code is never moved or freed."""
    return _LOOP(loop)


@functools.cache
def _team() -> Callable[..., None] | None:
    """Return `GOMP_parallel(function, data, threads, flags)` of the runtime torch itself uses."""
    libraries = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            team = ctypes.CDLL(str(libraries / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        team.restype = None
        return team
    return None
