"""What is in a picture file: brightness in [0, 1], frame by frame, whatever the format."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from neurospike.errors import MissingDependencyError, PictureError

MOST_PIXELS = 50_000_000  # a phone takes 12 million; some headers promise a thousand million
FULL_SCALES = [2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 31, 32)]
OPAQUE = 0.95  # alpha; below it a pixel is of a shadow, a soft edge or nothing
OWN_CONTRAST = 0.15  # of what is opaque, above which it is a card with ink and not ink alone

# Formats that pillow reads by starting another program, or only by a plug-in of the user's.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
_HEIF_SUFFIXES = (".heic", ".heif")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TOO_LARGE = f"is too large; at most {MOST_PIXELS:,} pixels are read: make it smaller"


def suffixes() -> frozenset[str]:
    """File name endings of the formats that are read, in small letters with their dot."""
    image = _pillow()
    known = {
        suffix
        for suffix, name in image.registered_extensions().items()
        if name in image.OPEN and name not in _NOT_READ
    }
    return frozenset({*known, *_HEIF_SUFFIXES})


def frames(
    path: Path, content: bytes | None, seen: Callable[[Any], np.ndarray] | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Number (from 1), count and brightness float32 `[H, W]` (1 is white) of each frame in turn.

    seen: what is made of pillow's picture instead of that. No more than 50 million pixels in all.
    Raises PictureError for what cannot be read.
    """
    if content is None and path.exists() and not path.is_file():
        raise PictureError(f"{path}: not a file that holds a picture")
    with _told(path, content), _file(path, content) as file:
        image = _opened(file)
        count = getattr(image, "n_frames", 1)
        left = MOST_PIXELS
        for number in range(1, count + 1):
            left -= image.width * image.height
            if left < 0 and number == 1:
                raise PictureError(f"{path}: {image.width} x {image.height} {_TOO_LARGE}")
            if left < 0:
                return
            yield number, count, _frame(image, number, seen or _grey)


def _file(path: Path, content: bytes | None) -> BinaryIO:
    return path.open("rb") if content is None else io.BytesIO(content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of odd but harmless files, and of large ones, which are refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(file: BinaryIO) -> Any:
    module = _pillow()
    start = file.read(12)
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise PictureError(
                "HEIC, as some phones save, which pillow reads with a plug-in only: "
                "pip install pillow-heif, or save the picture as JPEG or PNG"
            ) from None
        register_heif_opener()
    with _quiet():
        return module.open(file, formats=[name for name in module.OPEN if name not in _NOT_READ])


def _frame(image: Any, number: int, seen: Callable[[Any], np.ndarray]) -> np.ndarray:
    from PIL import ImageOps

    with _quiet():
        image.seek(number - 1)
        image.load()
        return seen(ImageOps.exif_transpose(image))


@contextmanager
def _told(path: Path, content: bytes | None) -> Iterator[None]:
    """Turn every error in reading a file into a PictureError of one line."""
    module = _pillow()
    try:
        yield
    except PictureError as error:
        named = str(error).startswith(f"{path}: ")
        raise error if named else PictureError(f"{path}: {error}") from None
    except module.DecompressionBombError:
        raise PictureError(f"{path}: the picture {_TOO_LARGE}") from None
    except module.UnidentifiedImageError:
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


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            f"pictures are read by pillow, which does not import ({error}): pip install pillow"
        ) from error
    Image.init()
    return Image


def _grey(image: Any) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        return scaled(np.asarray(image))
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if not has_alpha:
        # Not / np.float32(255), to give the bits that training gets from its uint8 pictures.
        return torch.from_numpy(np.array(image.convert("L"))).float().div_(255).numpy()
    rgba = image.convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
    grey = np.asarray(rgba.convert("RGB").convert("L"), dtype=np.float32) / 255
    return _on_ground(grey, alpha)


def scaled(values: np.ndarray) -> np.ndarray:
    """Brightness of pixels that have more than 8 bits, by the full scale that they use."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PictureError("it holds values that are no numbers")
    if values.dtype.kind != "f" and low >= 0:
        full = next(scale for scale in FULL_SCALES if high <= scale)
        return (values / full).astype(np.float32)
    if low >= 0 and high <= 1:
        return values.astype(np.float32)
    return ((values - low) / max(high - low, 1e-30)).astype(np.float32)


def _on_ground(grey: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Brightness of a picture that is transparent in parts.

    What is opaque either has paper and ink of its own, as a screenshot with rounded corners; its
    paper then goes on over the rest, shadows included. Or it is ink alone, on nothing.
    """
    from scipy import ndimage

    solid = alpha >= OPAQUE
    inner = ndimage.binary_erosion(solid)
    rim = inner & ~ndimage.binary_erosion(inner, border_value=1)
    if rim.any():
        contrast = float(np.abs(grey[inner] - np.median(grey[rim])).max())
        if contrast > OWN_CONTRAST:
            nearest = ndimage.distance_transform_edt(
                ~inner, return_distances=False, return_indices=True
            )
            return grey[tuple(nearest)]
    opaque = float(alpha.sum())
    brightness = float((grey * alpha).sum()) / opaque if opaque else 0.0
    ground = 0.0 if brightness > 0.5 else 1.0
    return grey * alpha + ground * (1 - alpha)
