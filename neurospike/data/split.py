"""A data set of pictures in memory: each part's pictures and labels as two tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurospike.ops.constants import constant


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
        """The tensors that are kept on a device, for `gather`."""
        return self.images, self.labels

    def gather(
        self, tensors: Sequence[Tensor], chosen: Tensor, numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the samples `chosen` `[B]` of `tensors`, of which `shown` makes a batch.

        numbers: `chosen` on the CPU, which pictures do not need.
        """
        return tuple(tensor.index_select(0, chosen) for tensor in tensors)

    def shown(self, gathered: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a batch: pictures float32 `[B, C, S, S]` in [0, 1], and labels `[B]`."""
        images, labels = gathered
        # A tensor: by a number CUDA would divide as times its reciprocal, which rounds differently.
        white = constant((255.0,), torch.float32, images.device)
        return (images.unsqueeze(1) if images.ndim == 3 else images).div(white), labels


@dataclass(frozen=True, eq=False)
class DigitData:
    """A data set of pictures: its name, its two splits, and where it comes from.

    `name` is that of the data themselves, never `"auto"`. `note` is one line for the run's record,
    which says where they were found and why they were taken. `classes` are the names of the labels,
    from 0; empty where labels have no names but their numbers.
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
