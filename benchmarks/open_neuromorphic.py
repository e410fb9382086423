"""The benchmark of Open Neuromorphic with us in it: `python -m benchmarks.open_neuromorphic`.

`--checkout` is a clone of github.com/open-neuromorphic/snn-library-benchmarks. Its own script times
everyone on `Linear(n, n)` and LIF neurons, 500 steps, with two things added: its clock waits for
the device, and the share of neurons that fire is told. `neurospike` below is what one would add to
its list. Each contender has a process of its own for each size, and they take turns. Writes
`DIR/open_neuromorphic.json`, or on a GPU `DIR/gpu_open_neuromorphic.json`.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import neurospike as ns

from .timing import machine, synchronize

STEPS = 500
OURS = "neurospike"
OTHERS = ("snntorch", "spikingjelly", "norse", "sinabs", "rockpool_torch")
Bench = dict[str, Any]
Found = dict[str, Any]


def neurospike() -> tuple[Callable[..., Bench], Callable[[Bench], Bench], Callable[..., None], str]:
    """Return how to prepare, to go forward and backward, and a title, as that benchmark asks."""

    def prepare_fn(
        batch_size: int, n_steps: int, n_neurons: int, n_layers: int, device: str
    ) -> Bench:
        model = ns.Sequential(nn.Linear(n_neurons, n_neurons), ns.LIF(beta=0.95)).to(device)
        input_static = torch.randn(n_steps, batch_size, n_neurons).to(device)
        with torch.no_grad():
            model(input_static)
        return {"model": model, "input": input_static, "n_neurons": n_neurons}

    def forward_fn(bench_dict: Bench) -> Bench:
        bench_dict["output"] = bench_dict["model"](bench_dict["input"])[0]
        return bench_dict

    def backward_fn(bench_dict: Bench) -> None:
        bench_dict["output"].sum().backward(retain_graph=True)

    return prepare_fn, forward_fn, backward_fn, f"NeuroSpike v{ns.__version__}"


def clock() -> float:
    """Return the time in seconds, once the device has done what it was told."""
    synchronize()
    return time.perf_counter()


def load(checkout: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Return the script of a clone with our entry, and its tools with a clock that waits.

    Raises SystemExit where that is no clone of the benchmark.
    """
    folder = checkout / "docker"
    if not (folder / "run_benchmark.py").is_file():
        raise SystemExit(
            f"error: no docker/run_benchmark.py in {checkout}; clone "
            "github.com/open-neuromorphic/snn-library-benchmarks and name its folder"
        )
    sys.path.insert(0, str(folder))
    script, tools = (importlib.import_module(name) for name in ("run_benchmark", "utils"))
    vars(tools)["time"] = clock
    script.benchmarks[OURS] = neurospike
    return script, tools


def measure(checkout: Path, name: str, neurons: int, batch: int, device: str) -> Found:
    """Let the clone time one contender in this process; why not, if it fails."""
    script, tools = load(checkout)
    if device == "cpu":  # the only call of theirs that needs a GPU
        vars(torch.cuda)["set_per_process_memory_fraction"] = lambda *_, **__: None
    try:
        prepare, forward, backward, title = script.benchmarks[name]()
    except Exception as error:  # noqa: BLE001 - whatever its import raises
        return {"failed": _line(error)}
    title = title.replace("<br>", " ")
    made: Bench = {}

    def prepared(**sizes: int | str) -> Bench:
        made.update(prepare(**sizes))
        return made

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (forwards, *_), (backwards, *_) = tools.benchmark_framework(
            prepare_fn=prepared,
            forward_fn=forward,
            backward_fn=backward,
            benchmark_desc=title,
            n_neurons=neurons,
            n_layers=1,
            n_steps=STEPS,
            batch_size=batch,
            device=device,
        )
    if not backwards:
        reasons = [_line(one.message) for one in told if " failed " in str(one.message)]
        return {"title": title, "failed": reasons[-1]}
    output = made["output"]
    return {
        "title": title,
        "forward_ms": 1e3 * statistics.mean(forwards),
        "backward_ms": 1e3 * statistics.mean(backwards),
        "fires": float((output > 0).float().mean()) if torch.is_tensor(output) else None,
        "memory_mb": torch.cuda.max_memory_allocated() / 1e6 if device.startswith("cuda") else None,
    }


