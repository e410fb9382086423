"""Large CPU outputs in memory that is reused, so that its pages are not faulted in each time.

The C library gives blocks over 32 MB back to the kernel as soon as they are freed, and the next one
starts as empty pages: for a layer of 100x128x1000 neuron-steps that costs more than the layer.
`empty` lends blocks of a pool instead. A block is lent while any tensor, view or saved graph still
refers to it, and returns to the pool by itself after that; so nothing has to be released, and two
backward passes at once have different blocks. Blocks that were not used for a while are given back
to the system, and so is everything above `IDLE_BYTES`.
"""

import collections
import ctypes
import math
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

LEAST_BYTES = 1 << 20  # smaller tensors come from torch: the C library keeps what it frees of these
IDLE_BYTES = 1 << 30  # how much of the pool may lie idle
PATIENCE = 64  # loans after which a block that lay idle throughout is given back
KEPT_BYTES = 1 << 30  # how much freed memory the C library may keep, in our commands
ALIGNMENT = 64  # a cache line
GRANULE = 1 << 16  # sizes are rounded up, so that nearly equal ones share blocks

_KINDS = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        # Weak references whose view has ended. Views may end anywhere, also while the lock is held.
        # Appending to a deque runs no Python code, which would lose Ctrl-C, and a block with it.
        self.returned: collections.deque[object] = collections.deque()
        self.idle: list[tuple[int, np.ndarray]] = []  # count of loans then, block; oldest first
        # Lent blocks, by the id of the weak reference that watches the view: the reference and the
        # block. (`weakref.finalize` does the same in three times the time.)
        self.lent: dict[int, tuple[object, np.ndarray]] = {}
        self.loans = 0

    def lend(self, shape: Sequence[int], size: int, kind: type) -> np.ndarray:
        """Return a new array of `size` bytes; once it is deleted its block returns to the pool."""
        wanted = -(-size // GRANULE) * GRANULE
        with self.lock:
            self.loans += 1
            self.collect()
            block = self.take(wanted)
        if block is None:
            whole = np.empty(wanted + ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % ALIGNMENT
            block = whole[start : start + wanted]
        view = np.ndarray(shape, kind, block)
        watch = weakref.ref(view, self.returned.append)
        self.lent[id(watch)] = watch, block
        return view

    def take(self, wanted: int) -> np.ndarray | None:
        """Return the last used block, warm in the caches, that is at most a quarter too large."""
        for k in reversed(range(len(self.idle))):
            if wanted <= self.idle[k][1].size <= wanted + wanted // 4:
                return self.idle.pop(k)[1]
        return None

    def collect(self) -> None:
        """Add returned blocks to the idle ones; drop those idle for long or over the limit."""
        while self.returned:
            _, block = self.lent.pop(id(self.returned.popleft()))
            self.idle.append((self.loans, block))
        total = sum(block.size for _, block in self.idle)
        while self.idle and (total > IDLE_BYTES or self.loans - self.idle[0][0] > PATIENCE):
            total -= self.idle.pop(0)[1].size

    def release(self) -> None:
        with self.lock:
            self.collect()
            self.idle.clear()


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # A fork may copy the lock while another thread holds it.
    os.register_at_fork(after_in_child=_pool.__init__)  # type: ignore[misc]


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised contiguous CPU tensor, a large one in memory that is reused.

    As that of `torch.empty`, it is filled with NaN or the largest integer while
    `torch.use_deterministic_algorithms` and `torch.utils.deterministic.fill_uninitialized_memory`
    are both on, so that an output left unwritten is seen.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    kind = _KINDS.get(dtype)
    if kind is None:
        # Not a view of another tensor: the caller could not change that in place.
        lent = torch.frombuffer(_pool.lend((size,), size, np.uint8), dtype=dtype).resize_(shape)
    else:
        lent = torch.from_numpy(_pool.lend(shape, size, kind))
    fills: bool = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fills and torch.are_deterministic_algorithms_enabled():
        lent.fill_(_unwritten(dtype))
    return lent


def _unwritten(dtype: torch.dtype) -> float | int | bool:
    """Return the value that torch fills new memory of a dtype with."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, for all of this process; without glibc do nothing.

    A program may decide this for itself, a library may not: our commands call it, an import does
    not. The variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows refuses `CDLL(None)`
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt(mmap_threshold, KEPT_BYTES)
    mallopt(trim_threshold, KEPT_BYTES)


def release() -> None:
    """Give all memory that lies idle back to the system."""
    _pool.release()
