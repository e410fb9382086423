"""What is wrong inside a network: where NaN or infinity came from, which neurons never fire.

When a loss is NaN or infinite, the failing batch is run again with a check of each layer's output;
when a validation finds many neurons that never fire, the training data are run too. Neither costs
anything as long as all goes well.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.coding.rates import spike_rates

from .metrics import Activity
from .randomness import random_state, set_random_state

if TYPE_CHECKING:
    from .trainer import SNNTrainer

MANY = 1 / 3  # share of a layer's channels, or neurons, from which dead ones are reported
ADVICE = (
    "such neurons hardly learn: a smaller training.learning_rate or more training.warmup keeps "
    "neurons from dying, a training.rate_penalty of 100 wakes them, a lower model.threshold or "
    "model.normalization batch lets them fire from the start"
)


def many_dead(activity: Mapping[str, Activity], data: str) -> str | None:
    """Return which layers have a third or more dead, and what to change; None if there are none.

    data: what the network was shown, for the message. In convolutional layers whole feature maps
    are counted, not their neurons: at a picture's empty corners there is nothing to fire for.
    """
    found = [
        f"{layer.dead_channels:.0%} of the {layer.channels} channels or neurons of {name}"
        for name, layer in activity.items()
        if layer.dead_channels >= MANY
    ]
    return f"{', '.join(found)} never fired for {data}; {ADVICE}" if found else None


def dead_in_training(
    trainer: "SNNTrainer", validated: Mapping[str, Activity], batches: Any
) -> str | None:
    """Return `many_dead` of the training data; None if no layer has so many.

    validated: the activity in the validation after an epoch, which never misses a dead neuron: only
    if it has so many are the training batches run. Their order and all random numbers stay as they
    were. With several processes all must call it.
    """
    if many_dead(validated, "validation") is None:
        return None
    order, random = trainer.order.state(batches, 0), random_state(trainer.device)
    try:
        seen = trainer.evaluate(batches, f"training data after epoch {trainer.epoch}")
    finally:
        trainer.order.restore(batches, [order], 0)
        set_random_state(random, trainer.device)
    return many_dead(seen.activity, f"any training sample after epoch {trainer.epoch}")


def find_not_finite(
    model: nn.Module,
    compute_loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
) -> str:
    """Say what is first not finite: inputs, a parameter, a layer's output, the loss, a gradient.

    compute_loss: the batch's loss, with its graph, as in training. Leaves no gradients behind.
    """
    if not bool(inputs.isfinite().all()):
        return "the inputs of that batch"
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name}"
    found: list[str] = []

    def hook(name: str, layer: nn.Module) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            every = output if isinstance(output, tuple) else (output,)
            tensors = [t for t in every if isinstance(t, Tensor) and t.is_floating_point()]
            if not all(bool(t.isfinite().all()) for t in tensors):
                found.append(f"the output of the layer {name} ({type(layer).__name__})")

        return look

    # Layers made of layers are called after those, so that the first one found is the innermost.
    handles = [
        layer.register_forward_hook(hook(name, layer))
        for name, layer in model.named_modules()
        if name
    ]
    try:
        loss = compute_loss(inputs, targets)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if not bool(loss.isfinite()):
        return "the loss itself; every layer's output is finite"
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    wrong = [
        name
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and not bool(gradient.isfinite().all())
    ]
    # Backward goes from the last layer to the first.
    return f"the gradient of {wrong[-1]}" if wrong else "nothing that a second look finds"


def firing(seen: Any) -> dict[str, Activity]:
    """Say of each layer its rate, and which shares of its neurons never fire or always do.

        firing(ns.record(net, x))["1"].dead        # from 0 to 1

    Args:
        seen: what `neurospike.record` or a ready network's `record` returned, or spikes
            `[T, B, *F]` by layer; see `neurospike.spike_rates`.

    Returns:
        By layer the spikes per neuron and step, and the shares, from 0 to 1, as attributes `rate`,
        `dead` and `saturated`.
    """
    return {name: Activity.of(rates.detach()) for name, rates in spike_rates(seen).items()}
