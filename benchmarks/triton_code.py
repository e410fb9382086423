"""What the Triton kernels compile to, on a machine without a GPU: `python -m benchmarks.triton_code`.

Each kernel goes the way it goes at a launch, host code included, up to the launch itself: Triton is
told that a device of another architecture is there, and the tensors lie in the memory of the CPU,
which nobody reads. The machine code (SASS) is then counted: global loads and stores a time step,
their width, registers, local memory, fused multiply-adds. The bytes a neuron-step that follow are
counts of the code, not measurements.
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from neurospike import rule
from neurospike.kernels import lif_triton
from neurospike.surrogate import BUILT_IN

NEURONS = 1 << 16
STEPS = 100
BYTES = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 4, torch.float64: 8}


@dataclass(frozen=True)
class Kernel:
    """What is asked of a layer, and which of its kernels is looked at."""

    kind: str  # "inference", "training forward" or "backward"
    dtype: torch.dtype = torch.float32
    reset: str = "subtract"
    delayed: bool = True
    surrogate: str = "atan"
    constant: bool = False
    trace: bool = False
    learned: bool = False


class _Driver:
    """Answers Triton's questions about the device as if there were one."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(architecture: int) -> Iterator[list[tuple[Any, Any]]]:
    """Turn launches into compilations; yields the list of `(jitted, compiled)` they made."""
    made: list[tuple[Any, Any]] = []
    run = triton.JITFunction.run
    before = triton.runtime.driver._active

    def compile_only(self: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        made.append((self, run(self, *arguments, warmup=True, **options)))

    triton.JITFunction.run = compile_only
    triton.runtime.driver.set_active(_Driver(architecture))
    try:
        yield made
    finally:
        triton.JITFunction.run = run
        triton.runtime.driver._active = before


def build(
    kernel: Kernel, architecture: int, steps: int = STEPS, neurons: int = NEURONS
) -> tuple[Any, Any]:
    """Return what Triton jitted and what it compiled for a kernel, on an architecture like 90."""
    state = torch.float64 if kernel.dtype == torch.float64 else torch.float32
    key = rule.key_of(kernel.reset, kernel.delayed, False, BUILT_IN[kernel.surrogate]().function)
    parameters = BUILT_IN[kernel.surrogate]().parameters

    def empty(*shape: int, dtype: torch.dtype = state) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    rows = neurons if kernel.constant else (steps, neurons)
    current = torch.empty(rows, dtype=kernel.dtype)
    beta, threshold, none = empty(1), empty(1), empty(0)
    saved = empty(-(-steps // lif_triton.EVERY), neurons)
    trace = empty(steps, neurons)
    spikes = torch.empty((steps, neurons), dtype=kernel.dtype)
    shared = (current, None, beta, threshold)
    with compiling(architecture) as made:
        if kernel.kind == "backward":
            lif_triton.backward(
                spikes,
                empty(neurons),
                trace if kernel.trace else None,
                *shared,
                saved,
                key,
                parameters,
                steps,
                kernel.constant,
                torch.empty_like(current),
                none,
                empty(1) if kernel.learned else none,
                empty(1) if kernel.learned else none,
            )
        else:
            lif_triton.forward(
                *shared,
                key,
                parameters,
                steps,
                kernel.constant,
                spikes,
                empty(neurons),
                trace if kernel.trace else none,
                saved if kernel.kind == "training forward" else none,
            )
    return made[-1]


def sass(compiled: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
        return subprocess.run(
            [tool, "-c", file.name], check=True, capture_output=True, text=True
        ).stdout


if __name__ == "__main__":
    import sys, time

    for kind in ("inference", "training forward", "backward"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for arch in (90,):
                t = time.time()
                k, c = build(Kernel(kind, dtype), arch)
                s = sass(c)
                name = f"/tmp/triton/{kind[:5]}-{str(dtype)[6:]}-{arch}"
                open(name + ".sass", "w").write(s)
                open(name + ".ptx", "w").write(c.asm["ptx"])
                open(name + ".ttgir", "w").write(c.asm["ttgir"])
                print(
                    kind,
                    dtype,
                    arch,
                    round(time.time() - t, 1),
                    c.metadata.num_warps,
                    c.metadata.shared,
                    {
                        k: len(re.findall(k, s))
                        for k in (
                            "LDG.E.128",
                            "LDG.E.64 ",
                            "LDG",
                            "STG.E.128",
                            "STG",
                            "LDL",
                            "STL",
                            "FFMA",
                            "DFMA",
                            "MUFU",
                            "LDS",
                            "STS",
                            "BRA",
                        )
                    },
                    len(re.findall(";", s)),
                )
