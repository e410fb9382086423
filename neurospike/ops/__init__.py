"""Torch operators: what layers call, and every backend runs."""

from .formats import state_dtype, step_shape
from .scan import Call, Once, define, fused_scan, implement

__all__ = ["Call", "Once", "define", "fused_scan", "implement", "state_dtype", "step_shape"]
