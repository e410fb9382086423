"""What a forward pass keeps for its backward pass, and what a training step takes in memory."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from neurospike.backend import buffers

from .rivals import Layer


def bytes_saved(layer: Layer, current: Tensor) -> int:
    """Return the bytes of all memory that autograd keeps for the backward pass of a layer.

    The current itself is counted where it is kept; memory that several nodes keep is counted once.
    """
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The tensor is held: else its memory could be lent again, and two be counted as one.
        found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikes = layer(current)
    del spikes
    return sum(size for size, _ in found.values())


def peak_memory(step: Callable[[], object], forget: Callable[[], object]) -> float:
    """Return by how many MB training steps raise the process's memory above what it had at rest.

    Linux only. At rest means: after a first step, for what the libraries keep for good, once all
    memory that is free went back to the system; then the peak that the kernel keeps is reset.
    """
    step()
    forget()
    before = at_rest()
    for _ in range(3):
        step()
    return peak_above(before)


def at_rest() -> int:
    """Give free memory back to the system and reset the peak; return the kB that are held."""
    buffers.release()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_above(before: int) -> float:
    """Return the MB of the peak since `at_rest`, above the kB that it returned."""
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
