"""Calls of the user's own functions: the criterion, the penalty, and measures.

They raise errors of their own; what they were given is added to the message.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from neurospike.coding.losses import IGNORED

from .answering import Activity, is_of_classes, takes
from .plain import plain

_RETOLD = (RuntimeError, ValueError, TypeError, IndexError)


def loss_of(
    criterion: Callable[..., Tensor], given: Tensor, targets: Tensor, lengths: Tensor | None
) -> Tensor:
    """Return `criterion(given, targets)`, a scalar; with `lengths=` if there are any and it can.

    Raises TypeError or ValueError if that is not a scalar; the criterion's own errors are raised
    with the shapes that it was given.
    """
    try:
        loss = criterion(given, targets, **_own_lengths(criterion, lengths))
    except _RETOLD as error:
        if type(error) not in _RETOLD:  # a subclass, such as torch's for too little memory
            raise
        told = f"{name_of(criterion)} was given {_kind(given)} and targets {_kind(targets)}"
        raise type(error)(f"{told}{_hint(given, targets)}: {error}") from error
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{name_of(criterion)} returned a {type(loss).__name__}; a criterion must return a "
            "tensor of one number, the mean loss of the batch"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{name_of(criterion)} returned a tensor of shape {list(loss.shape)}; a criterion must "
            "return one number, the mean loss of the batch: use reduction='mean', or .mean()"
        )
    return loss.reshape(())


def penalty_of(
    penalty: Callable[..., Tensor], activity: Activity, lengths: Tensor | None, name: str
) -> Tensor:
    """Return `penalty(activity)`. Raises ValueError if the network `name` has no spikes."""
    if not activity:
        raise ValueError(
            f"penalty is given the spikes of each layer, and {name} has no spiking layer of "
            "neurospike, such as ns.LIF: leave penalty out, or let its forward take "
            "return_activity and return (scores, {layer: spikes [T, B, *F]})"
        )
    return penalty(activity, **_own_lengths(penalty, lengths))


def _own_lengths(function: Callable[..., Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """Return the keyword `lengths` for a function, if there are any and it takes them."""
    return {"lengths": lengths} if lengths is not None and takes(function, "lengths") else {}


class Measures:
    """The user's own measures by name, over the batches of one evaluation.

    measures: each is a function `(scores, targets)` that returns one number, the mean of the
    batch; or an object with `update(scores, targets)`, `compute()` and `reset()`, as those of
    torchmetrics, which adds up over several processes by itself.
    """

    def __init__(self, measures: Mapping[str, Any], device: torch.device | str) -> None:
        self._objects = {name: one for name, one in measures.items() if is_object(one)}
        self._functions = {name: one for name, one in measures.items() if not is_object(one)}
        self.sums = torch.zeros(len(self._functions), dtype=torch.float64, device=device)
        for one in self._objects.values():
            one.reset()
            if hasattr(one, "to"):
                one.to(device)

    def add(self, scores: Tensor, targets: Tensor, count: int) -> None:
        """Add a batch of `count` samples. Raises ValueError if a measure gives no number."""
        for one in self._objects.values():
            one.update(scores, targets)
        for place, (name, one) in enumerate(self._functions.items()):
            found = one(scores, targets)
            try:
                value = torch.as_tensor(found)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(
                    f"the metric {name!r} returned a {type(found).__name__}; it must return one "
                    "number, the mean of the batch"
                ) from None
            if value.numel() != 1:
                raise ValueError(
                    f"the metric {name!r} returned a tensor of shape {list(value.shape)}; it must "
                    "return one number, the mean of the batch"
                )
            self.sums[place] += value.reshape(()) * count

    def read(self, sums: Tensor, samples: int) -> dict[str, Any]:
        """Return the values by name. sums: those of all processes."""
        found = dict(zip(self._functions, (sums / samples).tolist(), strict=True))
        for name, one in self._objects.items():
            found[name] = plain(one.compute(), name)
        return found


def is_object(one: Any) -> bool:
    """True for a measure that adds up over batches by itself, as those of torchmetrics."""
    return all(callable(getattr(one, name, None)) for name in ("update", "compute", "reset"))


def _hint(given: Tensor, targets: Tensor) -> str:
    if not is_of_classes(given, targets) or not len(targets) or targets.device.type != "cpu":
        return ""
    labels = targets[targets != IGNORED]
    if not len(labels):
        return ""
    low, high, classes = int(labels.min()), int(labels.max()), given.shape[1]
    if low >= 0 and high < classes:
        return ""
    return f", which are from {low} to {high}, but must be 0 to {classes - 1}"


def _kind(given: Tensor) -> str:
    return f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"


def name_of(one: Any) -> str:
    """Return the name of a function or a class, or of an object's class, for an error."""
    return getattr(one, "__name__", type(one).__name__)
