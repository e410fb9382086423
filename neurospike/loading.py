"""From a checkpoint back to the network, without knowing how it was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurospike.errors import CheckpointError, ConfigError
from neurospike.models import MODELS, SpikingNetwork
from neurospike.training.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from neurospike.config import Config


@dataclass(frozen=True)
class Trained:
    """A trained network, and what of its training one must know to use it.

    `model` is in evaluation mode; `dataset` is the one it learnt, never `"auto"` in a checkpoint
    of the command line; `checkpoint` is the whole file's content.
    """

    model: SpikingNetwork
    config: "Config"
    dataset: str
    checkpoint: dict[str, Any]


def load_model(path: str | Path, device: torch.device | str = "cpu") -> SpikingNetwork:
    """Read a trained network from a checkpoint, ready to predict.

        model = ns.load_model("checkpoints/best_model.pth")
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    path: a file that `python -m neurospike.train` wrote; nothing in it is ever run. The model is
    in evaluation mode on `device`. Raises CheckpointError, in one line.
    """
    return load_trained(path, device).model


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """Read a checkpoint as `load_model` does, with its configuration and data set."""
    # Here, because it takes a tenth of a second that `import neurospike` need not spend.
    from neurospike.config import check_config

    checkpoint = load_checkpoint(path, device)
    if not isinstance(checkpoint.get("config"), dict):
        raise CheckpointError(
            f"{path}: holds weights but no config, so the network they belong to is not known; "
            "use a file that python -m neurospike.train wrote"
        )
    try:
        config = check_config(checkpoint["config"], f"{path}: its config")
    except ConfigError as error:
        raise CheckpointError(f"{error}; was it written by another version?") from None
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        model = build_model(config)
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: its weights are not those of its config: {first}") from None
    record = checkpoint.get("record")
    dataset = record.get("dataset") if isinstance(record, dict) else None
    return Trained(model.to(device).eval(), config, dataset or _dataset_of(config), checkpoint)


def build_model(config: "Config") -> SpikingNetwork:
    """The untrained network that a configuration describes."""
    return MODELS[config.model.kind](**config.network_arguments())


def _dataset_of(config: "Config") -> str:
    return "mnist" if config.dataset == "auto" else config.dataset
