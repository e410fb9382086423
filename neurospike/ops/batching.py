"""`torch.vmap` of the fused operators: one call with the mapped axis among the features.

Neurons are independent of one another, so the mapped axis of size V becomes the first axis of the
features, `[T, B, *F]` to `[T, B, V, *F]`, and samples keep their lengths. Parameters that differ
along it become one value for each neuron. Without these rules torch would call the operator V
times. The module also handles gradients that are batched by torch's older vmap, or sparse.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.errors import BackendError
from neurospike.neurons.program import Program

from .wants import FIRST_PARAMETER, SPIKES, STATES, TRACES


def refuse(what: str, backend: str) -> None:
    """Raise BackendError for a layer that a fused backend cannot transform; the reference can."""
    raise BackendError(
        f"{what} was asked of backend {backend!r}, which does not have it; make the "
        "layer with backend='reference', or call it under ns.use_backend('reference')"
    )


def is_batched(grads: Sequence[Tensor | None]) -> bool:
    """Return whether gradients are batched, as `is_grads_batched=True` makes them."""
    if torch.compiler.is_compiling():
        return False
    # For this torch uses an older vmap, whose tensors are not those of `torch.vmap`.
    is_several = torch._C._functorch.is_legacy_batchedtensor
    return any(one is not None and is_several(one) for one in grads)


def one_by_one(
    backward: Callable[..., Sequence[Tensor | None]], ctx: Any, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Call `backward` once for each of the gradients in a batch; return the results as a batch."""
    level, is_several = 1, torch._C._functorch.is_legacy_batchedtensor
    whole = [
        torch._remove_batch_dim(one, level, 1, 0) if one is not None and is_several(one) else None
        for one in grads
    ]
    if is_batched(whole):
        raise RuntimeError(
            "gradients within gradients (is_grads_batched=True, or jacobian with vectorize=True, "
            "inside of another) were asked of a fused backend; use backend='reference'"
        )
    size = next(len(one) for one in whole if one is not None)
    found = [
        backward(ctx, *(one if many is None else many[k] for one, many in zip(grads, whole)))
        for k in range(size)
    ]
    return tuple(
        None if each[0] is None else torch._add_batch_dim(torch.stack(each), 0, level)
        for each in zip(*found, strict=True)
    )


def as_saved(tensors: Sequence[Tensor | None], formats: Sequence[torch.dtype | None]) -> list[Any]:
    """Return saved tensors contiguous and in the number formats that they had.

    Saved-tensor hooks may have changed either.
    """
    return [
        one if one is None or dtype is None else one.to(dtype).contiguous()
        for one, dtype in zip(tensors, formats)
    ]


def as_dense(grads: Sequence[Tensor | None]) -> list[Tensor | None] | None:
    """Return gradients made dense if some are sparse; None if none is."""
    if torch.compiler.is_compiling():  # no gradient is sparse there, and layouts cannot be read
        return None
    if all(one is None or one.layout is torch.strided for one in grads):
        return None
    return [None if one is None else one.to_dense() for one in grads]


def rules(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the vmap rules of operator `name` and of its backward, for `register_vmap`."""
    operators = torch.ops.neurospike

    def forward(info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        current, states, parameters, *options = arguments
        neuron, _, num_steps, wants = _without_lengths(options, dims[3:])
        size, lead = info.batch_size, 1 if num_steps >= 0 else 2
        current = _among_features(current, dims[0], size, lead)
        count = math.prod(current.shape[lead + 1 :])
        found = getattr(operators, name)(
            current,
            _each_among_features(states, dims[1], size, 1),
            [_for_each(*one, size, count, False) for one in _paired(parameters, dims[2])],
            *options,
        )
        many = Program.parse(neuron).states
        places = [2] * bool(wants & SPIKES) + [1] * many + [2] * (many if wants & TRACES else 0)
        batch, first = current.shape[lead - 1], len(places)
        saved = [
            one.view(-1, batch, size, count).movedim(2, 0).reshape(size, -1)
            for one in found[first:]
        ]
        return [*found[:first], *saved], [*places, *(0 for _ in saved)]

    def backward(info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        spikes, finals, traces, current, states, parameters, saved, *options = arguments
        neuron, _, num_steps, wants = _without_lengths(options, dims[7:])
        size, lead = info.batch_size, 1 if num_steps >= 0 else 2
        current = _among_features(current, dims[3], size, lead)
        count = math.prod(current.shape[lead + 1 :])
        asked = [bool(wants & FIRST_PARAMETER << k) for k in range(len(parameters))]
        batch = current.shape[lead - 1]
        found = getattr(operators, f"{name}_backward")(
            _among_features(spikes, dims[0], size, 2),
            _each_among_features(finals, dims[1], size, 1),
            _each_among_features(traces, dims[2], size, 2),
            current,
            _each_among_features(states, dims[4], size, 1),
            [
                _for_each(*one, size, count, want)
                for one, want in zip(_paired(parameters, dims[5]), asked)
            ],
            [
                one.reshape(size, -1, batch, count).movedim(0, 2).flatten()
                for one in _each_among_features(saved, dims[6], size, 0)
            ],
            *options,
        )
        many = Program.parse(neuron).states if wants & STATES else 0
        whole = iter(found[1 + many :])
        of_parameters = [
            _as_given(next(whole), *one, size)
            for one, want in zip(_paired(parameters, dims[5]), asked)
            if want
        ]
        places = [lead, *(1 for _ in range(many)), *(0 for _ in of_parameters)]
        return [*found[: 1 + many], *of_parameters], places

    return forward, backward


def _without_lengths(options: list[Any], dims: tuple[Any, ...]) -> list[Any]:
    """Return the options before the lengths; raise ValueError where these are mapped over."""
    if len(options) > 4 and dims[4] is not None:
        raise ValueError(
            "torch.vmap over lengths: every part must have the same lengths [B]; hand them on as "
            "they are (in_dims=None), or make the mapped axis part of the batch"
        )
    return options[:4]


def _paired(tensors: Any, dims: Any) -> list[tuple[Any, int | None]]:
    """Return each tensor of a list with its mapped axis, None where it has none."""
    return list(zip(tensors, dims or [None] * len(tensors), strict=True))


def _each_among_features(tensors: Any, dims: Any, size: int, at: int) -> list[Any]:
    """Return `_among_features` of each tensor of a list."""
    return [_among_features(one, dim, size, at) for one, dim in _paired(tensors, dims)]


def _among_features(tensor: Any, dim: int | None, size: int, at: int) -> Any:
    """Return a tensor with the mapped axis moved to `at`; a tensor without one is expanded."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(at)
        return tensor.expand(*tensor.shape[:at], size, *tensor.shape[at + 1 :])
    return tensor.movedim(dim, at)


def _for_each(value: Tensor, dim: int | None, size: int, count: int, apart: bool) -> Tensor:
    """Return a parameter `[1]` or `[count]` as `[size * count]`.

    `[1]` stays as it is if it is not mapped over, unless `apart`: each part then needs its own
    gradient.
    """
    if dim is None and value.numel() == 1 and not apart:
        return value
    value = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
    return value.reshape(len(value), -1).expand(size, count).reshape(-1)


def _as_given(grad: Tensor, given: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a parameter's gradient with one entry for each part, `[size, P]`."""
    grad = grad.view(size, -1)
    shape = given.shape if dim is None else given.movedim(dim, 0).shape[1:]
    is_scalar = math.prod(shape) == 1
    return (grad.sum(1) if is_scalar else grad).reshape(size, *shape)
