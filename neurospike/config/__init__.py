"""The typed configuration of a training run.

Everything that a run can be told stands in `schema`, once: `config.yaml`, the command line's flags
and their help, and the text of every error are made from it. This is the door at which values are
checked; behind it they are trusted. Imports no torch, so that the checks cost nothing to run first,
and pydantic and yaml only with the first name that needs them: layers and networks do without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from neurospike.errors import needed_by

from .kinds import KINDS
from .words import nearest_key

if TYPE_CHECKING:
    from .loading import check_config, load_config
    from .messages import fields
    from .schema import Config

__all__ = ["KINDS", "Config", "check_config", "fields", "load_config", "nearest_key"]

_LATER = {
    "Config": "schema",
    "check_config": "loading",
    "fields": "messages",
    "load_config": "loading",
}


def __getattr__(name: str) -> Any:
    """A name of those above whose module is not loaded yet (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_by("a configuration", "pydantic", "pyyaml"):
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
