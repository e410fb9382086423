"""Data sets of pictures as plain tensors, recordings of events, and batches kept on the device.

Importing this package loads none of torchvision, scikit-learn, pillow and tonic; `load` imports
torchvision to download, `Preprocessing` for the steps that need it, `load_folder` pillow,
`load_recordings` tonic.
"""

from .batches import Batches
from .binning import Binning
from .datasets import NAMES, load
from .events import EventData, load_recordings, open_recordings
from .folder import load_folder
from .preprocessing import Preprocessing
from .recordings import Recordings
from .sequences import collate
from .split import DigitData, Split

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
    "load_folder",
    "load_recordings",
    "open_recordings",
]
