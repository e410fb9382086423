"""Torch operators made from a fused backend's two functions: schema, checks, fake, autograd.

Each fused row of `dispatch.TABLE` becomes `torch.ops.neurospike.<name>_lif` and
`..._lif_backward`. The operators are defined when the package is imported, so that saved graphs
find them; the backend behind them is imported at the first real call. The `autograd.Function`
stands outside the operators: measured at 14 us a call against 32 for `register_autograd`, and
torch.compile traces through it.

An output nobody asked for is an empty tensor, and costs nothing. What a backend must provide:

    forward(current [R, N], mem [N] | None, beta [P], threshold [P], rule, parameters, num_steps,
            spikes [T, N] | None, trace [T, N] | None, final [N]) -> None     fills the outputs
    backward(...)  likewise; see the docstrings of kernels/lif_numba.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import buffers, dispatch

_LIBRARY = torch.library.Library("neurospike", "DEF")

_FORWARD = (
    "(Tensor current, Tensor? mem, Tensor beta, Tensor threshold, str rule, float[] parameters, "
    "int num_steps, bool want_spikes, bool want_trace) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor? grad_mem, Tensor? grad_trace, Tensor current, Tensor? mem, "
    "Tensor beta, Tensor threshold, str rule, float[] parameters, int num_steps, "
    "bool want_mem, bool want_beta, bool want_threshold) -> (Tensor, Tensor, Tensor, Tensor)"
)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the number format of the membrane for a current of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step_shape(current: Tensor, num_steps: int) -> torch.Size:
    """Return `[B, *F]`; a current with `num_steps >= 0` is held constant and has no time axis."""
    return current.shape if num_steps >= 0 else current.shape[1:]


def _steps(current: Tensor, num_steps: int) -> int:
    return num_steps if num_steps >= 0 else current.shape[0]


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if type(like) is Tensor and like.device.type == "cpu":
        return buffers.empty(shape, dtype)
    return like.new_empty(shape, dtype=dtype)  # on a GPU, or a fake one of torch.compile


def _allocate(
    current: Tensor, num_steps: int, want_spikes: bool, want_trace: bool
) -> tuple[Tensor, Tensor, Tensor]:
    state = state_dtype(current.dtype)
    shape = step_shape(current, num_steps)
    whole = (_steps(current, num_steps), *shape)
    spikes = _empty(current, whole if want_spikes else (0,), current.dtype)
    final = _empty(current, shape, state)
    trace = _empty(current, whole if want_trace else (0,), state)
    return spikes, final, trace


def _allocate_gradients(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    num_steps: int,
    want_mem: bool,
    want_beta: bool,
    want_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = state_dtype(current.dtype)
    shape = step_shape(current, num_steps)
    return (
        _empty(current, current.shape, current.dtype),
        _empty(current, shape if want_mem else (0,), state),
        beta.new_empty(beta.shape if want_beta else 0),
        threshold.new_empty(threshold.shape if want_threshold else 0),
    )


def _define(row: dispatch.Backend) -> None:
    name = f"{row.name}_lif"
    _LIBRARY.define(name + _FORWARD)
    _LIBRARY.define(name + "_backward" + _BACKWARD)

    def forward(current: Tensor, *rest: Any) -> Any:
        num_steps, want_spikes, want_trace = rest[-3:]
        outputs = _allocate(current, num_steps, want_spikes, want_trace)
        steps = _steps(current, num_steps)
        dispatch.load(row).forward(current, *rest[:-3], steps, num_steps >= 0, *outputs)
        return outputs

    def backward(*arguments: Any) -> Any:
        current, _, beta, threshold = arguments[3:7]
        num_steps, *wants = arguments[-4:]
        outputs = _allocate_gradients(current, beta, threshold, num_steps, *wants)
        steps = _steps(current, num_steps)
        dispatch.load(row).backward(*arguments[:-4], steps, num_steps >= 0, *outputs)
        return outputs

    def fake_forward(current: Tensor, *rest: Any) -> Any:
        return _allocate(current, *rest[-3:])

    def fake_backward(*arguments: Any) -> Any:
        current, _, beta, threshold = arguments[3:7]
        return _allocate_gradients(current, beta, threshold, *arguments[-4:])

    for device in row.device_types:
        _LIBRARY.impl(name, forward, device.upper())
        _LIBRARY.impl(name + "_backward", backward, device.upper())
    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)


for _row in dispatch.TABLE.values():
    if _row.fused:
        _define(_row)


class _Once(torch.autograd.Function):
    """Gradients as they are, which tell of a second derivative instead of giving a wrong one."""

    @staticmethod
    def forward(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep nothing: there is no second derivative to compute."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        raise RuntimeError(
            "a fused LIF backend has first derivatives only, and a second one was asked for "
            "(create_graph=True); use backend='reference', which has both"
        )


class _Fused(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    # Not split into forward and setup_context: torch would inspect the signature at every call.
    @staticmethod
    def forward(ctx: Any, name: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = getattr(torch.ops.neurospike, f"{name}_lif")(*arguments)
        current, mem, beta, threshold, *options, want_spikes, want_trace = arguments
        ctx.save_for_backward(current, mem, beta, threshold)
        ctx.name, ctx.options = name, options
        ctx.set_materialize_grads(False)
        spikes, _, trace = output
        unwanted = [t for t, want in ((spikes, want_spikes), (trace, want_trace)) if not want]
        ctx.mark_non_differentiable(*unwanted)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        grad_spikes, grad_mem, grad_trace = grads
        current, mem, beta, threshold = ctx.saved_tensors
        _, need_current, need_mem, need_beta, need_threshold, *_ = ctx.needs_input_grad
        backward = getattr(torch.ops.neurospike, f"{ctx.name}_lif_backward")
        found = backward(
            grad_spikes,
            grad_mem,
            grad_trace,
            current,
            mem,
            beta,
            threshold,
            *ctx.options,
            need_mem,
            need_beta,
            need_threshold,
        )
        if torch.is_grad_enabled():  # create_graph=True
            found = _Once.apply(*found, current, mem, beta, threshold, *grads)[:4]
        needs = (need_current, need_mem, need_beta, need_threshold)
        wanted = (grad if need else None for grad, need in zip(found, needs))
        return (None, *wanted, None, None, None, None, None)


def fused_lif(
    name: str,
    current: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    rule: str,
    parameters: Sequence[float],
    num_steps: int,
    want_spikes: bool,
    want_trace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the fused backend `name`; return `(spikes, mem, trace)`, an unwanted one empty.

    Shapes: `current` `[T, B, *F]`, or `[B, *F]` with `num_steps >= 0`; `mem` `[B, *F]` in the
    state's number format or `None` for zeros; `beta` and `threshold` `[1]` or `[P]`, one a neuron
    of F flattened, in the state's number format.
    """
    arguments = (current, mem, beta, threshold, rule, parameters, num_steps)
    tensors = (t for t in (current, mem, beta, threshold) if t is not None)
    # In forward mode the Function refuses; the bare operator would give tangents of zero.
    forward_mode = forward_ad._current_level >= 0
    if forward_mode or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return _Fused.apply(name, *arguments, want_spikes, want_trace)
    operator = getattr(torch.ops.neurospike, f"{name}_lif")
    return operator(*arguments, want_spikes, want_trace)
