"""Prove and measure the Triton backend on a GPU: `python -m benchmarks.gpu --out DIR`.

In this order: spikes and gradients against the reference and the float64 oracle, and the ways torch
calls a layer (streams, CUDA graphs, torch.compile, autocast), all side by side in processes; then
throughput beside the rivals that are installed, the whole training step, a short training run, peak
memory, and at last the rival that torch.compile takes minutes for. Every case passes the
equivalence gate before it is timed. Writes `gpu.json` and `gpu.txt` after every part. Without a
CUDA device it says so and ends with exit code 2: no figure is guessed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurospike.backend.dispatch import TABLE, unsupported_reasons

from . import rivals
from .gate import GateError, check_close
from .gpu_checks import FORMATS, every, name_of, on, outcomes, prove_case
from .gpu_session import Row, Session, finish
from .networks import FusedTutorial5, Tutorial5, training_step
from .timing import Timing, copy_bandwidth, interleave, machine

# Steps that snnTorch under torch.compile is unrolled to: more of them compile for minutes.
COMPILED_STEPS = 25
CHECKS_SHARE = 0.4  # of the time there is; the rest is for the timings
DIFFERENT = 1e-3  # share of a rival's spikes
ROOT = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a check or a floor is missed, or 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Prove and measure the Triton backend on a GPU, in under 8 minutes.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--seconds", type=float, default=1.5, help="spent timing each case")
    parser.add_argument("--data_path", type=Path, help="folder of MNIST, to train on it")
    options = parser.parse_args(argv)
    reasons = unsupported_reasons("triton", "cuda")
    if reasons:
        print(f"error: nothing to measure: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    # SpikingJelly would take its CUDA extension where one was built; the rival is its Triton path.
    os.environ.setdefault("SJ_LIF_CUDA_IMPLEMENTATION", "triton")
    session = Session(seconds=options.seconds, out=options.out)
    measure(session, options.data_path)
    return finish(session)


def measure(session: Session, data_path: Path | None = None) -> None:
    """Do everything; what fails is told and kept, and the rest goes on."""
    session.results["machine"] = machine(session.device.type)
    session.say(json.dumps(session.results["machine"], indent=2))
    prove(session)
    for case in session.cases:
        for dtype in FORMATS:
            _guard(
                session, f"{case} {name_of(dtype)}", lambda c=case, d=dtype: layer(session, c, d)
            )
    _guard(session, network_name(session), lambda: network(session))
    _guard(session, "training run", lambda: training_run(session, data_path))
    for case in session.cases:
        if int(case.split("x")[0]) <= COMPILED_STEPS:
            part = f"{case} float32, compiled rival"
            _guard(session, part, lambda c=case: compiled_rival(session, c))


def prove(session: Session) -> None:
    """Run the checks, side by side; those that take too long leave the timings their time."""
    seconds = CHECKS_SHARE * session.left()
    given = (session.device, session.backend, session.cases)
    for found in outcomes(*given, session.processes, seconds):
        if found.error:
            session.fail(found.name, found.error)
        elif found.skipped:
            session.say(f"  skipped {found.name}: {found.skipped}")
            session.add("skipped", {"check": found.name, "reason": found.skipped})
        else:
            session.say(f"  equal  {found.name:<40} gradients within {found.distance:.1e}")
            row = {"check": found.name, "gradient_distance": found.distance}
            session.add("equivalence", row)
    for name in missing(session):
        session.leave_out(name)


def missing(session: Session) -> list[str]:
    """Return the checks of which nothing was heard."""
    kept = [session.results.get(part, []) for part in ("equivalence", "skipped", "failed")]
    heard = {row.get("check", row.get("part")) for rows in kept for row in rows}
    names = (check.name for check in every(session.device, session.backend, session.cases))
    return [name for name in names if name not in heard]


def layer(session: Session, case: str, dtype: torch.dtype) -> Row:
    """Training step and inference of one layer beside its rivals and a copy of as many bytes."""
    distance = prove_case(session.device, session.backend, case, dtype)
    current, grad = on(session.device, dtype, case)
    ours = rivals.ours(session.backend)
    steps = {
        "ours, training": rivals.layer_step(ours, current, grad),
        "ours, inference": rivals.inference(ours, current),
    }
    number = current.numel()
    for what, moved in bytes_moved(session.backend, dtype).items():
        steps[f"copy, {what}"] = copy_bandwidth(round(moved * number), session.device.type)
    label = f"{case} {name_of(dtype)}"
    others = _rivals(session, ours, dtype)
    differ, against = _beside(session, label, ours, others, current, grad, steps)
    peaks = {name: session.device.peak_mb(step) for name, step in steps.items()}
    found = interleave(steps, seconds=session.seconds, least=5, finest=5e-3)
    ratios = {
        f"share of copy, {what}": found[f"copy, {what}"].over(found[f"ours, {what}"])
        for what in ("training", "inference")
    }
    more = {"peak_mb": peaks, "gradient_distance": distance, "rivals' other spikes": differ}
    return _tell(session, label, found, ratios | _over(found, against), **more)


def compiled_rival(session: Session, case: str) -> Row:
    """Training step beside snnTorch under torch.compile, which takes its time to compile."""
    current, grad = on(session.device, torch.float32, case)
    ours, loop = rivals.ours(session.backend), rivals.snntorch_loop()
    loop(current)  # takes the loop's module to the device, which is no part of the graph
    others = [("snntorch compiled", rivals.compiled(loop), ours)]
    steps = {"ours, training": rivals.layer_step(ours, current, grad)}
    label = f"{case} float32, compiled rival"
    differ, against = _beside(session, label, ours, others, current, grad, steps)
    found = interleave(steps, seconds=session.seconds, least=5, finest=5e-3)
    return _tell(session, label, found, _over(found, against), differ=differ)


Other = tuple[str, rivals.Layer, rivals.Layer]  # a rival's name, it, and ours of the same reset


def _beside(
    session: Session,
    label: str,
    ours: rivals.Layer,
    others: Iterable[Other],
    current: Tensor,
    grad: Tensor,
    steps: dict[str, Callable[[], object]],
) -> tuple[dict[str, float], dict[str, str]]:
    """Add the steps of rivals that run and compute what we do.

    Returns by their names the share of spikes in which they differ, and the step that each is to be
    compared with. What goes wrong with one costs neither ours nor the others.
    """
    differ, against = {}, {}
    for name, rival, mine in others:
        step = rivals.layer_step(rival, current, grad)
        try:
            differ[name] = _agree(name, rival, mine, current)
            step()
        except Exception:  # noqa: BLE001
            session.fail(f"{label}: {name}", traceback.format_exc())
            continue
        steps[f"{name}, training"] = step
        against[name] = "ours, training"
        if mine is not ours:
            against[name] = f"ours for {name}, training"
            steps[against[name]] = rivals.layer_step(mine, current, grad)
    return differ, against


def _over(found: Mapping[str, Timing], against: Mapping[str, str]) -> dict[str, float]:
    return {
        f"{name} / ours, training": found[f"{name}, training"].over(found[own])
        for name, own in against.items()
    }


def _rivals(session: Session, ours: rivals.Layer, dtype: torch.dtype) -> Iterator[Other]:
    if dtype == torch.float32:
        # In 16 bits snnTorch keeps a 16-bit membrane, which is another neuron.
        yield "snntorch loop", rivals.snntorch_loop(), ours
    if rivals.installed("spikingjelly"):
        immediate = rivals.ours(session.backend, reset_delay=False)
        yield "spikingjelly", rivals.spikingjelly_multi_step(), immediate


def _agree(name: str, rival: rivals.Layer, mine: rivals.Layer, current: Tensor) -> float:
    """Return the share of spikes in which a rival differs from us.

    A rival that rounds in another order, or stores its state in 16 bits, fires otherwise where a
    membrane comes within rounding of the threshold. More than `DIFFERENT` is another neuron.
    """
    with torch.no_grad():
        share = float((rival(current) != mine(current)).double().mean())
    if not share <= DIFFERENT:
        raise GateError(f"{name}: {share:.1%} of the spikes differ from ours")
    return share


def bytes_moved(backend: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the bytes of global memory that a neuron-step takes in each use of a backend.

    Training reads the current twice and the spikes' gradient, and writes spikes and the current's
    gradient; a backend with checkpoints also writes and reads one of the state's every K-th step.
    """
    every = TABLE[backend].checkpoint_every
    checkpoint = 4 / every if every else 0.0
    return {"training": 5 * dtype.itemsize + 2 * checkpoint, "inference": 2 * dtype.itemsize}


