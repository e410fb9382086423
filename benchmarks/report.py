"""Turn stored results into Markdown tables: `python -m benchmarks.report [FILE]`."""

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "cpu.json")
    stored = json.loads(parser.parse_args(argv).file.read_text())
    print(machine_line(stored["machine"]))
    for cases in (found for found in stored.values() if isinstance(found, list)):
        for case in cases:
            print(table(case))
    return 0


def machine_line(machine: dict[str, Any]) -> str:
    """Return what figures must be read with, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['device']}, {machine['threads']} threads, allocator {machine['allocator']}, "
        f"{machine['system']}, Python {machine['python']}, {versions}, commit {machine['commit']}."
    )


def table(case: dict[str, Any]) -> str:
    """Return one case as a table: times with their spread, then ratios and what else is known."""
    lines = ["", f"| {case['case']} | median | 20% to 80% |", "|---|---|---|"]
    for name, t in case.get("times", {}).items():
        spread = f"{t['ms_p20']:.3g} to {t['ms_p80']:.3g} ms"
        lines.append(f"| {name} | {t['ms_median']:.3g} ms | {spread} |")
    for name, ratio in case.get("ratios", {}).items():
        lines.append(f"| **{name}** | **{ratio:.2f}** | |")
    for name, value in case.items():
        if name not in ("case", "times", "ratios"):
            lines.append(f"| {name} | {value} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
