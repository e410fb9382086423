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

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neurospike.backend import buffers, dispatch
from neurospike.neurons.program import Program

from . import batching, decomposed
from .arguments import is_watched
from .formats import state_dtype, step_shape
from .wants import BY_SAMPLE, FIRST_PARAMETER, SAVED, SPIKES, STATES, TRACES

_LIBRARY = torch.library.Library("neurospike", "DEF")
_COMMON = "Tensor current, Tensor[] states, Tensor[] parameters, "
_REST = "str neuron, float[] numbers, SymInt num_steps, int wants, Tensor? lengths=None"
_FORWARD = f"({_COMMON}{_REST}) -> Tensor[]"
_BACKWARD = (
    "(Tensor? grad_spikes, Tensor?[] grad_finals, Tensor?[] grad_traces, "
    f"{_COMMON}Tensor[] saved, {_REST}) -> Tensor[]"
)


class Sizes(NamedTuple):
    """What a call's results are like; None for what is not asked for."""

    state: torch.dtype
    step: Sequence[Any]  # [B, *F]
    spikes: Sequence[Any] | None
    traces: Sequence[Any] | None
    saved: Sequence[Any] | None
    states: int  # how many there are
    largest: int  # bytes of a sequence in the state's format


def _sizes(
    every: int, shape: torch.Size, dtype: torch.dtype, neuron: str, num_steps: int, wants: int
) -> Sizes:
    step = shape if num_steps >= 0 else shape[1:]
    steps = num_steps if num_steps >= 0 else shape[0]
    saved = (-(-steps // every) * math.prod(step),) if every and wants & SAVED else None
    sequence = (steps, *step)
    return Sizes(
        state_dtype(dtype),
        step,
        sequence if wants & SPIKES else None,
        sequence if wants & TRACES else None,
        saved,
        Program.parse(neuron).states,
        math.prod(sequence) * state_dtype(dtype).itemsize,
    )


_known_sizes = functools.lru_cache(maxsize=4096)(_sizes)  # of numbers, not of symbols


def _maker(like: Tensor, largest: int | None = None) -> Callable[..., Tensor]:
    """Return what makes empty tensors where `like` is, of so many bytes at most, or its own.

    Each number of a shape is an argument of its own, which torch reads in half the time.
    """
    if like.is_cpu and type(like) is Tensor:
        largest = like.nbytes if largest is None else largest
        return torch.empty if largest < buffers.LEAST_BYTES else _lent
    return like.new_empty  # on a GPU, or a fake one of torch.compile


def _lent(*shape: int, dtype: torch.dtype) -> Tensor:
    return buffers.empty(shape, dtype)


def _by_sample(
    empty: Callable[..., Tensor], steps: int, batch: int, *features: int, dtype: torch.dtype
) -> Tensor:
    """Return an empty sequence `[T, B, *F]` that lies in memory as `[B, T, *F]` does."""
    return empty(batch, steps, *features, dtype=dtype).transpose(0, 1)


def _allocate(
    current: Tensor, sizes: Sizes, wants: int
) -> tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Return `(spikes, finals, traces, saved)`, as far as they are wanted."""
    state, step, spikes, traces, saved, count, largest = sizes
    empty = sequence = _maker(current, largest)
    if wants & BY_SAMPLE:
        sequence = functools.partial(_by_sample, empty)

    def each(shape: Sequence[Any] | None, make: Callable[..., Tensor] = empty) -> list[Tensor]:
        return [] if shape is None else [make(*shape, dtype=state) for _ in range(count)]

    found = None if spikes is None else sequence(*spikes, dtype=current.dtype)
    return found, each(step), each(traces, sequence), each(saved)


def _allocate_gradients(
    current: Tensor, parameters: Sequence[Tensor], neuron: str, num_steps: int, wants: int
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    states: list[Tensor] = []
    empty = sequence = _maker(current)
    if wants & BY_SAMPLE and num_steps < 0:
        sequence = functools.partial(_by_sample, empty)
    if wants & STATES:
        state, shape = state_dtype(current.dtype), step_shape(current, num_steps)
        states = [empty(*shape, dtype=state) for _ in range(Program.parse(neuron).states)]
    return (
        sequence(*current.shape, dtype=current.dtype),
        states,
        [
            one.new_empty(one.shape) if wants & FIRST_PARAMETER << k else None
            for k, one in enumerate(parameters)
        ],
    )


def _listed(spikes: Tensor | None, *others: list[Tensor]) -> list[Tensor]:
    """Return an operator's results, those that there are."""
    found = [] if spikes is None else [spikes]
    for each in others:
        found += each
    return found


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
        sizes = _sizes(every, current.shape, current.dtype, neuron, steps, wants)
        return _listed(*_allocate(current, sizes, wants))

    def fake_backward(*arguments: Any) -> list[Tensor]:
        current, _, parameters, _, neuron, _, steps, wants = arguments[3:11]
        return _asked(*_allocate_gradients(current, parameters, neuron, steps, wants))

    torch.library.register_fake(f"neurospike::{name}", fake_forward, lib=_LIBRARY)
    decomposed.register(name, fake_forward, decomposed.scan)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)
    for operator, mapped in zip((name, f"{name}_backward"), batching.rules(name, every)):
        torch.library.register_vmap(f"neurospike::{operator}", mapped, lib=_LIBRARY)
    for device in row.device_types:
        implement(row, device)


_implemented: dict[str, Callable[..., list[Tensor]]] = {}


def _operator(name: str, watched: bool) -> Callable[..., Any]:
    """Return an operator, or where nobody sees which one is called, its function itself.

    The function alone costs a small layer less of the host's time; see `benchmarks.compare`.
    """
    return getattr(torch.ops.neurospike, name) if watched else _implemented[name]


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
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        sizes = _known_sizes(every, current.shape, current.dtype, neuron, num_steps, wants)
        spikes, finals, traces, saved = _allocate(current, sizes, wants)
        given: dict[str, Any] = {
            "current": current,
            "states": states,
            "parameters": parameters,
            "neuron": neuron,
            "numbers": numbers,
            "steps": num_steps if num_steps >= 0 else current.shape[0],
            "constant": num_steps >= 0,
            "spikes": spikes,
            "traces": traces,
            "finals": finals,
            "lengths": lengths,
        }
        if every:
            given["saved"] = saved
        if wants & BY_SAMPLE:
            given["by_sample"] = True
        dispatch.scan_of(row).forward(**given)
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
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        out, out_states, out_parameters = _allocate_gradients(
            current, parameters, neuron, num_steps, wants
        )
        given: dict[str, Any] = {
            "grad_spikes": grad_spikes,
            "grad_traces": grad_traces,
            "grad_finals": grad_finals,
            "current": current,
            "states": states,
            "parameters": parameters,
            "neuron": neuron,
            "numbers": numbers,
            "steps": num_steps if num_steps >= 0 else current.shape[0],
            "constant": num_steps >= 0,
            "out": out,
            "out_states": out_states,
            "out_parameters": out_parameters,
            "lengths": lengths,
        }
        if every:
            given["saved"] = saved
        if wants & BY_SAMPLE:
            given["by_sample"] = True
        dispatch.scan_of(row).backward(**given)
        return _asked(out, out_states, out_parameters)

    _LIBRARY.impl(f"{row.name}_scan", forward, device_type.upper())
    _LIBRARY.impl(f"{row.name}_scan_backward", backward, device_type.upper())
    _implemented[f"{row.name}_scan"] = forward
    _implemented[f"{row.name}_scan_backward"] = backward


for _row in dispatch.TABLE.values():
    if _row.fused:
        define(_row)


def _asked(out: Tensor, states: list[Tensor], parameters: list[Tensor | None]) -> list[Tensor]:
    """Return the gradients that were asked for."""
    return [out, *states, *[one for one in parameters if one is not None]]


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


class Call(NamedTuple):
    """What a call asks of a backend beside its tensors.

    Attributes:
        name: of the operator's backend.
        neuron: the program as text.
        numbers: that it reads.
        num_steps: of a constant current; -1 for one with a time axis.
        wants: `SPIKES`, `TRACES` or both, and `BY_SAMPLE` or not.
        states: how many the neuron has.
        given: how many of the tensors are states, after the current: all or none.
    """

    name: str
    neuron: str
    numbers: Sequence[float]
    num_steps: int
    wants: int
    states: int
    given: int


class _Scan(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    # Not split into forward and setup_context: torch would inspect the signature at every call.
    @staticmethod
    def forward(
        ctx: Any, call: Call, lengths: Tensor | None, watched: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        output = _run(call, lengths, watched, tensors)
        shown = _shown(call, output)
        _keep(ctx, call, lengths, tensors, output[len(shown) :])
        return shown

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call, many = ctx.options
        kept = ctx.saved_tensors  # unpacked once
        lengths, tensors, saved = kept[0], kept[1 : 1 + many], kept[1 + many :]
        first, given = 1 if call.wants & SPIKES else 0, 1 + call.given
        finals, asked = first + call.states, call.wants & BY_SAMPLE
        if many > 1:
            needs = ctx.needs_input_grad[3:]
            asked |= STATES if True in needs[1:given] else 0
            for k, need in enumerate(needs[given:]):
                asked |= (FIRST_PARAMETER << k) if need else 0
        operator = _operator(f"{call.name}_scan_backward", is_watched((*kept, *grads)))
        found = operator(
            grads[0] if first else None,
            grads[first:finals],
            grads[finals : finals + call.states] if call.wants & TRACES else (),
            tensors[0],
            tensors[1:given],
            tensors[given:],
            saved,
            call.neuron,
            call.numbers,
            call.num_steps,
            asked,
            lengths,
        )
        if torch.is_grad_enabled():  # create_graph=True
            found = Once.apply(*found, *tensors, *grads)[: len(found)]
        if many == 1:
            return (None, None, None, found[0])
        whole = iter(found)
        gradients = [next(whole)]
        gradients += [next(whole) if asked & STATES else None for _ in range(call.given)]
        gradients += [next(whole) if need else None for need in needs[given:]]
        return (None, None, None, *(grad if need else None for grad, need in zip(gradients, needs)))


class _Split(_Scan):
    """The same in two parts, which the transforms of `torch.func` ask for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        call: Call, lengths: Tensor | None, watched: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return _run(call, lengths, watched, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, lengths, _, *tensors = inputs
        saved = output[len(_shown(call, output)) :]
        _keep(ctx, call, lengths, tensors, saved)
        ctx.mark_non_differentiable(*saved)


def _run(
    call: Call, lengths: Tensor | None, watched: bool, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    operator = _operator(f"{call.name}_scan", watched)
    given = 1 + call.given
    states, parameters = tensors[1:given], tensors[given:]
    options = (call.neuron, call.numbers, call.num_steps, call.wants | SAVED, lengths)
    return tuple(operator(tensors[0], states, parameters, *options))


def _shown(call: Call, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what of an operator's output is not there for the backward pass alone."""
    states = call.states * (2 if call.wants & TRACES else 1)
    return output[: states + (1 if call.wants & SPIKES else 0)]


def _keep(
    ctx: Any,
    call: Call,
    lengths: Tensor | None,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> None:
    """Keep what the backward pass needs."""
    ctx.save_for_backward(lengths, *tensors, *saved)
    ctx.options = (call, len(tensors))
    ctx.set_materialize_grads(False)


def fused_scan(
    call: Call,
    tensors: Sequence[Tensor],
    lengths: Tensor | None = None,
    watched: bool | None = None,
) -> tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a fused backend; return `(spikes, states, traces)`, as far as they are wanted.

    Tensors: the current `[T, B, *F]`, or `[B, *F]` with `num_steps >= 0`; the states, none of them
    which means zeros, or each `[B, *F]` in the state's number format; the parameters, of one number
    or `[P]`, one for each neuron of F flattened, in the state's number format; `lengths`, int64
    `[B]`.

    watched: whether operators are seen; None where nobody has looked yet.
    """
    if watched is None:
        watched = is_watched(tensors)
    # In forward mode the Function refuses; the bare operator would give tangents of zero.
    forward_mode = forward_ad._current_level >= 0
    if forward_mode or (torch.is_grad_enabled() and True in [t.requires_grad for t in tensors]):
        function = _Split if torch._C._are_functorch_transforms_active() else _Scan
        found = function.apply(call, lengths, watched, *tensors)
    else:
        operator = _operator(f"{call.name}_scan", watched)
        given = 1 + call.given
        options = (call.neuron, call.numbers, call.num_steps, call.wants, lengths)
        found = operator(tensors[0], tensors[1:given], tensors[given:], *options)
    first = 1 if call.wants & SPIKES else 0
    finals = first + call.states
    traces = tuple(found[finals : finals + call.states]) if call.wants & TRACES else ()
    return found[0] if first else None, tuple(found[first:finals]), traces
