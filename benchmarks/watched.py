"""Does `python -m neurospike.live --watch` slow the training that it watches?

    python -m benchmarks.watched

Trains on the bundled digits while a headless Chromium has the page open. In every other round the
page's server is stopped (SIGSTOP), so that both kinds of rounds see the same machine. A round is
40 epochs with eight checkpoints and records. Prints medians, least times and means of both, their
ratios, and the processor time that the server took. Needs the extra `dev` and a Chromium.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from neurospike.config import check_config
from neurospike.data import Batches, load
from neurospike.training import Run, SNNTrainer
from neurospike.training.loading import build_model

ROUNDS = 20
RECORDS = 8  # a round
EPOCHS = 5  # a record


def main(argv: list[str] | None = None) -> None:
    """Measure, and print."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.watched",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder) / "run")
        command = [sys.executable, "-m", "neurospike.live", "--port", "0", "--no_browser"]
        command += ["--watch", str(training.run.folder)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        address = server.stdout.readline().split()[1]
        with sync_playwright() as playwright:
            options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
            browser = playwright.chromium.launch(**options)
            page = browser.new_page()
            page.goto(address)
            training.round()  # compiles; and the page has its first network
            page.get_by_text("done, accuracy").wait_for()
            page.wait_for_timeout(5000)
            before = processor_time(server.pid)
            times = {True: [], False: []}
            for k in range(ROUNDS):
                watched = k % 2 == 0
                server.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
                times[watched].append(training.round())
            server.send_signal(signal.SIGCONT)
            used = processor_time(server.pid) - before
            browser.close()
        server.send_signal(signal.SIGINT)
        server.wait()
    for name, of_all in (
        ("median", statistics.median),
        ("least", min),
        ("mean", statistics.mean),
    ):
        seen, alone = (of_all(times[watched]) for watched in (True, False))
        print(f"{name}: watched {seen:.3f} s, alone {alone:.3f} s, ratio {seen / alone:.3f}")
    share = used / sum(times[True])
    print(f"the server took {used:.2f} s of processor time, {share:.1%} of the time watched")


class Training:
    """A run on the bundled digits."""

    def __init__(self, folder: Path) -> None:
        config = check_config({"dataset": "digits"}, "the benchmark")
        torch.manual_seed(0)
        model = build_model(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.trainer = SNNTrainer(model, optimizer, torch.nn.CrossEntropyLoss())
        self.batches = Batches(load("digits", "").train, 32, shuffle=True)
        settings = config.model_dump(mode="json")
        self.run = Run(folder, config=settings, record={"dataset": "digits"})

    def round(self) -> float:
        """Train, save and record; the seconds it took."""
        start = time.perf_counter()
        for _ in range(RECORDS):
            self._record()
        return time.perf_counter() - start

    def _record(self) -> None:
        for _ in range(EPOCHS):
            trained = self.trainer.train_epoch(self.batches)
        self.run.save_epoch(self.trainer.state_dict(self.batches), is_best=True)
        self.run.log(
            "epoch",
            epoch=self.trainer.epoch,
            step=self.trainer.step,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
        )


def processor_time(process: int) -> float:
    """Seconds of processor time that a process has taken (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
