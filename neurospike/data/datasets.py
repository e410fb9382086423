"""Find, fetch and read the data sets of pictures, or say in one line why that did not work.

torchvision downloads, and is loaded for nothing else, because it takes seconds to import. What it
lacks is here: an attempt without a network that ends in seconds and leaves nothing behind, one
error type for every kind of damage, and a data set that is always there (`digits`).
"""

import difflib
import gzip
import http.client
import importlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from neurospike.errors import DataError, MissingDependencyError

from .cifar import load_cifar10
from .classes import CLASSES
from .digits import read_digits
from .fetching import bounded, last_line, reach
from .folder import load_folder
from .idx import read_idx
from .split import DigitData, Split

TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = (*TORCHVISION_CLASSES, "cifar10", "digits", "folder", "auto")
PARTS = ("train", "t10k")
ENDINGS = ("images-idx3-ubyte", "labels-idx1-ubyte")
FILES = [f"{part}-{ending}" for part in PARTS for ending in ENDINGS]

# RuntimeError is torchvision's own after its last mirror; a connection that breaks off
# half-way passes through it as one of the others.
_NOT_FETCHED = (OSError, RuntimeError, http.client.HTTPException)


class _NotObtainedError(DataError):
    """The files are not there at all and could not be fetched: `auto` may take other data."""


def load(name: str, data_path: str | os.PathLike[str], *, download: bool = True) -> DigitData:
    """Load a data set by name.

    - `"mnist"`, `"fashion_mnist"`, `"kmnist"`: 60,000 and 10,000 pictures, in torchvision's
      layout under `data_path` (`<data_path>/MNIST/raw/train-images-idx3-ubyte`, or with a dot,
      `train-images.idx3-ubyte`, or either with `.gz`); fetched from the network if absent and
      `download`. An explicit name never falls back to another data set.
    - `"cifar10"`: 50,000 and 10,000 colour pictures of 32 x 32 (Krizhevsky, 2009), of the files of
      its python version in `<data_path>/cifar-10-batches-py`; never fetched.
    - `"folder"`: pictures of one's own, as `load_folder` reads them by default.
    - `"digits"`: scikit-learn's 1,797 digits of 8 x 8 (0..16; Alpaydin & Kaynak, UCI, 1998), scaled
      to 0..255 and enlarged to 28 x 28 bilinearly; always the same stratified 80/20 split.
    - `"auto"`: MNIST if it is there or can be fetched, else digits, and `note` says so.

    A fetch gives up when no server answers within `DOWNLOAD_TIMEOUT` seconds, prints nothing, and
    leaves no partial file.

    Errors: `DataError` for an unknown name, files that are missing and cannot be fetched,
    damaged files (for `"auto"` too), a `data_path` that is a file or cannot be written;
    `MissingDependencyError` when scikit-learn is not installed or, for another name than `"auto"`,
    torchvision is needed and does not import.
    """
    check_name(name)
    root = Path(data_path).expanduser()
    if name == "digits":
        return _load_digits()
    if name == "cifar10":
        return load_cifar10(root)
    if name == "folder":
        return load_folder(root)
    if name == "auto":
        return _load_auto(root, download)
    try:
        return _load_idx(name, root, download)
    except _NotObtainedError as error:
        raise DataError(
            f"{error}.\nPut {_four_files()} there, or give a writable data path and a network "
            "to download to, or choose 'digits', which needs neither."
        ) from error


