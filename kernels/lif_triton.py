"""The fused CUDA backend: the whole time loop in one Triton kernel, forward and backward.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. One program takes a block of neurons
and keeps their state in registers while it goes through time, `EVERY` steps at once: the loads of
such a chunk wait for memory together and not one a step, and in small layers while those before it
are computed. The formulas are those of `neurospike.formulas`, jitted here.

Saved for backward: the membrane before every chunk. The backward kernel takes the chunks in
reverse; it reads a chunk's currents again, runs it forward from the saved membrane with all
membranes in registers, then in reverse. In float32 that moves 8 + 4/EVERY bytes a neuron-step
forward (read current, write spikes) and 12 + 4/EVERY backward (read current and the spikes'
gradient, write the current's), against 12 and 12 with every membrane saved.

What is the same at every step is read once: a constant current, the gradient of a spike count. What
nobody asked for is compiled away. The number of steps is no compile-time constant. Number formats:
state float32, or float64 if the current is; 16-bit sequences are read and written as they are.
Gradients of beta and threshold are summed over time in registers, over the batch by torch, so that
no order of atomic additions shows in them.
"""

import math
from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from neurospike import formulas, rule
from neurospike.dispatch import TABLE
from neurospike.formulas import step, step_vjp, windowed
from neurospike.kernels.triton_jit import bits_of, compiled, launch

SMALL = 1 << 15  # so few neurons do not fill the device; they are spread over all of it

# What a kernel is compiled for; rebound for each variant.
EVERY = TABLE["triton"].checkpoint_every
BLOCK = 256
STAGES = 1
DELAYED = True
SPIKES = True
TRACE = False
SAVED = False
SCALAR_BETA = True
SCALAR_THRESHOLD = True
WINDOWED = False
COUNT = 1  # parameters of the surrogate
CONSTANT = False  # the current has no time axis, nor has its gradient
PARAMETERS = False
HELD_CURRENT = False  # the same at every step: read once
HELD_SPIKES = False
HELD_TRACE = False
surrogate = formulas.atan


def _place(size):
    """Return this program's neurons: their offsets, which of them exist, how many there are."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return offsets, offsets < size, size


def _parameter(ptr, is_scalar, count, place):
    """Load the one value of all neurons, or one a neuron; `count` of them repeat over the batch."""
    offsets, valid, _ = place
    return tl.load(ptr) if is_scalar else tl.load(ptr + offsets % count, mask=valid, other=0.0)


def _number(bits, state):
    """Return the number of these bits; where few of them are set, they come as 32-bit integers."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(state)


def _inside(t, steps, is_whole, place):
    """Return which neurons have a step `t`: all that exist, or none after the end of time."""
    offsets, valid, size = place
    return valid if is_whole else offsets < tl.where(t < steps, size, 0)


def _load(ptr, t, inside, place, state):
    """Load row `t` of a sequence in the state's format; 0 where not `inside`."""
    offsets, _, size = place
    return tl.load(ptr + t * size + offsets, mask=inside, other=0.0).to(state)


def _store(ptr, t, values, inside, place):
    """Store row `t` of a sequence in the sequence's format."""
    offsets, _, size = place
    tl.store(ptr + t * size + offsets, values.to(ptr.dtype.element_ty), mask=inside)


def _held(ptr, is_held, place, zeros):
    """Load the one row of a sequence that is the same at every step."""
    row = zeros
    if is_held:
        row = _load(ptr, 0, place[1], place, zeros.dtype)
    return row


def _chunk(ptr, is_held, held, first, steps, is_whole, place):
    """Load `EVERY` rows from row `first` on, all of them before the first is used."""
    rows = ()
    for k in tl.static_range(EVERY):
        if is_held:
            rows = rows + (held,)
        else:
            inside = _inside(first + k, steps, is_whole, place)
            rows = rows + (_load(ptr, first + k, inside, place, held.dtype),)
    return rows


