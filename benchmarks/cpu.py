"""Measure the CPU backend: `python -m benchmarks.cpu [--out DIR] [--compiled]`.

Prints each table and writes all figures to `DIR/cpu.json` (default `benchmarks/results`). Every
case passes the equivalence gate before it is timed.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurospike import buffers

from . import rivals
from .gate import check_close, gate
from .timing import copy_bandwidth, interleave, machine

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
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=6.0, help="time spent on each case")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="also against SpikingJelly under torch.compile, whose first call takes minutes",
    )
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="have the C library keep what every rival frees, as our own commands do",
    )
    parser.add_argument("--memory", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.memory:
        print(peak_memory(options.memory))
        return 0
    results: Row = {"machine": machine()}
    if options.keep_freed_memory:
        buffers.keep_freed_memory()
        results["machine"]["allocator"] += ", keeping what is freed"
    print(json.dumps(results["machine"], indent=2))
    results["layer"] = [layer(case, options.seconds) for case in LAYERS]
    if options.compiled and rivals.installed("spikingjelly"):
        results["compiled"] = [spikingjelly_compiled("100x128x1000", options.seconds)]
    results["network"] = [network(options.seconds)]
    if not options.keep_freed_memory:
        results["sizes"] = [size(case) for case in SIZES]
        results["start"] = [start()]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("cpu-kept.json" if options.keep_freed_memory else "cpu.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def tensors(case: str) -> tuple[Tensor, Tensor]:
    """Return a current `[T, B, N]` that makes some neurons fire, and its spikes' gradient."""
    steps, batch, neurons = map(int, case.split("x"))
    generator = torch.Generator().manual_seed(0)
    current = 0.5 * torch.randn(steps, batch, neurons, generator=generator)
    return current.requires_grad_(), torch.randn(current.shape, generator=generator)


def layer(case: str, seconds: float) -> Row:
    """Training step and inference of one layer against snnTorch's loop and the memory floor."""
    current, grad = tensors(case)
    ours, loop = rivals.ours("numba"), rivals.snntorch_loop()
    distance = gate(case, ours, loop, current, grad)
    number = current.numel()
    found = interleave(
        {
            "numba": rivals.layer_step(ours, current, grad),
            "snntorch": rivals.layer_step(loop, current, grad),
            "numba inference": rivals.inference(ours, current),
            "snntorch inference": rivals.inference(loop, current),
            "copy of 20 B a neuron-step": copy_bandwidth(20 * number),
            "copy of 8 B a neuron-step": copy_bandwidth(8 * number),
        },
        seconds=seconds,
    )
    ratios = {
        "snntorch / numba, training": found["snntorch"].over(found["numba"]),
        "snntorch / numba, inference": found["snntorch inference"].over(found["numba inference"]),
        "numba / floor, training": found["numba"].over(found["copy of 20 B a neuron-step"]),
        "numba / floor, inference": found["numba inference"].over(
            found["copy of 8 B a neuron-step"]
        ),
    }
    return _tell(f"layer {case}", found, ratios, gradient_distance=distance)


def spikingjelly_compiled(case: str, seconds: float) -> Row:
    """Training step against SpikingJelly's `lif_multi_step` under torch.compile, both immediate."""
    current, grad = tensors(case)
    ours = rivals.ours("numba", reset_delay=False)
    theirs = rivals.compiled(rivals.spikingjelly_multi_step())
    distance = gate(case, ours, rivals.spikingjelly_multi_step(), current, grad)
    found = interleave(
        {
            "numba": rivals.layer_step(ours, current, grad),
            "spikingjelly compiled": rivals.layer_step(theirs, current, grad),
        },
        seconds=seconds,
    )
    ratio = found["spikingjelly compiled"].over(found["numba"])
    return _tell(
        f"layer {case}, immediate reset",
        found,
        {"spikingjelly compiled / numba": ratio},
        gradient_distance=distance,
    )


def tutorial(fused: bool) -> tuple[Any, Tensor, Tensor, torch.optim.Optimizer]:
    """Return the network, a batch of 128 with labels, and the optimiser of a rival."""
    torch.manual_seed(0)
    net = rivals.FusedTutorial5() if fused else rivals.Tutorial5()
    images, labels = torch.rand(128, 784), torch.randint(0, 10, (128,))
    # The tutorial takes torch's default implementation; the fused one belongs to what we offer.
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999), fused=fused or None)
    return net, images, labels, optimizer


NETWORKS = {"snntorch": False, "numba": True}


def network(seconds: float) -> Row:
    """Whole training step 784-1000-10, T=25, batch 128, against snnTorch's tutorial 5."""
    steps: dict[str, Callable[[], Tensor]] = {}
    gradients = {}
    for name, fused in NETWORKS.items():
        net, images, labels, optimizer = tutorial(fused)
        net.loss(images, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
        steps[name] = rivals.training_step(net, images, labels, optimizer)
    distance = check_close("784-1000-10", gradients["numba"], gradients["snntorch"])
    found = interleave(steps, seconds=2 * seconds)
    peaks = {
        name: statistics.median(_in_new_process("--memory", name) for _ in range(3))
        for name in NETWORKS
    }
    ratios = {
        "snntorch / numba": found["snntorch"].over(found["numba"]),
        "peak memory of a step, snntorch / numba": peaks["snntorch"] / peaks["numba"],
    }
    return _tell("network 784-1000-10", found, ratios, peak_mb=peaks, gradient_distance=distance)


def peak_memory(name: str) -> float:
    """Return by how many MB training steps raise the process's memory above what it had at rest.

    Linux only. At rest means: after a first step, for what the libraries keep for good, once all
    memory that is free went back to the system; then the peak that the kernel keeps is reset.
    """
    net, images, labels, optimizer = tutorial(NETWORKS[name])
    step = rivals.training_step(net, images, labels, optimizer)
    step()
    optimizer.zero_grad()
    before = at_rest()
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def at_rest() -> int:
    """Give free memory back to the system and reset the peak; return the kB that are held."""
    buffers.release()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


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
    return _tell(f"size {case}", found, ratios, gradient_distance=distance)


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
    return _output([sys.executable, "-c", FIRST_CALL], environment)


def _in_new_process(*arguments: str) -> float:
    return _output([sys.executable, "-m", "benchmarks.cpu", *arguments])


def _output(command: list[str], environment: dict[str, str] | None = None) -> float:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _tell(title: str, found: dict[str, Any], ratios: dict[str, float], **more: Any) -> Row:
    print(title)
    for name, timing in found.items():
        low, high = 1e3 * timing.quantile(0.2), 1e3 * timing.quantile(0.8)
        print(f"  {name:32} {1e3 * timing.median:9.3f} ms  ({low:.3f} to {high:.3f})")
    for name, ratio in ratios.items():
        print(f"  {name:40} {ratio:7.2f}")
    for name, value in more.items():
        print(f"  {name}: {value}")
    print(flush=True)
    times = {name: timing.record() for name, timing in found.items()}
    return {"case": title, "times": times, "ratios": ratios, **more}


if __name__ == "__main__":
    raise SystemExit(main())
