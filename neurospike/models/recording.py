"""What a network keeps of an answer, for plots and for the live page."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neurospike.ops.scan import state_dtype


@dataclass(frozen=True, eq=False)
class Recording:
    """What happens inside a network, step by step, while it answers a batch of pictures.

    Shapes: `current` `[T, B, *F]`, the encoded input; `spikes` `{layer: [T, B, *F]}`; `output`
    `[T, B, C]`, the output neurons' membranes or, of a readout that looks at them, spikes; `scores`
    `[B, C]`.
    """

    current: Tensor
    spikes: dict[str, Tensor]
    output: Tensor
    scores: Tensor
    readout: str

    @property
    def votes(self) -> Tensor:
        """The scores `[T, B, C]` if the network had been stopped after each step."""
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
