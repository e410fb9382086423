"""Words for error messages: the key or device that was meant, and what a key allows."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LEAST, GREATEST = 1.2e-38, 3.4e38  # the range of float32, in which everything is computed
FLOAT32 = f"{LEAST} to {GREATEST}, as float32 holds"
LARGEST = 2**63 - 1  # torch's largest whole number; messages name it only if it is exceeded

# Names that other tools have for a key, by its own last name.
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
    "pictures.size": ("image_size", "img_size", "imgsz"),
    "pictures.colour": ("color", "rgb"),
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


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """Return the key meant by an unknown one: of the same last name, a synonym, or the nearest."""
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
    """Return a hint for a device under another name, or one that cannot be used; else ""."""
    kind = str(name).partition(":")[0].lower()
    if kind in ("gpu", "nvidia", "rocm"):
        return "; a GPU of torch's is called cuda"
    if kind in ("mps", "metal"):
        return "; Apple's GPUs lack float64, which delta and burst coding need: use cpu"
    return ""


def beyond_format(detail: "ErrorDetails") -> str:
    """Return the bounds of the number format that a number within the key's own bounds exceeds."""
    context = detail.get("ctx", {})
    if str(context.get("error")) == FLOAT32:
        return f", {FLOAT32}"
    return f" and <= {LARGEST}" if context.get("le") == LARGEST else ""


def allowed(schema: Mapping[str, Any]) -> str:
    """Return what a field allows, in words, from its JSON schema."""
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
