"""Checkpoint files: written whole or not at all, read without running anything in them."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from neurospike.errors import CheckpointError


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write `state` (tensors, numbers, text, and dicts, lists and tuples of them) to `path`.

    A file already there is replaced in one move once the new one is safely on the disk, so
    that a crash or a full disk leaves it as it was. Raises CheckpointError.
    """
    _replace(Path(path), lambda file: torch.save(dict(state), file))


def copy_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy a file with the same guarantee; makes the target's folder. Raises CheckpointError."""

    def write(file: BinaryIO) -> None:
        with Path(source).open("rb") as original:
            shutil.copyfileobj(original, file)

    _replace(Path(target), write)


def replace_file(path: Path, content: bytes) -> None:
    """Write any file with the same guarantee. Raises CheckpointError."""
    _replace(path, lambda file: file.write(content), "file")


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint; code hidden in the file is refused, not run (`weights_only=True`).

    Returns the dict that was saved; its `"model"` is a state dict. Raises CheckpointError,
    in one line, for a file that is missing, damaged or not one of ours.
    """
    path = Path(path)
    try:
        # An open file and not the path: torch tries to *write* a folder given as a path.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles; the error below says enough
            state = torch.load(file, map_location=map_location, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 (torch.load answers damage with almost any)
        raise CheckpointError(
            f"{path}: damaged, or not a NeuroSpike checkpoint ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path}: not a NeuroSpike checkpoint: it holds no model")
    return state


def _replace(path: Path, write: Callable[[BinaryIO], object], what: str = "checkpoint") -> None:
    # In the same folder, because a rename is only atomic within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # gone already if all went well
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot write the {what}: {reason}") from error
