"""The fused CUDA backend of any recorded neuron: the whole time loop in one Triton kernel.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. One program takes a block of neurons
and keeps their states in registers while it goes through time, `EVERY` steps at once: the loads of
such a chunk wait for memory together. The operations are those that were recorded of the neuron,
and its derived gradient (`neurospike.neurons`), printed for Triton.

Saved for backward: the states before every chunk. The backward kernel takes the chunks in reverse;
it reads a chunk's currents again, runs it forward from the saved states with all states in
registers, then in reverse. With S states in float32 that moves 8 + 4 S / EVERY bytes per
neuron-step forward (read current, write spikes) and 12 + 4 S / EVERY backward (read current and the
spikes' gradient, write the current's).

What is the same at every step is read once. With lengths a program's neurons lie within a sample,
and it goes as far as that; what comes after is only filled, never read. What nobody asked for is
compiled away. The number of steps is no compile-time constant. Number formats: state float32, or
float64 if the current is; 16-bit sequences are read and written as they are. Gradients of
parameters are summed over time in registers, over the batch by torch, so that no order of atomic
additions shows in them.
"""

import functools
import linecache
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

import torch
import triton.language as tl
from torch import Tensor

from neurospike.backend.binding import bind
from neurospike.backend.dispatch import TABLE
from neurospike.backend.tensors import are_same, sum_over_batch
from neurospike.kernels.cuda._compile import bits_of, jit
from neurospike.kernels.cuda._formulas import NAMES
from neurospike.kernels.cuda._launch import Launch
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Program, written
from neurospike.ops import running
from neurospike.ops.wants import mask_of

Given = TypeVar("Given", Tensor, "Tensor | None")

SMALL = 1 << 15  # so few neurons do not fill the device; they are spread over all of it

# What a kernel is compiled for; rebound for each variant.
EVERY = TABLE["triton"].checkpoint_every
BLOCK = 256
STAGES = 1
STATES = 1
PARAMETERS = 2
NUMBERS = 0
GIVEN = False  # whether there are states to start from
SCALARS = 3  # bits of the parameters that all neurons share
SPIKES = True
TRACED = 0  # bits of the states whose trace, or its gradient, there is
SAVED = False
CONSTANT = False  # the current has no time axis, nor has its gradient
WANTED = 0  # bits of the parameters whose gradient is asked for
WANT_STATES = False
HELD_CURRENT = False  # the same at every step: read once
HELD_SPIKES = False
HELD_TRACES = 0
LENGTHS = False


def step(*arguments):
    """The neuron's step, made of its program."""


def adjoint(*arguments):
    """The gradient of the step, derived from it."""


def _place(size, steps, samples):
    """Return this program's neurons, and how many steps they are taken.

    The neurons: their offsets, which of them exist, how many there are in all, and before which
    offset they end.
    """
    part = tl.program_id(0).to(tl.int64)
    # 64 bits: a sequence may be longer than 2^31 numbers.
    steps = steps.to(tl.int64)
    if LENGTHS:
        lengths_ptr, features = samples
        each = tl.cdiv(features, BLOCK)
        sample = part // each
        offsets = sample * features + part % each * BLOCK + tl.arange(0, BLOCK)
        end = (sample + 1) * features
        steps = tl.minimum(tl.maximum(tl.load(lengths_ptr + sample), 0), steps)
    else:
        offsets = part * BLOCK + tl.arange(0, BLOCK)
        end = size
    return (offsets, offsets < end, size, end), steps


def _parameters(pointers, counts, place):
    """Load each parameter: one value for all neurons, or one each that repeat over the batch."""
    offsets, valid, _, _ = place
    found = ()
    for p in tl.static_range(PARAMETERS):
        if (SCALARS >> p) & 1:
            found = found + (tl.load(pointers[p]),)
        else:
            found = found + (tl.load(pointers[p] + offsets % counts[p], mask=valid, other=0.0),)
    return found


def _numbers(bits, state):
    """Return the numbers of neuron and surrogate in the state's format."""
    found = ()
    for k in tl.static_range(NUMBERS):
        # Where few bits are set they come as an integer of 32 bits, or as a constant.
        wide = tl.cast(bits[k], tl.int64)
        found = found + (wide.to(tl.float64, bitcast=True).to(state),)
    return found


