"""What every section of a report says in the same words."""

from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "Not measured: `python -m benchmarks.{}` has left no results in benchmarks/results."


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return what figures must be read with, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['device']}, {machine['threads']} threads, allocator {machine['allocator']}, "
        f"{machine['system']}, Python {machine['python']}, {versions}, commit {machine['commit']}."
    )


def milliseconds(value: float) -> str:
    """Return a time in three figures, with its unit."""
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
