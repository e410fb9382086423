"""Synaptic operations of a network on given pictures, and the energy usually estimated from them.

A weight times a spike is an accumulation (AC), times anything else a multiplication and an
accumulation (MAC). 4.6 pJ a MAC and 0.9 pJ an AC are those of 32-bit floating point in 45 nm (M.
Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323), which the
field takes for its comparisons. Neither memory nor the neurons' own arithmetic is counted, so it is
an estimate for comparing networks and no measurement.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.layers.recording import doubt_of, recording, spiking_layers
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.sequential import Sequential
from neurospike.models.network import READING

MAC_PICOJOULES = 4.6
AC_PICOJOULES = 0.9
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Operations:
    """Operations per picture, and the energy that is usually estimated from them.

    Attributes:
        macs: multiplications and additions, of inputs that are no spikes.
        acs: additions, of spikes.
        dense_macs: multiplications and additions of a network of the same layers without spikes
            that sees the picture once: in every step if it reads it part by part, else in one.
    """

    macs: float
    acs: float
    dense_macs: float

    @property
    def nanojoules(self) -> float:
        """Estimated energy per picture, on a chip of 45 nm."""
        return (self.macs * MAC_PICOJOULES + self.acs * AC_PICOJOULES) / 1000

    @property
    def dense_nanojoules(self) -> float:
        """Estimated energy per picture of the network without spikes."""
        return self.dense_macs * MAC_PICOJOULES / 1000


@torch.no_grad()
def count_operations(
    model: nn.Module, images: Tensor, lengths: Tensor | None = None, **options: Any
) -> Operations:
    """Run the model on pictures `[B, ...]` and count what its layers do.

        count_operations(net, x, num_steps=25)     # a network of your own, as you would call it

    Linear and convolutional layers are counted, and the weights of recurrent ones, by which every
    spike but those of the last step comes back. In a convolution only connections that exist are
    counted: at a border or between strides a spike meets fewer weights, and padding is no input. A
    product that is computed once for all time steps, as of a constant current, counts once.

    Args:
        model: any network; it is run in the mode that it is in.
        images: pictures; for a network that takes sequences, these: `[T, B, ...]`, or `[B, T, ...]`
            if it has `batch_first = True`.
        lengths: how many of the steps belong to each sequence, int64 `[B]`; no others are counted.
        options: keyword arguments of the call.

    Raises:
        ValueError: it cannot be told which steps a layer was given, or which axis of the images is
            time.
    """
    given: dict[str, Any] = options if lengths is None else {"lengths": lengths, **options}
    encoding = getattr(model, "encoding", None)
    is_ready = encoding is not None or not spiking_layers(model)
    own_axis = getattr(model, "batch_first", False) and "num_steps" not in options
    if lengths is not None and not own_axis and (doubt := doubt_of(model)):
        raise ValueError(doubt.format(list(images.shape)))
    steps = options.get("num_steps", images.shape[own_axis])
    own = None
    if lengths is not None:
        own = torch.arange(steps, device=images.device)[:, None] < lengths
    counter = _Counter(own, bool(own_axis), _in_sequentials(model))
    with (
        counter.looking(model),
        nullcontext() if is_ready else recording(model, states=False) as seen,
    ):
        model(images, **given)
    reads = encoding in (*READING, "none")
    count = images.shape[encoding == "none"]
    if seen is not None and seen.current is not None:  # it was called with all steps at once
        reads, count = "num_steps" not in options, seen.current.shape[1]
    return counter.operations(count, reads)


def _in_sequentials(model: nn.Module) -> set[nn.Module]:
    """Return the modules in an `ns.Sequential`, which are given time first whatever it is given."""
    outer = [one for one in model.modules() if isinstance(one, Sequential)]
    return {inner for one in outer for inner in one.modules()}


def _connections(layer: Any, active: Tensor) -> float:
    """Return how many weights the inputs that are True meet, all together."""
    if isinstance(layer, nn.Linear):
        return float(active.sum()) * layer.out_features
    # With weights of 1 an output is how many inputs it sees, and so are all of its group.
    alike = layer.out_channels // layer.groups
    ones = torch.ones_like(layer.weight[::alike], dtype=torch.float32)
    with torch.autocast(active.device.type, enabled=False):
        seen = layer._conv_forward(active.float(), ones, None)
    return float(seen.sum(dtype=torch.float64)) * alike


class _Counter:
    """Counts the products and the spikes of each call of a layer with weights, by hooks."""

    def __init__(self, own: Tensor | None, batch_first: bool, time_first: set[nn.Module]) -> None:
        """own: which steps belong to each sample, `[T, B]`; None: all.

        batch_first: layers are given `[B, T, *F]`, but for those of time_first.
        """
        self.own, self.batch_first, self.time_first = own, batch_first, time_first
        # Whether its input spikes, what it does, all its products, and samples (with their steps).
        self.found: list[tuple[bool, float, float, int]] = []
        self.back: list[tuple[float, float, int]] = []  # of recurrent layers

    @contextmanager
    def looking(self, model: nn.Module) -> Iterator[None]:
        """Note the calls that are made meanwhile."""
        look: dict[tuple[type[nn.Module], ...], Callable[..., None]] = {
            _WEIGHTED: self.look,
            (Recurrent,): self.look_back,
        }
        handles = [
            layer.register_forward_hook(hook, with_kwargs=True)
            for layer in model.modules()
            for kinds, hook in look.items()
            if isinstance(layer, kinds)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def look(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        (given,) = (*inputs, *named.values())
        is_linear = isinstance(layer, nn.Linear)
        own = self.own_of(layer, given.shape[: -1 if is_linear else 1])
        if own is not None:
            given = given[own]
        nonzero = given != 0
        spiking = bool((given[nonzero] == 1).all())
        products = _connections(layer, torch.ones_like(nonzero))
        used = _connections(layer, nonzero) if spiking else products
        samples = given[..., 0].numel() if is_linear else given.shape[0]
        self.found.append((spiking, used, products, samples))

    def own_of(self, layer: nn.Module, lead: torch.Size) -> Tensor | None:
        """Return which of what a layer is given belong to a sample's own steps; None: all.

        lead: the axes of it before the features, of which the first are time and batch.
        """
        own = self.own
        if own is None:
            return None
        turn = self.batch_first and layer not in self.time_first
        for one in (own.T, own) if turn else (own, own.T):
            if lead[:2] == one.shape:
                return one
        if lead[:1] == (own.numel(),):  # time and batch as one axis
            return (own.T if turn else own).flatten()
        if lead == own.shape[1:]:  # each sample once, as what comes after a mean over its steps
            return None
        steps, batch = own.shape
        raise ValueError(
            f"a {type(layer).__name__} was given {list(lead)} before its features, and lengths are "
            f"of [T={steps}, B={batch}], [B, T], both as one axis, or [B]: leave lengths out and "
            "count each sequence on its own"
        )

    def look_back(
        self, layer: Recurrent, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        spikes = output[0].transpose(0, 1) if layer.batch_first else output[0]
        weights = torch.ones_like(layer.weight) if layer.mask is None else layer.mask
        back = spikes[:-1].flatten(0, 1) if self.own is None else spikes[:-1][self.own[1:]]
        used = float((back.float().sum(0) * weights.sum(0)).sum())
        self.back.append((used, float(weights.sum()), len(back)))

    def operations(self, count: int, reads: bool) -> Operations:
        """Return the operations of `count` samples; reads: whether part by part, step by step."""
        dense = sum(all_ * (1.0 if reads else count / n) for *_, all_, n in self.found)
        dense += sum(weights * (steps if reads else count) for _, weights, steps in self.back)
        acs = sum(used for spiking, used, *_ in self.found if spiking)
        return Operations(
            macs=sum(used for spiking, used, *_ in self.found if not spiking) / count,
            acs=(acs + sum(used for used, *_ in self.back)) / count,
            dense_macs=dense / count,
        )
