"""Checkpoint files: written whole or not at all, read without running anything in them.

A checkpoint is what `torch.save` writes, a zip archive, with a checksum of the whole file as the
archive's comment: torch reads past an archive's own checksums, so that a bit that flipped on the
disk would become a weight.
"""

import os
import pickle
import shutil
import stat
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from neurospike.errors import CheckpointError

from .plain import readable

MARK = b"neurospike crc32 "
COMMENT_BYTES = len(MARK) + 8  # the sum in hexadecimal digits
CHUNK = 1 << 20
RETRIES = 20  # of a tenth of a second each


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write `state` (tensors, numbers, text, and dicts, lists and tuples of them) to `path`.

    A file already there is replaced in one move once the new one is safely on the disk, so
    that a crash or a full disk leaves it as it was. Raises CheckpointError, also for a state of
    which something could not be read again.
    """
    try:
        state = readable(dict(state))
    except TypeError as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from None

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        # The comment's length is the last number of an archive that has none.
        file.seek(-2, os.SEEK_END)
        file.write(COMMENT_BYTES.to_bytes(2, "little") + MARK)
        file.seek(0)
        total = _sum(file, -1)
        file.seek(0, os.SEEK_END)
        file.write(b"%08x" % total)

    _replace(Path(path), write)


def copy_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy a file with the same guarantee; makes the target's folder. Raises CheckpointError."""

    def write(file: BinaryIO) -> None:
        with Path(source).open("rb") as original:
            shutil.copyfileobj(original, file)

    _replace(Path(target), write)


def replace_file(path: Path, content: bytes) -> None:
    """Write any file with the same guarantee. Raises CheckpointError."""
    _replace(path, lambda file: file.write(content), "file")


def check_replaceable(path: Path, what: str = "file") -> None:
    """Raise CheckpointError for a folder, a device or a pipe, which no file may replace."""
    try:
        mode = path.stat().st_mode
    except OSError:  # mostly there is no file yet; any other reason shows when it is written
        return
    if not stat.S_ISREG(mode):
        kind = "Is a directory" if stat.S_ISDIR(mode) else "it is a device or a pipe; name a file"
        raise CheckpointError(f"{path}: cannot write the {what}: {kind}")


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint; code hidden in the file is refused, not run (`weights_only=True`).

    Returns the dict that was saved, its tensors on `map_location`; its `"model"` is a state dict.
    Raises CheckpointError, in one line, for a file that is missing, damaged in any bit or not one
    of ours. ConfigError: the device is not one of this machine's.
    """
    # Here, so that a checkpoint can be written even where what this imports is missing.
    from neurospike.config.devices import choose_device

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a checkpoint's file, got {path!r}")
    path, device = Path(path), choose_device(map_location)
    try:
        # An open file and not the path: torch tries to *write* a folder given as a path.
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the checkpoint: {error.strerror}{_instead(path)}"
        ) from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles; the error below says enough
            _check_sum(file)
            state = torch.load(file, map_location=device, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise CheckpointError(f"{path}: there is too little memory for it on {device}") from None
    except Exception as error:  # noqa: BLE001 (torch.load answers damage with almost any)
        raise CheckpointError(
            f"{path}: damaged, or not a NeuroSpike checkpoint: {_reason(path, error)}"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path}: not a NeuroSpike checkpoint: it holds no model")
    return state


def _instead(path: Path) -> str:
    """Return where a missing checkpoint may be instead, as the end of a message."""
    if not path.exists():
        return (
            "; python -m neurospike.train leaves one in runs/<time>/checkpoints/, and a copy of it "
            "in checkpoints/ of the folder that it is started in"
        )
    inside = [path / name for name in ("checkpoints/best_model.pth", "best_model.pth")]
    return next((f"; did you mean {one}?" for one in inside if one.is_file()), "")


class _WrongSumError(Exception):
    pass


def _check_sum(file: BinaryIO) -> None:
    """Raise an exception if a byte has changed; in older files, as far as they can show it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - COMMENT_BYTES))
    comment = file.read()
    file.seek(0)
    if comment.startswith(MARK):
        if b"%08x" % _sum(file, size - 8) != comment[len(MARK) :]:
            raise _WrongSumError
    elif zipfile.is_zipfile(file):
        # Older versions wrote no checksum of the file: those of the archive cover the weights.
        with zipfile.ZipFile(file) as archive:
            # Nor did they write a comment: its length, the last two bytes, must be 0.
            if comment[-2:] != b"\0\0" or archive.testzip() is not None:
                raise _WrongSumError
    file.seek(0)


def _sum(file: BinaryIO, length: int) -> int:
    """Return the checksum of the next `length` bytes; -1: of all that follow."""
    total = 0
    while length and (chunk := file.read(CHUNK if length < 0 else min(length, CHUNK))):
        total = zlib.crc32(chunk, total)
        length -= len(chunk) if length > 0 else 0
    return total


def _reason(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that torch cannot read, in words that need no torch."""
    if path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, (_WrongSumError, zipfile.BadZipFile)):
        return "its checksum does not fit what it holds"
    if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
        return "it holds other things than weights, numbers and text, which are never loaded"
    if zipfile.is_zipfile(path):
        return "it is a zip archive that torch.save did not write, such as an exported network"
    with path.open("rb") as file:
        begins_well = file.read(4) == b"PK\3\4"
    return "it is cut off" if begins_well else "torch.save did not write it"


def _replace(path: Path, write: Callable[[BinaryIO], object], what: str = "checkpoint") -> None:
    check_replaceable(path, what)
    # In the same folder, because a rename is only atomic within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            _move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # gone already if all went well
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        reason = _system_reason(error) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot write the {what}: {reason}") from error


def _system_reason(error: BaseException | None) -> str | None:
    """Return the system's reason from the first OSError behind an error; None if there is none.

    torch's writer raises its own error on top of the disk's.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _move(temporary: Path, path: Path) -> None:
    """Put a file in another's place; on Windows once nobody reads that one, which is soon."""
    for _ in range(RETRIES if sys.platform == "win32" else 0):
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(0.1)
        else:
            return
    temporary.replace(path)
