"""Count the machine code of the Triton kernels, without a GPU: `python -m benchmarks.triton_code`.

Each kernel goes the way it goes at a launch, host code included, up to the launch: Triton is told
of a device of the architecture asked for, and the tensors lie in the memory of the CPU, which
nobody reads. Then the machine code is counted: global loads and stores a time step, their width,
registers, local memory, fused multiply-adds. The bytes per neuron-step are what that code moves, a
count and no measurement; what stays in a cache of the device is counted like the rest.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from neurospike import ops
from neurospike.kernels.cuda import _scan_loop as scan_loop
from neurospike.kernels.cuda import scan as scan_triton
from neurospike.neurons import surrogate
from neurospike.neurons.record import record
from neurospike.neurons.rule import lif_of, rule_of

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ARCHITECTURES = (80, 90, 100)
NEURONS = 1 << 16
STEPS = 100
WIDTH = {"U8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # bytes; without: 4


@dataclass(frozen=True)
class Kernel:
    """One kernel of a layer: `kind` is "inference", "training forward" or "backward"."""

    kind: str
    dtype: torch.dtype = torch.float32
    reset: str = "subtract"
    delayed: bool = True
    surrogate: "str | surrogate.Surrogate" = "atan"
    constant: bool = False
    trace: bool = False
    learned: bool = False
    neurons: int = NEURONS
    neuron: Callable[..., Any] | None = None  # a function in place of the LIF

    @property
    def label(self) -> str:
        """What the table calls it."""
        extras = [word for word in ("constant", "trace", "learned") if getattr(self, word)]
        extras += [f"{self.neurons} neurons"] if self.neurons != NEURONS else []
        if self.neuron is not None:
            return f"{self.kind} ({self.neuron.__name__}{''.join(', ' + e for e in extras)})"
        timing = "" if self.delayed else " immediate"
        return " ".join([self.kind, f"({self.reset}{timing}{''.join(', ' + e for e in extras)})"])


@dataclass(frozen=True)
class Code:
    """Counts of one kernel's machine code; loads, stores and bytes are those of the time loop."""

    architecture: int
    registers: int
    local_bytes: int  # of the whole kernel
    spills: int  # accesses to local memory in the time loop
    fused_multiply_adds: int
    loads_a_step: float
    stores_a_step: float
    widths: tuple[int, ...]  # of the loads and stores of the time loop, in bytes
    chunks_ahead: float  # whose loads are on their way while one is computed
    bytes_a_neuron_step: float
    instructions_a_neuron_step: float


