"""The Triton backend on CPU tensors, with launches that do nothing: its host code without a GPU."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton

from neurospike import ops
from neurospike.backend import dispatch
from neurospike.kernels.cuda import scan

NAME = "triton"
_ON_CPU = torch.empty(0)


class Driver:
    """Answers as Triton's driver of a GPU does, for tensors on the CPU."""

    def get_current_device(self) -> int:
        """Return the index of the CPU, asking first whether there is CUDA as torch would."""
        torch.cuda.is_initialized()
        return _ON_CPU.get_device()

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


@dataclasses.dataclass
class Compiled:
    """Stands for what Triton compiled, and counts its launches."""

    last: tuple[Any, ...] = ()
    function: Any = None
    packed_metadata: Any = None
    count: int = 0

    def run(self, *arguments: Any) -> None:
        """Launch nothing."""
        self.last = arguments
        self.count += 1


@dataclasses.dataclass
class Launches:
    """What was asked of Triton: `looked` is how often its jit looked for a kernel."""

    looked: int = 0
    compiled: list[Compiled] = dataclasses.field(default_factory=list)

    @property
    def direct(self) -> int:
        """Launches that left Triton's jit out."""
        return sum(one.count for one in self.compiled)


@functools.cache
def _on_cpu() -> dispatch.Backend:
    """Return Triton's row for tensors on the CPU; torch lets an operator be implemented once."""
    row = dataclasses.replace(dispatch.TABLE[NAME], device_types=("cpu",))
    ops.implement(row, "cpu")
    return row


@contextlib.contextmanager
def stubbed() -> Iterator[Launches]:
    """Let `backend="triton"` take CPU tensors and compute nothing; yields what Triton was asked."""
    found = Launches()
    row, jitted = dispatch.TABLE[NAME], triton.JITFunction.run
    driver = triton.runtime.driver
    before = dict(vars(driver))  # there is no asking for it: without a GPU there is none

    def look(self: Any, *arguments: Any, **options: Any) -> Compiled:
        found.looked += 1
        found.compiled.append(Compiled())
        return found.compiled[-1]

    on_cpu = _on_cpu()
    scan.forget()
    dispatch.forget()
    try:
        dispatch.TABLE[NAME] = on_cpu
        triton.JITFunction.run = look
        driver.set_active(Driver())
        yield found
    finally:
        triton.JITFunction.run = jitted
        vars(driver).clear()
        vars(driver).update(before)
        dispatch.TABLE[NAME] = row
        dispatch.forget()
        scan.forget()
