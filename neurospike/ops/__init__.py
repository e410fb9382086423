"""Torch operators: what layers call, and every backend runs."""

from .scan import Call, Once, define, fused_scan, implement, state_dtype, step_shape

__all__ = ["Call", "Once", "define", "fused_scan", "implement", "state_dtype", "step_shape"]
