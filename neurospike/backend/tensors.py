"""What the fused backends do with the tensors of a call."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def are_same(
    given: Iterable[Tensor | None], used: Iterable[Tensor | None], *, whole: bool = False
) -> bool:
    """Whether what is used lies where what was given does: nothing had to be copied.

    whole: one row that stands for all steps is not the same as these.
    """
    return [_place(one, whole) for one in given] == [_place(one, whole) for one in used]


def _place(tensor: Tensor | None, whole: bool) -> tuple[int, int] | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.numel() if whole else 0)


def sum_over_batch(each: Sequence[Tensor | None], out: Sequence[Tensor | None]) -> None:
    """Sum each neuron's gradients of parameters, `[B * N]`, over the neurons that share one."""
    for target, found in zip(out, each):
        if target is not None and found is not None and target.numel():
            torch.sum(found.view(-1, target.numel()), 0, out=target.view(-1))
