"""Ink, paper and light: what the pages of `pages.py` are drawn with, and files of them."""

import io

import numpy as np
from PIL import Image

Array = np.ndarray


def pen(digit: Array, longest: int, rng: np.random.Generator, level: float = 0.5) -> Array:
    """The digit cut to its ink and enlarged, its longer side `longest` pixels, ink 1.

    By chance the ink is soft, as a pencil's, or has sharp edges, as a pen's; a higher `level`
    makes those strokes thinner.
    """
    rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
    cut = np.pad(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    scale = longest / max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    size = [max(1, round(side * scale)) for side in cut.shape[::-1]]
    ink = np.asarray(Image.fromarray(cut.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    ink = ink.clip(0, 1)
    if level != 0.5 or rng.random() < 0.5:
        ink = ((ink - level) * min(8, max(2, scale)) + 0.5).clip(0, 1)
    return ink


def turned(layer: Array, degrees: float) -> Array:
    """The layer turned counterclockwise, with the room it needs."""
    image = Image.fromarray(layer.astype(np.float32))
    return np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)).clip(0, 1)


def written(
    digit: Array,
    rng: np.random.Generator,
    *,
    width: tuple[int, int] = (100, 1000),
    share: tuple[float, float] = (0.25, 0.6),
    anywhere: bool = False,
    tilt: float = 0.0,
    level: float = 0.5,
) -> Array:
    """How much ink is where on a page of random size `[H, W]`, 0 to 1.

    width: of the page in pixels, drawn evenly by orders of magnitude. share: of the page's width
    that the digit's longer side takes. anywhere: not only near the middle. tilt: most degrees.
    """
    across = round(float(np.exp(rng.uniform(*np.log(width)))))
    down = round(across * rng.uniform(0.75, 1.3))
    ink = pen(digit, max(8, round(across * rng.uniform(*share))), rng, level)
    if tilt:
        ink = turned(ink, rng.uniform(-tilt, tilt))
    page = np.zeros((down, across), dtype=np.float32)
    spare = [max(0, whole - part) for whole, part in zip(page.shape, ink.shape)]
    # Writing keeps some distance from the edge of its paper.
    place = rng.uniform(0.08, 0.92, 2) if anywhere else rng.uniform(0.4, 0.6, 2)
    top, left = (round(room * where) for room, where in zip(spare, place))
    ink = ink[:down, :across]
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return page


def seen(ink: Array, paper: Array | float = 1.0, dark: Array | float = 0.1) -> Array:
    """Brightness of paper with this ink on it."""
    return paper * (1 - ink) + dark * ink


def light(shape: tuple[int, ...], rng: np.random.Generator, edge: float, least: float = 0.65):
    """Light from `least` on one side to 1 on the other; `edge` is the share the change takes."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    along = x / shape[1] * np.cos(angle) + y / shape[0] * np.sin(angle)
    along = (along - along.min()) / (along.max() - along.min())
    middle = 0.5 if edge >= 1 else rng.uniform(0.35, 0.65)
    return least + (1 - least) * ((along - middle) / edge + 0.5).clip(0, 1)


def saved(page: Array, kind: str = "PNG", **options: object) -> bytes:
    """The page `[H, W]` or `[H, W, C]` in 0 to 1 as an 8-bit file."""
    return encoded(
        Image.fromarray((page.clip(0, 1) * 255).round().astype(np.uint8)), kind, **options
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's content."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
