"""Torch operators that run any recorded neuron over time: schema, fake, autograd and dispatch.

Each fused row of `dispatch.TABLE` becomes `torch.ops.neurospike.<name>_scan` and
`..._scan_backward`. They take any number of states and parameters as lists, and the neuron as the
string that `neurons.Program` writes, so a graph saved by torch.export runs without the neuron's
Python function. The list that they return has only the results asked for.

The operators are defined when the package is imported, so that saved graphs find them; the backend
behind them is imported at the first real call. The `autograd.Function` is around the operators:
that was measured at 14 us per call against 32 us for `register_autograd`, and torch.compile traces
through it.

A backend whose row has `checkpoint_every = K` saves its states before every K-th step if a gradient
will be needed. They are flat, `[ceil(T/K) * B * F]` each, because torch.compile and torch.export
treat a dimension of 1, such as ceil(T/K) of a short sequence, as fixed.
`neurospike.backend.protocols.Scan` says what a backend must provide.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike.backend import dispatch
from neurospike.neurons.program import Program

from . import batching, decomposed
from .running import (
    Call,
    Runner,
    allocate,
    allocate_gradients,
    by_kind,
    count_shown,
    gradients_of,
    listed,
    maker,
    sizes_of,
)
from .wants import BY_SAMPLE, FIRST_PARAMETER, SAVED, SPIKES, STATES, TRACES
from .watching import is_watched

_LIBRARY = torch.library.Library("neurospike", "DEF")
_COMMON = "Tensor current, Tensor[] states, Tensor[] parameters, "
_REST = "str neuron, float[] numbers, SymInt num_steps, int wants, Tensor? lengths=None"
_FORWARD = f"({_COMMON}{_REST}) -> Tensor[]"
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor?[] grad_finals, Tensor?[] grad_traces, "
    f"{_COMMON}Tensor[] saved, {_REST}) -> Tensor[]"
)


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
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        sizes = sizes_of(every, current.shape, current.dtype, neuron, steps, wants)
        empty = maker(current, sizes.largest)
        return listed(*allocate(empty, current.dtype, sizes, wants))

    def fake_backward(*arguments: Any) -> list[Tensor]:
        current, _, parameters, _, neuron, _, steps, wants = arguments[3:11]
        many = Program.parse(neuron).states
        empty = maker(current)
        return gradients_of(*allocate_gradients(empty, current, parameters, many, steps, wants))

    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    decomposed.register(name, fake_forward, decomposed.scan)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for operator, mapped in zip((name, f"{name}_backward"), batching.rules(name)):
        torch.library.register_vmap(f"neurospike::{operator}", mapped, lib=_LIBRARY)
    for device in row.device_types:
        implement(row, device)


_runners: dict[str, Runner] = {}  # by the names of their rows


def implement(row: dispatch.Backend, device_type: str) -> None:
    """Make the operators of `row` work on tensors of `device_type`."""
    runner = _runners[row.name] = Runner(row)

    @functools.lru_cache(maxsize=4096)
    def call_of(given: int, neuron: str, num_steps: int, wants: int) -> Call:
        many = Program.parse(neuron).states
        shown = wants & (SPIKES | TRACES | BY_SAMPLE)
        return Call(row.name, neuron, num_steps, shown, many, given)

    def forward(
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        neuron: str,
        numbers: Sequence[float],
        num_steps: int,
        wants: int,
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        call = call_of(len(states), neuron, num_steps, wants)
        tensors = (current, *states, *parameters)
        return runner.forward(call, tuple(numbers), bool(wants & SAVED), lengths, tensors)[0]

    def backward(
        grad_spikes: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_traces: Sequence[Tensor | None],
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        saved: Sequence[Tensor],
        neuron: str,
        numbers: Sequence[float],
        num_steps: int,
        wants: int,
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        shown = SPIKES | (TRACES if grad_traces else 0) | wants & BY_SAMPLE
        call = call_of(len(states), neuron, num_steps, shown)
        tensors = (current, *states, *parameters)
        known = runner.about(call, True, lengths, tensors)
        grads = (grad_spikes, *grad_finals, *grad_traces)
        options = (known, wants, lengths, grads, tensors, tuple(saved))
        return runner.backward(call, tuple(numbers), *options)

    _LIBRARY.impl(f"{row.name}_scan", forward, device_type.upper())
    _LIBRARY.impl(f"{row.name}_scan_backward", backward, device_type.upper())


for _row in dispatch.TABLE.values():
    if _row.fused:
        define(_row)


class Once(torch.autograd.Function):
    """Identity on gradients; its backward raises: a fused kernel has no second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the inputs."""
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
    """The pair of operators as one differentiable function.

    If no tool observes the call, the operators' runner is called directly, which costs a small
    layer less host time.
    """

    # Not split into forward and setup_context: torch would inspect the signature at every call.
    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        numbers: Sequence[float],
        lengths: Tensor | None,
        watched: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        if watched:
            found, known = _by_operator(call, numbers, call.wants | SAVED, lengths, tensors), None
            many = count_shown(call)
        else:
            found, known = _runners[call.name].forward(call, numbers, True, lengths, tensors)
            many = known.shown
        ctx.save_for_backward(lengths, *tensors, *found[many:])
        ctx.options = (call, numbers, len(tensors), known)
        ctx.set_materialize_grads(False)
        return tuple(found[:many])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call, numbers, many, known = ctx.options
        kept = ctx.saved_tensors  # unpacked once
        lengths, tensors, saved = kept[0], kept[1 : 1 + many], kept[1 + many :]
        if lengths is not None and not (lengths.dtype is torch.int64 and lengths.is_contiguous()):
            lengths = lengths.to(torch.int64).contiguous()  # changed by a saved-tensor hook
        given, wanted = 1 + call.given, call.wants & BY_SAMPLE
        if many > 1:
            needs = ctx.needs_input_grad[4:]
            wanted |= STATES if True in needs[1:given] else 0
            for k, need in enumerate(needs[given:]):
                wanted |= (FIRST_PARAMETER << k) if need else 0
        try:
            if known is None or is_watched((*kept, *grads)):
                found = _backward_by_operator(call, numbers, wanted, lengths, grads, tensors, saved)
            else:
                runner = _runners[call.name]
                found = runner.backward(
                    call, numbers, known, wanted, lengths, grads, tensors, saved
                )
        except RuntimeError:  # checked only after an error, so that the usual call costs nothing
            if batching.is_batched(grads):
                return batching.one_by_one(_Scan.backward, ctx, grads)
            dense = batching.as_dense(grads)
            if dense is None:
                raise
            return _Scan.backward(ctx, *dense)
        if torch.is_grad_enabled():  # create_graph=True
            found = Once.apply(*found, *tensors, *grads)[: len(found)]
        if len(found) == 1:  # the gradient of the current alone
            return (None, None, None, None, found[0], *(None,) * (many - 1))
        whole = iter(found)
        gradients: list[Tensor | None] = [next(whole)]
        gradients += [next(whole) if wanted & STATES else None for _ in range(call.given)]
        gradients += [next(whole) if need else None for need in needs[given:]]
        return (
            None,
            None,
            None,
            None,
            *(grad if need else None for grad, need in zip(gradients, needs)),
        )


class _Split(_Scan):
    """`_Scan` with a separate `setup_context`, which the transforms of `torch.func` need."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        call: Call,
        numbers: Sequence[float],
        lengths: Tensor | None,
        watched: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(_by_operator(call, numbers, call.wants | SAVED, lengths, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, numbers, lengths, _, *tensors = inputs
        saved = output[count_shown(call) :]
        ctx.save_for_backward(lengths, *tensors, *saved)
        ctx.options = (call, numbers, len(tensors), None)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)


def _by_operator(
    call: Call,
    numbers: Sequence[float],
    wants: int,
    lengths: Tensor | None,
    tensors: Sequence[Tensor],
) -> list[Tensor]:
    operator = getattr(torch.ops.neurospike, f"{call.name}_scan")
    given = 1 + call.given
    states, parameters = tensors[1:given], tensors[given:]
    options = (call.neuron, numbers, call.num_steps, wants, lengths)
    found: list[Tensor] = operator(tensors[0], states, parameters, *options)
    return found


def _backward_by_operator(
    call: Call,
    numbers: Sequence[float],
    wanted: int,
    lengths: Tensor | None,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    operator = getattr(torch.ops.neurospike, f"{call.name}_scan_backward")
    given = 1 + call.given
    found: list[Tensor] = operator(
        *by_kind(call, grads),
        tensors[0],
        tensors[1:given],
        tensors[given:],
        saved,
        call.neuron,
        numbers,
        call.num_steps,
        wanted,
        lengths,
    )
    return found


def fused_scan(
    call: Call,
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    lengths: Tensor | None = None,
    watched: bool | None = None,
) -> tuple[Tensor, ...]:
    """Run a fused backend; return spikes if wanted, final states, and traces if wanted.

    tensors: the current `[T, B, *F]`, or `[B, *F]` with `num_steps >= 0`; then all states, each
    `[B, *F]` in the state's number format, or none of them for zeros; then the parameters, each one
    number or `[P]`, a value for each neuron of F flattened, in the state's number format.

    lengths: int64 `[B]`. watched: what `is_watched` returned for the call; None to find out here.
    """
    if watched is None:
        watched = is_watched(tensors)
    # In forward-mode AD the Function raises; the bare operator would return tangents of zero.
    forward_mode = forward_ad._current_level >= 0
    if forward_mode or (torch.is_grad_enabled() and True in [t.requires_grad for t in tensors]):
        if torch._C._are_functorch_transforms_active():
            every: tuple[Tensor, ...] = _Split.apply(call, numbers, lengths, watched, *tensors)
            return every[: count_shown(call)]
        found: tuple[Tensor, ...] = _Scan.apply(call, numbers, lengths, watched, *tensors)
        return found
    if watched:
        return tuple(_by_operator(call, numbers, call.wants, lengths, tensors))
    return tuple(_runners[call.name].forward(call, numbers, False, lengths, tensors)[0])
