"""Prove and measure the Triton backend on a GPU: `python -m benchmarks.gpu --out DIR`.

In this order: spikes and gradients against the reference and the float64 oracle, the ways torch
calls a layer (streams, CUDA graphs, torch.compile, autocast), throughput beside the rivals that are
installed, the whole training step, a short training run, peak memory. Every case passes the
equivalence gate before it is timed. Writes `gpu.json` and `gpu.txt`. Without a CUDA device it says
so and ends with exit code 2: no figure is guessed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurospike.dispatch import TABLE, unsupported_reasons

from . import rivals
from .equivalence import Check, checks
from .gate import BUDGET, GateError, check_close, gate
from .networks import FusedTutorial5, Tutorial5, training_step
from .timing import copy_bandwidth, interleave, machine, tensors

CASES = ("25x32x256", "25x128x1000", "100x128x1000", "100x128x8192", "32x64x65536")
FORMATS = (torch.float32, torch.bfloat16)
# Steps that snnTorch under torch.compile is unrolled to: more of them compile for minutes.
COMPILED_STEPS = 25
DIFFERENT = 1e-3  # share of a rival's spikes
ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """What a figure must reach, and what it is a ratio of."""

    case: str
    ratio: str
    least: float


FLOORS = (
    *(
        Floor(f"100x128x8192 {dtype}", ratio, least)
        for dtype in ("float32", "bfloat16")
        for ratio, least in (("share of copy, training", 0.80), ("share of copy, inference", 0.85))
    ),
    Floor("25x128x1000 float32", "snntorch loop / ours, training", 30.0),
    Floor("32x64x65536 bfloat16", "spikingjelly / ours, training", 1.2),
    Floor("784-1000-10", "snntorch / ours", 20.0),
)


@dataclass
class Session:
    """A run: where it computes, how long it may take, and what it found."""

    device: str = "cuda"
    backend: str = "triton"
    cases: Sequence[str] = CASES
    seconds: float = 1.5  # spent timing a case
    limit: float = 480.0  # after which no new case is begun
    lines: list[str] = field(default_factory=list)
    results: Row = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def say(self, line: str = "") -> None:
        """Print a line and keep it for the text table."""
        print(line, flush=True)
        self.lines.append(line)

    def add(self, part: str, row: Row) -> None:
        """Keep a row of the results."""
        self.results.setdefault(part, []).append(row)

    def has_time(self, part: str) -> bool:
        """Whether another case may begin; says so if not."""
        spent = time.perf_counter() - self.began
        if spent > self.limit:
            self.say(f"{part}: left out, {spent:.0f} s have passed")
        return spent <= self.limit


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a check or a floor is missed, or 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Prove and measure the Triton backend on a GPU, in under 8 minutes.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--seconds", type=float, default=1.5, help="spent timing each case")
    parser.add_argument("--data_path", type=Path, help="folder of MNIST, to train on it")
    options = parser.parse_args(argv)
    reasons = unsupported_reasons("triton", "cuda")
    if reasons:
        print(f"error: nothing to measure: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    # SpikingJelly would take its CUDA extension where one was built; the rival is its Triton path.
    os.environ.setdefault("SJ_LIF_CUDA_IMPLEMENTATION", "triton")
    session = Session(seconds=options.seconds)
    measure(session, options.data_path)
    return write(session, options.out)


def measure(session: Session, data_path: Path | None = None) -> None:
    """Do everything; what fails is told and kept, and the rest goes on."""
    session.results["machine"] = machine(session.device)
    session.say(json.dumps(session.results["machine"], indent=2))
    for check in checks(session.device, session.backend):
        _prove(session, check)
    for case in session.cases:
        for dtype in FORMATS:
            _guard(session, f"{case} {_name(dtype)}", lambda c=case, d=dtype: layer(session, c, d))
    _guard(session, "784-1000-10", lambda: network(session))
    _guard(session, "training run", lambda: training_run(session, data_path))


def write(session: Session, out: Path) -> int:
    """Compare with the floors, write both files; the exit code."""
    missed = [*_failed(session), *_below(session)]
    session.say(f"{time.perf_counter() - session.began:.0f} s in all")
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(session.results, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.txt").write_text("\n".join(session.lines) + "\n", encoding="utf-8")
    print(f"written to {out / 'gpu.json'} and {out / 'gpu.txt'}")
    return 1 if missed else 0


def layer(session: Session, case: str, dtype: torch.dtype) -> Row:
    """Training step and inference of one layer beside its rivals and a copy of as many bytes."""
    current, grad = _on(session.device, dtype, *tensors(case))
    ours = rivals.ours(session.backend)
    oracle = rivals.ours("reference")
    distance = gate(case, ours, oracle, current, grad, budget=_budget(dtype))
    steps = {
        "ours, training": rivals.layer_step(ours, current, grad),
        "ours, inference": rivals.inference(ours, current),
    }
    others = list(_rivals(session, ours, case, dtype))
    differ = {}
    for name, rival, mine in others:
        differ[name] = _agree(name, rival, mine, current)
        steps[f"{name}, training"] = rivals.layer_step(rival, current, grad)
        if mine is not ours:
            steps[f"ours for {name}, training"] = rivals.layer_step(mine, current, grad)
    number = current.numel()
    for what, moved in bytes_moved(session.backend, dtype).items():
        steps[f"copy, {what}"] = copy_bandwidth(round(moved * number), session.device)
    peaks = {name: _peak(session.device, step) for name, step in steps.items()}
    found = interleave(steps, seconds=session.seconds, least=5, finest=5e-3)
    ratios = {
        f"share of copy, {what}": found[f"copy, {what}"].over(found[f"ours, {what}"])
        for what in ("training", "inference")
    }
    for name, *_ in others:
        own = found.get(f"ours for {name}, training", found["ours, training"])
        ratios[f"{name} / ours, training"] = found[f"{name}, training"].over(own)
    more = {"peak_mb": peaks, "gradient_distance": distance, "rivals' other spikes": differ}
    return _tell(session, f"{case} {_name(dtype)}", found, ratios, **more)


def _rivals(
    session: Session, ours: rivals.Layer, case: str, dtype: torch.dtype
) -> Iterator[tuple[str, rivals.Layer, rivals.Layer]]:
    """Yield each rival's name, what it is, and our layer with the same kind of reset."""
    if dtype == torch.float32:
        # In 16 bits snnTorch keeps a 16-bit membrane, which is another neuron.
        yield "snntorch loop", rivals.snntorch_loop(), ours
        if session.device == "cuda" and int(case.split("x")[0]) <= COMPILED_STEPS:
            yield "snntorch compiled", rivals.compiled(rivals.snntorch_loop()), ours
    if rivals.installed("spikingjelly"):
        immediate = rivals.ours(session.backend, reset_delay=False)
        yield "spikingjelly", rivals.spikingjelly_multi_step(), immediate