def _forward_chunk(mem, held, beta, threshold, first, steps, is_whole, place, pointers):
    """Take `EVERY` steps from `first` on, or those that there are if not `is_whole`."""
    x_ptr, spikes_ptr, trace_ptr, saved_ptr = pointers
    if SAVED:
        _store(saved_ptr, first // EVERY, mem, place[1], place)
    currents = _chunk(x_ptr, HELD_CURRENT, held, first, steps, is_whole, place)
    for k in tl.static_range(EVERY):
        inside = _inside(first + k, steps, is_whole, place)
        spike, new, _ = step(mem, currents[k], beta, threshold)
        mem = new if is_whole else tl.where(first + k < steps, new, mem)
        if SPIKES:
            _store(spikes_ptr, first + k, spike, inside, place)
        if TRACE:
            _store(trace_ptr, first + k, mem, inside, place)
    return mem


def _forward(
    x_ptr,
    mem_ptr,
    beta_ptr,
    threshold_ptr,
    spikes_ptr,
    trace_ptr,
    saved_ptr,
    final_ptr,
    size,
    betas,
    thresholds,
    steps,
):
    place = _place(size)
    offsets, valid, _ = place
    beta = _parameter(beta_ptr, SCALAR_BETA, betas, place)
    threshold = _parameter(threshold_ptr, SCALAR_THRESHOLD, thresholds, place)
    zeros = tl.zeros([BLOCK], final_ptr.dtype.element_ty)
    mem = zeros
    if mem_ptr is not None:
        mem = tl.load(mem_ptr + offsets, mask=valid, other=0.0)
    held = _held(x_ptr, HELD_CURRENT, place, zeros)
    pointers = (x_ptr, spikes_ptr, trace_ptr, saved_ptr)
    # 64 bits: a sequence may be longer than 2^31 numbers.
    steps = steps.to(tl.int64)
    whole = steps // EVERY * EVERY
    for first in tl.range(0, whole, EVERY, num_stages=STAGES):
        mem = _forward_chunk(mem, held, beta, threshold, first, steps, True, place, pointers)
    for first in tl.range(whole, steps, EVERY):
        mem = _forward_chunk(mem, held, beta, threshold, first, steps, False, place, pointers)
    tl.store(final_ptr + offsets, mem, mask=valid)


def _backward_chunk(
    sums, held, beta, threshold, values, window, first, steps, is_whole, place, pointers
):
    """Go through `EVERY` steps from `first` on in reverse, or those that there are."""
    carry, sum_current, sum_beta, sum_threshold = sums
    held_x, held_spikes, held_trace = held
    x_ptr, saved_ptr, grad_spikes_ptr, grad_trace_ptr, out_ptr = pointers
    _, valid, _ = place
    mem = _load(saved_ptr, first // EVERY, valid, place, carry.dtype)
    currents = _chunk(x_ptr, HELD_CURRENT, held_x, first, steps, is_whole, place)
    if SPIKES:
        spikes = _chunk(grad_spikes_ptr, HELD_SPIKES, held_spikes, first, steps, is_whole, place)
    if TRACE:
        trace = _chunk(grad_trace_ptr, HELD_TRACE, held_trace, first, steps, is_whole, place)
    # Tensors and not numbers: in `step_vjp` each way to return has to be of the same type.
    zeros = tl.zeros([BLOCK], carry.dtype)
    before, charged = (), ()
    for k in tl.static_range(EVERY):
        before = before + (mem,)
        _, mem, v = step(mem, currents[k], beta, threshold)
        charged = charged + (v,)
    for k in tl.static_range(EVERY - 1, -1, -1):
        grad_mem = carry
        if TRACE:
            grad_mem = trace[k] + grad_mem
        grad_spike, h = zeros, zeros
        if SPIKES:
            grad_spike = spikes[k]
        if SPIKES or not DELAYED:
            u = charged[k] - threshold
            h = windowed(surrogate(u, *values), u, window)
        d, grad_before, d_beta, d_threshold = step_vjp(
            before[k], charged[k], beta, threshold, h, grad_spike, grad_mem
        )
        carry = grad_before if is_whole else tl.where(first + k < steps, grad_before, carry)
        if CONSTANT:
            sum_current += d if is_whole else tl.where(first + k < steps, d, 0.0)
        else:
            _store(out_ptr, first + k, d, _inside(first + k, steps, is_whole, place), place)
        if PARAMETERS:
            sum_beta += d_beta if is_whole else tl.where(first + k < steps, d_beta, 0.0)
            sum_threshold += (
                d_threshold if is_whole else tl.where(first + k < steps, d_threshold, 0.0)
            )
    return carry, sum_current, sum_beta, sum_threshold


def _backward(
    grad_spikes_ptr,
    grad_trace_ptr,
    grad_final_ptr,
    x_ptr,
    saved_ptr,
    beta_ptr,
    threshold_ptr,
    parameters,
    out_ptr,
    out_mem_ptr,
    out_beta_ptr,
    out_threshold_ptr,
    size,
    betas,
    thresholds,
    steps,
):
    place = _place(size)
    offsets, valid, _ = place
    beta = _parameter(beta_ptr, SCALAR_BETA, betas, place)
    threshold = _parameter(threshold_ptr, SCALAR_THRESHOLD, thresholds, place)
    state = saved_ptr.dtype.element_ty
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (_number(parameters[k], state),)
    window = 0.0
    if WINDOWED:
        window = _number(parameters[COUNT], state)
    zeros = tl.zeros([BLOCK], state)
    carry = zeros
    if grad_final_ptr is not None:
        carry = tl.load(grad_final_ptr + offsets, mask=valid, other=0.0)
    held = (
        _held(x_ptr, HELD_CURRENT, place, zeros),
        _held(grad_spikes_ptr, HELD_SPIKES, place, zeros),
        _held(grad_trace_ptr, HELD_TRACE, place, zeros),
    )
    pointers = (x_ptr, saved_ptr, grad_spikes_ptr, grad_trace_ptr, out_ptr)
    sums = (carry, zeros, zeros, zeros)
    steps = steps.to(tl.int64)
    whole = steps // EVERY * EVERY
    for first in tl.range(whole, steps, EVERY):
        sums = _backward_chunk(
            sums, held, beta, threshold, values, window, first, steps, False, place, pointers
        )
    for after in tl.range(0, whole, EVERY, num_stages=STAGES):
        first = whole - EVERY - after
        sums = _backward_chunk(
            sums, held, beta, threshold, values, window, first, steps, True, place, pointers
        )
    carry, sum_current, sum_beta, sum_threshold = sums
    if CONSTANT:
        _store(out_ptr, 0, sum_current, valid, place)
    if out_mem_ptr is not None:
        tl.store(out_mem_ptr + offsets, carry, mask=valid)
    if PARAMETERS:
        tl.store(out_beta_ptr + offsets, sum_beta, mask=valid)
        tl.store(out_threshold_ptr + offsets, sum_threshold, mask=valid)


def _geometry(size: int, state: torch.dtype) -> tuple[int, int, int]:
    """Return how many neurons and warps a program has, and how many stages its loop over chunks.

    16 bytes of state a thread make the widest loads. Few neurons are spread over many processors,
    which then have nothing else to do while a chunk is on its way: with 4 stages, 2 chunks are
    while a third is computed. (With 2, Triton asks for one only after that.) A thread has two
    neurons: the least that is copied asynchronously are 4 bytes.
    """
    if size < SMALL:
        return 64, 1, 4
    return 64 * 16 // state.itemsize, 2, 1


def _rows(tensor: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return a sequence `[T, ...]` with contiguous rows, and whether one row stands for all."""
    if tensor is None or tensor.numel() == 0:
        return None, False
    if tensor.stride(0) == 0:
        return tensor[0].contiguous(), True
    return tensor.contiguous(), False


def _wanted(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


def _of_no_step(grad_final: Tensor | None, out: Tensor, out_mem: Tensor, *others: Tensor) -> None:
    """Fill the gradients of a sequence without steps, whose last membrane is its first."""
    for tensor in (out, out_mem, *others):
        tensor.zero_()
    if grad_final is not None and out_mem.numel() > 0:
        out_mem.copy_(grad_final)


def forward(
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    key: str,
    parameters: Sequence[float],
    steps: int,
    constant: bool,
    spikes: Tensor,
    final: Tensor,
    trace: Tensor,
    saved: Tensor,
) -> None:
    """Fill `spikes`, `trace` `[T, B, *F]`, `saved` (each only if not empty) and `final` `[B, *F]`.

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `mem` `[B, *F]` or None; `beta` and
    `threshold` `[1]` or `[P]`. All but `current` and `spikes` are in the state's format. `saved`
    `[ceil(T/EVERY) * B * F]` is the membrane before every chunk.
    """
    size = final.numel()
    if steps == 0:
        final.zero_() if mem is None else final.copy_(mem)
    if steps == 0 or size == 0:
        return
    x, held = (current.contiguous(), True) if constant else _rows(current)
    block, warps, stages = _geometry(size, final.dtype)
    kernel = compiled(
        _forward,
        key,
        BLOCK=block,
        STAGES=stages,
        SPIKES=spikes.numel() > 0,
        TRACE=trace.numel() > 0,
        SCALAR_BETA=beta.numel() == 1,
        SCALAR_THRESHOLD=threshold.numel() == 1,
        SAVED=saved.numel() > 0,
        HELD_CURRENT=held,
    )
    launch(
        kernel,
        -(-size // block),
        warps,
        x,
        None if mem is None else mem.contiguous(),
        beta.contiguous(),
        threshold.contiguous(),
        _wanted(spikes),
        _wanted(trace),
        _wanted(saved),
        final,
        size,
        beta.numel(),
        threshold.numel(),
        steps,
    )


def backward(
    grad_spikes: Tensor | None,
    grad_final: Tensor | None,
    grad_trace: Tensor | None,
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    saved: Tensor,
    key: str,
    parameters: Sequence[float],
    steps: int,
    constant: bool,
    out: Tensor,
    out_mem: Tensor,
    out_beta: Tensor,
    out_threshold: Tensor,
) -> None:
    """Fill the gradients of current, `mem`, `beta` and `threshold`, the last three if not empty.

    `grad_spikes` and `grad_trace` are `[T, B, *F]`, `grad_final` `[B, *F]`, each may be None;
    `saved` is what `forward` filled.
    """
    size = math.prod(current.shape if constant else current.shape[1:])
    if steps == 0:
        _of_no_step(grad_final, out, out_mem, out_beta, out_threshold)
        return
    wants_parameters = out_beta.numel() > 0 or out_threshold.numel() > 0
    each = [beta.new_empty(size) for _ in range(2)] if wants_parameters else [None, None]
    if size:
        x, held = (current.contiguous(), True) if constant else _rows(current)
        (gs, gs_held), (gt, gt_held) = _rows(grad_spikes), _rows(grad_trace)
        block, warps, stages = _geometry(size, saved.dtype)
        kernel = compiled(
            _backward,
            key,
            BLOCK=block,
            STAGES=stages,
            SPIKES=gs is not None,
            TRACE=gt is not None,
            SCALAR_BETA=beta.numel() == 1,
            SCALAR_THRESHOLD=threshold.numel() == 1,
            CONSTANT=constant,
            PARAMETERS=wants_parameters,
            COUNT=len(parameters) - rule.from_key(key).windowed,
            HELD_CURRENT=held,
            HELD_SPIKES=gs_held,
            HELD_TRACE=gt_held,
        )
        launch(
            kernel,
            -(-size // block),
            warps,
            gs,
            gt,
            None if grad_final is None else grad_final.contiguous(),
            x,
            saved,
            beta.contiguous(),
            threshold.contiguous(),
            bits_of(parameters),
            out,
            _wanted(out_mem),
            each[0],
            each[1],
            size,
            beta.numel(),
            threshold.numel(),
            steps,
        )
    for target, found in zip((out_beta, out_threshold), each):
        if found is not None and target.numel() > 0:
            torch.sum(found.view(-1, target.numel()), 0, out=target)
