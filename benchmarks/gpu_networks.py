"""Whole networks on a GPU: a training step, a training run, and a network under torch.compile."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike.config.schema import Config

from . import rivals
from .gate import check_close
from .gpu_session import Row, Session
from .networks import FusedTutorial5, Tutorial5, training_step
from .timing import interleave, synchronize

ROOT = Path(__file__).parents[1]
SUMS = (
    1e-2  # of gradients: products summed in another order let a few output neurons fire otherwise
)
MODES = {"compiled": {}, "reduce-overhead": {"mode": "reduce-overhead"}}  # options of torch.compile


def network(session: Session) -> Row:
    """Whole training step 784-1000-10, T=25, batch 128, beside snnTorch's tutorial 5 as written."""
    steps: dict[str, Callable[[], object]] = {}
    gradients = {}
    for name in ("snntorch", "ours"):
        net, images, labels, optimizer = _tutorial(session, name)
        net.loss(images, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
        steps[name] = training_step(net, images, labels, optimizer)
    # The product with the second matrix is one for all steps, or one per step.
    label = network_name(session)
    distance = check_close(label, gradients["ours"], gradients["snntorch"], SUMS)
    steps["ours, CUDA graph"] = session.device.record(training_step(*_tutorial(session, "ours")))
    peaks = {name: session.device.peak_mb(step) for name, step in steps.items()}
    found = interleave(steps, seconds=2 * session.seconds, finest=5e-3)
    ratios = {
        "snntorch / ours": found["snntorch"].over(found["ours, CUDA graph"]),
        "snntorch / ours without a graph": found["snntorch"].over(found["ours"]),
    }
    return session.tell(label, found, ratios, peak_mb=peaks, gradient_distance=distance)


def network_name(session: Session) -> str:
    """Return what the network is called: its sizes."""
    return "-".join(map(str, session.network))


def _tutorial(session: Session, name: str) -> tuple[Any, Tensor, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    ours = name == "ours"
    sizes = (*session.network, session.steps)
    net: Any = FusedTutorial5(*sizes, backend=session.backend) if ours else Tutorial5(*sizes)
    inputs, _, classes = session.network
    images = torch.rand(session.batch, inputs)
    labels = torch.randint(0, classes, (session.batch,))
    net, images, labels = (t.to(session.device.type) for t in (net, images, labels))
    optimizer = torch.optim.Adam(
        net.parameters(),
        lr=5e-4,
        betas=(0.9, 0.999),
        fused=ours or None,
        capturable=ours and session.device.type == "cuda",
    )
    return net, images, labels, optimizer


def training_runs(session: Session, data_path: Path | None) -> None:
    """Train with the command that people type, and where there is the choice, without a graph."""
    training_run(session, data_path)
    if has_key("cuda_graph"):
        training_run(session, data_path, ("--cuda_graph", "off"))


def has_key(key: str) -> bool:
    """Whether a section of the configuration has a key."""
    sections = (field.annotation for field in Config.model_fields.values())
    return any(key in getattr(section, "model_fields", ()) for section in sections)


def training_run(session: Session, data_path: Path | None, flags: tuple[str, ...] = ()) -> Row:
    """Train the recogniser for a few epochs with the command that people type."""
    name, epochs = ("digits", session.epochs) if data_path is None else ("mnist", 3)
    command = [sys.executable, "-m", "neurospike.train", "--dataset", name]
    if data_path is not None:
        command += ["--data_path", str(data_path.resolve())]
    command += ["--epochs", str(epochs), "--backend", session.backend]
    command += ["--device", session.device.type, "--run_dir", "run", *flags]
    start = time.perf_counter()
    before = os.environ.get("PYTHONPATH")  # where torch itself may be
    path = os.pathsep.join([str(ROOT), *([before] if before else [])])
    options: dict[str, Any] = {"capture_output": True, "text": True}
    options |= {"env": {**os.environ, "PYTHONPATH": path}, "timeout": max(120.0, session.left())}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, **options)
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            said = done.stderr.strip()[-500:]
            raise RuntimeError(f"training ended with {done.returncode}: {said}")
        lines = (Path(folder) / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    each = [record["seconds"] for record in records if record["kind"] == "epoch"]
    last, case = done.stdout.splitlines()[-1], " ".join(["training on", name, *flags])
    told = ", ".join(f"{one:.3f}" for one in each)
    session.say(f"{case}: {last}, {seconds:.1f} s in all, epochs of {told} s")
    row = {"case": case, "command": command[1:], "accuracy": last, "seconds": seconds}
    row |= {"epoch_seconds": each, "ratios": {}, "figures": {"seconds per epoch": min(each)}}
    session.add("training run", row)
    return row


def compiled_network(session: Session) -> Row:
    """Forward and backward of an `ns.Sequential` of two layers, as it is and under torch.compile.

    What torch warns of while it compiles and runs is kept.
    """
    torch.manual_seed(0)
    inputs, hidden, outputs = session.network
    device, backend = session.device.type, session.backend
    net = ns.Sequential(
        nn.Linear(inputs, hidden),
        ns.LIF(rivals.BETA, backend=backend),
        nn.Linear(hidden, outputs),
        ns.LIF(rivals.BETA, backend=backend),
    ).to(device)
    current = torch.rand(session.steps, session.batch, inputs, device=device)
    grad = torch.randn(session.steps, session.batch, outputs, device=device)
    steps = {"ours": _both(net, net, current, grad)}
    wanted = _gradients(net, steps["ours"])
    label, seconds, said, distances = f"two layers {network_name(session)}", {}, {}, {}
    for name, options in MODES.items():
        step = _both(net, torch.compile(net, **options), current, grad)
        begun = time.perf_counter()
        try:
            with warned() as said[name]:
                found = _gradients(net, step)
                seconds[name] = time.perf_counter() - begun
                for _ in range(3):  # a graph is recorded in the second call
                    step()
                synchronize()
            distances[name] = check_close(f"{label}, {name}", found, wanted, SUMS)
        except Exception:  # noqa: BLE001
            session.fail(f"{label}, {name}", traceback.format_exc())
            continue
        steps[name] = step
    timed = interleave(steps, seconds=session.seconds, finest=5e-3)
    ratios = {f"ours / {name}": timed["ours"].over(timed[name]) for name in steps if name != "ours"}
    more = {"compile_seconds": seconds, "warnings": said, "gradient_distance": distances}
    return session.tell(label, timed, ratios, **more)


def _both(
    net: nn.Module, forward: Callable[[Tensor], Any], current: Tensor, grad: Tensor
) -> Callable[[], object]:
    """Return forward and backward; the weights' gradients of the call before are let go first."""
    is_compiled = forward is not net

    def step() -> None:
        net.zero_grad()
        if is_compiled:
            torch.compiler.cudagraph_mark_step_begin()
        forward(current)[0].backward(grad)

    return step


def _gradients(net: nn.Module, step: Callable[[], object]) -> Tensor:
    step()
    synchronize()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Yield the list that holds what Python and torch warned of in between."""
    told: list[str] = []
    made = logging.getLogRecordFactory()  # many of torch's loggers hand nothing to their parents

    def kept(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = made(*arguments, **options)
        if record.levelno >= logging.WARNING and record.name.startswith("torch"):
            told.append(record.getMessage())
        return record

    logging.setLogRecordFactory(kept)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", DeprecationWarning)  # which Python does not show either
            yield told
    finally:
        logging.setLogRecordFactory(made)
        told += [str(one.message) for one in caught]
