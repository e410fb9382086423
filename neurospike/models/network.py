"""The base of the networks: preprocessing and encoding of pictures, and the readout of scores."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from neurospike.coding import encoding as codes
from neurospike.coding.intensities import FAR, can_look, check_finite, extremes, is_whole
from neurospike.coding.losses import READOUTS, SPIKING_READOUTS
from neurospike.config.kinds import READING, reading_steps
from neurospike.data.preprocessing import Preprocessing
from neurospike.layers.lif import LI, LIF
from neurospike.layers.spike_linear import format_for
from neurospike.layers.states import truncate
from neurospike.ops.arguments import check_lengths, refuse_ragged

from .parts import (
    INITIALIZATIONS,
    NeuronOptions,
    check_one_of,
    check_options,
    initialize,
    over_steps,
    side_of,
)
from .recording import Recording

WHOLE = ("constant", "rate", "latency", "delta", "phase", "burst")  # show the picture at every step
ENCODINGS = (*WHOLE, *READING, "none")
COMPACT = ("rate", "latency")  # those that can return spikes of one byte


class SpikingNetwork(nn.Module):
    """Base of the networks; a network is its layers, among them `output`, and `_answer`.

        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    Args:
        num_steps: time steps a picture is shown; None: 25, or as the picture has them.
        preprocessing: steps that `neurospike.data.Preprocessing` takes, done to the pictures first;
            random ones in training mode only.
        encoding: `"constant"` current, `"rate"` (Poisson-like spike trains, drawn from torch's
            global generator), `"latency"` (one spike a pixel, brighter first), `"delta"`, `"phase"`
            or `"burst"`: a function of `neurospike.encoding`. Networks that say so in `encodings`
            also read a picture by `"rows"` or `"pixels"`, in as many steps as it has of these, and
            by `"none"` take sequences, which have steps of their own.
        encoding_options: further arguments of that function.
        readout: the scores are the output neurons' `"membrane"`, leaky integrators that never
            fire, averaged over time; the highest they reach, `"max_membrane"`; the number of the
            output neurons' `"spikes"`; or how early their `"first_spike"` is
            (`neurospike.coding.losses`).
        init: first weights, `"torch"`, `"kaiming"` or `"fluctuation"`; see `parts.initialize`.
        neuron: options of the hidden layers, see `neurospike.LIF`: `beta` (default 0.95),
            `threshold`, `surrogate`, `reset`, `reset_delay`, `detach_reset`, `grad_window`,
            `learn_beta` and `learn_threshold`.

    Raises:
        ValueError: an unknown encoding, readout or `init`, an encoding that the network cannot
            take, or a number of steps below 1 or other than the picture's.
    """

    output: LI | LIF
    encodings: ClassVar[tuple[str, ...]] = WHOLE  # those that the class can be made with

    def __init__(
        self,
        num_steps: int | None,
        preprocessing: Any,
        encoding: str,
        encoding_options: Mapping[str, Any] | None,
        readout: str,
        init: str,
        neuron: NeuronOptions,
    ) -> None:
        super().__init__()
        check_options(type(self), neuron)
        check_one_of("encoding", encoding, ENCODINGS)
        if encoding not in self.encodings:
            raise ValueError(
                f"{type(self).__name__} sees whole pictures at every step and cannot read them by "
                f"{encoding}; use SNNModel, or one of {', '.join(self.encodings)}"
            )
        if encoding == "none" and preprocessing:
            raise ValueError(
                "preprocessing is for pictures, and a network with encoding 'none' takes sequences "
                "as they are: leave it out"
            )
        check_one_of("readout", readout, tuple(READOUTS))
        self.num_steps = _check_steps(25 if num_steps is None else num_steps)
        self.readout = readout
        try:
            self.preprocessing = Preprocessing(preprocessing)
        except ValueError as error:
            raise ValueError(f"preprocessing: {error}") from None
        self.encoding = encoding
        self.encoding_options = _options_of(encoding, encoding_options)
        check_one_of("init", init, INITIALIZATIONS)
        self._init = init
        self._neuron: NeuronOptions = {"beta": 0.95, **neuron}

    def forward(
        self,
        images: Tensor,
        return_activity: bool = False,
        return_output: bool = False,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Any:
        """Return scores `[B, output_size]`; with `return_activity` also the spikes of each layer.

        Scores are float32, or float64 of a float64 network.

        Args:
            images: `[B, 1, H, W]` or `[B, H, W]`, floating point in [0, 1]; `SNNModel` takes
                `[B, *]` too, if it has no preprocessing. With the encoding `"none"` sequences
                `[T, B, *F]` of any finite numbers, such as counts of events, also bool and uint8.
            return_activity: also return `{layer: spikes [T, B, *F]}`; a membrane readout has no
                spikes and is left out.
            return_output: return as the last the output neurons' membranes or spikes at every
                step, `[T, B, output_size]`, of which the readout makes the scores.
            lengths: with the encoding `"none"`, how many of the T steps belong to each sample:
                integers `[B]` from 0 to T. A sample's scores are those that it would get alone,
                without the steps beyond its end. Default: all steps.

        Raises:
            TypeError: pictures that are not floating point.
            ValueError: NaN or infinity, values beyond 32, such as those of pictures of 0..255, or
                what the coding has no spikes for; see `neurospike.encoding`. Lengths of pictures,
                or that do not fit the sequences.
        """
        answer = self._run(images, lengths)
        extras = [answer.spikes] * return_activity + [answer.output] * return_output
        return (answer.scores, *extras) if extras else answer.scores

    @torch.no_grad()
    def record(self, images: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Recording:
        """Answer pictures as `forward` does, and keep all that happened on the way."""
        return self._run(images, lengths)

    @property
    def codings(self) -> tuple[str, ...]:
        """The encodings that this network, as it is, can be presented pictures in."""
        return WHOLE if self.encoding in WHOLE else (self.encoding,)

    def presented(
        self, encoding: str, num_steps: int, encoding_options: Mapping[str, Any] | None = None
    ) -> Self:
        """Return this network, its layers and weights shared, that sees pictures in another code.

        encoding, num_steps, encoding_options: as above. This one stays as it is, so that each
        thread can look at its own. Raises ValueError as the class does, for an encoding that is
        none of `codings`, and for other steps than the picture has where it is read by parts.
        """
        check_one_of("encoding", encoding, ENCODINGS)
        num_steps = _check_steps(num_steps)
        if encoding not in self.codings:
            raise ValueError(
                f"the network learnt to see pictures by {self.encoding} and cannot be given "
                f"{encoding}, for which its first layer has other inputs; choose one of "
                f"{', '.join(self.codings)}"
            )
        if encoding in READING and num_steps != self.num_steps:
            raise ValueError(
                f"the network reads a picture by {encoding} in {self.num_steps} steps, got "
                f"{num_steps}"
            )
        other = copy.copy(self)
        other.encoding, other.num_steps = encoding, num_steps
        other.encoding_options = _options_of(encoding, encoding_options)
        return other

    def truncate(self, segment: int | None) -> None:
        """Let gradients flow back through `segment` steps at most; None, as at first: through all.

        Answers stay the same: membranes are carried from segment to segment, only their gradient
        is not. Nor is less memory needed: the loss is of the whole answer. Raises ValueError for a
        segment below 1.
        """
        truncate(self, segment)

    def _run(self, images: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Recording:
        own: dict[str, Any] = {}
        if self.encoding == "none":
            _check_sequences(images)
            if lengths is not None:
                own["lengths"] = check_lengths(lengths, images, -1)
        else:
            _check_images(images)
            if lengths is not None:
                raise ValueError(
                    f"lengths are for sequences, and this network shows pictures by "
                    f"{self.encoding}: leave them out, or make it with encoding='none'"
                )
            images = self.preprocessing(images.unsqueeze(1) if images.ndim == 3 else images)
        answer: Callable[..., tuple[Tensor, dict[str, Tensor], Tensor]] = self._answer
        encoded, activity, last = answer(images, **own)
        output, _ = self.output(last, **own)
        if self.readout in SPIKING_READOUTS:
            activity["output"] = output
        scores = READOUTS[self.readout](output, **own)
        return Recording(encoded, activity, output, scores, self.readout, **own)

    def _answer(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the encoded input, the spikes of each layer, and the output's current.

        A network that takes the encoding `"none"` is also given the `lengths`, if there are any.
        """
        raise NotImplementedError("a network needs _answer; see neurospike/models/mlp.py")

    def _neurons(self) -> LIF:
        return LIF(**self._neuron)

    def _output_neurons(self) -> LI | LIF:
        if self.readout in SPIKING_READOUTS:
            return self._neurons()
        return LI(self._neuron["beta"], self._neuron.get("learn_beta", False))

    def _initialized(self, layer: Any, first: bool = False) -> Any:
        """Return a linear or convolutional layer with its first weights drawn."""
        constant = first and self.encoding == "constant"
        beta, threshold = self._neuron["beta"], self._neuron.get("threshold", 1.0)
        initialize(layer, self._init, beta, threshold, constant)
        return layer

    def _encode(self, images: Tensor, layer: nn.Module) -> Tensor:
        """Return the encoded pictures, in the number format in which `layer` takes spikes."""
        if self.encoding == "none":
            check_finite("a network", images)
            return images
        options = self.encoding_options
        if self.encoding in COMPACT:
            dtype = format_for(layer, images.device, images.dtype)
            options = {"dtype": dtype, **options}
        steps = () if self.encoding in READING else (self.num_steps,)
        return getattr(codes, self.encoding)(images, *steps, **options)

    def _reads(self, input_size: int, num_steps: int | None) -> int:
        """Return the number of inputs per step; set `num_steps` where the picture is read by parts.

        num_steps: the argument of the network. Raises ValueError if the picture has other steps.
        """
        if self.encoding not in READING:
            return input_size
        width = side_of(input_size) if self.encoding == "rows" else 1
        steps = reading_steps(self.encoding, input_size)
        if num_steps not in (None, steps):
            raise ValueError(
                f"encoding {self.encoding!r} reads a picture of {input_size} pixels in {steps} "
                f"steps, got num_steps={num_steps}: leave it out"
            )
        self.num_steps = steps
        return width

    def _enter(self, images: Tensor, layer: nn.Module) -> tuple[Tensor, dict[str, Any]]:
        """Return the encoded pictures, and the keyword arguments for the first neurons.

        A constant input passes the first layer once, not once per step.
        """
        encoded = self._encode(images, layer)
        if self.encoding == "constant":
            return encoded, {"current": layer(images), "num_steps": self.num_steps}
        return encoded, {"current": over_steps(layer, encoded)}


