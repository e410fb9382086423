"""The checks of `benchmarks.gpu`, side by side in processes: one after another they take minutes.

What they compile stays in Triton's folder, so that nothing is left to compile when cases are timed.
"""

import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from . import rivals
from .device import Device
from .equivalence import Check, Skip, checks
from .gate import BUDGET, gate
from .timing import tensors

FORMATS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Outcome:
    """What became of a check: a gradient's distance, a reason to skip it, or an error."""

    name: str
    distance: float = 0.0
    skipped: str = ""
    error: str = ""


def every(device: Device, backend: str, cases: Sequence[str]) -> Iterator[Check]:
    """Yield all that is proved: the slowest to compile first, then each case that will be timed."""
    yield from checks(device, backend)
    for case in cases:
        for dtype in FORMATS:
            yield Check(
                f"{case} {name_of(dtype)}",
                lambda c=case, d=dtype: prove_case(device, backend, c, d),
            )


def prove_case(device: Device, backend: str, case: str, dtype: torch.dtype) -> float:
    """Compare a layer with the oracle, for both kinds of reset; the gradient's distance."""
    return prove_layer(backend, case, *on(device, dtype, case))


def prove_layer(backend: str, case: str, current: torch.Tensor, grad: torch.Tensor) -> float:
    """Do so on a current and its spikes' gradient that are there already."""
    dtype = current.dtype
    # In 16 bits a gradient is rounded to its format: a unit in its last place is the least that
    # two float32 values on either side of a rounding boundary differ by.
    budget = BUDGET if dtype == torch.float32 else torch.finfo(dtype).eps
    distances = []
    for delayed in (True, False):
        mine, oracle = (rivals.ours(b, reset_delay=delayed) for b in (backend, "reference"))
        distances.append(gate(case, mine, oracle, current, grad, budget=budget))
    rivals.inference(rivals.ours(backend), current)()
    return max(distances)


def on(device: Device, dtype: torch.dtype, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a case's current, to be differentiated, and its spikes' gradient on the device."""
    current, grad = tensors(case)
    return (
        current.detach().to(device.type, dtype).requires_grad_(),
        grad.to(device.type, dtype),
    )


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a number format, as "float32"."""
    return str(dtype).removeprefix("torch.")


def outcomes(
    device: Device, backend: str, cases: Sequence[str], processes: int, seconds: float
) -> Iterator[Outcome]:
    """Yield each check's outcome as it comes, for at most so many seconds.

    With less than two processes they run in this one.
    """
    names = [check.name for check in every(device, backend, cases)]
    run = partial(_outcome, device, backend, tuple(cases))
    end = time.perf_counter() + seconds
    if processes < 2:
        for name in names:
            if time.perf_counter() > end:
                return
            yield run(name)
        return
    # Started anew and not forked: CUDA cannot be used in a fork. Each with one thread: there are as
    # many of them as cores.
    started = multiprocessing.get_context("spawn")
    with started.Pool(processes, torch.set_num_threads, (1,)) as pool:
        found = pool.imap_unordered(run, names)
        for _ in names:
            try:
                yield found.next(timeout=max(0.0, end - time.perf_counter()))
            except multiprocessing.TimeoutError:
                return


def _outcome(device: Device, backend: str, cases: Sequence[str], name: str) -> Outcome:
    check = next(check for check in every(device, backend, cases) if check.name == name)
    try:
        return Outcome(name, check.run())
    except Skip as reason:
        return Outcome(name, skipped=str(reason))
    # One broken check must not cost the results of the others.
    except Exception:  # noqa: BLE001
        return Outcome(name, error=traceback.format_exc())
