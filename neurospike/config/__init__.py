"""The typed configuration of a training run.

Every key of a run is declared once, in `schema` and its `sections`: `config.yaml`, the flags of the
command line and their help, and the text of every error are made from that. Values are checked here
and trusted everywhere else. Importing this loads no torch, so that the checks can come first, and
pydantic and yaml only with the first name that needs them: layers and networks do without.
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
