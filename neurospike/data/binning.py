"""From events, each at a time of its own, to frames: how many fell into each step and cell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_CELLS = 2**31 - 1  # of a recording, so that the number of each fits four bytes


@dataclass(frozen=True)
class Binning:
    """Count events into frames `[T, *F]`.

        binning = ns.data.Binning((700, 1, 1), time_bin=4, pool=5)
        frames = binning(events)                              # [T, 140], as many steps as it lasts
        data = tonic.datasets.SHD("data", transform=binning)  # or let tonic call it

    Time is counted from a recording's first event: silence before it would leave a network at rest.

    Args:
        sensor_size: width, height and polarities, as tonic's data sets tell them: `(34, 34, 2)`.
            Of a height and polarity of 1 a frame is `[width]`, else `[polarities, height, width]`.
        time_bin: milliseconds of a step.
        bins: steps of each recording, however long it lasts; the time of a step is then its own,
            and `time_bin` is not used. None: as many steps as the recording fills.
        pool: neighbouring channels, or pixels of each side, that are counted as one.

    Raises:
        TypeError: a `time_bin` that is not a number, `bins` or a `pool` that is not a whole one.
        ValueError: a `time_bin` that is not above 0, `bins` or `pool` below 1, or a `pool` that
            does not divide the sensor.
    """

    sensor_size: Sequence[int]
    time_bin: float = 10.0
    bins: int | None = None
    pool: int = 1

    def __post_init__(self) -> None:
        sides = self.sensor_size
        is_three = isinstance(sides, Sequence) and len(sides) == 3
        if not is_three or any(not _is_whole(side) or side < 1 for side in sides):
            raise ValueError(
                f"sensor_size must be (width, height, polarities), each at least 1, got {sides!r}"
            )
        if isinstance(self.time_bin, bool) or not isinstance(self.time_bin, Real):
            raise TypeError(f"time_bin must be a number of milliseconds, got {self.time_bin!r}")
        # Events have whole microseconds.
        if not 0.001 <= self.time_bin < math.inf:
            raise ValueError(f"time_bin must be at least 0.001 ms, got {self.time_bin!r}")
        for name, value in (("bins", self.bins), ("pool", self.pool)):
            if name == "bins" and value is None:
                continue
            if not _is_whole(value):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if any(side % self.pool for side in self._sides):
            raise ValueError(
                f"pool must divide the sensor's {' x '.join(map(str, self._sides))}, got "
                f"{self.pool}"
            )

    @property
    def _sides(self) -> tuple[int, ...]:
        """The sides that are pooled."""
        width, height, polarities = self.sensor_size
        return (width,) if height == polarities == 1 else (width, height)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame, `*F`."""
        sides = tuple(side // self.pool for side in self._sides)
        return sides if len(sides) == 1 else (self.sensor_size[2], sides[1], sides[0])

    def __call__(self, events: Any) -> Tensor:
        """Return float32 counts `[T, *F]` of events.

        events: structured, as tonic has them: `t` in microseconds, `x`, and for a camera `y` and
        `p`. Without any, one frame of zeros, or `bins` of them. Raises ValueError for events
        outside the sensor, for numbers that are NaN or infinite, and for more cells than
        2**31 - 1.
        """
        cells, steps = self.cells(events)
        counts = torch.bincount(cells, minlength=steps * math.prod(self.shape))
        return counts.to(torch.float32).view(steps, *self.shape)

    def cells(self, events: Any) -> tuple[Tensor, int]:
        """Return the cell of each event in the flattened frames, int32 `[E]`, and T."""
        times = _finite(events, "t").astype(np.int64)
        times -= times.min(initial=times[0] if len(times) else 0)
        last = int(times.max(initial=0))
        if self.bins is None:
            width = round(self.time_bin * 1000)
            step, steps = times // width, last // width + 1
        else:
            step, steps = times * self.bins // (last + 1), int(self.bins)
        if steps * math.prod(self.shape) > MOST_CELLS:
            raise ValueError(
                f"{steps} steps of {' x '.join(map(str, self.shape))} are too many for a recording "
                f"of {last / 1e6:.3g} s: take a longer time_bin, or a larger pool"
            )
        x = self._along(events, "x", 0)
        place = x
        if len(self.shape) == 3:
            polarity = self._along(events, "p", 2)
            _, height, width = self.shape
            place = (polarity * height + self._along(events, "y", 1)) * width + x
        return torch.from_numpy((step * math.prod(self.shape) + place).astype(np.int32)), steps

    def _along(self, events: Any, name: str, side: int) -> np.ndarray:
        """Return the coordinate of each event along one side of a frame."""
        found = _finite(events, name).astype(np.int64)
        low, high = found.min(initial=0), found.max(initial=0)
        if low < 0 or high >= self.sensor_size[side]:
            raise ValueError(
                f"events have {name} from {low} to {high}, and the sensor's are 0 to "
                f"{self.sensor_size[side] - 1}"
            )
        return found if name == "p" else found // self.pool


def _finite(events: Any, name: str) -> np.ndarray:
    """Return a column of events. Raises ValueError for one with NaN or infinity."""
    found = np.asarray(events[name])
    wrong = ~np.isfinite(found)
    if wrong.any():
        raise ValueError(
            f"events have {name}={found[wrong][0]} at {wrong.sum()} of {len(found)} places, the "
            f"first is {int(wrong.argmax())}: leave these events out"
        )
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
