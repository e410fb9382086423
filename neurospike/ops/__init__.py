"""Torch operators: what layers call, and every backend runs."""

from .scan import Once, define, fused_scan, implement, state_dtype, step_shape

__all__ = ["Once", "define", "fused_scan", "implement", "state_dtype", "step_shape"]
