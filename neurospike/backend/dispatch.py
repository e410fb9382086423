"""The table of backends: what can run the time loop, where, and why not.

A backend is one file and one row here. The oracle, `reference`, is a differentiable function
`scan(...)` in torch. Every other one is a fused pair `forward`, `backward` that `neurospike.ops`
turns into torch operators. Nothing here imports a backend before it is used.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neurospike.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from .protocols import Coder, Delay, Linear, LinearScan, Scan


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: what `backend=` takes.
        module: the module of its time loop, relative to the package, as the modules below.
        packages: what must be installed: import names, with the oldest supported version where
            there is one (`"triton>=3.5"`).
        device_types: the kinds of torch device its tensors may be on; empty means any.
        linear: the module of its event-driven product; empty if it has only torch's dense one.
        layer: the module of such a product and its LIF neurons in one loop; empty if it has none.
        recurrent: the module of a recurrent layer as one loop; empty if it is run step by step.
        draws: the module that draws random spikes from torch's own stream; empty if torch does.
        latency: the module that encodes by latency; empty if torch does.
        delay: the module that delays each channel by its own number of steps; empty if torch does.
        fused: whether it is a forward/backward pair for `neurospike.ops`.
        checkpoint_every: `K > 0` if its backward pass needs the states before every K-th step,
            which its forward pass then saves; 0 if it needs nothing but the inputs.
        by_sample: whether its sequences may lie in memory by sample; see `protocols.Scan`.
        instead: the backend that messages suggest where it cannot run.
    """

    name: str
    module: str
    linear: str = ""
    layer: str = ""
    recurrent: str = ""
    draws: str = ""
    latency: str = ""
    delay: str = ""
    packages: tuple[str, ...] = ()
    device_types: tuple[str, ...] = ()
    fused: bool = True
    checkpoint_every: int = 0
    by_sample: bool = False
    instead: str = "reference"

    def serves(self, device_type: str) -> bool:
        """Whether its tensors may be on such a device."""
        return not self.device_types or device_type in self.device_types


# In the order in which "auto" tries them.
TABLE: dict[str, Backend] = {
    row.name: row
    for row in (
        Backend(
            "triton",
            ".kernels.cuda.scan",
            recurrent=".kernels.cuda.recurrent",
            delay=".kernels.cuda.delay",
            packages=("triton>=3.5",),  # 3.4 reuses cached code that has other constants
            device_types=("cuda",),
            checkpoint_every=8,
            instead="numba",
        ),
        Backend(
            "numba",
            ".kernels.cpu.scan",
            ".kernels.cpu.linear",
            ".kernels.cpu.linear_scan",
            ".kernels.cpu.recurrent",
            ".kernels.cpu.draws",
            ".kernels.cpu.latency",
            ".kernels.cpu.delay",
            packages=("numba",),
            device_types=("cpu",),
            by_sample=True,
        ),
        Backend(
            "reference", ".backend.reference", packages=("snntorch",), fused=False, instead="numba"
        ),
    )
}
Device = str | torch.device
OLDEST = (8, 0)  # compute capability of the oldest NVIDIA GPUs that Triton supports


class _Scoped(threading.local):
    """The name that `use_backend` set, one per thread as torch's modes; torch.compile guards it."""

    def __init__(self) -> None:
        self.name = "auto"


_scoped = _Scoped()


def unsupported_reasons(name: str, device: Device | None = None) -> list[str]:
    """Return every reason why backend `name` cannot run here, or on tensors on `device`.

    device: `"cuda"` is the current one of several GPUs; None stands for any device that it serves.
    """
    row = TABLE[name]
    found = [_missing(package) for package in row.packages]
    reasons = [reason for reason in found if reason]
    where = None if device is None else torch.device(device)
    if "cuda" in row.device_types and "cpu" not in row.device_types:
        reasons += _cuda_reasons() or _gpu_reasons(where)
    if where is not None and not row.serves(where.type):
        wanted = " or ".join(row.device_types)
        reasons.append(f"it runs on {wanted} tensors, these are on {where.type}")
    return reasons


