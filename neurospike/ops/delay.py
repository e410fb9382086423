"""Torch operators that delay each channel of a sequence: schema, fake, autograd and dispatch.

Each row of `dispatch.TABLE` with a column `delay` becomes `torch.ops.neurospike.<name>_delay` and
`..._delay_backward`. They sum up the taps; a channel's lag and the weights of its taps are computed
by the layer in torch, which differentiates them. A row without that column gathers the taps in
torch (`neurospike.backend.delayed`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike.backend import dispatch
from neurospike.backend.delayed import delayed
from neurospike.neurons import in_one_part

from . import batching, decomposed
from .running import maker
from .scan import Once
from .wants import mask_of
from .watching import implemented, operation

_LIBRARY = torch.library.Library("neurospike", "FRAGMENT")
_TENSORS = "Tensor current, Tensor? history, Tensor lag, Tensor weights, Tensor? lengths, "
_FORWARD = f"({_TENSORS}int max_delay) -> Tensor"
_BACKWARD = f"(Tensor grad, {_TENSORS}int max_delay, int wants) -> Tensor[]"
CURRENT, HISTORY, WEIGHTS = 1, 2, 4  # bits of `wants`, one for each gradient


def _asked(wants: int, *tensors: Tensor | None) -> list[Tensor | None]:
    """Return memory for the gradient of each tensor whose bit in `wants` is set, else None."""
    return [
        maker(one)(*one.shape, dtype=one.dtype) if one is not None and wants >> k & 1 else None
        for k, one in enumerate(tensors)
    ]


def _define(row: dispatch.Backend) -> None:
    """Make the two operators of a row, once in a process."""
    name = f"{row.name}_delay"
    _LIBRARY.define(name + _FORWARD)
    _LIBRARY.define(name + "_backward" + _BACKWARD)

    def fake_forward(current: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(current, memory_format=torch.contiguous_format)

    def fake_backward(*arguments: Any) -> list[Tensor]:
        _, current, history, _, weights, _, _, wants = arguments
        found = _asked(wants, current, history, weights)
        return [one for one in found if one is not None]

    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    decomposed.register(name, fake_forward, delayed)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for operator in (name, f"{name}_backward"):
        torch.library.register_vmap(
            f"neurospike::{operator}",
            lambda *_: batching.refuse("torch.vmap of a Delay", row.name),
            lib=_LIBRARY,
        )
    for device in row.device_types:
        implement(row, device)


def implement(row: dispatch.Backend, device_type: str) -> None:
    """Make the operators of `row` work on tensors of `device_type`."""

    def forward(
        current: Tensor,
        history: Tensor | None,
        lag: Tensor,
        weights: Tensor,
        lengths: Tensor | None,
        max_delay: int,
    ) -> Tensor:
        out = maker(current)(*current.shape, dtype=current.dtype)
        dispatch.delay_of(row).forward(
            current=current,
            history=history,
            lag=lag,
            weights=weights,
            lengths=lengths,
            max_delay=max_delay,
            out=out,
        )
        return out

    def backward(
        grad: Tensor,
        current: Tensor,
        history: Tensor | None,
        lag: Tensor,
        weights: Tensor,
        lengths: Tensor | None,
        max_delay: int,
        wants: int,
    ) -> list[Tensor]:
        found = _asked(wants, current, history, weights)
        out, out_history, out_weights = found
        dispatch.delay_of(row).backward(
            grad=grad,
            current=current,
            history=history,
            lag=lag,
            weights=weights,
            lengths=lengths,
            max_delay=max_delay,
            out=out,
            out_history=out_history,
            out_weights=out_weights,
        )
        return [one for one in found if one is not None]

    for name, function in (("delay", forward), ("delay_backward", backward)):
        _LIBRARY.impl(f"{row.name}_{name}", function, device_type.upper())
        implemented[f"{row.name}_{name}"] = function


for _row in dispatch.TABLE.values():
    if _row.delay:
        _define(_row)


class _Delay(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        current: Tensor,
        history: Tensor | None,
        lag: Tensor,
        weights: Tensor,
        lengths: Tensor | None,
        max_delay: int,
    ) -> Tensor:
        forward = operation(f"{name}_delay", (current, history, lag, weights, lengths))
        found: Tensor = forward(current, history, lag, weights, lengths, max_delay)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        name, *tensors, max_delay = inputs
        ctx.save_for_backward(*tensors)
        ctx.formats = [None if one is None else one.dtype for one in tensors]
        ctx.options = (name, max_delay)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Tensor | None, ...]:
        if batching.is_batched((grad,)):
            return batching.one_by_one(_Delay.backward, ctx, (grad,))
        dense = batching.as_dense((grad,))
        if dense is not None:
            return _Delay.backward(ctx, *dense)
        name, max_delay = ctx.options
        current, *others = ctx.saved_tensors
        current = current.to(ctx.formats[0])  # not made contiguous: may be expanded over time
        history, lag, weights, lengths = batching.as_saved(others, ctx.formats[1:])
        kept = (current, history, lag, weights, lengths)
        _, of_current, of_history, _, of_weights, _, _ = ctx.needs_input_grad
        needs = (of_current, of_history, of_weights)
        backward = operation(f"{name}_delay_backward", (grad, *kept))
        with torch.no_grad():
            found = backward(
                grad, current, history, lag, weights, lengths, max_delay, mask_of(needs)
            )
        if torch.is_grad_enabled():  # create_graph=True
            given = [one for one in (current, history, weights, grad) if one is not None]
            found = Once.apply(*found, *given)[: len(found)]
        whole = iter(found)
        x, before, each = (next(whole) if need else None for need in needs)
        return None, x, before, None, each, None, None


def delay(
    row: dispatch.Backend,
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
) -> Tensor:
    """Return each channel of `current` delayed; see `neurospike.backend.protocols.Delay`."""
    if not row.delay:
        return delayed(current, history, lag, weights, lengths, max_delay)
    tensors = (current, history, lag, weights, lengths)
    # In forward-mode AD the Function raises; the bare operator would return tangents of zero.
    learns = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in tensors
    )
    if learns or forward_ad._current_level >= 0:
        found: Tensor = in_one_part.apply(_Delay, row.name, *tensors, max_delay)
        return found
    return _Delay.forward(row.name, *tensors, max_delay)