class _Driver:
    """Answers Triton's questions as if there were a device of an architecture."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(architecture: int) -> Iterator[list[Any]]:
    """Turn launches into compilations; yields the list that will hold what they made."""
    made: list[Any] = []
    run = triton.JITFunction.run
    driver = triton.runtime.driver
    before = dict(vars(driver))  # there is no asking for it: without a GPU there is none

    def compile_only(self: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        made.append(run(self, *arguments, warmup=True, **options))

    triton.JITFunction.run = compile_only
    driver.set_active(_Driver(architecture))
    try:
        yield made
    finally:
        triton.JITFunction.run = run
        vars(driver).update(before)


@contextlib.contextmanager
def parsing(architecture: int) -> Iterator[list[str]]:
    """Turn launches into Triton's first code, in which every type is known, and stop there.

    That takes a tenth of the time of a compilation. Yields the list that will hold the names of
    the functions.
    """
    made: list[str] = []
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)

    def parse(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        source = ASTSource(
            fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
        )
        options = backend.parse_options({"num_warps": compile["num_warps"]})
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        parts = (backend.get_codegen_implementation(options), backend.get_module_map(), context)
        source.make_ir(target, options, *parts)
        made.append(fn.name)
        return True

    with compiling(architecture), triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = parse
        yield made


def build(kernel: Kernel, architecture: int, steps: int = STEPS) -> Any:
    """Return what Triton compiles for a kernel on an architecture, 90 for capability 9.0."""
    state = ops.state_dtype(kernel.dtype)
    chosen = surrogate.resolve(kernel.surrogate)
    recorded = record(kernel.neuron) if kernel.neuron else None
    recorded = recorded or lif_of(kernel.reset, kernel.delayed, False, None)
    count = len(recorded.states)
    rule = rule_of(recorded, chosen.text, chosen.parameters)

    def rows(count: int, dtype: torch.dtype = state) -> torch.Tensor:
        return torch.empty((count, kernel.neurons), dtype=dtype)

    current = rows(1 if kernel.constant else steps, kernel.dtype)
    current = current[0] if kernel.constant else current
    spikes, finals = rows(steps, kernel.dtype), [rows(1)[0] for _ in range(count)]
    traces = [rows(steps) for _ in range(count if kernel.trace else 0)]
    saved = [rows(-(-steps // scan_loop.EVERY)).flatten() for _ in range(count)]
    parameters = [torch.empty(1, dtype=state) for _ in rule.parameters]
    given: dict[str, Any] = {
        "current": current,
        "states": [],
        "parameters": parameters,
        "neuron": rule.program,
        "numbers": rule.numbers,
        "steps": steps,
        "constant": kernel.constant,
    }
    with compiling(architecture) as made:
        if kernel.kind == "backward":
            scan_triton.backward(
                **given,
                grad_spikes=spikes,
                grad_finals=finals,
                grad_traces=traces or [None] * count,
                saved=saved,
                out=torch.empty_like(current),
                out_states=[],
                out_parameters=[one if kernel.learned else None for one in parameters],
            )
        else:
            saved = [] if kernel.kind == "inference" else saved
            scan_triton.forward(**given, spikes=spikes, finals=finals, traces=traces, saved=saved)
    return made[-1]


def inspect(kernel: Kernel, architecture: int) -> Code:
    """Compile a kernel and count its machine code."""
    compiled = build(kernel, architecture)
    states = len(record(kernel.neuron).states) if kernel.neuron else 1
    kind = "backward" if kernel.kind == "backward" else "forward"
    loads = 2 + states * kernel.trace if kind == "backward" else 1
    block, warps, _ = scan_triton.geometry(kind, kernel.neurons, kernel.dtype, loads)
    listing = _listing(compiled)
    bodies = time_loops(listing)
    # One loop takes whole chunks, another what is left at the end: both move the same, the first
    # with fewer masks, or asynchronously.
    body = min(bodies, key=lambda body: ("LDGSTS" not in "".join(body), len(body)))
    loads, stores = _widths(body, "LDG"), _widths(body, "STG")
    waits = re.findall(r"DEPBAR\.LE SB0, (\w+)", "\n".join(body))
    registers, local_bytes = usage_of(compiled)
    steps, mine = scan_loop.EVERY, scan_loop.EVERY * block // (32 * warps)
    return Code(
        architecture,
        registers=registers,
        local_bytes=local_bytes,
        spills=sum(bool(re.search(r"\b(LDL|STL)\b", i)) for i in body),
        fused_multiply_adds=len(re.findall(r"\b[FD]FMA\b", listing)),
        loads_a_step=len(loads) / steps,
        stores_a_step=len(stores) / steps,
        widths=tuple(sorted({*loads, *stores})),
        chunks_ahead=int(waits[0], 16) / len(loads) if waits and loads else 0,
        bytes_a_neuron_step=(sum(loads) + sum(stores)) / mine,
        instructions_a_neuron_step=len(body) / mine,
    )


def _listing(compiled: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        return _tool("nvdisasm", "-c", file.name)


def loops_of(compiled: Any) -> list[list[str]]:
    """Return the instructions of each loop of a kernel that touches global memory."""
    return time_loops(_listing(compiled))


def usage_of(compiled: Any) -> tuple[int, int]:
    """Return the registers of a thread, and its bytes of local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", file.name)
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def time_loops(listing: str) -> list[list[str]]:
    """Return the instructions of each loop of a disassembled kernel that touches global memory."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\w+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(code[1])
    loops = []
    for end, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\w+)\)", instruction)
        if target and labels[target[1]] < end:
            loops.append(instructions[labels[target[1]] : end + 1])
    return [loop for loop in loops if _widths(loop, "STG") or _widths(loop, "LDG")]


def _widths(instructions: Sequence[str], opcode: str) -> list[int]:
    """Return the bytes that each load (`LDG`, and the asynchronous `LDGSTS`) or store moves."""
    found = []
    for instruction in instructions:
        if match := re.search(rf"\b{opcode}(?:STS)?(?![A-Z])((?:\.\w+)*)", instruction):
            found.append(next((WIDTH[s] for s in match[1].split(".") if s in WIDTH), 4))
    return found


def _tool(name: str, *arguments: str) -> str:
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels() -> list[Kernel]:
    """Return the kernels of the table."""
    table = [
        Kernel(kind, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        for kind in ("inference", "training forward", "backward")
    ]
    table += [
        Kernel(kind, dtype, neurons=8192)
        for dtype in (torch.float32, torch.bfloat16)
        for kind in ("inference", "training forward", "backward")
    ]
    table += [Kernel(k, constant=True) for k in ("training forward", "backward")]
    table += [Kernel("backward", learned=True), Kernel("backward", trace=True)]
    table += [Kernel("backward", reset="zero", delayed=False)]
    return table


COLUMNS = (
    ("kernel", 42),
    ("format", 9),
    ("sm", 4),
    ("loads", 6),
    ("stores", 7),
    ("bytes", 6),
    ("width", 6),
    ("ahead", 6),
    ("instr", 6),
    ("regs", 5),
    ("spills", 7),
    ("local", 6),
    ("fma", 4),
)
LEGEND = """\
loads, stores: of global memory, a thread and time step (of a constant current: outside the loop)
bytes, instr:  moved and executed in the time loop, per neuron-step
width:         of those loads and stores, bytes a thread
ahead:         chunks whose loads are on their way while another is computed
regs, local:   registers and bytes of local memory a thread; spills: accesses to the latter in
               the time loop; fma: fused multiply-adds in the whole kernel"""


def row(kernel: Kernel, code: Code) -> str:
    """Return a line of the table."""
    values = (
        kernel.label,
        str(kernel.dtype).removeprefix("torch."),
        code.architecture,
        f"{code.loads_a_step:.3f}",
        f"{code.stores_a_step:.3f}",
        f"{code.bytes_a_neuron_step:.2f}",
        "/".join(map(str, code.widths)),
        f"{code.chunks_ahead:g}",
        f"{code.instructions_a_neuron_step:.1f}",
        code.registers,
        code.spills,
        code.local_bytes,
        code.fused_multiply_adds,
    )
    return _line(values)


def _line(values: Sequence[object]) -> str:
    first, *others = (
        f"{value:<{w}}" if k < 2 else f"{value:>{w}}"
        for k, (value, (_, w)) in enumerate(zip(values, COLUMNS))
    )
    return "".join([first, *others])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it with its numbers if a folder is named; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_code",
        description="Compile the Triton kernels without a GPU and count their machine code.",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write DIR/triton_code.{txt,json}"
    )
    out = parser.parse_args(argv).out
    versions = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "every": scan_loop.EVERY,
    }
    lines = [
        f"triton {versions['triton']}, torch {versions['torch']}; the membrane is saved before "
        f"every {versions['every']}th step",
        _line([name for name, _ in COLUMNS]),
    ]
    print("\n".join(lines))
    records = []
    for kernel in kernels():
        for architecture in ARCHITECTURES:
            code = inspect(kernel, architecture)
            lines.append(row(kernel, code))
            print(lines[-1], flush=True)
            described = {**asdict(kernel), "dtype": str(kernel.dtype).removeprefix("torch.")}
            records.append({**described, **asdict(code)})
    lines.append(LEGEND)
    print(LEGEND)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "triton_code.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = json.dumps({"versions": versions, "kernels": records}, indent=1)
        (out / "triton_code.json").write_text(found + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
