"""Networks that recognise digits. They encode their pictures themselves and know no backend."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import encoding as codes
from .data.preprocessing import Preprocessing
from .layers import LI, LIF
from .losses import READOUTS, SPIKING_READOUTS
from .surrogate import Surrogate

ENCODINGS = ("constant", "rate", "latency", "delta", "phase", "burst")


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
        if self.readout == "max_membrane":
            return self.output.cummax(0).values
        if self.readout == "first_spike":
            return -(1 - self.output).cumprod(0).cumsum(0)
        total = self.output.cumsum(0)
        if self.readout == "spikes":
            return total
        steps = torch.arange(1, len(total) + 1, dtype=total.dtype, device=total.device)
        return total / steps[:, None, None]


class SNNModel(nn.Module):
    """A fully connected spiking network: linear and LIF layers, then a readout.

        model = SNNModel(input_size=784, hidden_size=256, output_size=10)
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    Args:
        input_size: pixels a picture.
        hidden_size: neurons of the hidden layer, or a list of them, one a layer.
        output_size: classes.
        num_steps: time steps a picture is shown.
        preprocessing: steps that `neurospike.data.Preprocessing` takes, done to the pictures first;
            random ones in training mode only.
        encoding: `"constant"` current, `"rate"` (Poisson-like spike trains, drawn from torch's
            global generator), `"latency"` (one spike a pixel, brighter first), `"delta"`, `"phase"`
            or `"burst"`: a function of `neurospike.encoding`.
        encoding_options: further arguments of that function.
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
        preprocessing: Any = (),
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
        self.preprocessing = Preprocessing(preprocessing)
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
        recording = self._run(images)
        extras = [recording.spikes] * return_activity + [recording.output] * return_output
        return (recording.scores, *extras) if extras else recording.scores

    @torch.no_grad()
    def record(self, images: Tensor) -> Recording:
        """Answer pictures `[B, *]` as `forward` does, and keep all that happened on the way."""
        return self._run(images)

    def _run(self, images: Tensor) -> Recording:
        flat = self.preprocessing(images).flatten(1)
        if flat.shape[1] != self.input_size:
            raise ValueError(
                f"pictures must have input_size = {self.input_size} values each, got a batch of "
                f"shape {tuple(images.shape)} with {flat.shape[1]} each after preprocessing"
            )
        activity: dict[str, Tensor] = {}
        encode = getattr(codes, self.encoding)
        encoded = encode(flat, self.num_steps, **self.encoding_options)
        first, *rest = self.linears
        # A constant input needs one product, not one a step.
        if self.encoding == "constant":
            spikes, _ = self.neurons[0](first(flat), num_steps=self.num_steps)
        else:
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
        return Recording(encoded, activity, output, scores, self.readout)


def _check_one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
