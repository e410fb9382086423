"""One epoch of MNIST, ours and the same network stepped by snnTorch: `python -m benchmarks.epoch`.

784-256-10, 25 steps of a constant current, the default configuration's loss, Adam, batches of 128;
the same data, the same trainer and the same first weights, in turns in one process. Before anything
is timed, both have to give the same loss and the same gradients for the first batch. snnTorch runs
twice: as its tutorials step it, every layer at every step, and helped, with the constant input's
product taken once.

`--pictures N` is for a quick look. Without it the result is written to
`benchmarks/results/epoch.json`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike.backend import buffers
from neurospike.data import Batches, Split, load
from neurospike.training import SNNTrainer

from .timing import machine

RESULTS = Path(__file__).parent / "results" / "epoch.json"
STEPS, BETA, BATCH, HIDDEN = 25, 0.95, 128, 256


class Stepped(nn.Module):
    """The default network, stepped by snnTorch; `once` takes the constant input's product once."""

    def __init__(self, once: bool) -> None:
        """Make the layers."""
        import snntorch

        super().__init__()
        self.once = once
        self.linears = nn.ModuleList([nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 10)])
        self.hidden = snntorch.Leaky(beta=BETA)
        self.output = snntorch.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, images: Tensor) -> Tensor:
        """Return the output's membrane, averaged over time `[B, 10]`."""
        flat = images.flatten(1)
        mem1, mem2 = self.hidden.init_leaky(), self.output.init_leaky()
        current = self.linears[0](flat) if self.once else None
        total = torch.zeros(len(flat), 10)
        for _ in range(STEPS):
            spikes, mem1 = self.hidden(self.linears[0](flat) if current is None else current, mem1)
            _, mem2 = self.output(self.linears[1](spikes), mem2)
            total = total + mem2
        return total / STEPS


def networks() -> dict[str, nn.Module]:
    """The rivals, with the same first weights."""
    torch.manual_seed(0)
    ours = ns.SNNModel(784, HIDDEN, 10, num_steps=STEPS, beta=BETA)
    found: dict[str, nn.Module] = {"neurospike": ours}
    for name, once in (("snntorch", False), ("snntorch, input product once", True)):
        rival = Stepped(once)
        rival.linears.load_state_dict(ours.linears.state_dict())
        found[name] = rival
    return found


def check_equal(rivals: dict[str, nn.Module], images: Tensor, labels: Tensor) -> float:
    """Return the largest relative difference of losses and gradients; SystemExit above 1e-4.

    Both sum 25 membranes in another order, so they are equal but for rounding.
    """
    results = {}
    for name, network in rivals.items():
        loss = nn.functional.cross_entropy(network(images), labels)
        wanted = [linear.weight for linear in network.linears]
        results[name] = [loss.detach(), *torch.autograd.grad(loss, wanted)]
    ours = results["neurospike"]
    worst = max(
        float((one - other).norm() / one.norm())
        for name in rivals
        for one, other in zip(ours, results[name])
    )
    if worst > 1e-4:
        raise SystemExit(f"the networks differ by {worst:.1e}, wanted 1e-4: nothing was timed")
    return worst


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__)
    parser.add_argument("--data_path", default="data", help="torchvision root that holds MNIST")
    parser.add_argument("--pictures", type=int, help="train on so many; default: all 60,000")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each (default: 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="results file; default: only of a whole epoch")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    buffers.keep_freed_memory()
    data = load("mnist", options.data_path, download=False).train
    split = Split(data.images[: options.pictures], data.labels[: options.pictures])
    rivals = networks()
    difference = check_equal(rivals, *next(iter(Batches(split, BATCH))))
    trainers = {
        name: SNNTrainer(
            network,
            torch.optim.Adam(network.parameters(), lr=1e-3, fused=True),
            nn.CrossEntropyLoss(),
        )
        for name, network in rivals.items()
    }
    speeds: dict[str, list[float]] = {name: [] for name in rivals}
    few = Split(data.images[: 5 * BATCH], data.labels[: 5 * BATCH])
    for trainer in trainers.values():  # compile, and touch the memory
        trainer.train_epoch(Batches(few, BATCH))
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            shuffled = Batches(
                split, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0)
            )
            metrics = trainer.train_epoch(shuffled)
            speeds[name].append(metrics.samples_per_second)
            print(
                f"{name:30} {metrics.seconds:7.2f} s {metrics.samples_per_second:9,.0f} samples/s, "
                f"loss {metrics.loss:.4f}",
                flush=True,
            )
    result: dict[str, Any] = {
        "pictures": len(split.labels),
        "largest_difference": difference,
        "samples_per_second": {name: statistics.median(found) for name, found in speeds.items()},
        "rounds": options.rounds,
        **machine(),
    }
    ours = speeds["neurospike"]
    result["ratio"] = {
        name: statistics.median(a / b for a, b in zip(ours, found))
        for name, found in speeds.items()
        if name != "neurospike"
    }
    for name, ratio in result["ratio"].items():
        print(f"{ratio:.1f} times as fast as {name}")
    out = options.out or (RESULTS if options.pictures is None else None)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
