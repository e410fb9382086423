"""The fused CPU backend: the whole time loop in one compiled kernel, forward and backward.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. A block of neurons keeps its state in
the first-level cache while the loop runs over T; blocks are divided among threads. Each row is one
vectorised loop over the block, in the formulas of `neurospike.formulas`, re-jitted here.

Saved for backward: nothing but the inputs. The backward pass first runs the block's forward again
into a scratch that fits the second-level cache, then goes through time in reverse. That moves 8
bytes a neuron-step forward (read current, write spikes) and 12 backward (read current and the
spikes' gradient, write the current's), against 12 and 12 with a saved membrane.

What is the same at every step is one row with the time stride 0: a constant current, the gradient
of a spike count. What nobody asked for is compiled away. Number formats: state float32, or float64
if the current is; 16-bit currents are converted before, their spikes and gradients after.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numba.core.compiler import Compiler
from torch import Tensor

from neurospike import formulas, parallel, rule
from neurospike.binding import bind, digest
from neurospike.formulas import step, step_vjp

BLOCK = 1024  # neurons whose state stays in the first-level cache
SCRATCH = 1 << 17  # recomputed membranes of a block that stay in the second-level cache
GRAIN = 1 << 16  # neuron-steps that are worth waking a thread for
LINE = 16  # a thread's range begins at a cache line, so that no two write to the same

# What a kernel is compiled for; rebound for each variant.
DELAYED = True
SPIKES = True
TRACE = False
CONSTANT = False
PARAMETERS = False
surrogate = formulas.atan


class _NoAlias(Compiler):
    """Tell LLVM that the arrays of a call do not overlap: else it gives up on vectorising."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def cast(condition, like):
    """`cast` of the formulas for a compiler whose literals already have the state's format."""
    return 1.0 if condition else 0.0


def where(condition, a, b):
    """`where` of the formulas."""
    return a if condition else b


def _fill(out, values, start):
    """Write one value a neuron, from neuron `start` on; `values` repeats with its own length."""
    k = start % values.size
    for i in range(out.size):
        out[i] = values[k]
        k += 1
        if k == values.size:
            k = 0


def _forward_row(current, mem, beta, threshold, spikes, trace):
    for i in range(mem.size):
        spike, new, _ = step(mem[i], current[i], beta[i], threshold[i])
        mem[i] = new
        if SPIKES:
            spikes[i] = spike
        if TRACE:
            trace[i] = new


def _forward(
    current, mem, beta, threshold, spikes, trace, final, scratch, stride, steps, start, stop
):
    size = final.size
    block = scratch.shape[1]
    for low in range(start, stop, block):
        n = min(block, stop - low)
        state, b, th = scratch[0, :n], scratch[1, :n], scratch[2, :n]
        state[:] = 0.0
        if mem.size > 0:
            state[:] = mem[low : low + n]
        _fill(b, beta, low)
        _fill(th, threshold, low)
        for t in range(steps):
            x = t * stride + low
            out = t * size + low
            _forward_row(
                current[x : x + n], state, b, th, spikes[out : out + n], trace[out : out + n]
            )
        final[low : low + n] = state


def _recompute_row(current, mem, beta, threshold, v, after):
    for i in range(mem.size):
        _, new, charged = step(mem[i], current[i], beta[i], threshold[i])
        mem[i] = new
        v[i] = charged
        if not DELAYED:
            after[i] = new


def _backward_row(
    grad_spikes, grad_trace, before, v, beta, threshold, parameters, carry, out, out_beta, out_th
):
    for i in range(carry.size):
        grad_spike = 0.0
        grad_mem = carry[i]
        if SPIKES:
            grad_spike = grad_spikes[i]
        if TRACE:
            grad_mem = grad_trace[i] + grad_mem
        h = surrogate(v[i] - threshold[i], *parameters)
        d, grad_before, d_beta, d_th = step_vjp(
            before[i], v[i], beta[i], threshold[i], h, grad_spike, grad_mem
        )
        carry[i] = grad_before
        if CONSTANT:
            out[i] += d
        else:
            out[i] = d
        if PARAMETERS:
            out_beta[i] += d_beta
            out_th[i] += d_th


