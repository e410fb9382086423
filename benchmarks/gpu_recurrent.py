"""Recurrent layers on a GPU: `python -m benchmarks.gpu_recurrent --out DIR`.

In this order: layers are proved against the replay of their own sums (`recurrent_gate`); training
steps are timed in turn with the same layer run step by step, as it is and as a CUDA graph, and with
snnTorch's `RLeaky` stepped in a loop; kernels alone are timed between two events. With `--parts
sweep` kernels are timed in every geometry that is tried, all of them compiled side by side in
processes before. Prints as it goes and writes `gpu_recurrent.json` after every part.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neurospike as ns
from neurospike.backend.dispatch import unsupported_reasons
from neurospike.kernels.cuda import recurrent as kernels
from neurospike.neurons.program import with_bias
from neurospike.ops import state_dtype

from . import rivals
from .device import Device
from .gpu_checks import name_of
from .recurrent_gate import prove
from .timing import interleave, machine

Geometry = kernels.Geometry
CASES = (
    "250x64x256",
    *(f"100x{batch}x{size}" for size in (128, 512, 1024) for batch in (32, 256)),
)
FORMATS = (torch.float32, torch.bfloat16)
PROOFS = ("20x5x100", "20x70x128", "20x130x256", "12x5x500", "8x3x1000")
SWEPT = (
    *("100x64x64", "100x32x128", "250x64x256", "100x256x256"),
    *("100x64x512", "100x256x512", "100x64x1024"),
)
NEURONS: dict[str, Callable[[], Any]] = {"LIF": lambda: ns.LIF(0.9), "SEAdLIF": ns.SEAdLIF}
COMPILE_STEPS = 2  # the same kernel takes all numbers of steps


def sizes(case: str) -> tuple[int, int, int]:
    """Return the numbers of a case "TxBxN"."""
    steps, batch, size = map(int, case.split("x"))
    return steps, batch, size


@dataclass(frozen=True)
class Kernel:
    """One kernel of a layer: `kind` is "forward" or "backward", `case` is "TxBxN"."""

    kind: str
    case: str
    dtype: torch.dtype = torch.float32
    neuron: str = "LIF"
    traces: bool = True  # kept forward; whether a gradient of theirs comes backward
    lengths: bool = False
    given: bool = False  # states to start from
    wanted: bool = False  # gradients of the parameters
    bias: bool = False  # one parameter more, of each neuron

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.case} {name_of(self.dtype)} {self.kind}"

    def chosen(self) -> Geometry:
        """Return what `geometry` chooses."""
        return kernels.geometry(self.kind, sizes(self.case)[2], state_dtype(self.dtype))

    def prepared(self, device: str) -> Callable[[], None]:
        """Return a call of the backend whose currents let some of the neurons fire."""
        steps, batch, size = sizes(self.case)
        rule, state = NEURONS[self.neuron]().rule, state_dtype(self.dtype)
        count = len(rule.states)

        def row(many: int = 1) -> list[Tensor]:
            return [torch.zeros(batch, size, dtype=state, device=device) for _ in range(many)]

        def sequence(dtype: torch.dtype = state) -> Tensor:
            return torch.randn(steps, batch, size, device=device).to(dtype)

        shared: dict[str, Any] = {
            "weight": torch.randn(size, size, dtype=state, device=device) / 10 / size**0.5,
            "states": row(1 + count) if self.given else [],
            "parameters": [
                *[torch.full((1,), 0.9, dtype=state, device=device)] * len(rule.parameters),
                *[torch.zeros(size, dtype=state, device=device)] * self.bias,
            ],
            "lengths": torch.full((batch,), steps, device=device) if self.lengths else None,
            "neuron": with_bias(rule.program) if self.bias else rule.program,
            "numbers": rule.numbers,
        }
        if self.kind == "forward":
            shared |= {"current": (0.45 * sequence()).to(self.dtype)}
            shared |= {"spikes": sequence(self.dtype), "finals": row(1 + count)}
            shared |= {"traces": [sequence() for _ in range(count)] if self.traces else []}
            shared |= {"currents": sequence() if self.traces else None}
            return lambda: kernels.forward(**shared)
        comes = [sequence() for _ in range(count)] if self.lengths and self.traces else []
        shared |= {"grad_spikes": sequence(self.dtype), "grad_finals": row(1 + count)}
        shared |= {"grad_traces": comes, "currents": sequence(), "out": sequence()}
        shared |= {"traces": [sequence() for _ in range(count)]}
        shared |= {"out_states": row(1 + count) if self.given else []}
        asked = [torch.zeros_like(one) if self.wanted else None for one in shared["parameters"]]
        shared |= {"out_parameters": asked}
        return lambda: kernels.backward(**shared)


@contextlib.contextmanager
def using(geometry: Geometry) -> Iterator[None]:
    """Divide every layer in this way, also one that is run step by step else."""
    before, kernels.geometry = kernels.geometry, lambda *_: geometry
    kernels.forget()
    try:
        with up_to(1024):
            yield
    finally:
        kernels.geometry = before
        kernels.forget()


@contextlib.contextmanager
def up_to(size: int) -> Iterator[None]:
    """Run larger layers step by step."""
    before = dict(kernels.LARGEST)
    kernels.LARGEST.update(forward=size, backward=size)
    try:
        yield
    finally:
        kernels.LARGEST.update(before)


def geometries(kernel: Kernel) -> list[Geometry]:
    """Return what is tried of a kernel, what is chosen first."""
    tried = itertools.starmap(Geometry, itertools.product((8, 16, 32, 64), (1, 2, 4), (4, 8, 16)))
    return list(dict.fromkeys((kernel.chosen(), *tried)))


def build(kernel: Kernel, geometry: Geometry, device: str = "cuda") -> dict[str, Any]:
    """Compile a kernel, and run it for a few steps."""
    _, batch, size = sizes(kernel.case)
    small = dataclasses.replace(kernel, case=f"{COMPILE_STEPS}x{batch}x{size}")
    with using(geometry):
        small.prepared(device)()
    return {"kernel": kernel.label, "geometry": list(geometry)}


def jobs(cases: Sequence[str]) -> list[tuple[Kernel, Geometry]]:
    """Return every geometry of every kernel that is swept."""
    kinds = [Kernel(kind, case) for case in cases for kind in ("forward", "backward")]
    return [(kernel, geometry) for kernel in kinds for geometry in geometries(kernel)]


Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]  # its part, and what is called


def side_by_side(work: Sequence[Job], seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run jobs in processes for at most so many seconds; yield their parts and results.

    Most of the time one core compiles. What goes wrong in one job costs no other.
    """
    end = time.perf_counter() + seconds
    processes = max(1, min(15, (os.cpu_count() or 1) - 1))
    # Started anew and not forked: CUDA cannot be used in a fork.
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        found = pool.imap_unordered(_result, work)
        for done in range(len(work)):
            try:
                yield found.next(timeout=max(0.0, end - time.perf_counter()))
            except multiprocessing.TimeoutError:
                yield "left out", {"jobs": len(work) - done}
                return


