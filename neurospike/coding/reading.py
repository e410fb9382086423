"""Read a picture part by part: sequential MNIST and its like.

Every other encoder shows the whole picture at every step. Here a step brings one row or one pixel,
so the network has to remember what it has read, and the number of steps follows from the picture.

Source: Q. V. Le, N. Jaitly, G. E. Hinton, "A simple way to initialize recurrent networks of
rectified linear units", arXiv:1504.00941, 2015 (pixel by pixel, also in a fixed random order).
"""

import numpy as np
import torch
from torch import Tensor

from .intensities import check, check_finite, is_whole


def rows(data: Tensor) -> Tensor:
    """Read a picture from top to bottom, one row per step: as many steps as it has rows.

    Shapes: `data [B, H, W]`, any finite intensities, to currents `[H, B, W]`; of several channels,
    `[B, C, H, W]`, a step has the row of each, `[H, B, C * W]`. A view where torch can make one, so
    write into a `.clone()` only. Gradients flow through.

    Errors: `TypeError` as for `constant`; `ValueError` for data of another number of dimensions or
    without a row, NaN or infinity.
    """
    check(data, 1)
    if data.ndim not in (3, 4) or data.shape[-2] < 1:
        raise ValueError(
            f"rows got data of shape {tuple(data.shape)}; pictures are [B, H, W] or [B, C, H, W] "
            "with at least one row: for flat ones use data.unflatten(1, (28, 28))"
        )
    check_finite("rows", data)
    return data.movedim(-2, 0).flatten(2)


def pixels(data: Tensor, *, permute: int | None = None) -> Tensor:
    """Read a picture one pixel per step: as many steps as it has pixels.

    Shapes: `data [B, *F]`, any finite intensities, to currents `[N, B, 1]`, N being the product of
    `F`. The pixels come row by row, or with the seed `permute` in a random order that is the same
    for every picture, on every device and in every process: `pixel_order`. Gradients flow through.

    Errors: `TypeError` as for `constant`; `ValueError` for data without pixels, NaN or infinity;
    both as `pixel_order`.
    """
    check(data, 1)
    if data.ndim < 2 or 0 in data.shape[1:]:
        raise ValueError(
            f"pixels got data of shape {tuple(data.shape)}, which has no pixels: give [B, *F] with "
            "at least one per picture"
        )
    check_finite("pixels", data)
    flat = data.flatten(1)
    if permute is not None:
        flat = flat[:, pixel_order(flat.shape[1], permute).to(flat.device)]
    return flat.T.unsqueeze(2)


def pixel_order(count: int, permute: int | None = None) -> Tensor:
    """Return which pixel `pixels` reads at each step: a tensor `[count]` of int64 on the CPU.

    What was read comes back into its place by the inverse, `order.argsort()`. A permuted order is
    that of `numpy.random.RandomState(permute).permutation(count)`.

    Errors: `TypeError` for a count or a seed that is no whole number, `ValueError` for a seed
    outside 0 to 2**32 - 1.
    """
    if not is_whole(count):
        raise TypeError(f"count must be a whole number of pixels, got {count!r}")
    if permute is None:
        return torch.from_numpy(np.arange(count))
    if not is_whole(permute):
        raise TypeError(f"permute must be a seed, a whole number, or None, got {permute!r}")
    if not 0 <= permute < 2**32:
        raise ValueError(f"permute must be a seed from 0 to 2**32 - 1, got {permute}")
    # Not torch's generator, whose numbers are those of a version, and which nothing can trace.
    return torch.from_numpy(np.random.RandomState(int(permute)).permutation(count))
