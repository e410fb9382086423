"""Time rivals side by side in one process, and say on what machine.

Absolute times differ from machine to machine and from minute to minute; ratios of runs that
alternate in one process are stable. So rivals take turns, the order turns too, and what is
reported is the median with its spread, and the median of the ratios within each round.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = (
    "neurospike",
    "torch",
    "numba",
    "triton",
    "snntorch",
    "spikingjelly",
    "norse",
    "spyx",
    "jax",
)


@dataclass(frozen=True)
class Timing:
    """Seconds a call took in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return statistics.median(self.rounds)

    def quantile(self, share: float) -> float:
        """Return the time that `share` of the rounds stayed below, in seconds."""
        ordered = sorted(self.rounds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def over(self, other: "Timing") -> float:
        """Return how many times as long as `other` it took: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds))

    def record(self) -> dict[str, float]:
        """Return milliseconds for a results file."""
        return {
            "ms_p20": 1e3 * self.quantile(0.2),
            "ms_median": 1e3 * self.median,
            "ms_p80": 1e3 * self.quantile(0.8),
            "rounds": len(self.rounds),
        }


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 4.0,
    least: int = 7,
    most: int = 400,
    finest: float = 20e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each rival in turn, round after round.

    Args:
        rivals: what to call, by name. Each is called twice before anything is timed.
        seconds: how long to go on, once there are `least` rounds.
        least: at least so many rounds.
        most: at most so many rounds.
        finest: a sample lasts at least about this many seconds; a faster call is repeated in it,
            so that it is timed as it runs in a training loop and not as the first after a rival.
        clock: in seconds; `time.process_time` counts this process's work alone, all its threads
            added up, where others share the machine.
    """
    repeats = {}
    for name, call in rivals.items():
        call()
        synchronize()
        repeats[name] = max(1, int(finest / max(_sample(call, 1, clock), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    order = list(rivals)
    end = time.perf_counter() + seconds
    done = 0
    while done < least or (done < most and time.perf_counter() < end):
        for name in order:
            samples[name].append(_sample(rivals[name], repeats[name], clock))
        order = order[1:] + order[:1]
        done += 1
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _sample(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    synchronize()
    return (clock() - start) / repeats


def tensors(case: str) -> tuple[Tensor, Tensor]:
    """Return a current `[T, B, N]` that makes some neurons fire, and its spikes' gradient.

    `case` is "TxBxN", as in "25x32x256".
    """
    steps, batch, neurons = map(int, case.split("x"))
    generator = torch.Generator().manual_seed(0)
    current = 0.5 * torch.randn(steps, batch, neurons, generator=generator)
    return current.requires_grad_(), torch.randn(current.shape, generator=generator)


def copy_bandwidth(size_bytes: int, device: str = "cpu") -> Callable[[], object]:
    """Return a copy that moves `size_bytes` in all (half read, half written): the memory floor."""
    source = torch.rand(max(1, size_bytes // 8), device=device)
    target = torch.empty_like(source).copy_(source)
    return lambda: target.copy_(source)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what a figure must be read with: device, versions, threads, allocator, commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "threads": torch.get_num_threads(),
        "allocator": _allocator(),
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown CPU"
    return f"{name}, {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return sys.modules["neurospike"].__version__ if package == "neurospike" else None


def _allocator() -> str:
    preloaded = os.environ.get("LD_PRELOAD", "")
    tuned = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("MALLOC_")]
    return " ".join([Path(preloaded).name or "the C library's", *tuned])


def _commit() -> str:
    """Return the commit, marked if tracked files differ from it, other than stored results."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "-uno", "--", ":/", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "-dirty" * bool(changed)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return done.stdout.strip()
