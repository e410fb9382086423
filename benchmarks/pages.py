"""Pages with a written digit, as people photograph, scan and save them: what a file of each holds.

Each kind is a function of `KINDS` that takes a digit `[28, 28]` in [0, 1] and a random generator,
and returns the content of a picture file. Nothing here knows how pictures are read.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

Array = np.ndarray
Kind = Callable[[Array, np.random.Generator], bytes]


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


# The kinds


def plain(digit, rng):
    """Black ink in the middle of white paper."""
    return saved(seen(written(digit, rng), 1.0, 0.0))


def original(digit, rng):
    """MNIST's own picture."""
    return saved(digit)


def original_dark(digit, rng):
    """MNIST's own picture, black on white."""
    return saved(1 - digit)


def thumbnail(digit, rng):
    """A photograph with grey paper, resized to 28 x 28 by its owner."""
    page = seen(
        written(digit, rng, width=(280, 600), share=(0.5, 0.75)), rng.uniform(0.55, 0.95), 0.1
    )
    image = Image.fromarray((page * 255).astype(np.uint8))
    return encoded(image.resize((28, 28), Image.Resampling.BICUBIC))


def thumbnail_white(digit, rng):
    """White paper and black ink, resized to 28 x 28, not framed as MNIST frames."""
    page = seen(written(digit, rng, width=(280, 600), share=(0.45, 0.7), anywhere=True), 1.0, 0.0)
    image = Image.fromarray((page * 255).astype(np.uint8))
    return encoded(image.resize((28, 28), Image.Resampling.BICUBIC))


def uneven(digit, rng):
    """Light that falls evenly from one side to the other, to 65%."""
    page = seen(written(digit, rng), 1.0, 0.15)
    return saved(page * light(page.shape, rng, 1.0))


def soft_shadow(digit, rng):
    """A shadow with a soft edge across the page."""
    page = seen(written(digit, rng), 0.95, 0.15)
    return saved(page * light(page.shape, rng, rng.uniform(0.1, 0.4)))


def hard_shadow(digit, rng):
    """A shadow with a sharp edge across the page."""
    page = seen(written(digit, rng), 0.95, 0.15)
    return saved(page * light(page.shape, rng, rng.uniform(0.005, 0.03)))


def grey_paper(digit, rng):
    """Grey paper, as a photograph in poor light has."""
    return saved(seen(written(digit, rng), rng.uniform(0.35, 0.8), 0.05))


def faint(digit, rng):
    """A hard pencil: ink a little darker than its paper."""
    paper = rng.uniform(0.7, 1.0)
    page = seen(written(digit, rng), paper, paper - rng.uniform(0.12, 0.25))
    return saved(page + rng.normal(0, 0.01, page.shape))


def scanner_edge(digit, rng):
    """A dark line of one to three pixels along the edges, as scanners leave."""
    return saved(
        _bordered(seen(written(digit, rng), 1.0, 0.05), rng, lambda page: rng.integers(1, 4))
    )


def border(digit, rng):
    """A dark border of any width up to 8% on any of the sides."""

    def wide(page):
        return max(1, round(page.shape[1] * rng.uniform(0.005, 0.08)))

    return saved(_bordered(seen(written(digit, rng, share=(0.2, 0.5)), 0.97, 0.1), rng, wide))


def _bordered(page: Array, rng: np.random.Generator, wide: Callable[[Array], int]) -> Array:
    sides = rng.permutation(4)[: rng.integers(1, 5)]
    page, level = page.copy(), rng.uniform(0, 0.25)
    for side in sides:
        turned_page = np.rot90(page, side)
        turned_page[: wide(page)] = level
    return page


def wedges(digit, rng):
    """A page laid askew on the scanner: the corners are black."""
    page = seen(written(digit, rng, share=(0.2, 0.45)), 0.97, 0.1)
    image = Image.fromarray(page.astype(np.float32))
    degrees = rng.uniform(3, 12) * rng.choice([-1, 1])
    return saved(np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=0)))


def desk(digit, rng):
    """A sheet photographed on a dark desk."""
    page = seen(written(digit, rng, share=(0.2, 0.5)), rng.uniform(0.8, 1.0), 0.1)
    wide = round(page.shape[1] * rng.uniform(0.05, 0.2))
    image = Image.fromarray(np.pad(page, wide, constant_values=-1).astype(np.float32))
    found = np.asarray(image.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR, fillcolor=-1))
    top = rng.uniform(0.15, 0.4)
    return saved(np.where(found < 0, top, found) + rng.normal(0, 0.01, found.shape))


