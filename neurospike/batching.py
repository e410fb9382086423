"""What `torch.vmap` makes of the fused operators: one call, the mapped axis among the features.

Neurons know nothing of one another, so the axis that is mapped over becomes the first axis of the
features: `[T, B, *F]` to `[T, B, V, *F]`. Parameters that differ along it become one value for each
neuron. Without these rules torch would call the operator once for each of the V parts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rules(name: str, every: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the rules for `name` and its backward; `every` is the row's `checkpoint_every`."""
    operators = torch.ops.neurospike

    def forward(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
        current, mem, beta, threshold, *options = arguments
        size, num_steps = info.batch_size, options[2]
        lead = 1 if num_steps >= 0 else 2
        current = _among_features(current, dims[0], size, lead)
        count = math.prod(current.shape[lead + 1 :])
        spikes, final, trace, *saved = getattr(operators, name)(
            current,
            _among_features(mem, dims[1], size, 1),
            _for_each(beta, dims[2], size, count, False),
            _for_each(threshold, dims[3], size, count, False),
            *options,
        )
        batch = current.shape[lead - 1]
        saved = [one.view(-1, batch, size, count).movedim(2, 0).reshape(size, -1) for one in saved]
        places = (2 if options[3] else None, 1, 2 if options[4] else None, *(0 for _ in saved))
        return (spikes, final, trace, *saved), places

    def backward(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
        grads, (current, mem, beta, threshold, saved), options = (
            arguments[:3],
            arguments[3:8],
            arguments[8:],
        )
        size, (num_steps, want_mem, want_beta, want_threshold) = info.batch_size, options[2:]
        lead = 1 if num_steps >= 0 else 2
        current = _among_features(current, dims[3], size, lead)
        count = math.prod(current.shape[lead + 1 :])
        if every:
            saved = _among_features(saved, dims[7], size, 0)
            saved = saved.reshape(size, -1, current.shape[lead - 1], count).movedim(0, 2).flatten()
        found = getattr(operators, f"{name}_backward")(
            *(_among_features(g, d, size, at) for g, d, at in zip(grads, dims, (2, 1, 2))),
            current,
            _among_features(mem, dims[4], size, 1),
            _for_each(beta, dims[5], size, count, want_beta),
            _for_each(threshold, dims[6], size, count, want_threshold),
            saved,
            *options,
        )
        of_parameters = [
            _as_given(grad, given, dim, size) if want else grad
            for grad, given, dim, want in (
                (found[2], beta, dims[5], want_beta),
                (found[3], threshold, dims[6], want_threshold),
            )
        ]
        wanted = ((lead, True), (1, want_mem), (0, want_beta), (0, want_threshold))
        return (*found[:2], *of_parameters), tuple(at if want else None for at, want in wanted)

    return forward, backward


def _among_features(tensor: Any, dim: int | None, size: int, at: int) -> Any:
    """Return a tensor with the mapped axis at place `at`; a tensor without one is repeated."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(at)
        return tensor.expand(*tensor.shape[:at], size, *tensor.shape[at + 1 :])
    return tensor.movedim(dim, at)


def _for_each(value: Tensor, dim: int | None, size: int, count: int, apart: bool) -> Tensor:
    """Return `[1]` or `[size * count]` of a parameter `[1]` or `[count]`; never `[1]` if apart."""
    if dim is None and value.numel() == 1 and not apart:
        return value
    value = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
    return value.expand(size, count).reshape(-1)


def _as_given(grad: Tensor, given: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the gradient `[size, P]` of a parameter `[P]` for each part."""
    grad = grad.view(size, -1)
    is_scalar = given.numel() == (1 if dim is None else size)
    return grad.sum(1, keepdim=True) if is_scalar else grad
