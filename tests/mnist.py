"""Where the tests find real MNIST; they never download it."""

import os
from pathlib import Path


def mnist_root() -> Path | None:
    """The first torchvision root that holds MNIST, or None and the test skips.

    Looked for in `$NEUROSPIKE_MNIST`, `<repo>/data` and `<repo>/../shared/data`.
    """
    repo = Path(__file__).resolve().parents[1]
    named = os.environ.get("NEUROSPIKE_MNIST")
    roots = [*([Path(named)] if named else []), repo / "data", repo.parent / "shared" / "data"]
    return next((root for root in roots if (root / "MNIST" / "raw").is_dir()), None)
