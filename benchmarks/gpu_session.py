"""A run of `benchmarks.gpu`: how long it may take, what it found, and what that must reach."""

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .device import Device
from .timing import Timing

CASES = ("25x32x256", "25x128x1000", "100x128x1000", "100x128x8192", "32x64x65536")
NETWORK = (784, 1000, 10)
HOST = "25x32x256"
USES = ("forward", "backward", "inference")  # of a layer's kernels
Row = dict[str, Any]


def share_of_copy(use: str) -> str:
    """Return what a share of a copy's speed is called."""
    return f"share of copy, kernels, {use}"


@dataclass(frozen=True)
class Floor:
    """What a figure must reach: at least so much, or at most so much where less is better."""

    case: str
    figure: str
    bound: float
    at_most: bool = False

    def reached(self, found: float) -> bool:
        """Whether a figure is on the right side."""
        return found <= self.bound if self.at_most else found >= self.bound

    def wanted(self) -> str:
        """Return what is wanted, in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"


KERNELS = {  # shares of a copy's speed that kernels alone must reach: forward, backward, inference
    "100x128x8192 float32": (0.88, 0.90, 0.92),
    "100x128x8192 bfloat16": (0.80, 0.85, 0.90),
    "25x128x1000 float32": (0.9, 0.9, 0.9),
    "25x128x1000 bfloat16": (0.9, 0.9, 0.9),
}
FLOORS = (
    Floor("host 25x32x256", "forward and backward / torch.relu", 2.5, at_most=True),
    Floor("25x128x1000 float32", "snntorch loop / ours, training", 60.0),
    Floor("32x64x65536 bfloat16", "spikingjelly / ours, training", 1.5),
    *(
        Floor(case, share_of_copy(use), least)
        for case, shares in KERNELS.items()
        for use, least in zip(USES, shares)
    ),
    Floor("784-1000-10", "snntorch / ours without a graph", 25.0),
    Floor("784-1000-10", "snntorch / ours", 200.0),
    Floor("training on mnist", "seconds per epoch", 0.15, at_most=True),
)


@dataclass
class Session:
    """A run: where it computes, how long it may take, and what it found.

    Attributes:
        host: the small layer whose calls' time on the host is measured.
        network: inputs, hidden and output neurons of the whole network; `steps` and `batch` of it.
        epochs: of the training run.
        processes: for the checks.
        out: folder for the results, written after every part.
    """

    device: Device = field(default_factory=Device)
    backend: str = "triton"
    cases: Sequence[str] = CASES
    host: str = HOST
    network: tuple[int, int, int] = NETWORK
    steps: int = 25
    batch: int = 128
    epochs: int = 10
    processes: int = field(default_factory=lambda: max(1, min(15, (os.cpu_count() or 1) - 1)))
    seconds: float = 1.0  # spent timing a case
    limit: float = 300.0  # after which no new case is begun
    checks_limit: float = 70.0  # after which the proofs that are not done are left out
    checks: bool = True  # whether the proofs are run; each case is proved before it is timed anyway
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

    def tell(
        self, case: str, found: Mapping[str, Timing], ratios: Mapping[str, float], **more: Any
    ) -> Row:
        """Say and keep a case: its times, their ratios and what else is known of it."""
        self.say(case)
        for name, timing in found.items():
            low, high = 1e3 * timing.quantile(0.2), 1e3 * timing.quantile(0.8)
            self.say(f"  {name:36} {1e3 * timing.median:10.4f} ms  ({low:.4f} to {high:.4f})")
        for name, ratio in ratios.items():
            self.say(f"  {name:36} {ratio:10.3f}")
        for name, value in more.items():
            self.say(f"  {name}: {value}")
        times = {name: timing.record() for name, timing in found.items()}
        row = {"case": case, "times": times, "ratios": dict(ratios), **more}
        self.add("cases", row)
        return row

    def guard(self, part: str, run: Callable[[], object], least: float = 0.0) -> None:
        """Do a part that needs so many seconds; an error is told and kept, and the rest goes on."""
        if not self.has_time(part, least):
            return
        try:
            run()
        # One broken rival or a device too small for a case must not cost the others' results.
        except Exception:  # noqa: BLE001
            self.fail(part, traceback.format_exc())

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

    def has_time(self, part: str, least: float = 0.0) -> bool:
        """Whether another case may begin, which needs so many seconds; says so if not."""
        enough = self.left() >= least
        if not enough:
            self.leave_out(part)
        return enough

    def leave_out(self, part: str) -> None:
        """Say and keep that there was no time for a part."""
        self.say(f"{part}: left out for lack of time, {self.limit - self.left():.0f} s have passed")
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
    lists = (part for part in session.results.values() if isinstance(part, list))
    rows = [row for part in lists for row in part if "ratios" in row]
    figures = {row["case"]: {**row["ratios"], **row.get("figures", {})} for row in rows}
    below = []
    for floor in FLOORS:
        found = figures.get(floor.case, {}).get(floor.figure)
        reached = found is not None and floor.reached(found)
        value = "not measured" if found is None else f"{found:.3g}"
        word = "reached" if reached else "MISSED "
        session.say(f"  {word} {floor.case}: {floor.figure} {value}, {floor.wanted()}")
        if not reached:
            below.append(floor)
    return below
