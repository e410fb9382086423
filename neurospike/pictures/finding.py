"""From the brightness of a page to the ink of the one digit on it.

What is paper and what is ink is found by what holds of writing under any light: strokes are narrow,
darker (or lighter) than the paper on both sides of them, and hang together; they stand in from the
edge. What only borders the picture, frames it, or is a speck beside the digit is no digit.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from neurospike.errors import PictureError

from .framing import Ink

LEAST_CONTRAST = 0.04  # of full scale; below it there is noise but no digit
SIDE = 400  # pixels of the longer side that are looked at; a digit of 8% of it still has 32
STROKE = 0.25  # of the longer side: no stroke is as wide, no shadow as narrow
FAINTEST = 0.2  # of a digit's darkest ink: measured best on enlarged test pictures
BLUR = 600  # the longer side over the radius by which grain is smoothed first
NEAR, FAR = 0.08, 0.2  # of the digit's size, between its parts: any of them, and small ones
LEAST_AREA = 3  # pixels of a patch of ink; grain has fewer
LEAST_SHARE = 0.03  # of the picture's longer side; what is smaller is dust
LEAST_SIZE = 12  # pixels of a digit; with fewer its shape is lost
CORNERS_TOO = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner hang together


@dataclass(frozen=True)
class Piece:
    """A patch of ink that hangs together."""

    number: int
    rows: slice
    columns: slice
    mass: float
    peak: float
    area: int
    border: float  # share of the picture's outermost pixels that it covers

    @property
    def size(self) -> int:
        """Its longer side in pixels."""
        return max(self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)


@dataclass(frozen=True)
class Found:
    """A digit: its ink `[h, w]`, cut to it, 1 where it is strongest.

    notes: what to say of it. score: how much like writing it is; it has no unit.
    """

    strength: np.ndarray
    notes: list[str]
    score: float


def find_digit(grey: np.ndarray, ink: Ink, writing: bool = True) -> Found:
    """Find the digit in brightness `[H, W]` of 0 to 1.

    ink: dark or light; `"auto"` tries both. writing: look for strokes; else for things of any
    width, on a ground that then has to be of one brightness. Raises PictureError, which says why.
    """
    scale = min(1.0, SIDE / max(grey.shape))
    small = grey if scale == 1 else _resized(grey, scale)
    low, ground, high = float(small.min()), float(np.median(small)), float(small.max())
    if high - low < LEAST_CONTRAST:
        raise PictureError(
            f"blank: {_WANTED[ink]} digit on a background of another brightness is wanted, and "
            f"nothing differs by {LEAST_CONTRAST:.0%} of full scale"
        )
    darker = (ground - low) / (high - low)  # near 1 where the picture is mostly light
    found: list[tuple[float, Found]] = []
    reasons = []
    for dark, likely in ((True, darker), (False, 1 - darker)):
        if ink != "auto" and (ink == "dark") != dark:
            continue
        if ink != "auto" and likely * (high - low) < LEAST_CONTRAST:
            raise PictureError(
                f"blank: {_WANTED[ink]} digit is wanted, and nothing is {ink}er than the background"
            )
        try:
            one = _found(small, dark, STROKE if writing else 1.0, scale)
        except PictureError as error:
            reasons.append(error)
        else:
            found.append((one.score * (0.2 + likely), one))
    if not found:
        raise reasons[0]
    return max(found, key=lambda one: one[0])[1]


_WANTED = {"auto": "a", "light": "a light", "dark": "a dark"}


def _resized(grey: np.ndarray, scale: float) -> np.ndarray:
    from PIL import Image

    size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))


def _found(grey: np.ndarray, dark: bool, stroke: float, scale: float) -> Found:
    """The digit whose ink is darker, or lighter, than its paper."""
    grey = grey if dark else 1 - grey
    ink, least = _ink(grey, stroke, shaded=dark)
    pieces, labels = _pieces(ink, least)
    if not pieces and np.bincount(labels.ravel())[1:].max(initial=0) < LEAST_AREA:
        raise PictureError("nothing stands out from its grain and its light: a digit is wanted")
    if not pieces:
        raise PictureError("only its edges differ from the rest: a digit away from them is wanted")
    peak = _main(pieces).peak
    pieces, labels = _pieces(ink, 0.5 * peak)
    if not pieces:
        raise PictureError("only specks or lines are on it: a digit is wanted")
    main = _main(pieces)
    peak = main.peak
    darkest = int(np.argmax(np.where(labels == main.number, ink, 0)))
    # Down to the faintest ink, unless that takes in the lines of the paper, shadows or an edge.
    for cut in (FAINTEST, 0.3, 0.4):
        grown, marks = _pieces(ink, cut * peak)
        whole = next((piece for piece in grown if piece.number == marks.flat[darkest]), None)
        if whole and whole.size < 2 * main.size and bool(whole.border) == bool(main.border):
            main, pieces, labels = whole, grown, marks
            break
    else:
        cut = 0.5
    pieces = [piece for piece in pieces if piece.peak > 0.5 * peak]
    group = _with_parts(main, pieces, labels)
    mask = np.isin(labels, [piece.number for piece in group])
    box = _box(mask)
    if max(mask[box].shape) < LEAST_SHARE * max(grey.shape):
        raise PictureError(
            f"only specks are on it, the largest {LEAST_SHARE:.0%} of its size or less: a digit is "
            "wanted; cut the picture to it"
        )
    near = ndimage.binary_dilation(mask[box], CORNERS_TOO, 2)
    floor = cut - FAINTEST
    strength = ((ink[box] / peak - floor) / (1 - floor) * near).clip(0, 1)
    notes = _notes(group, pieces, strength.shape, scale)
    score = _likeness(strength, grey[box], sum(piece.border for piece in group))
    return Found(strength, notes, peak * score)


def _ink(grey: np.ndarray, stroke: float, shaded: bool) -> tuple[np.ndarray, float]:
    """Return how much darker than its paper each pixel is, and above which level that is not noise.

    The paper is the morphological closing: what is left of a page when all dark that is narrower
    than `stroke` of its longer side is painted over. It keeps shadows, and their edges.

    shaded: as a share of the paper's brightness there, since a shadow takes from ink as from paper.
    """
    longest = max(grey.shape)
    smooth = ndimage.gaussian_filter(grey, longest / BLUR)
    window = max(3, round(stroke * longest))
    paper = ndimage.grey_closing(smooth, (window, window))
    ink = paper - smooth
    if shaded:
        ink /= paper.clip(0.2)
    # From the quarter with the least ink: paper, even where ink fills most of the picture.
    lowest, usual = (float(level) for level in np.percentile(ink, [5, 25]))
    noise = (usual - lowest) / 0.97  # the standard deviation of a normal distribution
    return (ink - usual).clip(0), max(LEAST_CONTRAST, 5 * noise)


def _pieces(ink: np.ndarray, least: float) -> tuple[list[Piece], np.ndarray]:
    """Return patches of more ink than `least`, edges left out, and each pixel's patch number."""
    labels, count = ndimage.label(ink > least, CORNERS_TOO)
    where = np.flatnonzero(labels)
    numbers, values = labels.flat[where], ink.flat[where]
    mass = np.bincount(numbers, values, count + 1)
    area = np.bincount(numbers, minlength=count + 1)
    peak = np.zeros(count + 1)
    np.maximum.at(peak, numbers, values)
    edge = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    border = np.bincount(edge, minlength=count + 1) / len(edge)
    pieces = [
        Piece(n, rows, columns, float(mass[n]), float(peak[n]), int(area[n]), float(border[n]))
        for n, (rows, columns) in enumerate(ndimage.find_objects(labels), 1)
        if area[n] >= LEAST_AREA
    ]
    return [piece for piece in pieces if not _is_edge(piece, labels)], labels


