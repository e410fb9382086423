"""The oracle of `Delay`: gathers taps from the sequence in torch, differentiated by autograd."""

import torch
from torch import Tensor


def delayed(
    current: Tensor,
    history: Tensor | None,
    lag: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
    max_delay: int,
) -> Tensor:
    """Return `y_t = sum_j weights[j] * x_{t - lag - j}` `[T, B, *F]`, and 0 after a sample's end.

    Arguments are those of `neurospike.backend.protocols.Delay`. It needs the memory of several
    copies of the sequence.
    """
    steps, batch = current.shape[:2]
    x = current.reshape(steps, batch, lag.numel()).to(weights.dtype)
    if lengths is not None:
        inside = (torch.arange(steps, device=x.device).unsqueeze(1) < lengths).unsqueeze(2)
        x = torch.where(inside, x, 0.0)
    before = x.new_zeros(max_delay, *x.shape[1:])
    if history is not None:
        before = history.reshape(before.shape).to(weights.dtype)
    whole = torch.cat((before, x))
    newest = torch.arange(steps, device=x.device).unsqueeze(1) + max_delay - lag.long()
    taps = [
        weight * whole.gather(0, (newest - j).unsqueeze(1).expand(x.shape))
        for j, weight in enumerate(weights.unbind(0))
    ]
    y = taps[0]
    for tap in taps[1:]:
        y = y + tap
    if lengths is not None:
        y = torch.where(inside, y, 0.0)
    return y.reshape(current.shape).to(current.dtype)
