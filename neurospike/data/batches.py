"""Batches of pictures or recordings, cut on the device from tensors that stay there.

A set of 28 x 28 digits is small (MNIST: 47 MB as uint8), so a `DataLoader` with its worker
processes, per-picture Python and copies costs more than the training step it feeds. Here the
whole set moves once and a batch is one gather and one conversion.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .recordings import Recordings
from .split import Split


class Batches:
    """Iterate a split as batches on a device, once an epoch.

    Of a `Split`, yields `images` float32 `[B, C, S, S]` in [0, 1] (0 and 255 map to exactly 0
    and 1) and `labels` int64 `[B]`; of `Recordings`, `sequences` float32 `[T, B, *F]`, their
    `lengths` int64 `[B]` and `labels`. All are fresh tensors. B is `batch_size`, and what is left
    over in the last batch unless `drop_last`. `len()` is the number of batches; an empty split has
    none.

    Args:
        split: a `Split` or `Recordings`.
        batch_size: samples of a batch, at least 1; of all processes together.
        shuffle: draw a new order every epoch.
        generator: that draws it, on the CPU so that the order is the same on every device. Default:
            torch's global one.
        device: of the batches.
        drop_last: leave out a last batch that is smaller.
        smallest: samples that each process gets of the last batch at least; fewer are joined to the
            batch before, if there is one. By default 2 with `shuffle`, because batch normalisation
            cannot train on one, else 1.
        rank: which of the processes that train together this is; it takes every `world`-th sample
            of each batch.
        world: how many there are.

    `len()` and the order are those of all processes, if their generators are in the same state.
    `share` is the size of this process's part of the current batch relative to an equal part, so
    that `share * mean loss`, averaged over the processes, is the mean loss of the batch.

    `state_dict()`, within an epoch or between two, given to `load_state_dict()` makes the next
    iteration continue with the batch that would have come next.

    What a split stores, images as uint8, is moved to `device` once and kept there, and `resident`
    is True. If a CUDA device has no room for it, it stays where it is and each batch is copied over
    through pinned memory; `resident` is then False.

    Raises:
        ValueError: a `batch_size` or `smallest` below 1, a generator that is not on the CPU or a
            `rank` that is not one of `world`.
    """

    def __init__(
        self,
        split: Split | Recordings,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        smallest: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not hasattr(split, "tensors"):
            raise TypeError(f"split must be a Split or Recordings, got {type(split).__name__}")
        smallest = (2 if shuffle else 1) if smallest is None else smallest
        for name, value in (("batch_size", batch_size), ("smallest", smallest)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"the order of the batches is drawn on the CPU, got a generator on "
                f"{generator.device}: use torch.Generator()"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank must be 0 to world - 1, got rank {rank} of world {world}")
        self.rank, self.world = rank, world
        self.share = 1.0
        self._position = 0  # batches yielded of the epoch under way
        self._skip = 0  # batches that the next iteration leaves out
        self._order_state: Tensor | None = None
        self.batch_size = batch_size
        self.smallest = smallest
        self.shuffle = shuffle
        self.generator = generator
        self.device = torch.device(device)
        self.drop_last = drop_last
        self._split = split
        try:
            self._tensors = tuple(tensor.to(self.device) for tensor in split.tensors)
            self.resident = True
        except torch.OutOfMemoryError:
            self._tensors = split.tensors
            self.resident = False

    def __len__(self) -> int:
        full, left_over = divmod(len(self._split), self.batch_size)
        if self.drop_last or not left_over:
            return full
        return full if full and left_over < self.smallest * self.world else full + 1

    def state_dict(self, done: int | None = None) -> dict[str, Any]:
        """Return the order of the epoch under way, and how many of its batches were yielded.

        done: continue after so many batches, and not after the last one yielded.
        """
        state = None if self.generator is None else self.generator.get_state()
        return {
            "generator": self._order_state if self._position else state,
            "position": self._position if done is None else done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue where `state_dict` was taken."""
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        self._order_state = None if self.generator is None else self.generator.get_state()
        self._skip = self._position = state["position"]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self._split)
        # Kept for `state_dict`: an epoch that is resumed needs the order that it began with.
        self._order_state = None if self.generator is None else self.generator.get_state()
        order = (
            torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)
        )
        there = order.to(self._tensors[0].device)
        first, self._skip = self._skip, 0
        starts = [index * self.batch_size for index in range(len(self))]
        ends = [*starts[1:], len(starts) * self.batch_size if self.drop_last else count]
        for index in range(first, len(starts)):
            self._position = index + 1
            own = slice(starts[index] + self.rank, ends[index], self.world)
            chosen = there[own]
            self.share = len(chosen) * self.world / (ends[index] - starts[index])
            gathered = self._split.gather(self._tensors, chosen, order[own])
            if not self.resident:
                # The gathered batch is pinned, not the set: a gather from pinned memory would
                # land in ordinary memory again. Torch keeps it until its copy has finished.
                gathered = tuple(
                    tensor.pin_memory().to(self.device, non_blocking=True) for tensor in gathered
                )
            yield self._split.shown(gathered)
        self._position = 0