def _options_of(encoding: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of an encoding's options. Raises TypeError for those that it does not have."""
    if not isinstance(options, Mapping | None):
        raise TypeError(
            f"encoding_options must be a mapping of the encoding's options by name, got {options!r}"
        )
    every = inspect.signature(getattr(codes, encoding)).parameters if encoding != "none" else ()
    known = [name for name in every if name not in ("data", "num_steps")]
    for name in options or {}:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"encoding_options: {encoding} has no option {name!r}; {has}")
    return dict(options or {})


def _check_steps(num_steps: int) -> int:
    if not is_whole(num_steps):
        raise TypeError(f"num_steps must be a whole number, got {num_steps!r}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return int(num_steps)


def _check_sequences(sequences: Tensor) -> None:
    """Raise TypeError or ValueError for sequences that the first layer cannot take."""
    refuse_ragged("the input", sequences)
    compact = (torch.bool, torch.uint8)
    if not isinstance(sequences, Tensor) or not (
        sequences.is_floating_point() or sequences.dtype in compact
    ):
        found = sequences.dtype if isinstance(sequences, Tensor) else type(sequences).__name__
        raise TypeError(
            f"sequences must be tensors [T, B, *F] of bool, uint8 or floating point, got {found}: "
            "use .float()"
        )
    if sequences.ndim < 3 or not len(sequences):
        raise ValueError(
            "sequences must be [T, B, *F] with at least one step, got the shape "
            f"{list(sequences.shape)}"
        )


def _check_images(images: Tensor) -> None:
    """Raise TypeError unless pictures are floating point, ValueError if they seem to be 0..255."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"pictures must be a floating-point tensor in [0, 1], got {found}: for pictures of "
            "0..255 divide by 255, as in images / 255"
        )
    low, high = extremes(images) if can_look(images) else (0.0, 0.0)
    if low < -FAR or high > FAR:
        raise ValueError(
            f"pictures must lie in [0, 1], got values from {low:g} to {high:g}: for pictures of "
            "0..255 divide by 255, as in images / 255"
        )
