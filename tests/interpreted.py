"""Plugin for pytest: lets the Triton backend run on the CPU, through Triton's interpreter.

Used in a process of its own, `TRITON_INTERPRET=1 python -m pytest -p interpreted ...`, so that the
switch does not leak into other tests. The tests are those that every backend passes; here the row
of the table serves CPU tensors, and the only other backend left is the reference.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from neurospike import ops
from neurospike.backend import dispatch
from neurospike.kernels.cuda import scan as scan_triton
from neurospike.ops import delay, recurrent

ROW = dataclasses.replace(dispatch.TABLE["triton"], device_types=("cpu",))
REFERENCE = dispatch.TABLE["reference"]
dispatch.TABLE.clear()
dispatch.TABLE.update(triton=ROW, reference=REFERENCE)
ops.implement(ROW, "cpu")
recurrent.implement(ROW, "cpu")
delay.implement(ROW, "cpu")

_geometry = scan_triton.geometry


def _few_programs(kind: str, size: int, *others: Any) -> tuple[int, int, int]:
    """Leave small layers theirs, of few neurons; make of others fewer and larger programs.

    The interpreter takes as long for a small program.
    """
    return _geometry(kind, size, *others) if size <= 2 * SMALL_BLOCK else (1024, 1, 1)


SMALL_BLOCK, _, STAGES = _geometry("forward", 1, torch.float32, 1)
assert STAGES > 1  # else the loop that loads ahead is run nowhere
scan_triton.geometry = _few_programs

_convert = interpreter._convert_float


def _to_nearest(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Round float32 to the nearest bfloat16, as compiled code does; the interpreter cuts off."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return _convert(data, source, target, rounding)
    nearest = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
    return nearest.view(torch.int16).numpy().view(np.uint16)


interpreter._convert_float = _to_nearest

_patch_tensor = interpreter._patch_lang_tensor


def _patch_index(tensor: Any, *scope: Any) -> None:
    """Make a number of an array of one element, which numpy 2.4 and Triton 3.6 fail to do."""
    _patch_tensor(tensor, *scope)
    set_attr = scope[0].set_attr if scope else setattr  # Triton 3.5 patches for good
    set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_index

_call = interpreter.InterpretedFunction.__call__


def _call_ours(self: Any, *arguments: Any, **options: Any) -> Any:
    """Call a device function without patching `triton.language` again: half of the time."""
    if self.fn.__module__.startswith("triton."):
        return _call(self, *arguments, **options)
    return self.rewrite()(*arguments, **options)


interpreter.InterpretedFunction.__call__ = _call_ours
