"""Where the tests find real MNIST, which they never download, and files as MNIST has them."""

import os
import struct
from pathlib import Path

from torch import Tensor


def mnist_root() -> Path | None:
    """The first torchvision root that holds MNIST, or None and the test skips.

    Looked for in `$NEUROSPIKE_MNIST`, `<repo>/data` and `<repo>/../shared/data`.
    """
    repo = Path(__file__).resolve().parents[1]
    named = os.environ.get("NEUROSPIKE_MNIST")
    roots = [*([Path(named)] if named else []), repo / "data", repo.parent / "shared" / "data"]
    return next((root for root in roots if (root / "MNIST" / "raw").is_dir()), None)


def idx(numbers: Tensor) -> bytes:
    """Whole numbers of 0 to 255 as MNIST's files hold them."""
    shape = numbers.shape
    head = struct.pack(f">{len(shape) + 1}I", 0x0800 + len(shape), *shape)
    return head + numbers.byte().numpy().tobytes()
