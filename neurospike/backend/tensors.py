"""Functions of the fused backends on the tensors of a call."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def are_same(
    given: Iterable[Tensor | None], used: Iterable[Tensor | None], *, whole: bool = False
) -> bool:
    """Whether the tensors used lie where the given ones do, so that nothing had to be copied.

    whole: compare sizes too, so that one row that stands for all steps is not taken for the
    expanded sequence that it comes from.
    """
    return [_place(one, whole) for one in given] == [_place(one, whole) for one in used]


def _place(tensor: Tensor | None, whole: bool) -> tuple[int, int] | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.numel() if whole else 0)


def sum_over_batch(each: Sequence[Tensor | None], out: Sequence[Tensor | None]) -> None:
    """Sum each neuron's gradients of parameters, `[B * N]`, over the neurons that share one."""
    for target, found in zip(out, each):
        if target is not None and found is not None and target.numel():
            torch.sum(found.view(-1, target.numel()), 0, out=target.view(-1))
