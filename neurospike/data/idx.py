"""The format of MNIST's files (idx: Y. LeCun, "The MNIST database of handwritten digits").

Two zero bytes, one for the type of the numbers, one for how many dimensions there are; the size of
each in 4 bytes, the highest first; then the numbers. torchvision reads it too, but takes seconds to
import.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

UINT8 = 8  # the one type that sets of digits have


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes: uint8, of so many dimensions.

    Raises OSError for a file that cannot be read, ValueError for one that is not whole or holds
    something else.
    """
    content = path.read_bytes()
    start = bytes([0, 0, UINT8, dimensions])
    if content[:4] != start:
        raise ValueError(f"{path.name} begins with {content[:4].hex(' ')}, not {start.hex(' ')}")
    begin = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, begin, 4)]
    if len(content) < begin or len(content) - begin != math.prod(sizes):
        raise ValueError(
            f"{path.name} has {len(content):,} bytes, but its first ones announce "
            f"{' x '.join(map(str, sizes))} numbers"
        )
    # A copy that can be written to, as torch asks for.
    numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=begin)
    return numbers.view(sizes)
