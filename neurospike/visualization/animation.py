"""A moving picture of a whole network answering one picture, step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from neurospike.errors import MissingDependencyError

from .arrays import Array, evenly, over_time, to_numpy
from .canvas import (
    BLUE,
    GREY,
    RED,
    Canvas,
    bare,
    beyond,
    dots,
    names,
    reach,
    some,
    tidy,
    whole_numbers,
)


class Recorded(Protocol):
    """What `SNNModel.record` returns; see `neurospike.models.Recording`. So does `ns.record`."""

    current: Any
    spikes: dict[str, Any]
    output: Any
    votes: Any


class Animation(Canvas):
    """Draws the network while it answers."""

    def animate(
        self,
        model: Any,
        image: Any | None,
        path: str | Path,
        *,
        label: int | None = None,
        classes: Sequence[Any] | None = None,
        frames_per_second: float = 6.0,
        hold: float = 1.5,
    ) -> Path:
        """Write a GIF or MP4 of the model answering a picture, a frame per time step; its path.

        Shown are the picture, the encoded input of the step, each layer's raster as it grows, the
        output layer's membranes (or spikes), and the scores the network would give if it were
        stopped now, the leader in another colour.

        Args:
            model: with `record(images)` as `SNNModel` has it; or what that, or `ns.record` of a
                network of your own, returned, of which the first sample is shown.
            image: the picture as the model takes it, `[H, W]`, `[1, H, W]` or `[1, 1, H, W]`; None,
                of a recording, shows the mean of its input instead.
            path: ends in `.gif`, or in `.mp4` where the program ffmpeg is installed.
            label: its true class, for the title.
            classes: their names.
            frames_per_second: more than 0.
            hold: seconds that the last frame stays.

        Raises:
            ValueError: another ending, picture or speed.
            MissingDependencyError: matplotlib is not installed, or for MP4 ffmpeg.
        """
        if not frames_per_second > 0 or hold < 0:
            raise ValueError(
                "frames_per_second must be above 0 and hold 0 or more, got "
                f"{frames_per_second!r} and {hold!r}"
            )
        picture = image
        if image is not None:
            picture = image[(0,) * (image.ndim - 2)] if image.ndim > 2 else image
            if picture.ndim != 2:
                raise ValueError(f"image must be [H, W], got shape {tuple(image.shape)}")
            picture = to_numpy("image", picture)
        film = _Film(self, _recorded(model, image), picture, label, classes)
        writer = _writer(Path(path), frames_per_second)
        with writer.saving(film.figure, str(path), film.figure.dpi):
            for step in range(film.steps):
                film.show(step)
                writer.grab_frame()
            for _ in range(round(hold * frames_per_second)):
                writer.grab_frame()
        return Path(path)


class _Film:
    """The figure of the animation; `show` puts it to a time step."""

    def __init__(
        self,
        canvas: Canvas,
        recorded: Recorded,
        picture: Array | None,
        label: int | None,
        classes: Sequence[Any] | None,
    ) -> None:
        self.current = over_time("current", recorded.current, 0)
        self.votes = over_time("votes", recorded.votes, 0)
        output = recorded.output
        if output.ndim == 2:  # of a network that returns no more than scores
            output = output.expand(len(self.votes), *output.shape)
        self.output = over_time("output", output, 0)
        self.step_shape = (1, 1, *recorded.current.shape)[-2:] if recorded.current.ndim > 3 else ()
        self.layers = {name: over_time(name, spikes, 0) for name, spikes in recorded.spikes.items()}
        self.steps, self.classes = self.votes.shape[0], names(self.votes.shape[1], classes)
        self.label = None if label is None else self.classes[label]
        # A film is seen on a screen: half the dots of a printed figure are enough.
        words = 0.08 * beyond(self.classes)  # inches more for their names
        self.figure = canvas._figure(9 + words, max(5.0, 1.25 * len(self.layers)))
        self.figure.set_dpi(max(1, canvas.dpi // 2))
        grid: Any = self.figure.add_gridspec(1, 3, width_ratios=[2, 4, 3.2 + words])
        self._draw_input(grid[0].subgridspec(2, 1), picture)
        self._draw_layers(grid[1].subgridspec(max(1, len(self.layers)), 1))
        self._draw_output(grid[2].subgridspec(2, 1))

    def show(self, step: int) -> None:
        """Draw what has happened up to and with `step`."""
        self.input.set_data(self.current[step].reshape(self.input_shape))
        for marks, (when, which) in self.marks:
            seen = when <= step
            marks.set_data(when[seen], which[seen])
        for line in self.cursors:
            line.set_xdata([step, step])
        for neuron, curve in enumerate(self.curves):
            curve.set_data(np.arange(step + 1), self.output[: step + 1, neuron])
        leader = int(self.votes[step].argmax())
        for place, bar in enumerate(self.bars):
            bar.set_width(self.votes[step, place])
            bar.set_color(RED if place == leader else BLUE)
            self.curves[place].set(
                color=RED if place == leader else GREY,
                linewidth=2.0 if place == leader else 0.8,
                zorder=3 if place == leader else 2,
            )
        truth = "" if self.label is None else f", true class {self.label}"
        self.figure.suptitle(
            f"step {step + 1} of {self.steps}: answer {self.classes[leader]}{truth}", fontsize=11
        )

    def _draw_input(self, grid: Any, picture: Array | None) -> None:
        still = self.figure.add_subplot(grid[0])
        title = "picture" if picture is not None else "mean input"
        if picture is None:
            picture = self.current.mean(0).reshape(self.step_shape or (1, -1))
        square = self.current.shape[1] == picture.size and len(picture) > 1
        aspect: Literal["equal", "auto"] = "equal" if len(picture) > 1 else "auto"
        still.imshow(picture, cmap="gray", interpolation="nearest", aspect=aspect)
        bare(still, title)
        moving = self.figure.add_subplot(grid[1])
        low, high = reach(self.current)
        self.input_shape = picture.shape if square else (1, -1)
        self.input = moving.imshow(
            self.current[0].reshape(self.input_shape),
            cmap="gray",
            vmin=low,
            vmax=high,
            interpolation="nearest",
            aspect="equal" if square else "auto",
        )
        bare(moving, "input of this step")

    def _draw_layers(self, grid: Any) -> None:
        self.marks: list[tuple[Any, tuple[Array, Array]]] = []
        self.cursors = []
        for place, (name, train) in enumerate(self.layers.items()):
            axes = self.figure.add_subplot(grid[place])
            shown = evenly(train.shape[1], 150)
            when, which = np.nonzero(train[:, shown])
            size = float(np.clip(120 / len(shown), 1.5, 6))
            marks = axes.plot([], [], "|", color=BLUE, markersize=size)[0]
            self.marks.append((marks, (when, shown[which])))
            self.cursors.append(axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":"))
            axes.set(xlim=(-0.5, self.steps - 0.5), ylim=(-0.5, train.shape[1] - 0.5))
            last = place == len(self.layers) - 1
            tidy(axes, f"{name}", "time step" if last else "", "neuron")
            whole_numbers(axes, "x", "y")

    def _draw_output(self, grid: Any) -> None:
        above = self.figure.add_subplot(grid[0])
        self.curves = [above.plot([], [], **dots(self.steps))[0] for _ in self.classes]
        margin = 0.05 * float(np.ptp(self.output)) or 1.0
        above.set(
            xlim=(-0.5, self.steps - 0.5),
            ylim=(self.output.min() - margin, self.output.max() + margin),
        )
        tidy(above, "output neurons", "time step", "")
        whole_numbers(above, "x")
        below = self.figure.add_subplot(grid[1])
        self.bars = below.barh(range(len(self.classes)), self.votes[0], color=BLUE)
        below.set_yticks(*some(self.classes, 16))
        below.invert_yaxis()
        below.set_xlim(reach(self.votes))
        below.axvline(0, color=GREY, linewidth=0.8)
        tidy(below, "score so far", "", "class")


def _recorded(model: Any, image: Any | None) -> Recorded:
    """Return what a network did, or the recording that was given. Raises TypeError, ValueError."""
    if hasattr(model, "record"):
        if image is None:
            raise ValueError("a network is shown answering an image, got None")
        recorded: Recorded = model.record(image[(None,) * (4 - image.ndim)])
        return recorded
    if not hasattr(model, "spikes"):
        raise TypeError(
            f"{type(model).__name__} has no record(images); give what it did instead, as in "
            "animate(ns.record(net, x), image, path)"
        )
    if model.current is None:
        raise ValueError(
            "this recording does not know its input over time: record a network that is given all "
            "steps at once, [T, B, *F], or [B, *F] with num_steps="
        )
    found: Recorded = model
    return found


def _writer(path: Path, frames_per_second: float) -> Any:
    ending = path.suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise ValueError(f"path must end in .gif or .mp4, got {str(path)!r}")
    from matplotlib import animation

    name = "pillow" if ending == ".gif" else "ffmpeg"
    if not animation.writers.is_available(name):
        package = "the Python package pillow" if name == "pillow" else "the program ffmpeg"
        instead = "" if name == "pillow" else ", or write a .gif, which needs neither"
        raise MissingDependencyError(f"{ending} needs {package}: install it{instead}")
    # Its stubs ask for whole numbers; its writers divide by them.
    return animation.writers[name](fps=frames_per_second)  # type: ignore[arg-type]
