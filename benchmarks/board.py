"""What TensorBoard costs a training run: `python -m benchmarks.board`.

Trains the default network on MNIST with and without, in turns in one process, and compares the
time from the first step until everything is on the disk. Without `--pictures` the result is written
to `benchmarks/results/board.json`.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import neurospike as ns
from neurospike.backend import buffers
from neurospike.data import Batches, Split, load
from neurospike.training import Run, SNNTrainer
from neurospike.training.board import Board

from .timing import machine

RESULTS = Path(__file__).parent / "results" / "board.json"


def seconds(split: Split, held_out: Split, epochs: int, *, with_board: bool) -> float:
    """Train anew; the time it took."""
    torch.manual_seed(0)
    model = ns.SNNModel(784, 256, 10, num_steps=25)
    trainer = SNNTrainer(
        model, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True), nn.CrossEntropyLoss()
    )
    train = Batches(split, 128, shuffle=True, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = Run(Path(folder) / "run", config={})
        picture = held_out.images[:1, None].float() / 255
        start = time.perf_counter()
        board = Board(run.folder, model, picture) if with_board else None
        add = board.add if board is not None else None
        trainer.fit(train, Batches(held_out, 128), epochs, run, on_record=add)
        if board is not None:
            board.close()
        return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.board", description=__doc__)
    parser.add_argument("--data_path", default="data", help="torchvision root that holds MNIST")
    parser.add_argument("--pictures", type=int, help="train on so many; default: all")
    parser.add_argument("--epochs", type=int, default=3, help="of each run (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    buffers.keep_freed_memory()
    data = load("mnist", options.data_path, download=False)
    rest, held_out = data.train.split(0.05, 0)
    split = Split(rest.images[: options.pictures], rest.labels[: options.pictures])
    for with_board in (False, True):  # compile and import
        seconds(Split(split.images[:640], split.labels[:640]), held_out, 1, with_board=with_board)
    found: dict[bool, list[float]] = {False: [], True: []}
    for number in range(options.rounds):
        for with_board in (False, True) if number % 2 else (True, False):
            found[with_board].append(
                seconds(split, held_out, options.epochs, with_board=with_board)
            )
        print(f"{found[False][-1]:.2f} s without, {found[True][-1]:.2f} s with", flush=True)
    cost = statistics.median(b / a for a, b in zip(found[False], found[True])) - 1
    least = min(found[True]) / min(found[False]) - 1
    print(f"TensorBoard costs {cost:+.1%} (median of the rounds), {least:+.1%} (of the shortest)")
    if options.pictures is None:
        result = {
            "cost_median": cost,
            "cost_of_shortest": least,
            "seconds_without": found[False],
            "seconds_with": found[True],
            "epochs": options.epochs,
            **machine(),
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
