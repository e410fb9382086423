"""The live page's command as its own process, and networks for it, for its tests."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from mnist import mnist_root

from neurospike.config import check_config
from neurospike.data import Batches, load
from neurospike.training import SNNTrainer
from neurospike.training.checkpoint import save_checkpoint
from neurospike.training.loading import build_model

ROOT = Path(__file__).parents[1]
HASTY = """
from neurospike.live import watching
from neurospike.live.__main__ import main

watching.PAUSE = 0.0
raise SystemExit(main())
"""


def small_network(folder: Path) -> Path:
    """Train a network for seconds, on MNIST where it is; its checkpoint's path."""
    root = mnist_root()
    data = load("digits", "") if root is None else load("mnist", root, download=False)
    config = check_config(
        {
            "dataset": data.name,
            "data_path": str(root or folder),
            "model": {"hidden_size": [160, 96], "num_steps": 10},
        },
        "the test",
    )
    torch.manual_seed(0)
    model = build_model(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trainer = SNNTrainer(model, optimizer, torch.nn.CrossEntropyLoss())
    part = data.train.split(0.75, 0)[0] if len(data.train) > 20_000 else data.train
    batches = Batches(part, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(3 if root else 15):
        trainer.train_epoch(batches)
    path = folder / "model.pth"
    state = {"model": model.state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint({**state, "record": {"dataset": data.name}}, path)
    return path


@contextlib.contextmanager
def serving(*flags: object, hasty: bool = False) -> Iterator[str]:
    """Run `python -m neurospike.live` on a free port; its address. Stopped by Ctrl-C.

    hasty: without the pause that spares the training after it has shown something new.
    """
    command = [sys.executable, *(("-c", HASTY) if hasty else ("-m", "neurospike.live"))]
    command += ["--port", "0", "--no_browser"]
    process = subprocess.Popen(
        [*command, *map(str, flags)],
        cwd=ROOT,
        # NiceGUI looks for pytest's variable, and behaves otherwise then.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        first = process.stdout.readline()
        assert first.startswith("open http://127.0.0.1:"), first + process.stdout.read()
        yield first.split()[1]
        assert process.poll() is None, process.stdout.read()
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)  # machines are shared
    assert process.returncode == 130, said
    assert said.strip() == "interrupted", said
