"""What a batch is made of: pictures and labels, or sequences, their lengths and labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurospike.ops.arguments import check_lengths

Parts = tuple[Tensor, Tensor, Tensor | None]  # pictures or sequences, labels, lengths of sequences


def parts_of(batch: Sequence[Tensor], device: torch.device | str) -> Parts:
    """Return pictures or sequences, labels, and lengths or None, all on the device.

    batch: `(images [B, *F], labels [B])`, or `(sequences [T, B, *F], lengths [B], labels [B])`.
    Raises ValueError for a batch of another number of parts, or lengths that do not fit the
    sequences, and TypeError for lengths that are no integers.
    """
    if len(batch) not in (2, 3):
        raise ValueError(
            f"a batch must be (images, labels) or (sequences, lengths, labels), got {len(batch)} "
            "parts"
        )
    images, labels = batch[0].to(device), batch[-1].to(device)
    if len(batch) == 2:
        return images, labels, None
    # Here, because on a GPU nobody looks at their values any more.
    return images, labels, check_lengths(batch[1], images, -1)
