"""The run folder: all that is needed to judge a training run, and to repeat it.

`config.yaml` what was asked for; `metrics.jsonl` first what it ran on, then a line an epoch,
last the test; `checkpoints/best_model.pth` and `checkpoints/last.pth`; `training_curves.png` and
the pictures of `neurospike.training.pictures`.
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from neurospike.errors import NeuroSpikeError
from neurospike.training.checkpoint import copy_checkpoint, save_checkpoint

PACKAGES = ("neurospike", "torch", "torchvision", "snntorch", "numba", "triton", "numpy")


class Run:
    """One training run's folder. No two runs share one.

    folder: explicit; one that holds a run already, or any of its files, is refused. None:
    `runs/<YYYYmmdd-HHMMSS>`, with a number behind it should two start in the same second.
    config: plain dict, kept as `config.yaml` and in each checkpoint. record: facts to put
    beside the versions in the first line of `metrics.jsonl` and in each checkpoint. published:
    where to keep a copy of this run's best model, None for nowhere.
    Raises NeuroSpikeError for a folder that is in use or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        config: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
        published: str | Path | None = None,
    ) -> None:
        self.config = dict(config)
        self.record = dict(record or {})
        self.published = None if published is None else Path(published)
        text = yaml.safe_dump(self.config, sort_keys=False)
        try:
            self.folder = _default_folder(Path("runs")) if folder is None else _claim(Path(folder))
            (self.folder / "config.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise NeuroSpikeError(
                f"cannot write the run folder {folder or 'runs'}: {error.strerror}; give another "
                "--run_dir"
            ) from error
        self.log("run", **environment(), **self.record)

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self.folder / "checkpoints" / "best_model.pth"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch that was finished."""
        return self.folder / "checkpoints" / "last.pth"

    @property
    def interrupted(self) -> Path:
        """The state at Ctrl-C, in the middle of an epoch; `last` stays a whole epoch's."""
        return self.folder / "checkpoints" / "interrupted.pth"

    def log(self, kind: str, **values: Any) -> None:
        """Append a line to `metrics.jsonl`: `{"kind": kind, ...}`."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Write a checkpoint: `state`, config, record and versions. Raises CheckpointError."""
        facts = {"config": self.config, "record": self.record, "versions": versions()}
        save_checkpoint({**state, **facts}, path)

    def save_epoch(self, state: Mapping[str, Any], *, is_best: bool) -> None:
        """Write `last`, and if it is the best so far, `best` and its published copy."""
        self.save(state, self.last)
        if is_best:
            copy_checkpoint(self.last, self.best)
            if self.published is not None and self.published.resolve() != self.best.resolve():
                copy_checkpoint(self.best, self.published)


def versions() -> dict[str, str]:
    """Versions of python and of the packages that are installed; imports none of them."""
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


def _claim(folder: Path) -> Path:
    """Make the folder this run's, also against a run that starts at the same moment."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = [name for name in ("config.yaml", "checkpoints") if (folder / name).exists()]
    try:
        if not taken:
            (folder / "metrics.jsonl").touch(exist_ok=False)
            return folder
    except FileExistsError:
        taken = ["metrics.jsonl"]
    raise NeuroSpikeError(
        f"the run folder {folder} holds a {taken[0]} already; give another --run_dir, or none "
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
