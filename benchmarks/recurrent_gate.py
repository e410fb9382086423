"""The equivalence gate of recurrent layers: the sums that reached the neurons are replayed.

A product that is summed in another order differs in last bits, and a neuron that comes within
these of its threshold fires otherwise; a few steps later so do all. So a layer's own sums, which
its backward pass needs anyway, are handed to the neuron's step in torch: spikes have to be equal
bit for bit. The sums in their turn have to be those of these spikes, within rounding, and autograd
goes back through them as through the product.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.neurons import stepped
from neurospike.ops import recurrent, state_dtype
from neurospike.ops.arguments import fitted, flat_parameter
from neurospike.ops.wants import SAVED, TRACES

from .gate import GateError, check_close

BUDGET = {torch.float64: 1e-12}  # relative norm; else 1e-5
ROUNDED = 2.0**-8  # of the gradient of a current in 16 bits


def prove(
    layer: ns.Recurrent,
    current: Tensor,
    state: Sequence[Tensor] = (),
    lengths: Tensor | None = None,
) -> float:
    """Compare spikes, states, traces and gradients with the replay; the gradients' worst distance.

    Args:
        layer: of a fused backend.
        current: `[T, B, N]`.
        state: the last spikes and the neuron's states, or none of them.
        lengths: of the samples, or None.

    Raises:
        GateError: what differs by more than the budget.
    """
    kind = state_dtype(current.dtype)
    current, *state = (one.detach().requires_grad_() for one in (current, *state))
    inputs = [current, *state, *(p for p in layer.parameters() if p.requires_grad)]
    start = tuple(state) or None
    spikes, finals, traces = layer(current, start, return_trace=True, lengths=lengths)
    sums = _sums(layer, current, state, lengths)
    wanted = _replayed(layer, current, state, lengths, sums)
    if not torch.equal(spikes.to(kind), wanted[0]):
        differ = int((spikes.to(kind) != wanted[0]).sum())
        raise GateError(f"{differ} of {spikes.numel()} spikes differ from those replayed")
    found = [spikes.to(kind), *finals, *traces]
    budget = BUDGET.get(kind, 1e-5)
    for name, one, other in zip(_names(layer), found, wanted):
        check_close(name, one, other, budget)
    generator = torch.Generator().manual_seed(3)
    comes = [torch.randn(one.shape, generator=generator).to(one) for one in found]
    comes[0] = comes[0].to(spikes.dtype).to(kind)
    ours = torch.autograd.grad(found, inputs, comes)
    theirs = torch.autograd.grad(list(wanted), inputs, comes)
    distances = [0.0]
    for k, (one, other) in enumerate(zip(ours, theirs)):
        rounded = spikes.dtype.itemsize == 2 and k == 0  # what comes to a current in 16 bits
        distance = check_close(f"gradient {k}", one, other, ROUNDED if rounded else budget)
        distances += [] if rounded else [distance]
    return max(distances)


def _names(layer: ns.Recurrent) -> list[str]:
    neuron = layer.states[1:]
    return ["spikes", *layer.states, *(f"trace of {name}" for name in neuron)]


def _tensors(layer: ns.Recurrent, current: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """Return what the operator is handed, as `run_recurrent` does."""
    kind, shape, rule = state_dtype(current.dtype), current.shape[1:], layer._rule()
    values = zip(rule.parameters, layer._values())
    parameters = [flat_parameter(fitted(n, v, current, shape, kind), shape) for n, v in values]
    weight = layer.weight if layer.mask is None else layer.weight * layer.mask
    return [current, weight.to(kind), *state, *parameters]


@torch.no_grad()
def _sums(
    layer: ns.Recurrent, current: Tensor, state: Sequence[Tensor], lengths: Tensor | None
) -> Tensor:
    """Return the sums that reached the neurons, `[T, B, N]`."""
    rule = layer._rule()
    name = dispatch.choose(layer.neuron.backend, current.device).name
    many = 1 + len(rule.states)
    call = recurrent.Call(name, rule.program, rule.numbers, 0, many, len(state))
    wants = SAVED | TRACES
    return recurrent._run(call, lengths, _tensors(layer, current, state), wants)[-1]


def _replayed(
    layer: ns.Recurrent,
    current: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    sums: Tensor,
) -> tuple[Tensor, ...]:
    """Return spikes, finals and traces of the neuron's step in torch, handed these sums.

    Raises:
        GateError: sums that are not those of the spikes.
    """
    rule, many = layer._rule(), len(layer.states)
    whole, weight, *others = _tensors(layer, current, state)
    whole = whole.to(weight.dtype)
    parameters = others[len(state) :]
    step: Any = stepped.step_of(rule.program, rule.numbers, whole)
    states = tuple(state) or tuple(whole.new_zeros(whole.shape[1:]) for _ in range(many))
    spikes, traces, free = [], [], []
    inside = torch.ones_like(sums, dtype=torch.bool)
    if lengths is not None:
        each = torch.arange(len(whole), device=sums.device)[:, None] < lengths
        inside = each[..., None].expand_as(sums)
    sums = torch.where(inside, sums, 0.0)
    for t, goes in enumerate(inside):
        total = torch.where(goes, whole[t] + states[0] @ weight.T, 0.0)
        free.append(total.detach())
        total = sums[t] + (total - total.detach())
        spike, *after = step(total, *states[1:], *parameters)
        spikes.append(torch.where(goes, spike, 0.0))
        states = tuple(torch.where(goes, a, b) for a, b in zip((spike, *after), states))
        traces.append([torch.where(goes, one, one.detach()) for one in states[1:]])
    check_close("sums", sums, torch.stack(free), BUDGET.get(weight.dtype, 1e-5))
    return (torch.stack(spikes), *states, *map(torch.stack, zip(*traces)))
