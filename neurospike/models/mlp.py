"""The fully connected network."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from neurospike.layers.spike_layer import spike_layer
from neurospike.layers.spike_linear import SpikeLinear

from . import parts
from .network import SpikingNetwork
from .parts import NeuronOptions, SpikeDropout, over_steps


class SNNModel(SpikingNetwork):
    """A fully connected spiking network: linear and LIF layers, then a readout.

        model = SNNModel(input_size=784, hidden_size=256, output_size=10)
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    Args:
        input_size: pixels a picture, after preprocessing.
        hidden_size: neurons of the hidden layer, or a list of them, one a layer.
        output_size: classes.
        normalization: of the hidden layers' currents, see `parts.normalization`.
        dropout: share of the hidden neurons silenced while training.
        num_steps, preprocessing, encoding, encoding_options, readout, init, neuron: see
            `SpikingNetwork`.

    Raises:
        ValueError: an unknown choice, a size below 1 or a dropout outside 0 to below 1; pictures
            without `input_size` values each.
    """

    def __init__(
        self,
        input_size: int = 784,
        hidden_size: int | Sequence[int] = 256,
        output_size: int = 10,
        *,
        num_steps: int = 25,
        preprocessing: Any = (),
        encoding: str = "constant",
        encoding_options: Mapping[str, Any] | None = None,
        readout: str = "membrane",
        normalization: str = "none",
        dropout: float = 0.0,
        init: str = "torch",
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(
            num_steps, preprocessing, encoding, encoding_options, readout, init, neuron
        )
        hidden = parts.sizes_of("hidden_size", hidden_size)
        sizes = [input_size, *hidden, output_size]
        if min(sizes) < 1 or not hidden:
            raise ValueError(
                f"sizes must be at least 1 and there must be a hidden layer, got sizes {sizes}"
            )
        self.input_size = input_size
        self.linears = nn.ModuleList(
            self._initialized(SpikeLinear(fan_in, fan_out), first=k == 0)
            for k, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:]))
        )
        threshold = self._neuron.get("threshold", 1.0)
        self.norms = nn.ModuleList(
            parts.normalization(normalization, size, 1, threshold) for size in hidden
        )
        self.neurons = nn.ModuleList(self._neurons() for _ in hidden)
        self.dropout = SpikeDropout(dropout)
        self.output = self._output_neurons()

    def _answer(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        flat = images.flatten(1)
        if flat.shape[1] != self.input_size:
            raise ValueError(
                f"pictures must have input_size = {self.input_size} values each, got a batch of "
                f"shape {tuple(images.shape)} with {flat.shape[1]} each after preprocessing"
            )
        activity: dict[str, Tensor] = {}

        encoded = self._encode(flat, self.linears[0])
        if self.encoding == "constant":  # passes the first layer once, not once a step
            current = self.norms[0](self.linears[0](flat))
            spikes, _ = self.neurons[0](current, num_steps=self.num_steps)
        else:
            spikes = self._layer(0, encoded)
        activity["hidden1"] = spikes
        for k in range(1, len(self.neurons)):
            spikes = self._layer(k, self.dropout(spikes))
            activity[f"hidden{k + 1}"] = spikes
        return encoded, activity, self.linears[-1](self.dropout(spikes))

    def _layer(self, k: int, incoming: Tensor) -> Tensor:
        """Return the spikes `[T, B, N]` of a hidden layer."""
        linear, norm, neurons = self.linears[k], self.norms[k], self.neurons[k]
        if isinstance(norm, nn.Identity):
            return spike_layer(linear, neurons, incoming)[0]
        current = over_steps(lambda given: norm(linear(given)), incoming)
        return neurons(current)[0]
