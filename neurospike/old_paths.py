"""Modules under the names that they had in version 0.1, which pickled layers and programs use."""

import importlib
import sys

MOVED = {
    "conversion": "layers.conversion",
    "decoding": "coding.decoding",
    "dispatch": "backend.dispatch",
    "encoding": "coding.encoding",
    "learned_encoding": "models.conv_encoder",
    "loading": "training.loading",
    "losses": "coding.losses",
    "sequential": "layers.sequential",
    "spike_layer": "layers.spike_layer",
    "spike_linear": "layers.spike_linear",
    "surrogate": "neurons.surrogate",
}


def keep() -> None:
    """Make `import neurospike.encoding` and its like give the modules of today."""
    for old, new in MOVED.items():
        sys.modules[f"neurospike.{old}"] = importlib.import_module(f"neurospike.{new}")
