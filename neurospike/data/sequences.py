"""Sequences of different lengths as one padded tensor, with how long each is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.ops.arguments import refuse_ragged


def collate(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad sequences to the longest of them: what a `DataLoader` of sequences has as `collate_fn`.

        loader = DataLoader(data, 64, shuffle=True, collate_fn=ns.data.collate)
        for sequences, lengths, labels in loader:
            spikes, _ = lif(linear(sequences), lengths=lengths)

    Args:
        samples: pairs `(sequence [T_i, *F], label)`. Sequences are tensors or NumPy arrays of one
            number format, such as float32, uint8 or bool, and one shape `*F` per step; labels
            are numbers, or tensors of one shape.

    Returns:
        `(sequences [T, B, *F], lengths [B], labels [B])`. T is the length of the longest, what lies
        beyond the end of a shorter one is 0, and `lengths` is int64.

    Raises:
        TypeError: samples that are no pairs, or sequences of several number formats.
        ValueError: no samples, sequences without a first axis of time or of several shapes, or
            labels of several shapes.
    """
    if not isinstance(samples, Sequence):
        raise TypeError(
            f"collate takes a list of pairs (sequence, label), got {type(samples).__name__}"
        )
    if not len(samples):
        raise ValueError("collate got no samples; a batch needs at least one")
    for number, sample in enumerate(samples):
        if not isinstance(sample, Sequence) or len(sample) != 2:
            raise TypeError(
                f"collate takes pairs (sequence, label), got {type(sample).__name__} as sample "
                f"{number}: let the data set return both"
            )
    parts = [_as_sequence(sequence, number) for number, (sequence, _) in enumerate(samples)]
    first = parts[0]
    for number, part in enumerate(parts):
        if part.dtype != first.dtype:
            raise TypeError(
                f"the sequences of a batch must have one number format, got {first.dtype} and, as "
                f"sample {number}, {part.dtype}: convert them in the data set"
            )
        if part.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"the sequences of a batch must have one shape per step, got {list(first.shape)} "
                f"and, as sample {number}, {list(part.shape)}; only the first axis, time, may "
                "differ"
            )
    lengths = torch.tensor([len(part) for part in parts])
    padded = torch.nn.utils.rnn.pad_sequence(parts)
    return padded, lengths, _stacked([label for _, label in samples])


def _as_sequence(sequence: Any, number: int) -> Tensor:
    refuse_ragged(f"the sequence of sample {number}", sequence)
    found = torch.as_tensor(sequence)
    if found.ndim == 0:
        raise ValueError(
            f"a sequence must be [T, *F], got a single number as sample {number}: use x[None]"
        )
    return found


def _stacked(labels: list[Any]) -> Tensor:
    tensors = [torch.as_tensor(label) for label in labels]
    for number, label in enumerate(tensors):
        if label.shape != tensors[0].shape:
            raise ValueError(
                f"the labels of a batch must have one shape, got {list(tensors[0].shape)} and, as "
                f"sample {number}, {list(label.shape)}"
            )
    return torch.stack(tensors)
