"""Checks of a training run before any data are loaded or a folder is made.

`neurospike.config` has checked the configuration itself when it was read; what depends on this
machine, on the data set and on torch is checked here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neurospike.config.kinds import RECORDED
from neurospike.data import DigitData, EventData
from neurospike.data.events import SOURCES, frame_size
from neurospike.data.folder import class_names
from neurospike.errors import ConfigError, MissingDependencyError
from neurospike.models import MODELS

from .loading import build_on_meta
from .records import check_folder, check_writable

if TYPE_CHECKING:
    from neurospike.config import Config

CLASSES = 10  # of every data set of pictures but a folder of one's own
TRAINED = 4  # numbers kept of each weight while it is trained: itself, gradient, two of Adam's
SMALLER = "Train with a smaller --batch_size, --num_steps or --hidden_size"


def check_run(config: Config, device: torch.device, *, resumed: bool = False) -> None:
    """Raise ConfigError, in one line, for a run that could not be done.

    resumed: the run has its folder already. MissingDependencyError: for a package that it needs;
    NeuroSpikeError: for a folder that it cannot have.
    """
    if config.dataset in RECORDED:
        _check_recordings(config)
    else:
        _check_pictures(config)
    _check_processes(config, device)
    _check_graph(config, device)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError("--tensorboard needs tensorboard: pip install tensorboard")
    _check_network(config, device)
    if not resumed:
        if config.run_dir is None:
            check_writable(Path("runs"))
        else:
            check_folder(Path(config.run_dir))


def with_classes(config: Config) -> Config:
    """Return the configuration with an output for each class of a folder of one's own pictures.

    An `output_size` of 10, the default, stands for as many as there are; any other stays. Raises
    DataError for a folder without classes.
    """
    if config.dataset != "folder" or config.model.output_size != type(config.model)().output_size:
        return config
    count = len(class_names(config.data_path))
    model = config.model.model_copy(update={"output_size": count})
    return config.model_copy(update={"model": model})


def check_data(config: Config, data: DigitData | EventData) -> None:
    """Raise ConfigError if no picture or recording would be held out of the data."""
    share, count = config.training.validation, len(data.train)
    what = "picture" if isinstance(data, DigitData) else "recording"
    if not share or round(share * count):
        return
    if count == 1:
        raise ConfigError(
            f"training.validation: got {share}, but {data.name} has one {what} to train on, which "
            "cannot be held out, too; use 0"
        )
    # A share of half a picture is rounded to none.
    raise ConfigError(
        f"training.validation: got {share}, which holds none of the {count:,} {what}s of "
        f"{data.name} out; use 0, or more than 1/{2 * count} (about {0.5 / count:.2g})"
    )


def pictures_left(config: Config, data: DigitData | EventData) -> int:
    """Return how many pictures or recordings are trained on: those that are not held out."""
    return len(data.train) - round(config.training.validation * len(data.train))


def _check_pictures(config: Config) -> None:
    """Refuse a network that does not fit the pictures or has too few classes."""
    from neurospike.config.steps import size_after  # with the configuration: it takes pydantic

    model = config.model
    try:
        height, width = size_after(config.preprocessing, *config.picture[1:])
    except ValueError as error:
        raise ConfigError(f"preprocessing: {error}") from None
    values = config.picture[0] * height * width
    if model.input_size != values:
        raise ConfigError(
            f"model.input_size: got {model.input_size}, but the pictures of {config.dataset} have "
            f"{values} pixels" + (" after preprocessing" if config.preprocessing else "")
        )
    coding, taken = config.encoding.kind, MODELS[model.kind].encodings
    if coding not in taken:
        raise ConfigError(
            f"encoding.kind: got {coding}, but a network of model.kind {model.kind} sees whole "
            f"pictures at every step; use mlp, or one of {', '.join(taken)}"
        )
    if height != width and (model.kind in ("conv", "resnet") or coding == "rows"):
        asks = "encoding.kind rows" if coding == "rows" else f"model.kind {model.kind}"
        raise ConfigError(
            f"preprocessing: leaves pictures of {height} x {width} pixels, and {asks} takes square "
            "ones"
        )
    folder = config.dataset == "folder"
    _check_classes(config, len(class_names(config.data_path)) if folder else CLASSES)


def _check_recordings(config: Config) -> None:
    """Refuse a network that does not fit the frames or has too few classes, or a lack of tonic."""
    if importlib.util.find_spec("tonic") is None:
        raise MissingDependencyError(
            f"dataset {config.dataset} is read by tonic, which is not installed: "
            "pip install -U tonic"
        )
    try:
        size = frame_size(config.dataset, config.events.pool)
    except ValueError as error:
        raise ConfigError(f"events.pool: {error}") from None
    if config.model.input_size != size:
        raise ConfigError(
            f"model.input_size: got {config.model.input_size}, but the frames of {config.dataset} "
            f"have {size} values with events.pool {config.events.pool}"
        )
    _check_classes(config, SOURCES[config.dataset].classes)


def _check_classes(config: Config, classes: int) -> None:
    if config.model.output_size < classes:
        raise ConfigError(
            f"model.output_size: got {config.model.output_size}, but {config.dataset} has "
            f"{classes} classes"
        )


def _check_processes(config: Config, device: torch.device) -> None:
    processes, batch = config.devices * config.num_nodes, config.training.batch_size
    most = max(2, os.cpu_count() or 1)
    if device.type == "cpu" and config.devices > most:
        raise ConfigError(
            f"devices: got {config.devices}, but this machine has {os.cpu_count()} processors"
        )
    if batch < processes:  # what a network's own layers ask for is `training.setup.check_batch`'s
        raise ConfigError(
            f"training.batch_size: got {batch}, wanted at least {processes}: {processes} processes "
            "share a batch, and each needs a picture"
        )


def _check_graph(config: Config, device: torch.device) -> None:
    """Refuse to replay a step that no CUDA graph can hold, where it is insisted on."""
    if config.cuda_graph != "on":
        return
    for is_so, why in (
        (device.type != "cuda", f"the device is {device}, and only a CUDA device replays graphs"),
        (config.devices * config.num_nodes > 1, "several processes would train together"),
        (config.precision == "16-mixed", "precision 16-mixed makes the host wait at every step"),
    ):
        if is_so:
            raise ConfigError(f"cuda_graph: got on, but {why}; use auto or off")


def _check_network(config: Config, device: torch.device) -> None:
    """Refuse a network that cannot be built, or that this machine's memory cannot hold."""
    try:
        outline = build_on_meta(config)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"model: {str(error).partition(chr(10))[0].rstrip('.')}. {SMALLER}"
        ) from None
    model, batch = config.model, config.training.batch_size
    weights = sum(p.numel() for p in outline.parameters()) if outline is not None else 0
    # At least: a batch of pictures, and what their outputs did at every step.
    answers = batch * (model.input_size + model.num_steps * model.output_size)
    memory = _memory(device)
    for what, numbers in (("the network's training", TRAINED * weights), ("a batch", answers)):
        if 4 * numbers > memory:
            raise ConfigError(
                f"{what} takes {4 * numbers / 1e9:,.0f} GB at least, and {device} has "
                f"{memory / 1e9:,.0f} GB in all. {SMALLER}"
            )


def _memory(device: torch.device) -> float:
    """Return how many bytes a device has in all; infinity where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # AttributeError: Windows
        return float("inf")
