"""The device that the commands and `load_model` compute on, chosen by name."""

import re

import torch

from neurospike.backend.dispatch import TABLE, unsupported_reasons
from neurospike.errors import ConfigError

ALLOWED = "auto, cpu, cuda or cuda:N"


def choose_device(device: str | torch.device, backend: str = "auto") -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is the first GPU that `backend` runs on, for the backend `auto` the first that any
    compiled one runs on, or else the first. Raises ConfigError for another name, and for a device
    that this machine lacks.
    """
    device = str(device)
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", device):
        # Here, because `import neurospike` need not load the configuration.
        from .words import about_device

        raise ConfigError(f"device: got {device!r}, allowed: {ALLOWED}{about_device(device)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return _first_fit([f"cuda:{index}" for index in range(count)], backend)
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return torch.device(kind)
    if int(index or 0) >= count:
        raise ConfigError(
            f"device: got {device!r}, but torch finds {count} CUDA devices here; use cpu or auto"
        )
    return torch.device(device)


def _first_fit(gpus: list[str], backend: str) -> torch.device:
    compiled = [name for name, row in TABLE.items() if row.fused] if backend == "auto" else []
    for gpu in gpus:
        if any(not unsupported_reasons(name, gpu) for name in compiled or [backend]):
            return torch.device("cuda" if gpu == gpus[0] else gpu)
    return torch.device("cuda" if gpus and backend == "auto" else "cpu")
