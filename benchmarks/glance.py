"""The README's table: training steps on a CPU and a GPU at a glance; nothing is measured here."""

from collections.abc import Mapping
from typing import Any

from .gpu_report import WITH_GRAPH
from .gpu_report import rows as gpu_rows
from .report_lines import NOT_MEASURED, machine_line, milliseconds

Results = Mapping[str, Any]
CASES = ("25x32x256", "25x128x1000", "100x128x1000", "784-1000-10", f"784-1000-10 {WITH_GRAPH}")
ON_CPU = ("snntorch", "spikingjelly", "norse")
ON_GPU = ("snntorch", "spikingjelly")


def section(
    cpu: Results | None, gpu: Results | None, times: Mapping[str, tuple[float, Any]]
) -> str:
    """Return the table, of what is stored of a CPU and of a GPU, and where it was measured.

    Args:
        cpu: the results of `benchmarks.cpu`.
        gpu: those of `benchmarks.gpu`.
        times: of each training step on the CPU our milliseconds and the rivals' ratios.
    """
    if cpu is None:
        return NOT_MEASURED.format("cpu")
    on_gpu = _of_gpu(gpu) if gpu else {}
    head = ["a training step", "CPU", *ON_CPU, "GPU", *ON_GPU]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for case in CASES:
        cells = _cells(times.get(case), ON_CPU) + _cells(on_gpu.get(case), ON_GPU)
        name = case if case[0] == "7" else f"layer {case}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    places = [f"CPU: {machine_line(cpu['machine'])}"]
    places += [f"GPU: {machine_line(gpu['machine'])}"] if gpu else ["GPU: not measured."]
    return "\n".join(
        [*lines, "", "<details><summary>Measured on</summary>", "", *places, "</details>"]
    )


def _of_gpu(gpu: Results) -> dict[str, tuple[float, dict[str, float]]]:
    found = {}
    for title, name, row, others in gpu_rows(gpu):
        case = title.removeprefix("whole step ").removesuffix(" float32")
        ratios = {other.removesuffix(" loop"): ratio for other, ratio in others.items()}
        found[case] = row["times"][name]["ms_median"], ratios
    return found


def _cells(found: tuple[float, Mapping[str, float]] | None, names: tuple[str, ...]) -> list[str]:
    if found is None:
        return [""] * (1 + len(names))
    time, ratios = found
    return [milliseconds(time), *(f"{ratios[n]:.1f}x" if n in ratios else "" for n in names)]
