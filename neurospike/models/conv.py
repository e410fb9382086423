"""The convolutional network."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from neurospike.layers.spike_linear import SpikeLinear
from neurospike.ops.arguments import check_count

from . import parts
from .network import SpikingNetwork
from .parts import NeuronOptions, SpikeDropout, over_steps, side_of

POOLINGS = ("max", "average", "max_current")


class ConvSNN(SpikingNetwork):
    """A convolutional spiking network: stages of convolution, neurons and pooling, then two layers.

        model = ConvSNN(input_size=784, channels=[16, 32], hidden_size=128, num_steps=4)
        scores = model(images)                     # [B, C, H, W] in [0, 1] -> [B, output_size]

    Args:
        input_size: values of a picture, after preprocessing; pictures are square.
        in_channels: channels of a picture, 3 of a coloured one; `input_size` counts them all.
        channels: of each stage, a number for one stage; each halves the picture's sides.
        kernel_size: side of the kernels, odd.
        pooling: `"max"`, which of spikes is a spike wherever one of four fired; `"average"`; or
            `"max_current"`, the largest of four currents, before the neurons: a quarter of the
            neurons then, and the gradient reaches the pixel that made the neuron fire.
        hidden_size: neurons of the fully connected layer behind the stages, or of each of them.
        output_size: classes.
        normalization: of every hidden current, see `parts.normalization`.
        dropout: share of the fully connected layers' inputs silenced while training.
        num_steps, preprocessing, encoding, encoding_options, readout, init, neuron: see
            `SpikingNetwork`.

    Raises:
        ValueError: an unknown choice, a size below 1, an even kernel, more stages than the picture
            can be halved; pictures of another shape.
        TypeError: channels or a hidden_size that is no whole number nor a list of them; another
            number that is not whole.
    """

    def __init__(
        self,
        input_size: int = 784,
        channels: int | Sequence[int] = (16, 32),
        kernel_size: int = 5,
        pooling: str = "max",
        hidden_size: int | Sequence[int] = 128,
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
        channels = parts.sizes_of("channels", channels)
        hidden = parts.sizes_of("hidden_size", hidden_size)
        classes = check_count("output_size", output_size, 0)
        check_count("kernel_size", kernel_size, 0)
        parts.check_one_of("pooling", pooling, POOLINGS)
        if not channels or not hidden or min([*channels, *hidden, classes]) < 1:
            raise ValueError(
                "there must be at least one stage and one hidden layer, and sizes of at least 1, "
                f"got channels {list(channels)}, hidden_size {hidden}, output_size {output_size}"
            )
        self.in_channels, self.side = in_channels, side_of(input_size, in_channels)
        rest = self.side >> len(channels)
        if rest < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                "each stage halves the picture and kernels have a middle: got a side of "
                f"{self.side}, {len(channels)} stages and kernel_size {kernel_size}; use fewer "
                "stages or an odd kernel"
            )
        threshold = self._neuron.get("threshold", 1.0)
        pools: dict[str, nn.Module] = {
            "max": nn.MaxPool2d(2),
            "average": nn.AvgPool2d(2),
            "max_current": nn.Identity(),  # each stage pools its currents
        }

        def stage(index: int, inputs: int, outputs: int) -> nn.Sequential:
            # A normalisation has a bias of its own.
            layer = nn.Conv2d(
                inputs, outputs, kernel_size, padding="same", bias=normalization == "none"
            )
            layer = self._initialized(layer, first=index == 0)
            norm = parts.normalization(normalization, outputs, 2, threshold)
            before = [nn.MaxPool2d(2)] if pooling == "max_current" else []
            return nn.Sequential(layer, norm, *before)

        sizes = [in_channels, *channels]
        self.stages = nn.ModuleList(
            stage(index, *pair) for index, pair in enumerate(zip(sizes, sizes[1:]))
        )
        self.pool = pools[pooling]
        flat = [channels[-1] * rest * rest, *hidden]
        self.hidden = nn.ModuleList(
            nn.Sequential(
                self._initialized(SpikeLinear(inputs, outputs, bias=normalization == "none")),
                parts.normalization(normalization, outputs, 1, threshold),
            )
            for inputs, outputs in zip(flat, flat[1:])
        )
        self.neurons = nn.ModuleList(self._neurons() for _ in [*channels, *hidden])
        self.dropout = SpikeDropout(dropout)
        self.last = self._initialized(SpikeLinear(flat[-1], output_size))
        self.output = self._output_neurons()

    def _answer(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        check_square(images, self.in_channels, self.side)
        activity: dict[str, Tensor] = {}
        encoded, first = self._enter(images, self.stages[0])
        spikes, _ = self.neurons[0](**first)
        activity["conv1"] = spikes
        count = len(self.stages)
        for k in range(1, count):
            current = over_steps(self.stages[k], over_steps(self.pool, spikes))
            spikes, _ = self.neurons[k](current)
            activity[f"conv{k + 1}"] = spikes
        spikes = over_steps(self.pool, spikes).flatten(2)
        for k, layer in enumerate(self.hidden):
            spikes, _ = self.neurons[count + k](over_steps(layer, self.dropout(spikes)))
            activity[f"hidden{k + 1}"] = spikes
        return encoded, activity, self.last(self.dropout(spikes))


def check_square(images: Tensor, channels: int, side: int) -> None:
    """Raise ValueError unless `images` are `[B, channels, side, side]`."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side):
        raise ValueError(
            f"pictures must be [B, {channels}, {side}, {side}], as input_size and in_channels say, "
            f"got {tuple(images.shape)} after preprocessing"
        )
