"""Run the network on one picture with a visitor's options, and pack the result for the browser."""

import base64
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend.dispatch import choose, use_backend
from neurospike.coding.encoding import pixel_order
from neurospike.config.kinds import READING
from neurospike.data import DigitData, load, load_folder
from neurospike.layers.recurrent import Recurrent
from neurospike.models import Recording, SpikingNetwork
from neurospike.models.network import ENCODINGS
from neurospike.training.loading import Trained
from neurospike.visualization.arrays import evenly

MOST_STEPS = 100  # time steps a visitor can ask for, or as many as the network learnt with
COLOURS = 3  # channels of a coloured picture
MOST_ROWS = 256  # neurons of a layer in its raster; a screen shows no more


@dataclass(frozen=True)
class Choice:
    """The options with which one visitor runs the network."""

    coding: str
    num_steps: int
    backend: str = "auto"


class Answerer:
    """One trained network, shared by all visitors and never written to.

    Its methods can be called from several threads at once: each call has its own view of the
    network and its own random numbers.
    """

    def __init__(self, trained: Trained, device: torch.device | str = "cpu") -> None:
        self.trained = trained
        self.device = torch.device(device)

    @property
    def default(self) -> Choice:
        """The coding and number of steps that the network learnt with."""
        model = self.trained.model
        return Choice(model.encoding, model.num_steps)

    @property
    def codings(self) -> tuple[str, ...]:
        """The codings that a visitor can choose from: those that the network can be given."""
        return self.trained.model.codings

    @property
    def reads(self) -> bool:
        """True if the network reads a picture part by part, in a number of steps that is given."""
        return self.trained.model.encoding in READING

    @property
    def most_steps(self) -> int:
        """Time steps that a visitor can ask for; those that the network learnt with always."""
        return max(MOST_STEPS, self.default.num_steps)

    @property
    def description(self) -> str:
        """What network this is, in a line."""
        config = self.trained.config
        learnt = self.default
        layers = self.trained.model.modules()
        back = "recurrent " if any(isinstance(layer, Recurrent) for layer in layers) else ""
        return (
            f"{back}{config.model.kind} network trained on {self.trained.dataset}, {learnt.coding} "
            f"coding, {learnt.num_steps} steps"
        )

    def warm(self) -> None:
        """Run the network once, which compiles its kernels."""
        _ = self.layers

    @cached_property
    def layers(self) -> list[str]:
        """Names of the layers that fire."""
        film = self.answer(torch.zeros(self.trained.config.picture), self.default)
        return [layer["name"] for layer in film["layers"]]

    def answer(self, picture: Tensor, choice: Choice) -> dict[str, Any]:
        """Answer a picture `[C, H, W]` in [0, 1]; return what the page shows, as plain JSON values.

        A picture of one channel may be `[H, W]`. The same picture and choice give the same answer
        every time, and with the network's own coding and steps that of `python -m
        neurospike.predict`. Raises BackendError for a backend that cannot run here, ValueError for
        a choice that `check` refuses.
        """
        self.check(choice)
        view = self._view(choice)
        with use_backend(choice.backend):
            backend = choose("auto", self.device).name
            images = picture.to(self.device).reshape(1, *self.trained.config.picture)
            start = time.perf_counter()
            recording = view.record(images)
            scores = recording.scores[0].float().cpu()  # also waits for a GPU
            milliseconds = 1000 * (time.perf_counter() - start)
        channels, *sides = self.trained.config.picture
        temperature = self.trained.temperature
        confidence = (scores / temperature).softmax(0)
        return {
            "digit": int(scores.argmax()),
            "classes": list(self.trained.classes),
            "confidence": _rounded(confidence),
            "milliseconds": round(milliseconds, 2),
            "backend": backend,
            "coding": choice.coding,
            "learnt": choice.coding == self.default.coding,
            "picture": framed(picture),
            "reading": self._reading(images),
            **_packed(recording, temperature, (channels, *view.preprocessing.size(*sides))),
        }

    def check(self, choice: Choice) -> None:
        """Raise ValueError for an unknown coding, or too many or too few steps."""
        if self.reads and choice.num_steps != self.default.num_steps:
            raise ValueError(
                f"the network reads a picture in {self.default.num_steps} steps, got "
                f"{choice.num_steps}"
            )
        if not 1 <= choice.num_steps <= self.most_steps:
            raise ValueError(f"steps must be 1 to {self.most_steps}, got {choice.num_steps}")
        if choice.coding not in self.codings:
            what = "another network's" if choice.coding in ENCODINGS else "unknown"
            raise ValueError(
                f"{what} coding {choice.coding!r}; choose one of {', '.join(self.codings)}"
            )

    def _reading(self, images: Tensor) -> dict[str, Any] | None:
        """Return the part of the picture that each step reads; None if each step sees all of it.

        `picture`: as the network is given it; `part`: rows and columns of the part; `places`: the
        pixel in its upper left corner at each step, counted row by row.
        """
        if not self.reads:
            return None
        model = self.trained.model
        prepared = model.preprocessing(images)[0, 0].float().cpu()
        height, width = prepared.shape
        if model.encoding == "rows":
            part, places = (1, width), list(range(0, height * width, width))
        else:
            order = pixel_order(height * width, model.encoding_options.get("permute"))
            part, places = (1, 1), order.tolist()
        return {
            "name": "row" if model.encoding == "rows" else "pixel",
            "picture": framed(prepared),
            "part": part,
            "places": places,
        }

    def _view(self, choice: Choice) -> SpikingNetwork:
        """Return the network with the options of this choice; its weights are shared."""
        config = self.trained.config
        options = config.encoding.model_copy(update={"kind": choice.coding}).options()
        if choice.coding == "rate":
            # A generator of its own, not torch's as in prediction: visitors run at the same time.
            generator = torch.Generator(self.device).manual_seed(config.seed)
            options = {**options, "generator": generator}
        return self.trained.model.presented(choice.coding, choice.num_steps, options)


