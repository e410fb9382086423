"""Networks that recognise digits. They encode their pictures themselves and know no backend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import encoding as codes
from .layers import LI, LIF
from .losses import READOUTS, SPIKING_READOUTS
from .surrogate import Surrogate

ENCODINGS = ("constant", "rate", "latency")


class SNNModel(nn.Module):
    """A fully connected spiking network: linear and LIF layers, then a readout.

        model = SNNModel(input_size=784, hidden_size=256, output_size=10)
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    Args:
        input_size: pixels a picture.
        hidden_size: neurons of the hidden layer, or a list of them, one a layer.
        output_size: classes.
        num_steps: time steps a picture is shown.
        encoding: `"constant"` current, `"rate"` (Poisson-like spike trains, drawn from torch's
            global generator) or `"latency"` (one spike a pixel, brighter first).
        encoding_options: further arguments of the function in `neurospike.encoding`.
        beta: decay of every membrane a step.
        threshold, surrogate, reset, reset_delay, detach_reset, learn_beta, learn_threshold: of the
            hidden layers, see `LIF`.
        readout: the scores are the output neurons' `"membrane"`, leaky integrators that never
            fire, averaged over time; the highest they reach, `"max_membrane"`; the number of the
            output neurons' `"spikes"`; or how early their `"first_spike"` is (`neurospike.losses`).

    Raises:
        ValueError: an unknown encoding or readout, a size below 1.
    """

    def __init__(
        self,
        input_size: int = 784,
        hidden_size: int | Sequence[int] = 256,
        output_size: int = 10,
        *,
        num_steps: int = 25,
        encoding: str = "constant",
        encoding_options: Mapping[str, Any] | None = None,
        beta: float = 0.95,
        threshold: float = 1.0,
        surrogate: str | Surrogate | Callable[..., Any] = "atan",
        reset: str = "subtract",
        reset_delay: bool = True,
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        readout: str = "membrane",
    ) -> None:
        super().__init__()
        hidden = [hidden_size] if isinstance(hidden_size, int) else list(hidden_size)
        sizes = [input_size, *hidden, output_size]
        _check_one_of("encoding", encoding, ENCODINGS)
        _check_one_of("readout", readout, tuple(READOUTS))
        if min(sizes) < 1 or num_steps < 1 or not hidden:
            raise ValueError(
                "sizes and num_steps must be at least 1 and there must be a hidden layer, got "
                f"sizes {sizes} and num_steps {num_steps}"
            )
        self.input_size, self.num_steps, self.readout = input_size, num_steps, readout
        self.encoding = encoding
        self.encoding_options = dict(encoding_options or {})

        def neurons() -> LIF:
            return LIF(
                beta,
                threshold,
                surrogate,
                reset,
                reset_delay,
                detach_reset,
                learn_beta,
                learn_threshold,
            )

        pairs = zip(sizes, sizes[1:])
        self.linears = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairs)
        self.neurons = nn.ModuleList(neurons() for _ in hidden)
        fires = readout in SPIKING_READOUTS
        self.output = neurons() if fires else LI(beta, learn_beta)

    def forward(
        self, images: Tensor, return_activity: bool = False, return_output: bool = False
    ) -> Any:
        """Return scores `[B, output_size]`; with `return_activity` also the spikes of each layer.

        Args:
            images: `[B, *]` with `input_size` values a picture, floating point in [0, 1].
            return_activity: also return `{"hidden1": spikes [T, B, N], ..., "output": ...}`; a
                membrane readout has no spikes and is left out.
            return_output: return as the last the output neurons' membranes or spikes at every
                step, `[T, B, output_size]`, of which the readout makes the scores.
        """
        flat = images.flatten(1)
        if flat.shape[1] != self.input_size:
            raise ValueError(
                f"pictures must have input_size = {self.input_size} values each, got a batch of "
                f"shape {tuple(images.shape)} with {flat.shape[1]} each"
            )
        activity: dict[str, Tensor] = {}
        # A constant input needs one product, not one a step.
        first, *rest = self.linears
        if self.encoding == "constant":
            spikes, _ = self.neurons[0](first(flat), num_steps=self.num_steps)
        else:
            encode = getattr(codes, self.encoding)
            encoded = encode(flat, self.num_steps, **self.encoding_options)
            spikes, _ = self.neurons[0](first(encoded))
        activity["hidden1"] = spikes
        for k, (linear, neuron) in enumerate(zip(rest, self.neurons[1:]), start=2):
            spikes, _ = neuron(linear(spikes))
            activity[f"hidden{k}"] = spikes
        last = self.linears[-1](spikes)
        output, _ = self.output(last)
        if self.readout in SPIKING_READOUTS:
            activity["output"] = output
        scores = READOUTS[self.readout](output)
        extras = [activity] * return_activity + [output] * return_output
        return (scores, *extras) if extras else scores


def _check_one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
