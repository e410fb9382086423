"""The oracle backend: a neuron's function stepped in torch, the LIF by snnTorch's `Leaky`.

It defines what the other backends must compute. Gradients are those of torch's autograd. The
immediate reset is stepped in torch, not by snnTorch: where the membrane stays above the threshold
after the reset, snnTorch 1.0.0 would add the threshold back on the next step (current 2.5, 0, 0,
beta 0.9: membrane 1.5, 1.35, 1.215, one spike), but by the contract the neuron fires again (1.5,
0.35, 0.315).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.errors import MissingDependencyError
from neurospike.neurons import stepped, zoo
from neurospike.neurons.record import record

# The neurons that snnTorch's `Leaky` steps here, by their programs, with its `reset_mechanism`.
_LEAKY = {record(zoo.LIF[f"{reset} delayed"]).text: reset for reset in ("subtract", "zero", "none")}


def scan(
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return `(spikes, states, traces)`, all differentiable.

    Shapes: `current` `[T, B, *F]`, float32 or float64; each state `[B, *F]` in the same format;
    parameters broadcast against F; `neuron` is a program as text. Spikes and each trace are
    `[T, B, *F]`; `lengths` is int64 `[B]`.
    """
    reset = _LEAKY.get("|".join(neuron.split("|")[:3]))
    if reset is None:
        step = stepped.step_of(neuron, numbers, current)
    else:
        values = tuple(torch.tensor(n, dtype=current.dtype, device=current.device) for n in numbers)
        beta, threshold = parameters
        step = _leaky(beta, threshold, reset, stepped.fire_of(neuron, values))
    return stepped.over_time(step, current, states, parameters, lengths)


def _leaky(
    beta: Tensor, threshold: Tensor, reset: str, fire: Callable[[Tensor], Tensor]
) -> Callable[..., Any]:
    try:
        from snntorch import Leaky
    except ImportError as error:
        raise MissingDependencyError(
            "the reference backend needs snntorch: pip install snntorch"
        ) from error
    with _beside(beta):
        leaky = Leaky(beta=beta, threshold=threshold, spike_grad=fire, reset_mechanism=reset)
    # snnTorch keeps every layer ever made in lists of its classes, but this one is for one call. A
    # call of init() gives a class its own list, and another thread may empty the lists meanwhile.
    for kind in Leaky.__mro__:
        with contextlib.suppress(ValueError):
            vars(kind).get("instances", []).remove(leaky)
    del leaky.beta
    leaky.beta = _Clamped(beta)
    return lambda current, mem, *_: leaky(current, mem)


def _beside(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Let tensors be made where one is, whatever `torch.set_default_device` says.

    Numbers of a plain CPU serve every device, and on a GPU nobody waits for them.
    """
    if torch.get_default_device().type == "cpu":
        return contextlib.nullcontext()
    return torch.device(tensor.device)


class _Clamped:
    """A decay between 0 and 1, for code that clamps it again.

    At a bound, a second clamp of torch would stop the gradient that the first one let through.
    """

    def __init__(self, beta: Tensor) -> None:
        self.beta = beta

    def clamp(self, low: float, high: float) -> Tensor:
        """Return the decay as it is."""
        return self.beta
