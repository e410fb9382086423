"""What `mkdocs build` writes into pages that would go stale if it were written by hand.

A page says where with a line of its own, `<!-- generated: NAME -->`; `GENERATED` has the names.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neurospike.config import fields

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def configuration() -> Iterator[str]:
    """Every key of the configuration: what it means, what is allowed, its default."""
    section = None
    for key, meaning, allowed, default in fields():
        found = key.rpartition(".")[0]
        if found != section:
            section = found
            yield f"\n## {section or 'The run'}\n"
            yield "| key | meaning | allowed | default |\n|---|---|---|---|"
        shown = default if isinstance(default, str) else json.dumps(default)
        yield f"| `{key}` | {_cell(meaning)} | {_cell(allowed)} | `{shown}` |"


def accuracy() -> Iterator[str]:
    """What training by each file of `configs/` came to."""
    yield "| configuration | test accuracy | epochs | training | seed |"
    yield "|---|---|---|---|---|"
    rows = json.loads((RESULTS / "mnist_accuracy.json").read_text(encoding="utf-8"))
    for name, row in rows.items():
        file = "config.yaml" if name == "default" else f"configs/{name}.yaml"
        yield (
            f"| `{file}` | {row['test_accuracy']:.2%} | {row['epochs']} | "
            f"{row['training_seconds'] / 60:.1f} min on {row['cpus']} cores, {row['backend']} | "
            f"{row['seed']} |"
        )


def depth() -> Iterator[str]:
    """What twenty blocks came to with each shortcut."""
    stored = json.loads((RESULTS / "depth.json").read_text(encoding="utf-8"))
    yield (
        "| shortcut | test accuracy | loss, first and last epoch | "
        "spikes of a block, least and most | gradient of a block, least and most |"
    )
    yield "|---|---|---|---|---|"
    for name, found in stored["networks"].items():
        after, losses = found["after_training"], found["loss_by_epoch"]
        rates, norms = after["spike_rates"], after["gradient_norms"]
        yield (
            f"| {name} | {found['test_accuracy']:.1%} | {losses[0]:.2f}, {losses[-1]:.2f} | "
            f"{min(rates):.3f}, {max(rates):.3f} | {min(norms):.2g}, {max(norms):.2g} |"
        )


def pictures() -> Iterator[str]:
    """How many digits were recognised on each kind of picture."""
    stored = json.loads((RESULTS / "pictures.json").read_text(encoding="utf-8"))
    yield f"| picture | right of {stored['digits']} |"
    yield "|---|--:|"
    for kind in stored["kinds"].values():
        yield f"| {_cell(kind['about'])} | {kind['right']} |"


def measurements() -> Iterator[str]:
    """Of `benchmarks/README.md`, if it is there, all but its title."""
    path = ROOT / "benchmarks" / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(r"\A# .*\n", "", text)
    # What lies outside docs/ is no page of the site: its name instead of a link.
    text = re.sub(r"\[([^\]]+)\]\((?!https?:|\.\./docs/|#)([^)]+)\)", r"\1 (`benchmarks/\2`)", text)
    yield from text.replace("](../docs/", "](").splitlines()


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    one.__name__: one for one in (configuration, accuracy, depth, pictures, measurements)
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts where a page asks for them."""
    for name, lines in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(lines()))
    return markdown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
