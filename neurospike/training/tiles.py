"""Small pictures as arrays `uint8 [H, W, 3]`, drawn in a millisecond each.

A plotting library takes a hundred times as long, which training would feel even from another
thread. Those pictures come when a run is done: `neurospike.training.pictures`.
"""

import math

import numpy as np

WIDTH = 400  # pixels, about
ROWS = 200  # neurons of a raster, at most
FIELDS = 64  # neurons whose weights are shown
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
    return _enlarge(cells, max(1, 200 // cells.shape[0]), max(2, WIDTH // steps))


def draw_membranes(
    trace: np.ndarray, spikes: np.ndarray, threshold: float | None, height: int = 34
) -> np.ndarray:
    """Draw membranes `[T, N]` below one another, the threshold grey, spikes `[T, N]` on top."""
    steps, neurons = trace.shape
    across = max(2, WIDTH // 2 // steps)
    low = min(float(trace.min(initial=0.0)), 0.0)
    high = max(float(trace.max(initial=0.0)), threshold or 0.0) + 1e-6

    def row(value: np.ndarray | float) -> np.ndarray:
        return np.round((height - 5) * (1 - (np.asarray(value) - low) / (high - low))).astype(int)

    tick = 6
    strips = []
    for neuron in range(neurons):
        strip = np.full((tick + height, steps * across, 3), PAPER, dtype=np.uint8)
        for level in (0.0, threshold):
            if level is not None:
                strip[tick + row(level)] = GRID
        line = tick + row(trace[:, neuron])
        before = np.concatenate([line[:1], line[:-1]])
        for step in range(steps):
            left = step * across
            strip[line[step] : line[step] + 2, left : left + across] = LOW
            top, bottom = sorted((before[step], line[step]))
            strip[top : bottom + 2, left : left + 2] = LOW
            if spikes[step, neuron] > 0:
                strip[: tick - 1, left : left + 2] = HIGH
        strips.append(strip)
    return np.concatenate(strips) if strips else np.zeros((1, 1, 3), dtype=np.uint8)


def draw_weights(weights: np.ndarray) -> np.ndarray:
    """Draw the weights `[N, inputs]` or `[N, channels, k, k]` of up to 64 neurons as squares.

    Of inputs that are no square's a row. Blue below zero, white at zero, vermilion above.
    """
    weights = weights[:FIELDS]
    if weights.ndim == 4:
        fields = weights.mean(1)
    else:
        side = math.isqrt(weights.shape[1])
        shape = (side, side) if side * side == weights.shape[1] else (1, weights.shape[1])
        fields = weights.reshape(len(weights), *shape)
    strength = fields / max(float(np.abs(fields).max(initial=0.0)), 1e-12)
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
    return canvas.reshape(rows * (height * scale + 2), -1, 3)


def _enlarge(cells: np.ndarray, down: int, across: int) -> np.ndarray:
    return cells.repeat(down, axis=0).repeat(across, axis=1)
