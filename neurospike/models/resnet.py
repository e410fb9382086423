"""The deep residual network, with shortcuts of spikes or of membranes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from neurospike.layers.lif import LIF
from neurospike.ops.arguments import check_count

from . import parts
from .conv import check_square
from .network import SpikingNetwork
from .parts import NeuronOptions, SpikeDropout, over_steps, side_of

# Of a block's spikes and those that went round it (Fang et al. 2021, table 1).
ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda spikes, shortcut: spikes + shortcut,
    "and": lambda spikes, shortcut: spikes * shortcut,
    "iand": lambda spikes, shortcut: (1 - spikes) * shortcut,
}
SHORTCUTS = (*ELEMENTWISE, "membrane")


class ResidualSNN(SpikingNetwork):
    """A deep residual spiking network.

        model = ResidualSNN(input_size=784, channels=[16, 32], blocks=[3, 3], num_steps=4)
        scores = model(images)                     # [B, C, H, W] in [0, 1] -> [B, output_size]

    A first convolution, then stages of blocks of two convolutions each, mean over space, readout.

    Shortcuts of spikes (SEW-ResNet; Fang et al., NeurIPS 2021, arXiv:2102.04159) join what a block
    fires with what went into it, element by element: `"add"`, `"and"` or `"iand"` (not and). A
    block that is silent passes its input on with `"add"` and `"iand"`, so deep networks can be
    trained. The `"membrane"` shortcut (MS-ResNet; Hu et al., arXiv:2112.08954) adds currents around
    blocks that begin with their neurons, so that only spikes, 0 or 1, enter convolutions.

    Args:
        input_size: values of a picture, after preprocessing; pictures are square.
        in_channels: channels of a picture, 3 of a coloured one; `input_size` counts them all.
        channels: of each stage, a number for one stage; each but the first halves the sides of the
            pictures.
        blocks: number of them in each stage.
        shortcut: as above.
        output_size: classes.
        normalization: of every current, see `parts.normalization`.
        dropout: share of the readout's inputs silenced while training.
        num_steps, preprocessing, encoding, encoding_options, readout, init, neuron: see
            `SpikingNetwork`.

    Raises:
        ValueError: an unknown choice, a size below 1, channels and blocks of different lengths;
            pictures of another shape.
        TypeError: channels or blocks that are no whole number nor a list of them; another number
            that is not whole.
    """

    def __init__(
        self,
        input_size: int = 784,
        channels: int | Sequence[int] = (16, 32),
        blocks: int | Sequence[int] = (2, 2),
        shortcut: str = "add",
        output_size: int = 10,
        *,
        in_channels: int = 1,
        num_steps: int = 4,
        preprocessing: Any = (),
        encoding: str = "constant",
        encoding_options: Mapping[str, Any] | None = None,
        readout: str = "membrane",
        normalization: str = "batch",
        dropout: float = 0.0,
        init: str = "torch",
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(
            num_steps, preprocessing, encoding, encoding_options, readout, init, neuron
        )
        parts.check_one_of("shortcut", shortcut, SHORTCUTS)
        channels, blocks = (
            parts.sizes_of("channels", channels),
            parts.sizes_of("blocks", blocks),
        )
        sizes = [*channels, *blocks, check_count("output_size", output_size, 0)]
        if not blocks or len(channels) != len(blocks) or min(sizes) < 1:
            raise ValueError(
                "channels and blocks must have one number of at least 1 for each stage, got "
                f"channels {list(channels)} and blocks {list(blocks)}, output_size {output_size}"
            )
        self.in_channels, self.side = in_channels, side_of(input_size, in_channels)
        self.shortcut = shortcut
        threshold = self._neuron.get("threshold", 1.0)

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
            layer = nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2, bias=normalization == "none"
            )
            return nn.Sequential(
                self._initialized(layer),
                parts.normalization(normalization, outputs, 2, threshold),
            )

        block = _MembraneBlock if shortcut == "membrane" else _SpikeBlock
        first = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=normalization == "none")
        self.stem = nn.Sequential(
            self._initialized(first, first=True),
            parts.normalization(normalization, channels[0], 2, threshold),
        )
        self.stem_neurons = self._neurons()
        self.blocks = nn.ModuleList()
        inputs = channels[0]
        for stage, (outputs, count) in enumerate(zip(channels, blocks)):
            for k in range(count):
                stride = 2 if stage and k == 0 else 1
                self.blocks.append(block(inputs, outputs, stride, conv, self._neurons, shortcut))
                inputs = outputs
        self.dropout = SpikeDropout(dropout)
        self.last = self._initialized(nn.Linear(inputs, output_size))
        self.output = self._output_neurons()

    def _answer(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        check_square(images, self.in_channels, self.side)
        activity: dict[str, Tensor] = {}
        encoded, first = self._enter(images, self.stem)
        flow: Tensor
        if self.shortcut == "membrane":
            flow = first["current"]
            if "num_steps" in first:
                flow = flow.expand(self.num_steps, *flow.shape)
        else:
            flow, _ = self.stem_neurons(**first)
            activity["stem"] = flow
        for k, block in enumerate(self.blocks, start=1):
            flow, activity[f"block{k}"] = block(flow)
        if self.shortcut == "membrane":  # currents, of which neurons make spikes for the readout
            flow, _ = self.stem_neurons(flow)
            activity["last"] = flow
        return encoded, activity, self.last(self.dropout(flow.mean((3, 4))))


class _Block(nn.Module):
    """What both kinds of blocks have: two convolutions, neurons for each, and a way round them.

    `around` is a convolution where the shape changes; None where the input itself goes round.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        conv: Callable[..., nn.Module],
        neurons: Callable[[], LIF],
        shortcut: str,
    ) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.neurons = nn.ModuleList([neurons(), neurons()])
        self.join = shortcut
        self.around = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None


class _SpikeBlock(_Block):
    """Convolution, neurons, convolution, neurons; spikes in, joined with spikes that went round."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        conv: Callable[..., nn.Module],
        neurons: Callable[[], LIF],
        shortcut: str,
    ) -> None:
        super().__init__(inputs, outputs, stride, conv, neurons, shortcut)
        # A convolution makes currents of what goes round; these neurons make them spikes again.
        self.around_neurons = neurons() if self.around is not None else None

    def forward(self, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Return what leaves the block, and the spikes it fired itself."""
        inner, _ = self.neurons[0](over_steps(self.first, incoming))
        fired, _ = self.neurons[1](over_steps(self.second, inner))
        shortcut = incoming
        if self.around is not None and self.around_neurons is not None:
            shortcut, _ = self.around_neurons(over_steps(self.around, incoming))
        return ELEMENTWISE[self.join](fired, shortcut), fired


class _MembraneBlock(_Block):
    """Neurons, convolution, neurons, convolution; currents in and out, and added round it."""

    def forward(self, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Return the currents that leave the block, and the spikes of its second neurons."""
        fired, _ = self.neurons[0](incoming)
        inner, _ = self.neurons[1](over_steps(self.first, fired))
        around = incoming if self.around is None else over_steps(self.around, incoming)
        return over_steps(self.second, inner) + around, inner
