"""Measure learned delays: `python -m benchmarks.delays [--out DIR] [--case TxBxN]`.

A training step of `ns.Delay` with both kernels, of the same delays as a grouped convolution of 16
taps in torch, as snnTorch's `SynapticDelay` has them, and a copy of 20 B per channel-step. Each is
timed after its output and gradients were found equal to the oracle's. Writes `DIR/delays.json`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import neurospike as ns

from .cpu import FLOOR
from .gate import check_close
from .telling import Row, store, tell
from .timing import copy_bandwidth, interleave, machine, tensors

MAX_DELAY = 15
BETWEEN = (0.05, MAX_DELAY - 0.05)  # at a whole number of steps each has a slope of its own

Run = Callable[[Tensor], Tensor]


def convolved(delay: Tensor) -> Run:
    """Return the delays as a convolution over time with a kernel for each channel."""
    lags = torch.arange(MAX_DELAY, -1, -1.0)

    def run(x: Tensor) -> Tensor:
        weights = (1.0 - (lags - delay.unsqueeze(1)).abs()).clamp(min=0.0)
        padded = nn.functional.pad(x.permute(1, 2, 0), (MAX_DELAY, 0))
        found = nn.functional.conv1d(padded, weights.unsqueeze(1), groups=len(delay))
        return found.permute(2, 0, 1)

    return run


def layer(delay: Tensor, kernel: str, backend: str = "auto") -> Run:
    """Return a layer of ours with these delays, shared."""
    ours = ns.Delay(tuple(delay.shape), MAX_DELAY, delay, kernel=kernel, sigma=2.0, backend=backend)
    return lambda x: ours(x)[0]


def step(run: Run, x: Tensor, delay: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Return a training step: output, and the gradients of input and delays."""

    def call() -> tuple[Tensor, ...]:
        late = run(x)
        return (late.detach(), *torch.autograd.grad(late, (x, delay), grad))

    return call


def measure(case: str, seconds: float) -> Row:
    """Prove and time a case."""
    x, grad = tensors(case)
    torch.manual_seed(0)
    low, high = BETWEEN
    delay = nn.Parameter(low + (high - low) * torch.rand(x.shape[2]))
    rivals = {
        "ours, linear": layer(delay, "linear"),
        "ours, gaussian": layer(delay, "gaussian"),
        "conv1d, linear": convolved(delay),
    }
    for name, run in rivals.items():
        kernel = name.partition(", ")[2]
        wide = nn.Parameter(delay.detach().double())
        oracle = layer(wide, kernel, "reference")
        # Of few samples: the oracle holds several copies.
        part, slope = x.detach()[:, :4].requires_grad_(), grad[:, :4]
        wanted = step(oracle, part.detach().double().requires_grad_(), wide, slope.double())()
        found = step(run, part, delay, slope)()
        for one, other in zip(found, wanted):
            check_close(name, one, other)
    steps = {name: step(run, x, delay, grad) for name, run in rivals.items()}
    found = interleave({**steps, FLOOR: copy_bandwidth(20 * x.numel())}, seconds=seconds)
    ours = found["ours, linear"]
    ratios = {
        "ours, linear / copy of 20 B": ours.over(found[FLOOR]),
        "ours, gaussian / copy of 20 B": found["ours, gaussian"].over(found[FLOOR]),
        "conv1d / ours, linear": found["conv1d, linear"].over(ours),
    }
    return tell(f"Delay of up to {MAX_DELAY} steps, training, {case}", found, ratios)


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delays", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--case", default="100x128x1000", help="steps x samples x channels")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=20.0, help="time spent on the case")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: Row = {"machine": machine(), "cases": [measure(options.case, options.seconds)]}
    store(results, options.out / "delays.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
