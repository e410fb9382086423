"""Plugin for pytest: lets the Triton backend run on the CPU, through Triton's interpreter.

Used in a process of its own, `TRITON_INTERPRET=1 python -m pytest -p interpreted ...`, so that the
switch does not leak into other tests. The tests are those that every backend passes; here the row
of the table serves CPU tensors, and the only other backend left is the reference.
"""

import dataclasses
from typing import Any

from triton.runtime import interpreter

from neurospike import dispatch, ops

ROW = dataclasses.replace(dispatch.TABLE["triton"], device_types=("cpu",))
REFERENCE = dispatch.TABLE["reference"]
dispatch.TABLE.clear()
dispatch.TABLE.update(triton=ROW, reference=REFERENCE)
ops.implement(ROW, "cpu")

_convert = interpreter._convert_float


def _to_nearest(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    # The interpreter cuts float32 off to bfloat16 where the compiled code (`cvt.rn`, see
    # test_triton_code.py) rounds to nearest.
    rounding = rounding or interpreter._ir.ROUNDING_MODE.RTNE
    return _convert(data, source, target, rounding)


interpreter._convert_float = _to_nearest
