"""The picture of a training run, drawn from its `metrics.jsonl` alone."""

import json
from pathlib import Path
from typing import Any

from neurospike.visualization import SpikeVisualizer


def draw_curves(folder: str | Path) -> Path:
    """Draw loss and accuracy by epoch into `training_curves.png` of a run folder; its path.

    The axis of the loss is called what the run minimised, `training.loss` or the criterion's name.
    Raises MissingDependencyError without matplotlib, OSError for a file that cannot be written.
    """
    folder = Path(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    epochs = [record for record in records if record["kind"] == "epoch"]
    tests = [record for record in records if record["kind"] == "test"]
    figure, _ = SpikeVisualizer().plot_training_history(
        epochs, test=tests[-1] if tests else None, loss=_loss_of(records)
    )
    path = folder / "training_curves.png"
    figure.savefig(path)
    return path


def _loss_of(records: list[dict[str, Any]]) -> str:
    """Return the name of what the run minimised; `"loss"` where it has none, as a lambda."""
    names = [record.get("criterion") for record in records]
    return next((name for name in names if name and not name.startswith("<")), "loss")
