"""Where a layer's time axis is: first, second (`batch_first`), or absent, for one frame (`step`).

Operators and backends have time first. An input with the batch first is transposed as a view, which
copies nothing by itself; a backend that cannot read such strides makes a copy.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from neurospike.ops.wants import BY_SAMPLE

F = TypeVar("F", bound=Callable[..., Any])


def over_time(forward: F) -> F:
    """Let a layer's `forward` over `[T, B, *F]` take and return `[B, T, *F]` if `batch_first`."""

    @functools.wraps(forward)
    def either(layer: Any, current: Tensor, *given: Any, **options: Any) -> Any:
        if not layer.batch_first:
            return forward(layer, current, *given, **options)
        if options.get("num_steps") is None:
            current = time_first(current)
        return tuple(
            one if place == 1 else swapped(one)  # the state has no time axis
            for place, one in enumerate(forward(layer, current, *given, **options))
        )

    return either  # type: ignore[return-value]


def time_first(current: Any) -> Any:
    """Return `[B, T, *F]` as `[T, B, *F]`; anything but a dense tensor as it is, to be refused."""
    if not isinstance(current, Tensor) or current.is_nested:
        return current
    if current.dim() < 2:
        raise ValueError(
            f"with batch_first=True the input must be [B, T, *F], got shape {tuple(current.shape)},"
            " which has no batch or no time axis; for a constant input [B, *F] pass num_steps="
        )
    return current.transpose(0, 1)


def swapped(traces: Any) -> Any:
    """Return a tensor, or each of a tuple, with its first two axes exchanged."""
    if isinstance(traces, tuple):
        return tuple(swapped(one) for one in traces)
    return traces.transpose(0, 1)


class OverTime(nn.Module):
    """Base of layers that run a sequence, `layer(current, state)`, or one frame, by `step`."""

    batch_first: bool = False

    @property
    def _layout(self) -> int:
        """Bit of `wants` that says how sequences lie in memory."""
        return BY_SAMPLE if self.batch_first else 0

    def step(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run one frame `[B, *F]` and return `(output [B, *F], state)`.

            state = None
            for frame in camera:
                spikes, state = layer.step(frame, state)

        The result equals that of a call over a sequence of one step, bit for bit, without its time
        axis, whether the layer is `batch_first` or not. If several frames are known, one call over
        the sequence is much faster.

        Args:
            current: `[B, *F]`.
            state: what the call for the frame before returned; None: at rest.
        """
        out = self(current, state, num_steps=1)
        return out[0].squeeze(1 if self.batch_first else 0), out[1]
