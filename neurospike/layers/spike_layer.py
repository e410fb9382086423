"""`spike_layer`: a linear layer on spikes and its neurons, fused.

The result is that of the two modules in a row. Where a backend runs both in one loop
(`Backend.layer` in the table) and few inputs are active, the currents between them are never
written to memory. A backend must provide `words`, `find`, `panels`, `forward` and `backward`; see
kernels/cpu/linear_scan.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from neurospike import ops
from neurospike.backend import dispatch
from neurospike.neurons.rule import Rule
from neurospike.ops import batching
from neurospike.ops.arguments import fitted, flat_parameter
from neurospike.ops.watching import is_plain

from . import break_even
from .lif import LIF
from .spike_linear import HEAD, SpikeLinear, find

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def spike_layer(
    linear: nn.Module,
    neurons: nn.Module,
    spikes: Tensor,
    mem: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Return `neurons(linear(spikes), mem)`, in one loop where that is faster.

        spikes, mem = ns.spike_layer(linear, lif, ns.encoding.latency(images, 25))

    One loop runs a `SpikeLinear` followed by an `LIF` on the backend `numba`, for inputs of which
    few are active and that need no gradient. Everything else runs as two modules, and so do calls
    of fewer than 2**26 products (`T * B * K * N`) or with lengths, subclasses, modules with hooks,
    autocast, torch.compile and `torch.func`. `ns.Sequential` and the networks in
    `neurospike.models` call this function. Shapes, number formats and errors are those of the two
    modules. Gradients flow to the parameters of both and to `mem`; second derivatives are refused.

    Args:
        linear: a layer from `[T, B, K]` to `[T, B, N]`.
        neurons: a layer of neurons over `[T, B, N]`.
        spikes: `[T, B, K]`.
        mem: membrane `[B, N]` to continue from. Default: at rest.
        lengths: how many of the T steps belong to each sample, `[B]`; see `neurospike.lif`.

    Returns:
        `(spikes [T, B, N], mem [B, N])`.

    Raises:
        TypeError: `linear` or `neurons` cannot be called.
    """
    for name, layer in (("linear", linear), ("neurons", neurons)):
        if not callable(layer):
            raise TypeError(f"{name} must be a layer, got {layer!r}")
    if lengths is not None:
        return neurons(linear(spikes), mem, lengths=lengths)
    row = _row(linear, neurons, spikes, mem)
    if row is not None:
        assert isinstance(linear, SpikeLinear) and isinstance(neurons, LIF)
        weight, bias = linear.weight, linear.bias
        steps, batch, width = spikes.shape
        trained = torch.is_grad_enabled() and weight.requires_grad
        flat = spikes.detach().reshape(-1, width)
        if linear.is_resting() or not break_even.promising(row, flat, weight, trained):
            return neurons(linear(spikes), mem)
        known = find(row, flat)
        if break_even.layer_pays(row, known[1], weight, trained):
            shape = torch.Size((batch, weight.shape[0]))
            pair = zip(neurons.rule.parameters, (neurons._decay(), neurons.threshold))
            values = (fitted(*one, weight, shape, weight.dtype) for one in pair)
            given = (weight, bias, mem, *(flat_parameter(value, shape) for value in values))
            return _Layer.apply(row, *known, *given, neurons.rule, steps)
        return neurons(linear.product(spikes, known), mem)
    return neurons(linear(spikes), mem)


def _row(
    linear: nn.Module, neurons: nn.Module, spikes: Tensor, mem: Tensor | None
) -> dispatch.Backend | None:
    """Return the backend that can run both in one loop; None if there is none."""
    if type(linear) is not SpikeLinear or type(neurons) is not LIF or not is_plain(spikes):
        return None
    weight, bias = linear.weight, linear.bias
    outputs, width = weight.shape
    tensors = [t for t in (weight, bias, mem) if t is not None]
    fits = (
        spikes.dim() == 3
        and spikes.shape[2] == width
        and spikes.numel() * outputs >= max(1, break_even.policy().least_products)
        and spikes.dtype in (torch.bool, torch.uint8, weight.dtype)
        and spikes.layout == torch.strided
        and weight.dtype in (torch.float32, torch.float64)
        and all(t.dtype == weight.dtype and t.device.type == "cpu" for t in tensors)
        and (mem is None or mem.shape == (spikes.shape[1], outputs))
    )
    if not fits or neurons.batch_first or _is_watched(linear) or _is_watched(neurons):
        return None
    if torch.is_grad_enabled() and (spikes.requires_grad or neurons.segment is not None):
        return None
    row = dispatch.choose(neurons.backend, "cpu")
    if not row.layer or dispatch.choose(linear.backend, "cpu") is not row:
        return None
    panels = dispatch.layer_of(row).panels(outputs, weight.dtype)
    return row if panels >= torch.get_num_threads() else None


def _is_watched(module: nn.Module) -> bool:
    """True for a module with hooks, which one loop would not call."""
    return any(getattr(module, hooks) for hooks in _HOOKS) or nn_module._has_any_global_hook()


class _Layer(torch.autograd.Function):
    """The fused loop as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        row: dispatch.Backend,
        bits: Tensor,
        found: Any,
        weight: Tensor,
        bias: Tensor | None,
        mem: Tensor | None,
        beta: Tensor,
        threshold: Tensor,
        rule: Rule,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        bias, mem = (None if t is None else t.contiguous() for t in (bias, mem))
        given = (bias, mem, beta.contiguous(), threshold.contiguous())
        module = dispatch.layer_of(row)
        spikes, final, kept = module.forward(
            bits=bits[HEAD:].view(len(found.counts[0]) - 1, -1),
            found=found,
            weight=weight,
            bias=bias,
            mem=mem,
            beta=given[2],
            threshold=given[3],
            rule=rule,
            steps=steps,
        )
        # The weight is saved so that torch detects a change to it before the backward pass.
        ctx.save_for_backward(weight, *given, *kept)
        ctx.formats = [None if one is None else one.dtype for one in (*given, *kept)]
        ctx.module, ctx.rule = module, rule
        ctx.shape = (*spikes.shape, weight.shape[1])
        ctx.set_materialize_grads(False)
        return spikes, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if batching.is_batched(grads):
            return batching.one_by_one(_Layer.backward, ctx, grads)
        grads = tuple(batching.as_dense(grads) or grads)
        weight, *saved = ctx.saved_tensors
        # Saved-tensor hooks may have changed strides or number formats.
        pair = zip(saved, ctx.formats)
        given = [None if one is None else one.to(dtype).contiguous() for one, dtype in pair]
        needs = ctx.needs_input_grad[3:8]
        gradients: tuple[Tensor | None, ...] = (None,) * 5
        if any(grad is not None for grad in grads):
            bias, mem, beta, threshold, *kept = given
            gradients = ctx.module.backward(
                grad_spikes=grads[0],
                grad_final=grads[1],
                kept=kept,
                bias=bias,
                mem=mem,
                beta=beta,
                threshold=threshold,
                rule=ctx.rule,
                shape=ctx.shape,
                want_mem=needs[2],
                want_parameters=needs[3] or needs[4],
            )
            if torch.is_grad_enabled():  # create_graph=True
                gradients = ops.Once.apply(*gradients, weight, *given[:4], *grads)[:5]
        wanted = (grad if need else None for grad, need in zip(gradients, needs))
        return None, None, None, *wanted, None, None
