"""The figure of `predict --plot`: what a network saw, its confidences and its spikes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from neurospike.errors import ConfigError, MissingDependencyError, NeuroSpikeError

from .canvas import BLUE, RED, beyond, entitle, save, some
from .spikes import SpikePlots

MOST_ROWS = 8  # pictures in one figure


class Predicted(Protocol):
    """What is drawn of a prediction; see `neurospike.predict.Prediction`."""

    @property
    def path(self) -> str:
        """The picture's file."""

    @property
    def digit(self) -> int:
        """The number of the class that was answered."""

    @property
    def label(self) -> str:
        """What that class is called."""

    @property
    def confidence(self) -> list[float]:
        """One number per class, 1 in all."""


def check_plot(path: str | Path) -> None:
    """Raise NeuroSpikeError if a figure could not be written to this file, before one is made."""
    path = Path(path)
    figure_type, canvas_type = _matplotlib()
    formats = canvas_type(figure_type()).get_supported_filetypes()
    ending = path.suffix.lower().removeprefix(".")
    if ending not in formats:
        raise ConfigError(
            f"--plot {path}: got the ending {path.suffix!r}, allowed: {', '.join(sorted(formats))}"
        )
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise NeuroSpikeError(f"{path}: cannot draw into this file: {reason}")


def _matplotlib() -> tuple[Any, Any]:
    """A figure's and a canvas's type."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"--plot needs matplotlib ({error}): pip install matplotlib"
        ) from error
    return Figure, FigureCanvasAgg


def draw_predictions(
    rows: Sequence[tuple[Predicted, Tensor, dict[str, Tensor]]],
    path: str | Path,
    classes: Sequence[str],
) -> None:
    """Draw a row per picture: the pixels that the network saw, confidences, first layer's spikes.

    rows: predictions with pictures `[C, H, W]` and spikes `[T, N]` by layer; classes: their names.
    Raises MissingDependencyError without matplotlib, NeuroSpikeError for a file it cannot write.
    """
    figure_type, canvas_type = _matplotlib()
    figure = figure_type(
        figsize=(10, (2.6 + 0.08 * beyond(classes)) * len(rows)), layout="constrained"
    )
    canvas_type(figure)
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=[1, 1.6, 2.4])
    for (prediction, picture, spikes), (seen, bars, raster) in zip(rows, grid, strict=True):
        seen.imshow(picture.movedim(0, -1).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        seen.set_xticks([])
        seen.set_yticks([])
        entitle(seen, Path(prediction.path).name, 9)
        places = list(range(len(classes)))
        colors = [RED if k == prediction.digit else BLUE for k in places]
        bars.bar(places, prediction.confidence, color=colors)
        bars.set(ylim=(0, 1), xlabel="answer", ylabel="confidence")
        words = {"rotation": 45, "ha": "right"} if max(map(len, classes)) > 2 else {}
        bars.set_xticks(*some(classes, 20), **words)
        bars.set_title(prediction.label, fontsize=9, color=RED)
        name, layer = next(iter(spikes.items()))
        SpikePlots()._raster(raster, layer.cpu().numpy())
        raster.set_title(f"{name}: {int(layer.sum())} spikes", fontsize=9)
        bars.spines[["top", "right"]].set_visible(False)
    try:
        save(figure, path, dpi=120)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise NeuroSpikeError(f"{path}: cannot draw into this file: {reason}") from None
