"""Pictures with labels as two tensors, and batches cut from them on the device.

A set of 28 x 28 digits is small (MNIST: 47 MB as uint8), so a `DataLoader` with its worker
processes, per-picture Python and copies costs more than the training step it feeds. Here the
whole set moves once and a batch is one gather and one conversion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurospike.ops.constants import constant

if TYPE_CHECKING:
    from .recordings import Recordings


@dataclass(frozen=True, eq=False)
class Split:
    """Square pictures with their labels.

    Shapes: `images` uint8 `[N, S, S]` of one channel, or `[N, C, S, S]`, 0 (of a digit: the
    background) to 255; `labels` int64 `[N]`, from 0.
    Errors: `ValueError` for tensors of another shape, dtype, length or range.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, tensor in (("images", images), ("labels", labels)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        square = images.ndim in (3, 4) and images.shape[-1] == images.shape[-2]
        if images.dtype != torch.uint8 or not square:
            raise ValueError(
                "images must be uint8 [N, S, S] or [N, C, S, S], square pictures, got "
                f"{images.dtype} {list(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(f"labels must be int64 [N], got {labels.dtype} {list(labels.shape)}")
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images but {len(labels)} labels")
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(
                f"labels must be 0 or more, got {int(labels.min())} to {int(labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, fraction: float, seed: int) -> tuple["Split", "Split"]:
        """Hold a part out at random: `(rest, held_out)`, disjoint and together the whole.

        `held_out` has `round(fraction * N)` samples; a fraction of 0 leaves it empty. The same
        seed holds out the same samples. Both parts keep the original order; neither is
        stratified. Errors: `ValueError` for a fraction outside [0, 1).
        """
        held_out = held_out_of(len(self), fraction, seed)
        return self.select(~held_out), self.select(held_out)

    def select(self, chosen: Tensor) -> "Split":
        """Return the pictures of a mask `[N]` or of numbers int64 `[M]`."""
        return Split(self.images[chosen], self.labels[chosen])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        channels = 1 if self.images.ndim == 3 else self.images.shape[1]
        return channels, self.images.shape[-2], self.images.shape[-1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a device holds of them for `gather`."""
        return self.images, self.labels

    def gather(
        self, tensors: Sequence[Tensor], chosen: Tensor, numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what `shown` makes a batch of, on the device of `tensors` and `chosen` `[B]`."""
        return tuple(tensor.index_select(0, chosen) for tensor in tensors)

    def shown(self, gathered: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a batch: pictures float32 `[B, C, S, S]` in [0, 1], and labels `[B]`."""
        images, labels = gathered
        # Not a number: CUDA multiplies by its reciprocal, which rounds otherwise.
        white = constant((255.0,), torch.float32, images.device)
        return (images.unsqueeze(1) if images.ndim == 3 else images).div(white), labels


@dataclass(frozen=True, eq=False)
class DigitData:
    """A data set of pictures: the name of what was really taken, its two splits, and why it was.

    `note` is one line for the run's record. `name` is never `"auto"`. `classes` are the names of
    the labels, from 0; none where they are no more than numbers.
    """

    name: str
    train: Split
    test: Split
    note: str
    classes: tuple[str, ...] = ()


def held_out_of(count: int, fraction: float, seed: int) -> Tensor:
    """Draw which of so many samples are held out: a mask `[count]`. See `Split.split`."""
    if not 0 <= fraction < 1:
        raise ValueError(
            f"fraction must be at least 0 and below 1, got {fraction}: it is the part held out"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(count, dtype=torch.bool)
    held_out[order[: round(fraction * count)]] = True
    return held_out


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
    `share` is what this process's part of the batch in hand counts for against an equal part, so
    that `share * mean loss`, averaged over the processes, is the mean loss of the batch.

    `state_dict()` within an epoch or between two, given to `load_state_dict()`, makes the next
    iteration go on with the batch that would have come.

    What a split stores, images as uint8, is moved to `device` once and kept there, and `resident`
    is True. If a CUDA device has no room for it, it stays where it is and each batch goes over by
    itself, through pinned memory; `resident` is then False.

    Raises:
        ValueError: a `batch_size` or `smallest` below 1, a generator that is not on the CPU or a
            `rank` that is not one of `world`.
    """

    def __init__(
        self,
        split: "Split | Recordings",
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
        self._position = 0  # batches given out of the epoch under way
        self._skip = 0
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
        """Where the epoch under way stands: its order, and the batches given out of it.

        done: to go on after so many, not after the last one given out.
        """
        state = None if self.generator is None else self.generator.get_state()
        return {
            "generator": self._order_state if self._position else state,
            "position": self._position if done is None else done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was taken."""
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        self._skip = state["position"]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self._split)
        # Kept for `state_dict`: an epoch that is gone on with needs the order it began with.
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
