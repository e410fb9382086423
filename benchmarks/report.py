"""Turn stored results into tables and pictures: `python -m benchmarks.report [--write]`.

Nothing is measured here. With `--write` the pictures are drawn into `docs/images`, and the sections
between the marks in `README.md` and `benchmarks/README.md` are written anew; what was not measured
they say so of. A test holds the sections against the stored results.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import events_report, glance, gpu_report, open_neuromorphic, rivals
from .cpu_report import cpu_rows, cpu_table
from .report_lines import NOT_MEASURED, machine_line
from .step import PARTS, REST

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = Path("docs") / "images"
BEGIN, END = "<!-- {}: written by `python -m benchmarks.report --write` -->", "<!-- end of {} -->"
OPEN = ("open_neuromorphic", "gpu_open_neuromorphic")  # on the CPU and on the GPU
NAMES = ("cpu", "cpu-kept", "gpu", "step", "events", *OPEN)
Results = Mapping[str, Any]


def load(folder: Path) -> dict[str, Results]:
    """Return the results stored in a folder by name, those of `NAMES` that there are."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table(case: Mapping[str, Any]) -> str:
    """Return one case as a table: times with their spread, then ratios and what else is known."""
    if "rows" in case:  # a sweep
        return "\n".join(table(row) for row in case["rows"])
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


def how_fast(stored: Mapping[str, Results]) -> str:
    """Return the section on layers and networks, on a CPU and on a GPU."""
    cpu = stored.get("cpu")
    if cpu is None:
        return NOT_MEASURED.format("cpu")
    command = "python -m benchmarks.cpu" + (
        " --compiled" if " compiled |" in cpu_table(cpu) else ""
    )
    lines = [
        "Times are medians of runs that take turns in one process, each after its result was shown "
        "equal; beside them, how many times as long each rival takes for the same kind of neuron "
        "([what each computes](#the-rivals)). T x B x N; the floor is a copy of the bytes "
        "that must move, or the products of matrices alone.",
        "",
        cpu_table(cpu),
        "",
        f"Measured on {machine_line(cpu['machine'])} `{command}`",
    ]
    for name, needed, caption in PICTURES:
        if needed in cpu:
            lines += ["", f"![{caption}](../{(IMAGES / name).as_posix()})"]
    if kept := stored.get("cpu-kept"):
        title = "The same where the C library keeps what is freed, as our own commands have it"
        lines += ["", f"{title} (`--keep-freed-memory`):", "", cpu_table(kept)]
        lines += ["", f"Measured on {machine_line(kept['machine'])}"]
    lines += ["", gpu_report.section(stored.get("gpu"))]
    if "gpu" in stored and gpu_report.against_cpu(cpu, stored["gpu"]):
        name, caption = AGAINST
        lines += ["", f"![{caption}](../{(IMAGES / name).as_posix()})"]
    return "\n".join(lines)


def at_a_glance(stored: Mapping[str, Results]) -> str:
    """Return the README's table."""
    cpu = stored.get("cpu")
    times = {}
    for title, time, ratios, _ in cpu_rows(cpu or {}):
        case = re.fullmatch(r"(?:layer|network) (.+?), (?:training step|batch.*)", title)
        if case:
            times[case[1]] = time, ratios
    return glance.section(cpu, stored.get("gpu"), times)


AGAINST = ("gpu.png", "Time of a training step on the CPU and on the GPU, by case")
PICTURES = (
    ("speedup.png", "layer", "How many times as long each rival takes, by case"),
    ("sweep.png", "sweep", "Time of a training step against T and against N, with the floor"),
    ("saved.png", "saved", "Bytes per neuron-step kept for the backward pass"),
)


