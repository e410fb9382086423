"""The choices of the configuration that networks and commands use, too.

They are not in the schema, because that needs pydantic, which layers and networks do not.
"""

from math import isqrt
from typing import Literal, get_args

READING = ("rows", "pixels")  # encodings that read a picture part by part, one part per step

Recorded = Literal["shd", "nmnist", "dvs_gesture"]  # data sets of recordings of events
RECORDED = get_args(Recorded)

# The networks of `neurospike.models`, and the keys that only some of them take.
KINDS: dict[str, tuple[str, ...]] = {
    "mlp": ("hidden_size", "neuron", "tau", "tau_adaptation", "recurrent"),
    "conv": ("in_channels", "hidden_size", "channels", "kernel_size", "pooling"),
    "resnet": ("in_channels", "channels", "blocks", "shortcut"),
}


def reading_steps(encoding: str, input_size: int) -> int:
    """The steps in which an encoding of `READING` reads a square picture of so many pixels."""
    return isqrt(input_size) if encoding == "rows" else input_size
