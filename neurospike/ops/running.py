"""Calls of a fused backend's time loop: allocate its results, run the loop.

A call is analysed once: the first of all calls whose tensors have the same formats, shapes and
strides goes through the backend's public function, which returns a function that runs the others.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurospike.backend import buffers, dispatch
from neurospike.neurons.program import Program

from .formats import state_dtype, step_shape
from .wants import BY_SAMPLE, FIRST_PARAMETER, SAVED, SPIKES, STATES, TRACES


class Call(NamedTuple):
    """A call of a backend, apart from its tensors and numbers.

    Attributes:
        name: of the backend.
        neuron: the program as text; the numbers that it reads are passed separately.
        num_steps: number of steps of a constant current; -1 for one with a time axis.
        wants: `SPIKES`, `TRACES` or both, with or without `BY_SAMPLE`.
        states: number of states of the neuron.
        given: number of states among the tensors, after the current: all or none.
    """

    name: str
    neuron: str
    num_steps: int
    wants: int
    states: int
    given: int


def count_shown(call: Call) -> int:
    """Return the number of results: spikes if wanted, final states, and traces if wanted."""
    wants = call.wants
    return call.states * (2 if wants & TRACES else 1) + (1 if wants & SPIKES else 0)


def by_kind(
    call: Call, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Split the gradients of a call's results into those of spikes, states and traces."""
    first = 1 if call.wants & SPIKES else 0
    ends = first + call.states
    return grads[0] if first else None, grads[first:ends], grads[ends:]


class Sizes(NamedTuple):
    """Formats and shapes of a call's results; None for a result that is not asked for."""

    state: torch.dtype
    step: Sequence[Any]  # [B, *F]
    spikes: Sequence[Any] | None
    traces: Sequence[Any] | None
    saved: Sequence[Any] | None
    states: int  # how many there are
    largest: int  # bytes of a sequence in the state's format


def sizes_of(
    every: int, shape: torch.Size, dtype: torch.dtype, neuron: str, num_steps: int, wants: int
) -> Sizes:
    """Return the sizes of a forward pass's results; `every` is the row's `checkpoint_every`."""
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


def maker(like: Tensor, largest: int | None = None) -> Callable[..., Tensor]:
    """Return a function that makes empty tensors on the device of `like`.

    largest: most bytes that a tensor will have, by default those of `like`. The sizes of a shape
    are separate arguments of the function, which torch reads in half the time.
    """
    if like.is_cpu and type(like) is Tensor:
        return _on_cpu(like.nbytes if largest is None else largest)
    return like.new_empty  # on a GPU, or for a fake tensor of torch.compile


def _on_cpu(largest: int) -> Callable[..., Tensor]:
    return torch.empty if largest < buffers.LEAST_BYTES else _lent


def _lent(*shape: int, dtype: torch.dtype) -> Tensor:
    return buffers.empty(shape, dtype)


def _by_sample(
    empty: Callable[..., Tensor], steps: int, batch: int, *features: int, dtype: torch.dtype
) -> Tensor:
    """Return an empty sequence `[T, B, *F]` that lies in memory as `[B, T, *F]` does."""
    found = empty(batch, steps, *features, dtype=dtype)
    if type(found) is not Tensor:  # a fake tensor, in graphs without in-place operations
        return found.transpose(0, 1)
    # Transposed in place: the caller could not change a view in place.
    return found.transpose_(0, 1)


def allocate(
    empty: Callable[..., Tensor], dtype: torch.dtype, sizes: Sizes, wants: int
) -> tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Return `(spikes, finals, traces, saved)`; None or empty for what is not wanted.

    empty: what `maker` returned; dtype: of the current.
    """
    state, step, spikes, traces, saved, count, _ = sizes
    sequence = empty
    if wants & BY_SAMPLE:
        sequence = functools.partial(_by_sample, empty)
    each = range(count)
    return (
        None if spikes is None else sequence(*spikes, dtype=dtype),
        [empty(*step, dtype=state) for _ in each],
        [] if traces is None else [sequence(*traces, dtype=state) for _ in each],
        [] if saved is None else [empty(*saved, dtype=state) for _ in each],
    )


def allocate_gradients(
    empty: Callable[..., Tensor],
    current: Tensor,
    parameters: Sequence[Tensor],
    states: int,
    num_steps: int,
    wants: int,
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Return memory for the gradients of the current, and of states and parameters if wanted."""
    sequence = empty
    if wants & BY_SAMPLE and num_steps < 0:
        sequence = functools.partial(_by_sample, empty)
    of_states: list[Tensor] = []
    if wants & STATES:
        state, shape = state_dtype(current.dtype), step_shape(current, num_steps)
        of_states = [empty(*shape, dtype=state) for _ in range(states)]
    of_parameters: list[Tensor | None] = []
    for k, one in enumerate(parameters):
        of_parameters.append(one.new_empty(one.shape) if wants & FIRST_PARAMETER << k else None)
    return sequence(*current.shape, dtype=current.dtype), of_states, of_parameters


def listed(spikes: Tensor | None, *others: list[Tensor]) -> list[Tensor]:
    """Return the results of a forward pass in one list, without those that are None."""
    found = [] if spikes is None else [spikes]
    for each in others:
        found += each
    return found


def gradients_of(
    out: Tensor, states: list[Tensor], parameters: list[Tensor | None]
) -> list[Tensor]:
    """Return the gradients in one list, without those of parameters that are None."""
    return [out, *states, *[one for one in parameters if one is not None]]


