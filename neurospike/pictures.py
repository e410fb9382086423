"""From a picture file of any kind to the 28 x 28 intensities a network was trained on.

A scan, a photograph or a drawing differs from a training picture in size, colour, polarity and in
where the digit lies. What is done about each is in `read_picture`.
"""

import io
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from neurospike.errors import MissingDependencyError, PictureError

SIZE = 28  # pixels a side of every training picture
MOST_PIXELS = 50_000_000  # a phone takes 12 million; some headers promise a thousand million
LEAST_CONTRAST = 0.04  # of full scale; below it there is noise but no digit

Ink = Literal["auto", "light", "dark"]

# Formats that pillow reads by starting another program, or only by a plug-in of the user's.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


def suffixes() -> frozenset[str]:
    """File name endings of the formats that are read, in small letters with their dot."""
    image = _pillow()
    return frozenset(
        suffix
        for suffix, name in image.registered_extensions().items()
        if name in image.OPEN and name not in _NOT_READ
    )


def read_picture(
    path: str | Path,
    ink: Ink = "auto",
    dataset: str = "mnist",
    *,
    content: bytes | None = None,
) -> tuple[Tensor, str | None]:
    """Read a picture of one digit as `[28, 28]` float32 in [0, 1], 0 the background.

    content: the file's bytes, if they are at hand already; `path` then only names it.

    - Any format pillow reads without another program's help; of several frames or pages the
      first, turned as its EXIF note says. 16 bits a pixel are scaled, not cut off.
    - Colours become luminance. Transparent parts take the background that what is opaque
      stands out from, white or black.
    - The background is the median of the outermost pixels. `ink="auto"` takes what is farthest
      from it for the digit, `"light"` or `"dark"` says it.
    - A picture of 28 x 28 is taken as it is, but for a dark digit, which is inverted: it is
      what the training pictures are. Any other is stretched in contrast and cut to its digit,
      which is placed as in the data set that the network learnt: for MNIST the longer side 20
      pixels and the centre of mass in the middle (LeCun et al. 1998, doi:10.1109/5.726791);
      for `dataset="digits"` as its own 8 x 8 grids; else the longer side 28 pixels.

    Returns the intensities, and a note on what was left out or None.

    Raises:
        PictureError: in one line, that names the file: not to be read, no picture, damaged,
            larger than 50 million pixels, or blank.
        MissingDependencyError: without pillow.
    """
    grey, note = _read_grey(Path(path), content)
    height, width = grey.shape
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = float(np.median(border))
    below, above = background - float(grey.min()), float(grey.max()) - background
    dark = ink == "dark" or (ink == "auto" and below > above)
    contrast = below if dark else above
    if contrast < LEAST_CONTRAST:
        wanted = {"auto": "a", "light": "a light", "dark": "a dark"}[ink]
        raise PictureError(
            f"{path}: blank: {wanted} digit on a background of another brightness is wanted, and "
            f"nothing differs by {LEAST_CONTRAST:.0%} of full scale"
        )
    if (height, width) == (SIZE, SIZE):
        return torch.from_numpy(1 - grey if dark else grey), note
    strength = (background - grey if dark else grey - background) / contrast
    return torch.from_numpy(_frame(strength.clip(0, 1), dataset)), note


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            f"pictures are read by pillow, which does not import ({error}): pip install pillow"
        ) from error
    Image.init()
    return Image


def _read_grey(path: Path, content: bytes | None) -> tuple[np.ndarray, str | None]:
    """Brightness float32 `[H, W]` in [0, 1], 1 is white."""
    image_module = _pillow()
    from PIL import ImageOps

    if content is None and path.exists() and not path.is_file():
        raise PictureError(f"{path}: not a file that holds a picture")
    try:
        # Of odd but harmless files; and pillow's warning of large ones, which are refused here.
        with _opened(path, content) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = [name for name in image_module.OPEN if name not in _NOT_READ]
            image = image_module.open(file, formats=formats)
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise PictureError(f"{path}: {width} x {height} {_TOO_LARGE}")
            frames = getattr(image, "n_frames", 1)
            image.seek(0)
            image.load()
            grey = _grey(ImageOps.exif_transpose(image))
    except PictureError:
        raise
    except image_module.DecompressionBombError:
        raise PictureError(f"{path}: the picture {_TOO_LARGE}") from None
    except image_module.UnidentifiedImageError:
        empty = path.stat().st_size == 0 if content is None else not content
        what = "the file is empty" if empty else "not a picture of a format that pillow reads"
        raise PictureError(f"{path}: {what}") from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory") from None
    except Exception as error:  # noqa: BLE001 (pillow answers damage with almost any)
        reason = getattr(error, "strerror", None)
        if reason:
            raise PictureError(f"{path}: cannot be read: {reason}") from None
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{path}: damaged, or of a kind pillow cannot read: {said}") from None
    return grey, (f"the first of {frames} frames" if frames > 1 else None)


def _opened(path: Path, content: bytes | None) -> BinaryIO:
    return path.open("rb") if content is None else io.BytesIO(content)


_TOO_LARGE = f"is too large; at most {MOST_PIXELS:,} pixels are read: make it smaller"


def _grey(image: Any) -> np.ndarray:
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("it holds values that are no numbers")
        return (values - low) / (high - low) if high > low else np.zeros_like(values)
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of several byte orders
        return (np.asarray(image) / 65535).clip(0, 1).astype(np.float32)
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if not has_alpha:
        # Not / np.float32(255), to give the bits that training gets from its uint8 pictures.
        return torch.from_numpy(np.array(image.convert("L"))).float().div_(255).numpy()
    rgba = image.convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
    grey = np.asarray(rgba.convert("RGB").convert("L"), dtype=np.float32) / 255
    opaque = float(alpha.sum())
    brightness = float((grey * alpha).sum()) / opaque if opaque else 0.0
    backdrop = 0.0 if brightness > 0.5 else 1.0
    return grey * alpha + backdrop * (1 - alpha)


def _frame(strength: np.ndarray, dataset: str) -> np.ndarray:
    """Cut the digit out and place it in 28 x 28 as the pictures of `dataset` are."""
    # Measured best on enlarged test pictures; half would lose grey strokes, less takes in shadows.
    inked = strength > 0.2
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    digit = strength[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if dataset == "digits":
        small = _place(_fit(digit, 8), 8, by_mass=False)
        tensor = torch.from_numpy(small)[None, None]
        enlarged = torch.nn.functional.interpolate(
            tensor, size=(SIZE, SIZE), mode="bilinear", align_corners=False
        )
        return enlarged[0, 0].numpy()
    longest = 20 if dataset == "mnist" else SIZE
    return _place(_fit(digit, longest), SIZE, by_mass=dataset == "mnist")


def _fit(digit: np.ndarray, longest: int) -> np.ndarray:
    """Resize so that the longer side has `longest` pixels, and the strongest is 1 again."""
    height, width = digit.shape
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = _pillow().fromarray(np.ascontiguousarray(digit, dtype=np.float32))
    resized = np.asarray(image.resize(size, _pillow().Resampling.BILINEAR))
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
