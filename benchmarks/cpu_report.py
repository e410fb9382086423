"""What the results of `benchmarks.cpu` say: the rows and the table of the README's section."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import rivals
from .report_lines import milliseconds

Results = Mapping[str, Any]


def speedups(row: Mapping[str, Any], use: str = "training") -> dict[str, float]:
    """Return how many times as long each rival takes in a row of the CPU's results."""
    found = {}
    for name, ratio in row["ratios"].items():
        match = re.fullmatch(rf"(?!peak)(.+) / (?:numba|ours)(?:, {use})?", name)
        if match:
            found[match[1]] = ratio
    return found


def cpu_rows(cpu: Results) -> Iterator[tuple[str, float, dict[str, float], str]]:
    """Yield what was done, our milliseconds, the rivals' ratios and ours to the floor."""
    for use, moved in (("training", 20), ("inference", 8)):
        for row in cpu.get("layer", ()):
            shape = row["case"].removeprefix("layer ")
            title = f"layer {shape}, " + ("training step" if use == "training" else use)
            floor = f"{row['ratios'][f'numba / floor, {use}']:.2f} of a copy of {moved} B"
            yield title, row["times"][f"numba, {use}"]["ms_median"], speedups(row, use), floor
    for row in cpu.get("workload", ()):
        floor = f"{row['ratios']['numba / products alone']:.2f} of its products"
        yield row["case"], row["times"]["numba"]["ms_median"], speedups(row), floor
    for row in cpu.get("network", ()):
        yield row["case"], row["times"]["numba"]["ms_median"], speedups(row), ""


def cpu_table(cpu: Results) -> str:
    """Return what was done, how long it took, how many times as long each rival takes."""
    rows = list(cpu_rows(cpu))
    present = {name for _, _, ratios, _ in rows for name in ratios}
    names = [rival.name for rival in rivals.RIVALS if rival.name in present]
    lines = [f"| | NeuroSpike | {' | '.join(names)} | NeuroSpike / floor |"]
    lines.append("|---|" + "--:|" * (len(names) + 1) + "---|")
    for title, time, ratios, floor in rows:
        cells = [f"{ratios[name]:.1f}x" if name in ratios else "" for name in names]
        lines.append(f"| {title} | {milliseconds(time)} | {' | '.join(cells)} | {floor} |")
    return "\n".join(lines)
