"""Operations on states between calls: detach them, reset them, move them, truncate gradients.

A state is a tensor, or a tuple, list or dict of states, as layers and networks return it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neurospike import formulas

from .delay import Delay
from .lif import _Neuron
from .recurrent import Recurrent
from .sequential import Sequential, carries_state
from .spiking import Spiking

S = TypeVar("S")


def detach(states: S) -> S:
    """Return states with the same values, through which no gradient flows back.

        for chunk in x.split(100):                 # truncated backpropagation through time
            out, states = net(chunk, ns.detach(states))
            loss(out).backward()

    Memory is then needed for one chunk at a time.

    Args:
        states: tensors, or tuples, lists and dicts of them at any depth; None stays None.

    Raises:
        TypeError: anything else among them.
    """
    return _mapped(Tensor.detach, states)


# In a neuron's function `detach` is the formula, whichever of the two functions was imported.
vars(detach)["formula"] = formulas.detach


def move(states: S, *args: Any, **options: Any) -> S:
    """Return states moved or converted, each tensor by `torch.Tensor.to`.

        states = ns.move(states, "cuda")

    Args:
        states: tensors, or tuples, lists and dicts of them at any depth; None stays None.
        *args: of `torch.Tensor.to`, such as a device or a number format.
        **options: of `torch.Tensor.to`.

    Raises:
        TypeError: anything else among the states.
    """
    return _mapped(lambda one: one.to(*args, **options), states)


def reset(layer: nn.Module, state: S, samples: Tensor | Sequence[int] | int) -> S:
    """Return a state in which some samples of the batch are back at rest; the others are kept.

        states = ns.reset(net, states, ended)      # ended: bool [B], or indexes of samples

    At rest is the state from which a call without a state starts, which is not 0 for neurons such
    as `ns.Izhikevich`. Gradients flow through the samples that are kept.

    Args:
        layer: the layer or `ns.Sequential` that returned the state. For a module of your own with
            `carries_state` the state must be tensors `[B, ...]`, which rest at 0.
        state: what a call of the layer returned; None, which means at rest, stays None.
        samples: indexes of the samples to reset, or a mask, bool `[B]`.

    Raises:
        TypeError: a layer without a state, samples that are neither indexes nor a mask.
        IndexError: a sample that is not in the batch.
        ValueError: a mask of the wrong length, or the wrong number of states.
    """
    if state is None:
        return state
    if not carries_state(layer):
        raise TypeError(f"{type(layer).__name__} carries no state; give the layer that returned it")
    if isinstance(layer, Sequential):
        layers = [one for one in layer._modules.values() if one is not None and carries_state(one)]
        return _each(layer, state, [partial(reset, of, samples=samples) for of in layers])
    if isinstance(layer, Recurrent):
        rests = [0.0, *_rests(layer.neuron, len(layer.states) - 1)]
    elif isinstance(layer, Spiking):
        rests = _rests(layer, len(layer.states))
    else:
        axis = int(isinstance(layer, Delay))
        return _mapped(lambda one: _at_rest(one, samples, 0.0, axis), state)
    return _each(layer, state, [partial(_at_rest, samples=samples, rest=to) for to in rests])


def truncate(net: nn.Module, segment: int | None) -> None:
    """Let gradients flow back through at most `segment` time steps; None, the default, through all.

        ns.truncate(net, 50)

    This is truncated backpropagation through time (Williams and Peng, Neural Computation 2(4),
    1990). Outputs stay the same: states are carried from segment to segment, their gradients are
    not. It needs as much memory as before, since the loss is computed on the whole output; to save
    memory, run the sequence in chunks, see `detach`. Gradients through the steps that `ns.Delay`
    holds back are not cut off.

    Args:
        net: any module with layers of this library, or such a layer.
        segment: number of time steps, 1 or more.

    Raises:
        TypeError: a segment that is not a whole number.
        ValueError: a segment below 1.
    """
    if segment is not None and (isinstance(segment, bool) or not isinstance(segment, int)):
        raise TypeError(f"a segment must be a whole number of steps, or None, got {segment!r}")
    if segment is not None and segment < 1:
        raise ValueError(f"a segment must have at least 1 step, got {segment}; None: all steps")
    for layer in net.modules():
        if isinstance(layer, _Neuron):
            layer.segment = segment


def _mapped(function: Callable[[Tensor], Tensor], states: Any) -> Any:
    """Return states with the function applied to every tensor."""
    if states is None:
        return None
    if isinstance(states, Tensor):
        return function(states)
    if isinstance(states, Mapping):
        return {name: _mapped(function, one) for name, one in states.items()}
    if isinstance(states, tuple) and hasattr(states, "_fields"):
        return type(states)(*(_mapped(function, one) for one in states))
    if isinstance(states, (tuple, list)):
        return type(states)(_mapped(function, one) for one in states)
    raise TypeError(
        "states must be tensors, or tuples, lists and dicts of them, or None, got "
        f"{type(states).__name__}"
    )


def _each(layer: nn.Module, state: Any, functions: list[Callable[[Any], Any]]) -> Any:
    """Return a tuple of states, each with its own function applied."""
    if not isinstance(state, (tuple, list)) or len(state) != len(functions):
        got = type(state).__name__
        got += f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        raise ValueError(
            f"the state of this {type(layer).__name__} is a tuple of {len(functions)}, got {got}"
        )
    return tuple(function(one) for function, one in zip(functions, state))


def _rests(neuron: nn.Module, many: int) -> list[float]:
    if not isinstance(neuron, Spiking):
        return [0.0] * many
    return [neuron.rest.get(name, 0.0) for name in neuron.states]


def _at_rest(state: Tensor, samples: Any, rest: float, axis: int = 0) -> Tensor:
    mask = _mask(samples, state.shape[axis], state.device)
    return torch.where(mask.view(-1, *(1,) * (state.dim() - axis - 1)), rest, state)


def _mask(samples: Any, batch: int, device: torch.device) -> Tensor:
    """Return the samples as a mask, bool `[B]`."""
    try:
        found = torch.as_tensor(samples, device=device)
        if (found.is_floating_point() and found.numel()) or found.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"samples must be indexes of the batch, or a mask, bool [B], got {samples!r}"
        ) from None
    if found.dtype == torch.bool:
        if found.shape != (batch,):
            raise ValueError(
                f"a mask of samples must be [B] = [{batch}], got the shape {list(found.shape)}"
            )
        return found
    mask = torch.zeros(batch, dtype=torch.bool, device=device)
    mask[found.long().reshape(-1)] = True
    return mask
