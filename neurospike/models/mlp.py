"""The fully connected network, whose hidden layers may be recurrent."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spike_layer import spike_layer
from neurospike.layers.spike_linear import SpikeLinear
from neurospike.ops.arguments import check_count, check_flag

from . import parts
from .network import ENCODINGS, SpikingNetwork
from .neurons import hidden_neurons
from .parts import NeuronOptions, SpikeDropout, over_steps


class SNNModel(SpikingNetwork):
    """A fully connected spiking network: linear layers and neurons, then a readout.

        model = SNNModel(input_size=784, hidden_size=256, output_size=10)
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]
        reader = SNNModel(784, [128, 128], encoding="rows", neuron="se_adlif", recurrent=True)

    Args:
        input_size: pixels a picture, after preprocessing.
        hidden_size: neurons of the hidden layer, or a list of them, one a layer.
        output_size: classes.
        normalization: of the hidden layers' currents, see `parts.normalization`.
        dropout: share of the hidden neurons silenced while training.
        neuron: the hidden neurons: `"lif"`, or the adaptive `"alif"` or `"se_adlif"`, whose
            constants are learned per neuron; see `neurospike.models.neurons`.
        tau, tau_adaptation: shortest and longest time constant of the adaptive neurons' membrane
            and adaptation, in steps.
        recurrent: each hidden layer is a `neurospike.Recurrent`, whose spikes come back to it.
        num_steps, preprocessing, encoding, encoding_options, readout, init: see `SpikingNetwork`.
            Reading a picture by `"rows"` or `"pixels"`, the first layer has as many inputs as a
            step brings. With the encoding `"none"` it takes sequences `[T, B, *F]` of `input_size`
            values a step.
        options: those of the neurons, the argument `neuron` of `SpikingNetwork`.

    Raises:
        TypeError: a size that is no whole number.
        ValueError: an unknown choice, a size below 1, a dropout outside 0 to below 1, time
            constants out of order, steps that are not those of the picture; pictures without
            `input_size` values each.
    """

    encodings = ENCODINGS

    def __init__(
        self,
        input_size: int = 784,
        hidden_size: int | Sequence[int] = 256,
        output_size: int = 10,
        *,
        num_steps: int | None = None,
        preprocessing: Any = (),
        encoding: str = "constant",
        encoding_options: Mapping[str, Any] | None = None,
        readout: str = "membrane",
        normalization: str = "none",
        dropout: float = 0.0,
        init: str = "torch",
        neuron: str = "lif",
        tau: Sequence[float] = (5.0, 25.0),
        tau_adaptation: Sequence[float] = (60.0, 300.0),
        recurrent: bool = False,
        **options: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(
            num_steps, preprocessing, encoding, encoding_options, readout, init, options
        )
        hidden = parts.sizes_of("hidden_size", hidden_size)
        inputs = self._reads(check_count("input_size", input_size, 0), num_steps)
        sizes = [inputs, *hidden, check_count("output_size", output_size, 0)]
        if min(sizes) < 1 or not hidden:
            raise ValueError(
                "input_size, hidden_size and output_size must be at least 1, and there must be a "
                f"hidden layer, got the sizes {sizes}"
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
        returns = check_flag("recurrent", recurrent)
        layers = [hidden_neurons(neuron, n, tau, tau_adaptation, self._neuron) for n in hidden]
        self.neurons = nn.ModuleList(
            Recurrent(layer, size) if returns else layer for layer, size in zip(layers, hidden)
        )
        self.dropout = SpikeDropout(dropout)
        self.output = self._output_neurons()

    def _answer(self, images: Tensor, **own: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        sequences = self.encoding == "none"
        flat = images.flatten(2 if sequences else 1)
        if flat.shape[-1] != self.input_size:
            what, after = ("frames", "") if sequences else ("pictures", " after preprocessing")
            raise ValueError(
                f"{what} must have input_size = {self.input_size} values each, got a batch of "
                f"shape {tuple(images.shape)} with {flat.shape[-1]} each{after}"
            )
        activity: dict[str, Tensor] = {}

        if self.encoding == "rows":
            flat = flat.unflatten(1, (self.num_steps, -1))
        encoded = self._encode(flat, self.linears[0])
        if self.encoding == "constant":  # passes the first layer once, not once a step
            current = self.norms[0](self.linears[0](flat))
            spikes, _ = self.neurons[0](current, num_steps=self.num_steps)
        else:
            spikes = self._layer(0, encoded, **own)
        activity["hidden1"] = spikes
        for k in range(1, len(self.neurons)):
            spikes = self._layer(k, self.dropout(spikes), **own)
            activity[f"hidden{k + 1}"] = spikes
        return encoded, activity, self.linears[-1](self.dropout(spikes))

    def _layer(self, k: int, incoming: Tensor, **own: Tensor) -> Tensor:
        """Return the spikes `[T, B, N]` of a hidden layer."""
        linear, norm, neurons = self.linears[k], self.norms[k], self.neurons[k]
        if isinstance(norm, nn.Identity):
            return spike_layer(linear, neurons, incoming, **own)[0]
        current = over_steps(lambda given: norm(linear(given)), incoming, **own)
        return neurons(current, **own)[0]
