"""Ten digits as two hands write them, for the tests of the live page.

Strokes of a pen in a square of side 1, y downwards; what is round is written as arcs.
"""

import math

Point = tuple[float, float]
Stroke = list[Point]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """Part of an ellipse; angles in degrees, clockwise on the screen from the right."""
    count = max(2, int(abs(end - start) / 12))
    angles = [math.radians(start + (end - start) * k / count) for k in range(count + 1)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _path(text: str) -> Stroke:
    """Corners as `x y, x y` in hundredths."""
    return [(int(x) / 100, int(y) / 100) for x, y in map(str.split, text.split(","))]


# The first hand is round and upright.
ROUND: dict[int, list[Stroke]] = {
    0: [_arc(0.5, 0.5, 0.22, 0.34, -90, 270)],
    1: [[(0.5, 0.15), (0.5, 0.85)]],
    2: [[*_arc(0.48, 0.34, 0.2, 0.19, -170, 40), (0.3, 0.82), (0.74, 0.82)]],
    3: [[*_arc(0.46, 0.33, 0.2, 0.17, -150, 90), *_arc(0.46, 0.67, 0.23, 0.18, -90, 150)]],
    4: [[(0.32, 0.15), (0.3, 0.52), (0.7, 0.52)], [(0.66, 0.15), (0.66, 0.87)]],
    5: [
        [(0.36, 0.17), (0.34, 0.46), *_arc(0.46, 0.63, 0.23, 0.21, -110, 140)],
        [(0.36, 0.17), (0.7, 0.17)],
    ],
    6: [[(0.62, 0.14), (0.42, 0.34), (0.33, 0.58), *_arc(0.5, 0.66, 0.17, 0.18, 180, -180)]],
    7: [[(0.28, 0.18), (0.72, 0.18), (0.56, 0.5), (0.46, 0.86)]],
    8: [
        [
            *_arc(0.5, 0.32, 0.17, 0.16, 90, 450),
            *_arc(0.5, 0.67, 0.2, 0.19, -90, 270),
        ]
    ],
    9: [[*_arc(0.5, 0.33, 0.18, 0.18, 0, -360), (0.67, 0.5), (0.62, 0.86)]],
}

# The second is angular and leans to the right.
SLANTED: dict[int, list[Stroke]] = {
    0: [_path("60 18, 42 24, 30 56, 36 80, 52 80, 68 50, 60 18")],
    1: [_path("44 32, 60 15, 42 85")],
    2: [_path("38 30, 54 18, 68 26, 64 44, 26 82, 68 80")],
    3: [_path("40 20, 68 18, 50 44, 66 56, 60 76, 44 84, 28 78")],
    4: [_path("50 15, 28 56, 72 54"), _path("64 30, 50 88")],
    5: [_path("74 16, 46 18, 38 46, 58 46, 64 62, 54 80, 28 84")],
    6: [_path("66 14, 44 40, 32 68, 40 84, 58 76, 60 58, 36 62")],
    7: [_path("34 20, 76 16, 40 86")],
    8: [_path("70 26, 54 16, 42 28, 60 52, 54 80, 36 84, 32 68, 54 46, 70 26")],
    9: [_path("68 24, 50 16, 38 36, 50 48, 66 30, 68 24, 50 86")],
}

HANDS = {"round": ROUND, "slanted": SLANTED}
