"""Pictures of stored results; nothing is measured here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neurospike.visualization.canvas import BLACK, COLORS, GREY, STYLES

from . import gpu_report, rivals
from .cpu_report import cpu_rows

DPI = 110
# A rival has one colour in all pictures; ours is the first.
COLOR = dict(zip(["numba", *(rival.name for rival in rivals.RIVALS)], COLORS))
HATCH = {name: "//" for name in COLOR if name.endswith("compiled")}
MARKERS = ("o", "s", "^", "D")


def draw(cpu: Mapping[str, Any], folder: Path, gpu: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw what the results hold; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"speedup": speedup, "sweep": sweep, "saved": saved}
    needed = {"speedup": "layer", "sweep": "sweep", "saved": "saved"}
    figures = {name: make(cpu) for name, make in pictures.items() if needed[name] in cpu}
    if gpu is not None and gpu_report.against_cpu(cpu, gpu):
        figures["gpu"] = against_gpu(cpu, gpu)
    files = []
    for name, figure in figures.items():
        file = folder / f"{name}.png"
        # Without the date and the version of the program a picture of the same results is the
        # same file.
        figure.savefig(file, dpi=DPI, metadata={"Software": None})
        files.append(file)
    return files


def _under(figure: Figure, cpu: Mapping[str, Any]) -> None:
    machine = cpu["machine"]
    text = f"{machine['device']}, {machine['threads']} threads, commit {machine['commit']}"
    figure.supxlabel(text, fontsize=8, color=GREY)


def speedup(cpu: Mapping[str, Any]) -> Figure:
    """Bars: how many times as long each rival takes, forward and backward."""
    rows = [(title, r) for title, _, r, _ in cpu_rows(cpu) if not title.endswith("inference")]
    present = [r.name for r in rivals.RIVALS if any(r.name in ratios for _, ratios in rows)]
    bars = [len(ratios) for _, ratios in rows]
    height = 0.22 * sum(bars) + 0.28 * len(rows) + 1.3
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for title, ratios in rows:
        first = place
        for name in present:
            if name not in ratios:
                continue
            slower = ratios[name]
            axes.barh(place, slower - 1, 0.9, left=1, color=COLOR[name], hatch=HATCH.get(name))
            axes.text(max(slower, 1) * 1.03, place, f"{slower:.1f}", va="center", fontsize=7)
            place += 1
        ticks.append(((first + place - 1) / 2, title))
        place += 1.2
    axes.axvline(1.0, color=BLACK, linewidth=1)
    axes.set_xscale("log")
    every = [1.0, *(ratio for _, ratios in rows for ratio in ratios.values())]
    axes.set_xlim(min(every) / 1.3, 1.6 * max(every))
    axes.set_yticks([at for at, _ in ticks], [title for _, title in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of the rival / time of NeuroSpike (line: as fast)")
    handles = [
        axes.barh(0, 0, color=COLOR[name], hatch=HATCH.get(name), label=name) for name in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(present), fontsize=8)
    _under(figure, cpu)
    return figure


def sweep(cpu: Mapping[str, Any]) -> Figure:
    """Lines: time of a training step against T and against N, the memory floor drawn in."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panels = figure.subplots(1, len(cpu["sweep"]), squeeze=False)[0]
    for axes, one in zip(panels, cpu["sweep"]):
        sizes = [row["case"].rpartition(" ")[2].split("x") for row in one["rows"]]
        varied = next(k for k in range(3) if len({size[k] for size in sizes}) > 1)
        at = [int(size[varied]) for size in sizes]
        others = " x ".join("TBN"[k] if k == varied else sizes[0][k] for k in range(3))
        for k, name in enumerate(one["rows"][0]["times"]):
            floor = name.startswith("copy")
            times = [row["times"][name]["ms_median"] for row in one["rows"]]
            axes.plot(
                at,
                times,
                color=GREY if floor else COLOR[name],
                linestyle=":" if floor else STYLES[k % 3],
                marker=None if floor else MARKERS[k % len(MARKERS)],
                markersize=4,
                label="memory floor: a copy of 20 B per neuron-step" if floor else name,
            )
        axes.set(xscale="log", yscale="log", xlabel=f"{'TBN'[varied]} ({others})")
        axes.set_ylabel("training step, ms")
        axes.grid(True, color="#e5e5e5", linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    _under(figure, cpu)
    return figure


def saved(cpu: Mapping[str, Any]) -> Figure:
    """Bars: bytes per neuron-step that are kept for the backward pass."""
    kept = cpu["saved"][0]["bytes_a_neuron_step"]
    figure = Figure(figsize=(8, 0.4 * len(kept) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, value) in enumerate(kept.items()):
        axes.barh(place, value, 0.7, color=COLOR[name])
        axes.text(value, place, f" {value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(kept)), list(kept), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(right=1.12 * max(kept.values()))
    axes.set_xlabel("bytes per neuron-step kept for the backward pass, the current included")
    _under(figure, cpu)
    return figure


def against_gpu(cpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> Figure:
    """Bars: milliseconds of a training step on the CPU and on the GPU, by case."""
    cases = gpu_report.against_cpu(cpu, gpu)
    kinds = list(dict.fromkeys(kind for times in cases.values() for kind in times))
    colors = dict(zip(kinds, COLORS))
    bars = sum(len(times) for times in cases.values())
    figure = Figure(figsize=(8, 0.24 * bars + 0.3 * len(cases) + 1.4), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for case, times in cases.items():
        first = place
        for kind, value in times.items():
            axes.barh(place, value, 0.9, color=colors[kind])
            axes.text(1.05 * value, place, f"{value:.3g} ms", va="center", fontsize=7)
            place += 1
        ticks.append(((first + place - 1) / 2, case))
        place += 1.2
    every = [value for times in cases.values() for value in times.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(every) / 3, 3 * max(every))
    axes.set_yticks([at for at, _ in ticks], [case for _, case in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("a training step, ms (less is better)")
    handles = [axes.barh(0, 0, color=colors[kind], label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(kinds), fontsize=8)
    _under_both(figure, cpu["machine"], gpu["machine"])
    return figure


def _under_both(figure: Figure, *machines: Mapping[str, Any]) -> None:
    texts = [f"{machine['device']}, commit {machine['commit']}" for machine in machines]
    figure.supxlabel("; ".join(texts), fontsize=8, color=GREY)
