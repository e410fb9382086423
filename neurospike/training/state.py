"""The state that a run is resumed from: weights, optimiser, counts, random numbers, data order.

Of several processes that train together each has some state of its own; a checkpoint holds all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neurospike.layers.spike_linear import SpikeLinear

from .metrics import judged_of
from .randomness import random_state, set_random_state
from .scale import gather

if TYPE_CHECKING:
    from .trainer import SNNTrainer

OWN = ("random", "epoch_sums", "unpromising")  # what every process has of its own


def state_of(trainer: "SNNTrainer", batches: Any) -> dict[str, Any]:
    """Return what a continued run needs, in tensors and plain values; `SNNTrainer.state_dict`."""
    own = {
        "random": random_state(trainer.device),
        "epoch_sums": trainer.meter.state_dict(),
        "unpromising": unpromising_of(trainer.model),
    }
    order = trainer.order.state(batches, trainer.epoch_step)
    every = gather(trainer.fabric, {**own, "order": order})
    scheduler, average = trainer.scheduler, trainer.average
    model, trained = (
        (trainer.model.state_dict(), None) if average is None else average.state_dicts()
    )
    return {
        "model": model,
        "average": trained,
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_kind": type(trainer.optimizer).__name__,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "precision": trainer.fabric.strategy.precision.state_dict(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "best": trainer.best,
        "waited": trainer.waited,
        "guessing": trainer.guessing,
        "history": trainer.history,
        # Of batches that keep account themselves it is the same in all.
        "order": {"processes": [one["order"] for one in every]} if _is_plain(order) else order,
        "epoch_step": trainer.epoch_step,
        "epoch_learning_rate": trainer.learning_rate,
        **{key: [one[key] for one in every] for key in OWN},
    }


def restore(trainer: "SNNTrainer", state: Mapping[str, Any], batches: Any) -> None:
    """Set what `state_of` returned; see `SNNTrainer.load_state_dict`."""
    _check_kinds(trainer, state)
    order = state["order"]
    states = order["processes"] if order is not None and "processes" in order else [order]
    trainer.order.restore(batches, states, state["epoch_step"])
    trainer.model.load_state_dict(state["model"])
    if trainer.average is not None:
        trainer.average.load(state.get("average"))
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(state["scheduler"])
    fabric = trainer.fabric
    fabric.strategy.precision.load_state_dict(state["precision"])
    for name in ("epoch", "step", "epoch_step", "best", "waited", "guessing"):
        setattr(trainer, name, state[name])
    trainer.history = list(state["history"])
    trainer.learning_rate = state["epoch_learning_rate"]
    saved = [
        dict(zip(OWN, one, strict=True)) for one in zip(*(state[key] for key in OWN), strict=True)
    ]
    own = part_of(saved, fabric.global_rank, fabric.world_size)
    trainer.meter = trainer.new_meter()
    trainer.meter.load_state_dict(own["epoch_sums"])
    if trainer.device.type == "cpu":  # on other devices layers do not count their spikes
        set_unpromising(trainer.model, own["unpromising"])
    set_random_state(own["random"], trainer.device)


def _check_kinds(trainer: "SNNTrainer", state: Mapping[str, Any]) -> None:
    """Raise ValueError unless the state has this optimiser, and a schedule and a mean if we do.

    A trainer with a mean of the weights may continue from a state without one: it begins anew.
    """
    own = type(trainer.optimizer).__name__
    kind = state.get("optimizer_kind", own)  # older files do not tell
    if kind != own:
        raise ValueError(f"it was saved with the optimiser {kind}, and this is {own}")
    if state["scheduler"] is None and trainer.scheduler is not None:
        raise ValueError("it was saved without a scheduler, and here is one")
    for name, had, has, made in (
        ("scheduler", state["scheduler"], trainer.scheduler, "scheduler="),
        ("mean of the weights", state.get("average"), trainer.average, "ema="),
    ):
        if had is not None and has is None:
            raise ValueError(
                f"it was saved with a {name}, and here is none: give SNNTrainer one by {made}, or "
                "start a new run from its weights by trainer.init_from(path)"
            )


def _is_plain(order: Mapping[str, Any] | None) -> bool:
    return order is not None and "generators" in order


def unpromising_of(model: nn.Module) -> dict[str, int]:
    """Return for how many more batches each `SpikeLinear` does not count its spikes, by name."""
    layers = model.named_modules()
    return {name: layer.unpromising for name, layer in layers if isinstance(layer, SpikeLinear)}


def set_unpromising(model: nn.Module, counts: Mapping[str, int]) -> None:
    """Set what `unpromising_of` returned."""
    for name, layer in model.named_modules():
        if isinstance(layer, SpikeLinear):
            layer.unpromising = counts.get(name, 0)


def part_of(saved: Sequence[Mapping[str, Any]], rank: int, world: int) -> Mapping[str, Any]:
    """Return what the process `rank` of `world` continues from, of the states that were saved.

    With as many processes as before each takes its own. With another number, each gets a stream of
    random numbers of its own, which follows from the first one's saved state, and the first takes
    the sums of all.
    """
    if len(saved) == world:
        return saved[rank]
    generator = torch.Generator()
    generator.set_state(saved[0]["random"]["cpu"].cpu())
    seed = int(torch.randint(1 << 62, (), generator=generator))
    sums = {**saved[0]["epoch_sums"]}
    for key in ("loss", "correct", "judged", "samples"):
        parts = [judged_of(one["epoch_sums"])[key] for one in saved]
        sums[key] = sum(parts) if rank == 0 else 0
    return {
        "random": {"seed": seed + rank},
        "epoch_sums": sums,
        "unpromising": saved[0]["unpromising"],
    }
