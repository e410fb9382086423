"""Prove and measure the Triton backend on a GPU: `python -m benchmarks.gpu --out DIR`.

In this order: spikes and gradients against the reference and the float64 oracle, and the ways torch
calls a layer (streams, CUDA graphs, torch.compile, autocast), all side by side in processes; then
what the host needs for a call, time of a call and of its kernels alone beside the rivals that are
installed, the whole training step, training runs, torch.compile, and at last the rival that
torch.compile takes minutes for. Every case passes the equivalence gate before it is timed. Writes
`gpu.json` and `gpu.txt` after every part. Without a CUDA device it says so and ends with exit code
2: no figure is guessed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from neurospike.backend.dispatch import unsupported_reasons

from .gpu_checks import FORMATS, every, name_of, outcomes
from .gpu_layers import compiled_rival, host_time, layer
from .gpu_networks import compiled_network, network, network_name, training_runs
from .gpu_session import Session, finish
from .timing import machine

# Steps that snnTorch under torch.compile is unrolled to: more of them compile for minutes.
COMPILED_STEPS = 25
COMPILED_SECONDS = 60.0  # that there must be left for it
CHECKS_SHARE = 0.4  # of the time there is; the rest is for the timings
SPIKINGJELLY = "SJ_LIF_CUDA_IMPLEMENTATION"


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a check or a floor is missed, or 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Prove and measure the Triton backend on a GPU, within 5 minutes.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent timing each case")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for all of it")
    parser.add_argument("--data_path", type=Path, help="folder of MNIST, to train on it")
    parser.add_argument(
        "--no_checks",
        action="store_true",
        help="leave out the proofs, where tests/on_cuda.py ran the same ones; what is timed is "
        "proved all the same",
    )
    parser.add_argument(
        "--spikingjelly",
        choices=["triton", "cuda"],
        default=os.environ.get(SPIKINGJELLY, "triton"),
        help="which of that rival's paths: its Triton kernels, or its native CUDA extension, which "
        "a build from its sources with SJ_BUILD_NATIVE_CUDA=1 has",
    )
    options = parser.parse_args(argv)
    reasons = unsupported_reasons("triton", "cuda")
    if reasons:
        print(f"error: nothing to measure: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    os.environ[SPIKINGJELLY] = options.spikingjelly  # which it reads as it is imported
    session = Session(
        seconds=options.seconds,
        limit=options.limit,
        checks=not options.no_checks,
        out=options.out,
    )
    measure(session, options.data_path)
    return finish(session)


def measure(session: Session, data_path: Path | None = None) -> None:
    """Do everything; what fails is told and kept, and the rest goes on."""
    session.results["machine"] = machine(session.device.type)
    session.results["settings"] = settings(session)
    session.say(json.dumps({name: session.results[name] for name in session.results}, indent=2))
    if session.checks:
        prove(session)
    session.guard(f"host {session.host}", lambda: host_time(session))
    for case in session.cases:
        for dtype in FORMATS:
            part = f"{case} {name_of(dtype)}"
            session.guard(part, lambda c=case, d=dtype: layer(session, c, d))
    session.guard(network_name(session), lambda: network(session))
    session.guard("training runs", lambda: training_runs(session, data_path))
    session.guard("torch.compile", lambda: compiled_network(session))
    for case in session.cases:
        if int(case.split("x")[0]) <= COMPILED_STEPS:
            part = f"{case} float32, compiled rival"
            run = lambda c=case: compiled_rival(session, c)  # noqa: E731
            session.guard(part, run, COMPILED_SECONDS)


def settings(session: Session) -> dict[str, str]:
    """Return what else a figure must be read with; all of it is as torch and rivals set it."""
    return {
        "torch.backends.cuda.matmul.allow_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "spikingjelly": f"its {os.environ.get(SPIKINGJELLY, 'default')} path, float32 state",
        "proofs": "run" if session.checks else "left out; tests/on_cuda.py runs the same ones",
    }


def prove(session: Session) -> None:
    """Run the checks, side by side; those that take too long leave the timings their time."""
    seconds = min(session.checks_limit, CHECKS_SHARE * session.left())
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


if __name__ == "__main__":
    raise SystemExit(main())
