"""Torch operators of recurrent layers: the spikes of a step are fed back through a weight.

    current_t = x_t + weight @ spikes_{t-1}

A backend whose row in `dispatch.TABLE` names a module in the column `recurrent` runs the whole time
loop, forward and backward, as one kernel. For the others `SteppedRecurrence` runs a product by
torch and one step of the backend's `Scan` for each time step. In either case the gradient of the
weight is a single product, after the loop, of the currents' gradients and the spikes before them.

Saved for the backward pass: the spikes, the sums of currents that reached the neurons, and, unless
a backend's kernel recomputes them, the states after each step. The last spikes are a state, which
precedes the neuron's own. If the graph is freed after its backward pass, the backend's kernel may
overwrite the saved sums with their gradients, which takes a sequence less of memory.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike.backend import dispatch

from . import batching, decomposed
from .formats import state_dtype
from .running import gradients_of, maker
from .scan import Once
from .stepped_recurrence import SteppedRecurrence
from .wants import FIRST_PARAMETER, OVERWRITE, SAVED, STATES, TRACES
from .watching import implemented, operation

if TYPE_CHECKING:
    from neurospike.backend.protocols import Recurrence

_LIBRARY = torch.library.Library("neurospike", "FRAGMENT")  # defined by `scan`
_COMMON = "Tensor weight, Tensor[] states, Tensor[] parameters, Tensor? lengths, "
_REST = "str neuron, float[] numbers, int wants) -> Tensor[]"
_FORWARD = f"(Tensor current, {_COMMON}{_REST}"
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor?[] grad_finals, Tensor?[] grad_traces, Tensor spikes, "
    f"Tensor currents, Tensor[] traces, {_COMMON}{_REST}"
)


class Call(NamedTuple):
    """A call of a backend, apart from its tensors.

    Attributes:
        name: of the operator's backend.
        neuron: the program as text.
        numbers: the numbers that the program reads.
        wants: `TRACES`, or 0; the spikes are always wanted.
        states: number of states, including the last spikes.
        given: number of states among the tensors, after current and weight: all or none.
    """

    name: str
    neuron: str
    numbers: Sequence[float]
    wants: int
    states: int
    given: int


def _allocate(
    current: Tensor, many: int, wants: int
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
    """Return `(spikes, finals, traces, currents)`; the last two empty and None if not wanted."""
    state, shape, empty = state_dtype(current.dtype), current.shape, maker(current)
    return (
        empty(*shape, dtype=current.dtype),
        [empty(*shape[1:], dtype=state) for _ in range(many)],
        [empty(*shape, dtype=state) for _ in range(many - 1)] if wants & TRACES else [],
        empty(*shape, dtype=state) if wants & SAVED else None,
    )


def _allocate_gradients(
    currents: Tensor, weight: Tensor, parameters: Sequence[Tensor], states: int, wants: int
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Return memory for the gradients of currents, and of states, weight, parameters if wanted."""
    empty, dtype = maker(currents), currents.dtype
    count = states if wants & STATES else 0
    return (
        currents if wants & OVERWRITE else empty(*currents.shape, dtype=dtype),
        [empty(*currents.shape[1:], dtype=dtype) for _ in range(count)],
        [
            one.new_empty(one.shape) if wants & FIRST_PARAMETER << k else None
            for k, one in enumerate((weight, *parameters))
        ],
    )


def define(row: dispatch.Backend) -> None:
    """Make the two operators of a fused `row`, once in a process."""
    name = f"{row.name}_recurrent"
    _LIBRARY.define(name + _FORWARD)
    _LIBRARY.define(name + "_backward" + _BACKWARD)

    def fake_forward(*arguments: Any) -> list[Tensor]:
        current, _, _, _, _, neuron, _, wants = arguments
        spikes, finals, traces, currents = _allocate(current, _states_of(neuron), wants)
        return [spikes, *finals, *traces, *([] if currents is None else [currents])]

    def fake_backward(*arguments: Any) -> list[Tensor]:
        spikes, currents, _, weight, _, parameters, _, neuron, _, wants = arguments[3:]
        many = _states_of(neuron)
        out, out_states, others = _allocate_gradients(currents, weight, parameters, many, wants)
        return gradients_of(out.new_empty(out.shape, dtype=spikes.dtype), out_states, others)

    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    decomposed.register(name, fake_forward, decomposed.recurrent)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for device in row.device_types:
        implement(row, device)