class TestPictures:
    """The test pictures of the network's data set; read at the first look, never downloaded."""

    __test__ = False  # pytest, this is no test

    def __init__(
        self, dataset: str, data_path: str | Path, options: Mapping[str, Any] | None = None
    ) -> None:
        """options: of `load_folder`, for a folder of one's own pictures."""
        self.dataset, self.data_path, self.options = dataset, data_path, dict(options or {})
        self._data: DigitData | None = None
        self._lock = threading.Lock()

    def picture(self, number: int) -> tuple[int, Tensor, int]:
        """Return a picture's number (after the last comes the first), pixels `[C, H, W]`, label.

        Raises DataError if the data are not there.
        """
        with self._lock:
            if self._data is None:
                if self.dataset == "folder":
                    self._data = load_folder(self.data_path, **self.options)
                else:
                    self._data = load(self.dataset, self.data_path, download=False)
        test = self._data.test
        number %= len(test)
        picture = test.images[number].float().div(255).view(test.shape)
        return number, picture, int(test.labels[number])


def framed(picture: Tensor) -> dict[str, Any]:
    """A picture `[H, W]` or `[C, H, W]` as the browser takes it."""
    frames = picture if picture.ndim == 3 else picture[None]
    packed = _frames(frames)
    # `_frames` counted the channels as frames.
    return {**packed, "count": 1, "coloured": packed["count"] == COLOURS}


def _packed(
    recording: Recording, temperature: float, shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Return a recording as the browser takes it; shape: of the picture that was encoded."""
    output, votes = recording.output[:, 0].float().cpu(), recording.votes[:, 0].float().cpu()
    return {
        "steps": len(output),
        "input": _input(recording.current[:, 0].float().cpu(), shape),
        "layers": [_layer(name, spikes[:, 0].cpu()) for name, spikes in recording.spikes.items()],
        "output": _rounded(output),
        "readout": recording.readout,
        # The confidence if the network were stopped after each step.
        "votes": _rounded((votes / temperature).softmax(1)),
    }


def _input(current: Tensor, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the encoded input `[T, *F]` as frames; only one where it is the same at every step.

    A pixel of a picture with channels shows whether any of them spikes, or else their mean.
    """
    if shape[0] > 1:
        current = current.reshape(len(current), *shape)
        spikes = bool(((current == 0) | (current == 1)).all())
        current = current.amax(1) if spikes else current.mean(1)
    elif current.ndim == 2:
        side = round(current.shape[1] ** 0.5)
        square = side * side == current.shape[1]
        current = current.unflatten(1, (side, side) if square else (1, current.shape[1]))
    frames = current.reshape(len(current), -1, current.shape[-1])
    constant = bool((frames == frames[:1]).all())
    return {
        **_frames(frames[:1] if constant else frames),
        "spiking": bool(((frames == 0) | (frames == 1)).all()) and not constant,
        "spikes": [] if constant else [int(frame.count_nonzero()) for frame in frames],
    }


def _frames(frames: Tensor) -> dict[str, Any]:
    """Pictures `[K, H, W]` as bytes, 0 black and 255 the brightest of them all."""
    low, high = float(frames.min()), float(frames.max())
    levels = ((frames - low) / max(high - low, 1e-9) * 255).round().byte().cpu().numpy()
    count, height, width = frames.shape
    return {
        "count": count,
        "height": height,
        "width": width,
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }


def _layer(name: str, spikes: Tensor) -> dict[str, Any]:
    """A layer's spikes `[T, *F]`: which of the neurons shown fire at each step, and the rates."""
    fired = spikes.flatten(1).bool().numpy()
    steps, neurons = fired.shape
    shown = evenly(neurons, MOST_ROWS)
    counts = fired.sum(1)
    return {
        "name": name,
        "neurons": neurons,
        "rows": len(shown),
        "spikes": [np.flatnonzero(row).tolist() for row in fired[:, shown]],
        "counts": counts.tolist(),
        "rate": float(counts.sum() / (steps * neurons)),
    }


def _rounded(values: Tensor) -> Any:
    """Return values as lists, rounded to five decimals: the page shows fewer."""
    return values.double().mul(1e5).round().div(1e5).tolist()
