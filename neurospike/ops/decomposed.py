"""Decompositions of the fused operators into torch's own, for files without this library: ONNX.

`torch.onnx.export` looks every operator up in torch's table of decompositions, where this module
registers its own. A time loop becomes torch's `scan`, which is exported as ONNX `Scan`: the file
holds a single step, whatever the number of steps, which may be left open. `torch.export` and
torch.compile keep the fused operators; `program.run_decompositions(decomposed.table())` decomposes
them in an exported program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from neurospike.neurons import stepped
from neurospike.neurons.program import Program

from .formats import state_dtype, step_shape
from .wants import BY_SAMPLE, SPIKES, TRACES

_FORMS: dict[Any, Callable[..., Any]] = {}


def table() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of the fused operators, as `run_decompositions` takes them."""
    return dict(_FORMS)


def register(name: str, fake: Callable[..., Any], form: Callable[..., Any]) -> None:
    """Make `form` the decomposition of `torch.ops.neurospike.<name>`.

    fake: the operator's fake implementation, which returns tensors of the right shapes.
    """

    def decomposed(*arguments: Any, **named: Any) -> Any:
        # Fake tensors of symbolic sizes use the same table, and need shapes only.
        if get_proxy_mode() is None:
            return fake(*arguments, **named)
        found = form(*arguments, **named)
        # Results for a backward pass are never read here, so their fakes stand for them.
        return found if isinstance(found, Tensor) else found + fake(*arguments)[len(found) :]

    operator = getattr(torch.ops.neurospike, name).default
    register_decomposition(operator)(decomposed)
    _FORMS[operator] = decomposed


def scan(
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    num_steps: int,
    wants: int,
    lengths: Tensor | None = None,
) -> list[Tensor]:
    """Return the results of `<name>_scan`, without those saved for a backward pass."""
    shape, state = step_shape(current, num_steps), state_dtype(current.dtype)
    many = Program.parse(neuron).states
    start = states or [current.new_zeros(shape, dtype=state) for _ in range(many)]
    values = _values(parameters, numbers, shape[1:], current, state)
    step = stepped.forward_of(neuron)
    found = _over_time(step, current, start, values, num_steps, wants, lengths)
    if not wants & BY_SAMPLE:
        return found
    # With the operator's strides, since later operations may `view` the result.
    over_time = len(shape) + 1
    return [
        one.transpose(0, 1).contiguous().transpose(0, 1) if one.dim() == over_time else one
        for one in found
    ]


def recurrent(
    current: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    neuron: str,
    numbers: Sequence[float],
    wants: int,
) -> list[Tensor]:
    """Return the results of `<name>_recurrent`, without those saved for a backward pass."""
    shape, state = current.shape[1:], state_dtype(current.dtype)
    many = 1 + Program.parse(neuron).states
    start = states or [current.new_zeros(shape, dtype=state) for _ in range(many)]
    values = [weight.t(), *_values(parameters, numbers, shape[1:], current, state)]
    neurons = stepped.forward_of(neuron)

    def step(x: Tensor, last: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        inner, back, outer = others[: many - 1], others[many - 1], others[many:]
        spike, *after = neurons(torch.addmm(x, last, back), *inner, *outer)
        return spike, spike, *after

    found = _over_time(step, current, start, values, -1, wants | SPIKES, lengths)
    # The trace of the state that holds the last spikes is left out: it equals the spikes.
    return found[: 1 + many] + found[2 + many :]


def _values(
    parameters: Sequence[Tensor],
    numbers: Sequence[float],
    features: torch.Size,
    current: Tensor,
    state: torch.dtype,
) -> list[Tensor]:
    """Return the parameters, made to broadcast against F, and the numbers as tensors."""
    each = [one if one.numel() == 1 else one.view(features) for one in parameters]
    made = [torch.full((), one, dtype=state, device=current.device) for one in numbers]
    return each + made


def _over_time(
    step: Callable[..., Any],
    current: Tensor,
    states: Sequence[Tensor],
    values: Sequence[Tensor],
    num_steps: int,
    wants: int,
    lengths: Tensor | None,
) -> list[Tensor]:
    """Return spikes if wanted, final states, and states at every step if wanted."""
    many, state = len(states), states[0].dtype
    is_constant, is_ragged = num_steps >= 0, lengths is not None
    steps = num_steps if is_constant else current.shape[0]
    clock = [torch.arange(steps, device=current.device)] if is_constant or is_ragged else []
    sequences = [*clock, *([] if is_constant else [current])]
    last = many + len(sequences)
    fixed = [*([current] if is_constant else []), *([] if lengths is None else [lengths]), *values]

    def body(*given: Tensor) -> tuple[Tensor, ...]:
        before, now, rest = given[:many], given[many:last], given[last:]
        x = rest[0] if is_constant else now[-1]
        at = int(is_constant)
        goes = now[0] < rest[at] if is_ragged else None
        spike, after = stepped.stepped_once(step, x.to(state), before, rest[at + is_ragged :], goes)
        shown = [spike.to(current.dtype)] if wants & SPIKES else []
        # `scan` requires that no result is an alias of another one or of an input.
        traces = [one.clone() for one in after] if wants & TRACES else []
        return (*(one.clone() for one in after), *(one.clone() for one in shown), *traces)

    start = [one.clone() for one in states]
    found = list(torch.ops.higher_order.scan(body, start, sequences, tuple(fixed)))
    first = many + bool(wants & SPIKES)
    return found[many:first] + found[:many] + found[first:]
