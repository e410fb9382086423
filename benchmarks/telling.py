"""What the benchmarks of the CPU print, and keep, of a case."""

import subprocess
from typing import Any

from .timing import Timing

Row = dict[str, Any]


def number_printed(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Return the last number that a command prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


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