def _result(job: Job) -> tuple[str, dict[str, Any]]:
    part, function, given = job
    try:
        row = function(*given)
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 (one that does not fit the device costs no other)
        return "failed", {"part": f"{part} {given}", "error": traceback.format_exc()}
    return part, row


def swept(kernel: Kernel, tried: Sequence[Geometry]) -> dict[str, Any]:
    """Time a kernel in every geometry that was compiled, in microseconds."""
    from triton.testing import do_bench

    found = []
    for geometry in tried:
        with using(geometry):
            run = kernel.prepared("cuda")
            us = 1e3 * do_bench(run, warmup=2, rep=8, return_mode="median")
        found.append([us, *geometry])
    chosen = list(kernel.chosen())
    return {"kernel": kernel.label, "chosen": chosen, "found": sorted(found)}


def proved(neuron: str, case: str, dtype: torch.dtype, device: str = "cuda") -> dict[str, Any]:
    """Prove a layer from rest, and with lengths from some state."""
    steps, batch, size = sizes(case)
    torch.manual_seed(0)
    layer = ns.Recurrent(NEURONS[neuron](), size).to(device)
    layer = layer.double() if dtype == torch.float64 else layer
    drive = 10.0 if neuron == "SEAdLIF" else 1.0
    current = (drive * torch.randn(steps, batch, size)).to(device, dtype)
    state = [torch.rand(batch, size).to(layer.weight) for _ in layer.states]
    lengths = torch.randint(0, steps + 1, (batch,)).to(device)
    distance = max(prove(layer, current), prove(layer, current, state, lengths))
    return {"proof": f"{case} {name_of(dtype)} {neuron}", "distance": distance}