@functools.cache
def _recurrence_of(row: dispatch.Backend) -> "Recurrence":
    """Return what runs a recurrent layer: the row's own kernels, or a loop over its scan."""
    found: Recurrence = dispatch.load(row.recurrent) if row.recurrent else SteppedRecurrence(row)
    return found


def _keeps_states(row: dispatch.Backend) -> bool:
    """Return whether the states after each step are saved for the backward pass."""
    return row.checkpoint_every > 0 or not row.recurrent


def _is_hooked() -> bool:
    """Return whether saved tensors go through hooks, whose owner may keep them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _may_overwrite(row: dispatch.Backend, ctx: Any) -> bool:
    """Return whether the running backward pass may overwrite the tensors saved for it.

    It may not if the graph is kept and will be read again, if the tensors went through hooks and
    may be in use elsewhere, or under a dispatch mode, such as a tracer, which relies on operators
    not to change their inputs.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
        and torch._C._len_torch_dispatch_stack() == 0
        and not ctx.is_read_again
        and getattr(_recurrence_of(row), "OVERWRITES", False)
    )


def _states_of(neuron: str) -> int:
    """Return the number of states, including the last spikes."""
    return 1 + int(neuron[: neuron.index(" ")])


def implement(row: dispatch.Backend, device_type: str) -> None:
    """Make the operators of `row` work on tensors of `device_type`."""

    def forward(
        current: Tensor,
        weight: Tensor,
        states: list[Tensor],
        parameters: list[Tensor],
        lengths: Tensor | None,
        neuron: str,
        numbers: list[float],
        wants: int,
    ) -> list[Tensor]:
        spikes, finals, traces, currents = _allocate(current, _states_of(neuron), wants)
        if current.numel() == 0:
            for k, final in enumerate(finals):
                final.copy_(states[k]) if states else final.zero_()
        else:
            _recurrence_of(row).forward(
                current=current,
                weight=weight,
                states=states,
                parameters=parameters,
                lengths=lengths,
                neuron=neuron,
                numbers=numbers,
                spikes=spikes,
                traces=traces,
                finals=finals,
                currents=currents,
            )
        return [spikes, *finals, *traces, *([] if currents is None else [currents])]

    def backward(
        grad_spikes: Tensor | None,
        grad_finals: list[Tensor | None],
        grad_traces: list[Tensor | None],
        spikes: Tensor,
        currents: Tensor,
        traces: list[Tensor],
        weight: Tensor,
        states: list[Tensor],
        parameters: list[Tensor],
        lengths: Tensor | None,
        neuron: str,
        numbers: list[float],
        wants: int,
    ) -> list[Tensor]:
        out, out_states, out_parameters = _allocate_gradients(
            currents, weight, parameters, _states_of(neuron), wants
        )
        out_weight, *out_others = out_parameters
        if currents.numel() == 0:
            for before, final in zip(out_states, grad_finals):
                before.zero_() if final is None else before.copy_(final)
            for one in out_parameters:
                if one is not None:
                    one.zero_()
            return gradients_of(out.to(spikes.dtype), out_states, out_parameters)
        _recurrence_of(row).backward(
            grad_spikes=grad_spikes,
            grad_finals=grad_finals,
            grad_traces=grad_traces,
            currents=currents,
            traces=traces,
            weight=weight,
            states=states,
            parameters=parameters,
            lengths=lengths,
            neuron=neuron,
            numbers=numbers,
            out=out,
            out_states=out_states,
            out_parameters=out_others,
        )
        if out_weight is not None:
            size = out_weight.shape[0]
            before = spikes[:-1].to(out.dtype).reshape(-1, size)
            _recurrence_of(row).weight_gradient(
                grad=out[1:].view(-1, size), spikes=before, out=out_weight
            )
            if states:
                out_weight.addmm_(out[0].T, states[0])
        return gradients_of(out.to(spikes.dtype), out_states, out_parameters)

    for name, function in (("recurrent", forward), ("recurrent_backward", backward)):
        _LIBRARY.impl(f"{row.name}_{name}", function, device_type.upper())
        implemented[f"{row.name}_{name}"] = function


for _row in dispatch.TABLE.values():
    if _row.fused:
        define(_row)


