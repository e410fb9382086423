"""Recordings of spikes and of event cameras: N-MNIST, SHD and DVS Gesture, read by `tonic`.

tonic (https://tonic.readthedocs.io) knows each set's files and where to fetch them. It is an
optional extra, `pip install -e '.[events]'`, and is loaded where a set is read. What is added
here: files of a set without the archive that they came in, an attempt without a network that ends
in seconds, one error type for every kind of damage, and a whole set as `Recordings`.
"""

import http.client
import importlib
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurospike.errors import DataError, MissingDependencyError

from .binning import Binning
from .classes import CLASSES
from .datasets import check_name
from .fetching import bounded, last_line, reach
from .recordings import Recordings

# What tonic, and what it uses, raise for a failed download and for damaged files.
_NOT_FETCHED = (OSError, RuntimeError, EOFError, http.client.HTTPException, zipfile.BadZipFile)
_NOT_READ = (OSError, RuntimeError, ValueError, IndexError, KeyError, EOFError)


@dataclass(frozen=True)
class Source:
    """A data set: its class in tonic, its sensor, its classes, and its files in tonic's folder."""

    tonic: str
    sensor_size: tuple[int, int, int]
    classes: int
    train: str
    test: str
    size: str  # of what is downloaded


SOURCES = {
    "shd": Source("SHD", (700, 1, 1), 20, "shd_train.h5", "shd_test.h5", "170 MB"),
    "nmnist": Source("NMNIST", (34, 34, 2), 10, "Train/*/*.bin", "Test/*/*.bin", "1.2 GB"),
    "dvs_gesture": Source(
        "DVSGesture",
        (128, 128, 2),
        11,
        "ibmGestureTrain/*/*.npy",
        "ibmGestureTest/*/*.npy",
        "3 GB",
    ),
}


