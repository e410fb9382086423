"""Layers over whole sequences, and the conversion of other libraries' layers to them."""

from .lif import LI, LIF, lif

__all__ = ["LI", "LIF", "lif"]
