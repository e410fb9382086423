"""Measure event-driven layers: `python -m benchmarks.events [PART ...]`.

    sweep   a layer against nn.Linear, densities 0.1% to 100%, widths 64 to 4096 (some minutes)
    step    whole training step 784-1000-10, T=25, batch 128, of MNIST in rate and latency coding,
            against snnTorch's loop and against our own dense layers
    conv    convolutions of MNIST's spikes: torch's, and the same sums over events only
    window  surrogate gradients with a window: accuracy, share of gradients that are 0, time
    epoch   training on all of MNIST: an epoch's time, time to 97% test accuracy, peak memory
            (an hour or more; each rival and coding in a process of its own)

Without a name it does `sweep`, `step` and `conv`. Every case passes the equivalence gate before it
is timed, rivals take turns in one process, and what was found is merged into `DIR/events.json`
(default `benchmarks/results`), each part with the machine it was found on.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import neurospike as ns
from neurospike.backend import buffers

from . import coded, events_training
from .gate import check_close
from .telling import Row, tell
from .timing import interleave, machine

DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
PARTS = ("sweep", "step", "conv", "window", "epoch")


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.events",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--data_path", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=6.0, help="time spent on each case")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of the sweep")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=DENSITIES, help="of the sweep"
    )
    parser.add_argument("--epochs", type=int, default=3, help="at most, of `epoch`")
    parser.add_argument("--pictures", type=int, default=60_000, help="of `epoch` and `window`")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    if options.worker:
        print(json.dumps(events_training.run(*options.worker, options)))
        return 0
    for part in options.parts or ("sweep", "step", "conv"):
        found = {"machine": machine(), "cases": globals()[part](options)}
        _store(options.out / "events.json", part, found)
    return 0


def _store(path: Path, part: str, found: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text()) if path.exists() else {}
    stored[part] = found
    path.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{part}: written to {path}\n", flush=True)


def sweep(options: argparse.Namespace) -> list[Row]:
    """Forward and weight gradient of a square layer, by density and width."""
    rows = []
    for width in options.widths:
        for density in options.densities:
            rows.append(_layer(width, density, options.seconds / 3))
    worst = max(row["ratios"]["spike_linear / nn.Linear"] for row in rows)
    print(f"worst ratio to nn.Linear: {worst:.3f}")
    return rows


def _layer(width: int, density: float, seconds: float) -> Row:
    generator = torch.Generator().manual_seed(0)
    batch = 128 if width < 2048 else 32
    spikes = (torch.rand(25, batch, width, generator=generator) < density).float()
    grad = torch.randn(25, batch, width, generator=generator)
    dense = nn.Linear(width, width)
    events = ns.SpikeLinear(width, width)
    events.load_state_dict(dense.state_dict())
    found = []
    for layer in (events, dense):
        out = layer(spikes)
        out.backward(grad)
        found.append((out.detach(), layer.weight.grad.clone(), layer.bias.grad.clone()))
    distance = max(check_close(f"{width}", a, b) for a, b in zip(*found))
    steps = {"nn.Linear": _step(dense, spikes, grad), "spike_linear": _step(events, spikes, grad)}
    times = interleave(steps, seconds=seconds, least=5)
    ratio = times["spike_linear"].over(times["nn.Linear"])
    return tell(
        f"25x{batch} spikes, {width} to {width}, {density:.1%} active",
        times,
        {"spike_linear / nn.Linear": ratio, "nn.Linear / spike_linear": 1 / ratio},
        gradient_distance=distance,
    )


def _step(layer: nn.Module, spikes: Tensor, grad: Tensor) -> Any:
    def step() -> None:
        layer.zero_grad(set_to_none=True)
        layer(spikes).backward(grad)

    return step


def step(options: argparse.Namespace) -> list[Row]:
    """Whole training step of each rival, each coding."""
    images, labels = coded.mnist(options.data_path, train=True)
    return [_whole_step(coding, images[:128], labels[:128], options) for coding in coded.CODINGS]


def _whole_step(coding: str, images: Tensor, labels: Tensor, options: argparse.Namespace) -> Row:
    spikes = getattr(ns.encoding, coding)(images, coded.STEPS)
    gradients, steps = {}, {}
    for rival in coded.RIVALS:
        net, optimizer = coded.network(rival, coding)
        # The gate: the same spikes to each, in double precision; in single precision a current
        # summed in another order makes some neuron of a million fire a step sooner or later.
        exact = copy.deepcopy(net).double()
        given = spikes.to(torch.uint8) if rival == "ours, events" else spikes.double()
        torch.set_default_dtype(torch.float64)  # of the states that snnTorch makes
        exact.loss(given, labels).backward()
        torch.set_default_dtype(torch.float32)
        gradients[rival] = torch.cat([p.grad.flatten() for p in exact.parameters()])
        steps[rival] = coded.training_step(net, optimizer, images, labels)
    oracle = gradients[coded.RIVALS[0]]
    distance = max(check_close(coding, found, oracle, 1e-7) for found in gradients.values())
    # Several steps in a row, as in training: the first after a rival finds none of its data cached.
    times = interleave(steps, seconds=3 * options.seconds, finest=0.1)
    ours = times["ours, events"]
    return tell(
        f"training step 784-1000-10, {coding}-coded MNIST, T=25, batch 128",
        times,
        {
            "snntorch / ours, events": times["snntorch"].over(ours),
            "ours, dense / ours, events": times["ours, dense"].over(ours),
        },
        active_inputs=float(spikes.mean()),
        gradient_distance=distance,
    )


def conv(options: argparse.Namespace) -> list[Row]:
    """Convolutions on spikes: torch's against the same as sums over events.

    Event-driven sums need each patch as a row; they are timed with laying the patches out, and, as
    the most that any layout could save, on patches that already lie there.
    """
    images, _ = coded.mnist(options.data_path, train=True)
    rows = []
    for coding in coded.CODINGS:
        spikes = getattr(ns.encoding, coding)(images[:32], coded.STEPS).flatten(0, 1)
        pictures = spikes.view(-1, 1, 28, 28)
        for channels, outputs, stride in ((1, 16, 1), (1, 32, 2), (16, 32, 1), (16, 32, 2)):
            given = pictures.expand(-1, channels, -1, -1).contiguous()
            rows.append(_convolution(coding, given, outputs, stride, options.seconds / 2))
    return rows


def _convolution(coding: str, spikes: Tensor, outputs: int, stride: int, seconds: float) -> Row:
    layer = nn.Conv2d(spikes.shape[1], outputs, 5, stride, 2)
    patches = functional.unfold(spikes, 5, padding=2, stride=stride).transpose(1, 2)
    compact = patches.to(torch.uint8).contiguous()
    with torch.no_grad():
        matrix = layer.weight.flatten(1)
        out = ns.spike_linear(compact, matrix, layer.bias).transpose(1, 2)
        wanted = layer(spikes)
        distance = check_close("conv", out.reshape(wanted.shape), wanted)

        def dense() -> Tensor:
            with torch.no_grad():
                return layer(spikes)

        def events() -> Tensor:
            with torch.no_grad():
                return ns.spike_linear(compact, matrix, layer.bias)

        def laid_out() -> Tensor:
            with torch.no_grad():
                rows = functional.unfold(spikes, 5, padding=2, stride=stride).transpose(1, 2)
                return ns.spike_linear(rows, matrix, layer.bias)

        rivals = {"torch": dense, "patches and events": laid_out, "sums over events": events}
        times = interleave(rivals, seconds=seconds, least=5)
    return tell(
        f"conv {spikes.shape[1]} to {outputs}, 5x5, stride {stride}, {coding}-coded MNIST, forward",
        times,
        {
            f"torch / {name}": times["torch"].over(times[name])
            for name in ("patches and events", "sums over events")
        },
        active_inputs=float(spikes.mean()),
        output_distance=distance,
    )


def window(options: argparse.Namespace) -> list[Row]:
    """An epoch with surrogate gradients everywhere, and within windows of the threshold."""
    return [events_training.windowed(width, options) for width in (None, 2.0, 1.0, 0.5, 0.1)]


def epoch(options: argparse.Namespace) -> list[Row]:
    """Train each rival, each coding, in a process of its own."""
    rows = []
    for coding in coded.CODINGS:
        for rival in coded.RIVALS:
            row = _worker(rival, coding, options)
            print(f"{coding}, {rival}: {row}", flush=True)
            rows.append(row)
    return rows


def _worker(rival: str, coding: str, options: argparse.Namespace) -> Row:
    command = [sys.executable, "-m", "benchmarks.events", "--worker", rival, coding]
    command += ["--data_path", str(options.data_path), "--threads", str(options.threads)]
    command += ["--epochs", str(options.epochs), "--pictures", str(options.pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    buffers.keep_freed_memory()
    raise SystemExit(main())
