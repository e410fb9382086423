"""Collect the results of finished training runs: `python -m benchmarks.accuracy RUN [RUN ...]`.

Reads the run folders that `python -m neurospike.train --config configs/<name>.yaml` leaves behind
and writes one row a run, by the name of its configuration, into
`benchmarks/results/mnist_accuracy.json`; `default` is `config.yaml` itself, and a number format
other than float32 is part of the name.

`python -m benchmarks.accuracy --train [CONFIG] [--KEY VALUE ...]` does such a run on MNIST first,
of `config.yaml` if none is named, and also writes how long the whole command took, from the start
of the process to its end:

    python -m benchmarks.accuracy --train --data_path ../shared/data
    python -m benchmarks.accuracy --train --data_path ../shared/data --precision bf16-mixed
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from neurospike.config import load_config

from .timing import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mnist_accuracy.json"


def row_of(run: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the configuration a run followed, and what came of it."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    epochs = [record for record in records if record["kind"] == "epoch"]
    tested = [record for record in records if record["kind"] == "test"]
    if not tested:
        raise SystemExit(f"{run}: got a run without a test; wait until it is finished")
    start = records[0]
    wanted = load_config(run / "config.yaml")
    for path in (ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))):
        config = load_config(path)
        if all(
            getattr(config, part) == getattr(wanted, part)
            for part in ("model", "encoding", "preprocessing", "training", "seed")
        ):
            name = "default" if path.parent == ROOT else path.stem
            suffix = "" if wanted.precision == "32-true" else f"_{wanted.precision}"
            return name + suffix, {
                "test_accuracy": tested[-1]["accuracy"],
                "spike_rates": tested[-1]["spike_rates"],
                "epochs": len(epochs),
                "training_seconds": round(sum(record["seconds"] for record in epochs), 1),
                "num_steps": wanted.model.num_steps,
                **{key: start[key] for key in ("seed", "dataset", "backend", "device", "threads")},
                "cpus": start["cpus"],
                "time": start["time"],
                "versions": start["versions"],
            }
    raise SystemExit(
        f"{run}: got a run of neither config.yaml nor configs/*.yaml; train with one as it is"
    )


def timed_run(flags: list[str]) -> tuple[str, dict[str, Any]]:
    """Do a whole run in a process of its own; its row, with the time from start to end."""
    named = flags and not flags[0].startswith("--")
    config = flags[0] if named else str(ROOT / "config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "neurospike.train", "--config", config]
        command += ["--dataset", "mnist", *flags[bool(named) :], "--run_dir", str(run)]
        start = time.perf_counter()
        done = subprocess.run(command, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.returncode)
        name, row = row_of(run)
    print(f"the whole run took {seconds:.1f} s")
    return name, {**row, "whole_run_seconds": round(seconds, 1), "commit": machine()["commit"]}


def main(arguments: list[str]) -> None:
    """Write the rows of these runs, or of one to do, beside those already there."""
    if not arguments:
        raise SystemExit("got no run folder; wanted: python -m benchmarks.accuracy RUN [RUN ...]")
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments[0] == "--train":
        rows.update([timed_run(arguments[1:])])
    else:
        rows.update(row_of(Path(run)) for run in arguments)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n", encoding="utf-8")
    for name, row in sorted(rows.items()):
        print(f"{name}: {row['test_accuracy']:.2%} after {row['epochs']} epochs")


if __name__ == "__main__":
    main(sys.argv[1:])
