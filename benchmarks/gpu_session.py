"""A run of `benchmarks.gpu`: how long it may take, what it found, and what that must reach."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .device import Device

CASES = ("25x32x256", "25x128x1000", "100x128x1000", "100x128x8192", "32x64x65536")
NETWORK = (784, 1000, 10)
Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """What a figure must reach, and what it is a ratio of."""

    case: str
    ratio: str
    least: float


FLOORS = (
    *(
        Floor(f"100x128x8192 {dtype}", ratio, least)
        for dtype in ("float32", "bfloat16")
        for ratio, least in (("share of copy, training", 0.80), ("share of copy, inference", 0.85))
    ),
    Floor("25x128x1000 float32", "snntorch loop / ours, training", 30.0),
    Floor("32x64x65536 bfloat16", "spikingjelly / ours, training", 1.2),
    Floor("784-1000-10", "snntorch / ours", 20.0),
)


@dataclass
class Session:
    """A run: where it computes, how long it may take, and what it found.

    Attributes:
        network: inputs, hidden and output neurons of the whole network; `steps` and `batch` of it.
        epochs: of the training run.
        processes: for the checks.
        out: folder for the results, written after every part.
    """

    device: Device = field(default_factory=Device)
    backend: str = "triton"
    cases: Sequence[str] = CASES
    network: tuple[int, int, int] = NETWORK
    steps: int = 25
    batch: int = 128
    epochs: int = 10
    processes: int = field(default_factory=lambda: max(1, min(15, (os.cpu_count() or 1) - 1)))
    seconds: float = 1.5  # spent timing a case
    limit: float = 480.0  # after which no new case is begun
    out: Path | None = None
    lines: list[str] = field(default_factory=list)
    results: Row = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def say(self, line: str = "") -> None:
        """Print a line and keep it for the text table."""
        print(line, flush=True)
        self.lines.append(line)

    def add(self, part: str, row: Row) -> None:
        """Keep a row of the results, on disk too."""
        self.results.setdefault(part, []).append(row)
        self.save()

    def fail(self, part: str, error: str) -> None:
        """Tell and keep an error, the text that Python prints of it."""
        self.say(f"  FAILED {part}: {error.strip().splitlines()[-1]}")
        self.add("failed", {"part": part, "error": error})

    def save(self) -> None:
        """Write what there is: whoever ends the run has what it found."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        texts = {
            "gpu.json": json.dumps(self.results, indent=1),
            "gpu.txt": "\n".join(self.lines),
        }
        for name, text in texts.items():
            written = self.out / f"{name}.part"
            written.write_text(text + "\n", encoding="utf-8")
            written.replace(self.out / name)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (time.perf_counter() - self.began)

    def has_time(self, part: str) -> bool:
        """Whether another case may begin; says so if not."""
        if self.left() < 0:
            self.leave_out(part)
        return self.left() >= 0

    def leave_out(self, part: str) -> None:
        """Say and keep that there was no time for a part."""
        self.say(f"{part}: left out, {self.limit - self.left():.0f} s have passed")
        self.add("left out", {"part": part})


def finish(session: Session) -> int:
    """Compare with the floors, write both files; the exit code."""
    missed = [*_failed(session), *_below(session)]
    session.say(f"{session.limit - session.left():.0f} s in all")
    session.save()
    print(f"written to {session.out}")
    return 1 if missed else 0


def _failed(session: Session) -> list[str]:
    return [row["part"] for part in ("failed", "left out") for row in session.results.get(part, [])]


def _below(session: Session) -> list[Floor]:
    """Tell which floors were reached; return those that were not."""
    ratios = {row["case"]: row["ratios"] for row in session.results.get("cases", [])}
    below = []
    for floor in FLOORS:
        found = ratios.get(floor.case, {}).get(floor.ratio)
        reached = found is not None and found >= floor.least
        value = "not measured" if found is None else f"{found:.2f}"
        word = "reached" if reached else "MISSED "
        session.say(f"  {word} {floor.case}: {floor.ratio} {value}, at least {floor.least:g}")
        if not reached:
            below.append(floor)
    return below
