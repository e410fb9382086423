"""The fused CUDA backend of `Delay`: each channel of a sequence, its own number of steps later.

Layout: a sequence is `[T, N]`, `N = B * P`, rows contiguous; `lag [P]` and `weights [taps, P]` are
those of the P channels of a sample. The output is `y_t = sum_j weights[j] * x_{t - lag - j}`.

No step needs the result of the one before it, so a program takes a block of channels and a chunk of
steps. Each channel loads the rows of its own lag; neighbouring channels find the same rows in the
caches, so that device memory is read once: 8 bytes per channel-step forward (read x, write y) and
12 backward (read x and the gradient of y, write that of x) in float32. Saved for backward: nothing
but the inputs. Gradients of weights are summed over a chunk in registers, and over chunks and the
batch by torch: without atomic additions, whose order would change the result.

Number formats: sums in float32, or float64 if the input is; 16-bit sequences are read and written
as they are.
"""

import functools
import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from neurospike.backend.binding import bind
from neurospike.kernels.cuda._compile import jit
from neurospike.kernels.cuda._launch import Launch

BLOCK = 256  # channels of a program
WARPS = 4
CHUNK = 64  # steps of a program

# Compile-time constants, rebound for each variant of a kernel.
TAPS = 2
GIVEN = False  # whether there are steps before the first
ENDS = False  # whether samples have lengths
WANT_X = True  # whether these gradients are wanted: of x, of the steps before it, of the weights
WANT_BEFORE = False
WANT_WEIGHTS = True