def network(session: Session) -> Row:
    """Whole training step 784-1000-10, T=25, batch 128, beside snnTorch's tutorial 5 as written."""
    steps: dict[str, Callable[[], object]] = {}
    gradients = {}
    for name in ("snntorch", "ours"):
        net, images, labels, optimizer = _tutorial(session, name)
        net.loss(images, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
        steps[name] = training_step(net, images, labels, optimizer)
    # The product with the second matrix is one for all steps or one a step, summed in another
    # order; of 32,000 output neurons and steps a few fire otherwise.
    label = network_name(session)
    distance = check_close(label, gradients["ours"], gradients["snntorch"], 1e-2)
    steps["ours, CUDA graph"] = session.device.record(training_step(*_tutorial(session, "ours")))
    peaks = {name: session.device.peak_mb(step) for name, step in steps.items()}
    found = interleave(steps, seconds=2 * session.seconds, finest=5e-3)
    ratios = {
        "snntorch / ours": found["snntorch"].over(found["ours, CUDA graph"]),
        "snntorch / ours without a graph": found["snntorch"].over(found["ours"]),
    }
    return _tell(session, label, found, ratios, peak_mb=peaks, gradient_distance=distance)


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


def training_run(session: Session, data_path: Path | None) -> Row:
    """Train the recogniser for a few epochs with the command that people type."""
    data = ["--dataset", "digits"] if data_path is None else ["--dataset", "mnist"]
    if data_path is not None:
        data += ["--data_path", str(data_path.resolve())]
    epochs = str(session.epochs) if data_path is None else "2"
    command = [sys.executable, "-m", "neurospike.train", *data, "--epochs", epochs]
    command += ["--backend", session.backend, "--device", session.device.type, "--run_dir", "run"]
    start = time.perf_counter()
    before = os.environ.get("PYTHONPATH")  # where torch itself may be
    path = os.pathsep.join([str(ROOT), *([before] if before else [])])
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"training ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    last = done.stdout.splitlines()[-1]
    session.say(f"training run, {' '.join(data[:2])}, {epochs} epochs: {last}, {seconds:.1f} s")
    row = {"command": command[1:], "accuracy": last, "seconds": seconds}
    session.add("training run", row)
    return row


def _guard(session: Session, part: str, run: Callable[[], object]) -> None:
    """Do a part; an error is told and kept, and the next part is done all the same."""
    if not session.has_time(part):
        return
    try:
        run()
    # One broken rival or a device too small for a case must not cost the results of the others.
    except Exception:  # noqa: BLE001
        session.fail(part, traceback.format_exc())


def _tell(
    session: Session, case: str, found: dict[str, Any], ratios: dict[str, float], **more: Any
) -> Row:
    session.say(case)
    for name, timing in found.items():
        low, high = 1e3 * timing.quantile(0.2), 1e3 * timing.quantile(0.8)
        session.say(f"  {name:36} {1e3 * timing.median:10.4f} ms  ({low:.4f} to {high:.4f})")
    for name, ratio in ratios.items():
        session.say(f"  {name:36} {ratio:10.3f}")
    for name, value in more.items():
        session.say(f"  {name}: {value}")
    times = {name: timing.record() for name, timing in found.items()}
    row = {"case": case, "times": times, "ratios": ratios, **more}
    session.add("cases", row)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
