"""Run a compiled loop over ranges on as many threads as torch uses.

Compiled kernels release Python's lock, so plain threads drive them; numba's own threading layers
abort the process after a fork or when called from several threads at once. The pool is made at
first use, grows to what is asked for, and a forked child makes its own.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class _Pool:
    """Threads that outlive a call; thrown away in a forked child, where they do not exist."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        self.process = 0

    def get(self, size: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.executor is None or self.size < size or self.process != os.getpid():
                self.executor = ThreadPoolExecutor(size, thread_name_prefix="neurospike")
                self.size, self.process = size, os.getpid()
            return self.executor


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # A fork may copy the lock while another thread holds it.
    os.register_at_fork(after_in_child=_pool.__init__)  # type: ignore[misc]


def split(size: int, parts: int, align: int) -> list[tuple[int, int]]:
    """Return at most `parts` ranges that cover `0..size`, each start a multiple of `align`."""
    blocks = -(-size // align)
    parts = max(1, min(parts, blocks))
    edges = [min(size, blocks * k // parts * align) for k in range(parts + 1)]
    return list(zip(edges, edges[1:]))


def run(work: Callable[[int, int], None], size: int, cost: int, grain: int, align: int) -> None:
    """Call `work(start, stop)` over ranges that cover `0..size`, in parallel.

    Args:
        work: releases Python's lock while it computes; ranges do not overlap.
        size: what is divided.
        cost: the whole of the work, in units of which one thread should get at least `grain`.
        grain: below twice this, everything is done in the calling thread.
        align: where ranges may begin.
    """
    threads = min(torch.get_num_threads(), cost // grain)
    if threads <= 1:
        work(0, size)
        return
    first, *others = split(size, threads, align)
    executor = _pool.get(len(others)) if others else None
    futures: list[Future[None]] = [executor.submit(work, *r) for r in others] if executor else []
    try:
        work(*first)
    finally:
        for future in futures:
            future.result()
