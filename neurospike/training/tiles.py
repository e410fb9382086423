"""Small pictures as arrays `uint8 [H, W, 3]`, drawn in milliseconds, with what stands on the axes.

A plotting library takes a hundred times as long, which slows training even from another thread.
Those pictures come when a run is done: `neurospike.training.pictures`.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

WIDTH = 400  # pixels, about
ROWS = 200  # neurons of a raster, at most
FIELDS = 64  # neurons whose weights are shown
LINE, LEFT = 14, 34  # pixels of the frame: a line of text, and numbers on the left
INK, PAPER, GRID = (20, 20, 20), (255, 255, 255), (200, 200, 200)
LOW, HIGH = np.array((0, 114, 178)), np.array((213, 94, 0))  # Okabe and Ito's blue and vermilion


def draw_raster(spikes: np.ndarray) -> np.ndarray:
    """Draw spikes `[T, N]`: a column a step, a row a neuron, dark where it fired.

    Of more than 200 neurons evenly chosen ones.
    """
    steps, neurons = spikes.shape
    if neurons > ROWS:
        spikes = spikes[:, np.linspace(0, neurons - 1, ROWS).astype(int)]
    cells = np.where(spikes.T[..., None] > 0, INK, PAPER).astype(np.uint8)
    raster = _enlarge(cells, max(1, 200 // cells.shape[0]), max(2, WIDTH // steps))
    some = f", {ROWS} of {neurons}" if neurons > ROWS else ""
    return framed(raster, f"neuron{some}", [(0, "0"), (len(raster), f"{neurons - 1}")], steps)


def draw_membranes(
    trace: np.ndarray,
    spikes: np.ndarray,
    threshold: float | None,
    neurons_drawn: Sequence[int],
    height: int = 34,
) -> np.ndarray:
    """Draw membranes `[T, N]` below one another, the threshold grey, spikes `[T, N]` on top.

    neurons_drawn: the number of each, which stands beside it.
    """
    steps, neurons = trace.shape
    across = max(2, WIDTH // 2 // steps)
    finite = trace[np.isfinite(trace)]
    reached = threshold if threshold is not None and math.isfinite(threshold) else None
    low = min(float(finite.min(initial=0.0)), 0.0)
    high = max(float(finite.max(initial=0.0)), reached or 0.0) + 1e-6
    # What is not finite is drawn at the border, NaN at the lower one.
    lines = np.nan_to_num(trace.astype(np.float64), nan=low, posinf=high, neginf=low)

    def row(value: np.ndarray | float) -> np.ndarray:
        return np.round((height - 5) * (1 - (np.asarray(value) - low) / (high - low))).astype(int)

    tick = 6
    strips = []
    for neuron in range(neurons):
        strip = np.full((tick + height, steps * across, 3), PAPER, dtype=np.uint8)
        for level in (0.0, reached):
            if level is not None:
                strip[tick + row(level)] = GRID
        line = tick + row(lines[:, neuron])
        before = np.concatenate([line[:1], line[:-1]])
        for step in range(steps):
            left = step * across
            strip[line[step] : line[step] + 2, left : left + across] = LOW
            top, bottom = sorted((before[step], line[step]))
            strip[top : bottom + 2, left : left + 2] = LOW
            if spikes[step, neuron] > 0:
                strip[: tick - 1, left : left + 2] = HIGH
        strips.append(strip)
    if not strips:
        return np.zeros((1, 1, 3), dtype=np.uint8)
    places = [(k * (tick + height) + height, f"{n}") for k, n in enumerate(neurons_drawn)]
    above = "" if threshold is None else f", threshold {threshold:.3g}"
    strange = f", {trace.size - finite.size} not finite" if finite.size < trace.size else ""
    title = f"neuron, membrane from {low:.2g} to {high:.2g}{above}{strange}"
    return framed(np.concatenate(strips), title, places, steps)


def draw_weights(weights: np.ndarray) -> np.ndarray:
    """Draw the weights `[N, inputs]` or `[N, channels, k, k]` of up to 64 neurons as squares.

    Of the pixels of coloured pictures the mean over the channels, of inputs that are no square's a
    row. Blue below zero, white at zero and for what is not finite, vermilion above.
    """
    count, weights = len(weights), weights[:FIELDS]
    weights = np.where(np.isfinite(weights), weights, 0)
    if weights.ndim == 4:
        fields = weights.mean(1)
    else:
        if math.isqrt(weights.shape[1] // 3) ** 2 * 3 == weights.shape[1]:
            weights = weights.reshape(len(weights), 3, -1).mean(1)
        side = math.isqrt(weights.shape[1])
        shape = (side, side) if side * side == weights.shape[1] else (1, weights.shape[1])
        fields = weights.reshape(len(weights), *shape)
    limit = max(float(np.abs(fields).max(initial=0.0)), 1e-12)
    strength = fields / limit
    towards = np.where(strength[..., None] > 0, HIGH, LOW)
    colours = 255 + (towards - 255) * np.abs(strength)[..., None]
    height, width = fields.shape[1:]
    scale = max(1, 40 // max(height, width))
    columns = math.ceil(math.sqrt(len(fields)))
    rows = math.ceil(len(fields) / columns)
    canvas = np.full((rows, height * scale + 2, columns, width * scale + 2, 3), GRID, np.uint8)
    for k, field in enumerate(colours.astype(np.uint8)):
        tile = _enlarge(field, scale, scale)
        canvas[k // columns, : height * scale, k % columns, : width * scale] = tile
    title = f"{len(fields)} of {count} neurons, -{limit:.2g} blue, {limit:.2g} orange"
    return framed(canvas.reshape(rows * (height * scale + 2), -1, 3), title, [], None)


def framed(
    image: np.ndarray, title: str, beside: Sequence[tuple[int, str]], steps: int | None
) -> np.ndarray:
    """Return a picture with a line above it, numbers at heights of its left side, and its steps."""
    height, width = image.shape[:2]
    bottom = 0 if steps is None else LINE
    paper = Image.new("RGB", (max(LEFT + width, 290), LINE + height + bottom), PAPER)
    paper.paste(Image.fromarray(image), (LEFT, LINE))
    draw = ImageDraw.Draw(paper)
    draw.text((2, 1), title, INK)
    for place, number in beside:
        draw.text((LEFT - 3, LINE + min(max(place - 6, 0), height - 12)), number, INK, anchor="ra")
    if steps is not None:
        draw.text((LEFT, LINE + height + 1), "time step 0", INK)
        draw.text((LEFT + width, LINE + height + 1), f"{steps - 1}", INK, anchor="ra")
    return np.asarray(paper)


def _enlarge(cells: np.ndarray, down: int, across: int) -> np.ndarray:
    return cells.repeat(down, axis=0).repeat(across, axis=1)
