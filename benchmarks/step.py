"""Where the time of one training step goes: `python -m benchmarks.step [--out DIR]`.

The network is 784-1000-10, T=25, batch 128, constant input: that of `benchmarks.cpu`, before (the
tutorial of snnTorch as written) and after (fused). Written to `DIR/step.json` (default
`benchmarks/results`), from which `benchmarks.report` makes a table. `--network workload` looks into
the workload of `benchmarks.workload` instead and writes nothing.
"""

import argparse
import collections
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from . import rivals
from .networks import NETWORKS, training_step, tutorial
from .telling import store
from .timing import machine
from .workload import Workload

STEPS = 30
# What an operator of torch belongs to; the first that matches.
PARTS = {
    "products with the weights": r"aten::(mm|addmm|bmm|linear|matmul)\b",
    "fused neurons": r"neurospike::",
    "optimiser": r"Optimizer|_fused_adam|_foreach|aten::(lerp|addcdiv|addcmul|sqrt)",
    "loss": r"log_softmax|nll_loss|cross_entropy",
    "neurons and sums of gradients in torch": (
        r"aten::(add|sub|mul|gt|lt|clamp|where|rsub|div|neg|pow|reciprocal|stack|cat|zeros|sum|zero_|"
        r"fill_|copy_|clone|_to_copy|ones_like|zeros_like|empty|unbind|select|detach|atan)"
    ),
}
REST = "the rest: Python, autograd, views"


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--network", choices=[*NETWORKS, "workload"], help="this one alone")
    parser.add_argument("--neurons", type=int, default=512, help="of the workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help="to average over")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(), "networks": {}}
    print(json.dumps(results["machine"], indent=2))
    if options.network == "workload":
        tell(options.network, spent(Workload(options.neurons).step(rivals.ours("numba")), 5))
        return 0
    for name in [options.network] if options.network else NETWORKS:
        network, images, labels, optimizer = tutorial(NETWORKS[name])
        found = spent(training_step(network, images, labels, optimizer), options.steps)
        tell(name, found)
        results["networks"][name] = by_part(found)
    if options.network is None:
        store(results, options.out / "step.json")
    return 0


def spent(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Return the milliseconds of a step that each operator took itself, on the CPU."""
    for _ in range(5):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(steps):
            step()
    times: dict[str, float] = collections.Counter()
    for row in found.key_averages(group_by_input_shape=True):
        shapes = " x ".join(str(s) for s in row.input_shapes[:3] if s)
        label = f"{row.key} {shapes}" if row.key in ("aten::mm", "aten::addmm") else row.key
        times[label] += row.self_cpu_time_total / 1e3 / steps
    return times


def by_part(times: dict[str, float]) -> dict[str, float]:
    """Return the milliseconds of each of `PARTS` and of the rest."""
    found = dict.fromkeys([*PARTS, REST], 0.0)
    for label, milliseconds in times.items():
        part = next((p for p, pattern in PARTS.items() if re.search(pattern, label)), REST)
        found[part] += milliseconds
    return found


def tell(name: str, times: dict[str, float]) -> None:
    """Print the operators that took longest."""
    rest = total = sum(times.values())
    print(f"{total:8.3f} ms a step of {name}, as the profiler sees it")
    for label, milliseconds in sorted(times.items(), key=lambda item: -item[1])[:12]:
        print(f"{milliseconds:8.3f} ms {milliseconds / total:6.1%}  {label}")
        rest -= milliseconds
    print(f"{rest:8.3f} ms {rest / total:6.1%}  everything else")


if __name__ == "__main__":
    raise SystemExit(main())