def _place(lag_ptr, weights_ptr, ends_ptr, size, channels, steps):
    """Return this program's channels (offsets, which exist, lags, weights, ends) and its chunk."""
    blocks = (size + BLOCK - 1) // BLOCK
    offsets = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < size
    channel = offsets % channels
    lag = tl.load(lag_ptr + channel).to(tl.int64)
    weights = ()
    for j in tl.static_range(TAPS):
        weights = weights + (tl.load(weights_ptr + j * channels + channel),)
    ends = tl.zeros([BLOCK], tl.int64) + steps
    if ENDS:
        ends = tl.minimum(tl.load(ends_ptr + offsets // channels, mask=valid, other=0), ends)
    return offsets, valid, lag, weights, ends, tl.program_id(0) // blocks


def _load(ptr, at, stride, offsets, inside, state):
    """Load row `at[i]` of a sequence for each channel `i`; 0 where it is not `inside`."""
    return tl.load(ptr + at * stride + offsets, mask=inside, other=0.0).to(state)


def _forward(
    x_ptr,
    before_ptr,
    lag_ptr,
    weights_ptr,
    ends_ptr,
    out_ptr,
    size,
    channels,
    x_stride,
    delay,
    steps,
):
    steps = steps.to(tl.int64)
    offsets, valid, lag, weights, ends, chunk = _place(
        lag_ptr, weights_ptr, ends_ptr, size, channels, steps
    )
    state = weights_ptr.dtype.element_ty
    first = chunk.to(tl.int64) * CHUNK
    for t in tl.range(first, tl.minimum(first + CHUNK, steps)):
        y = tl.zeros([BLOCK], state)
        for j in tl.static_range(TAPS):
            at = t - lag - j
            inside = valid & (t < ends)
            value = _load(x_ptr, at, x_stride, offsets, inside & (at >= 0), state)
            if GIVEN:
                value += _load(before_ptr, at + delay, size, offsets, inside & (at < 0), state)
            y += weights[j] * value
        tl.store(out_ptr + t * size + offsets, y.to(out_ptr.dtype.element_ty), mask=valid)


def _backward(
    grad_ptr,
    x_ptr,
    before_ptr,
    lag_ptr,
    weights_ptr,
    ends_ptr,
    out_ptr,
    out_before_ptr,
    out_weights_ptr,
    size,
    channels,
    grad_stride,
    x_stride,
    delay,
    steps,
):
    steps = steps.to(tl.int64)
    offsets, valid, lag, weights, ends, chunk = _place(
        lag_ptr, weights_ptr, ends_ptr, size, channels, steps
    )
    state = weights_ptr.dtype.element_ty
    first = chunk.to(tl.int64) * CHUNK
    if GIVEN:  # chunks begin with the steps before the first
        first -= delay
    sums = ()
    for _ in tl.static_range(TAPS):
        sums = sums + (tl.zeros([BLOCK], state),)
    for s in tl.range(first, tl.minimum(first + CHUNK, steps)):
        given = tl.zeros([BLOCK], state)
        if WANT_WEIGHTS:
            given = _load(x_ptr, s, x_stride, offsets, valid & (s >= 0), state)
            if GIVEN:
                given += _load(before_ptr, s + delay, size, offsets, valid & (s < 0), state)
        d = tl.zeros([BLOCK], state)
        summed = ()
        for j in tl.static_range(TAPS):
            at = s + lag + j
            inside = valid & (at >= 0) & (at < ends)
            grad = _load(grad_ptr, at, grad_stride, offsets, inside, state)
            d += weights[j] * grad
            # Steps after a sample's end do not count, and may hold NaN.
            summed = summed + (sums[j] + tl.where(inside, grad * given, 0.0),)
        sums = summed
        if WANT_X:
            values = d.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + s * size + offsets, values, mask=valid & (s >= 0))
        if WANT_BEFORE:
            values = d.to(out_before_ptr.dtype.element_ty)
            tl.store(out_before_ptr + (s + delay) * size + offsets, values, mask=valid & (s < 0))
    if WANT_WEIGHTS:
        for j in tl.static_range(TAPS):
            row = (chunk * TAPS + j).to(tl.int64) * size
            tl.store(out_weights_ptr + row + offsets, sums[j], mask=valid)


@functools.lru_cache(maxsize=512)
def compiled(kind: str, **flags: Any) -> Any:
    """Return a kernel jitted for a number of taps and the wanted outputs."""
    names = {"tl": tl, "BLOCK": BLOCK, "CHUNK": CHUNK, **flags}
    return bind(_forward if kind == "forward" else _backward, names, jit)


@functools.lru_cache(maxsize=4096)
def _prepared(
    kind: str, chunks: int, size: int, form: tuple[Any, ...], flags: tuple[tuple[str, Any], ...]
) -> Launch:
    """Return the launch of a kernel.

    form: the device's index, and all else for which Triton compiles another kernel.
    """
    return Launch(compiled(kind, **dict(flags)), -(-size // BLOCK) * chunks, WARPS, form[0])


def _rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return a sequence with contiguous rows and their stride, 0 for one row at all steps."""
    if tensor.shape[0] > 1 and tensor.stride(0) == 0:
        return tensor[0].contiguous(), 0
    return tensor.contiguous(), math.prod(tensor.shape[1:])


def forward(
    *,
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    out: Tensor,
) -> None:
    """Fill `out` `[T, B, *F]`; see `neurospike.backend.protocols.Delay`."""
    steps, size = len(current), math.prod(current.shape[1:])
    if size == 0 or steps == 0:
        return
    x, stride = _rows(current)
    before = None if history is None else history.contiguous()
    channels, device = lag.numel(), current.get_device()
    form = (device, current.dtype, channels, stride, max_delay, steps.bit_length() > 31)
    flags = (("TAPS", len(weights)), ("GIVEN", before is not None), ("ENDS", lengths is not None))
    go = _prepared("forward", -(-steps // CHUNK), size, form, flags)
    given = (x, before, lag, weights.contiguous(), lengths, out)
    go(given, (*given, size, channels, stride, max_delay, steps))


def backward(
    *,
    grad: Tensor,
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
    out: Tensor | None,
    out_history: Tensor | None,
    out_weights: Tensor | None,
) -> None:
    """Fill the gradients that are wanted; see `neurospike.backend.protocols.Delay`."""
    steps, batch = current.shape[:2]
    taps, channels = weights.shape
    size = batch * channels
    before = None
    if history is not None and (out_history is not None or out_weights is not None):
        before = history.contiguous()
    rows = steps + (0 if before is None else max_delay)
    chunks = -(-rows // CHUNK)
    each = None if out_weights is None else weights.new_empty(chunks, taps, batch, channels)
    if size and rows:
        g, grad_stride = _rows(grad)
        x, stride = _rows(current) if out_weights is not None else (None, 0)
        form = (grad.get_device(), current.dtype, channels, grad_stride, stride, max_delay)
        flags = (
            ("TAPS", taps),
            ("GIVEN", before is not None),
            ("ENDS", lengths is not None),
            ("WANT_X", out is not None),
            ("WANT_BEFORE", out_history is not None),
            ("WANT_WEIGHTS", each is not None),
        )
        go = _prepared("backward", chunks, size, (*form, steps.bit_length() > 31), flags)
        given = (g, x, before, lag, weights.contiguous(), lengths, out, out_history, each)
        go(given, (*given, size, channels, grad_stride, stride, max_delay, steps))
    if out_weights is not None and each is not None:
        torch.sum(each, (0, 2), out=out_weights)
