"""Synaptic operations of a network on given pictures, and the energy usually estimated from them.

A weight times a spike is an accumulation (AC), times anything else a multiplication and an
accumulation (MAC). 4.6 pJ a MAC and 0.9 pJ an AC are those of 32-bit floating point in 45 nm (M.
Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323), which the
field takes for its comparisons. Neither memory nor the neurons' own arithmetic is counted, so it is
an estimate for comparing networks and no measurement.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.layers.recurrent import Recurrent
from neurospike.models.network import READING

MAC_PICOJOULES = 4.6
AC_PICOJOULES = 0.9


@dataclass(frozen=True)
class Operations:
    """Operations per picture.

    dense_macs: of a network of the same layers without spikes that sees the picture once: in every
    step if it reads it part by part, else in one.
    """

    macs: float
    acs: float
    dense_macs: float

    @property
    def nanojoules(self) -> float:
        """Estimated energy per picture."""
        return (self.macs * MAC_PICOJOULES + self.acs * AC_PICOJOULES) / 1000

    @property
    def dense_nanojoules(self) -> float:
        """Estimated energy per picture of the network without spikes."""
        return self.dense_macs * MAC_PICOJOULES / 1000


@torch.no_grad()
def count_operations(model: nn.Module, images: Tensor, lengths: Tensor | None = None) -> Operations:
    """Run the model on pictures `[B, ...]` and count what its layers do.

    lengths: of sequences `[T, B, ...]`, how many of the steps belong to each, int64 `[B]`; no
    others are counted.

    Linear and convolutional layers are counted, and the weights of recurrent ones, by which every
    spike but those of the last step comes back; a product that the model takes once for all time
    steps, as of a constant current, counts once.
    """
    found: list[tuple[bool, float, float]] = []
    encoding = getattr(model, "encoding", None)
    reads = encoding in (*READING, "none")
    count, own, options = images.shape[encoding == "none"], None, {}
    if lengths is not None:
        options = {"lengths": lengths}
        own = torch.arange(len(images), device=images.device)[:, None] < lengths

    def look(layer: nn.Linear | nn.Conv2d, inputs: tuple[Any, ...], output: Tensor) -> None:
        (given,) = inputs
        if own is not None and given.shape[:2] == own.shape:
            given, output = given[own], output[own]
        nonzero = given != 0
        spiking = bool((given[nonzero] == 1).all())
        products = float(output.numel() * layer.weight[0].numel())
        used = products * float(nonzero.float().mean()) if spiking else products
        linear = isinstance(layer, nn.Linear)
        times = given[..., 0].numel() if linear else given.shape[0]  # pictures, or with their steps
        found.append((spiking, used, products * (1.0 if reads else count / times)))

    def look_back(layer: Recurrent, inputs: tuple[Any, ...], output: Any) -> None:
        spikes = output[0][0] if isinstance(output[0], tuple) else output[0]
        weights = torch.ones_like(layer.weight) if layer.mask is None else layer.mask
        back = spikes[:-1].flatten(0, 1) if own is None else spikes[:-1][own[1:]]
        used = float((back.float().sum(0) * weights.sum(0)).sum())
        found.append((True, used, float(weights.sum()) * (len(back) if reads else count)))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(look) for layer in layers]
    recurrent = [layer for layer in model.modules() if isinstance(layer, Recurrent)]
    handles += [layer.register_forward_hook(look_back) for layer in recurrent]
    try:
        model(images, **options)
    finally:
        for handle in handles:
            handle.remove()
    return Operations(
        macs=sum(used for spiking, used, _ in found if not spiking) / count,
        acs=sum(used for spiking, used, _ in found if spiking) / count,
        dense_macs=sum(dense for *_, dense in found) / count,
    )
