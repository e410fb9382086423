"""Shared fixtures: memory never written shows as NaN, and every test starts from the same state."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: no test sees a GPU, so that all do the same on every machine. The tests
# in on_cuda.py get the devices named here, in a process of their own (test_triton.py).
if "NEUROSPIKE_TEST_DEVICES" not in os.environ:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    os.environ.update(NEUROSPIKE_TEST_DEVICES=hidden, CUDA_VISIBLE_DEVICES="")

import pytest
import torch

import neurospike as ns
from neurospike import ops
from neurospike.backend import dispatch

WORKERS = 4  # at most: each holds torch and its compiled kernels in memory

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with more threads than cores, threads would wait for one another.
    # The variable is for the commands that tests run.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Shells ignore Ctrl-C for jobs in the background; commands that tests stop would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes share the tests: one per core, at most `WORKERS`."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return min(WORKERS, len(cores))


@pytest.fixture(autouse=True)
def _start_alike() -> Iterator[None]:
    """Reset seed, caches and folder: no test depends on those before it in the same process."""
    torch.manual_seed(0)
    dispatch.forget()
    ops.forget()
    folder = Path.cwd()
    yield
    os.chdir(folder)


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that an output left unwritten is seen.

    This applies to every test that is not marked `unpoisoned("the reason")`.
    """
    if not request.node.get_closest_marker("unpoisoned"):
        torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _plans_fit_their_arrays() -> None:
    """Fail if a job is run on arrays of other sizes than planned: it would write out of bounds."""
    job = dispatch.load(".kernels.cpu._job")
    run = job.Plan.run

    def checked(plan: Any, arrays: Sequence[torch.Tensor | None]) -> Any:
        sizes = [0 if one is None else one.numel() for one in arrays]
        assert sizes == [*plan.job[job.HEAD + 1 :: 2]][:-1]
        return run(plan, arrays)

    job.Plan.run = checked


def usable_backends() -> list[str]:
    """Return the backends that run here."""
    return [name for name, why_not in ns.backends().items() if why_not is None]


@pytest.fixture(params=usable_backends())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs here, in turn."""
    return request.param


def fused_backends() -> list[str]:
    """Return the backends that run here and are one operator over the whole sequence."""
    return [name for name in usable_backends() if dispatch.TABLE[name].fused]


@pytest.fixture(params=fused_backends())
def fused(request: pytest.FixtureRequest) -> str:
    """Each fused backend that runs here, in turn."""
    return request.param


def device_of(backend: str) -> str:
    """Return a type of device that the backend runs on, the CPU if it can."""
    types = dispatch.TABLE[backend].device_types
    return "cpu" if not types or "cpu" in types else types[0]
