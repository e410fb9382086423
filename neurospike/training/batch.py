"""What a batch is made of: inputs and targets, or sequences, their lengths and targets."""

from typing import Any

import torch
from torch import Tensor

from neurospike.ops.arguments import check_lengths

Parts = tuple[Tensor, Tensor, Tensor | None]  # inputs or sequences, targets, lengths of sequences
WANTED = "(inputs, targets) or (sequences, lengths, targets)"


def parts_of(batch: Any, device: torch.device | str, batch_first: bool = False) -> Parts:
    """Return inputs or sequences, targets, and lengths or None, all on the device.

    batch: `(inputs [B, *F], targets [B])`, or `(sequences [T, B, *F], lengths [B], targets [B])`;
    with batch_first the sequences are `[B, T, *F]`. Raises ValueError for a batch of another number
    of parts, or lengths that do not fit the sequences, and TypeError for parts that are no tensors
    and lengths that are no integers.
    """
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"a batch must be {WANTED}, got {_described(batch)}")
    if len(batch) not in (2, 3):
        raise ValueError(f"a batch must be {WANTED}, got {len(batch)} parts")
    for name, part in (("inputs", batch[0]), ("targets", batch[-1])):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"the {name} of a batch must be a tensor, got {_described(part)}: let the data set "
                "or its collate_fn make one"
            )
    inputs, targets = batch[0].to(device), batch[-1].to(device)
    if len(batch) == 2:
        return inputs, targets, None
    # Here, because on a GPU nobody looks at their values any more.
    sequences = inputs.transpose(0, 1) if batch_first else inputs
    return inputs, targets, check_lengths(batch[1], sequences, -1)


def _described(part: Any) -> str:
    if isinstance(part, dict):
        return f"a dict of {', '.join(map(repr, list(part)[:3]))}"
    return type(part).__name__
