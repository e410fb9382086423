"""The sections of the docs on event-driven layers, from `events.json`."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .report_lines import NOT_MEASURED, machine_line

Row = Mapping[str, Any]
CODING = re.compile(r"(\w+)-coded MNIST")
OURS, DENSE, THEIRS = "ours, events", "ours, dense", "snntorch"


def networks(events: Mapping[str, Any] | None) -> str:
    """Return the section on networks: whole steps, epochs, the way to 97% and memory."""
    if events is None or "step" not in events:
        return NOT_MEASURED.format("events step")
    epochs = events.get("epoch", {"cases": []})
    lines = [
        "| 784-1000-10, T=25, batch 128 | snnTorch's loop | our dense product | event-driven |",
        "|---|--:|--:|--:|",
    ]
    for case in events["step"]["cases"]:
        coding = CODING.search(case["case"])[1]
        cells = [f"{case['times'][name]['ms_median']:.1f} ms" for name in (THEIRS, DENSE)]
        ratios = (case["ratios"][f"{name} / {OURS}"] for name in (THEIRS, DENSE))
        cells = [f"{cell} ({ratio:.1f}x)" for cell, ratio in zip(cells, ratios)]
        cells.append(f"{case['times'][OURS]['ms_median']:.1f} ms")
        active = f"{case['active_inputs']:.1%} of inputs active"
        lines.append(f"| {coding} coding ({active}), a training step | {' | '.join(cells)} |")
        found = {
            row["case"].split(", ", 2)[2]: row for row in epochs["cases"] if coding in row["case"]
        }
        if found:
            lines += _epochs(coding, [found[name] for name in (THEIRS, DENSE, OURS)])
    return "\n".join([*lines, "", _measured(events, "step", "epoch")])


def _epochs(coding: str, rows: Sequence[Row]) -> list[str]:
    seconds = [f"{statistics.mean(row['seconds_an_epoch']):.1f} s" for row in rows]
    goals = [
        f"not in {len(row['seconds_an_epoch'])} epochs ({row['test_accuracy']:.2%})"
        if row["seconds_to_97"] is None
        else f"{row['seconds_to_97']:.0f} s"
        for row in rows
    ]
    memory = [f"{row['peak_mb']:.0f} MB" for row in rows]
    return [
        f"| {coding} coding, {what} | {' | '.join(cells)} |"
        for what, cells in (
            ("an epoch", seconds),
            ("training to 97% of the test pictures", goals),
            ("peak memory above rest", memory),
        )
    ]


def layers(events: Mapping[str, Any] | None) -> str:
    """Return the docs' section: one layer by width and density, convolutions, windows."""
    if events is None or "sweep" not in events:
        return NOT_MEASURED.format("events")
    cases = [_place(case) for case in events["sweep"]["cases"]]
    densities = list(dict.fromkeys(density for _, density, _ in cases))
    lines = [
        "How many times as fast as `nn.Linear` a training step of one layer (forward and weight "
        "gradient) is, by its inputs, as many outputs, and the share of inputs that are active:",
        "",
        f"| width | {' | '.join(densities)} |",
        "|--:|" + "--:|" * len(densities),
    ]
    ratios = {(width, density): ratio for width, density, ratio in cases}
    for width in dict.fromkeys(width for width, _, _ in cases):
        cells = (f"{ratios[width, density]:.2f}" for density in densities)
        lines.append(f"| {width} | {' | '.join(cells)} |")
    if "conv" in events:
        lines += [
            "",
            "Convolutions of the spikes of 32 pictures, T=25, forward: how many times as long as "
            "torch's they take.",
            "",
            "| convolution | laid out and summed | the sums alone |",
            "|---|--:|--:|",
        ]
        for case in events["conv"]["cases"]:
            times = [
                f"{1 / case['ratios'][f'torch / {name}']:.1f}"
                for name in ("patches and events", "sums over events")
            ]
            title = case["case"].removesuffix(", forward")
            lines.append(f"| {title} | {' | '.join(times)} |")
    if "window" in events:
        lines += [
            "",
            "An epoch of rate-coded MNIST with `grad_window`:",
            "",
            "| window | test accuracy | gradients of currents that are 0 | time |",
            "|---|--:|--:|--:|",
        ]
        for case in events["window"]["cases"]:
            width = case["case"].rpartition("=")[2]
            zero = f"{case['gradients_of_currents_that_are_0']:.0%}"
            lines.append(
                f"| {width} | {case['test_accuracy']:.2%} | {zero} "
                f"| {case['seconds_an_epoch']:.1f} s |"
            )
    return "\n".join([*lines, "", _measured(events, "sweep", "conv", "window")])


def _measured(events: Mapping[str, Any], *parts: str) -> str:
    """Return on what each part was measured: all of the first, of others what is not the same."""
    first, *others = (part for part in parts if part in events)
    machine = events[first]["machine"]
    text = f"Measured on {machine_line(machine)} `python -m benchmarks.events {first}`"
    for part in others:
        other = events[part]["machine"]
        same = {**machine, "commit": None} == {**other, "commit": None}
        place = f"the same, commit {other['commit']}." if same else machine_line(other)
        text += f"; `{part}`: {place.rstrip('.')}"
    return text + "."


def _place(case: Row) -> tuple[int, str, float]:
    """Return width, density and how many times as fast a layer of the sweep is."""
    width = int(re.search(r", (\d+) to", case["case"])[1])
    density = float(re.search(r"([\d.]+)% active", case["case"])[1])
    return width, f"{density:g}%", case["ratios"]["nn.Linear / spike_linear"]
