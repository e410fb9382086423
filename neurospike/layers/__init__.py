"""Layers over whole sequences, and what makes them of other libraries' layers."""

from .lif import LI, LIF, lif

__all__ = ["LI", "LIF", "lif"]
