"""Small data sets of recordings in the formats of the originals, and what their frames are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

needs_tonic = pytest.mark.skipif(
    importlib.util.find_spec("tonic") is None,
    reason="tonic is not installed: pip install -U tonic",
)
US = 1_000_000  # microseconds of a second
SHD_CLASSES = 20


def events_of(label, classes, sides, count, seconds, random):
    """Events `[t, x, y, p]` of a recording: each class in a strip of the sensor of its own."""
    width, height, polarities = sides
    low, high = label * width // classes, (label + 1) * width // classes
    times = np.sort(random.integers(0, int(seconds * US), count))
    x = random.integers(low, max(high, low + 1), count)
    return np.stack(
        [times, x, random.integers(0, height, count), random.integers(0, polarities, count)], 1
    )


def recordings_of(classes, sides, each, random, count=60, longest=0.12):
    """So many recordings of each class, of different lengths, as `(events, label)`."""
    return [
        (events_of(c, classes, sides, count, longest * random.uniform(0.3, 1), random), c)
        for _ in range(each)
        for c in range(classes)
    ]


def write_shd(root: Path, each: int = 2, seed: int = 0) -> dict[str, list]:
    """Spiking Heidelberg Digits: an HDF5 file per part, of vectors of different lengths."""
    import h5py

    random, made = np.random.default_rng(seed), {}
    (root / "SHD").mkdir(parents=True)
    for part in ("train", "test"):
        found = recordings_of(SHD_CLASSES, (700, 1, 1), each, random)
        # Its times are 16 bits in seconds, so they are rounded here.
        rounded = [np.round(e[:, 0] / US, 6).astype(np.float16) for e, _ in found]
        with h5py.File(root / "SHD" / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset(
                "spikes/times", (len(found),), dtype=h5py.vlen_dtype(np.float16)
            )
            units = file.create_dataset(
                "spikes/units", (len(found),), dtype=h5py.vlen_dtype(np.uint16)
            )
            for number, (events, _) in enumerate(found):
                times[number], units[number] = rounded[number], events[:, 1].astype(np.uint16)
            file["labels"] = np.array([label for _, label in found], dtype=np.uint16)
            file["extra/keys"] = np.array([f"digit {c}".encode() for c in range(SHD_CLASSES)])
            file["extra/speaker"] = np.zeros(len(found), dtype=np.uint16)
        for number, (events, _) in enumerate(found):
            events[:, 0] = (rounded[number].astype(np.float64) * US).astype(np.int64)
        made[part] = found
    return made


def write_nmnist(root: Path, each: int = 2, seed: int = 0) -> dict[str, list]:
    """N-MNIST: a file per recording, of 5 bytes per event, in a folder per digit."""
    random, made = np.random.default_rng(seed), {}
    for part in ("train", "test"):
        found = recordings_of(10, (34, 34, 2), each, random)
        made[part] = sorted(found, key=lambda one: one[1])
        for number, (events, label) in enumerate(made[part]):
            folder = root / "NMNIST" / part.capitalize() / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            t, x, y, p = events.T
            columns = [x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255]
            np.stack(columns, 1).astype(np.uint8).tofile(folder / f"{number:05}.bin")
    return made


def write_gestures(root: Path, users: int = 1, seed: int = 0) -> dict[str, list]:
    """DVS Gesture as tonic's archives hold it: an array `[E, 4]` per gesture, milliseconds."""
    random, made = np.random.default_rng(seed), {}
    for part in ("train", "test"):
        made[part] = []
        for user in range(users):
            folder = root / "DVSGesture" / f"ibmGesture{part.capitalize()}" / f"user{user:02}_led"
            folder.mkdir(parents=True)
            for events, label in recordings_of(11, (128, 128, 2), 1, random):
                events[:, 0] = events[:, 0] // 1000 * 1000
                t, x, y, p = events.T
                np.save(folder / f"{label}.npy", np.stack([x, y, p, t // 1000], 1))
                made[part].append((events, label))
    return made


WRITERS = {"shd": write_shd, "nmnist": write_nmnist, "dvs_gesture": write_gestures}


def counted(events, sides, *, time_bin=None, bins=None, pool=1):
    """Frames of events, counted one by one."""
    width, height, polarities = sides
    start = int(events[:, 0].min())
    last = int(events[:, 0].max()) - start
    if bins is None:
        steps, step_of = last // round(time_bin * 1000) + 1, lambda t: t // round(time_bin * 1000)
    else:
        steps, step_of = bins, lambda t: t * bins // (last + 1)
    if height == 1:
        frames = np.zeros((steps, width // pool), np.float32)
    else:
        frames = np.zeros((steps, polarities, height // pool, width // pool), np.float32)
    for t, x, y, p in events.tolist():
        place = (x // pool,) if height == 1 else (p, y // pool, x // pool)
        frames[(step_of(t - start), *place)] += 1
    return frames