def backends() -> dict[str, str | None]:
    """Return each backend's name with `None` if it can run here, else with the reasons why not."""
    return {name: "; ".join(unsupported_reasons(name)) or None for name in TABLE}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every layer inside the `with` block that was not given its own.

    It applies to this thread, as torch's modes do, and to functions compiled by torch.compile
    before it as well.

    Args:
        name: a name of `backends()`, or `"auto"`.

    Raises:
        ValueError: an unknown name.
        BackendError: it cannot run on this machine; lists every reason.
    """
    check_name(name)
    if name != "auto":
        _refuse(name, unsupported_reasons(name))
    before, _scoped.name = _scoped.name, name
    try:
        yield
    finally:
        _scoped.name = before


def check_name(name: str) -> None:
    """Raise `ConfigError`, a `ValueError`, unless `name` is a backend or `"auto"`."""
    if not isinstance(name, str) or (name != "auto" and name not in TABLE):
        known = ", ".join(["auto", *TABLE])
        raise ConfigError(f"unknown backend {name!r}; choose one of {known}")


def choose(name: str, device: Device) -> Backend:
    """Return the row that serves tensors on `device`.

    `"auto"` gives way to `use_backend`, then takes the first row that can run; a backend chosen by
    name runs or raises `BackendError`, it never falls back.
    """
    if name == "auto":
        name = _scoped.name
    if torch.compiler.is_compiling() or not isinstance(device, torch.device):
        return _choose(name, device)
    known = _chosen.get((name, device))
    if known is None:
        known = _choose(name, device)
        if device.type != "cuda" or device.index is not None:  # else the current GPU may change
            _chosen[name, device] = known
    return known


# A row that was found able to run stays so; one that was not is checked again each time.
_chosen: dict[tuple[str, torch.device], Backend] = {}


def forget() -> None:
    """Forget which backends can run here, so that the next call checks again."""
    _chosen.clear()


def _choose(name: str, device: Device) -> Backend:
    if name != "auto":
        check_name(name)
        _refuse(name, unsupported_reasons(name, device), device)
        return TABLE[name]
    kind = torch.device(device).type
    for row in TABLE.values():
        if row.serves(kind) and not unsupported_reasons(row.name, device):
            return row
    every = {name: unsupported_reasons(name, device) for name in TABLE}
    reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in every.items())
    raise BackendError(f"no backend can run on {kind} tensors here: {reasons}")


@functools.cache
def load(module: str) -> Any:
    """Import and return a module that a row of the table names; see `protocols`."""
    return importlib.import_module(module, "neurospike")


def scan_of(row: Backend) -> "Scan":
    """Return the module with the time loop of a fused row."""
    return load(row.module)


def linear_of(row: Backend) -> "Linear":
    """Return the module with the event-driven product of a row that has one."""
    return load(row.linear)


def layer_of(row: Backend) -> "LinearScan":
    """Return the module with such a product and its neurons, of a row with both in one loop."""
    return load(row.layer)


def delay_of(row: Backend) -> "Delay":
    """Return the module that delays the channels of a sequence, of a row that has one."""
    return load(row.delay)


def coder(kind: str, data: torch.Tensor) -> "Coder | None":
    """Return the module whose `spikes` can encode such a tensor; None if torch has to.

    kind: a column of the table, `"draws"` or `"latency"`.
    """
    scoped = _scoped.name
    for row in TABLE.values() if scoped == "auto" else (TABLE[scoped],):
        name = getattr(row, kind)
        if name and not unsupported_reasons(row.name, data.device):
            module: Coder = load(name)
            return module if module.usable(data) else None
    return None


def _refuse(name: str, reasons: list[str], device: Device | None = None) -> None:
    if reasons:
        where = " here" if device is None else f" on {torch.device(device).type} tensors"
        raise BackendError(
            f"backend {name!r} cannot run{where}: {'; '.join(reasons)}. "
            f"Use --backend {TABLE[name].instead} (backend={TABLE[name].instead!r}) instead."
        )


def _missing(requirement: str) -> str | None:
    """Return why a package that the table names cannot be used; None if it can."""
    package, _, oldest = requirement.partition(">=")
    if not _installed(package):
        return f"the package {package!r} is not installed (pip install {package})"
    if oldest and _numbers(found := _version(package)) < _numbers(oldest):
        advice = f"pip install -U torch {package}"  # each torch asks for its own triton
        return f"{package} {oldest} or later is needed, found {found} ({advice})"
    return None


@functools.cache
def _version(package: str) -> str:
    """Return an installed package's version; import it only if pip has it under another name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (3, 10) of "3.10.0a1+git"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _installed(package: str) -> bool:
    if sys.modules.get(package) is not None:  # saves 30 us
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _cuda_reasons() -> list[str]:
    if torch.version.cuda is None:
        return ["this torch was built without CUDA"]
    if not torch.cuda.is_available():
        return ["torch finds no CUDA device"]
    return []


def _gpu_reasons(device: torch.device | None) -> list[str]:
    """Return why Triton cannot run on a GPU, or for None on any GPU of this machine."""
    if device is not None and device.type != "cuda":
        return []
    indices = range(torch.cuda.device_count()) if device is None else [device.index]
    found = [_too_old(index) for index in indices]
    return [] if None in found else [reason for reason in found if reason]


def _too_old(index: int | None) -> str | None:
    """Return why Triton cannot run on a GPU, None if it can; index None: the current GPU."""
    if index is None:
        index = torch.cuda.current_device()
    capability = _capability(index)
    if capability >= OLDEST:
        return None
    found, wanted = (".".join(map(str, c)) for c in (capability, OLDEST))
    return (
        f"cuda:{index} ({torch.cuda.get_device_name(index)}) has compute capability {found}, "
        f"Triton supports {wanted} and later"
    )


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# torch.compile must not trace these functions. The attribute is all that
# `torch.compiler.assume_constant_result` sets, but calling that would load the compiler, and Triton
# with it, when this module is imported.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]
