"""Did it get slower? `python -m benchmarks.compare BASE`.

Measures the commit BASE and this checkout as it stands, in turn: a process for each, asked by a
pipe to run the same cases, so that a busy moment of the machine hits both. One pair of processes of
the same commit differed by 7% throughout, so several pairs are measured. Prints for each case the
median of the ratios here / BASE with an interval that holds it with 95% (bootstrap over whole pairs
of processes), and what differs beyond noise. Exit code 1 if a case is slower than `--threshold` and
the interval agrees.
"""

import argparse
import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .compare_worker import CASES

HERE = Path(__file__).parents[1]
PAUSE = 2e-3  # seconds in which the threads of the side that just ran come to rest
RESAMPLED = 2000


@dataclass(frozen=True)
class Comparison:
    """Seconds of a case in each round: `base` and `here` in turn, `each` by a pair of processes."""

    case: str
    base: tuple[float, ...]
    here: tuple[float, ...]
    each: int = 1

    @property
    def ratios(self) -> list[float]:
        """Time here over time there, round by round."""
        return [h / b for h, b in zip(self.here, self.base)]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def interval(self) -> tuple[float, float]:
        """Return where the median lies with 95%, from pairs of processes drawn again and again."""
        drawn = random.Random(0)
        ratios = self.ratios
        pairs = [ratios[k : k + self.each] for k in range(0, len(ratios), self.each)]
        medians = sorted(
            statistics.median(itertools.chain.from_iterable(drawn.choices(pairs, k=len(pairs))))
            for _ in range(RESAMPLED)
        )
        return medians[RESAMPLED // 40], medians[-RESAMPLED // 40 - 1]

    def verdict(self, threshold: float) -> str:
        """Return "slower", "faster", "same", or "slower, within the threshold"."""
        low, high = self.interval()
        if low <= 1.0 <= high:
            return "same"
        if high < 1.0:
            return "faster"
        return "slower" if self.ratio > threshold else "slower, within the threshold"


class Side:
    """A process that imports neurospike from a folder and runs cases when it is told to."""

    def __init__(self, folder: Path, backend: str, threads: int) -> None:
        """Start it, and wait until it has imported `neurospike` from that folder."""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "benchmarks/compare_worker.py"), backend, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        found = Path(self.ask("where"))
        if found.resolve() != (folder / "neurospike").resolve():
            self.close()
            raise SystemExit(f"error: wanted neurospike of {folder}, got that of {found}")

    def ask(self, line: str) -> str:
        """Send a line, return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"error: the process that was to answer {line!r} ended; see above why")
        return answer.strip()

    def seconds(self, case: str, repeats: int) -> float:
        """Return the seconds a call of `case` took, over so many."""
        return float(self.ask(f"{case} {repeats}"))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> "Side":
        """Use it in a `with`."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()


@contextlib.contextmanager
def checkout(base: str) -> Iterator[Path]:
    """Yield a folder with the files of a commit; it is gone afterwards."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:]
            raise SystemExit(f"error: git {' '.join(words)}: {' '.join(said)}")
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", f"{base}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "base"
        git("worktree", "add", "--quiet", "--detach", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def measure(base: Side, here: Side, case: str, rounds: int, finest: float) -> Comparison:
    """Time a case on both sides in turn, the order turning too; a sample lasts `finest` seconds."""
    sides = [base, here]
    for side in sides:
        side.seconds(case, 1)  # compiles
    repeats = max(1, int(finest / max(1e-9, min(side.seconds(case, 1) for side in sides))))
    for side in sides:
        side.seconds(case, repeats)  # warm, as in a training loop
    found: dict[Side, list[float]] = {base: [], here: []}
    for _ in range(rounds):
        for side in sides:
            time.sleep(PAUSE)
            found[side].append(side.seconds(case, repeats))
        sides.reverse()
    return Comparison(case, tuple(found[base]), tuple(found[here]), rounds)


def joined(parts: Sequence[Comparison]) -> Comparison:
    """Return what several pairs of processes measured of one case."""
    base, here = (
        tuple(itertools.chain.from_iterable(getattr(one, side) for one in parts))
        for side in ("base", "here")
    )
    return Comparison(parts[0].case, base, here, parts[0].each)


def report(comparisons: Sequence[Comparison], threshold: float) -> int:
    """Print a line a case and what differs; 1 if one is slower, else 0."""
    print(f"{'case':34} {'base':>10} {'here':>10} {'ratio':>7}  95% of the medians")
    verdicts = {}
    for one in comparisons:
        base, here = (1e3 * statistics.median(times) for times in (one.base, one.here))
        low, high = one.interval()
        verdicts[one.case] = one.verdict(threshold)
        print(
            f"{one.case:34} {base:7.3f} ms {here:7.3f} ms {one.ratio:7.3f}  "
            f"{low:.3f} to {high:.3f}  {verdicts[one.case]}"
        )
    slower = [case for case, verdict in verdicts.items() if verdict == "slower"]
    beyond = [case for case, verdict in verdicts.items() if verdict != "same"]
    print(f"beyond noise: {', '.join(beyond) or 'nothing'}")
    print(f"slower by more than {threshold - 1:.0%}: {', '.join(slower) or 'nothing'}")
    return 1 if slower else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("base", metavar="BASE", help="a commit, as git names them: main, HEAD~3")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of samples per case, of each")
    parser.add_argument("--processes", type=int, default=8, help="pairs of processes, one by one")
    parser.add_argument("--finest", type=float, default=0.05, help="seconds that a sample lasts")
    parser.add_argument("--threshold", type=float, default=1.05, help="ratio that is too slow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="auto", help="of every layer, on both sides")
    parser.epilog = "cases: " + "; ".join(CASES)
    options = parser.parse_args(argv)
    parts: dict[str, list[Comparison]] = {case: [] for case in options.cases}
    with checkout(options.base) as folder:
        for pair in range(options.processes):
            with (
                Side(folder, options.backend, options.threads) as base,
                Side(HERE, options.backend, options.threads) as here,
            ):
                for case, found in parts.items():
                    found.append(measure(base, here, case, options.rounds, options.finest))
            ratios = ", ".join(f"{case} {found[-1].ratio:.3f}" for case, found in parts.items())
            print(f"  {pair + 1} of {options.processes}: {ratios}", file=sys.stderr, flush=True)
    return report([joined(found) for found in parts.values()], options.threshold)


if __name__ == "__main__":
    raise SystemExit(main())