def _inside(t, steps, is_whole, place):
    """Return which neurons have a step `t`: all that exist, or none after the end of time."""
    offsets, valid, _, end = place
    return valid if is_whole else offsets < tl.where(t < steps, end, 0)


def _load(ptr, t, inside, place, state):
    """Load row `t` of a sequence in the state's format; 0 where not `inside`."""
    offsets, _, size, _ = place
    return tl.load(ptr + t * size + offsets, mask=inside, other=0.0).to(state)


def _store(ptr, t, values, inside, place):
    """Store row `t` of a sequence in the sequence's format."""
    offsets, _, size, _ = place
    tl.store(ptr + t * size + offsets, values.to(ptr.dtype.element_ty), mask=inside)


def _held(ptr, is_held, place, zeros):
    """Load the one row of a sequence that is the same at every step."""
    row = zeros
    if is_held:
        row = _load(ptr, 0, place[1], place, zeros.dtype)
    return row


def _chunk(ptr, is_held, held, first, steps, is_whole, place):
    """Load `EVERY` rows from row `first` on, all of them before the first is used."""
    rows = ()
    for k in tl.static_range(EVERY):
        if is_held:
            rows = rows + (held,)
        else:
            inside = _inside(first + k, steps, is_whole, place)
            rows = rows + (_load(ptr, first + k, inside, place, held.dtype),)
    return rows


def _like(value, zeros):
    """Return a result as a block of the state's format, also one that is the same for all."""
    return tl.broadcast_to(value, zeros.shape).to(zeros.dtype)


