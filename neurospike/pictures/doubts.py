"""What makes an answer to a picture doubtful, though there is something to read in it.

A network gives one class to whatever it is shown. What can be seen of two digits, of a frame or of
next to nothing is said here, by measures that none of MNIST's 10,000 test pictures exceeds.
"""

import numpy as np

INK = 0.3  # of full scale, above which a pixel is ink
FULL = 0.25, 0.6  # of the largest piece: mass and height of another digit, and not a part of one
ASIDE = 0.2  # of the narrower one: columns that two digits side by side may share
SEVERAL = "pieces of ink side by side: are there several digits? They are read as one"
LEAST_INK = 20  # pixels of a digit; MNIST's thinnest have 31


def doubts(picture: np.ndarray) -> list[str]:
    """Return notes on what makes a digit `[28, 28]`, 0 the background, doubtful."""
    notes = []
    inked = picture > INK
    if 0 < inked.sum() < LEAST_INK:
        notes.append(f"only {int(inked.sum())} pixels of ink: too little to be a digit")
    edges = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    if all((edge > INK).any() for edge in edges):
        notes.append("ink on all four borders: a frame, or no digit?")
    if side_by_side(picture):
        notes.append(SEVERAL)
    return notes


def side_by_side(picture: np.ndarray) -> bool:
    """True for pieces of ink beside each other that are each as large as a digit."""
    from scipy import ndimage

    labels, count = ndimage.label(picture > INK, np.ones((3, 3)))
    masses = ndimage.sum_labels(picture, labels, range(1, count + 1))
    found = zip(ndimage.find_objects(labels), masses, strict=True)
    boxes = [box for box, mass in found if mass > FULL[0] * max(masses)]
    heights = [rows.stop - rows.start for rows, _ in boxes]
    tall = [
        columns
        for (_, columns), height in zip(boxes, heights, strict=True)
        if height >= FULL[1] * max(heights)
    ]
    tall.sort(key=lambda columns: columns.start)
    return any(
        left.stop - right.start <= ASIDE * min(left.stop - left.start, right.stop - right.start)
        for left, right in zip(tall, tall[1:])
    )