def specks(digit, rng):
    """Dust: up to forty dark dots."""
    page = seen(written(digit, rng), 1.0, 0.05)
    for _ in range(rng.integers(1, 41)):
        side = max(1, round(page.shape[1] * rng.uniform(0, 0.012)))
        y, x = (rng.integers(0, size) for size in page.shape)
        page[y : y + side, x : x + side] = rng.uniform(0, 0.5)
    return saved(page)


def margin(digit, rng):
    """A white card in a transparent margin."""
    card = seen(written(digit, rng), rng.uniform(0.7, 1.0), 0.05)
    wide = round(card.shape[1] * rng.uniform(0.02, 0.3))
    alpha = np.pad(np.ones_like(card), wide)
    return _layered(np.pad(card, wide), alpha)


def rounded(digit, rng):
    """A screenshot of a card with rounded corners."""
    card = seen(written(digit, rng), rng.uniform(0.7, 1.0), 0.05)
    return _layered(card, _corners(card, rng))


def _corners(card: Array, rng: np.random.Generator) -> Array:
    """Alpha of a card with rounded corners."""
    y, x = np.mgrid[: card.shape[0], : card.shape[1]].astype(np.float32)
    radius = rng.uniform(0.05, 0.25) * min(card.shape)
    far_y = (radius - np.minimum(y, card.shape[0] - 1 - y)).clip(0)
    far_x = (radius - np.minimum(x, card.shape[1] - 1 - x)).clip(0)
    return (radius - np.hypot(far_y, far_x) + 0.5).clip(0, 1)