def _agree(name: str, rival: rivals.Layer, mine: rivals.Layer, current: Tensor) -> float:
    """Return the share of spikes in which a rival differs from us.

    A rival that rounds in another order, or stores its state in 16 bits, fires otherwise where a
    membrane comes within rounding of the threshold. More than `DIFFERENT` is another neuron.
    """
    with torch.no_grad():
        share = float((rival(current) != mine(current)).double().mean())
    if not share <= DIFFERENT:
        raise GateError(f"{name}: {share:.1%} of the spikes differ from ours")
    return share


def bytes_moved(backend: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the bytes of global memory that a neuron-step takes in each use of a backend.

    Training reads the current twice and the spikes' gradient, and writes spikes and the current's
    gradient; a backend with checkpoints also writes and reads one of the state's every K-th step.
    """
    every = TABLE[backend].checkpoint_every
    checkpoint = 4 / every if every else 0.0
    return {"training": 5 * dtype.itemsize + 2 * checkpoint, "inference": 2 * dtype.itemsize}


def network(session: Session) -> Row:
    """Whole training step 784-1000-10, T=25, batch 128, beside snnTorch's tutorial 5 as written."""
    steps: dict[str, Callable[[], object]] = {}
    gradients = {}
    for name in ("snntorch", "ours"):
        net, images, labels, optimizer = _tutorial(session, name)
        net.loss(images, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
        steps[name] = training_step(net, images, labels, optimizer)
    # The product with the second matrix is one for all steps or one a step, summed in another
    # order; of 32,000 output neurons and steps a few fire otherwise.
    distance = check_close("784-1000-10", gradients["ours"], gradients["snntorch"], 1e-2)
    if session.device == "cuda":
        steps["ours, CUDA graph"] = _captured(*_tutorial(session, "ours"))
    peaks = {name: _peak(session.device, step) for name, step in steps.items()}
    found = interleave(steps, seconds=2 * session.seconds, finest=5e-3)
    best = found.get("ours, CUDA graph", found["ours"])
    ratios = {
        "snntorch / ours": found["snntorch"].over(best),
        "snntorch / ours without a graph": found["snntorch"].over(found["ours"]),
    }
    return _tell(session, "784-1000-10", found, ratios, peak_mb=peaks, gradient_distance=distance)


def _tutorial(session: Session, name: str) -> tuple[Any, Tensor, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    ours = name == "ours"
    net: Any = FusedTutorial5(backend=session.backend) if ours else Tutorial5()
    images, labels = torch.rand(128, 784), torch.randint(0, 10, (128,))
    net, images, labels = (t.to(session.device) for t in (net, images, labels))
    graph = ours and session.device == "cuda"
    optimizer = torch.optim.Adam(
        net.parameters(), lr=5e-4, betas=(0.9, 0.999), fused=ours or None, capturable=graph
    )
    return net, images, labels, optimizer


def _captured(
    net: Any, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], object]:
    """Return a whole training step as one CUDA graph."""
    step = training_step(net, images, labels, optimizer)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def training_run(session: Session, data_path: Path | None) -> Row:
    """Train the recogniser for a few epochs with the command that people type."""
    data = ["--dataset", "digits"] if data_path is None else ["--dataset", "mnist"]
    if data_path is not None:
        data += ["--data_path", str(data_path.resolve())]
    epochs = "10" if data_path is None else "2"
    command = [sys.executable, "-m", "neurospike.train", *data, "--epochs", epochs]
    command += ["--backend", session.backend, "--device", session.device, "--run_dir", "run"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"training ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    last = done.stdout.splitlines()[-1]
    session.say(f"training run, {' '.join(data[:2])}, {epochs} epochs: {last}, {seconds:.1f} s")
    row = {"command": command[1:], "accuracy": last, "seconds": seconds}
    session.add("training run", row)
    return row


def _prove(session: Session, check: Check) -> None:
    def run() -> None:
        distance = check.run()
        session.say(f"  equal  {check.name:<40} gradients within {distance:.1e}")
        session.add("equivalence", {"check": check.name, "gradient_distance": distance})

    _guard(session, check.name, run)


def _guard(session: Session, part: str, run: Callable[[], object]) -> None:
    """Do a part; an error is told and kept, and the next part is done all the same."""
    if not session.has_time(part):
        session.add("left out", {"part": part})
        return
    try:
        run()
    # One broken rival or a device too small for a case must not cost the results of the others.
    except Exception as error:  # noqa: BLE001
        session.say(f"  FAILED {part}: {type(error).__name__}: {error}")
        session.add("failed", {"part": part, "error": traceback.format_exc()})


def _failed(session: Session) -> list[str]:
    return [row["part"] for part in ("failed", "left out") for row in session.results.get(part, [])]


def _below(session: Session) -> list[Floor]:
    """Tell which floors were reached; return those that were not."""
    ratios = {row["case"]: row["ratios"] for row in session.results.get("cases", [])}
    below = []
    for floor in FLOORS:
        found = ratios.get(floor.case, {}).get(floor.ratio)
        reached = found is not None and found >= floor.least
        value = "not measured" if found is None else f"{found:.2f}"
        word = "reached" if reached else "MISSED "
        session.say(f"  {word} {floor.case}: {floor.ratio} {value}, at least {floor.least:g}")
        if not reached:
            below.append(floor)
    return below


def _peak(device: str, step: Callable[[], object]) -> float | None:
    """Return by how many MB a step raises what is allocated on the GPU."""
    if device != "cuda":
        return None
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _on(device: str, dtype: torch.dtype, current: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return current.detach().to(device, dtype).requires_grad_(), grad.to(device, dtype)


def _budget(dtype: torch.dtype) -> float:
    # In 16 bits a gradient is rounded to its format: a unit in its last place is the least that
    # two float32 values on either side of a rounding boundary differ by.
    return BUDGET if dtype == torch.float32 else torch.finfo(dtype).eps


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tell(
    session: Session, case: str, found: dict[str, Any], ratios: dict[str, float], **more: Any
) -> Row:
    session.say(case)
    for name, timing in found.items():
        low, high = 1e3 * timing.quantile(0.2), 1e3 * timing.quantile(0.8)
        session.say(f"  {name:36} {1e3 * timing.median:10.4f} ms  ({low:.4f} to {high:.4f})")
    for name, ratio in ratios.items():
        session.say(f"  {name:36} {ratio:10.3f}")
    for name, value in more.items():
        session.say(f"  {name}: {value}")
    times = {name: timing.record() for name, timing in found.items()}
    row = {"case": case, "times": times, "ratios": ratios, **more}
    session.add("cases", row)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
