"""Values as a checkpoint and a record can hold them: numbers of NumPy become Python's.

`torch.load` runs nothing that is hidden in a file, and so reads tensors, numbers, text, and dicts,
lists and tuples of them. What it would refuse to read is refused before it is written.
"""

import io
from collections import Counter, OrderedDict
from collections.abc import Mapping
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEAVES = (Tensor, nn.Parameter, int, float, bool, str, bytes, complex, type(None))
_DICTS = (dict, OrderedDict, Counter)


def readable(value: Any, name: str = "") -> Any:
    """Return a value that `torch.load` reads again: the same object where nothing had to change.

    name: of the value, for the error. Raises TypeError, which names it, for what cannot be.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        keys = [readable(key, name) for key in value]
        inner = [readable(one, _at(name, key)) for key, one in value.items()]
        # An OrderedDict of weights has attributes, which a copy would lose.
        is_same = kind in _DICTS and all(map(is_, (*keys, *inner), (*value, *value.values())))
        return value if is_same else dict(zip(keys, inner))
    if kind in (list, tuple):
        inner = [readable(one, _at(name, k)) for k, one in enumerate(value)]
        return value if all(map(is_, inner, value)) else kind(inner)
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # noqa: BLE001 (either answers with almost any)
        raise TypeError(
            f"{name or 'the state'} is of the type {kind.__name__}, and a checkpoint holds "
            "tensors, numbers, text, and dicts, lists and tuples of them"
        ) from None
    return value


def plain(value: Any, name: str) -> Any:
    """Return a measure's value as numbers, text, lists and dicts, which a record can hold.

    Raises TypeError, which calls it by its name, for anything else.
    """
    if isinstance(value, (Tensor, np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one, name) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, name) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"the metric {name!r} returned a {type(value).__name__}; it must return a number or a "
        "tensor, or a dict or a list of them"
    )


def _at(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
