"""Training: the loop, what it measures, and the folder it leaves behind."""

from .checkpoint import load_checkpoint, save_checkpoint
from .curves import draw_curves
from .metrics import Meter, Metrics
from .pictures import draw_network
from .records import Run
from .trainer import SNNTrainer

__all__ = [
    "Meter",
    "Metrics",
    "Run",
    "SNNTrainer",
    "draw_curves",
    "draw_network",
    "load_checkpoint",
    "save_checkpoint",
]
