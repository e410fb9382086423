"""The job of a loop that several threads run: one array of integers that says what to do.

A job holds counters that the threads `take` from (the next part, the next scratch), a flag that the
loop may set, sizes and addresses of functions, and then the address and size of each array; the
last array is a scratch that is divided among the threads.
"""

import array
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from neurospike.backend import buffers, parallel
from neurospike.kernels.cpu._intrinsics import array_at

NEXT, SLOT, FLAG, SIZES, HEAD = 0, 1, 2, 3, 24


def array_of(job_at, k, like):
    """Return the `k`-th array of a job, in the format of `like`; size 0 if it is absent."""
    job = array_at(job_at, HEAD + 2 * k + 2, 0)
    return array_at(job[HEAD + 2 * k], job[HEAD + 2 * k + 1], like)


def place_of(job_at, k):
    """Return the address of the `k`-th array of a job, and how many numbers it has."""
    job = array_at(job_at, HEAD + 2 * k + 2, 0)
    return job[HEAD + 2 * k], job[HEAD + 2 * k + 1]


def row_of(array, start, size):
    """Return `array[start : start + size]`."""
    return array[start : start + size]


def job_of(job_at):
    """Return the counters, the flag and the sizes of a job."""
    return array_at(job_at, HEAD, 0)


_NOTHING = (0,) * HEAD


class _Scratch(threading.local):
    """The scratch of each format that the calls of a thread reuse, up to `KEPT` bytes."""

    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}


_own = _Scratch()
KEPT = 1 << 22


def _scratch(count: int, state: torch.dtype) -> Tensor:
    """Return at least `count` numbers; new ones if torch must fill new memory, or if many."""
    if count * state.itemsize > KEPT or torch.are_deterministic_algorithms_enabled():
        return buffers.empty((count,), state)
    kept = _own.kept.get(state)
    if kept is None or kept.numel() < count:
        kept = _own.kept[state] = torch.empty(count, dtype=state, device="cpu")
    return kept


class Plan:
    """A compiled loop and its job, complete but for the addresses of the arrays.

    Args:
        kernel: address of the loop.
        numbers: how many numbers each array has; 0 for an absent one.
        sizes: those of the job, from `SIZES` on, with the addresses of functions.
        threads: how many run it.
        scratch: how many numbers of scratch each thread has.
        state: format of the scratch.
    """

    def __init__(
        self,
        kernel: int,
        numbers: Sequence[int],
        sizes: Sequence[int],
        threads: int,
        scratch: int = 0,
        state: torch.dtype = torch.float32,
    ) -> None:
        self.kernel, self.threads = kernel, threads
        self.scratch, self.state = threads * scratch, state
        job = [0, 0, 0, *sizes, *_NOTHING[: HEAD - SIZES - len(sizes)]]
        for count in (*numbers, self.scratch):
            job += (0, count)
        self.job = array.array("q", job)

    def run(self, arrays: Sequence[Tensor | None]) -> Sequence[int]:
        """Run the loop on these arrays; return the job as the threads left it."""
        job, place = self.job[:], HEAD
        for one in arrays:
            if one is not None:
                job[place] = one.data_ptr()
            place += 2
        held = _scratch(self.scratch, self.state)  # must live as long as the loop runs
        job[place] = held.data_ptr()
        parallel.run(self.kernel, job, self.threads)
        return job


def run(
    kernel: int,
    arrays: Sequence[Tensor | None],
    sizes: Sequence[int],
    threads: int,
    scratch: int = 0,
    state: torch.dtype = torch.float32,
) -> Sequence[int]:
    """Run a `Plan` once; return the job as it was left."""
    numbers = [0 if one is None else one.numel() for one in arrays]
    return Plan(kernel, numbers, sizes, threads, scratch, state).run(arrays)
