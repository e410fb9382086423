"""What a person sees of a run: a bar while an epoch runs, a line when it is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .metrics import Metrics

OnStep = Callable[[int, Metrics], None]


@contextmanager
def progress_bar(title: str, steps: int | None) -> Iterator[OnStep | None]:
    """Show a bar on stderr if that is a terminal; yield a function to call with steps and metrics.

    Yields None where there is no terminal or no tqdm. steps: of the epoch; None where their number
    is not known.
    """
    if sys.stderr is None or not sys.stderr.isatty():  # None: a program without a terminal
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=steps, desc=title, unit="step", leave=False) as bar:

        def show(step: int, metrics: Metrics) -> None:
            parts = [f"loss {metrics.loss:.4f}", f"{metrics.samples_per_second:,.0f} samples/s"]
            if metrics.accuracy is not None:
                parts.insert(1, f"accuracy {metrics.accuracy:.2%}")
            bar.set_postfix_str(", ".join(parts), refresh=False)
            bar.update(step - bar.n)

        yield show


def measured(trained: Metrics, checked: Metrics | None) -> dict[str, Any]:
    """Return what a record of `metrics.jsonl` says of the training and the validation after it."""
    layers = checked.activity if checked is not None else {}
    own = {"metrics": checked.own} if checked is not None and checked.own else {}
    return {
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "validation_loss": checked.loss if checked is not None else None,
        "validation_accuracy": checked.accuracy if checked is not None else None,
        "seconds": trained.seconds,
        "samples_per_second": trained.samples_per_second,
        "spike_rates": {name: layer.rate for name, layer in layers.items()},
        "dead_neurons": {name: layer.dead for name, layer in layers.items()},
        "saturated_neurons": {name: layer.saturated for name, layer in layers.items()},
        **own,
    }


def epoch_line(record: dict[str, Any], epochs: int, is_best: bool) -> str:
    """Return the line that is printed for a record of `metrics.jsonl`."""
    parts = [
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}",
        _told("train", record),
    ]
    if record["kind"] == "step":
        parts[0] += f" step {record['step']}"
    if record["validation_loss"] is not None:
        parts.append(_told("validation", record))
        for name, value in record.get("metrics", {}).items():
            parts[-1] += f" {name} {value:.4g}" if isinstance(value, float) else f" {name} {value}"
    parts.append(f"{record['seconds']:.1f} s, {record['samples_per_second']:,.0f} samples/s")
    if is_best and record["validation_loss"] is not None:
        parts.append("best so far")
    return " | ".join(parts)


def _told(part: str, record: dict[str, Any]) -> str:
    accuracy = record[f"{part}_accuracy"]
    told = f"{part} loss {record[f'{part}_loss']:.4f}"
    return told if accuracy is None else f"{told} accuracy {accuracy:.2%}"
