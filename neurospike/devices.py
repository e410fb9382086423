"""Where and by what to compute, as the commands are told."""

import re

import torch

from neurospike.dispatch import TABLE, backends, unsupported_reasons
from neurospike.errors import BackendError, ConfigError


def check_backend(name: str) -> str:
    """Return `name` if it is `auto` or a backend of this version, else raise BackendError."""
    if name not in ("auto", *backends()):
        names = ", ".join(["auto", *backends()])
        raise BackendError(f"backend {name!r} is not in this version; use one of {names}")
    return name


def choose_device(device: str, backend: str) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is the first GPU that `backend` runs on, for the backend `auto` the first that any
    compiled one runs on, or else the first. Raises ConfigError for a device that this machine
    lacks.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"--device: got {device!r}, allowed: auto, cpu, cuda or cuda:N")
    if device == "auto":
        return _first_fit([f"cuda:{index}" for index in range(count)], backend)
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(
            f"device: got {device!r}, but torch finds {count} CUDA devices here; use "
            "--device cpu or auto"
        )
    return chosen


def _first_fit(gpus: list[str], backend: str) -> torch.device:
    compiled = [name for name, row in TABLE.items() if row.fused] if backend == "auto" else []
    for gpu in gpus:
        if any(not unsupported_reasons(name, gpu) for name in compiled or [backend]):
            return torch.device("cuda" if gpu == gpus[0] else gpu)
    return torch.device("cuda" if gpus and backend == "auto" else "cpu")
