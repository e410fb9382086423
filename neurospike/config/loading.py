"""From a YAML file and the command line's flags to a checked `Config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neurospike.errors import ConfigError

from .messages import explain
from .schema import Config
from .sections import Section

DEFAULT_FILE = Path("config.yaml")


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, object] | None = None
) -> Config:
    """Read a YAML file, lay `overrides` over it and check the whole.

    path: the file; None takes `config.yaml` of the working folder if there is one, else the
    defaults. Keys the file leaves out keep their defaults, so an empty file is valid.
    overrides: values by dotted key, `{"training.epochs": 3}`; text is read as the type wanted.
    Raises ConfigError, in one or two lines, that names file, key, value and what is allowed.
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    values = {} if path is None else read_mapping(Path(path))
    source = str(path or "configuration")
    overrides = overrides or {}
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        inner = values
        for section in sections:
            # Nothing, or nothing usable: if unusable, the check below would miss it.
            if not isinstance(inner.setdefault(section, {}), dict):
                raise ConfigError(f"{source}: {section}: got {inner[section]!r}, not a mapping")
            inner = inner[section]
        inner[leaf] = value
    return check_config(values, source, overrides)


def check_config(
    values: Mapping[str, object], source: str, overrides: Mapping[str, object] | None = None
) -> Config:
    """Make a `Config` of nested mappings; ConfigError names `source`, or a key's override flag."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values, source, overrides or {})) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key written twice instead of taking the last."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} stands twice", key.start_mark
            )
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file's keys and values, unchecked. Raises ConfigError as `load_config` does."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_Loader)
    except OSError as error:
        inside = path / DEFAULT_FILE
        hint = f"; did you mean {inside}?" if inside.is_file() else ""
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a config file: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: got a {type(values).__name__}, wanted a mapping of keys to values, "
            f"as `training: {{epochs: 3}}`"
        )
    # `model:` with every line below it commented out is an empty section, not a wrong one.
    sections = [name for name, value in Config() if isinstance(value, Section)]
    return {
        key: {} if value is None and key in sections else value for key, value in values.items()
    }
