"""Digit data sets as plain tensors, and batches of them that stay on the device.

Importing this package loads neither torchvision nor scikit-learn; `load` imports the one it
needs.
"""

from neurospike.data.batches import Batches, Split
from neurospike.data.datasets import NAMES, DigitData, load

__all__ = ["NAMES", "Batches", "DigitData", "Split", "load"]
