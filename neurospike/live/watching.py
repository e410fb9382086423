"""Follow a training run by the files in its folder, which are only read, and never waited for."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from neurospike.errors import CheckpointError, NeuroSpikeError
from neurospike.training.loading import Trained, check_sees_pictures, load_trained

INTERVAL = 0.8  # seconds between two looks at the files, however many visitors watch
# Seconds until the next look after one that found news. A browser takes some 100 ms to draw it, and
# on a small machine takes them from the training.
PAUSE = 10.0


class Tail:
    """The records of a `metrics.jsonl` that grows; each line is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._offset = 0
        self._file = -1  # its number on the disk

    def read(self) -> bool:
        """Read what is new; True if there is anything. Raises OSError without the file.

        A half-written line is left until it is whole, a line that is not a record is skipped, and a
        file that was replaced, as by a run that is resumed, is read from its start.
        """
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            changed = status.st_ino != self._file or status.st_size < self._offset
            if changed:
                self.rows, self._offset, self._file = [], 0, status.st_ino
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines = whole.splitlines()
        self.rows = [*self.rows, *filter(None, map(_record, lines))]
        return changed or bool(lines)


class WatchedRun:
    """A run folder as it is now. Its methods can be called from several threads at once.

    records: how often there were new records; models: how often a new network. problem: why
    nothing new can be read, or None.
    """

    def __init__(self, folder: str | Path) -> None:
        """folder: a run's, or one of runs, which means the newest. Raises NeuroSpikeError."""
        self.folder = run_in(Path(folder))
        self.records = 0
        self.models = 0
        self.trained: Trained | None = None
        self.problem: str | None = None
        self._tail = Tail(self.folder / "metrics.jsonl")
        self._stamp: tuple[int, int] | None = None
        self._next_look = 0.0
        self._lock = threading.Lock()

    def look(self) -> None:
        """Read what the run has written, at most once per `INTERVAL`, or per `PAUSE` after news."""
        with self._lock:
            if time.monotonic() < self._next_look:
                return
            before = self.records, self.models
            self.problem = self._look()
            news = (self.records, self.models) != before
            self._next_look = time.monotonic() + (PAUSE if news else INTERVAL)

    def _look(self) -> str | None:
        if not self.folder.is_dir():
            return f"the run folder {self.folder} is gone; what was read of it is shown"
        try:
            self.records += self._tail.read()
            self._load_newest()
        except FileNotFoundError:
            return None  # it has written nothing yet
        except (CheckpointError, OSError) as error:
            return str(error)
        return None

    def _load_newest(self) -> None:
        path = self.folder / "checkpoints" / "last.pth"
        status = path.stat()
        stamp = status.st_ino, status.st_mtime_ns
        if stamp != self._stamp:
            trained = load_trained(path)
            check_sees_pictures(trained, path)
            self.trained = trained
            self._stamp = stamp
            self.models += 1

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of validations: one an epoch, or more."""
        return [row for row in self._tail.rows if row.get("kind") in ("epoch", "step")]

    @property
    def state(self) -> str:
        """How far the run is, in a line."""
        rows, epochs = self._tail.rows, self.epochs
        tests = [row for row in rows if row.get("kind") == "test"]
        if tests:
            return f"finished: test accuracy {tests[-1].get('accuracy', 0):.2%}"
        if not epochs:
            return "waiting for the first epoch" if rows else "waiting for the run to start"
        last, wanted = epochs[-1], self._wanted()
        known = last.get("validation_accuracy", last.get("train_accuracy", 0))
        of = f" of {wanted}" if wanted else ""
        done = "epoch" if last["kind"] == "epoch" else f"step {last.get('step')} in epoch"
        return f"{done} {last.get('epoch')}{of} done, accuracy {known:.2%}"

    def curves(self) -> dict[str, dict[str, list[list[float]]]]:
        """`{chart: {curve: [[epoch, value], ...]}}` of loss, accuracy, rates, learning rate."""
        charts: dict[str, dict[str, list[list[float]]]] = {
            "loss": {},
            "accuracy": {},
            "spikes per neuron and step": {},
            "learning rate": {},
        }
        for row in self.epochs:
            at = _epochs_done(row, self.epochs)
            for part in ("train", "validation"):
                for name in ("loss", "accuracy"):
                    _add(charts[name], part, at, row.get(f"{part}_{name}"))
            for layer, rate in (row.get("spike_rates") or {}).items():
                _add(charts["spikes per neuron and step"], layer, at, rate)
            _add(charts["learning rate"], "learning rate", at, row.get("learning_rate"))
        return charts

    def _wanted(self) -> int | None:
        """The number of epochs asked for, if the run's config tells it."""
        import yaml

        try:
            config = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
            return config["training"]["epochs"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return None


def run_in(folder: Path) -> Path:
    """The run folder meant: `folder` itself, or the newest of those in it.

    Raises NeuroSpikeError if there is none.
    """
    if not folder.is_dir():
        raise NeuroSpikeError(
            f"--watch {folder}: no such folder; start python -m neurospike.train first, which "
            "names its run folder"
        )
    runs = [path.parent for path in folder.glob("*/metrics.jsonl")]
    if (folder / "metrics.jsonl").exists() or not runs:
        return folder
    return max(runs, key=lambda run: (run / "metrics.jsonl").stat().st_mtime)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # the process was killed while it wrote
        return None
    return row if isinstance(row, dict) else None


def _epochs_done(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """Return a record's place on the axis in epochs, with a fraction for one within an epoch."""
    if row["kind"] == "epoch":
        return float(row.get("epoch", 0))
    whole = next((other for other in rows if other["kind"] == "epoch"), None)
    steps = whole["step"] / whole["epoch"] if whole else None
    return round(row["step"] / steps, 3) if steps else float(row.get("epoch", 0))


def _add(chart: dict[str, list[list[float]]], name: str, at: float, value: Any) -> None:
    if isinstance(value, int | float):
        chart.setdefault(name, []).append([at, value])
