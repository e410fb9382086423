"""Ten thousand predictions in one process: `python -m benchmarks.predictions --model_path FILE`.

Writes a data set's test pictures as PNG files into a folder, lets `neurospike.predict` recognise
them all in one call, and tells the memory of the process after every tenth of them. The first tenth
is where caches fill; from there on it must not grow.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from neurospike import predict
from neurospike.data import load
from neurospike.predict import MODEL

MOST_GROWTH = 5.0  # MB after the first tenth


def resident() -> float:
    """Return the memory this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watch(io.TextIOBase):
    """Takes the lines of predictions, compares them with the labels, and looks at the memory."""

    def __init__(self, labels: torch.Tensor) -> None:
        """labels: of the pictures, in the order of their names."""
        self.labels, self.right, self.done = labels, 0, 0
        self.every = max(1, len(labels) // 10)
        self.memory: list[float] = []

    def write(self, text: str) -> int:
        """Take what `print` gives: a line, or the end of one."""
        if text.strip():
            self.right += json.loads(text)["digit"] == int(self.labels[self.done])
            self.done += 1
            if self.done % self.every == 0:
                self.memory.append(resident())
        return len(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code, 1 if the memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("--model_path", default=MODEL)
    parser.add_argument("--dataset", default="mnist", help="what it was trained on")
    parser.add_argument("--data_path", default="data", help="torchvision root that holds MNIST")
    parser.add_argument("--pictures", type=int, default=10_000)
    options = parser.parse_args(argv)
    test = load(options.dataset, options.data_path, download=False).test
    labels = test.labels[: options.pictures]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(labels)):
            Image.fromarray(test.images[number].numpy()).save(f"{folder}/{number:05}.png")
        watch = Watch(labels)
        start = time.perf_counter()
        with contextlib.redirect_stdout(watch):
            flags = ["--model_path", options.model_path, "--image_path", folder, "--json"]
            code = predict.main(flags)
        seconds = time.perf_counter() - start
    if code or watch.done != len(labels):
        print(f"exit code {code} after {watch.done} of {len(labels)} pictures")
        return 2
    growth = max(watch.memory) - watch.memory[0]
    print(f"{watch.done} pictures in {seconds:.1f} s, {watch.right / watch.done:.2%} right")
    print("MB after each tenth: " + " ".join(f"{memory:.1f}" for memory in watch.memory))
    print(f"grown by {growth:.1f} MB after the first tenth; at most {MOST_GROWTH} are wanted")
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    raise SystemExit(main())
