"""Do twenty residual blocks train without vanishing spikes? `python -m benchmarks.depth`.

Trains the same deep network three times on the digits that come with scikit-learn: with the `add`
and the `membrane` shortcut, and, as a contrast, with no shortcut at all. Writes the spike rate of
every block and the norm of its weights' gradient, before and after training, into
`benchmarks/results/depth.json`, and draws them. `--draw` only draws what is stored.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike.data import Batches, load

from .timing import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
SHORTCUTS = ("add", "membrane", "none")
BLOCKS, CHANNELS, SIDE, NUM_STEPS = 20, 8, 7, 2
LOOKS = {"add": "-o", "membrane": "--s", "none": ":^"}


class Plain(nn.Module):
    """A block of spikes without its shortcut: what goes in comes out through its layers only."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the block fires, twice: as its output, and as its activity."""
        _, fired = self.block(incoming)
        return fired, fired


def network(shortcut: str, blocks: int = BLOCKS) -> ns.ResidualSNN:
    """Return a network of `blocks` blocks in one stage; `"none"` has no shortcuts."""
    model = ns.ResidualSNN(
        SIDE * SIDE,
        [CHANNELS],
        [blocks],
        "add" if shortcut == "none" else shortcut,
        num_steps=NUM_STEPS,
        beta=0.5,
        reset_delay=False,
        detach_reset=True,
    )
    if shortcut == "none":
        model.blocks = nn.ModuleList(Plain(block) for block in model.blocks)
    return model


def observe(model: ns.ResidualSNN, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return the spike rate of each block, and the norm of its weights' gradient, over a batch."""
    model.zero_grad()
    scores, activity = model(images, return_activity=True)
    nn.functional.cross_entropy(scores, labels).backward()
    norms = [
        torch.stack([p.grad.norm() for p in block.parameters() if p.grad is not None]).norm()
        for block in model.blocks
    ]
    model.zero_grad()
    rates = [activity[f"block{k}"].mean() for k in range(1, len(norms) + 1)]
    return {
        "spike_rates": [float(f"{rate:.4g}") for rate in torch.stack(rates).tolist()],
        "gradient_norms": [float(f"{norm:.4g}") for norm in torch.stack(norms).tolist()],
    }


def small(images: Tensor) -> Tensor:
    """Halve pictures `[B, 1, 28, 28]`."""
    return nn.functional.avg_pool2d(images, 28 // SIDE)


def train(shortcut: str, epochs: int, blocks: int = BLOCKS, pictures: int | None = None) -> dict:
    """Train one network; its loss by epoch, test accuracy, and what its blocks did."""
    torch.manual_seed(0)
    data = load("digits", "data")
    model = network(shortcut, blocks)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    shuffled = torch.Generator().manual_seed(0)
    probe = next((small(x), y) for x, y in Batches(data.train, 256))
    before, start, losses = observe(model, *probe), time.perf_counter(), []
    for _ in range(epochs):
        seen = []
        batches = list(Batches(data.train, 64, shuffle=True, generator=shuffled))
        for images, labels in batches[: None if pictures is None else pictures // 64]:
            loss = nn.functional.cross_entropy(model(small(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(round(sum(seen) / len(seen), 4))
    seconds = time.perf_counter() - start
    after = observe(model, *probe)
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(small(x)).argmax(1) == y).sum()) for x, y in Batches(data.test, 256))
    return {
        "loss_by_epoch": losses,
        "test_accuracy": round(hits / len(data.test), 4),
        "seconds": round(seconds, 1),
        "before_training": before,
        "after_training": after,
    }


def stored(folder: Path = RESULTS) -> dict[str, Any]:
    """Return what was measured last."""
    return json.loads((folder / "depth.json").read_text(encoding="utf-8"))


def draw(found: dict[str, Any]) -> "Figure":
    """Draw rates and gradient norms by block, before and after training."""
    from matplotlib.figure import Figure

    from neurospike.visualization.canvas import BLUE, GREEN, RED, legend, tidy

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, (key, name) in enumerate(
        (("spike_rates", "spikes a neuron and step"), ("gradient_norms", "gradient norm"))
    ):
        for column, when in enumerate(("before_training", "after_training")):
            axes = panels[row][column]
            for color, (shortcut, one) in zip((BLUE, RED, GREEN), found["networks"].items()):
                values = one[when][key]
                label = f"{shortcut}: {one['test_accuracy']:.1%}"
                axes.plot(
                    range(1, len(values) + 1),
                    values,
                    LOOKS[shortcut],
                    color=color,
                    markersize=4,
                    label=label,
                )
            tidy(axes, when.replace("_", " ") if row == 0 else "", "block" if row else "", name)
            axes.set_xticks([1, 5, 10, 15, 20])
            axes.set_yscale("log" if row else "linear")
            axes.grid(True, color="#e5e5e5")
            if row == 0:
                axes.set_ylim(0, 0.5)
    legend(panels[0][1], title="shortcut: test accuracy", title_fontsize=8)
    return figure


def line(shortcut: str, found: dict[str, Any]) -> str:
    """Return what came of one network, in a line."""
    after, losses = found["after_training"], found["loss_by_epoch"]
    rates, norms = after["spike_rates"], after["gradient_norms"]
    return (
        f"{shortcut:8} test accuracy {found['test_accuracy']:.1%}, loss {losses[0]:.2f} to "
        f"{losses[-1]:.2f}, spike rates {min(rates):.3f} to {max(rates):.3f}, gradient norms "
        f"{min(norms):.2g} to {max(norms):.2g}, {found['seconds']:.0f} s"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("--epochs", type=int, default=12, help="passes over 1,437 digits (12)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of depth.json and .png")
    parser.add_argument("--draw", action="store_true", help="only draw what is stored")
    flags = parser.parse_args(argv)
    path = flags.out / "depth.json"
    if not flags.draw:
        torch.set_num_threads(1)  # the layers are too small to share out
        found = {}
        for shortcut in SHORTCUTS:
            found[shortcut] = train(shortcut, flags.epochs)
            print(line(shortcut, found[shortcut]), flush=True)
        settings = {
            "blocks": BLOCKS,
            "channels": CHANNELS,
            "side": SIDE,
            "num_steps": NUM_STEPS,
            "epochs": flags.epochs,
            "seed": 0,
        }
        whole = {"settings": settings, "machine": machine(), "networks": found}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    draw(stored(flags.out)).savefig(path.with_suffix(".png"), metadata={"Software": None})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
