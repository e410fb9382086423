"""Place a digit in 28 x 28 as the pictures of a data set are."""

from typing import Literal

import numpy as np
import torch

Ink = Literal["auto", "light", "dark"]

SIZE = 28  # pixels of a training picture's side
PURE = 0.04  # of full scale: as near to black or white as a JPEG leaves it


def as_it_is(grey: np.ndarray, ink: Ink, dataset: str) -> np.ndarray | None:
    """The picture `[28, 28]` itself or its negative if it is one of `dataset`, else None.

    A blank picture is none of them. Training pictures have much pure black, and MNIST's digits have
    a place: all 70,000 are within these bounds.
    """
    black, white = float((grey <= PURE).mean()), float((grey >= 1 - PURE).mean())
    light = ink == "light" or (ink == "auto" and black >= white)
    ground, picture = (black, grey) if light else (white, 1 - grey)
    if picture.max() <= PURE:
        return None
    if dataset != "mnist":
        return picture if ground >= 0.2 else None
    return picture if ground >= 0.5 and _lies_as_mnist(picture) else None


def _lies_as_mnist(picture: np.ndarray) -> bool:
    inked = picture > 0.2
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    if not len(rows):
        return False
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    places = np.arange(SIZE)
    centres = [float(picture.sum(axis) @ places / picture.sum()) for axis in (0, 1)]
    return bool(14 <= longest <= 21) and all(abs(centre - SIZE / 2) <= 1 for centre in centres)


def framed(strength: np.ndarray, dataset: str) -> np.ndarray:
    """Ink `[h, w]` of 0 to 1, cut to the digit, placed in 28 x 28 as in `dataset`."""
    if dataset == "digits":
        small = _place(_fit(strength, 8), 8, by_mass=False)
        tensor = torch.from_numpy(small)[None, None]
        enlarged = torch.nn.functional.interpolate(
            tensor, size=(SIZE, SIZE), mode="bilinear", align_corners=False
        )
        return enlarged[0, 0].numpy()
    longest = 20 if dataset == "mnist" else SIZE
    return _place(_fit(strength, longest), SIZE, by_mass=dataset == "mnist")


def _fit(digit: np.ndarray, longest: int) -> np.ndarray:
    """Resize so that the longer side has `longest` pixels, and the strongest is 1 again."""
    from PIL import Image

    height, width = digit.shape
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(np.ascontiguousarray(digit, dtype=np.float32))
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return (resized / resized.max()).clip(0, 1)


def _place(digit: np.ndarray, side: int, *, by_mass: bool) -> np.ndarray:
    """Put into a square of `side`: its middle, or its centre of mass, in the square's middle."""
    starts = []
    for axis, length in enumerate(digit.shape):
        middle = (length - 1) / 2
        if by_mass:
            mass = digit.sum(1 - axis)
            middle = float((mass * np.arange(length)).sum() / mass.sum())
        starts.append(min(max(round((side - 1) / 2 - middle), 0), side - length))
    top, left = starts
    canvas = np.zeros((side, side), dtype=np.float32)
    canvas[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return canvas