def rleaky(size: int, device: str) -> tuple[rivals.Layer, Tensor]:
    """Return snnTorch's `RLeaky` in a loop, and its weight."""
    import snntorch

    leaky = snntorch.RLeaky(beta=0.9, linear_features=size).to(device)

    def layer(current: Tensor) -> Tensor:
        spike, mem = torch.zeros_like(current[0]), torch.zeros_like(current[0])
        spikes = []
        for current_t in current.unbind(0):
            spike, mem = leaky(current_t, spike, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return layer, leaky.recurrent.weight


def warmed(case: str, dtype: torch.dtype) -> dict[str, Any]:
    """Compile what `timed` will run."""
    _, batch, size = sizes(case)
    timed(f"{COMPILE_STEPS}x{batch}x{size}", dtype, 0.0, warm=True)
    return {"case": f"{case} {name_of(dtype)}"}


def timed(
    case: str, dtype: torch.dtype, seconds: float, warm: bool = False
) -> dict[str, Any] | None:
    """Time training steps in turn: as one kernel, step by step, and the rival's loop.

    With `warm` only ours are run, once.
    """
    device, (steps, batch, size) = Device(), sizes(case)
    layer = ns.Recurrent(ns.LIF(0.9), size).cuda()
    current = (0.7 * torch.randn(steps, batch, size, device="cuda")).to(dtype).requires_grad_()
    grad = torch.randn_like(current)

    def training(run: rivals.Layer, weight: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(current), (current, weight), grad)

    ours = training(lambda x: layer(x)[0], layer.weight)

    def stepped() -> object:
        with up_to(0):
            return ours()

    prove(layer, current[:10])
    calls = {"ours": ours, "stepped": stepped}
    if warm:
        for call in calls.values():
            call()
        return None
    failed = {}
    if dtype == torch.float32 and rivals.installed("snntorch"):
        calls["snntorch loop"] = training(*rleaky(size, "cuda"))
    recorded: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        try:
            recorded[f"{name}, CUDA graph"] = device.record(call)
        except Exception:  # noqa: BLE001 (a rival that cannot be recorded)
            failed[name] = traceback.format_exc()
    found = interleave(calls | recorded, seconds=seconds, least=3, finest=2e-3)
    alone = {}
    for name, limit in (("ours", None), ("stepped", 0)):
        with up_to(limit) if limit is not None else contextlib.nullcontext():
            alone |= {f"{name}, {k}": v for k, v in _alone(device, layer, current, grad).items()}
    against = "ours, CUDA graph" if "ours, CUDA graph" in found else "ours"
    row = {"case": f"{case} {name_of(dtype)}", "kernels_ms": alone, "failed": failed}
    row["rate"] = float(layer(current)[0].detach().float().mean())
    row["times"] = {name: one.record() for name, one in found.items()}
    row["ratios over ours"] = {k: one.over(found["ours"]) for k, one in found.items()}
    row["ratios over ours, graph"] = {k: one.over(found[against]) for k, one in found.items()}
    return row


def _alone(device: Device, layer: ns.Recurrent, current: Tensor, grad: Tensor) -> dict[str, float]:
    """Return milliseconds of the kernels of forward and backward, between two events."""

    def forward() -> Callable[[], object]:
        return lambda: layer(current)

    def backward() -> Callable[[], object]:
        spikes, wanted = layer(current)[0], (current, layer.weight)
        return lambda: torch.autograd.grad(spikes, wanted, grad, retain_graph=True)

    both = {"forward": forward, "backward": backward}
    return {use: 1e3 * device.kernel_seconds(prepare) for use, prepare in both.items()}


class Report:
    """What was found so far, on the screen and on disk."""

    def __init__(self, folder: Path, limit: float, where: dict[str, Any]) -> None:
        self.folder, self.end = folder, time.perf_counter() + limit
        self.results: dict[str, Any] = {"machine": where}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.perf_counter()

    def add(self, name: str, row: Any) -> None:
        """Keep and tell a row of a part."""
        self.results.setdefault(name, []).append(row)
        print("\n".join(lines(name, row)), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.results, indent=1) + "\n"
        (self.folder / "gpu_recurrent.json").write_text(text, encoding="utf-8")

    def part(self, name: str, label: str, run: Callable[[], Any]) -> None:
        """Do a part if there is time; an error is told and kept, and the rest goes on."""
        if self.left() <= 0:
            self.add("left out", {"part": label})
            return
        try:
            row = run()
        except Exception:  # noqa: BLE001
            name, row = "failed", {"part": label, "error": traceback.format_exc()}
        self.add(name, row)


def lines(name: str, row: dict[str, Any]) -> Iterator[str]:
    """Yield what is told of a row of a part."""
    if name == "proofs":
        yield f"equal {row['proof']}: gradients within {row['distance']:.1e}"
    elif name == "times":
        yield f"{row['case']}: {row['rate']:.1%} of the neurons fire"
        for call, one in row["times"].items():
            over = row["ratios over ours"][call], row["ratios over ours, graph"][call]
            told = (
                f"{one['ms_median']:10.3f} ms, {over[0]:8.2f} of ours, {over[1]:8.2f} of its graph"
            )
            yield f"  {call:28}{told}"
        yield from (f"  kernels, {use:19}{ms:10.3f} ms" for use, ms in row["kernels_ms"].items())
        for call, error in row["failed"].items():
            yield f"  not recorded: {call}: {error.strip().splitlines()[-1]}"
    elif name == "failed":
        yield f"FAILED {row['part']}: {row['error'].strip().splitlines()[-1]}"
    elif name == "left out":
        yield f"left out for lack of time: {row}"
    elif name == "sweep":
        yield f"{row['kernel']}: us, rows/width/warps"
        for us, *geometry in row["found"]:
            mark = "  chosen" if geometry == row["chosen"] else ""
            yield f"  {us:10.1f}  {'/'.join(map(str, geometry))}{mark}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 if something failed or was left out, or 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_recurrent",
        description="Prove and time recurrent layers on a GPU.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for all of it")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent timing each case")
    parser.add_argument("--parts", default="proofs,times", help="which, and sweep")
    options = parser.parse_args(argv)
    reasons = unsupported_reasons("triton", "cuda")
    if reasons:
        print(f"error: nothing to measure: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    report, parts = Report(options.out, options.limit, machine("cuda")), options.parts.split(",")
    work = compilations(parts)
    began = time.perf_counter()
    for part, row in side_by_side(work, 0.5 * options.limit):
        report.add(part, row)
    print(f"{len(work)} jobs side by side: {time.perf_counter() - began:.0f} s", flush=True)
    for case in CASES if "times" in parts else ():
        for dtype in FORMATS:
            given = (case, dtype, options.seconds)
            report.part("times", f"{case} {dtype}", lambda g=given: timed(*g))
    fit = {(row["kernel"], *row["geometry"]) for row in report.results.get("compiled", ())}
    for kernel in dict.fromkeys(kernel for kernel, _ in jobs(SWEPT)):
        tried = [g for g in geometries(kernel) if (kernel.label, *g) in fit]
        if tried:
            report.part("sweep", kernel.label, lambda k=kernel, t=tried: swept(k, t))
    failed = {"failed", "left out"} & report.results.keys()
    return 1 if failed else 0


def compilations(parts: Sequence[str]) -> list[Job]:
    """Return what is done side by side: proofs, and compiling what is timed afterwards."""
    work: list[Job] = []
    if "proofs" in parts:
        formats = (torch.float32, torch.float64, torch.bfloat16)
        every = [(n, case, dtype) for case in PROOFS for n in NEURONS for dtype in formats]
        work += [("proofs", proved, given) for given in every]
    if "times" in parts:
        work += [("warmed", warmed, (case, dtype)) for case in CASES for dtype in FORMATS]
    if "sweep" in parts:
        work += [("compiled", build, given) for given in jobs(SWEPT)]
    return work


if __name__ == "__main__":
    raise SystemExit(main())