def _forward_chunk(mem, held, parameters, values, zeros, first, steps, is_whole, place, pointers):
    """Take `EVERY` steps from `first` on, or those that there are if not `is_whole`."""
    x_ptr, spikes_ptr, traces_ptr, saved_ptr = pointers
    if SAVED:
        for s in tl.static_range(STATES):
            _store(saved_ptr[s], first // EVERY, mem[s], place[1], place)
    currents = _chunk(x_ptr, HELD_CURRENT, held, first, steps, is_whole, place)
    for k in tl.static_range(EVERY):
        inside = _inside(first + k, steps, is_whole, place)
        found = step(currents[k], *mem, *parameters, *values)
        after = ()
        for s in tl.static_range(STATES):
            new = _like(found[1 + s], zeros)
            after = after + (new if is_whole else tl.where(first + k < steps, new, mem[s]),)
        mem = after
        if SPIKES:
            _store(spikes_ptr, first + k, _like(found[0], zeros), inside, place)
        for s in tl.static_range(STATES):
            if (TRACED >> s) & 1:
                _store(traces_ptr[s], first + k, mem[s], inside, place)
    return mem


def _forward(
    x_ptr,
    states_ptr,
    parameters_ptr,
    numbers,
    spikes_ptr,
    traces_ptr,
    saved_ptr,
    finals_ptr,
    size,
    counts,
    steps,
    samples,
):
    total = steps.to(tl.int64)
    place, steps = _place(size, steps, samples)
    offsets, valid, _, _ = place
    state = finals_ptr[0].dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([BLOCK], state)
    mem = ()
    for s in tl.static_range(STATES):
        if GIVEN:
            mem = mem + (tl.load(states_ptr[s] + offsets, mask=valid, other=0.0),)
        else:
            mem = mem + (zeros,)
    held = _held(x_ptr, HELD_CURRENT, place, zeros)
    pointers = (x_ptr, spikes_ptr, traces_ptr, saved_ptr)
    whole = steps // EVERY * EVERY
    for first in tl.range(0, whole, EVERY, num_stages=STAGES):
        mem = _forward_chunk(
            mem, held, parameters, values, zeros, first, steps, True, place, pointers
        )
    for first in tl.range(whole, steps, EVERY):
        mem = _forward_chunk(
            mem, held, parameters, values, zeros, first, steps, False, place, pointers
        )
    if LENGTHS:
        for t in tl.range(steps, total):
            if SPIKES:
                _store(spikes_ptr, t, zeros, valid, place)
            for s in tl.static_range(STATES):
                if (TRACED >> s) & 1:
                    _store(traces_ptr[s], t, mem[s], valid, place)
    for s in tl.static_range(STATES):
        tl.store(finals_ptr[s] + offsets, mem[s], mask=valid)


def _backward_chunk(sums, held, parameters, values, zeros, first, steps, is_whole, place, pointers):
    """Go through `EVERY` steps from `first` on in reverse, or those that there are."""
    carry, sum_current, sum_parameters = sums
    held_x, held_spikes, held_traces = held
    x_ptr, saved_ptr, grad_spikes_ptr, grad_traces_ptr, out_ptr = pointers
    _, valid, _, _ = place
    mem = ()
    for s in tl.static_range(STATES):
        mem = mem + (_load(saved_ptr[s], first // EVERY, valid, place, zeros.dtype),)
    currents = _chunk(x_ptr, HELD_CURRENT, held_x, first, steps, is_whole, place)
    if SPIKES:
        spikes = _chunk(grad_spikes_ptr, HELD_SPIKES, held_spikes, first, steps, is_whole, place)
    traces = ()
    for s in tl.static_range(STATES):
        if (TRACED >> s) & 1:
            row = held_traces[s]
            traces = traces + (
                _chunk(
                    grad_traces_ptr[s], (HELD_TRACES >> s) & 1, row, first, steps, is_whole, place
                ),
            )
        else:
            traces = traces + ((),)
    before = (mem,)
    for k in tl.static_range(EVERY - 1):
        found = step(currents[k], *mem, *parameters, *values)
        mem = ()
        for s in tl.static_range(STATES):
            mem = mem + (_like(found[1 + s], zeros),)
        before = before + (mem,)
    for k in tl.static_range(EVERY - 1, -1, -1):
        given = ()
        if SPIKES:
            given = given + (spikes[k],)
        for s in tl.static_range(STATES):
            if (TRACED >> s) & 1:  # noqa: SIM108 (one side does not compile)
                given = given + (traces[s][k] + carry[s],)
            else:
                given = given + (carry[s],)
        found = adjoint(currents[k], *before[k], *parameters, *values, *given)
        goes = first + k < steps
        d = _like(found[0], zeros)
        after = ()
        for s in tl.static_range(STATES):
            new = _like(found[1 + s], zeros)
            after = after + (new if is_whole else tl.where(goes, new, carry[s]),)
        carry = after
        if CONSTANT:
            sum_current += d if is_whole else tl.where(goes, d, 0.0)
        else:
            _store(out_ptr, first + k, d, _inside(first + k, steps, is_whole, place), place)
        sums_after = ()
        for p in tl.static_range(PARAMETERS):
            if (WANTED >> p) & 1:
                new = _like(found[1 + STATES + p], zeros)
                new = new if is_whole else tl.where(goes, new, 0.0)
                sums_after = sums_after + (sum_parameters[p] + new,)
            else:
                sums_after = sums_after + (zeros,)
        sum_parameters = sums_after
    return carry, sum_current, sum_parameters


def _backward(
    grad_spikes_ptr,
    grad_traces_ptr,
    grad_finals_ptr,
    x_ptr,
    saved_ptr,
    parameters_ptr,
    numbers,
    out_ptr,
    out_states_ptr,
    out_parameters_ptr,
    size,
    counts,
    steps,
    samples,
):
    total = steps.to(tl.int64)
    place, steps = _place(size, steps, samples)
    offsets, valid, _, _ = place
    state = saved_ptr[0].dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([BLOCK], state)
    carry = ()
    held_traces = ()
    sum_parameters = ()
    for s in tl.static_range(STATES):
        if grad_finals_ptr[s] is not None:
            carry = carry + (tl.load(grad_finals_ptr[s] + offsets, mask=valid, other=0.0),)
        else:
            carry = carry + (zeros,)
        held_traces = held_traces + (
            _held(grad_traces_ptr[s], (HELD_TRACES >> s) & 1, place, zeros),
        )
    for _ in tl.static_range(PARAMETERS):
        sum_parameters = sum_parameters + (zeros,)
    held = (
        _held(x_ptr, HELD_CURRENT, place, zeros),
        _held(grad_spikes_ptr, HELD_SPIKES, place, zeros),
        held_traces,
    )
    pointers = (x_ptr, saved_ptr, grad_spikes_ptr, grad_traces_ptr, out_ptr)
    sums = (carry, zeros, sum_parameters)
    whole = steps // EVERY * EVERY
    for first in tl.range(whole, steps, EVERY):
        sums = _backward_chunk(
            sums, held, parameters, values, zeros, first, steps, False, place, pointers
        )
    for after in tl.range(0, whole, EVERY, num_stages=STAGES):
        first = whole - EVERY - after
        sums = _backward_chunk(
            sums, held, parameters, values, zeros, first, steps, True, place, pointers
        )
    carry, sum_current, sum_parameters = sums
    if CONSTANT:
        _store(out_ptr, 0, sum_current, valid, place)
    elif LENGTHS:
        for t in tl.range(steps, total):
            _store(out_ptr, t, zeros, valid, place)
    if WANT_STATES:
        for s in tl.static_range(STATES):
            tl.store(out_states_ptr[s] + offsets, carry[s], mask=valid)
    for p in tl.static_range(PARAMETERS):
        if (WANTED >> p) & 1:
            tl.store(out_parameters_ptr[p] + offsets, sum_parameters[p], mask=valid)


def geometry(kind: str, size: int, dtype: torch.dtype, loads: int) -> tuple[int, int, int]:
    """Return how many neurons and warps a program has, and how many stages its loop over chunks.

    As measured on an H200; `benchmarks.gpu_sweep` measures another card. 16
    bytes of a sequence per thread make the widest loads, and as many in each of the states few
    enough registers. With 4 stages, 2 chunks are on their way while a third is computed. (With 2,
    Triton asks for one only after that.) They wait in shared memory, of which there is not enough
    for many sequences; and what a gradient in 16 bits needs is there sooner without. Few neurons
    are spread over many processors, with two for each thread: the least that is copied
    asynchronously are 4 bytes.

    kind: "forward" or "backward"; dtype: of the sequences; loads: how many of them are read.
    """
    if size < SMALL:
        return 64, 1, 4
    ahead = loads <= 3 and not (kind == "backward" and dtype.itemsize == 2)
    return 128 if dtype == torch.float64 else 256, 2, 4 if ahead else 1


def _made(text: str, name: str) -> Callable[..., Any]:
    """Return the function of a text, whose source Triton finds again."""
    file = f"<neurospike {name} {hash(text):x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {}
    exec(compile(text, file, "exec"), space)
    made = FunctionType(space[name].__code__, {}, name)
    made.__module__ = __name__
    return made


def names_of(kind: str, key: str, **flags: Any) -> dict[str, Any]:
    """Return what the free names of a kernel stand for: flags, and the neuron's step and adjoint.

    kind: "forward" or "backward"; key: the neuron's program.
    """
    program = Program.parse(key)
    count = program.states
    names: dict[str, Any] = {"tl": tl, **NAMES, **flags}
    names |= {"STATES": count, "PARAMETERS": program.parameters, "NUMBERS": sum(program.numbers)}
    names["step"] = _made(written("step", program.inputs, program.forward, program.results), "step")
    if kind == "backward":
        wanted = [bool(flags["WANTED"] >> p & 1) for p in range(program.parameters)]
        spikes = bool(flags["SPIKES"])
        given = (spikes, *(True for _ in range(count)))
        wants = (True, *(True for _ in range(count)), *wanted)
        operations, results = derived(program, given, wants)
        # One result for each parameter, so that its place does not depend on what is asked for.
        found = iter(results)
        results = tuple(next(found) if want else "0.0" for want in wants)
        gradients = [f"g{k}" for k, is_given in enumerate(given) if is_given]
        text = written("adjoint", [*program.inputs, *gradients], operations, results)
        names["adjoint"] = _made(text, "adjoint")
    return names


@functools.lru_cache(maxsize=512)
def compiled(kind: str, key: str, **flags: Any) -> Any:
    """Return a kernel jitted for a neuron and what is asked for."""
    return bind(_forward if kind == "forward" else _backward, names_of(kind, key, **flags), jit)


def _rows(tensor: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return a sequence `[T, ...]` with contiguous rows, and whether one row stands for all."""
    if tensor is None or tensor.numel() == 0:
        return None, False
    if tensor.stride(0) == 0:
        return tensor[0].contiguous(), True
    return tensor.contiguous(), False


def _whole(tensors: Sequence[Given]) -> tuple[Given, ...]:
    """Return contiguous tensors, and None for what is None."""
    return tuple([None if one is None else one.contiguous() for one in tensors])


@functools.lru_cache(maxsize=4096)
def _prepared(
    kind: str,
    neuron: str,
    numbers: tuple[float, ...],
    form: tuple[torch.dtype, int, int, bool, int],
    counts: tuple[int, ...],
    asked: tuple[Any, ...],
) -> tuple[Launch, tuple[int, ...]]:
    """Return the launch for all that a call depends on but its tensors, and its numbers' bits.

    Whatever Triton compiles another kernel for is among the arguments, so that each is found by one
    look into one table.

    form: the sequences' format, the device's index, the neurons, whether steps take 64 bits, and
    the neurons of each sample if samples have lengths, else 0;
    counts: the sizes of the parameters; asked: what is given, and what is wanted.
    """
    dtype, device, size, _, features = form
    flags: dict[str, Any] = {"SCALARS": mask_of([count == 1 for count in counts])}
    flags["LENGTHS"] = features > 0
    if kind == "forward":
        given, spikes, is_traced, saved, held = asked
        flags |= {"GIVEN": given, "SPIKES": spikes, "SAVED": saved, "HELD_CURRENT": held}
        flags["TRACED"] = (1 << Program.parse(neuron).states) - 1 if is_traced else 0
        loads = 1
    else:
        spikes, traced, constant, wanted, states, held, spikes_held, traces_held, _ = asked
        flags |= {"SPIKES": spikes, "TRACED": mask_of(traced), "CONSTANT": constant}
        flags |= {"WANTED": mask_of(wanted), "WANT_STATES": states, "HELD_CURRENT": held}
        flags |= {"HELD_SPIKES": spikes_held, "HELD_TRACES": mask_of(traces_held)}
        loads = 1 + spikes + sum(traced)
    block, warps, stages = geometry(kind, size, dtype, loads)
    kernel = compiled(kind, neuron, BLOCK=block, STAGES=stages, **flags)
    programs = size // features * -(-features // block) if features else -(-size // block)
    return Launch(kernel, programs, warps, device), bits_of(numbers)


def forget() -> None:
    """Forget what was compiled in this process."""
    compiled.cache_clear()
    _prepared.cache_clear()
    running.forget()


def forward(
    *,
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    steps: int,
    constant: bool,
    spikes: Tensor | None,
    traces: Sequence[Tensor],
    finals: Sequence[Tensor],
    saved: Sequence[Tensor],
    lengths: Tensor | None = None,
) -> Callable[..., None] | None:
    """Fill `spikes`, `traces` and `finals` as `kernels.cpu.scan.forward` does, and `saved`, if any.

    `saved` are the states before every chunk, `[ceil(T/EVERY) * B * F]` each.
    """
    count, size = len(finals), finals[0].numel()
    if size == 0:
        return None
    if steps == 0:
        for k, final in enumerate(finals):
            final.copy_(states[k]) if states else final.zero_()
        return None
    x, held = (current.contiguous(), True) if constant else _rows(current)
    counts, nothing = tuple([one.numel() for one in parameters]), (None,) * count
    starts, values = _whole(states), _whole(parameters)
    asked = (len(states) > 0, spikes is not None, len(traces) > 0, len(saved) > 0, held)
    features = 0 if lengths is None else size // lengths.numel()
    form = (current.dtype, current.get_device(), size, steps.bit_length() > 31, features)
    last = tuple(numbers)
    kept = (last, *_prepared("forward", neuron, last, form, counts, asked))

    def fill(
        x: Tensor | None,
        states: tuple[Tensor, ...],
        parameters: tuple[Tensor, ...],
        numbers: tuple[float, ...],
        lengths: Tensor | None,
        spikes: Tensor | None,
        finals: Sequence[Tensor],
        traces: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> None:
        nonlocal kept
        last, go, bits = kept
        if numbers != last:  # with other bits Triton may have to compile another kernel
            go, bits = _prepared("forward", neuron, numbers, form, counts, asked)
            kept = numbers, go, bits
        go(
            (x, lengths, *states, *parameters),
            (
                x,
                states or nothing,
                parameters,
                bits,
                spikes,
                tuple(traces) or nothing,
                tuple(saved) or nothing,
                tuple(finals),
                size,
                counts,
                steps,
                None if lengths is None else (lengths, features),
            ),
        )

    def copied(
        current: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], *others: Any
    ) -> None:
        x = current.contiguous() if constant else _rows(current)[0]
        fill(x, _whole(states), _whole(parameters), *others)

    fill(x, starts, values, last, lengths, spikes, finals, traces, saved)
    is_same = are_same((current, *states, *parameters), (x, *starts, *values))
    return fill if is_same else copied


def backward(
    *,
    grad_spikes: Tensor | None,
    grad_traces: Sequence[Tensor | None],
    grad_finals: Sequence[Tensor | None],
    current: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    neuron: str,
    numbers: Sequence[float],
    steps: int,
    constant: bool,
    out: Tensor,
    out_states: Sequence[Tensor],
    out_parameters: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    lengths: Tensor | None = None,
) -> Callable[..., None] | None:
    """Fill the gradients as `kernels.cpu.scan.backward` does; `saved` is what `forward` filled."""
    count = len(saved)
    size = math.prod(current.shape if constant else current.shape[1:])
    finals, nothing = _whole(grad_finals), (None,) * count
    if not size or not steps:
        if size and constant:
            out.zero_()
        for before, final in zip(out_states, finals or nothing):
            before.zero_() if final is None else before.copy_(final)
        for one in out_parameters:
            if one is not None:
                one.zero_()
        return None
    x, held = (current.contiguous(), True) if constant else _rows(current)
    gs, gs_held = _rows(grad_spikes)
    traces, trace_held = nothing, (False,) * count
    if grad_traces:
        traces, trace_held = zip(*map(_rows, grad_traces))
    counts = tuple([one.numel() for one in parameters])
    values = _whole(parameters)
    wanted = tuple([one is not None for one in out_parameters])
    asked = (
        gs is not None,
        tuple([one is not None for one in traces]),
        constant,
        wanted,
        len(out_states) > 0,
        held,
        gs_held,
        trace_held,
        tuple([one is not None for one in finals]),
    )
    features = 0 if lengths is None else size // lengths.numel()
    form = (current.dtype, current.get_device(), size, steps.bit_length() > 31, features)
    last = tuple(numbers)
    kept = (last, *_prepared("backward", neuron, last, form, counts, asked))

    def fill(
        grad_spikes: Tensor | None,
        grad_finals: tuple[Tensor | None, ...],
        grad_traces: tuple[Tensor | None, ...],
        x: Tensor | None,
        states: Sequence[Tensor],
        parameters: tuple[Tensor, ...],
        numbers: tuple[float, ...],
        lengths: Tensor | None,
        saved: tuple[Tensor, ...],
        out: Tensor,
        out_states: Sequence[Tensor],
        out_parameters: Sequence[Tensor | None],
    ) -> None:
        nonlocal kept
        last, go, bits = kept
        if numbers != last:
            go, bits = _prepared("backward", neuron, numbers, form, counts, asked)
            kept = numbers, go, bits
        each: Sequence[Tensor | None] = ()
        if out_parameters:
            each = [None if one is None else one.new_empty(size) for one in out_parameters]
        go(
            (grad_spikes, lengths, *grad_traces, *grad_finals, x, *saved, *parameters),
            (
                grad_spikes,
                grad_traces or nothing,
                grad_finals or nothing,
                x,
                saved,
                parameters,
                bits,
                out,
                tuple(out_states) or nothing,
                tuple(each),
                size,
                counts,
                steps,
                None if lengths is None else (lengths, features),
            ),
        )
        if each:
            sum_over_batch(each, out_parameters)

    def copied(
        grad_spikes: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_traces: Sequence[Tensor | None],
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        numbers: tuple[float, ...],
        lengths: Tensor | None,
        saved: Sequence[Tensor],
        *results: Any,
    ) -> None:
        x = current.contiguous() if constant else _rows(current)[0]
        traces = tuple([_rows(one)[0] for one in grad_traces])
        gs, finals, values = _rows(grad_spikes)[0], _whole(grad_finals), _whole(parameters)
        fill(gs, finals, traces, x, states, values, numbers, lengths, _whole(saved), *results)

    results = (out, out_states, out_parameters)
    kept_states = _whole(saved)  # hooks may have laid them out anew
    fill(gs, finals, traces, x, states, values, last, lengths, kept_states, *results)
    given = (grad_spikes, *grad_traces, *grad_finals, current, *parameters, *saved)
    used = (gs, *(traces if grad_traces else ()), *finals, x, *values, *kept_states)
    return fill if are_same(given, used) else copied
