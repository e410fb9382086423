"""Sweep the geometry of the Triton kernels on a GPU: `python -m benchmarks.gpu_sweep --out DIR`.

Says, for the card at hand, which block, warps, stages and steps per chunk are fastest for each
kernel, and how far from that is what `geometry` in `kernels/cuda/scan.py` chooses. All variants are
compiled side by side in processes, with their registers and spills; then each is timed between two
events with nothing in the device's cache. Writes `gpu_sweep.json` and `gpu_sweep.txt`. Nothing is
proved here: `benchmarks.gpu` does.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import neurospike as ns
from neurospike.backend.dispatch import TABLE, unsupported_reasons
from neurospike.kernels.cuda import scan
from neurospike.kernels.cuda._compile import bits_of
from neurospike.kernels.cuda._launch import Launch, launch
from neurospike.ops import state_dtype

from .gpu_checks import FORMATS, name_of
from .gpu_layers import bytes_moved
from .gpu_session import USES
from .timing import copy_bandwidth, machine

Geometry = tuple[int, int, int, int]  # steps per chunk, neurons, warps, stages
CASES = ("100x128x8192", "25x128x1000", "25x32x256")
NEURONS: Mapping[str, Callable[[], Any]] = {
    "LIF": lambda: ns.LIF(0.9),
    "Synaptic": lambda: ns.Synaptic(0.9, 0.8),
    "SEAdLIF": ns.SEAdLIF,
}
EVERY = TABLE["triton"].checkpoint_every
GEOMETRIES: tuple[Geometry, ...] = (
    *((EVERY, block, warps, 4) for block, warps in ((64, 1), (128, 1), (128, 2), (256, 2))),
    *((EVERY, block, 4, 4) for block in (256, 512)),
    *((EVERY, block, 2, 1) for block in (256, 512, 1024)),
    (EVERY, 512, 4, 1),
    (2 * EVERY, 256, 2, 4),
    (2 * EVERY, 256, 2, 1),
    (EVERY // 2, 256, 2, 4),
)
SMALL = (16, 1 << 14)  # steps and neurons that are compiled for: the same kernel takes all sizes
BEST = 3  # of each case, that are told


@dataclass(frozen=True)
class Kernel:
    """One kernel of a neuron: `use` is one of `USES`."""

    neuron: str
    dtype: torch.dtype
    use: str

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.neuron} {name_of(self.dtype)} {self.use}"

    @property
    def kind(self) -> str:
        """Which of the two kernels it is."""
        return "backward" if self.use == "backward" else "forward"

    def chosen(self, size: int) -> Geometry:
        """Return what `geometry` chooses for so many neurons."""
        loads = 2 if self.kind == "backward" else 1
        return (EVERY, *scan.geometry(self.kind, size, self.dtype, loads))

    def jitted(self, geometry: Geometry) -> Any:
        """Return the kernel for a geometry, not compiled yet."""
        every, block, _, stages = geometry
        rule = NEURONS[self.neuron]().rule
        flags = {"EVERY": every, "BLOCK": block, "STAGES": stages, "SPIKES": True, "TRACED": 0}
        flags |= {
            "LENGTHS": False,
            "SCALARS": (1 << len(rule.parameters)) - 1,
            "HELD_CURRENT": False,
        }
        if self.kind == "backward":
            flags |= {"CONSTANT": False, "WANTED": 0, "WANT_STATES": False}
            flags |= {"HELD_SPIKES": False, "HELD_TRACES": 0}
        else:
            flags |= {"GIVEN": False, "SAVED": self.use == "forward"}
        return scan.compiled(self.kind, rule.program, **flags)

    def arguments(self, every: int, steps: int, size: int, device: str) -> tuple[Any, ...]:
        """Return what the kernel is launched with: a sequence of so many steps and neurons."""
        rule = NEURONS[self.neuron]().rule
        state, count = state_dtype(self.dtype), len(rule.states)
        current = torch.randn(steps, size, device=device).to(self.dtype)
        values = tuple(torch.full((1,), 0.9, dtype=state, device=device) for _ in rule.parameters)
        rows = math.ceil(steps / every) * size
        saved = tuple(0.3 * torch.randn(rows, dtype=state, device=device) for _ in range(count))
        none, bits = (None,) * count, bits_of(rule.numbers)
        ones = (1,) * len(values)
        if self.kind == "backward":
            grad, out = torch.randn_like(current), torch.empty_like(current)
            unasked = (None,) * len(values)
            return (
                *(grad, none, none, current, saved, values, bits),
                *(out, none, unasked, size, ones, steps, None),
            )
        finals = tuple(torch.empty(size, dtype=state, device=device) for _ in range(count))
        kept = saved if self.use == "forward" else none
        spikes = torch.empty_like(current)
        return (current, none, values, bits, spikes, none, kept, finals, size, ones, steps, None)


def kernels() -> Iterator[Kernel]:
    """Yield every kernel that is swept."""
    for neuron in NEURONS:
        for dtype in FORMATS:
            for use in USES:
                yield Kernel(neuron, dtype, use)


def geometries(kernel: Kernel, cases: Sequence[str] = CASES) -> list[Geometry]:
    """Return what is tried of a kernel: the table, and what is chosen for any of the cases.

    Other numbers of steps per chunk, which the backend's row would have to change for, are tried
    with one state only.
    """
    found = [g for g in GEOMETRIES if kernel.neuron == "LIF" or g[0] == EVERY]
    return list(dict.fromkeys([*found, *(kernel.chosen(sizes(case)[1]) for case in cases)]))


def sizes(case: str) -> tuple[int, int]:
    """Return the steps and the neurons of a case "TxBxN"."""
    steps, *others = map(int, case.split("x"))
    return steps, math.prod(others)


def build(kernel: Kernel, geometry: Geometry, device: str = "cuda") -> dict[str, Any]:
    """Compile a kernel and run it once on few neurons; what the compiler made of it."""
    every, block, warps, _ = geometry
    steps, size = SMALL
    row = {"kernel": kernel.label, "geometry": list(geometry)}
    try:
        arguments = kernel.arguments(every, steps, size, device)
        made = launch(kernel.jitted(geometry), math.ceil(size / block), warps, *arguments)
    except Exception:  # noqa: BLE001 (one that does not fit the device costs no other)
        return row | {"error": traceback.format_exc()}
    if made is None:  # launches were turned into compilations
        return row
    numbers = {"registers": made.n_regs, "spills": made.n_spills}
    return row | numbers | {"shared_bytes": made.metadata.shared}


def built(processes: int, seconds: float) -> list[dict[str, Any]]:
    """Compile all variants side by side, for at most so many seconds."""
    jobs = [(kernel, geometry) for kernel in kernels() for geometry in geometries(kernel)]
    end, rows = time.perf_counter() + seconds, []
    # Started anew and not forked: CUDA cannot be used in a fork.
    started = multiprocessing.get_context("spawn")
    with started.Pool(processes, torch.set_num_threads, (1,)) as pool:
        found = pool.imap_unordered(_build, jobs)
        for _ in jobs:
            try:
                rows.append(found.next(timeout=max(0.0, end - time.perf_counter())))
            except multiprocessing.TimeoutError:
                break
    return rows


def _build(job: tuple[Kernel, Geometry]) -> dict[str, Any]:
    return build(*job)


def launched(kernel: Kernel, geometry: Geometry, case: str, device: str) -> Callable[[], None]:
    """Return what launches a kernel in a case and a geometry, on tensors of its own."""
    steps, size = sizes(case)
    every, block, warps, _ = geometry
    arguments = kernel.arguments(every, steps, size, device)
    index = arguments[0].get_device()
    go = Launch(kernel.jitted(geometry), math.ceil(size / block), warps, index)
    return lambda: go((), arguments)


def timed(kernel: Kernel, case: str, tried: Sequence[Geometry]) -> dict[str, Any]:
    """Time a kernel in a case in every geometry that was compiled, and a copy of as many bytes."""
    from triton.testing import do_bench

    def microseconds(run: Callable[[], object]) -> float:
        return 1e3 * do_bench(run, warmup=4, rep=16, return_mode="median")

    steps, size = sizes(case)
    moved = bytes_moved("triton", kernel.dtype)[kernel.use]
    if kernel.use != "inference":  # `bytes_moved` counts one state
        moved += (len(NEURONS[kernel.neuron]().rule.states) - 1) * 4 / EVERY
    copy = copy_bandwidth(round(moved * steps * size), "cuda")
    found = []
    for geometry in tried:
        found.append([microseconds(launched(kernel, geometry, case, "cuda")), *geometry])
    return {
        "case": case,
        "kernel": kernel.label,
        "copy_us": microseconds(copy),
        "chosen": list(kernel.chosen(size)),
        "found": sorted(found),
    }


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table: of each case the best few, and how far from them what is chosen is."""
    code = {(row["kernel"], *row["geometry"]): row for row in results["kernels"]}
    device = results["machine"]["device"]
    yield f"{device}: us (share of a copy's speed; registers, spills): steps/neurons/warps/stages"
    for row in results["cases"]:
        best = row["found"][0][0]

        def told(us: float, *geometry: int, row: Mapping[str, Any] = row) -> str:
            made = code.get((row["kernel"], *geometry), {})
            numbers = f"{made.get('registers', '?')}, {made.get('spills', '?')}"
            share = f"{row['copy_us'] / us:.2f}"
            return f"{us:.2f} ({share}; {numbers}): {'/'.join(map(str, geometry))}"

        yield f"{row['case']} {row['kernel']}"
        for one in row["found"][:BEST]:
            yield f"    {told(*one)}"
        chosen = [one for one in row["found"] if one[1:] == row["chosen"]]
        for one in chosen:
            yield f"  chosen, +{one[0] / best - 1:.1%}: {told(*one)}"
        if not chosen:
            yield f"  chosen, not timed: {'/'.join(map(str, row['chosen']))}"
    failed = [row for row in results["kernels"] if "error" in row]
    for row in failed:
        name = f"{row['kernel']} {'/'.join(map(str, row['geometry']))}"
        yield f"FAILED {name}: {row['error'].strip().splitlines()[-1]}"
    for part in results.get("left out", ()):
        yield f"left out for lack of time: {part}"


