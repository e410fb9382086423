"""What is said of a GPU, and the picture of CPU against GPU; nothing is measured here."""

from collections.abc import Iterator, Mapping
from typing import Any

from .gpu_session import USES, share_of_copy
from .report_lines import machine_line, milliseconds

Results = Mapping[str, Any]
NONE = "On a GPU: not measured."
WITH_GRAPH = "as one CUDA graph"


def section(gpu: Results | None) -> str:
    """Return the section on a GPU."""
    if gpu is None:
        return NONE
    lines = [
        "On a GPU. Kernels alone are timed between events and set beside a copy of as many bytes "
        "as they must move; the rest is wall time.",
        "",
        table(gpu),
        "",
        *(f"- {line}" for line in beside(gpu)),
        "",
        f"Measured on {machine_line(gpu['machine'])} `python -m benchmarks.gpu --out DIR`",
    ]
    return "\n".join(lines)


def table(gpu: Results) -> str:
    """Return a row per layer and network: time of a training step, shares of a copy, rivals."""
    lines = [
        "| | a training step | kernels alone, copy's time / theirs: " + ", ".join(USES) + " | "
        "how many times as long others take | memory |",
        "|---|--:|---|---|--:|",
    ]
    for title, name, row, others in rows(gpu):
        shares = [row["ratios"].get(share_of_copy(use)) for use in USES]
        cells = (
            title,
            milliseconds(row["times"][name]["ms_median"]),
            ", ".join(f"{share:.2f}" for share in shares if share is not None),
            ", ".join(f"{other} {ratio:.1f}x" for other, ratio in others.items()),
            _megabytes(row.get("peak_mb", {}).get(name)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows(gpu: Results) -> Iterator[tuple[str, str, Results, dict[str, float]]]:
    """Yield a title, what our time is called, the case, and how many times as long others take."""
    for row in gpu.get("cases", ()):
        times, ratios, case = row["times"], row["ratios"], row["case"]
        if case.endswith("compiled rival"):
            continue
        if "ours, training" in times:
            end = " / ours, training"
            found = {n.removesuffix(end): r for n, r in ratios.items() if n.endswith(end)}
            yield case, "ours, training", row, found | _compiled(gpu, case)
        elif "ours, CUDA graph" in times:
            plain = {"snntorch": ratios["snntorch / ours without a graph"]}
            yield f"whole step {case}", "ours", row, plain
            graph = {"snntorch": ratios["snntorch / ours"]}
            yield f"whole step {case} {WITH_GRAPH}", "ours, CUDA graph", row, graph


def _compiled(gpu: Results, case: str) -> dict[str, float]:
    """Return the ratios of the rival that torch.compile takes minutes for, measured at last."""
    name = "snntorch compiled"
    for row in gpu["cases"]:
        ratio = row["ratios"].get(f"{name} / ours, training")
        if row["case"] == f"{case}, compiled rival" and ratio is not None:
            return {name: ratio}
    return {}


def beside(gpu: Results) -> Iterator[str]:
    """Yield what stands below the table, a line each."""
    for row in gpu.get("cases", ()):
        if row["case"].startswith("host "):
            ratios = row["ratios"]
            yield (
                f"What the host needs for a layer of {row['case'].removeprefix('host ')}: forward "
                f"and backward {ratios['forward and backward / torch.relu']:.1f} times as long as "
                f"`torch.relu`'s, inference {ratios['inference / torch.relu']:.1f} times."
            )
        if row["case"].startswith("two layers "):
            faster = [
                f"{ratio:.2f} times as fast {_under(name)} ({_seconds(row, name)} to compile, "
                f"warnings: {len(row['warnings'].get(name, ()))})"
                for name in row["compile_seconds"]
                if (ratio := row["ratios"].get(f"ours / {name}")) is not None
            ]
            if faster:
                yield f"An `ns.Sequential` of {row['case']}: {', '.join(faster)}."
    for row in gpu.get("training run", ()):
        each = row["figures"]["seconds per epoch"]
        yield f"{row['case'].capitalize()}: {each:.3g} s per epoch, {row['accuracy']}."
    if settings := gpu.get("settings"):
        tf32 = settings["torch.backends.cuda.matmul.allow_tf32"] == "True"
        yield (
            f"TF32 in products of matrices: {'on' if tf32 else 'off'}, which is torch's default; "
            f"SpikingJelly in {settings['spikingjelly']}."
        )


def _under(name: str) -> str:
    mode = "" if name == "compiled" else f'(mode="{name}")'
    return f"under `torch.compile{mode}`"


def _seconds(row: Results, name: str) -> str:
    return f"{row['compile_seconds'][name]:.0f} s"


def _megabytes(value: float | None) -> str:
    return f"{value:,.0f} MB" if value else ""  # a graph has its own memory


def against_cpu(cpu: Results, gpu: Results) -> dict[str, dict[str, float]]:
    """Return milliseconds of a training step by case, and within it by device and format.

    What was measured on one of the two only is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for row in cpu.get("layer", ()):
        case = row["case"].removeprefix("layer ")
        found[f"layer {case}"] = {"CPU, float32": row["times"]["numba, training"]["ms_median"]}
    for row in cpu.get("network", ()):
        case = row["case"].partition(",")[0].removeprefix("network ")
        found[f"network {case}"] = {"CPU, float32": row["times"]["numba"]["ms_median"]}
    for title, name, row, _ in rows(gpu):
        case, _, rest = title.removeprefix("whole step ").partition(" ")
        kind = f"GPU, {rest or 'float32'}"
        if rest == WITH_GRAPH:
            kind = f"GPU, float32 {WITH_GRAPH}"
        group = f"{'network' if title.startswith('whole') else 'layer'} {case}"
        if group in found:
            found[group][kind] = row["times"][name]["ms_median"]
    return {case: times for case, times in found.items() if len(times) > 1}
