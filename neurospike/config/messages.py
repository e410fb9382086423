"""The table of all keys of the configuration, and the messages about wrong values."""

import functools
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from .kinds import KINDS
from .schema import Config
from .sections import Section
from .words import about_device, allowed, beyond_format, nearest_key


def fields() -> Iterator[tuple[str, str, str, object]]:
    """Yield for every key its dotted name, what it means, what is allowed, and its default."""
    yield from _fields(tuple(KINDS))


@functools.cache
def _fields(kinds: tuple[str, ...]) -> list[tuple[str, str, str, object]]:
    """Return what `fields` yields, made anew for every new tuple of registered `kinds`."""
    defaults, found = Config(), []
    own = Config.model_json_schema()["properties"]
    for name, value in defaults:
        if isinstance(value, Section):
            schemas = type(value).model_json_schema()["properties"]
            rows = [
                (f"{name}.{leaf}", part, getattr(value, leaf)) for leaf, part in schemas.items()
            ]
        else:
            rows = [(name, own[name], value)]
        found += [(key, part["description"], allowed(part), value) for key, part, value in rows]
    return found


def explain(
    error: ValidationError, values: object, file: str, overrides: Mapping[str, object]
) -> str:
    """Return a line on the first error, with how many more there are."""
    known = {name: text for name, _, text, _ in fields()}
    details = error.errors(include_url=False)
    first = details[0]
    parts: list[str] = []
    value = values
    for part in first["loc"]:  # continues below our keys, into list items and union members
        if ".".join(parts) in known or not isinstance(value, dict):
            break
        parts.append(str(part))
        value = value.get(part)
    key = ".".join(parts)
    where = f"--{key}" if key in overrides else f"{file}: {key}" if key else file
    if first["type"] in ("extra_forbidden", "invalid_key"):
        sections = {name.partition(".")[0] for name in known if "." in name}
        near = nearest_key(key, [*known, *sorted(sections)])
        text = f"{where}: no such key" + (f"; did you mean {near}?" if near else "")
    elif first["type"] == "value_error" and (isinstance(value, dict) or key == "preprocessing"):
        # Keys that do not agree, or one of several preprocessing steps.
        text = f"{where}: {first['ctx']['error']}"
    else:
        text = f"{where}: got {_short(value)}, allowed: {known.get(key, 'a mapping of keys')}"
        text += about_device(value) if key == "device" else beyond_format(first)
    # For a wrong value of a union pydantic has an error per member; count keys, not errors.
    keys = {tuple(detail["loc"][: len(parts)]) for detail in details}
    return text + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _short(value: object) -> str:
    text = "null" if value is None else repr(value)  # as in the file
    return text if len(text) <= 60 else text[:57] + "..."
