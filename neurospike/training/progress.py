"""What a person sees of a run: a bar while an epoch runs, a line when it is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .metrics import Metrics

OnStep = Callable[[int, Metrics], None]


@contextmanager
def progress_bar(title: str, steps: int) -> Iterator[OnStep | None]:
    """A bar on stderr if that is a terminal; gives what to call with steps done and metrics.

    Without tqdm there is none: training needs no bar.
    """
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=steps, desc=title, unit="step", leave=False) as bar:

        def show(step: int, metrics: Metrics) -> None:
            bar.set_postfix_str(
                f"loss {metrics.loss:.4f}, accuracy {metrics.accuracy:.2%}, "
                f"{metrics.samples_per_second:,.0f} samples/s",
                refresh=False,
            )
            bar.update(step - bar.n)

        yield show


def measured(trained: Metrics, checked: Metrics | None) -> dict[str, Any]:
    """What a record of `metrics.jsonl` says of the training and of the validation after it."""
    layers = checked.activity if checked is not None else {}
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
    }


def summary(tested: Metrics) -> dict[str, Any]:
    """What the record of a test says."""
    layers = tested.activity
    return {
        "loss": tested.loss,
        "accuracy": tested.accuracy,
        "class_accuracy": tested.class_accuracy,
        "confusion": tested.confusion,
        "spike_rates": tested.spike_rates,
        "dead_neurons": {name: layer.dead for name, layer in layers.items()},
        "saturated_neurons": {name: layer.saturated for name, layer in layers.items()},
        "seconds": tested.seconds,
        "samples_per_second": tested.samples_per_second,
    }


def epoch_line(record: dict[str, Any], epochs: int, is_best: bool) -> str:
    """The line of a record of `metrics.jsonl`."""
    parts = [
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.2%}",
    ]
    if record["kind"] == "step":
        parts[0] += f" step {record['step']}"
    if record["validation_loss"] is not None:
        parts.append(
            f"validation loss {record['validation_loss']:.4f} "
            f"accuracy {record['validation_accuracy']:.2%}"
        )
    parts.append(f"{record['seconds']:.1f} s, {record['samples_per_second']:,.0f} samples/s")
    if is_best and record["validation_loss"] is not None:
        parts.append("best so far")
    return " | ".join(parts)
