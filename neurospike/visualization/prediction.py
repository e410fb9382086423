"""The picture of what a network saw, thought and fired: `predict --plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neurospike.errors import ConfigError, MissingDependencyError, NeuroSpikeError

from .canvas import beyond, entitle, save, some
from .spikes import SpikePlots

if TYPE_CHECKING:
    from neurospike.predict import Prediction

MOST_ROWS = 8
CHOSEN, OTHER = "#D55E00", "#0072B2"  # two of Okabe and Ito's, told apart by everyone


def check_plot(path: str | Path) -> None:
    """Raise NeuroSpikeError if nothing could be drawn into this file, before there is anything."""
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
    rows: "Sequence[tuple[Prediction, Tensor, dict[str, Tensor]]]",
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
        colors = [CHOSEN if k == prediction.digit else OTHER for k in places]
        bars.bar(places, prediction.confidence, color=colors)
        bars.set(ylim=(0, 1), xlabel="answer", ylabel="confidence")
        words = {"rotation": 45, "ha": "right"} if max(map(len, classes)) > 2 else {}
        bars.set_xticks(*some(classes, 20), **words)
        bars.set_title(prediction.label, fontsize=9, color=CHOSEN)
        name, layer = next(iter(spikes.items()))
        SpikePlots()._raster(raster, layer.cpu().numpy())
        raster.set_title(f"{name}: {int(layer.sum())} spikes", fontsize=9)
        bars.spines[["top", "right"]].set_visible(False)
    try:
        save(figure, path, dpi=120)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise NeuroSpikeError(f"{path}: cannot draw into this file: {reason}") from None
