"""Going on with a run that was killed, stopped or cut off by a crash."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurospike.errors import CheckpointError, ConfigError
from neurospike.training.checkpoint import load_checkpoint

NAMES = ("last.pth", "interrupted.pth", "best_model.pth")  # the first of equals is taken
FREE = ("data_path", "device", "backend", "threads")  # keys that another machine may need


def resumable(folder: str, config: Path | None, overrides: Mapping[str, str]) -> Path:
    """The configuration file of a run to go on with.

    Raises ConfigError for a folder without a run, and for flags that would make another run of it.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"--resume: {folder} holds no run: it has no config.yaml")
    changed = ["config"] * (config is not None) + [key for key in overrides if key not in FREE]
    if changed:
        raise ConfigError(
            f"--{changed[0]}: a resumed run keeps its configuration, but for {', '.join(FREE)}; "
            "leave the flag out, or start a new run"
        )
    return path


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The furthest of a run's checkpoints that is whole; None if it was stopped before its first.

    Tells of damaged ones on stderr. Raises CheckpointError if all there are are damaged.
    """
    found: list[dict[str, Any]] = []
    failures = []
    for name in NAMES:
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            failures.append(error)
            continue
        if "history" not in state or "order" not in state:
            failures.append(CheckpointError(f"{path}: written by a version that cannot resume"))
            continue
        found.append(state)
    if failures and not found:
        raise failures[0]
    for failure in failures:
        print(f"{failure}; going on from another", file=sys.stderr)  # noqa: T201 (a warning)
    return max(found, key=lambda state: int(state["step"])) if found else None
