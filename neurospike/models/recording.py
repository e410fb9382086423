"""What a network did while it answered, recorded for plots and for the live page."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neurospike.layers.recording import held
from neurospike.ops.formats import state_dtype


@dataclass(frozen=True, eq=False)
class Recording:
    """What happens inside a network, step by step, while it answers a batch of pictures.

    Shapes: `current` `[T, B, *F]`, the encoded input; `spikes` `{layer: [T, B, *F]}`; `output`
    `[T, B, C]`, the output neurons' membranes or, of a readout that looks at them, spikes; `scores`
    `[B, C]`; `lengths` int64 `[B]`, how many of the steps belong to each sample; None: all.
    `neurospike.record(model, images)` has the membranes, too, by the names of the modules.
    """

    current: Tensor
    spikes: dict[str, Tensor]
    output: Tensor
    scores: Tensor
    readout: str
    lengths: Tensor | None = None

    @property
    def votes(self) -> Tensor:
        """The scores `[T, B, C]` if the network had been stopped after each step.

        Beyond a sample's end they stay as they were.
        """
        return held(self._votes(), self.lengths)

    def _votes(self) -> Tensor:
        output = self.output.to(state_dtype(self.output.dtype))  # as the readouts
        if self.readout == "max_membrane":
            return output.cummax(0).values
        if self.readout == "first_spike":
            return -(1 - output).cumprod(0).cumsum(0)
        total = output.cumsum(0)
        if self.readout == "spikes":
            return total
        steps = torch.arange(1, len(total) + 1, dtype=total.dtype, device=total.device)
        return total / steps[:, None, None]
