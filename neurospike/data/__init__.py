"""Digit data sets as plain tensors, recordings of events, and batches that stay on the device.

Importing this package loads none of torchvision, scikit-learn and tonic; `load` imports torchvision
to download, `Preprocessing` for the steps that need it, `load_recordings` tonic.
"""

from .batches import Batches, Split
from .binning import Binning
from .datasets import NAMES, DigitData, load
from .events import EventData, load_recordings, open_recordings
from .preprocessing import Preprocessing
from .recordings import Recordings
from .sequences import collate

__all__ = [
    "NAMES",
    "Batches",
    "Binning",
    "DigitData",
    "EventData",
    "Preprocessing",
    "Recordings",
    "Split",
    "collate",
    "load",
    "load_recordings",
    "open_recordings",
]
