"""An encoder whose code is learnt: a convolution and neurons that see a picture at every step."""

from torch import Tensor, nn
from typing_extensions import Unpack

from neurospike.layers.lif import LIF
from neurospike.ops.arguments import check_count

from . import parts


class ConvEncoder(nn.Module):
    """Turn pictures into spikes by a convolution that is trained with the network behind it.

        encode = ConvEncoder(channels=8, num_steps=25)
        spikes = encode(images)                    # [B, 1, H, W] -> [T, B, 8, H, W]

    The convolution runs once, its currents are held for `num_steps`, and the brighter a feature the
    sooner and the oftener its neuron fires (Wu et al., AAAI 2019, arXiv:1809.05793).

    Args:
        channels: features, each a picture of spikes.
        num_steps: time steps, at least 1.
        kernel_size: side of the kernels, odd; the sides of the pictures are kept.
        in_channels: of the pictures.
        normalization: of the currents, see `neurospike.models.parts.normalization`.
        neuron: options of `neurospike.LIF`; `beta` is 0.95 by default.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below 1, an even kernel, an unknown normalisation.
    """

    def __init__(
        self,
        channels: int = 8,
        num_steps: int = 25,
        *,
        kernel_size: int = 5,
        in_channels: int = 1,
        normalization: str = "batch",
        **neuron: Unpack[parts.NeuronOptions],
    ) -> None:
        super().__init__()
        parts.check_options(type(self), neuron)
        check_count("channels", channels)
        check_count("in_channels", in_channels)
        if check_count("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to have a middle, got {kernel_size}")
        self.num_steps = check_count("num_steps", num_steps)
        bias = normalization == "none"
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding="same", bias=bias)
        threshold = neuron.get("threshold", 1.0)
        self.norm = parts.normalization(normalization, channels, 2, threshold)
        options: parts.NeuronOptions = {"beta": 0.95, **neuron}
        self.neurons = LIF(**options)

    def forward(self, images: Tensor) -> Tensor:
        """Return spikes `[T, B, channels, H, W]` of pictures `[B, in_channels, H, W]`."""
        spikes, _ = self.neurons(self.norm(self.conv(images)), num_steps=self.num_steps)
        return spikes
