"""The state of a process's random numbers: what a checkpoint keeps, and how it is restored."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from neurospike.errors import CheckpointError


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The states of this process's generators, as tensors and plain values.

    They are torch's on the CPU, that of a CUDA device, Python's, and NumPy's global one, which data
    sets of one's own draw from.
    """
    cuda = torch.device(device).type == "cuda"
    numpy = sys.modules.get("numpy")
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if cuda else None,
        "python": random.getstate(),
    }
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        state["numpy"] = (str(kind), torch.tensor(keys.astype("int64")), *rest)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Set what `random_state` or `state.part_of` returned.

    A GPU's state is set on the GPU in use, whatever its index. Where a run is resumed on the other
    kind of device, that device's generator stays as the seed left it. Raises CheckpointError.
    """
    try:
        if state.get("seed") is not None:
            torch.manual_seed(state["seed"])
            return
        torch.set_rng_state(state["cpu"].cpu())
        if state["cuda"] is not None and torch.device(device).type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), device)
        if "python" in state:  # not in checkpoints of version 0.1
            version, keys, left = state["python"]
            random.setstate((version, tuple(keys), left))
        if "numpy" in state:
            import numpy

            kind, keys, *rest = state["numpy"]
            numpy.random.set_state((kind, keys.cpu().numpy().astype("uint32"), *rest))  # noqa: NPY002
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"the state of the random numbers in the checkpoint does not fit torch "
            f"{torch.__version__}: {str(error).splitlines()[0]}; resume with the version of torch "
            "that the run was started with"
        ) from None