@dataclass(frozen=True, eq=False)
class EventData:
    """A data set of recordings: its name, its two parts, and a line for the run's record."""

    name: str
    train: Recordings
    test: Recordings
    note: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels, from 0; empty where they have none but their numbers."""
        return CLASSES.get(self.name, ())


def load_recordings(
    name: str,
    data_path: str | os.PathLike[str],
    *,
    download: bool = True,
    time_bin: float = 10.0,
    bins: int | None = None,
    pool: int = 1,
) -> EventData:
    """Read a data set of recordings, and count its events into frames.

    - `"shd"`: Spiking Heidelberg Digits, spoken digits as the spikes of 700 channels of a cochlea,
      20 classes (Cramer et al., IEEE TNNLS 33(7), 2022): `<data_path>/SHD/shd_train.h5` and
      `shd_test.h5`. A frame is `[700 / pool]`.
    - `"nmnist"`: MNIST seen by a moving camera of 34 x 34 pixels, 10 classes (Orchard et al.,
      Frontiers in Neuroscience 9:437, 2015): `<data_path>/NMNIST/Train/0/00002.bin` and so on. A
      frame is `[2, 34 / pool, 34 / pool]`.
    - `"dvs_gesture"`: gestures seen by a camera of 128 x 128 pixels, 11 classes (Amir et al., CVPR
      2017), as tonic cuts them: `<data_path>/DVSGesture/ibmGestureTrain/user01_led/0.npy` and so
      on. A frame is `[2, 128 / pool, 128 / pool]`.

    Args:
        name: one of these.
        data_path: the folder that the files lie in.
        download: fetch what is absent from the network.
        time_bin: milliseconds of a step, see `Binning`.
        bins: instead, so many steps for every recording.
        pool: neighbouring channels, or pixels of each side, that are counted as one.

    Raises:
        DataError: an unknown name, files that are missing and cannot be fetched, or damaged ones.
        TypeError, ValueError: as `Binning`.
        MissingDependencyError: tonic is not installed.
    """
    source = source_of(name)
    binning = Binning(source.sensor_size, time_bin, bins, pool)
    train, test = (
        _read(open_recordings(name, data_path, train=train, download=download), name, binning)
        for train in (True, False)
    )
    steps = f"{bins} steps each" if bins is not None else f"steps of {time_bin:g} ms"
    note = (
        f"{name} ({len(train):,} training and {len(test):,} test recordings from "
        f"{Path(data_path).expanduser() / source.tonic}, in {steps})"
    )
    return EventData(name, train, test, note)


def open_recordings(
    name: str,
    data_path: str | os.PathLike[str],
    *,
    train: bool = True,
    download: bool = True,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    """Return tonic's own data set of `(events, label)`, for a `DataLoader` or a loop of one's own.

        data = ns.data.open_recordings("shd", "data", transform=ns.data.Binning((700, 1, 1)))
        loader = DataLoader(data, 64, collate_fn=ns.data.collate)

    Args:
        name: as for `load_recordings`.
        data_path: as for `load_recordings`.
        train: the training part, else the test part.
        download: as for `load_recordings`.
        transform: called with the events of a recording, structured as tonic has them, such as a
            `Binning` or one of `tonic.transforms`.

    Raises:
        DataError: an unknown name, or files that are missing and cannot be fetched, or that are
            damaged.
        MissingDependencyError: tonic is not installed.
    """
    source = source_of(name)
    base = _tonic(source.tonic)
    root = Path(data_path).expanduser()
    folder = root / source.tonic
    files = source.train if train else source.test
    if root.is_file() or folder.is_file():
        raise DataError(f"the data path {data_path} is a file: give the folder of the data.")

    def is_whole(self: Any) -> bool:
        """True for files that are there; beside their archive, as many as tonic expects of it."""
        if next(folder.glob(files), None) is None:
            return False
        return not self._is_file_present() or bool(base._check_exists(self))

    def fetch(self: Any) -> None:
        _fetch(
            name, source, folder, folder / files, lambda: base.download(self), self.url, download
        )

    # Under tonic's name, which is that of its folder.
    reader = type(source.tonic, (base,), {"_check_exists": is_whole, "download": fetch})
    try:
        data = reader(str(root), train=train, transform=transform)
    except _NOT_READ as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(name, folder, error) from error
    data.__class__ = base  # which worker processes can find
    return data


def source_of(name: str) -> Source:
    """Return the row of a data set. Raises DataError for another name."""
    check_name(name, tuple(SOURCES))
    return SOURCES[name]


def _tonic(name: str) -> Any:
    try:
        datasets = importlib.import_module("tonic.datasets")
    except (ImportError, RuntimeError, AttributeError) as error:  # such as one for another NumPy
        raise MissingDependencyError(
            f"recordings of events need tonic, which does not import ({last_line(error)}): "
            "pip install -U tonic"
        ) from error
    return getattr(datasets, name)


def _fetch(
    name: str,
    source: Source,
    folder: Path,
    files: Path,
    download: Callable[[], None],
    url: str,
    is_allowed: bool,
) -> None:
    """Let tonic download. Raises DataError, in a line, if it fails or is not allowed."""
    try:
        if not is_allowed:
            raise RuntimeError("downloading was not allowed")
        reach([url])
        with bounded():
            download()
    except _NOT_FETCHED as error:
        raise DataError(
            f"{name} is not whole in {folder} and could not be downloaded ({last_line(error)}): "
            f"put its files there, {files} ({url}), or give a network to download {source.size} "
            "from."
        ) from error


def _read(data: Any, name: str, binning: Binning) -> Recordings:
    """Read all recordings of a part. Raises DataError for damaged files, or none."""
    cells, lengths, labels = [], [], []
    folder = Path(data.location_on_system)
    for number in range(len(data)):
        try:
            events, label = data[number]
        except _NOT_READ as error:
            raise _damaged(name, folder, error, number) from error
        try:
            found, steps = binning.cells(events)
        except ValueError as error:
            raise DataError(f"{name} in {folder}, recording {number}: {error}") from error
        cells.append(found)
        lengths.append(steps)
        labels.append(int(label))
    if not labels:
        raise DataError(f"{name} in {folder} holds no recordings: delete the folder and try again.")
    classes = SOURCES[name].classes
    if not 0 <= min(labels) <= max(labels) < classes:
        raise DataError(
            f"{name} in {folder} has labels from {min(labels)} to {max(labels)}, and they should "
            f"be 0 to {classes - 1}: replace its files."
        )
    counts = torch.tensor([len(one) for one in cells])
    return Recordings(
        torch.cat(cells), counts, torch.tensor(lengths), torch.tensor(labels), binning.shape
    )


def _damaged(name: str, folder: Path, error: Exception, number: int | None = None) -> DataError:
    where = "" if number is None else f", recording {number}"
    return DataError(
        f"{name} in {folder}{where} cannot be read ({last_line(error)}): replace its files, or "
        "delete the folder and they are downloaded anew."
    )


def frame_size(name: str, pool: int) -> int:
    """Return how many numbers a frame has. Raises ValueError for a `pool` that does not fit."""
    return math.prod(Binning(source_of(name).sensor_size, pool=pool).shape)
