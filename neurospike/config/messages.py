"""What people are told of the keys: a table of them all, and what is wrong with a value."""

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from neurospike.config.schema import KINDS, Config, Section
from neurospike.steps import FLOAT32

LARGEST = 2**63 - 1  # of whole numbers, in torch; said only to those who go beyond it

# What people of other tools write, by the last name of the key that they mean.
SYNONYMS = {
    "learning_rate": ("lr", "eta", "step_size"),
    "batch_size": ("bs", "batch", "batchsize", "minibatch"),
    "epochs": ("n_epochs", "num_epochs", "max_epochs", "ep"),
    "weight_decay": ("wd", "l2", "decay"),
    "schedule": ("scheduler", "lr_schedule", "lr_scheduler"),
    "clip": ("grad_clip", "clip_grad", "clip_norm", "max_norm"),
    "hidden_size": ("hidden", "hidden_dim", "num_hidden", "units", "layers", "width"),
    "output_size": ("num_classes", "classes", "n_classes"),
    "num_steps": ("t", "timesteps", "time_steps", "timestep", "steps", "n_steps"),
    "normalization": ("norm", "bn", "batchnorm", "batch_norm"),
    "surrogate": ("spike_grad", "surrogate_function"),
    "reset": ("reset_mechanism", "v_reset"),
    "threshold": ("thr", "v_threshold", "v_th"),
    "model.kind": ("model", "arch", "architecture", "network", "net"),
    "encoding.kind": ("encoder", "coding", "code"),
    "preprocessing": ("transform", "transforms", "augment", "augmentation", "augmentations"),
    "degrees": ("angle", "rotate", "rotation"),
    "dataset": ("data",),
    "data_path": ("data_dir", "root", "datadir"),
    "run_dir": ("out", "output", "out_dir", "output_dir", "log_dir", "logdir", "save_dir"),
    "device": ("gpu", "gpus", "cuda", "cpu", "mps", "accelerator"),
    "precision": ("amp", "dtype", "fp16", "bf16", "half"),
    "num_nodes": ("nodes",),
    "threads": ("num_threads", "workers", "num_workers"),
    "seed": ("random_seed", "manual_seed"),
    "tensorboard": ("tb",),
    "image_path": ("image", "images", "input", "picture", "pictures", "path"),
    "model_path": ("checkpoint", "weights", "ckpt"),
}


def fields() -> Iterator[tuple[str, str, str, object]]:
    """Every key: its dotted name, what it means, what is allowed, its default."""
    yield from _fields(tuple(KINDS))


@functools.cache
def _fields(kinds: tuple[str, ...]) -> list[tuple[str, str, str, object]]:
    """As above; kinds: of networks, which are registered one after the other."""
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
    """One line on the first thing wrong, and how many more there are."""
    known = {name: text for name, _, text, _ in fields()}
    details = error.errors(include_url=False)
    first = details[0]
    parts: list[str] = []
    value = values
    for part in first["loc"]:  # goes on below our keys, into list items and union members
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
        # Keys that do not agree, or a step among several.
        text = f"{where}: {first['ctx']['error']}"
    else:
        text = f"{where}: got {_short(value)}, allowed: {known.get(key, 'a mapping of keys')}"
        text += about_device(value) if key == "device" else beyond_format(first)
    # A wrong item of a union is told once a member; count keys, not messages.
    keys = {tuple(detail["loc"][: len(parts)]) for detail in details}
    return text + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key meant by an unknown one: its last name elsewhere, another word, or the nearest."""
    leaf = key.rpartition(".")[2]
    meant = {word: name for name, words in SYNONYMS.items() for word in words}
    for name in (leaf, meant.get(leaf.lower())):
        same = [one for one in known if one == name or one.rpartition(".")[2] == name]
        if same:
            return same[0]
    spelt = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if spelt:
        return spelt[0]
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
    return by_leaf[near[0]] if near else None


def about_device(name: object) -> str:
    """What to say to those who asked for a device by another name, or for one that is no use."""
    kind = str(name).partition(":")[0].lower()
    if kind in ("gpu", "nvidia", "rocm"):
        return "; a GPU of torch's is called cuda"
    if kind in ("mps", "metal"):
        return "; Apple's GPUs lack float64, which delta and burst coding need: use cpu"
    return ""


def beyond_format(detail: ErrorDetails) -> str:
    """What else was wanted of a number that is within a key's bounds and too small or large."""
    context = detail.get("ctx", {})
    if str(context.get("error")) == FLOAT32:
        return f", {FLOAT32}"
    return f" and <= {LARGEST}" if context.get("le") == LARGEST else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def allowed(schema: Mapping[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
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
    bounds = [
        f"{sign} {schema[name]}"
        for name, sign in limits.items()
        if schema.get(name, LARGEST) != LARGEST
    ]
    return " ".join([kinds[schema["type"]], " and ".join(bounds)]).rstrip()
