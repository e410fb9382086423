"""The library's exceptions.

Each message says what was got, what was wanted and what to do. The command line prints the message
and exits with code 2; callers of the library can catch `NeuroSpikeError`. Misuse of a call (wrong
shape, dtype or argument) raises a plain `ValueError` or `TypeError`.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class NeuroSpikeError(Exception):
    """Base of the errors below."""


class BackendError(NeuroSpikeError, RuntimeError):
    """A backend that was asked for by name cannot run here; the message lists every reason."""


class ConfigError(NeuroSpikeError, ValueError):
    """The configuration has an unknown key, a wrong type or a value out of range."""


class DataError(NeuroSpikeError, RuntimeError):
    """A data set is missing or truncated, or cannot be read or written."""


class CheckpointError(NeuroSpikeError, RuntimeError):
    """A checkpoint is missing, damaged or not from this library, or cannot be written."""


class InterchangeError(NeuroSpikeError, ValueError):
    """A file of another program is damaged, or a part of it or of a network has no counterpart."""


class MissingDependencyError(NeuroSpikeError, ImportError):
    """An optional package is not installed; the message says which, and how to install it."""


class PictureError(NeuroSpikeError, ValueError):
    """A picture file cannot be read, or shows nothing that could be a digit."""


class GraphError(NeuroSpikeError, RuntimeError):
    """A step cannot be captured as a CUDA graph. Attribute `reason`: why, in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def needed_by(what: str, *packages: str) -> Iterator[None]:
    """Raise MissingDependencyError, which says what to install, if an import inside fails.

    what: what needs the packages, such as `"a configuration"`; packages: their names for pip.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs {' and '.join(packages)} ({error}): pip install {' '.join(packages)}"
        ) from error
