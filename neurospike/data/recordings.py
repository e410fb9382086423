"""Recordings of events with labels, stored sparse, and turned into frames batch by batch.

A set of recordings as frames takes tens of gigabytes (DVS Gesture in steps of 20 ms: 10 GB as
bytes), and most of it is zeros. Stored is the cell that each event fell in, four bytes per event;
the frames of a batch are counted when it is drawn, on the device that holds the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .split import held_out_of


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of N samples, as the cells of their frames that their events fell in.

    Shapes: `cells` int32 `[E]`, of all recordings one after the other: step times the size of a
    frame, plus the place in the frame (`Binning.cells`); `counts` int64 `[N]`, how many events each
    has; `lengths` int64 `[N]`, how many steps; `labels` int64 `[N]`; `shape`: `*F` of a frame.
    Errors: `ValueError` for tensors of another shape or dtype, or that do not fit each other.
    """

    cells: Tensor
    counts: Tensor
    lengths: Tensor
    labels: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.cells.dtype != torch.int32 or self.cells.ndim != 1:
            raise ValueError(
                f"cells must be int32 [E], got {self.cells.dtype} {list(self.cells.shape)}"
            )
        for name in ("counts", "lengths", "labels"):
            found = getattr(self, name)
            if found.dtype != torch.int64 or found.shape != self.labels.shape or found.ndim != 1:
                raise ValueError(
                    f"{name} must be int64 [N], one number per recording, got {found.dtype} "
                    f"{list(found.shape)}"
                )
        if int(self.counts.sum()) != len(self.cells):
            raise ValueError(
                f"counts add up to {int(self.counts.sum())}, but there are {len(self.cells)} cells"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that are kept on a device, for `gather`."""
        return (
            self.cells,
            self.counts,
            self.counts.cumsum(0) - self.counts,
            self.lengths,
            self.labels,
        )

    def gather(
        self, tensors: Sequence[Tensor], chosen: Tensor, numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what `shown` makes a batch of: where its events are in `[T, B, F]`, and the rest.

        tensors: `tensors` on their device; chosen: int64 `[B]` on that device; numbers: the same on
        the CPU, so that the number of events is known without waiting for a GPU.
        """
        cells, counts, starts, lengths, labels = tensors
        total = int(self.counts[numbers].sum())
        counts, size, batch = counts[chosen], math.prod(self.shape), len(chosen)
        found = _events_of(cells, counts, starts[chosen], total)
        before = torch.arange(batch, device=cells.device) * size  # of each sample in a step
        # Each step is as long as the batch, not as a frame.
        places = found.div(size, rounding_mode="floor").to(torch.int64).mul_((batch - 1) * size)
        places.add_(found).add_(before.repeat_interleave(counts, output_size=total))
        return places, lengths[chosen], labels[chosen]

    def shown(self, gathered: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch: frames float32 `[T, B, *F]`, lengths int64 `[B]` and labels `[B]`.

        T is the longest length in the batch; on a GPU that in the whole set, which is known without
        waiting for the device and gives the one shape that a CUDA graph needs.
        """
        places, lengths, labels = gathered
        batch = len(labels)
        steps = int((self.lengths if places.is_cuda or not batch else lengths).max())
        frames = torch.zeros(steps * batch * math.prod(self.shape), device=places.device)
        frames.index_add_(0, places, torch.ones_like(places, dtype=torch.float32))
        return frames.view(steps, batch, *self.shape), lengths, labels

    def split(self, fraction: float, seed: int) -> tuple["Recordings", "Recordings"]:
        """Hold a part out at random, as `Split.split` does."""
        held_out = held_out_of(len(self), fraction, seed)
        return self.select(~held_out), self.select(held_out)

    def select(self, chosen: Tensor) -> "Recordings":
        """Return the recordings of a mask `[N]` or of numbers int64 `[M]`."""
        counts = self.counts[chosen]
        starts = (self.counts.cumsum(0) - self.counts)[chosen]
        cells = _events_of(self.cells, counts, starts, int(counts.sum()))
        return Recordings(cells, counts, self.lengths[chosen], self.labels[chosen], self.shape)


def _events_of(cells: Tensor, counts: Tensor, starts: Tensor, total: int) -> Tensor:
    """Return the cells of some recordings, one after the other, int32 `[total]`."""
    shift = starts - (counts.cumsum(0) - counts)
    index = torch.arange(total, device=cells.device)
    return cells.index_select(0, index.add_(shift.repeat_interleave(counts, output_size=total)))
