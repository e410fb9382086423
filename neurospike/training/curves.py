"""The picture of a training run, drawn from its `metrics.jsonl` alone."""

import json
from pathlib import Path
from typing import Any

from neurospike.errors import MissingDependencyError

# Two of Okabe and Ito's colours, told apart under every colour blindness; the markers differ
# too, so that the picture can be read in grey.
TRAINING = {"color": "#0072B2", "marker": "o", "label": "training"}
VALIDATION = {"color": "#D55E00", "marker": "s", "label": "validation"}


def draw_curves(folder: str | Path) -> Path:
    """Draw loss and accuracy by epoch into `training_curves.png` of a run folder; its path.

    Raises MissingDependencyError without matplotlib, OSError for a file that cannot be written.
    """
    try:
        # Not pyplot, which would choose a window system and keep state for the whole process.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError(
            f"no training_curves.png: it needs matplotlib ({error}): pip install matplotlib"
        ) from error

    folder = Path(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "epoch"]
    tests = [row for row in map(json.loads, lines) if row["kind"] == "test"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for axes, name, unit, scale in (
        (loss, "loss", "cross-entropy", 1),
        (accuracy, "accuracy", "accuracy (%)", 100),
    ):
        _draw(axes, rows, name, scale)
        if name == "accuracy" and tests:
            value = scale * tests[-1][name]
            axes.axhline(value, color="#555555", linestyle=":", label=f"test {value:.2f}%")
        axes.set(xlabel="epoch", ylabel=unit, title=name.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path = folder / "training_curves.png"
    figure.savefig(path, dpi=150)
    return path


def _draw(axes: Any, rows: list[dict[str, Any]], name: str, scale: float) -> None:
    for part, style in (("train", TRAINING), ("validation", VALIDATION)):
        key = f"{part}_{name}"
        points = [(row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), markersize=4, linewidth=1.8, **style)