def rivals_table(stored: Mapping[str, Results]) -> str:
    """Return what each rival computes, and what is timed of it."""
    lines = ["| rival | reset | fires at | surrogate | what is timed |", "|---|---|---|---|---|"]
    for rival in rivals.RIVALS:
        cells = (rival.name, rival.reset, rival.fires, rival.surrogate, rival.timed)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def step_table(stored: Mapping[str, Results]) -> str:
    """Return where the time of a training step goes, before and after."""
    step = stored.get("step")
    if step is None:
        return NOT_MEASURED.format("step")
    before, after = step["networks"]["snntorch"], step["networks"]["numba"]
    lines = [
        "| a training step of 784-1000-10 | snnTorch, before | fused, after |",
        "|---|--:|--:|",
    ]
    for part in (*PARTS, REST):
        lines.append(f"| {part} | {before[part]:.2f} ms | {after[part]:.2f} ms |")
    totals = (f"**{sum(network.values()):.2f} ms**" for network in (before, after))
    lines.append(f"| **in all, as the profiler sees it** | {' | '.join(totals)} |")
    return "\n".join([*lines, "", f"Measured on {machine_line(step['machine'])}"])


def open_table(stored: Mapping[str, Results]) -> str:
    """Return what Open Neuromorphic's own script found, on each device."""
    tables = []
    for name, device in zip(OPEN, ("cpu", "cuda")):
        found = stored.get(name)
        if found is None:
            command = f"open_neuromorphic --checkout DIR --device {device}"
            tables.append(NOT_MEASURED.format(command))
            continue
        told = f"Batch {found['batch']}. Measured on {machine_line(found['machine'])}"
        tables.append(f"{open_neuromorphic.table(found['cases'])}\n\n{told}")
    return "\n\n".join(tables)


Section = Callable[[Mapping[str, Results]], str]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("README.md", "At a glance", at_a_glance),
    ("docs/events.md", "Networks", lambda stored: events_report.networks(stored.get("events"))),
    ("docs/events.md", "Layers", lambda stored: events_report.layers(stored.get("events"))),
    ("benchmarks/README.md", "How fast", how_fast),
    ("benchmarks/README.md", "The rivals", rivals_table),
    ("benchmarks/README.md", "Open Neuromorphic", open_table),
    ("benchmarks/README.md", "Where the time goes", step_table),
)


def between(text: str, name: str, file: str) -> tuple[int, int]:
    """Return where a section begins and ends in a text. Raises SystemExit without its marks."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise SystemExit(f"error: {file} lacks the lines {begin!r} and {end!r}; put them back")
    return text.index(begin) + len(begin) + 1, text.index(end)


def write(stored: Mapping[str, Results], root: Path = ROOT) -> None:
    """Draw the pictures and write the sections."""
    from . import pictures  # here, because tables need no matplotlib

    for file, name, section in SECTIONS:
        path = root / file
        text = path.read_text(encoding="utf-8")
        start, stop = between(text, name, file)
        path.write_text(f"{text[:start]}\n{section(stored)}\n\n{text[stop:]}", encoding="utf-8")
    if "cpu" in stored:
        pictures.draw(stored["cpu"], root / IMAGES, stored.get("gpu"))


def _cases(name: str, results: Results) -> Iterator[tuple[str, Results, list[Results]]]:
    """Yield a title, the machine and the cases of each part that was measured at once."""
    if name == "events":  # each part on a machine of its own
        for part, found in results.items():
            yield f"{name} {part}", found["machine"], found["cases"]
    else:
        lists = (found for found in results.values() if isinstance(found, list))
        yield name, results["machine"], [case for part in lists for case in part if "case" in case]


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="of *.json")
    parser.add_argument("--write", action="store_true", help="write pictures and both READMEs")
    options = parser.parse_args(argv)
    stored = load(options.results)
    if options.write:
        write(stored)
        return 0
    if not stored:
        print(f"no results in {options.results}: measure with python -m benchmarks.cpu")
    for name, results in stored.items():
        for title, machine, cases in _cases(name, results):
            print(f"\n{title}: {machine_line(machine)}")
            for case in cases:
                print(table(case))
    if "step" in stored:
        print(f"\n{step_table(stored)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
