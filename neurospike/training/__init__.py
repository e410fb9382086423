"""Training: the loop, what it measures, and the folder it leaves behind."""

from neurospike.training.checkpoint import load_checkpoint, save_checkpoint
from neurospike.training.curves import draw_curves
from neurospike.training.metrics import Meter, Metrics
from neurospike.training.pictures import draw_network
from neurospike.training.records import Run
from neurospike.training.trainer import SNNTrainer

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
