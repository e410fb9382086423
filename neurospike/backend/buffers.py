"""Large CPU outputs in memory that is used again, so that its pages are not faulted in each time.

The C library gives blocks over 32 MB back to the kernel as soon as they are freed, and the next one
starts as empty pages: for a layer of 100x128x1000 neuron-steps that costs more than the layer.
`empty` lends memory of its own instead. A block is lent while any tensor, view or saved graph
still refers to it, and comes back by itself after that; so nothing has to be released, and two
backward passes at once have different blocks. Blocks that were not wanted for a while are given
back to the system, and so is everything above `IDLE_BYTES`.
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

LEAST_BYTES = 1 << 20  # below, the C library keeps what it frees
IDLE_BYTES = 1 << 30  # how much may lie idle
PATIENCE = 64  # loans that an idle block waits to be wanted
KEPT_BYTES = 1 << 30  # how much the C library may keep free, in a program of ours
ALIGNMENT = 64  # a cache line
GRANULE = 1 << 16  # sizes are rounded up, so that nearly equal ones share blocks

_KINDS = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        # What watched a view that has ended. Views end anywhere, also while the lock is held; no
        # code of Python's runs then, in which Ctrl-C would be lost and a block with it.
        self.returned: collections.deque[object] = collections.deque()
        self.idle: list[tuple[int, np.ndarray]] = []  # when it came back, the block; oldest first
        # By the number of what watches a view: that, and the block. (`weakref.finalize` does the
        # same in three times the time.)
        self.lent: dict[int, tuple[object, np.ndarray]] = {}
        self.loans = 0

    def lend(self, shape: Sequence[int], size: int, kind: type) -> np.ndarray:
        """Return a new array of so many bytes whose end brings its block back."""
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
        """Return the block lately used, warm in the caches, that is not much larger than wanted."""
        for k in reversed(range(len(self.idle))):
            if wanted <= self.idle[k][1].size <= wanted + wanted // 4:
                return self.idle.pop(k)[1]
        return None

    def collect(self) -> None:
        """Take in what came back; drop what is old or too much."""
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
    """Return an uninitialised contiguous CPU tensor; a large one in memory used before.

    As `torch.empty`, it holds NaN or the largest whole number at every place while
    `torch.use_deterministic_algorithms` and `torch.utils.deterministic.fill_uninitialized_memory`
    are both on, so that an output left unwritten is seen.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    kind = _KINDS.get(dtype)
    if kind is None:
        # No view of another tensor, which who is given it could not change in place.
        lent = torch.frombuffer(_pool.lend((size,), size, np.uint8), dtype=dtype).resize_(shape)
    else:
        lent = torch.from_numpy(_pool.lend(shape, size, kind))
    fills: bool = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fills and torch.are_deterministic_algorithms_enabled():
        lent.fill_(_unwritten(dtype))
    return lent


def _unwritten(dtype: torch.dtype) -> float | int | bool:
    """Return what torch fills new memory of a format with."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for all of this process; glibc only, else nothing.

    A program may decide this for itself, a library for nobody: our commands call it, an import
    does not. The variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library of no name
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt(mmap_threshold, KEPT_BYTES)
    mallopt(trim_threshold, KEPT_BYTES)


def release() -> None:
    """Give all memory that lies idle back to the system."""
    _pool.release()
