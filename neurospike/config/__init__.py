"""The typed configuration of a training run.

Everything that a run can be told stands in `schema`, once: `config.yaml`, the command line's flags
and their help, and the text of every error are made from it. This is the door at which values are
checked; behind it they are trusted. Imports no torch, so that the checks cost nothing to run first.
"""

from .loading import check_config, load_config
from .messages import fields
from .schema import KINDS, Config
from .words import nearest_key

__all__ = ["KINDS", "Config", "check_config", "fields", "load_config", "nearest_key"]