def _backward(
    grad_spikes,
    grad_trace,
    grad_final,
    current,
    mem,
    beta,
    threshold,
    parameters,
    out,
    out_mem,
    out_beta,
    out_threshold,
    scratch,
    strides,
    steps,
    start,
    stop,
):
    size = out_mem.size
    block = scratch.shape[1]
    # Rows of the scratch: state, beta, threshold; the membrane before the first step, then the
    # charged one of each step; with an immediate reset also the membrane after each step.
    first = 3
    later = first if DELAYED else first + 1 + steps
    for low in range(start, stop, block):
        n = min(block, stop - low)
        state, b, th = scratch[0, :n], scratch[1, :n], scratch[2, :n]
        state[:] = 0.0
        if mem.size > 0:
            state[:] = mem[low : low + n]
        scratch[first, :n] = state
        scratch[later, :n] = state
        _fill(b, beta, low)
        _fill(th, threshold, low)
        for t in range(steps):
            x = t * strides[0] + low
            _recompute_row(
                current[x : x + n],
                state,
                b,
                th,
                scratch[first + 1 + t, :n],
                scratch[later + 1 + t, :n] if not DELAYED else scratch[0, :0],
            )
        state[:] = 0.0
        if grad_final.size > 0:
            state[:] = grad_final[low : low + n]
        if CONSTANT:
            out[low : low + n] = 0.0
        p = n if PARAMETERS else 0
        d_beta, d_th = out_beta[low : low + p], out_threshold[low : low + p]
        d_beta[:] = 0.0
        d_th[:] = 0.0
        for t in range(steps - 1, -1, -1):
            gs = t * strides[1] + low
            gt = t * strides[2] + low
            o = low if CONSTANT else t * size + low
            _backward_row(
                grad_spikes[gs : gs + n],
                grad_trace[gt : gt + n],
                scratch[later + t, :n],
                scratch[first + 1 + t, :n],
                b,
                th,
                parameters,
                state,
                out[o : o + n],
                d_beta,
                d_th,
            )
        out_mem[low : low + n] = state


@functools.cache
def _compiled(function: Callable[..., Any], key: str, single: bool, **flags: bool) -> Any:
    """Return `function` compiled for a rule, a number format and what is asked for."""
    literal = np.float32 if single else np.float64
    names: dict[str, Any] = {"exp": math.exp, "abs": abs, "where": where, "cast": cast}
    names |= rule.from_key(key).names | flags
    label = f"{function.__name__}-{digest(function, names, literal.__name__)}"

    def jit(bound: Any) -> Any:
        options: dict[str, Any] = {
            "nogil": True,
            "error_model": "numpy",
            "pipeline_class": _NoAlias,
        }
        if bound.__name__ != function.__name__:
            return njit(**options)(bound)
        # Numba names its files on disk by the function and would run stale code where a callee
        # changed. The digest in the name covers every formula that is compiled in.
        bound.__qualname__ = label
        try:
            return njit(cache=True, **options)(bound)
        except RuntimeError:  # no folder to keep code in
            return njit(**options)(bound)

    return bind(function, names, jit, literal)


def _flat(tensor: Tensor | None, state: torch.dtype) -> np.ndarray:
    """Return a view (a converted copy, where it must be) as one row of the state's format."""
    if tensor is None:
        return np.empty(0, np.float32 if state == torch.float32 else np.float64)
    return tensor.detach().to(state).reshape(-1).numpy()


