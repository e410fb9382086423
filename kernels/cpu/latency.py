"""Latency coding on the CPU, in one pass.

A pixel fires at step t if its intensity lies in the t-th highest interval of a table. Pictures
`[B, K]` become spikes `[T, B, K]`, one picture at a time, which stays in the first-level cache.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers, parallel
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._intrinsics import take
from neurospike.kernels.cpu._job import FLAG, NEXT, SIZES, array_of, job_of, run
from neurospike.kernels.cpu.events import FORMATS
from neurospike.ops.watching import is_plain

GRAIN = 1 << 16  # spikes that are worth waking another thread for

NUMBER = np.float32(0)
SPIKE = np.uint8(0)
ONE = np.uint8(1)
LAST = False


def _fire(out, data, low, high, threshold, rest):
    """Write 1 from `low` to below `high`, else 0; but `rest` where not above the threshold."""
    for i in range(out.size):
        x = data[i]
        spike = ONE if x >= low and x < high else SPIKE
        out[i] = spike if x > threshold else rest


def _outside(data):
    """Return how many intensities are not in [0, 1]; NaN is not."""
    found = 0
    for i in range(data.size):
        found += 0 if data[i] >= 0.0 and data[i] <= 1.0 else 1
    return found


def _encode(job_at):
    """Fill spikes `[T, B, K]` of pictures `[B, K]`; set the flag if one is not in [0, 1]."""
    job = job_of(job_at)
    steps, batch, width = job[SIZES], job[SIZES + 1], job[SIZES + 2]
    data, edges = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    spikes = array_of(job_at, 2, SPIKE)
    threshold = edges[steps + 1]
    sample = take(job, NEXT)
    while sample < batch:
        picture = data[sample * width : (sample + 1) * width]
        if _outside(picture) > 0:
            job[FLAG] = 1
        for t in range(steps):
            row = t * batch + sample
            out = spikes[row * width : (row + 1) * width]
            rest = ONE if LAST and t == steps - 1 else SPIKE
            _fire(out, picture, edges[steps - 1 - t], edges[steps - t], threshold, rest)
        sample = take(job, NEXT)


@functools.cache
def _compiled(data: torch.dtype, spikes: torch.dtype, last: bool) -> Any:
    number = FORMATS[spikes]
    names = {"SPIKE": number(0), "ONE": number(1), "LAST": last}
    return compiled(_encode, names, FORMATS[data])


def spikes(
    data: Tensor, edges: list[float], threshold: float, last: bool, dtype: torch.dtype
) -> Tensor | None:
    """Return spikes `[T, B, *F]` of intensities `[B, *F]`; None if one is not in [0, 1].

    edges: the T - 1 intensities, ascending, from each of which on a pixel fires one step earlier.
    last: whether pixels that are not above the threshold fire at the last step.
    """
    steps, batch = len(edges) + 1, data.shape[0]
    width = data[0].numel()
    table = torch.tensor([-1.0, *edges, 2.0, threshold], dtype=data.dtype, device="cpu")
    out = buffers.empty((steps, *data.shape), dtype)
    threads = parallel.threads(1 + out.numel() // GRAIN, batch)
    kernel = _compiled(data.dtype, dtype, last)
    job = run(kernel, (data.contiguous(), table, out), (steps, batch, width), threads)
    return None if job[FLAG] else out


def usable(data: Tensor) -> bool:
    """Whether `spikes` can encode such a tensor: a plain one of float32 or float64."""
    return is_plain(data) and data.dtype in (torch.float32, torch.float64)
