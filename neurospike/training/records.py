"""The run folder: all that is needed to judge a training run, and to repeat it.

It holds `config.yaml`, the configuration; `metrics.jsonl`, whose first line says what the run ran
on, then a line per epoch, and last the test; `checkpoints/best_model.pth` and
`checkpoints/last.pth`; `training_curves.png` and the pictures of `neurospike.training.pictures`.
"""

import filecmp
import functools
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from neurospike.errors import CheckpointError, NeuroSpikeError, needed_by

from .checkpoint import copy_checkpoint, load_checkpoint, replace_file, save_checkpoint

try:
    import fcntl
except ImportError:  # not on Windows; runs are then not kept apart
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("neurospike", "torch", "torchvision", "snntorch", "numba", "triton", "numpy")


class Run:
    """One training run's folder. No two runs share one.

    folder: explicit; one that holds a run already, or any of its files, is refused. None:
    `runs/<YYYYmmdd-HHMMSS>`, with a number behind it should two start in the same second.
    config: plain dict, kept as `config.yaml` and in each checkpoint. record: facts to put
    beside the versions in the first line of `metrics.jsonl` and in each checkpoint. published:
    where to keep a copy of this run's best model, None for nowhere; a line tells of the first copy.
    A model that only guesses (`Metrics.guessing`) replaces none there.
    resumed: the folder holds this run already, and `go_on` is called before anything is written.
    Raises NeuroSpikeError for a folder that is in use or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        config: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
        published: str | Path | None = None,
        resumed: bool = False,
    ) -> None:
        with needed_by("a run folder", "pyyaml"):
            import yaml
        self.config = dict(config)
        self.record = dict(record or {})
        self.published = None if published is None else Path(published)
        self.has_published = False
        self.is_last_within = False  # whether `last` was saved within an epoch
        self.resumed = resumed
        text = yaml.safe_dump(self.config, sort_keys=False)
        try:
            if resumed:
                self.folder = Path(str(folder))
            else:
                self.folder = (
                    _default_folder(Path("runs")) if folder is None else _claim(Path(folder))
                )
            self._lock = _lock(self.folder)
            if not resumed:
                (self.folder / "config.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise NeuroSpikeError(
                f"cannot write the run folder {folder or 'runs'}: {error.strerror}; give another "
                "--run_dir"
            ) from error
        if not resumed:
            self.log("run", **environment(), **self.record)

    def go_on(
        self, history: Sequence[Mapping[str, Any]], step: int, start: str | Path | None = None
    ) -> None:
        """Make the folder what it was after `step`, whatever was written or half written since.

        history: the records up to then. Where the best model was not yet copied it is now.
        start: the checkpoint gone on from, which becomes the best if that cannot be read.
        """
        for left in (
            *self.folder.glob(".metrics.jsonl.*"),
            *(self.folder / "checkpoints").glob(".*.pth.*"),
        ):
            left.unlink(missing_ok=True)  # the temporary file of a save that was cut off
        path = self.folder / "metrics.jsonl"
        # Bytes that are not text are dropped with all lines that are not records.
        written = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = written.splitlines()
        starts = [line for line in lines if _kind(line) in ("run", "resume")]
        resumed = {"kind": "resume", "step": step, **environment(), **self.record}
        rows = [*starts, *map(_line, history), _line(resumed)]
        replace_file(path, ("\n".join(rows) + "\n").encode())
        # What another run has published since is left alone.
        self.has_published = _are_equal(self.published, self.best)
        last = _read(self.last)  # if it cannot be read, `newest_state` has said why
        self.is_last_within = _is_within(last)
        if last is not None and last.get("waited") == 0:
            self._keep_best(last, self.last)
        elif start is not None and history and _read(self.best) is None:
            self._keep_best(load_checkpoint(start), Path(start))

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self.folder / "checkpoints" / "best_model.pth"

    @property
    def last(self) -> Path:
        """The checkpoint of the last check: at the end of an epoch, or by `check_every` in one."""
        return self.folder / "checkpoints" / "last.pth"

    @property
    def interrupted(self) -> Path:
        """The state at Ctrl-C, in the middle of an epoch; `last` stays that of a check."""
        return self.folder / "checkpoints" / "interrupted.pth"

    def kept(self) -> str:
        """Return where an interrupted run is kept, in words; empty if nothing is."""
        what = "check" if self.is_last_within else "whole epoch"
        last = f"the last {what} in {self.last.name}" if self.last.exists() else ""
        if not self.interrupted.exists():
            return last and f"{last} of {self.last.parent}"
        kept = f"the state so far is in {self.interrupted}"
        return kept + (f", {last}" if last else "")

    def hold(self) -> None:
        """Let no other process write to the folder. Raises NeuroSpikeError if one does."""
        if self._lock is None:
            self._lock = _lock(self.folder)

    def release(self) -> None:
        """Let other processes continue the run; `hold` it before more is written."""
        if self._lock is not None:
            # Closed it would still be held by processes forked since, such as a loader's workers.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def log(self, kind: str, **values: Any) -> None:
        """Append a line to `metrics.jsonl`: `{"kind": kind, ...}`."""
        self.write({"kind": kind, **values})

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(row) + "\n")

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Write a checkpoint: `state`, config, record and versions. Raises CheckpointError."""
        facts = {"config": self.config, "record": self.record, "versions": versions()}
        save_checkpoint({**state, **facts}, path)

    def save_epoch(self, state: Mapping[str, Any], *, is_best: bool) -> None:
        """Write `last`, and if it is the best so far, `best` and its published copy.

        state: as `SNNTrainer.state_dict` gives it.
        """
        self.save(state, self.last)
        self.is_last_within = _is_within(state)
        if is_best:
            self._keep_best(state, self.last)

    def calibrate(self, temperature: float) -> None:
        """Store in the best model, and in its copy, the temperature that divides its scores."""
        state = {**load_checkpoint(self.best), "temperature": temperature}
        if self.published is not None and self.has_published and not self._is_best(self.published):
            # Copy first: a resumed run leaves a copy alone that differs from its best model.
            save_checkpoint(state, self.published)
        save_checkpoint(state, self.best)

    def _keep_best(self, state: Mapping[str, Any], path: Path) -> None:
        """Make the checkpoint at `path`, which holds `state`, the best one, and publish it."""
        copy_checkpoint(path, self.best)
        if self.published is None or state.get("guessing"):
            return
        if self._publish(self.published) and not self.has_published:
            print(  # noqa: T201 (whose model was there is replaced)
                f"{self.published} is this run's best model from now on", flush=True
            )
        self.has_published = True

    def _publish(self, path: Path) -> bool:
        """Copy the best model; False if that is the file itself."""
        if self._is_best(path):
            return False
        copy_checkpoint(self.best, path)
        return True

    def _is_best(self, path: Path) -> bool:
        return path.resolve() == self.best.resolve()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return load_checkpoint(path)
    except CheckpointError:
        return None


