"""The picture of a training run, drawn from its `metrics.jsonl` alone."""

import json
from pathlib import Path

from neurospike.visualization import SpikeVisualizer


def draw_curves(folder: str | Path) -> Path:
    """Draw loss and accuracy by epoch into `training_curves.png` of a run folder; its path.

    Raises MissingDependencyError without matplotlib, OSError for a file that cannot be written.
    """
    folder = Path(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    epochs = [record for record in records if record["kind"] == "epoch"]
    tests = [record for record in records if record["kind"] == "test"]
    figure, _ = SpikeVisualizer().plot_training_history(epochs, test=tests[-1] if tests else None)
    path = folder / "training_curves.png"
    figure.savefig(path)
    return path
