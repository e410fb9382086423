"""A neuron is one scalar function: recorded once, its gradient derived, run by every backend."""

from .program import Program
from .record import record

__all__ = ["Program", "record"]