def _line(error: Exception | str) -> str:
    name = "" if isinstance(error, Warning) else f"{type(error).__name__}: "
    return f"{name}{str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def apart(options: argparse.Namespace, name: str, neurons: int) -> Found:
    """Time one contender in a process of its own, as that benchmark does."""
    command = [sys.executable, "-m", "benchmarks.open_neuromorphic", "--one", name]
    command += ["--checkout", str(options.checkout), "--neurons", str(neurons)]
    command += ["--batch", str(options.batch), "--device", options.device]
    command += ["--threads", str(options.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {options.limit:g} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def together(rounds: list[Found]) -> Found:
    """Return the median of what the rounds found."""
    failed = [one for one in rounds if "failed" in one]
    if failed:
        return failed[0]
    middle: Found = {"title": rounds[0]["title"], "rounds": len(rounds)}
    for key in ("forward_ms", "backward_ms", "fires", "memory_mb"):
        values = [one[key] for one in rounds]
        middle[key] = None if None in values else statistics.median(values)
    return middle


def compare(options: argparse.Namespace, neurons: int) -> dict[str, Found]:
    """Time every contender at one size, in turns."""
    found: dict[str, list[Found]] = {name: [] for name in (OURS, *options.others)}
    order = list(found)
    for _ in range(options.rounds):
        for name in order:
            if not any("failed" in one for one in found[name]):
                one = apart(options, name, neurons)
                found[name].append(one)
                told = one.get("failed") or f"{_total(one):.1f} ms forward and backward"
                print(f"{neurons} neurons, {one.get('title', name)}: {told}", file=sys.stderr)
        order = order[1:] + order[:1]
    return {name: together(rounds) for name, rounds in found.items()}


def table(cases: Mapping[str, Mapping[str, Found]]) -> str:
    """Return the results as a table: times, how many times as long as ours, who fires how often."""
    lines = ["| neurons | library | forward | backward | in all / NeuroSpike | neurons that fire |"]
    lines.append("|--:|---|--:|--:|--:|--:|")
    for neurons, row in cases.items():
        ours = row[OURS]
        for name, one in row.items():
            title = one.get("title", name)
            if "failed" in one:
                lines.append(f"| {neurons} | {title} | fails: {one['failed']} | | | |")
                continue
            ratio = ""
            if "failed" not in ours:
                ratio = f"{_total(one) / _total(ours):.2f}"
            fires = "" if one["fires"] is None else f"{one['fires']:.1%}"
            times = f"{one['forward_ms']:.1f} ms | {one['backward_ms']:.1f} ms"
            lines.append(f"| {neurons} | {title} | {times} | {ratio} | {fires} |")
    return "\n".join(lines)


def _total(one: Found) -> float:
    total: float = one["forward_ms"] + one["backward_ms"]
    return total


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.open_neuromorphic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkout", type=Path, required=True, help="clone of that benchmark")
    parser.add_argument("--others", nargs="+", default=OTHERS, help="names of its list")
    parser.add_argument("--neurons", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, as many for everyone")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each contender")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.one:
        sizes = options.neurons[0], options.batch, options.device
        print(json.dumps(measure(options.checkout, options.one, *sizes)))
        return 0
    load(options.checkout)
    cases: dict[str, dict[str, Found]] = {}
    results = {"machine": machine(options.device), "batch": options.batch, "cases": cases}
    options.out.mkdir(parents=True, exist_ok=True)
    on_gpu = "gpu_" if options.device.startswith("cuda") else ""
    path = options.out / f"{on_gpu}open_neuromorphic.json"
    for neurons in options.neurons:
        cases[str(neurons)] = compare(options, neurons)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{table(cases)}\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
