"""From a picture file of any kind to the 28 x 28 intensities a network was trained on.

A scan, a photograph or a drawing differs from a training picture in size, colour, polarity, light
and in where the digit lies. `files.py` reads what is in the file, `finding.py` finds the ink of the
digit, `framing.py` places it as the training pictures are.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neurospike.errors import PictureError, needed_by

from .doubts import SEVERAL, doubts, side_by_side
from .files import frames, suffixes
from .framing import SIZE, Ink, as_it_is, framed
from .whole import read_whole

__all__ = ["SIZE", "Ink", "read_picture", "read_whole", "suffixes", "thing_of"]

# What a picture of a data set shows, in words; of the others a digit.
THINGS = {
    "fashion_mnist": "garment",
    "kmnist": "character",
    "cifar10": "picture",
    "folder": "picture",
}


def thing_of(dataset: str) -> str:
    """Return what a picture of a data set shows, as one would call it: a digit, a garment."""
    return THINGS.get(dataset, "digit")


def read_picture(
    path: str | Path,
    ink: Ink = "auto",
    dataset: str = "mnist",
    *,
    content: bytes | None = None,
) -> tuple[Tensor, str | None]:
    """Read a picture of one digit as `[28, 28]` float32 in [0, 1], 0 the background.

    content: the file's bytes, if they are at hand already; `path` then only names it.

    - Any format that pillow reads without another program's help, and HEIC where pillow-heif is
      installed; turned as its EXIF note says. Of several frames or pages the first that is not
      blank. More than 8 bits per pixel are scaled by the full scale that the values use (255, 1023,
      4095, 16383, 65535, ...), floats outside of [0, 1] by their own range.
    - Colours become luminance. A transparent margin takes the colour of the paper beside it;
      ink on nothing gets a background that it stands out from.
    - The digit is the strokes that stand out from the paper around them (`finding.py`): light may
      be uneven, and dark edges, specks and lines of the paper are left out. `ink="auto"` takes dark
      or light strokes, whichever are the better writing; `"light"` or `"dark"` says it.
    - A picture of 28 x 28 that is a training picture already, light or dark, is taken as it is.
      Any other is cut to its digit, stretched in contrast and placed as in the data set that the
      network learnt: for MNIST the longer side 20 pixels and the centre of mass in the middle
      (LeCun et al. 1998, doi:10.1109/5.726791); for `dataset="digits"` as its own 8 x 8 grids;
      else the longer side 28 pixels.

    Returns the intensities, and what a reader of the answer should know of the picture (frames and
    ink left out, ink at the edge, few pixels, several digits), or None.

    Raises:
        PictureError: in one line, that names the file: not to be read, no picture, damaged,
            larger than 50 million pixels, or nothing on it that can be read, and why.
        MissingDependencyError: without pillow or scipy.
    """
    with needed_by("reading a picture", "scipy", "pillow"):
        import scipy.ndimage  # noqa: F401 (else its lack would be told of as a damaged file)
    unread, thing = None, thing_of(dataset)
    for number, count, grey in frames(Path(path), content):
        try:
            picture, notes = _read(grey, ink, dataset)
        except PictureError as error:
            unread = unread or str(error).replace("digit", thing)
            continue
        notes = [note.replace("digit", thing) for note in notes]
        if number > 1:
            notes = [f"frame {number} of {count}, the first on which there is a {thing}", *notes]
        elif count > 1:
            notes = [f"the first of {count} frames", *notes]
        return torch.from_numpy(picture), "; ".join(notes) or None
    several = f" (so are the other {count - 1} frames)" if count > 1 else ""
    raise PictureError(f"{path}: {unread}{several}")


def _read(grey: np.ndarray, ink: Ink, dataset: str) -> tuple[np.ndarray, list[str]]:
    from .finding import find_digit

    digits = thing_of(dataset) == "digit"  # others may well be of several pieces
    if grey.shape == (SIZE, SIZE):
        ready = as_it_is(grey, ink, dataset)
        if ready is not None:
            return ready, doubts(ready) if digits else []
    found = find_digit(grey, ink, writing=dataset != "fashion_mnist")
    picture = framed(found.strength, dataset)
    # Of the others, what was left out of the picture or lies at its edge is known already.
    several = [SEVERAL] if digits and not found.notes and side_by_side(picture) else []
    return picture, found.notes + several
