"""From a checkpoint back to the network, without knowing how it was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurospike.config.devices import choose_device
from neurospike.data.classes import names_of
from neurospike.errors import CheckpointError, ConfigError
from neurospike.models import MODELS, SpikingNetwork

from .checkpoint import load_checkpoint

if TYPE_CHECKING:
    from neurospike.config import Config
    from neurospike.pictures import Ink

MODEL = "checkpoints/best_model.pth"  # where training leaves a copy of its best model
WHOLE = ("cifar10", "folder")  # data sets whose pictures are taken as they are, with no ink to find


@dataclass(frozen=True)
class Trained:
    """A trained network, and what has to be known of its training to use it.

    `model` is in evaluation mode; `dataset` is the one it learnt, never `"auto"` in a checkpoint
    of the command line; `checkpoint` is the whole file's content.
    """

    model: SpikingNetwork
    config: "Config"
    dataset: str
    checkpoint: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """What the outputs stand for, one name each: a class that has none has its number."""
        record = self.checkpoint.get("record")
        own = record.get("classes") if isinstance(record, dict) else None
        return names_of(self.dataset, self.config.model.output_size, own or ())

    @property
    def temperature(self) -> float:
        """What scores are divided by before their softmax is a confidence.

        1, which leaves them as they are, of a checkpoint without one.
        """
        return float(self.checkpoint.get("temperature", 1.0))

    def read(
        self, path: str | Path, ink: "Ink" = "auto", *, content: bytes | None = None
    ) -> tuple[Tensor, str | None]:
        """Read a picture file as the network has learnt to see pictures: `[C, H, W]` in [0, 1].

        Of digits, what `neurospike.pictures.read_picture` finds; of a data set of whole pictures
        (cifar10, a folder of one's own) what `read_whole` makes of it, whatever the `ink`. content:
        the file's bytes; `path` then only names it. Also a note on the picture, or None. Raises
        PictureError for a file that cannot be read, MissingDependencyError without pillow.
        """
        # Here, because a network can be trained without what pictures are read with.
        from neurospike.pictures import read_picture, read_whole

        if self.dataset not in WHOLE:
            picture, note = read_picture(path, ink, self.dataset, content=content)
            return picture[None], note
        channels, side, _ = self.config.picture
        whole, note = read_whole(path, side, channels == 3, content=content)
        return torch.from_numpy(whole).float().div_(255), note


def load_model(path: str | Path, device: torch.device | str = "cpu") -> SpikingNetwork:
    """Read a trained network from a checkpoint, ready to predict.

        model = ns.load_model("checkpoints/best_model.pth")
        scores = model(images)                     # [B, *] in [0, 1] -> [B, output_size]

    A network of one's own has to be registered before (`neurospike.models.register`).

    Args:
        path: a file that `python -m neurospike.train` wrote; nothing in it is ever run.
        device: `"cpu"`, `"cuda"`, `"cuda:N"` or `"auto"`.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: in one line, a file that is missing, damaged or not such a one.
        ConfigError: a device that this machine lacks.
    """
    return load_trained(path, device).model


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """Read a checkpoint as `load_model` does, with its configuration and data set."""
    # Here, because it takes a tenth of a second that `import neurospike` need not spend.
    from neurospike.config import check_config

    device = choose_device(device)
    checkpoint = load_checkpoint(path, device)
    if not isinstance(checkpoint.get("config"), dict):
        raise CheckpointError(
            f"{path}: holds weights but no config, so the network they belong to is not known; "
            "use a file that python -m neurospike.train wrote"
        )
    if "own_network" in checkpoint["config"]:
        raise CheckpointError(
            f"{path}: its network is {checkpoint['config']['own_network']}, one of your own, which "
            "a checkpoint does not hold: make it, then SNNTrainer(...).init_from(path)"
        )
    _check_kind(path, checkpoint["config"])
    try:
        config = check_config(checkpoint["config"], f"{path}: its config")
    except ConfigError as error:
        raise CheckpointError(f"{error}; was it written by another version?") from None
    try:
        outline = build_on_meta(config)
        if outline is not None:
            outline.load_state_dict(checkpoint["model"], assign=True)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            model = build_model(config)
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: its weights are not those of its config: {first}") from None
    record = checkpoint.get("record")
    dataset = record.get("dataset") if isinstance(record, dict) else None
    return Trained(model.to(device).eval(), config, dataset or _dataset_of(config), checkpoint)


def check_sees_pictures(trained: Trained, path: str | Path) -> None:
    """Raise CheckpointError for a network of recordings, where it is to be shown a picture."""
    if trained.model.encoding == "none":
        raise CheckpointError(
            f"{path}: its network was trained on recordings of events ({trained.dataset}), and a "
            "picture is none: test it with python -m neurospike.evaluate, or use one that was "
            "trained on pictures"
        )


def _check_kind(path: str | Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for a network that nobody has registered in this process."""
    section = config.get("model")
    kind = section.get("kind") if isinstance(section, dict) else None
    if isinstance(kind, str) and kind not in MODELS:
        raise CheckpointError(
            f"{path}: its network is of the kind {kind!r}, which is none of {', '.join(MODELS)}: "
            "a network of one's own? Import the module that registers it (ns.models.register) "
            "before loading"
        )


def build_on_meta(config: "Config") -> SpikingNetwork | None:
    """Return the network that a configuration describes, without memory for its weights.

    It shows whether weights fit it, and how much memory they take, before any is allocated. None
    for a network of one's own, whose constructor may look at values. Raises ValueError or
    RuntimeError for a network that cannot be built.
    """
    if not MODELS[config.model.kind].__module__.startswith("neurospike.models."):
        return None
    with torch.device("meta"):
        return build_model(config)


def build_model(config: "Config") -> SpikingNetwork:
    """Return the untrained network that a configuration describes."""
    return MODELS[config.model.kind](**config.network_arguments())


def _dataset_of(config: "Config") -> str:
    return "mnist" if config.dataset == "auto" else config.dataset
