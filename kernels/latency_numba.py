"""Latency coding on the CPU: spikes and the bits of them in one pass, and no times in between.

A pixel fires at step t if its intensity lies in the t-th interval of a table. Pictures `[B, K]`
become spikes `[T, B, K]` a row after the other; what the linear layer after them would have to find
out about a row, which inputs are active, is kept while the row is in the first-level cache.
"""

import functools
from typing import Any

import numpy as np
import torch
from neurospike.kernels.events_numba import FORMATS, WORD, count, words
from neurospike.kernels.numba_jit import compiled
from neurospike.kernels.numba_job import FLAG, NEXT, SIZES, array_of, job_of, run
from neurospike.kernels.numba_memory import take
from neurospike.kernels.numba_vectors import nonzero
from torch import Tensor

from neurospike import buffers, known_events, parallel
from neurospike.spike_linear import HEAD, is_plain

GRAIN = 1 << 16  # spikes that are worth waking a thread for

NUMBER = np.float32(0)
SPIKE = np.uint8(0)
ONE = np.uint8(1)
LAST = False


def _fire(out, data, low, high, threshold, rest):
    """1 from `low` to below `high`, above the threshold; `rest` at and below the threshold."""
    for i in range(out.size):
        x = data[i]
        spike = ONE if x >= low and x < high else SPIKE
        out[i] = spike if x > threshold else rest


def _outside(data):
    """Count what does not lie in 0 to 1."""
    found = 0
    for i in range(data.size):
        found += 0 if data[i] >= 0.0 and data[i] <= 1.0 else 1
    return found


def _encode(job_at):
    """Fill spikes `[T, B, K]` and bits of pictures `[B, K]`; flag what lies outside 0 to 1."""
    job = job_of(job_at)
    steps, batch, width, words = job[SIZES], job[SIZES + 1], job[SIZES + 2], job[SIZES + 3]
    data, edges = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    spikes, bits = array_of(job_at, 2, SPIKE), array_of(job_at, 3, 0)
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
            for word in range(words):
                if word * WORD + WORD <= width:
                    bits[row * words + word] = nonzero(out, word * WORD)
                else:
                    found = 0
                    for k in range(width - word * WORD):
                        found |= (1 if out[word * WORD + k] != 0 else 0) << k
                    bits[row * words + word] = found
        sample = take(job, NEXT)


@functools.cache
def _compiled(data: torch.dtype, spikes: torch.dtype, last: bool) -> Any:
    number = FORMATS[spikes]
    names = {"SPIKE": number(0), "ONE": number(1), "LAST": last}
    return compiled(_encode, names, FORMATS[data])


def spikes(
    data: Tensor, edges: list[float], threshold: float, last: bool, dtype: torch.dtype
) -> Tensor | None:
    """Return spikes `[T, B, *F]` of intensities `[B, *F]`; None if some lie outside 0 to 1.

    edges: the T - 1 at which the time goes down by a step, ascending. last: what does not reach the
    threshold fires at the last step.
    """
    steps, batch = len(edges) + 1, data.shape[0]
    width = data[0].numel()
    table = torch.tensor([-1.0, *edges, 2.0, threshold], dtype=data.dtype)
    out = buffers.empty((steps, *data.shape), dtype)
    found = torch.ones(HEAD + steps * batch * words(width), dtype=torch.int64)
    bits = found[HEAD:].view(steps * batch, -1)
    threads = parallel.threads(1 + out.numel() // GRAIN, batch)
    kernel = _compiled(data.dtype, dtype, last)
    sizes = (steps, batch, width, words(width))
    job = run(kernel, (data.contiguous(), table, out, bits), sizes, threads)
    if job[FLAG]:
        return None
    if out.dim() == 3:
        found[HEAD - 1] = 0
        known_events.remember(out, found, count(bits))
    return out


def usable(data: Tensor) -> bool:
    """Whether plain tensors of a format known here."""
    return is_plain(data) and data.dtype in (torch.float32, torch.float64)
