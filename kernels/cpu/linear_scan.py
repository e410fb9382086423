"""A linear layer of spikes and its LIF neurons in one loop: no current is laid out in memory.

Where few inputs are active, such a layer spends its time on writing and reading sequences with a
number for each neuron and step: currents and their gradients. Here a panel of neurons takes one
sample through time: the rows of the transposed weight that belong to a step's active inputs are
added up in registers, and the neurons integrate the sums at once. The backward pass repeats that
into a scratch in the first-level cache, goes through time in reverse, and adds the gradient of each
step's current to the rows of the weight's gradient that belong to the same inputs.

Loops over neurons are those of `scan`, and sums of the forward pass those of `linear`. So spikes
are the same bit for bit, unless `linear` uses its table of sums of four. Backward, a panel belongs
to one thread, so every sum has one order. Saved for backward: the lists of active inputs, and the
packed weight.

Layout: sequences are `[T, B, N]`; row `t * B + b` of the inputs `[T * B, K]` has a list of its
active inputs, all of which are 1. Number formats: float32, or float64 throughout.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers
from neurospike.kernels.cpu import _rows
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._intrinsics import (
    address,
    call,
    fence,
    prefetch,
    stream,
    sum_rows,
    take,
)
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, row_of, run
from neurospike.kernels.cpu._sequences import rows
from neurospike.kernels.cpu.events import FORMATS, Found, find, listed, words
from neurospike.kernels.cpu.events import threads as threads_for
from neurospike.kernels.cpu.linear import pack, turn_block
from neurospike.kernels.cpu.scan import alike_of, as_tensor
from neurospike.neurons.rule import Rule

__all__ = ["backward", "find", "forward", "panels", "words"]  # for `neurospike.layers.spike_layer`

PANEL_BYTES = 512  # neurons that go through time together, in bytes of one number each
PARTS = 2  # parts per thread that samples are divided into
STREAMED = 32 << 20  # bytes of spikes from which they are written past the caches
LINES = 10  # rows of scratch per thread, beside the membranes and currents of each step

# Sizes of a job: steps, samples, inputs and outputs of the layer; forward the parts that samples
# are divided into, backward the stride over time of the spikes' gradient; 1 if spikes are written
# past the caches. Then addresses of functions of `_rows`: `advance` or `retrace`, and `retreat`.
STEPS, BATCH, WIDTH, OUTPUTS, BLOCKS, PAST, ONWARD, BACK = range(SIZES, SIZES + 8)
STRIDE = BLOCKS

# Compile-time constants of a kernel, rebound for each number format.
NUMBER = np.float32(0)
INDEX = np.int32(0)
PANEL = 128
TILE = 16


def _line(scratch, own, k):
    return row_of(scratch, own + k * PANEL, PANEL)


def _fill(out, values, low, n):
    """Write `n` values from `low` on, or the only one `n` times, and zeros after them."""
    for i in range(out.size):
        out[i] = 0.0
    if values.size == 1:
        for i in range(n):
            out[i] = values[0]
    elif values.size > 0:
        for i in range(n):
            out[i] = values[low + i]


def _copy(out, values):
    for i in range(out.size):
        out[i] = values[i]


def _add(out, values):
    for i in range(out.size):
        out[i] += values[i]


def _forward(job_at):
    job = job_of(job_at)
    steps, batch, width = job[STEPS], job[BATCH], job[WIDTH]
    outputs, blocks, past = job[OUTPUTS], job[BLOCKS], job[PAST] == 1
    packed, bias = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    starts, places = array_of(job_at, 2, 0), array_of(job_at, 3, INDEX)
    mem, beta = array_of(job_at, 4, NUMBER), array_of(job_at, 5, NUMBER)
    threshold, spikes = array_of(job_at, 6, NUMBER), array_of(job_at, 7, NUMBER)
    final, numbers = array_of(job_at, 8, NUMBER), array_of(job_at, 9, NUMBER)
    scratch = array_of(job_at, 10, NUMBER)
    own = take(job, SLOT) * LINES * PANEL
    state, current, kept = _line(scratch, own, 0), _line(scratch, own, 1), _line(scratch, own, 2)
    # The rows of a group follow one another, as `_rows` reads them: here decay and threshold.
    first, b, th = _line(scratch, own, 3), _line(scratch, own, 4), _line(scratch, own, 5)
    part = take(job, NEXT)
    while part < (outputs + PANEL - 1) // PANEL * blocks:
        panel, block = part // blocks, part % blocks
        low = panel * PANEL
        n = min(PANEL, outputs - low)
        matrix = packed[low * width : (low + PANEL) * width]
        _fill(first, bias, low, n)
        _fill(b, beta, low, n)
        _fill(th, threshold, low, n)
        for sample in range(block * batch // blocks, (block + 1) * batch // blocks):
            at = sample * outputs + low
            _fill(state, mem, at, n)
            for t in range(steps):
                r = t * batch + sample
                out = r * outputs + low
                sum_rows(current, 0, first, 0, matrix, places, starts[r], starts[r + 1], PANEL)
                direct = n == PANEL and not past
                call(
                    job[ONWARD],
                    (
                        address(current, 0),
                        address(state, 0),
                        address(b, 0),
                        address(spikes, out) if direct else address(kept, 0),
                        address(numbers, 0),
                        PANEL,
                        PANEL,
                        1,  # step: the strides are not used
                        0,
                        0,
                    ),
                )
                if past:
                    stream(spikes, out, row_of(kept, 0, n))
                elif n < PANEL:
                    _copy(row_of(spikes, out, n), kept)
            _copy(row_of(final, at, n), state)
        part = take(job, NEXT)
    if past:
        fence()


def _backward(job_at):
    job = job_of(job_at)
    steps, batch, width = job[STEPS], job[BATCH], job[WIDTH]
    outputs, stride = job[OUTPUTS], job[STRIDE]
    packed, bias = array_of(job_at, 0, NUMBER), array_of(job_at, 1, NUMBER)
    starts, places = array_of(job_at, 2, 0), array_of(job_at, 3, INDEX)
    mem, beta = array_of(job_at, 4, NUMBER), array_of(job_at, 5, NUMBER)
    threshold, numbers = array_of(job_at, 6, NUMBER), array_of(job_at, 7, NUMBER)
    grad_spikes, grad_final = array_of(job_at, 8, NUMBER), array_of(job_at, 9, NUMBER)
    out, out_bias = array_of(job_at, 10, NUMBER), array_of(job_at, 11, NUMBER)
    out_mem, out_beta = array_of(job_at, 12, NUMBER), array_of(job_at, 13, NUMBER)
    out_th, scratch = array_of(job_at, 14, NUMBER), array_of(job_at, 15, NUMBER)
    # Rows of the scratch: the weight's gradient, lines, the membrane and the current of each step.
    # The gradients of decay and threshold follow one another, as those two do.
    own = take(job, SLOT) * (width + LINES + 2 * (1 + steps)) * PANEL
    sums = row_of(scratch, own, width * PANEL)
    own += width * PANEL
    state, d = _line(scratch, own, 0), _line(scratch, own, 2)
    first, b, th = _line(scratch, own, 3), _line(scratch, own, 4), _line(scratch, own, 5)
    d_bias, d_beta, d_th = _line(scratch, own, 6), _line(scratch, own, 7), _line(scratch, own, 8)
    padded = _line(scratch, own, 9)
    mems = own + LINES * PANEL
    currents = mems + (1 + steps) * PANEL
    nothing = row_of(scratch, own, 0)
    part = take(job, NEXT)
    while part < (outputs + PANEL - 1) // PANEL:
        low = part * PANEL
        n = min(PANEL, outputs - low)
        matrix = packed[low * width : (low + PANEL) * width]
        _fill(sums, nothing, 0, 0)
        _fill(d_bias, nothing, 0, 0)
        _fill(d_beta, nothing, 0, 0)
        _fill(d_th, nothing, 0, 0)
        _fill(padded, nothing, 0, 0)
        _fill(first, bias, low, n)
        _fill(b, beta, low, n)
        _fill(th, threshold, low, n)
        for sample in range(batch):
            at = sample * outputs + low
            _fill(_line(scratch, mems, 0), mem, at, n)
            for t in range(steps):
                r = t * batch + sample
                if grad_spikes.size > 0:
                    prefetch(grad_spikes, t * stride + at, n)
                current, before = _line(scratch, currents, t), _line(scratch, mems, t)
                sum_rows(current, 0, first, 0, matrix, places, starts[r], starts[r + 1], PANEL)
                call(
                    job[ONWARD],
                    (
                        address(current, 0),
                        address(before, 0),
                        address(b, 0),
                        address(numbers, 0),
                        PANEL,
                        PANEL,
                        1,  # step: the strides are not used
                        0,
                    ),
                )
            _fill(state, grad_final, at, n)
            for t in range(steps - 1, -1, -1):
                r = t * batch + sample
                g = nothing
                if grad_spikes.size > 0:
                    g = row_of(grad_spikes, t * stride + at, n)
                    if n < PANEL:
                        _copy(row_of(padded, 0, n), g)
                        g = padded
                current, before = _line(scratch, currents, t), _line(scratch, mems, t)
                call(
                    job[BACK],
                    (
                        address(current, 0),
                        address(before, 0),
                        address(b, 0),
                        address(g, 0),
                        address(state, 0),
                        address(d, 0),
                        address(d_beta, 0),
                        address(numbers, 0),
                        PANEL,
                        PANEL,
                        1,  # step: the strides are not used
                        0,
                        0,
                        0,
                    ),
                )
                _add(d_bias, d)
                for e in range(starts[r], starts[r + 1]):
                    _add(_line(sums, 0, places[e]), d)
            if out_mem.size > 0:
                _copy(row_of(out_mem, at, n), state)
        for j in range(0, n, TILE):
            to = (low + j) * width
            turn_block(out, to, width, sums, j, PANEL, width, min(n - j, TILE))
        if out_bias.size > 0:
            _copy(row_of(out_bias, low, n), d_bias)
        if out_beta.size > 0:
            _copy(row_of(out_beta, low, n), d_beta)
            _copy(row_of(out_th, low, n), d_th)
        part = take(job, NEXT)


@functools.cache
def _compiled(backward: bool, state: torch.dtype) -> Any:
    """Return the forward or backward kernel, for any neuron, compiled for a number format."""
    names: dict[str, Any] = {"INDEX": np.int32(0)}
    names |= {"PANEL": PANEL_BYTES // state.itemsize, "TILE": 64 // state.itemsize}
    return compiled(_backward if backward else _forward, names, FORMATS[state])


def panels(outputs: int, state: torch.dtype) -> int:
    """Return into how many panels `outputs` neurons are divided; a thread takes one at a time."""
    return -(-outputs * state.itemsize // PANEL_BYTES)


class Kept(NamedTuple):
    """What the backward pass needs: the lists of active inputs `[T * B, K]`, the packed weight."""

    starts: Tensor
    places: Tensor
    packed: Tensor


def forward(
    *,
    bits: Tensor,
    found: Found,
    weight: Tensor,
    bias: Tensor | None,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    rule: Rule,
    steps: int,
) -> tuple[Tensor, Tensor, Kept]:
    """Return spikes `[T, B, N]`, the last membrane `[B, N]`, and what `backward` needs.

    `bits` and `found` are of the inputs `[T * B, K]`; `weight` `[N, K]`, `bias` `[N]` or None,
    `mem` `[B, N]` or None, `beta` and `threshold` `[1]` or `[N]`.
    """
    state, (outputs, width), batch = weight.dtype, weight.shape, len(bits) // steps
    starts = found.starts(False)
    places, _ = listed(bits, starts, False, None, state, (1, width, 1))
    panel = PANEL_BYTES // state.itemsize
    packed = pack(weight, panel)
    spikes = buffers.empty((steps, batch, outputs), state)
    final = torch.empty((batch, outputs), dtype=state, device="cpu")
    parts = panels(outputs, state)
    # Threads work on the same panel and different samples: spikes of one sample in two neighbouring
    # panels may share a cache line.
    blocks = max(1, min(batch, PARTS * torch.get_num_threads()))
    alike = alike_of((beta, threshold))
    advance = _rows.advance(rule.program, state == torch.float64, alike, True)
    run(
        _compiled(False, state),
        (packed, bias, starts, places, mem, beta, threshold, spikes, final)
        + (as_tensor(rule.numbers, state),),
        (steps, batch, width, outputs, blocks, spikes.nbytes >= STREAMED, advance),
        threads_for((len(places) + len(bits)) * outputs, parts * blocks),
        LINES * panel,
        state,
    )
    return spikes, final, Kept(starts, places, packed)


def backward(
    *,
    grad_spikes: Tensor | None,
    grad_final: Tensor | None,
    kept: Sequence[Tensor],
    bias: Tensor | None,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    rule: Rule,
    shape: tuple[int, int, int, int],
    want_mem: bool,
    want_parameters: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of weight, `bias`, `mem`, `beta` and `threshold`.

    `shape` is `(T, B, N, K)`. The gradient of `mem` is None without `want_mem`, the last two are
    None without `want_parameters`.
    """
    starts, places, packed = kept
    state, (steps, batch, outputs, width) = packed.dtype, shape
    gs = rows(grad_spikes, state)
    stride = 0 if gs is None or gs.numel() == batch * outputs else batch * outputs
    panel = PANEL_BYTES // state.itemsize
    out = buffers.empty((outputs, width), state)
    out_bias = None if bias is None else torch.empty(outputs, dtype=state, device="cpu")
    out_mem = torch.empty((batch, outputs), dtype=state, device="cpu") if want_mem else None
    out_beta = out_th = None
    if want_parameters:
        out_beta, out_th = torch.empty((2, outputs), dtype=state, device="cpu")
    final = None if grad_final is None else grad_final.contiguous()
    alike, double = alike_of((beta, threshold)), state == torch.float64
    wanted = 3 if want_parameters else 0
    retrace = _rows.retrace(rule.program, double, alike)
    retreat = _rows.retreat(rule.program, double, alike, gs is not None, wanted, False)
    numbers = as_tensor(rule.numbers, state)
    run(
        _compiled(True, state),
        (packed, bias, starts, places, mem, beta, threshold, numbers, gs, final)
        + (out, out_bias, out_mem, out_beta, out_th),
        (steps, batch, width, outputs, stride, 0, retrace, retreat),
        threads_for((len(places) + steps * batch) * outputs, panels(outputs, state)),
        (width + LINES + 2 * (1 + steps)) * panel,
        state,
    )
    out_beta, out_th = (
        found.sum().view(given.shape) if found is not None and given.numel() == 1 else found
        for found, given in ((out_beta, beta), (out_th, threshold))
    )
    return out, out_bias, out_mem, out_beta, out_th
