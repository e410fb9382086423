"""Collect the results of finished training runs: `python -m benchmarks.accuracy RUN [RUN ...]`.

Reads the run folders that `python -m neurospike.train --config configs/<name>.yaml` leaves behind
and writes one row a run, by the name of its configuration, into
`benchmarks/results/mnist_accuracy.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from neurospike.config import load_config

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
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(path)
        if all(
            getattr(config, part) == getattr(wanted, part)
            for part in ("model", "encoding", "preprocessing", "training", "seed")
        ):
            return path.stem, {
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
    raise SystemExit(f"{run}: got a run of none of configs/*.yaml; train with one of them as it is")


def main(runs: list[str]) -> None:
    """Write the rows of these runs beside those already there."""
    if not runs:
        raise SystemExit("got no run folder; wanted: python -m benchmarks.accuracy RUN [RUN ...]")
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows.update(row_of(Path(run)) for run in runs)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n", encoding="utf-8")
    for name, row in sorted(rows.items()):
        print(f"{name}: {row['test_accuracy']:.2%} after {row['epochs']} epochs")


if __name__ == "__main__":
    main(sys.argv[1:])
