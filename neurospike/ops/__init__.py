"""Torch operators, which layers call and backends implement."""

from .formats import state_dtype, step_shape
from .running import Call, forget
from .scan import Once, define, fused_scan, implement

__all__ = [
    "Call",
    "Once",
    "define",
    "forget",
    "fused_scan",
    "implement",
    "state_dtype",
    "step_shape",
]
