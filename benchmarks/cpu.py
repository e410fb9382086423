"""Measure the CPU backend: `python -m benchmarks.cpu [--out DIR] [--compiled]`.

Prints each table and writes all figures to `DIR/cpu.json` (default `benchmarks/results`), which
`python -m benchmarks.report` turns into tables and pictures. Every case passes the equivalence gate
before it is timed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from neurospike.backend import buffers

from . import rivals
from .gate import check_close, gate
from .networks import NETWORKS, training_step, tutorial
from .saved import bytes_saved, peak_memory
from .telling import Row, number_printed, tell
from .timing import copy_bandwidth, interleave, machine, tensors
from .workload import Workload, contenders

LAYERS = ("25x32x256", "25x128x1000", "100x128x1000")
SIZES = (
    "1x1x1",
    "1x1x1000",
    "10x1x10",
    "25x1x256",
    "25x32x10",
    "100x16x64",
    "1000x1x1000",
    "1000x1x100000",
)
SWEEPS = {
    "time against T": tuple(f"{steps}x32x256" for steps in (1, 5, 25, 100, 400, 1600)),
    "time against N": tuple(f"25x1x{4**k}" for k in range(3, 11)),
}
SAVED = "25x32x256"
WORKLOADS = (512, 2048)
COMPILED_STEPS = 25  # snnTorch's loop is unrolled: more of them compile for minutes
FLOOR = "copy of 20 B a neuron-step"
PARTS = ("layer", "saved", "workload", "network", "sweep", "sizes", "start")


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=6.0, help="time spent on each case")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="also against rivals under torch.compile, whose first calls take minutes",
    )
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="have the C library keep what every rival frees, as our own commands do",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts alone"
    )
    parser.add_argument("--memory", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak_of(options.memory))
        return 0
    results: Row = {"machine": machine()}
    if options.keep_freed_memory:
        buffers.keep_freed_memory()
        results["machine"]["allocator"] += ", keeping what is freed"
    print(json.dumps(results["machine"], indent=2))
    measure = {
        "layer": lambda: [layer(c, options.seconds, options.compiled) for c in LAYERS],
        "saved": lambda: [saved(SAVED)],
        "workload": lambda: [workload(n, 2 * options.seconds) for n in WORKLOADS],
        "network": lambda: [network(options.seconds)],
        "sweep": lambda: [sweep(name, options.seconds / 3) for name in SWEEPS],
        "sizes": lambda: [size(case) for case in SIZES],
        "start": lambda: [start()],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("cpu-kept.json" if options.keep_freed_memory else "cpu.json")
    for part in options.only:
        results[part] = measure[part]()
        path.write_text(json.dumps(results, indent=1) + "\n")  # a run that is cut short leaves some
    print(f"written to {path}")
    return 0


def layer(case: str, seconds: float, slow: bool = False) -> Row:
    """Training step and inference of one layer beside every rival, and the memory floors."""
    current, grad = tensors(case)
    steps = current.shape[0]
    ours = {True: rivals.ours("numba"), False: rivals.ours("numba", reset_delay=False)}
    names = {True: "numba", False: "numba, immediate"}
    distance = gate(case, ours[True], rivals.snntorch_loop(), current, grad)
    immediate = rivals.ours("reference", reset_delay=False)
    gate(f"{case}, immediate", ours[False], immediate, current, grad)
    # The compiled one is a rival that is compiled once, so it is made once.
    others = [
        (r, r.make())
        for r in rivals.here(slow=slow)
        if r.name != "snntorch compiled" or steps <= COMPILED_STEPS
    ]
    for rival, theirs in others:
        wanted = rival.wanted()
        gate(f"{case}, {rival.name}", theirs, wanted, current, grad, rounding=rival.rounding)
    calls: dict[str, Callable[[], object]] = {}
    for name, one in [*((names[d], ours[d]) for d in ours), *((r.name, x) for r, x in others)]:
        calls[f"{name}, training"] = rivals.layer_step(one, current, grad)
        calls[f"{name}, inference"] = rivals.inference(one, current)
    floors = {"training": FLOOR, "inference": "copy of 8 B a neuron-step"}
    calls[floors["training"]] = copy_bandwidth(20 * current.numel())
    calls[floors["inference"]] = copy_bandwidth(8 * current.numel())
    found = interleave(calls, seconds=3 * seconds)
    ratios = {}
    for use, floor in floors.items():
        for rival, _ in others:
            mine = found[f"{names[rival.delayed]}, {use}"]
            ratios[f"{rival.name} / numba, {use}"] = found[f"{rival.name}, {use}"].over(mine)
        ratios[f"numba / floor, {use}"] = found[f"numba, {use}"].over(found[floor])
    return tell(f"layer {case}", found, ratios, gradient_distance=distance)


def saved(case: str) -> Row:
    """Bytes per neuron-step that each keeps for its backward pass."""
    current, _ = tensors(case)
    layers = {"numba": rivals.ours("numba")}
    layers |= {r.name: r.make() for r in rivals.here() if r.package != "spyx"}
    number = current.numel()
    kept = {name: bytes_saved(one, current) / number for name, one in layers.items()}
    return tell(f"saved for backward, {case}", {}, {}, bytes_a_neuron_step=kept)


def workload(neurons: int, seconds: float) -> Row:
    """The workload of open-neuromorphic, beside the products of matrices in it."""
    work = Workload(neurons)
    found = interleave(contenders(work, ["numba"]), seconds=seconds, least=5)
    ours, floor = found["numba"], found["products alone"]
    ratios = {"numba / products alone": ours.over(floor)}
    for name, timing in found.items():
        if name not in ("numba", "products alone"):
            ratios[f"{name} / numba"] = timing.over(ours)
    return tell(work.case, found, ratios)


def network(seconds: float) -> Row:
    """Whole training step 784-1000-10, T=25, batch 128, against snnTorch's tutorial 5."""
    steps: dict[str, Callable[[], Tensor]] = {}
    gradients = {}
    for name, fused in NETWORKS.items():
        net, images, labels, optimizer = tutorial(fused)
        net.loss(images, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
        steps[name] = training_step(net, images, labels, optimizer)
    distance = check_close("784-1000-10", gradients["numba"], gradients["snntorch"])
    # Several steps in a row, as in training: the first after a rival finds none of its data cached.
    found = interleave(steps, seconds=2 * seconds, finest=0.1)
    peaks = {
        name: statistics.median(_in_new_process("--memory", name) for _ in range(7))
        for name in NETWORKS
    }
    ratios = {
        "snntorch / numba": found["snntorch"].over(found["numba"]),
        "peak memory of a step, snntorch / numba": peaks["snntorch"] / peaks["numba"],
    }
    case = "network 784-1000-10, batch 128, T=25"
    return tell(case, found, ratios, peak_mb=peaks, gradient_distance=distance)


def sweep(name: str, seconds: float) -> Row:
    """Training step of a layer over sizes, beside snnTorch and SpikingJelly and the floor."""
    others = [r for r in rivals.here() if r.name in ("snntorch", "spikingjelly")]
    rows = []
    for case in SWEEPS[name]:
        current, grad = tensors(case)
        ours = rivals.ours("numba")
        gate(case, ours, rivals.snntorch_loop(), current, grad)
        calls = {"numba": rivals.layer_step(ours, current, grad)}
        for rival in others:
            theirs = rival.make()
            gate(case, theirs, rival.wanted(), current, grad, rounding=rival.rounding)
            calls[rival.name] = rivals.layer_step(theirs, current, grad)
        calls[FLOOR] = copy_bandwidth(20 * current.numel())
        found = interleave(calls, seconds=seconds, least=5)
        rows.append(tell(f"{name}: {case}", found, {}))
    return {"case": name, "rows": rows}


def size(case: str) -> Row:
    """Training step of our two CPU backends: no size may lose by being fused."""
    current, grad = tensors(case)
    ours, reference = rivals.ours("numba"), rivals.ours("reference")
    distance = gate(case, ours, reference, current, grad)
    found = interleave(
        {
            "numba": rivals.layer_step(ours, current, grad),
            "reference": rivals.layer_step(reference, current, grad),
        },
        seconds=1.0,
    )
    ratios = {"reference / numba": found["reference"].over(found["numba"])}
    return tell(f"size {case}", found, ratios, gradient_distance=distance)


FIRST_CALL = """
import time, torch, neurospike as ns
x = torch.randn(25, 32, 256, requires_grad=True)
start = time.perf_counter()
ns.lif(x, beta=0.95, backend="numba")[0].sum().backward()
print(time.perf_counter() - start)
"""


def start() -> Row:
    """First forward and backward in a new process, without and with code kept on disk."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [_first_call(folder) for _ in range(4)]
    cold, *warm = seconds
    print(f"first call in a new process: {cold:.2f} s, with kept code {min(warm):.2f} s\n")
    return {
        "case": "first forward and backward in a new process, seconds",
        "nothing compiled yet": cold,
        "code kept on disk": min(warm),
    }


def _first_call(cache: str) -> float:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    return number_printed([sys.executable, "-c", FIRST_CALL], environment)


def _peak_of(name: str) -> float:
    net, images, labels, optimizer = tutorial(NETWORKS[name])
    return peak_memory(training_step(net, images, labels, optimizer), optimizer.zero_grad)


def _in_new_process(*arguments: str) -> float:
    threads = ("--threads", str(torch.get_num_threads()))
    return number_printed([sys.executable, "-m", "benchmarks.cpu", *threads, *arguments])


if __name__ == "__main__":
    raise SystemExit(main())
