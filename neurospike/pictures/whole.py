"""A picture file as a whole, where a network has learnt from whole pictures and not from ink.

The pictures of a data set of one's own and those that its network is asked about come through here,
so that the same file is the same numbers in training and in prediction.
"""

from pathlib import Path
from typing import Any

import numpy as np

from .files import frames, scaled

FLAT = 2  # levels of 255 between the darkest and the brightest; with fewer nothing is to be seen


def read_whole(
    path: str | Path, size: int, colour: bool, *, content: bytes | None = None
) -> tuple[np.ndarray, str | None]:
    """Read a picture as uint8 `[C, size, size]`, C 3 (red, green, blue) of colour, else 1 (grey).

    content: the file's bytes, if they are at hand already; `path` then only names it.

    Any format that `read_picture` takes, turned as its EXIF note says, the first of several frames;
    on white where it is transparent. It is scaled to a square whatever its proportions were
    (bilinear, and every pixel counts where it gets smaller).

    Returns the picture, and what a reader of an answer should know of it, or None. Raises
    PictureError in one line that names the file, MissingDependencyError without pillow.
    """
    shape = (0, 0)

    def seen(image: Any) -> np.ndarray:
        nonlocal shape
        shape = image.size
        return _squared(image, size, colour)

    _, count, picture = next(frames(Path(path), content, seen))
    notes = [f"the first of {count} frames"] if count > 1 else []
    if max(shape) < size:
        notes.append(f"only {shape[0]} x {shape[1]} pixels large, and enlarged to {size} x {size}")
    if np.ptp(picture) < FLAT:
        notes.append("the picture is of one colour all over")
    return picture, "; ".join(notes) or None


def _squared(image: Any, size: int, colour: bool) -> np.ndarray:
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # more than 8 bits per pixel
        image = Image.fromarray((scaled(np.asarray(image)) * 255).round().astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    flat = image.convert("RGB" if colour else "L").resize((size, size), Image.Resampling.BILINEAR)
    array = np.array(flat)  # a copy: torch warns of arrays that cannot be written
    return np.ascontiguousarray(array.transpose(2, 0, 1)) if colour else array[None]