def _shadowed(digit, rng) -> tuple[Array, Array]:
    """A card with rounded corners and its shadow: brightness, alpha."""
    card = seen(written(digit, rng), 1.0, 0.05)
    wide = max(4, round(card.shape[1] * rng.uniform(0.06, 0.15)))
    alpha = np.pad(_corners(card, rng), wide)
    drop = np.roll(alpha, (wide // 3, wide // 3), (0, 1))
    drop = ndimage.gaussian_filter(drop, wide / 4) * rng.uniform(0.3, 0.7)
    whole = alpha + drop * (1 - alpha)
    return np.pad(card, wide) * alpha / whole.clip(1e-3), whole


def drop_shadow(digit, rng):
    """A card with its shadow on nothing."""
    return _layered(*_shadowed(digit, rng))


def drop_shadow_flat(digit, rng):
    """A card with its shadow, on a light ground."""
    grey, alpha = _shadowed(digit, rng)
    return saved(grey * alpha + rng.uniform(0.9, 1.0) * (1 - alpha))


def ink_alone(digit, rng):
    """Ink of any colour on nothing."""
    ink = written(digit, rng)
    return _layered(np.full_like(ink, rng.uniform(0, 1)), ink)


def _layered(grey: Array, alpha: Array) -> bytes:
    return saved(np.stack([grey, grey, grey, alpha], -1))


def deep(digit, rng):
    """16 bits a pixel in the file, of which 8, 10, 12, 14 or 16 are used."""
    page = seen(written(digit, rng), rng.uniform(0.8, 1.0), 0.1)
    most = 2 ** int(rng.choice([8, 10, 12, 14, 16])) - 1
    return encoded(Image.fromarray((page * most).astype(np.uint16)))


def deeper(digit, rng):
    """A TIFF of 32-bit whole numbers, 8 to 31 bits used."""
    page = seen(written(digit, rng), rng.uniform(0.8, 1.0), 0.1).astype(np.float64)
    most = 2 ** int(rng.choice([8, 12, 16, 24, 31])) - 1
    return encoded(Image.fromarray((page * most).astype(np.int32)), "TIFF")


def real_numbers(digit, rng):
    """A TIFF of floats in any unit."""
    page = seen(written(digit, rng), 0.9, 0.1) * rng.uniform(0.5, 1000) + rng.uniform(-50, 50)
    return encoded(Image.fromarray(page.astype(np.float32)), "TIFF")


def white_on_black(digit, rng):
    """White on black, of any size."""
    return saved(written(digit, rng))


def chalk(digit, rng):
    """Chalk on a board, unevenly lit."""
    page = seen(written(digit, rng), rng.uniform(0.15, 0.4), rng.uniform(0.7, 0.95))
    return saved(page * light(page.shape, rng, 1.0) + rng.normal(0, 0.015, page.shape))


def tilted(digit, rng):
    """Written or held askew by up to 15 degrees."""
    return saved(seen(written(digit, rng, tilt=15), 1.0, 0.05))


def aside(digit, rng):
    """Anywhere on the page."""
    return saved(seen(written(digit, rng, share=(0.2, 0.4), anywhere=True), 1.0, 0.05))


def small(digit, rng):
    """Small on a large page: 8% to 15% of its width."""
    page = written(digit, rng, width=(250, 1500), share=(0.08, 0.15), anywhere=True)
    return saved(seen(page, 1.0, 0.05))


def cut_tightly(digit, rng):
    """Cut out with hardly any paper around it."""
    ink = pen(digit, int(rng.integers(60, 400)), rng)
    return saved(seen(np.pad(ink, int(rng.integers(0, 6))), 0.95, 0.05))


def ruled(digit, rng):
    """Ruled paper."""
    return saved(_lined(digit, rng, both=False))


def squared(digit, rng):
    """Squared paper."""
    return saved(_lined(digit, rng, both=True))


def _lined(digit, rng, both: bool) -> Array:
    ink = written(digit, rng, width=(300, 1000), tilt=5)
    apart = ink.shape[1] * rng.uniform(0.04, 0.12)
    thick = max(1.0, ink.shape[1] * rng.uniform(0.002, 0.005))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    lean = np.tan(np.radians(rng.uniform(-3, 3)))
    lines = (thick - np.abs((y + lean * x) % apart - apart / 2) + 0.5).clip(0, 1)
    if both:
        lines = np.maximum(
            lines, (thick - np.abs((x - lean * y) % apart - apart / 2) + 0.5).clip(0, 1)
        )
    return seen(ink, 1 - rng.uniform(0.1, 0.35) * lines, 0.1)


def thin(digit, rng):
    """A fine pen."""
    return saved(seen(written(digit, rng, width=(250, 1000), level=0.75), 1.0, 0.1))


def marker(digit, rng):
    """A broad marker."""
    return saved(seen(written(digit, rng, level=0.25), 1.0, 0.1))


def jpeg(digit, rng):
    """Saved as a JPEG of low quality."""
    return saved(seen(written(digit, rng), 0.95, 0.1), "JPEG", quality=int(rng.integers(10, 50)))


def noisy(digit, rng):
    """The grain of a camera in the dark."""
    page = seen(written(digit, rng), 0.8, 0.2)
    return saved(page + rng.normal(0, rng.uniform(0.03, 0.1), page.shape))


def blurred(digit, rng):
    """Out of focus."""
    page = seen(written(digit, rng), 0.95, 0.1)
    image = Image.fromarray((page * 255).astype(np.uint8))
    return encoded(
        image.filter(ImageFilter.GaussianBlur(page.shape[1] * rng.uniform(0.003, 0.012)))
    )


def coloured(digit, rng):
    """Coloured ink on coloured paper."""
    ink = written(digit, rng)[..., None]
    return saved(seen(ink, rng.uniform(0.75, 1, 3), rng.uniform(0, 0.45, 3)))


def large(digit, rng):
    """A scan of two thousand pixels."""
    return saved(seen(written(digit, rng, width=(1900, 2000)), 1.0, 0.05))


def phone(digit, rng):
    """A photograph in passing: light, grain, blur, tilt and place at once, as a JPEG."""
    page = written(digit, rng, width=(300, 1500), share=(0.15, 0.4), anywhere=True, tilt=8)
    grey = seen(page, rng.uniform(0.7, 0.95), rng.uniform(0.1, 0.3))
    grey = grey * light(page.shape, rng, rng.uniform(0.3, 1.0))
    grey = ndimage.gaussian_filter(grey, page.shape[1] * rng.uniform(0, 0.004))
    grey = grey[..., None] * rng.uniform(0.85, 1, 3) + rng.normal(0, 0.02, (*grey.shape, 1))
    return saved(grey, "JPEG", quality=int(rng.integers(50, 90)))


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        *(plain, original, original_dark, thumbnail, thumbnail_white),
        *(uneven, soft_shadow, hard_shadow, grey_paper, faint),
        *(scanner_edge, border, wedges, desk, specks),
        *(margin, rounded, drop_shadow, drop_shadow_flat, ink_alone),
        *(deep, deeper, real_numbers, white_on_black, chalk),
        *(tilted, aside, small, cut_tightly, ruled, squared, thin, marker),
        *(jpeg, noisy, blurred, coloured, large, phone),
    )
}
