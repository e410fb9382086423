"""Shared fixtures: memory that was never written shows as NaN, seeds are fixed."""

from collections.abc import Iterator

import pytest
import torch

import neurospike as ns
from neurospike import dispatch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that an output left unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def usable_backends() -> list[str]:
    """Return the backends that run here."""
    return [name for name, why_not in ns.backends().items() if why_not is None]


@pytest.fixture(params=usable_backends())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs here, in turn."""
    return request.param


def fused_backends() -> list[str]:
    """Return those of them that are one operator over the whole sequence."""
    return [name for name in usable_backends() if dispatch.TABLE[name].fused]


@pytest.fixture(params=fused_backends())
def fused(request: pytest.FixtureRequest) -> str:
    """Each fused backend that runs here, in turn."""
    return request.param
