"""scikit-learn's digits, read from its folder, because importing scikit-learn takes seconds."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neurospike.errors import MissingDependencyError

from .split import Split

FILE = "datasets/data/digits.csv.gz"  # a picture per line: 64 pixels of 0 to 16, and its label
TESTED = 360  # pictures, a fifth


def read_digits() -> tuple[Split, Split]:
    """Return the training and the test pictures: enlarged, and split as scikit-learn does.

    Raises MissingDependencyError where scikit-learn is not installed.
    """
    table = np.loadtxt(_file(), dtype=np.uint8, delimiter=",")
    labels = table[:, -1].astype(np.int64)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8).astype(np.float64)) * (255 / 16),
        size=(28, 28),
        mode="bilinear",
        align_corners=False,
    )
    images = enlarged.squeeze(1).round().to(torch.uint8)
    train, test = (
        Split(images[part], torch.from_numpy(labels)[part]) for part in _stratified(labels, TESTED)
    )
    return train, test


def _file() -> Path:
    try:
        found = importlib.util.find_spec("sklearn")
    except ImportError:
        found = None
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        if Path(folder, FILE).is_file():
            return Path(folder, FILE)
    lacks = f"has no {FILE}" if folders else "is not installed"
    raise MissingDependencyError(
        f"scikit-learn is needed for this data set and {lacks}: pip install scikit-learn"
    )


def _stratified(labels: np.ndarray, tested: int) -> tuple[Tensor, Tensor]:
    """Draw which pictures are trained on and which are for the test, of each label its share.

    The numbers are those of `sklearn.model_selection.train_test_split` for `random_state=0`.
    """
    random = np.random.RandomState(0)
    counts = np.bincount(labels)
    trains = _shares(counts, len(labels) - tested, random)
    tests = _shares(counts - trains, tested, random)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label, (count, train, test) in enumerate(zip(counts, trains, tests, strict=True)):
        mixed = np.flatnonzero(labels == label)[random.permutation(count)]
        parts[0].append(mixed[:train])
        parts[1].append(mixed[train : train + test])
    train_part, test_part = (random.permutation(np.concatenate(part)) for part in parts)
    return torch.from_numpy(train_part), torch.from_numpy(test_part)


def _shares(counts: np.ndarray, wanted: int, random: np.random.RandomState) -> np.ndarray:
    """Return how many of `wanted` pictures each label gets, by the `counts` of its pictures.

    Shares are rounded by the largest remainder, with equal ones drawn at random.
    """
    exact = counts / counts.sum() * wanted
    shares = np.floor(exact)
    remainders = exact - shares
    missing = int(wanted - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if not missing:
            break
        (equal,) = np.where(remainders == remainder)
        chosen = random.choice(equal, size=min(len(equal), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(np.int64)
