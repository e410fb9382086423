"""Checks of the arguments of `SNNTrainer`; each error is one sentence."""

from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, DistributedSampler

from .judging import is_object, name_of
from .metrics import NO_SAMPLES
from .order import owners_of

RESERVED = (
    "loss",
    "seconds",
    "samples_per_second",
    "confusion",
    "class_accuracy",
    "spike_rates",
    "dead_neurons",
    "saturated_neurons",
)


def check_parts(model: Any, optimizer: Any, criterion: Any, scheduler: Any) -> None:
    """Raise TypeError or ValueError unless the parts of a training loop fit together."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {name_of(model)}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be one of torch.optim, such as torch.optim.Adam(model.parameters()), "
            f"got {name_of(optimizer)}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "optimizer is LBFGS, whose step computes the loss several times, and a batch is run "
            "once here: use another, such as torch.optim.Adam(model.parameters())"
        )
    if isinstance(criterion, type) or not callable(criterion):
        made = f"{criterion.__name__}()" if isinstance(criterion, type) else "CrossEntropyLoss()"
        raise TypeError(
            f"criterion must be a function (scores, targets) that returns the loss, such as "
            f"torch.nn.{made}, got {name_of(criterion)}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(one) in own for group in optimizer.param_groups for one in group["params"]):
        raise ValueError(
            f"the optimizer holds none of the parameters of {type(model).__name__}: make it with "
            "model.parameters()"
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler is stepped after every batch, and ReduceLROnPlateau wants a loss: use "
            "neurospike.training.schedule.Schedule(optimizer, 'plateau')"
        )
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise TypeError(f"scheduler must have a method step(), got {name_of(scheduler)}")


def check_callable(name: str, one: Any, takes: str) -> None:
    """Raise TypeError unless `one` is None or callable. takes: its argument, for the message."""
    if one is not None and (isinstance(one, type) or not callable(one)):
        raise TypeError(f"{name} must be a function of {takes}, or None, got {name_of(one)}")


def check_ema(ema: Any) -> None:
    """Raise TypeError or ValueError unless it is a decay from 0 to below 1."""
    if isinstance(ema, bool) or not isinstance(ema, (int, float)):
        raise TypeError(f"ema must be a number, got {name_of(ema)}")
    if not 0 <= ema < 1:
        raise ValueError(
            f"ema must be at least 0 (no average) and below 1, such as 0.998, got {ema}"
        )


def check_clip(clip: Any) -> None:
    """Raise TypeError or ValueError unless it is None or a norm above 0."""
    if clip is None:
        return
    if isinstance(clip, bool) or not isinstance(clip, Real):
        raise TypeError(f"clip must be a number, or None for no clipping, got {name_of(clip)}")
    if not float(clip) > 0:
        raise ValueError(
            f"clip must be a norm above 0, such as 1.0, or None for no clipping, got {clip}"
        )


def check_counts(**counts: Any) -> None:
    """Raise TypeError or ValueError unless each count is a whole number >= 1, or None."""
    for name, count in counts.items():
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"{name} must be a whole number, such as 10, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_measures(measures: Any) -> dict[str, Any]:
    """Return the measures by name, none for None.

    Raises TypeError for a measure that cannot be called, ValueError for a name that is taken.
    """
    if measures is None:
        return {}
    if not isinstance(measures, Mapping):
        raise TypeError(
            f"metrics must be a dict of names to functions or torchmetrics objects, got "
            f"{type(measures).__name__}"
        )
    for name, one in measures.items():
        if name in RESERVED:
            raise ValueError(f"the metric {name!r} has a name that is taken; choose another")
        if isinstance(one, type) or not (is_object(one) or callable(one)):
            raise TypeError(
                f"the metric {name!r} must be a function (scores, targets) that returns a number, "
                f"or an object with update, compute and reset, got {name_of(one)}"
            )
    return dict(measures)


def check_batches(name: str, batches: Any) -> None:
    """Raise TypeError for batches that cannot be iterated."""
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"{name} must be batches (inputs, targets), such as a DataLoader, got "
            f"{type(batches).__name__}"
        )


def check_source(name: str, batches: Any, world: int) -> None:
    """Raise TypeError or ValueError for batches that cannot be iterated anew in every epoch."""
    check_batches(name, batches)
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name} is a {type(batches).__name__}, which is used up after one epoch: give a "
            "DataLoader, a list, or an object whose __iter__ begins anew"
        )
    if length_of(batches) == 0:
        raise ValueError(f"{name}: {NO_SAMPLES}")
    is_shared = any(isinstance(one, DistributedSampler) for one in owners_of(batches))
    if world > 1 and isinstance(batches, DataLoader) and not is_shared:
        raise ValueError(
            f"{name} is a DataLoader that gives each of the {world} processes all samples: "
            "make it with sampler=torch.utils.data.DistributedSampler(data, "
            "num_replicas=fabric.world_size, rank=fabric.global_rank)"
        )


def length_of(batches: Any) -> int | None:
    """Return how many batches there are; None where that is not known, as of an IterableDataset."""
    try:
        return len(batches)
    except TypeError:
        return None
