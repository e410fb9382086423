"""Measure what calling a layer costs the host: `python -m benchmarks.host [--out DIR]`.

A small layer takes as long as Python and torch need to call it. Each figure is the time of a call
over that of `torch.relu`, forward and backward, on the same current in the same process, and of an
`autograd.Function` that does nothing. Of the Triton backend the launches are left out, so that its
host code is measured on any machine; `benchmarks.gpu` measures it on a GPU with them.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neurospike as ns

from .stubbed import stubbed
from .timing import interleave, machine

SHAPE = (5, 2, 16)
FLOORS = {  # at most so many times `torch.relu`'s forward and backward pass
    "numba": {"inference": 0.9, "forward and backward": 3.2},
    "triton, launches left out": {"inference": 0.9, "forward and backward": 2.5},
}


class Nothing(torch.autograd.Function):
    """The least that a differentiable function in Python can be."""

    @staticmethod
    def forward(ctx: Any, current: Tensor) -> Tensor:
        """Return the current."""
        return current.view_as(current)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad


def calls(
    backend: str, device: str = "cpu", shape: Sequence[int] = SHAPE
) -> dict[str, Callable[[], object]]:
    """Return what is timed: a layer, with torch's own functions beside it."""
    current = torch.randn(shape, device=device)
    learning = current.clone().requires_grad_()
    grad = torch.randn(shape, device=device)

    def both(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def step() -> None:
            learning.grad = None
            layer(learning).backward(grad)

        return step

    def layer(current: Tensor) -> Tensor:
        return ns.lif(current, beta=0.9, backend=backend)[0]

    return {
        "torch.relu": both(torch.relu),
        "empty autograd.Function": both(Nothing.apply),
        "inference": lambda: layer(current),
        "forward": lambda: layer(learning),
        "forward and backward": both(layer),
    }


def measure(
    backend: str, seconds: float, device: str = "cpu", shape: Sequence[int] = SHAPE
) -> dict[str, Any]:
    """Return microseconds of each call, and the ratios."""
    found = interleave(calls(backend, device, shape), seconds=seconds, finest=2e-3)
    ours = ("inference", "forward", "forward and backward")
    return {
        "microseconds": {name: 1e6 * timing.median for name, timing in found.items()},
        "over torch.relu": {name: found[name].over(found["torch.relu"]) for name in ours},
        "over an empty Function": {
            name: found[name].over(found["empty autograd.Function"]) for name in ours
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a figure is above its floor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="for host.json")
    parser.add_argument("--seconds", type=float, default=5.0, help="spent on each backend")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "shape": SHAPE, "found": {}}
    results["found"]["numba"] = measure("numba", options.seconds)
    with stubbed():
        results["found"]["triton, launches left out"] = measure("triton", options.seconds)
    missed = 0
    for backend, found in results["found"].items():
        print(backend)
        for name, time in found["microseconds"].items():
            ratio, most = found["over torch.relu"].get(name), FLOORS[backend].get(name)
            text = "" if ratio is None else f"{ratio:6.2f} of torch.relu"
            if ratio is not None and most is not None:
                text += f", at most {most}" + (" MISSED" if ratio > most else "")
                missed += ratio > most
            print(f"  {name:26}{time:8.1f} us {text}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1)
        (options.out / "host.json").write_text(text + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