def _is_edge(piece: Piece, labels: np.ndarray) -> bool:
    """True for what borders or frames the picture: it is long, has corners, and an empty middle."""
    height, width = labels.shape
    tall = (piece.rows.stop - piece.rows.start) / height
    wide = (piece.columns.stop - piece.columns.start) / width
    if max(tall, wide) < 0.4 if piece.border else min(tall, wide) < 0.6:
        return False
    middle = labels[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if (middle == piece.number).sum() > 0.03 * piece.area:
        return False
    box = labels[piece.rows, piece.columns] == piece.number
    down, across = (max(1, round(0.06 * side)) for side in box.shape)
    corners = box[:down, :across], box[:down, -across:], box[-down:, :across], box[-down:, -across:]
    return any(bool(corner.any()) for corner in corners)


def _main(pieces: list[Piece]) -> Piece:
    """Return the largest piece; one that touches the picture's edge counts a tenth."""
    return max(pieces, key=lambda piece: piece.mass * (0.1 if piece.border else 1))


def _with_parts(main: Piece, pieces: list[Piece], labels: np.ndarray) -> list[Piece]:
    """Return the digit's largest piece with nearby ones that are small, or above or below it."""
    group = [main]
    others = [p for p in pieces if p is not main and p.mass > 0.02 * main.mass and not p.border]
    if not others:
        return group
    away = ndimage.distance_transform_edt(labels != main.number)
    for piece in others:
        box = piece.rows, piece.columns
        apart = away[box][labels[box] == piece.number].min() / main.size
        shared = min(p.columns.stop for p in (piece, main)) - max(
            p.columns.start for p in (piece, main)
        )
        narrower = min(p.columns.stop - p.columns.start for p in (piece, main))
        is_part = piece.mass < 0.3 * main.mass or shared > 0.5 * narrower
        if apart < (FAR if is_part else NEAR):
            group.append(piece)
    return group


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _likeness(strength: np.ndarray, grey: np.ndarray, border: float) -> float:
    """Return how much like writing this ink is: long for its width, with an edge all around.

    Ink along the picture's border is not writing, and the paper between a stroke and a shadow has
    an edge on some sides only.
    """
    inked = np.pad(strength > 0.5, 1)
    depth = ndimage.distance_transform_edt(inked)[1:-1, 1:-1]
    width = 2 * float(depth[depth > 0].mean())
    rise = ndimage.maximum_filter(grey, 5) - ndimage.minimum_filter(grey, 5)
    edge = float(rise[depth == 1].mean())
    return float(inked.sum()) / width**2 * (edge * (1 - border)) ** 2


def _notes(
    group: list[Piece], pieces: list[Piece], shape: tuple[int, ...], scale: float
) -> list[str]:
    """Return notes on what makes the digit that was found doubtful."""
    notes = []
    mass = sum(piece.mass for piece in group)
    beside = [piece for piece in pieces if piece not in group and piece.mass > 0.25 * mass]
    if beside:
        notes.append(f"{len(beside) + 1} pieces of ink, of which the largest was read")
    elif shape[1] > 1.4 * shape[0]:
        notes.append("wider than a digit: are there several? One is read")
    if any(piece.border for piece in group):
        notes.append("the ink touches the edge of the picture")
    longest = round(max(shape) / scale)
    if longest < LEAST_SIZE:
        notes.append(f"the digit is only {longest} pixels large")
    return notes
