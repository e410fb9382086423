"""What people are told of the keys: a table of them all, and what is wrong with a value."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from neurospike.config.schema import Config, Section


def fields() -> Iterator[tuple[str, str, str, object]]:
    """Every key: its dotted name, what it means, what is allowed, its default."""
    defaults = Config()
    for name, value in defaults:
        section = value if isinstance(value, Section) else defaults
        prefix = f"{name}." if isinstance(value, Section) else ""
        schemas = type(section).model_json_schema()["properties"]
        for leaf in schemas if prefix else [name]:
            text = schemas[leaf]["description"]
            yield prefix + leaf, text, _allowed(schemas[leaf]), getattr(section, leaf)


def explain(
    error: ValidationError, values: object, file: str, overrides: Mapping[str, object]
) -> str:
    """One line on the first thing wrong, and how many more there are."""
    allowed = {name: text for name, _, text, _ in fields()}
    details = error.errors(include_url=False)
    first = details[0]
    parts: list[str] = []
    value = values
    for part in first["loc"]:  # goes on below our keys, into list items and union members
        if ".".join(parts) in allowed or not isinstance(value, dict):
            break
        parts.append(str(part))
        value = value.get(part)
    key = ".".join(parts)
    where = f"--{key}" if key in overrides else f"{file}: {key}" if key else file
    if first["type"] in ("extra_forbidden", "invalid_key"):
        sections = {name.partition(".")[0] for name in allowed if "." in name}
        near = nearest_key(key, [*allowed, *sorted(sections)])
        text = f"{where}: no such key" + (f"; did you mean {near}?" if near else "")
    elif first["type"] == "value_error" and (isinstance(value, dict) or key == "preprocessing"):
        # Keys that do not agree, or a step among several.
        text = f"{where}: {first['ctx']['error']}"
    else:
        text = f"{where}: got {_short(value)}, allowed: {allowed.get(key, 'a mapping of keys')}"
    # A wrong item of a union is told once a member; count keys, not messages.
    keys = {tuple(detail["loc"][: len(parts)]) for detail in details}
    return text + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def nearest_key(key: str, known: list[str]) -> str | None:
    """The key meant by an unknown one: same last name elsewhere, else the nearest spelling."""
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    if same_leaf:
        return same_leaf[0]
    spelt = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if spelt:
        return spelt[0]
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
    return by_leaf[near[0]] if near else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a non-empty text",
        "null": "null",
    }
    limits = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
    }
    bounds = [f"{sign} {schema[name]}" for name, sign in limits.items() if name in schema]
    return " ".join([kinds[schema["type"]], " and ".join(bounds)]).rstrip()