def check_name(name: str, names: Sequence[str] = NAMES) -> None:
    """Raise DataError, with the nearest name, unless it is one of `names` (those `load` knows)."""
    if name not in names:
        near = difflib.get_close_matches(str(name).lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? The" if near else "the"
        raise DataError(f"unknown data set {name!r}: {hint} names are {', '.join(names)}")


def _load_auto(root: Path, download: bool) -> DigitData:
    try:
        data = _load_idx("mnist", root, download)
    except (_NotObtainedError, MissingDependencyError) as error:
        data = _load_digits()
        return replace(data, note=f"auto took {data.note}, not MNIST, because {error}")
    return replace(data, note=f"auto took {data.note}")


def _load_digits() -> DigitData:
    train, test = read_digits()
    note = _note("digits", "scikit-learn", train, test)
    return DigitData("digits", train, test, note, CLASSES["digits"])


def _load_idx(name: str, root: Path, download: bool) -> DigitData:
    if root.is_file():
        raise DataError(f"the data path {root} is a file: give the folder that holds the data.")
    folder = TORCHVISION_CLASSES[name]
    raw = root / folder / "raw"
    _extract(raw)
    if _missing(raw):
        _fetch(folder, root, raw, download)
    train, test = (_read(raw, part) for part in PARTS)
    return DigitData(name, train, test, _note(name, str(raw), train, test), CLASSES[name])


def _note(name: str, origin: str, train: Split, test: Split) -> str:
    return f"{name} ({len(train):,} training and {len(test):,} test pictures from {origin})"


def _four_files() -> str:
    *others, last = FILES
    return f"its four files, {', '.join(others)} and {last} (or {_dotted(FILES[0])} and so on),"


def _dotted(name: str) -> str:
    """Return a file's name as Kaggle and some unpackers write it."""
    return name.replace("-idx", ".idx")


def _file(raw: Path, name: str) -> Path | None:
    """Return where a file is, under either name; None if it is not there."""
    return next((raw / n for n in (name, _dotted(name)) if (raw / n).is_file()), None)


def _missing(raw: Path) -> list[str]:
    return [name for name in FILES if _file(raw, name) is None]


def _extract(raw: Path) -> None:
    """Unpack the sound archives of what is not unpacked yet."""
    try:
        for name in _missing(raw):
            for archive in (raw / f"{name}.gz", raw / f"{_dotted(name)}.gz"):
                if _file(raw, name) is None and _is_sound(archive):
                    with tempfile.TemporaryDirectory(dir=raw, prefix=".extract-") as folder:
                        _unpack(archive, Path(folder, name))
                        _move_files(Path(folder), raw)
    except OSError as error:
        raise DataError(
            f"cannot unpack the .gz files in {raw} ({last_line(error)}): make the folder "
            "writable, or unpack them elsewhere and give that data path."
        ) from error


def _is_sound(archive: Path) -> bool:
    """True for a gzip archive that can be unpacked and whose content fits its checksum."""
    if not archive.is_file():
        return False
    try:
        with gzip.open(archive) as content:
            while content.read(1 << 20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return True


def _unpack(archive: Path, file: Path) -> None:
    with gzip.open(archive) as content, file.open("wb") as target:
        shutil.copyfileobj(content, target)


def _fetch(name: str, root: Path, raw: Path, download: bool) -> None:
    """Download into a temporary folder under `root`, then move the whole files into place."""
    try:
        if not download:
            raise RuntimeError("downloading was not allowed")
        dataset = getattr(_require("torchvision.datasets", "torchvision"), name)
        with _made(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            reach([mirror + dataset.resources[0][0] for mirror in dataset.mirrors])
            with _quiet_and_bounded():
                dataset(folder, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            _move_files(Path(folder, name, "raw"), raw)
    except _NOT_FETCHED as error:
        reason = last_line(error)
        files = [file for n in FILES for file in (n, _dotted(n))]
        if not any(os.path.lexists(raw / f"{file}{end}") for file in files for end in ("", ".gz")):
            raise _NotObtainedError(
                f"{name} is not in {raw} and could not be downloaded ({reason})"
            ) from error
        raise DataError(
            f"{name} in {raw} is incomplete, without a sound {_missing(raw)[0]}, and "
            f"could not be downloaded ({reason}).\n"
            "Add what is missing, or delete the folder and try again."
        ) from error


@contextmanager
def _made(root: Path) -> Iterator[None]:
    """Make a folder and its parents; remove those made that are still empty at the end."""
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty, as after a download
            for folder in new:
                folder.rmdir()


def _move_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        file.replace(target / file.name)


@contextmanager
def _quiet_and_bounded() -> Iterator[None]:
    """Hide torchvision's progress bars and limit the waiting time of its sockets."""
    with bounded(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _read(raw: Path, part: str) -> Split:
    names = [f"{part}-{ending}" for ending in ENDINGS]
    images, labels = (_file(raw, name) or raw / name for name in names)
    try:
        return _checked(Split(read_idx(images, 3), read_idx(labels, 1).to(torch.int64)))
    except OSError as error:
        raise DataError(
            f"cannot read the {part} files in {raw} ({last_line(error)}): check their permissions."
        ) from error
    except ValueError as error:
        raise DataError(
            f"the {part} files in {raw} are damaged ({last_line(error)}).\n"
            "Replace them, or delete the folder and they are downloaded anew."
        ) from error


def _checked(split: Split) -> Split:
    """Return the split; ValueError for pictures or labels that none of these data sets has."""
    if split.images.shape[1:] != (28, 28):
        raise ValueError(f"pictures of 28 x 28 are expected, got {list(split.images.shape)}")
    if len(split) and int(split.labels.max()) > 9:
        raise ValueError(f"labels must be 0 to 9, got up to {int(split.labels.max())}")
    return split


def _require(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    # torchvision beside another torch than its own fails with a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{package} is needed for this data set and does not import ({last_line(error)}): "
            f"pip install {package}"
        ) from error
