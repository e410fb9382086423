"""CIFAR-10, out of the files of its python version.

They are pickles, and a pickle may hold any program. Here nothing but NumPy's arrays is made of
them, so files from wherever can be read; torchvision, which takes seconds to import, is not needed.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import codecs
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurospike.errors import DataError

from .classes import CLASSES
from .fetching import last_line
from .split import DigitData, Split

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = [f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]
SIDE = 32
PAGE, ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar-10-python.tar.gz"


def load_cifar10(root: Path) -> DigitData:
    """Read it from `root/cifar-10-batches-py`, colour pictures uint8 `[N, 3, 32, 32]`.

    Errors: `DataError` for files that are missing or damaged.
    """
    folder = root / FOLDER
    missing = [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"cifar10 is not whole in {folder}: {missing[0]} is missing. Get {ARCHIVE} (170 MB) "
            f"from {PAGE} and unpack it in {root}, or give the data path where it is."
        )
    train, test = _read(folder, TRAIN), _read(folder, TEST)
    note = f"cifar10 ({len(train):,} training and {len(test):,} test pictures from {folder})"
    return DigitData("cifar10", train, test, note, CLASSES["cifar10"])


def _read(folder: Path, names: Sequence[str]) -> Split:
    parts = [_read_file(folder / name) for name in names]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(images, labels)


def _read_file(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with path.open("rb") as file:
            found = _Arrays(file, encoding="bytes").load()
        images = np.asarray(found[b"data"])
        labels = np.asarray(found[b"labels"], dtype=np.int64)
        if images.dtype != np.uint8 or images.shape != (len(labels), 3 * SIDE**2):
            raise ValueError(f"pictures {images.dtype} {list(images.shape)}, {len(labels)} labels")
        if not len(labels) or not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError("labels must be 0 to 9, and there must be some")
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path} cannot be read as a file of cifar10 ({last_line(error)}): unpack {ARCHIVE} "
            f"({PAGE}) anew."
        ) from error
    return torch.from_numpy(images.reshape(-1, 3, SIDE, SIDE).copy()), torch.from_numpy(labels)


class _Arrays(pickle.Unpickler):
    """Makes arrays and what Python itself has, and runs nothing else that a file names."""

    KNOWN = {  # noqa: RUF012 (never written to)
        ("numpy", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what the file asks for; UnpicklingError for anything but arrays."""
        try:
            return self.KNOWN[module.partition(".")[0], name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds more than arrays: {module}.{name}") from None
