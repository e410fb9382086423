"""Digit data sets as plain tensors, and batches of them that stay on the device.

Importing this package loads neither torchvision nor scikit-learn; `load` imports torchvision to
download, `Preprocessing` for the steps that need it.
"""

from .batches import Batches, Split
from .datasets import NAMES, DigitData, load
from .preprocessing import Preprocessing

__all__ = ["NAMES", "Batches", "DigitData", "Preprocessing", "Split", "load"]
