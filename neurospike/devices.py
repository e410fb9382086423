"""Where to compute, as the commands and `load_model` are told."""

import re

import torch

from neurospike.dispatch import unsupported_reasons
from neurospike.errors import ConfigError

ALLOWED = "auto, cpu, cuda or cuda:N"


def choose_device(device: str | torch.device, backend: str = "auto") -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is the GPU if there is one that `backend` runs on. Raises ConfigError for another name,
    and for a device that this machine lacks.
    """
    device = str(device)
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", device):
        # Here, because `import neurospike` need not load the configuration.
        from neurospike.config.messages import about_device

        raise ConfigError(f"device: got {device!r}, allowed: {ALLOWED}{about_device(device)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        fits = backend == "auto" or not unsupported_reasons(backend, "cuda")
        return torch.device("cuda" if count and fits else "cpu")
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return torch.device(kind)
    if int(index or 0) >= count:
        raise ConfigError(
            f"device: got {device!r}, but torch finds {count} CUDA devices here; use cpu or auto"
        )
    return torch.device(device)