def _is_within(state: Mapping[str, Any] | None) -> bool:
    """True for a state saved within an epoch."""
    return state is not None and state.get("epoch_step", 0) > 0


def _are_equal(one: Path | None, other: Path) -> bool:
    """True for two files that hold the same bytes."""
    if one is None or not (one.is_file() and other.is_file()):
        return False
    return filecmp.cmp(one, other, shallow=False)


def _line(row: Mapping[str, Any]) -> str:
    """Return a line of `metrics.jsonl`: JSON has no word for numbers that are NaN or infinite."""
    return json.dumps(_finite(row), allow_nan=False)


def _finite(value: Any) -> Any:
    """Return the same with None for every number that is NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(line: str) -> str | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:  # the process was killed while it wrote
        return None
    return row.get("kind") if isinstance(row, dict) else None


def _lock(folder: Path) -> Any:
    """Hold the folder until this process ends, however it does; NeuroSpikeError if another does."""
    if fcntl is None:
        return None
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise NeuroSpikeError(
            f"another process is training in {folder} now; wait for it, or give another --run_dir"
        ) from None
    return file


def versions() -> dict[str, str]:
    """Versions of python and of the packages that are installed; imports none of them."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    # Each is read from a file and parsed, which would cost every checkpoint 2 ms.
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """What a result depends on besides the config: versions, machine, threads."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def check_folder(folder: Path) -> None:
    """Raise NeuroSpikeError for a folder that no new run could be kept in; makes none."""
    for name in ("config.yaml", "checkpoints", "metrics.jsonl"):
        if (folder / name).exists():
            raise _taken(folder, name)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Raise NeuroSpikeError for a folder that could not be made or written to; makes none."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise NeuroSpikeError(
            f"cannot write the run folder {folder}: {there} is "
            f"{'read-only' if there.is_dir() else 'not a folder'}; give another --run_dir"
        )


def _claim(folder: Path) -> Path:
    """Make the folder this run's, also against a run that starts at the same moment."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "metrics.jsonl").touch(exist_ok=False)
    except FileExistsError:
        raise _taken(folder, "metrics.jsonl") from None
    return folder


def _taken(folder: Path, name: str) -> NeuroSpikeError:
    return NeuroSpikeError(
        f"the run folder {folder} holds a {name} already; give another --run_dir, or none "
        "for a new folder in runs/"
    )


def _default_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return _claim(folder)
    raise NeuroSpikeError(f"{root} holds 999 runs of this second, {name}; name one by --run_dir")