def save(results: Mapping[str, Any], folder: Path) -> None:
    """Write the results, a row per line, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, value in results.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f" {json.dumps(name)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    (folder / "gpu_sweep.json").write_text(text, encoding="utf-8")
    table = "\n".join(lines(results)) + "\n"
    (folder / "gpu_sweep.txt").write_text(table, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 if something failed or was left out, or 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_sweep",
        description="Time the Triton kernels in every geometry on a GPU.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for all of it")
    options = parser.parse_args(argv)
    reasons = unsupported_reasons("triton", "cuda")
    if reasons:
        print(f"error: nothing to measure: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    end = time.perf_counter() + options.limit
    processes = max(1, min(15, (os.cpu_count() or 1) - 1))
    rows = built(processes, 0.6 * options.limit)
    results: dict[str, Any] = {"machine": machine("cuda"), "kernels": rows, "cases": []}
    fit = {(row["kernel"], *row["geometry"]) for row in rows if "error" not in row}
    left_out = []
    for case in CASES:
        for kernel in kernels():
            tried = [g for g in geometries(kernel) if (kernel.label, *g) in fit]
            if time.perf_counter() > end or not tried:
                left_out.append(f"{case} {kernel.label}")
            else:
                results["cases"].append(timed(kernel, case, tried))
    if left_out:
        results["left out"] = left_out
    save(results, options.out)
    print("\n".join(lines(results)))
    return 1 if left_out or any("error" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
