"""What the benchmarks of the CPU print of a case, and how they store their results."""

import json
import subprocess
from pathlib import Path
from typing import Any

from .timing import Timing

Row = dict[str, Any]


def number_printed(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Return the last number that a command prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def store(results: Row, path: Path) -> None:
    """Write results as JSON, in a folder that is made if need be, and print where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {path}")


def tell(title: str, found: dict[str, Timing], ratios: dict[str, float], **more: Any) -> Row:
    """Print the times of a case and their ratios; return them as a row of the results."""
    print(title)
    for name, timing in found.items():
        low, high = 1e3 * timing.quantile(0.2), 1e3 * timing.quantile(0.8)
        print(f"  {name:32} {1e3 * timing.median:9.3f} ms  ({low:.3f} to {high:.3f})")
    for name, ratio in ratios.items():
        print(f"  {name:40} {ratio:7.2f}")
    for name, value in more.items():
        print(f"  {name}: {value}")
    print(flush=True)
    times = {name: timing.record() for name, timing in found.items()}
    return {"case": title, "times": times, "ratios": ratios, **more}
