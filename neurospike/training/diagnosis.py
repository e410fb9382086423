"""What is wrong inside a network: where a number stopped being one, which neurons never fire.

When a loss is NaN or infinite, the failing batch is run once more with a look at what each layer
gives out; that costs nothing as long as all goes well.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.coding.rates import spike_rates

from .metrics import Activity


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

    seen: what `neurospike.record` or a ready network's `record` returned, or spikes `[T, B, *F]` by
    layer; see `neurospike.spike_rates`.
    """
    return {name: Activity.of(rates.detach()) for name, rates in spike_rates(seen).items()}