class _Recurrent(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, lengths: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        row = dispatch.TABLE[call.name]
        wants = call.wants | SAVED | (TRACES if _keeps_states(row) else 0)
        spikes, *others = _run(call, lengths, tensors, wants)
        finals, currents = others[: call.states], others[-1]
        traces = others[call.states : -1]
        kept = traces if _keeps_states(row) else []
        lengths_kept = () if lengths is None else (lengths,)
        every = (*lengths_kept, *tensors[1:], spikes, currents, *kept)
        ctx.save_for_backward(*every)
        ctx.formats = [one.dtype for one in every]
        ctx.options = (call, len(tensors) - 1, len(lengths_kept))
        ctx.is_read_again = not torch.compiler.is_compiling() and _is_hooked()
        ctx.is_spent = False  # whether saved tensors have been overwritten
        ctx.set_materialize_grads(False)
        return (spikes, *finals, *(traces if call.wants & TRACES else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if batching.is_batched(grads):
            ctx.is_read_again = True
            return batching.one_by_one(_Recurrent.backward, ctx, grads)
        grads = tuple(batching.as_dense(grads) or grads)
        call, many, has_lengths = ctx.options
        kept = batching.as_saved(ctx.saved_tensors, ctx.formats)
        if ctx.is_spent:  # an earlier backward pass overwrote them and failed later; graph was kept
            raise RuntimeError(
                "a recurrent layer was to go backward a second time, after an error in the first, "
                "in which its saved tensors were written over; call it again, or go backward with "
                "retain_graph=True"
            )
        lengths = kept[0] if has_lengths else None
        weight, *others = kept[has_lengths : has_lengths + many]
        spikes, currents, *traces = kept[has_lengths + many :]
        given = call.given
        needs = ctx.needs_input_grad[2:]
        asked = STATES if True in needs[2 : 2 + given] else 0
        for k, need in enumerate((needs[1], *needs[2 + given :])):
            asked |= (FIRST_PARAMETER << k) if need else 0
        if _may_overwrite(dispatch.TABLE[call.name], ctx):
            ctx.is_spent = True
            asked |= OVERWRITE
        finals = 1 + call.states
        backward = operation(f"{call.name}_recurrent_backward", (*kept, *grads))
        with torch.no_grad():
            found = backward(
                grads[0],
                grads[1:finals],
                grads[finals:] if call.wants & TRACES else (),
                spikes,
                currents,
                traces,
                weight,
                others[:given],
                others[given:],
                lengths,
                call.neuron,
                call.numbers,
                asked,
            )
        if torch.is_grad_enabled():  # create_graph=True
            # The current was not saved; the spikes, which depend on it, take its place.
            inputs = (one for one in (spikes, weight, *others, *grads) if one is not None)
            found = Once.apply(*found, *inputs)[: len(found)]
        whole = iter(found)
        current = next(whole)
        states = [next(whole) if asked & STATES else None for _ in range(call.states)][:given]
        weight_grad = next(whole) if needs[1] else None
        parameters = [next(whole) if need else None for need in needs[2 + given :]]
        gradients = (current, weight_grad, *states, *parameters)
        return (None, None, *(one if need else None for one, need in zip(gradients, needs)))


def _run(call: Call, lengths: Tensor | None, tensors: Sequence[Tensor], wants: int) -> list[Tensor]:
    given = 2 + call.given
    found: list[Tensor] = operation(f"{call.name}_recurrent", (lengths, *tensors))(
        tensors[0],
        tensors[1],
        tensors[2:given],
        tensors[given:],
        lengths,
        call.neuron,
        call.numbers,
        wants,
    )
    return found


def fused_recurrent(
    call: Call, lengths: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a fused backend; return `(spikes, states, traces)`, the last empty if not wanted.

    tensors: the current `[T, B, N]`; the weight `[N, N]`; the last spikes and the neuron's states,
    `[B, N]` each, or none of them for zeros; the parameters, each one number or `[N]`. All but the
    current have the state's number format. lengths: int64 `[B]` or None.
    """
    if torch._C._are_functorch_transforms_active():
        batching.refuse("torch.func (grad, vmap) of a Recurrent", call.name)
    forward_mode = forward_ad._current_level >= 0  # forward-mode AD, for which the Function raises
    if forward_mode or (torch.is_grad_enabled() and True in [t.requires_grad for t in tensors]):
        spikes, *found = _Recurrent.apply(call, lengths, *tensors)
    else:
        spikes, *found = _run(call, lengths, tensors, call.wants)
    return spikes, tuple(found[: call.states]), tuple(found[call.states :])
