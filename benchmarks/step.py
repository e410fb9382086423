"""Where the time of one training step goes: `python -m benchmarks.step [--network snntorch]`.

The network is 784-1000-10, T=25, batch 128, constant input: that of `benchmarks.cpu`.
"""

import argparse
import collections

import torch
from torch.profiler import ProfilerActivity, profile

from . import rivals
from .cpu import NETWORKS, tutorial
from .timing import machine

STEPS = 30


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="numba")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    network, images, labels, optimizer = tutorial(NETWORKS[options.network])
    step = rivals.training_step(network, images, labels, optimizer)
    for _ in range(5):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(STEPS):
            step()
    spent: dict[str, float] = collections.Counter()
    for row in found.key_averages(group_by_input_shape=True):
        shapes = " x ".join(str(s) for s in row.input_shapes[:3] if s)
        label = f"{row.key} {shapes}" if row.key in ("aten::mm", "aten::addmm") else row.key
        spent[label] += row.self_cpu_time_total / 1e3 / STEPS
    total = sum(spent.values())
    print(machine())
    print(f"{total:8.3f} ms a step of {options.network}, as the profiler sees it")
    rest = total
    for label, milliseconds in sorted(spent.items(), key=lambda item: -item[1])[:12]:
        print(f"{milliseconds:8.3f} ms {milliseconds / total:6.1%}  {label}")
        rest -= milliseconds
    print(f"{rest:8.3f} ms {rest / total:6.1%}  everything else")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
