"""Pictures of one's own as a data set: a folder for each class, as torchvision's `ImageFolder` has.

All pictures are read once and kept in memory, as the other data sets are, so that an epoch costs no
reading; a limit tells when there are too many for that.
"""

import hashlib
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import torch

from neurospike.errors import DataError, PictureError
from neurospike.ops.arguments import check_count, check_flag

from .split import DigitData, Split

PARTS = ("train", "test")
MOST_BYTES = 4_000_000_000  # of all pictures, as they are kept
NAMED = 3  # damaged files that a message names


def load_folder(
    data_path: str | os.PathLike[str],
    *,
    size: int = 28,
    colour: bool = False,
    test: float = 0.2,
    seed: int = 0,
) -> DigitData:
    """Read a folder of picture files, the names of whose sub-folders are the classes.

    Either `<data_path>/train/<class>/*.png` and `<data_path>/test/<class>/*.png`, or
    `<data_path>/<class>/*.png`; of the latter, test pictures are drawn from each class. A class's
    sub-folders are looked into, names that begin with a dot and files that are no pictures by name
    are passed over. Labels are the places of the classes in the order of their names.

    Args:
        data_path: the folder.
        size: side of each picture in pixels: uint8 `[size, size]`, or `[3, size, size]` of
            coloured ones; see `neurospike.pictures.read_whole`.
        colour: keep red, green and blue.
        test: share of each class's pictures, at least one of two, that is held out where `train`
            and `test` are missing.
        seed: draws them, by their names, so that a picture which is added later moves few others.

    Raises:
        DataError: a folder that is not there or has no such layout, an empty class, test pictures
            of a class that is not trained on, files that are damaged (the first few are named), or
            more than 4 GB of pictures.
        TypeError, ValueError: another `size`, `colour` or `test` than these can be.
    """
    size, colour = check_count("size", size), check_flag("colour", colour)
    if isinstance(test, bool) or not isinstance(test, Real) or not 0 < test < 1:
        raise ValueError(f"test must be a share above 0 and below 1, got {test!r}")
    root = Path(data_path).expanduser()
    classes = class_names(root)
    drawn = not _has_parts(root)
    if drawn:
        found = [_files(root / name) for name in classes]
        tests = [_held_out(files, root, test, seed) for files in found]
        rest = [sorted(set(files).difference(held)) for files, held in zip(found, tests)]
        parts = [rest, tests]
    else:
        parts = [
            [_files(root / part / name, part == "train") for name in classes] for part in PARTS
        ]
    _check_room(sum(len(files) for part in parts for files in part), size, colour, root)
    train, test_split = _read(parts, size, colour, root)
    how = f", test pictures drawn by seed {seed}" if drawn else ""
    note = (
        f"folder ({len(train):,} training and {len(test_split):,} test pictures of "
        f"{len(classes)} classes from {root}{how}; scaled to {size} x {size}, "
        f"{'colour' if colour else 'grey'})"
    )
    return DigitData("folder", train, test_split, note, tuple(classes))


def class_names(data_path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the classes in a folder of pictures, sorted. Raises DataError."""
    root = Path(data_path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise DataError(f"the folder of pictures {root} {what}: {_LAYOUT}")
    has_parts = _has_parts(root)
    classes = _inner(root / "train" if has_parts else root)
    if len(classes) < 2:
        have = f"the only class {classes[0]}" if classes else "no sub-folder"
        raise DataError(f"{root / 'train' if has_parts else root} has {have}: {_LAYOUT}")
    unknown = sorted(set(_inner(root / "test")) - set(classes)) if has_parts else []
    if unknown:
        raise DataError(
            f"{root / 'test'} has the class {unknown[0]}, which {root / 'train'} lacks: a network "
            "can only be tested on the classes that it learns"
        )
    return classes


_LAYOUT = (
    "give by --data_path a folder with at least two sub-folders, one per class with its pictures "
    "in it, or with train and test, which have them"
)


def _has_parts(root: Path) -> bool:
    return all((root / part).is_dir() for part in PARTS)


def _inner(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, needed: bool = True) -> list[Path]:
    """Return the pictures of a class, by name; DataError if there are none and some are needed."""
    from neurospike.pictures import suffixes  # here, because `import neurospike` needs no scipy

    known = suffixes()
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in known
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if needed and not files:
        raise DataError(
            f"the class {folder.name} has no pictures in {folder}: add some, or remove the folder"
        )
    return files


def _held_out(files: Sequence[Path], root: Path, share: float, seed: int) -> list[Path]:
    """Draw the test pictures of a class: those whose names have the lowest hashes.

    The draw thus depends neither on the order of a listing nor on other classes.
    """

    def place(path: Path) -> bytes:
        name = f"{seed}/{path.relative_to(root).as_posix()}"
        # Names of other encodings than UTF-8 are taken byte by byte.
        return hashlib.sha256(name.encode(errors="surrogateescape")).digest()

    count = min(max(round(share * len(files)), 1), len(files) - 1)
    return sorted(sorted(files, key=place)[:count])


def _check_room(count: int, size: int, colour: bool, root: Path) -> None:
    taken = count * size * size * (3 if colour else 1)
    if taken > MOST_BYTES:
        raise DataError(
            f"{root}: {count:,} pictures of {size} x {size} take {taken / 1e9:,.1f} GB, and all of "
            f"a data set are kept in memory, {MOST_BYTES / 1e9:g} GB at most: use a smaller "
            "--pictures.size, or fewer pictures"
        )


def _read(
    parts: Sequence[Sequence[Sequence[Path]]], size: int, colour: bool, root: Path
) -> list[Split]:
    """Read the files of each class of each part. Raises DataError that names damaged ones."""
    from tqdm import tqdm

    from neurospike.pictures import read_whole

    sizes = [sum(map(len, classes)) for classes in parts]
    files = [
        (path, label) for classes in parts for label, paths in enumerate(classes) for path in paths
    ]
    images = np.empty((len(files), 3 if colour else 1, size, size), dtype=np.uint8)
    damaged = []
    # None: no bar but on a terminal.
    for number, (path, _) in enumerate(tqdm(files, "reading pictures", leave=False, disable=None)):
        try:
            images[number], _note = read_whole(path, size, colour)
        except PictureError as error:
            damaged.append(str(error))
    if damaged:
        more = f"\n... and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise DataError(
            f"{len(damaged)} of {len(files)} pictures in {root} cannot be read; mend or delete "
            "them:\n" + "\n".join(damaged[:NAMED]) + more
        )
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    pixels = torch.from_numpy(images if colour else images[:, 0])
    return [Split(*pair) for pair in zip(pixels.split(sizes), labels.split(sizes), strict=True)]
