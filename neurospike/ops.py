"""Torch operators made from a fused backend's two functions: schema, checks, fake, autograd.

Each fused row of `dispatch.TABLE` becomes `torch.ops.neurospike.<name>_lif` and
`..._lif_backward`. The operators are defined when the package is imported, so that saved graphs
find them; the backend behind them is imported at the first real call. The `autograd.Function`
stands outside the operators: measured at 14 us a call against 32 for `register_autograd`, and
torch.compile traces through it.

An output nobody asked for is an empty tensor, and costs nothing. What a backend must provide:

    forward(current [T, B, *F], mem [B, *F] | None, beta [P], threshold [P], rule, parameters,
            num_steps, constant, spikes, final, trace) -> None                fills the outputs
    backward(...)  likewise; see the docstrings of kernels/lif_numba.py

A row with `checkpoint_every = K > 0` has one more output, `saved [ceil(T/K) * B * F]`: the membrane
before every K-th step, in the state's format. It is asked for only where a gradient will be
needed, and its backward function is given it after `threshold`. It is flat because torch.compile
and torch.export take a dimension of 1, such as ceil(T/K) of a short sequence, for one that stays 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import batching, buffers, dispatch

_LIBRARY = torch.library.Library("neurospike", "DEF")

_FORWARD = (
    "(Tensor current, Tensor? mem, Tensor beta, Tensor threshold, str rule, float[] parameters, "
    "SymInt num_steps, bool want_spikes, bool want_trace, bool want_saved) "
    "-> (Tensor, Tensor, Tensor"
)
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor? grad_mem, Tensor? grad_trace, Tensor current, Tensor? mem, "
    "Tensor beta, Tensor threshold, Tensor? saved, str rule, float[] parameters, SymInt num_steps, "
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
    every: int,
    current: Tensor,
    num_steps: int,
    want_spikes: bool,
    want_trace: bool,
    want_saved: bool,
) -> tuple[Tensor, ...]:
    state = state_dtype(current.dtype)
    shape = step_shape(current, num_steps)
    steps = _steps(current, num_steps)
    spikes = _empty(current, (steps, *shape) if want_spikes else (0,), current.dtype)
    final = _empty(current, shape, state)
    trace = _empty(current, (steps, *shape) if want_trace else (0,), state)
    if not every:
        return spikes, final, trace
    saved = _empty(current, (-(-steps // every) * math.prod(shape) if want_saved else 0,), state)
    return spikes, final, trace, saved


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


def define(row: dispatch.Backend) -> None:
    """Make the two operators of a fused `row`, once in a process."""
    every = row.checkpoint_every
    name = f"{row.name}_lif"
    _LIBRARY.define(name + _FORWARD + (", Tensor)" if every else ")"))
    _LIBRARY.define(name + "_backward" + _BACKWARD)

    def fake_forward(current: Tensor, *rest: Any) -> Any:
        return _allocate(every, current, *rest[-4:])

    def fake_backward(*arguments: Any) -> Any:
        current, _, beta, threshold = arguments[3:7]
        return _allocate_gradients(current, beta, threshold, *arguments[-4:])

    for device in row.device_types:
        implement(row, device)
    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for operator, mapped in zip((name, f"{name}_backward"), batching.rules(name, every)):
        torch.library.register_vmap(f"neurospike::{operator}", mapped, lib=_LIBRARY)


def implement(row: dispatch.Backend, device_type: str) -> None:
    """Make the operators of `row` work on tensors of `device_type`."""
    every = row.checkpoint_every

    def forward(current: Tensor, *rest: Any) -> Any:
        num_steps = rest[-4]
        outputs = _allocate(every, current, *rest[-4:])
        steps = _steps(current, num_steps)
        dispatch.load(row.module).forward(current, *rest[:-4], steps, num_steps >= 0, *outputs)
        return outputs

    def backward(*arguments: Any) -> Any:
        current, _, beta, threshold, saved = arguments[3:8]
        num_steps, *wants = arguments[-4:]
        outputs = _allocate_gradients(current, beta, threshold, num_steps, *wants)
        given = (*arguments[:7], *((saved,) if every else ()), *arguments[8:-4])
        steps = _steps(current, num_steps)
        dispatch.load(row.module).backward(*given, steps, num_steps >= 0, *outputs)
        return outputs

    _LIBRARY.impl(f"{row.name}_lif", forward, device_type.upper())
    _LIBRARY.impl(f"{row.name}_lif_backward", backward, device_type.upper())


for _row in dispatch.TABLE.values():
    if _row.fused:
        define(_row)


class Once(torch.autograd.Function):
    """Identity on gradients; its backward raises: a fused kernel has no second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return what was given."""
        return tensors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep nothing: there is no second derivative to compute."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Raise RuntimeError."""
        raise RuntimeError(
            "a fused LIF backend has first derivatives only, and a second one was asked for "
            "(create_graph=True); use backend='reference', which has both"
        )


class _Fused(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    # Not split into forward and setup_context: torch would inspect the signature at every call.
    @staticmethod
    def forward(ctx: Any, name: str, *arguments: Any) -> tuple[Tensor, ...]:
        output = getattr(torch.ops.neurospike, f"{name}_lif")(*arguments, True)
        _Fused.keep(ctx, (name, *arguments), output)
        return output

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what backward needs."""
        name, current, mem, beta, threshold, *options, want_spikes, want_trace = inputs
        spikes, _, trace, *saved = output
        ctx.save_for_backward(current, mem, beta, threshold, *saved)
        ctx.name, ctx.options = name, options
        ctx.set_materialize_grads(False)
        unwanted = [t for t, want in ((spikes, want_spikes), (trace, want_trace)) if not want]
        ctx.mark_non_differentiable(*unwanted, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        grad_spikes, grad_mem, grad_trace = grads[:3]
        current, mem, beta, threshold, *saved = ctx.saved_tensors
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
            saved[0] if saved else None,
            *ctx.options,
            need_mem,
            need_beta,
            need_threshold,
        )
        if torch.is_grad_enabled():  # create_graph=True
            found = Once.apply(*found, current, mem, beta, threshold, *grads)[:4]
        needs = (need_current, need_mem, need_beta, need_threshold)
        wanted = (grad if need else None for grad, need in zip(found, needs))
        return (None, *wanted, None, None, None, None, None)


class _Split(_Fused):
    """The same in two parts, which the transforms of `torch.func` ask for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, *arguments: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return getattr(torch.ops.neurospike, f"{name}_lif")(*arguments, True)

    setup_context = staticmethod(_Fused.keep)


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
        function = _Split if torch._C._are_functorch_transforms_active() else _Fused
        return function.apply(name, *arguments, want_spikes, want_trace)[:3]
    operator = getattr(torch.ops.neurospike, f"{name}_lif")
    return operator(*arguments, want_spikes, want_trace, False)[:3]