class Known:
    """What the first of several calls alike has found out for the others.

    Attributes:
        sizes: of the results.
        empty: what allocates results, and what allocates gradients; None on a GPU, where the
            current's `new_empty` does.
        shown: number of results that are returned, not only saved for the backward pass.
        again: function returned by the backend that runs such calls, or None.
        backward: such functions for backward passes, by the key that `Runner.backward` makes.
    """

    __slots__ = ("again", "backward", "empty", "shown", "sizes")

    def __init__(self, sizes: Sizes, shown: int, current: Tensor) -> None:
        self.sizes, self.shown = sizes, shown
        # Must not refer to the tensor, which would then stay alive as long as this object.
        makers = _on_cpu(sizes.largest), _on_cpu(current.nbytes)
        self.empty = makers if current.is_cpu else (None, None)
        self.again: Callable[..., None] | None = None
        self.backward: dict[Any, Callable[..., None]] = {}


_threads = torch.get_num_threads
KEPT = 4096  # kinds of calls that are kept, and kinds of backward passes of each
_every: list["Runner"] = []


def _put(table: dict[Any, Any], key: Any, value: Any) -> None:
    if len(table) >= KEPT:
        table.clear()
    table[key] = value


def forget() -> None:
    """Forget everything known about calls, so that backends are asked again."""
    for runner in _every:
        runner.known.clear()


class Runner:
    """A backend's time loop and its gradient; tensors are `current, *states, *parameters`."""

    def __init__(self, row: dispatch.Backend) -> None:
        self.row = row
        self.known: dict[Any, Known] = {}
        _every.append(self)

    def about(
        self, call: Call, saves: bool, lengths: Tensor | None, tensors: Sequence[Tensor]
    ) -> Known:
        """Return what is known about calls like this one."""
        current = tensors[0]
        key: tuple[Any, ...] = (call, saves, lengths is None, _threads(), current.dtype)
        key += (current.get_device(), current.shape, current.stride())
        if len(tensors) > 1:
            key += tuple([(one.shape, one.stride()) for one in tensors])
        known = self.known.get(key)
        if known is None:
            every = self.row.checkpoint_every if saves else 0
            wants = call.wants | SAVED
            options = (current.shape, current.dtype, call.neuron, call.num_steps, wants)
            known = Known(sizes_of(every, *options), count_shown(call), current)
            _put(self.known, key, known)
        return known

    def forward(
        self,
        call: Call,
        numbers: Sequence[float],
        saves: bool,
        lengths: Tensor | None,
        tensors: Sequence[Tensor],
    ) -> tuple[list[Tensor], Known]:
        """Run the loop; return its results, with saved states if `saves`, and what is known."""
        given, current = 1 + call.given, tensors[0]
        known = self.about(call, saves, lengths, tensors)
        states, parameters = tensors[1:given], tensors[given:]
        empty = known.empty[0] or current.new_empty
        spikes, finals, traces, saved = results = allocate(
            empty, current.dtype, known.sizes, call.wants
        )
        if known.again is not None:
            known.again(current, states, parameters, numbers, lengths, *results)
        else:
            options: dict[str, Any] = {"saved": saved} if self.row.checkpoint_every else {}
            known.again = dispatch.scan_of(self.row).forward(
                current=current,
                states=states,
                parameters=parameters,
                spikes=spikes,
                finals=finals,
                traces=traces,
                numbers=numbers,
                lengths=lengths,
                **_told(call, current),
                **options,
            )
        return listed(*results), known

    def backward(
        self,
        call: Call,
        numbers: Sequence[float],
        known: Known,
        wanted: int,
        lengths: Tensor | None,
        grads: Sequence[Tensor | None],
        tensors: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return the gradients that are `wanted`; `grads` are the gradients of the results."""
        given, current = 1 + call.given, tensors[0]
        states, parameters = tensors[1:given], tensors[given:]
        empty = known.empty[1] or current.new_empty
        out, of_states, of_parameters = allocate_gradients(
            empty, current, parameters, call.states, call.num_steps, wanted
        )
        spikes, finals, traces = by_kind(call, grads)
        key = (
            *(wanted, _threads()),
            *[None if one is None else one.stride() for one in grads],
            # These may have been changed by saved-tensor hooks.
            *[(one.dtype, one.shape, one.stride()) for one in (*tensors, *saved)],
        )
        again = known.backward.get(key)
        if again is not None:
            again(
                spikes,
                finals,
                traces,
                current,
                states,
                parameters,
                numbers,
                lengths,
                saved,
                out,
                of_states,
                of_parameters,
            )
        else:
            state = state_dtype(current.dtype)
            if any(one.dtype != state for one in (*states, *parameters, *saved)):
                # Saved-tensor hooks have returned another format.
                tensors = (current, *[one.to(state) for one in tensors[1:]])
                saved = tuple([one.to(state) for one in saved])
                return self.backward(call, numbers, known, wanted, lengths, grads, tensors, saved)
            more: dict[str, Any] = {"saved": saved} if self.row.checkpoint_every else {}
            again = dispatch.scan_of(self.row).backward(
                grad_spikes=spikes,
                grad_finals=finals,
                grad_traces=traces,
                current=current,
                states=states,
                parameters=parameters,
                out=out,
                out_states=of_states,
                out_parameters=of_parameters,
                numbers=numbers,
                lengths=lengths,
                **_told(call, current),
                **more,
            )
            if again is not None:
                _put(known.backward, key, again)
        return gradients_of(out, of_states, of_parameters)


def _told(call: Call, current: Tensor) -> dict[str, Any]:
    """Return the options of a call for a backend, besides its tensors."""
    is_constant = call.num_steps >= 0
    told: dict[str, Any] = {
        "neuron": call.neuron,
        "steps": call.num_steps if is_constant else current.shape[0],
        "constant": is_constant,
    }
    if call.wants & BY_SAMPLE:
        told["by_sample"] = True
    return told