def _rows(tensor: Tensor | None, state: torch.dtype) -> tuple[np.ndarray, int]:
    """Return a sequence `[T, ...]` as one row with its stride over time; 0 if no step differs."""
    if tensor is None or tensor.numel() == 0:
        return _flat(None, state), 0
    if tensor.stride(0) == 0:
        return _flat(tensor[0], state), 0
    return _flat(tensor, state), tensor[0].numel()


def _block(rows: int) -> int:
    """Return how many neurons to take at once when each needs `rows` numbers of scratch."""
    return min(BLOCK, max(64, SCRATCH // rows // 64 * 64))


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
) -> None:
    """Fill `spikes` and `trace` `[T, B, *F]` (each only if not empty) and `final` `[B, *F]`.

    `current` is `[T, B, *F]`, `[B, *F]` if `constant`; `mem` `[B, *F]` or None; `beta` and
    `threshold` `[1]` or `[P]`. All but `current` and `spikes` are in the state's format.
    """
    state = final.dtype
    x, stride = (_flat(current, state), 0) if constant else _rows(current, state)
    wide = spikes if spikes.dtype == state else torch.empty(spikes.shape, dtype=state)
    arrays = (
        x,
        _flat(mem, state),
        _flat(beta, state),
        _flat(threshold, state),
        _flat(wide, state),
        _flat(trace, state),
        _flat(final, state),
    )
    flags = {"SPIKES": spikes.numel() > 0, "TRACE": trace.numel() > 0}
    kernel = _compiled(_forward, key, state == torch.float32, **flags)
    scalar = arrays[0].dtype.type

    def work(start: int, stop: int) -> None:
        scratch = np.empty((3, BLOCK), scalar)
        kernel(*arrays, scratch, stride, steps, start, stop)

    parallel.run(work, final.numel(), final.numel() * steps, GRAIN, LINE)
    if wide is not spikes:
        spikes.copy_(wide)


def backward(
    grad_spikes: Tensor | None,
    grad_final: Tensor | None,
    grad_trace: Tensor | None,
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
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

    `grad_spikes` and `grad_trace` are `[T, B, *F]`, `grad_final` `[B, *F]`, each may be None.
    """
    state = out_mem.dtype
    x, x_stride = (_flat(current, state), 0) if constant else _rows(current, state)
    (gs, gs_stride), (gt, gt_stride) = _rows(grad_spikes, state), _rows(grad_trace, state)
    size = math.prod(current.shape if constant else current.shape[1:])
    wide = out if out.dtype == state else torch.empty(out.shape, dtype=state)
    wants_parameters = out_beta.numel() > 0 or out_threshold.numel() > 0
    flags = {
        "SPIKES": gs.size > 0,
        "TRACE": gt.size > 0,
        "CONSTANT": constant,
        "PARAMETERS": wants_parameters,
        "DELAYED": rule.from_key(key).delayed,
    }
    kernel = _compiled(_backward, key, state == torch.float32, **flags)
    scalar = x.dtype.type
    each = np.empty((2, size if wants_parameters else 0), scalar)
    mems = out_mem if out_mem.numel() == size else torch.empty(size, dtype=state)
    arrays = (
        gs,
        gt,
        _flat(grad_final, state),
        x,
        _flat(mem, state),
        _flat(beta, state),
        _flat(threshold, state),
        tuple(scalar(p) for p in parameters),
        _flat(wide, state),
        _flat(mems, state),
        each[0],
        each[1],
    )
    rows = 4 + steps * (1 if flags["DELAYED"] else 2) + 1
    block = _block(rows)

    def work(start: int, stop: int) -> None:
        scratch = np.empty((rows, block), scalar)
        kernel(*arrays, scratch, (x_stride, gs_stride, gt_stride), steps, start, stop)

    parallel.run(work, size, 2 * size * steps, GRAIN, LINE)
    if wide is not out:
        out.copy_(wide)
    for target, found in zip((out_beta, out_threshold), each):
        if target.numel() > 0:
            target.copy_(torch.from_numpy(found).view(-1, target.numel()).sum(0))
