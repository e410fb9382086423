"""Continuing from earlier training: a run that was stopped, a longer run, or a run's weights."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurospike.errors import CheckpointError, ConfigError

from .checkpoint import load_checkpoint, replace_file
from .loading import load_trained

if TYPE_CHECKING:
    from neurospike.config import Config
    from neurospike.models import SpikingNetwork

    from .trainer import SNNTrainer

NAMES = ("last.pth", "interrupted.pth", "best_model.pth")  # of equally new ones, the first is taken
# Keys that a resumed run may change: what another machine may need, and the length of the run.
FREE = ("data_path", "device", "backend", "threads", "cuda_graph", "training.epochs")
# Keys of the network that may differ in a new run that starts from its weights.
ANEW = ("num_steps", "dropout", "init", "surrogate", "grad_window", "detach_reset")


def resumable(
    folder: str, config: Path | None, overrides: Mapping[str, str], init_from: str | None = None
) -> Path:
    """Return the configuration file of the run to resume.

    Raises ConfigError for a folder without a run, or with a run of a network of one's own, and for
    flags that would change the run.
    """
    # Here, because runs from Python do without the packages that check a configuration.
    from neurospike.config.loading import read_mapping

    if init_from is not None:
        raise ConfigError(
            "--init_from: starts a new run, and --resume goes on with one; leave one of them out"
        )
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"--resume: {folder} holds no run: it has no config.yaml")
    own = read_mapping(path).get("own_network")
    if own is not None:
        raise ConfigError(
            f"--resume: the network of the run in {folder} is {own}, one of your own, which a run "
            f"folder does not hold: make it, then SNNTrainer(...).fit(..., run={folder!r}, "
            "resume=True)"
        )
    changed = ["config"] * (config is not None) + [key for key in overrides if key not in FREE]
    if changed:
        raise ConfigError(
            f"--{changed[0]}: a resumed run keeps its configuration, but for {', '.join(FREE)}; "
            "leave the flag out, or start a new run"
        )
    return path


def newest_state(folder: Path) -> dict[str, Any] | None:
    """Return the latest undamaged checkpoint of a run; None if it was stopped before its first.

    If the best model is lost, that state counts as the best from then on. Damaged files are named
    on stderr. Raises CheckpointError if every checkpoint is damaged.
    """
    found: list[dict[str, Any]] = []
    failures = []
    is_best_kept = False
    for name in NAMES:
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            failures.append(error)
            continue
        if name == "best_model.pth" or (name == "last.pth" and state.get("waited") == 0):
            is_best_kept = True  # `Run.go_on` copies such a last one
        if not isinstance(state.get("epoch_sums"), list):  # one for each process
            reason = "written by a version that cannot resume as this one does"
            failures.append(CheckpointError(f"{path}: {reason}; start a new run by --init_from"))
            continue
        found.append({**state, "path": str(path)})
    if failures and not found:
        raise failures[0]
    for failure in failures:
        print(f"{failure}; going on from another", file=sys.stderr)  # noqa: T201 (a warning)
    if not found:
        return None
    newest = max(found, key=lambda state: (state["step"], state["epoch"]))
    if newest["history"] and not is_best_kept:
        print(  # noqa: T201 (a warning)
            f"{folder / 'checkpoints' / 'best_model.pth'} is lost; the best model is from now on "
            f"that of {newest['path']}, until a better one is trained",
            file=sys.stderr,
        )
        newest.update(best=_score(newest), waited=0)
    return newest


def _score(state: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return `SNNTrainer.best` for a state; None unless it was saved after a validation."""
    row = state["history"][-1]
    if row["step"] != state["step"] or row["validation_loss"] is None:
        return None
    return (row["validation_accuracy"] or 0.0, -row["validation_loss"])


def check_epochs(config: "Config", state: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for fewer epochs than the run to resume has begun."""
    if state is None or config.training.epochs is None:
        return
    begun = state["epoch"] + (state["epoch_step"] > 0)
    if config.training.epochs < begun:
        raise ConfigError(
            f"training.epochs: got {config.training.epochs}, but the run is in its epoch {begun} "
            f"already; give {begun} or more"
        )


def tell(
    trainer: "SNNTrainer",
    state: Mapping[str, Any] | None,
    config: "Config",
    epochs: int,
    folder: Path,
) -> None:
    """Print how the run in `folder` continues, and store its number of epochs if that has changed.

    epochs: the number of epochs in all, as `TrainingConfig.epochs_of` gives it.
    """
    import yaml

    wanted, path = config.training.epochs, folder / "config.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    kept = written["training"] = dict(written.get("training") or {})
    was = kept.get("epochs")
    if state is None:
        print(f"{folder}: nothing was saved yet, the run starts anew", flush=True)  # noqa: T201
    if was != wanted:
        kept["epochs"] = wanted
        replace_file(path, yaml.safe_dump(written, sort_keys=False).encode())
        rate = trainer.optimizer.param_groups[0]["lr"]
        print(  # noqa: T201
            f"epochs: {epochs} in all from now on (training.epochs was {was or 'null'}); the "
            f"{config.training.schedule} learning rate goes on as in a run of that length, at "
            f"{rate:.3g}",
            flush=True,
        )
    patience = config.training.patience
    if patience is not None and trainer.waited >= patience and trainer.epoch < epochs:
        print(  # noqa: T201
            f"training.patience: {trainer.waited} validations brought nothing better, so no more "
            "is trained",
            flush=True,
        )


def start_from(path: str | Path, model: "SpikingNetwork", config: "Config") -> None:
    """Give a new run's model the weights of a checkpoint of the same network.

    Raises CheckpointError for a file that cannot be read, ConfigError for another network: also
    for another decay or threshold, because these come with the weights.
    """
    trained = load_trained(path)
    there = {"kind": trained.config.model.kind, **trained.config.model.arguments()}
    here = {"kind": config.model.kind, **config.model.arguments()}
    for key, value in here.items():
        if key not in ANEW and there.get(key) != value:
            raise ConfigError(
                f"--init_from: {path} holds a network with model.{key} {there.get(key)}, the new "
                f"run's has {value}; they must be the same: start with --config and the "
                "config.yaml of that run"
            )
    model.load_state_dict(trained.model.state_dict())
