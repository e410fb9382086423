"""Torch operators that run any recorded neuron over time: schema, fake, autograd, the choice.

Each fused row of `dispatch.TABLE` becomes `torch.ops.neurospike.<name>_scan` and
`..._scan_backward`. They take any number of states and parameters as lists, and the neuron as the
string that `neurons.Program` writes, so a graph that torch.export saved needs no function of
anybody's to run. What nobody asked for is not in the list that comes back.

The operators are defined when the package is imported, so that saved graphs find them; the backend
behind them is imported at the first real call. The `autograd.Function` stands outside of them:
measured at 14 us per call against 32 for `register_autograd`, and torch.compile traces through it.

A backend whose row says `checkpoint_every = K` saves its states before every K-th step, where a
gradient will be needed. They are flat, `[ceil(T/K) * B * F]` each, because torch.compile and
torch.export take a dimension of 1, such as ceil(T/K) of a short sequence, for one that stays 1.
What a backend must provide says `Scan` of `neurospike.backend.protocols`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike.backend import buffers, dispatch
from neurospike.neurons.program import Program

from . import batching
from .arguments import is_watched
from .wants import FIRST_PARAMETER, SAVED, SPIKES, STATES, TRACES

_LIBRARY = torch.library.Library("neurospike", "DEF")
_COMMON = "Tensor current, Tensor[] states, Tensor[] parameters, "
_REST = "str neuron, float[] numbers, SymInt num_steps, int wants) -> Tensor[]"
_FORWARD = f"({_COMMON}{_REST}"
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor?[] grad_finals, Tensor?[] grad_traces, "
    f"{_COMMON}Tensor[] saved, {_REST}"
)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a state for a current of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step_shape(current: Tensor, num_steps: int) -> torch.Size:
    """Return `[B, *F]`; a current with `num_steps >= 0` is held constant and has no time axis."""
    return current.shape if num_steps >= 0 else current.shape[1:]


def _empty(like: Tensor, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    if type(like) is Tensor and like.device.type == "cpu":
        return buffers.empty(shape, dtype)
    return like.new_empty(shape, dtype=dtype)  # on a GPU, or a fake one of torch.compile


def _allocate(
    every: int, current: Tensor, neuron: str, num_steps: int, wants: int
) -> tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Return `(spikes, finals, traces, saved)`, as far as they are wanted."""
    count = Program.parse(neuron).states
    state, shape = state_dtype(current.dtype), step_shape(current, num_steps)
    steps = num_steps if num_steps >= 0 else current.shape[0]
    spikes = _empty(current, (steps, *shape), current.dtype) if wants & SPIKES else None
    finals = [_empty(current, shape, state) for _ in range(count)]
    traces = [
        _empty(current, (steps, *shape), state) for _ in range(count if wants & TRACES else 0)
    ]
    length = -(-steps // every) * math.prod(shape) if every else 0
    saved = [
        _empty(current, (length,), state) for _ in range(count if every and wants & SAVED else 0)
    ]
    return spikes, finals, traces, saved


def _allocate_gradients(
    current: Tensor, parameters: Sequence[Tensor], neuron: str, num_steps: int, wants: int
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    count = Program.parse(neuron).states if wants & STATES else 0
    state, shape = state_dtype(current.dtype), step_shape(current, num_steps)
    states = [_empty(current, shape, state) for _ in range(count)]
    asked = [wants & FIRST_PARAMETER << k for k in range(len(parameters))]
    return (
        _empty(current, current.shape, current.dtype),
        states,
        [one.new_empty(one.shape) if want else None for one, want in zip(parameters, asked)],
    )


def _listed(first: Tensor | None, *lists: Sequence[Tensor | None]) -> list[Tensor]:
    return [one for one in (first, *(one for each in lists for one in each)) if one is not None]


def define(row: dispatch.Backend) -> None:
    """Make the two operators of a fused `row`, once in a process."""
    every, name = row.checkpoint_every, f"{row.name}_scan"
    _LIBRARY.define(name + _FORWARD)
    _LIBRARY.define(name + "_backward" + _BACKWARD)

    def fake_forward(
        current: Tensor,
        states: Any,
        parameters: Any,
        neuron: str,
        numbers: Any,
        steps: int,
        wants: int,
    ) -> list[Tensor]:
        return _listed(*_allocate(every, current, neuron, steps, wants))

    def fake_backward(*arguments: Any) -> list[Tensor]:
        current, _, parameters, _, neuron, _, steps, wants = arguments[3:]
        return _listed(*_allocate_gradients(current, parameters, neuron, steps, wants))

    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for operator, mapped in zip((name, f"{name}_backward"), batching.rules(name, every)):
        torch.library.register_vmap(f"neurospike::{operator}", mapped, lib=_LIBRARY)
    for device in row.device_types:
        implement(row, device)


_implemented: dict[str, Callable[..., list[Tensor]]] = {}


def _operator(name: str, tensors: Iterable[Tensor | None]) -> Callable[..., Any]:
    """Return an operator, or where nobody sees which one is called, its function itself.

    The function alone costs a small layer less of the host's time; see `benchmarks.compare`.
    """
    return getattr(torch.ops.neurospike, name) if is_watched(tensors) else _implemented[name]


def implement(row: dispatch.Backend, device_type: str) -> None:
    """Make the operators of `row` work on tensors of `device_type`."""
    every = row.checkpoint_every

    def forward(
        current: Tensor,
        states: list[Tensor],
        parameters: list[Tensor],
        neuron: str,
        numbers: list[float],
        num_steps: int,
        wants: int,
    ) -> list[Tensor]:
        spikes, finals, traces, saved = _allocate(every, current, neuron, num_steps, wants)
        dispatch.scan_of(row).forward(
            current=current,
            states=states,
            parameters=parameters,
            neuron=neuron,
            numbers=numbers,
            steps=num_steps if num_steps >= 0 else current.shape[0],
            constant=num_steps >= 0,
            spikes=spikes,
            traces=traces,
            finals=finals,
            **({"saved": saved} if every else {}),
        )
        return _listed(spikes, finals, traces, saved)

    def backward(
        grad_spikes: Tensor | None,
        grad_finals: list[Tensor | None],
        grad_traces: list[Tensor | None],
        current: Tensor,
        states: list[Tensor],
        parameters: list[Tensor],
        saved: list[Tensor],
        neuron: str,
        numbers: list[float],
        num_steps: int,
        wants: int,
    ) -> list[Tensor]:
        out, out_states, out_parameters = _allocate_gradients(
            current, parameters, neuron, num_steps, wants
        )
        dispatch.scan_of(row).backward(
            grad_spikes=grad_spikes,
            grad_traces=grad_traces,
            grad_finals=grad_finals,
            current=current,
            states=states,
            parameters=parameters,
            neuron=neuron,
            numbers=numbers,
            steps=num_steps if num_steps >= 0 else current.shape[0],
            constant=num_steps >= 0,
            out=out,
            out_states=out_states,
            out_parameters=out_parameters,
            **({"saved": saved} if every else {}),
        )
        return _listed(out, out_states, out_parameters)

    _LIBRARY.impl(f"{row.name}_scan", forward, device_type.upper())
    _LIBRARY.impl(f"{row.name}_scan_backward", backward, device_type.upper())
    _implemented[f"{row.name}_scan"] = forward
    _implemented[f"{row.name}_scan_backward"] = backward


for _row in dispatch.TABLE.values():
    if _row.fused:
        define(_row)


class Once(torch.autograd.Function):
    """Identity on gradients; its backward raises: a fused kernel has no second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return what was given."""
        return tensors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep nothing: there is no second derivative to compute."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Raise RuntimeError."""
        raise RuntimeError(
            "a fused backend has first derivatives only, and a second one was asked for "
            "(create_graph=True); use backend='reference', which has both"
        )


class _Scan(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    # Not split into forward and setup_context: torch would inspect the signature at every call.
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _call(*inputs)
        _Scan.keep(ctx, inputs, output)
        return output

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what backward needs."""
        name, _, _, _, _, count, _, *tensors = inputs
        saved = output[len(output) - count :] if dispatch.TABLE[name].checkpoint_every else ()
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = (*inputs[:7], len(tensors))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        name, neuron, numbers, num_steps, wants, count, given, many = ctx.options
        kept = ctx.saved_tensors  # unpacked once
        tensors, saved = kept[:many], kept[many:]
        current, states, parameters = tensors[0], tensors[1 : 1 + given], tensors[1 + given :]
        left = list(grads)
        grad_spikes = left.pop(0) if wants & SPIKES else None
        grad_finals, grad_traces = left[:count], left[count : 2 * count] if wants & TRACES else []
        needs = ctx.needs_input_grad[7:]
        asked = STATES if any(needs[1 : 1 + given]) else 0
        for k, need in enumerate(needs[1 + given :]):
            asked |= (FIRST_PARAMETER << k) if need else 0
        operator = _operator(f"{name}_scan_backward", (*kept, *grads))
        found = operator(
            grad_spikes,
            grad_finals,
            grad_traces,
            current,
            states,
            parameters,
            saved,
            neuron,
            numbers,
            num_steps,
            asked,
        )
        if torch.is_grad_enabled():  # create_graph=True
            found = Once.apply(*found, *tensors, *grads)[: len(found)]
        whole = iter(found)
        gradients = [next(whole)]
        gradients += [next(whole) if asked & STATES else None for _ in range(given)]
        gradients += [next(whole) if need else None for need in needs[1 + given :]]
        wanted = (grad if need else None for grad, need in zip(gradients, needs))
        return (*(None,) * 7, *wanted)


class _Split(_Scan):
    """The same in two parts, which the transforms of `torch.func` ask for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _call(*inputs)

    setup_context = staticmethod(_Scan.keep)


def _call(
    name: str,
    neuron: str,
    numbers: Sequence[float],
    num_steps: int,
    wants: int,
    count: int,
    given: int,
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    operator = _operator(f"{name}_scan", tensors)
    current, states, parameters = tensors[0], tensors[1 : 1 + given], tensors[1 + given :]
    return tuple(operator(current, states, parameters, neuron, numbers, num_steps, wants | SAVED))


def fused_scan(
    name: str,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    num_steps: int,
    wants: int,
    count: int,
) -> tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run the fused backend `name`; return `(spikes, states, traces)`, as far as they are wanted.

    count: how many states the neuron has.

    Shapes: `current` `[T, B, *F]`, or `[B, *F]` with `num_steps >= 0`; `states` none, which means
    zeros, or each `[B, *F]` in the state's number format; `parameters` of one number, or `[P]`, one
    for each neuron of F flattened, in the state's number format.
    """
    tensors = (current, *states, *parameters)
    # In forward mode the Function refuses; the bare operator would give tangents of zero.
    forward_mode = forward_ad._current_level >= 0
    if forward_mode or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        function = _Split if torch._C._are_functorch_transforms_active() else _Scan
        options = (neuron, numbers, num_steps, wants, count, len(states))
        found = function.apply(name, *options, *tensors)
    else:
        operator = _operator(f"{name}_scan", tensors)
        found = operator(current, states, parameters, neuron, numbers, num_steps, wants)
    spikes = found[0] if wants & SPIKES else None
    first = 1 if wants & SPIKES else 0
    finals = tuple(found[first : first + count])
    traces = tuple(found[first + count : first + 2 * count]) if wants & TRACES else ()
    return spikes, finals, traces
