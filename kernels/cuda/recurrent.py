"""Recurrent layers on a GPU: the whole time loop, with the product of each step, in one kernel.

    current_t = x_t + weight @ spikes_{t-1}

Layout: a sequence is `[T, B, N]`. A program takes `SAMPLES` samples with all their neurons and
keeps their states in registers while it goes through time; samples do not act on each other, so
that no program waits for another. What a step hands to the next, spikes forward and gradients of
currents backward, reaches the other threads of the program in one of three ways (`geometry`
chooses):

- "held": the weight stays in registers for the whole sequence; for few neurons.
- "events": the program lists what is not 0 in global memory, and adds up the rows of the weight of
  those alone. Rows of silent neurons are not read.
- "dense": the program stores the values, and goes through all rows, once for all its samples. Some
  of the rows may stay in registers.

Between a store and the loads by other threads of it stands `tl.debug_barrier`, which orders global
memory within a program. Sums are taken in a fixed order, so that a call repeats to the last bit.

Read and written per neuron-step in float32, beside the weight: forward 8 bytes, and 4 for the sums
that reached the neuron and for each state, both kept for backward; backward 12, and 4 for each
state. Layers that are too large (`fits`) are run step by step, with a product by torch each:
then all samples share one reading of the weight. Number formats: state float32, or float64 if the
current is; 16-bit sequences are read and written as they are; the spikes that act on the next step
are those of the state's format. Nothing is contracted to fused multiply-adds.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neurospike.backend.binding import bind
from neurospike.backend.dispatch import TABLE
from neurospike.kernels.cuda._compile import bits_of, jit
from neurospike.kernels.cuda._launch import Launch
from neurospike.kernels.cuda.scan import (
    _like,
    _load,
    _numbers,
    _parameters,
    _rows,
    _store,
    names_of,
    sum_over_batch,
)
from neurospike.ops.stepped_recurrence import SteppedRecurrence
from neurospike.ops.wants import mask_of

# The most neurons of a layer that is run here. Backward reads the whole weight at each step, once
# per `SAMPLES` samples; of a larger one torch's product, which reads it once for all, is sooner.
LARGEST = {"forward": 1024, "backward": 512}

# What a kernel is compiled for; rebound for each variant, as those of `scan`.
BLOCK = 256  # neurons of a sample, a power of two
SAMPLES = 1  # of a program
HELD = False
EVENTS = True
KEPT = 0  # rows of the weight that stay in registers: all if HELD
ROWS = 32  # of the weight that are read at once
WIDTH = 1  # of its columns that a thread reads at once
STAGES = 1
STATES = 1
PARAMETERS = 2
GIVEN = False
LENGTHS = False
TRACED = 0
CURRENTS = False  # whether the sums that reach the neurons are kept
HELD_CURRENT = False
COMES = True  # whether a gradient of the spikes comes
HELD_SPIKES = False
WANTED = 0
WANT_STATES = False


def step(*arguments):
    """The neuron's step, made of its program."""


def adjoint(*arguments):
    """The gradient of the step, derived from it."""


def _place(batch, size):
    """Return this program's neurons, as `scan` does: offsets, which exist, how many, their end."""
    samples = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    neurons = tl.max_contiguous(tl.arange(0, BLOCK), WIDTH)
    valid = (samples < batch)[:, None] & (neurons < size)[None, :]
    total = tl.cast(batch, tl.int64) * size
    return samples[:, None] * size + neurons[None, :], valid, total, total


def _ends(lengths_ptr, batch, steps):
    """Return the steps of each sample `[SAMPLES, 1]`, and the most of them."""
    ends = tl.zeros([SAMPLES], tl.int64) + steps
    longest = steps
    if LENGTHS:
        samples = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
        given = tl.load(lengths_ptr + samples, mask=samples < batch, other=0).to(tl.int64)
        ends = tl.minimum(tl.maximum(given, 0), ends)
        longest = tl.max(ends, 0)
    return ends[:, None], longest


def _tile(rows, inside, matrix):
    """Load rows of the matrix, 0 where they are not `inside`."""
    matrix_ptr, stride, _, _, _, _ = matrix
    columns = tl.max_contiguous(tl.arange(0, BLOCK), WIDTH)
    mask = inside[:, None] & (columns < stride)[None, :]
    return tl.load(matrix_ptr + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


def _kept(matrix):
    """Load the rows of the matrix that stay in registers."""
    found = ()
    if KEPT > 0:
        rows = tl.arange(0, KEPT)
        found = _tile(rows, rows < matrix[5], matrix)
    return found


def _mine(values, s):
    """Return the values of the program's sample `s`, `[BLOCK]`."""
    this = tl.arange(0, SAMPLES)[:, None] == s
    return tl.sum(tl.where(this, values, 0.0), 0)


def _with(total, found, s):
    """Return `total` with the row of the program's sample `s` replaced."""
    this = tl.arange(0, SAMPLES)[:, None] == s
    return tl.where(this, tl.broadcast_to(found[None, :], total.shape), total)


def _listed(row, base, matrix):
    """Return the product of a sample whose values are mostly 0: `[BLOCK]`."""
    _, _, scratch_ptr, list_ptr, _, _ = matrix
    fires = row != 0.0
    index = tl.cumsum(fires.to(tl.int32), 0) - 1
    many = tl.sum(fires.to(tl.int32), 0)
    tl.debug_barrier()  # what was listed before is read by now
    tl.store(list_ptr + base + index, tl.arange(0, BLOCK), mask=fires)
    tl.store(scratch_ptr + base + index, row, mask=fires)
    tl.debug_barrier()
    sums = tl.zeros([ROWS, BLOCK], row.dtype)
    for first in tl.range(0, many, ROWS, num_stages=STAGES):
        k = first + tl.arange(0, ROWS)
        rows = tl.load(list_ptr + base + k, mask=k < many, other=0)
        values = tl.load(scratch_ptr + base + k, mask=k < many, other=0.0)
        sums += _tile(rows, k < many, matrix) * values[:, None]
    return tl.sum(sums, 0)


def _values(first, many, s, place, matrix):
    """Load what a sample of the program stored for some neurons, `[many]`."""
    _, _, scratch_ptr, _, base, size = matrix
    k = first + tl.arange(0, many)
    at = base + s * size + k
    return tl.load(scratch_ptr + at, mask=(k < size) & (at < place[2]), other=0.0)


def _dense(values, kept, place, matrix):
    """Return the product of all samples, which share each reading of the matrix."""
    offsets, valid, _, _ = place
    _, _, scratch_ptr, _, _, size = matrix
    tl.debug_barrier()  # what was stored before is read by now
    tl.store(scratch_ptr + offsets, values, mask=valid)
    tl.debug_barrier()
    sums = ()
    for _ in tl.static_range(SAMPLES):
        sums = sums + (tl.zeros([ROWS, BLOCK], values.dtype),)
    for first in tl.range(KEPT, size, ROWS, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        tile = _tile(rows, rows < size, matrix)
        after = ()
        for s in tl.static_range(SAMPLES):
            each = _values(first, ROWS, s, place, matrix)
            after = after + (sums[s] + tile * each[:, None],)
        sums = after
    total = values
    for s in tl.static_range(SAMPLES):
        found = tl.sum(sums[s], 0)
        if KEPT > 0:
            each = _values(0, KEPT, s, place, matrix)
            found += tl.sum(kept * each[:, None], 0)
        total = _with(total, found, s)
    return total


def _product(values, kept, place, matrix):
    """Return the sum over neurons k of `values[k]` times row k of the matrix, for each sample."""
    total = values
    if HELD:
        for s in tl.static_range(SAMPLES):
            total = _with(total, tl.sum(kept * _mine(values, s)[:, None], 0), s)
    elif EVENTS:
        for s in tl.static_range(SAMPLES):
            base = matrix[4] + s * matrix[5]
            total = _with(total, _listed(_mine(values, s), base, matrix), s)
    else:
        total = _dense(values, kept, place, matrix)
    return total


def _start(states_ptr, s, place, zeros):
    """Return a state before the first step; number 0 are the last spikes."""
    found = zeros
    if GIVEN:
        found = tl.load(states_ptr[s] + place[0], mask=place[1], other=0.0)
    return found


def _forward(
    x_ptr,
    matrix_ptr,
    states_ptr,
    parameters_ptr,
    numbers,
    lengths_ptr,
    spikes_ptr,
    traces_ptr,
    currents_ptr,
    finals_ptr,
    scratch_ptr,
    list_ptr,
    batch,
    size,
    stride,
    counts,
    steps,
):
    place = _place(batch, size)
    offsets, valid, _, _ = place
    state = finals_ptr[0].dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([SAMPLES, BLOCK], state)
    base = tl.program_id(0).to(tl.int64) * SAMPLES * size
    matrix = (matrix_ptr, stride, scratch_ptr, list_ptr, base, size)
    kept = _kept(matrix)
    last = _start(states_ptr, 0, place, zeros)
    mem = ()
    for s in tl.static_range(STATES):
        mem = mem + (_start(states_ptr, 1 + s, place, zeros),)
    # 64 bits: a sequence may be longer than 2^31 numbers.
    steps = steps.to(tl.int64)
    ends, longest = _ends(lengths_ptr, batch, steps)
    for t in tl.range(0, longest):
        x = _load(x_ptr, 0 if HELD_CURRENT else t, valid, place, state)
        total = x + _product(last, kept, place, matrix)
        found = step(total, *mem, *parameters, *values)
        goes = valid & (t < ends)
        spikes = tl.where(goes, _like(found[0], zeros), 0.0)
        _store(spikes_ptr, t, spikes, valid, place)
        if CURRENTS:
            _store(currents_ptr, t, tl.where(goes, total, 0.0), valid, place)
        last = tl.where(goes, spikes, last)
        after = ()
        for s in tl.static_range(STATES):
            new = tl.where(goes, _like(found[1 + s], zeros), mem[s])
            after = after + (new,)
            if TRACED:
                _store(traces_ptr[s], t, new, valid, place)
        mem = after
    if LENGTHS:
        for t in tl.range(longest, steps):
            _store(spikes_ptr, t, zeros, valid, place)
            if CURRENTS:
                _store(currents_ptr, t, zeros, valid, place)
            if TRACED:
                for s in tl.static_range(STATES):
                    _store(traces_ptr[s], t, mem[s], valid, place)
    tl.store(finals_ptr[0] + offsets, last, mask=valid)
    for s in tl.static_range(STATES):
        tl.store(finals_ptr[1 + s] + offsets, mem[s], mask=valid)


def _before(traces_ptr, first, t, place, zeros):
    """Return the neuron's states before step `t`."""
    found = ()
    for s in tl.static_range(STATES):
        row = _load(traces_ptr[s], t - 1, place[1] & (t > 0), place, zeros.dtype)
        found = found + (tl.where(t > 0, row, first[s]),)
    return found


def _backward(
    grad_spikes_ptr,
    grad_finals_ptr,
    grad_traces_ptr,
    currents_ptr,
    traces_ptr,
    matrix_ptr,
    states_ptr,
    parameters_ptr,
    numbers,
    lengths_ptr,
    out_ptr,
    out_states_ptr,
    out_parameters_ptr,
    scratch_ptr,
    list_ptr,
    batch,
    size,
    stride,
    counts,
    steps,
):
    place = _place(batch, size)
    offsets, valid, _, _ = place
    state = out_ptr.dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([SAMPLES, BLOCK], state)
    base = tl.program_id(0).to(tl.int64) * SAMPLES * size
    matrix = (matrix_ptr, stride, scratch_ptr, list_ptr, base, size)
    kept = _kept(matrix)
    first = ()
    for s in tl.static_range(STATES):
        first = first + (_start(states_ptr, 1 + s, place, zeros),)
    steps = steps.to(tl.int64)
    ends, longest = _ends(lengths_ptr, batch, steps)
    carry = ()
    for s in tl.static_range(1 + STATES):
        if grad_finals_ptr[s] is not None:
            carry = carry + (tl.load(grad_finals_ptr[s] + offsets, mask=valid, other=0.0),)
        else:
            carry = carry + (zeros,)
    sums = ()
    for _ in tl.static_range(PARAMETERS):
        sums = sums + (zeros,)
    d = zeros  # the gradient of the current of the step after
    for after in tl.range(0, longest):
        t = longest - 1 - after
        goes = valid & (t < ends)
        current = _load(currents_ptr, t, valid, place, state)
        before = _before(traces_ptr, first, t, place, zeros)
        comes = zeros
        if COMES:
            comes = _load(grad_spikes_ptr, 0 if HELD_SPIKES else t, valid, place, state)
        given = ()
        for s in tl.static_range(STATES):
            if (TRACED >> s) & 1:
                more = _load(grad_traces_ptr[s], t, valid, place, state)
                given = given + (carry[1 + s] + more,)
            else:
                given = given + (carry[1 + s],)
        # A sample's last spikes act on no step after its end.
        coming = tl.where(t + 1 < ends, _product(d, kept, place, matrix), carry[0])
        found = adjoint(current, *before, *parameters, *values, coming + comes, *given)
        d = tl.where(goes, _like(found[0], zeros), 0.0)
        _store(out_ptr, t, d, valid, place)
        carried = (coming,)
        for s in tl.static_range(STATES):
            new = _like(found[1 + s], zeros)
            carried = carried + (tl.where(goes, new, carry[1 + s]),)
        carry = carried
        summed = ()
        for p in tl.static_range(PARAMETERS):
            if (WANTED >> p) & 1:
                new = _like(found[1 + STATES + p], zeros)
                summed = summed + (sums[p] + tl.where(goes, new, 0.0),)
            else:
                summed = summed + (zeros,)
        sums = summed
    if LENGTHS:
        for t in tl.range(longest, steps):
            _store(out_ptr, t, zeros, valid, place)
    if WANT_STATES:
        coming = tl.where(ends > 0, _product(d, kept, place, matrix), carry[0])
        tl.store(out_states_ptr[0] + offsets, coming, mask=valid)
        for s in tl.static_range(STATES):
            tl.store(out_states_ptr[1 + s] + offsets, carry[1 + s], mask=valid)
    for p in tl.static_range(PARAMETERS):
        if (WANTED >> p) & 1:
            tl.store(out_parameters_ptr[p] + offsets, sums[p], mask=valid)


class Geometry(NamedTuple):
    """How a layer is divided.

    Attributes:
        product: "held", "events" or "dense"; see the module's docstring.
        samples: of a program, a power of two.
        rows: of the weight that are read at once; not where it is held.
        width: how many neighbours in a row a thread reads at once. With the neurons of a thread
            each thread adds up its own, and nothing has to change hands.
        warps: of a program.
        stages: of the loop over rows; above 1 they are copied ahead into shared memory.
        kept: rows of the weight that stay in registers if it is "dense", 0 or a power of two.
    """

    product: str
    samples: int
    rows: int
    width: int
    warps: int
    stages: int = 1
    kept: int = 0


def block_of(size: int) -> int:
    """Return the neurons that a program has registers for, at least as many as there are."""
    return max(16, triton.next_power_of_2(size))


def geometry(kind: str, size: int, batch: int, dtype: torch.dtype) -> Geometry:
    """Return how a layer of so many neurons and samples is divided; not measured yet.

    A matrix that takes no more than 128 registers of each thread is held. Else spikes, which are
    few, are listed, and gradients, which are not, share each reading of the weight where there are
    samples enough to keep the processors busy. So many rows are read at once as there are registers
    for their sums.

    kind: "forward" or "backward"; dtype: of the states.
    """
    block, words = block_of(size), dtype.itemsize // 4
    warps = max(1, min(16, block // 32))
    width = max(1, block // (32 * warps))
    each = width * words  # registers that a row takes of each thread
    if block * each <= 128:
        return Geometry("held", 1, 1, width, warps)
    sums = 64 if warps <= 8 else 32
    if kind == "forward":
        return Geometry("events", 1, min(32, sums // (2 * each)), width, warps)
    samples = min(4, max(1, triton.next_power_of_2(batch // 64 + 1) // 2))
    kept = 64 if warps <= 8 and samples * each == 1 else 0
    rows = min(32, sums // (each * samples * (2 if samples == 1 else 1)))
    return Geometry("dense", samples, rows, width, warps, kept=kept)


def fits(kind: str, size: int) -> bool:
    """Whether a layer of so many neurons is run by a kernel here, and not step by step."""
    return size <= LARGEST[kind]


@functools.lru_cache(maxsize=512)
def compiled(kind: str, key: str, product: str, **flags: Any) -> Any:
    """Return a kernel jitted for a neuron, a geometry and what is asked for."""
    flags |= {name.upper(): product == name for name in ("held", "events")}
    flags["SPIKES"] = True
    names = names_of(kind, key, **flags)
    return bind(_forward if kind == "forward" else _backward, names, jit)


@functools.lru_cache(maxsize=4096)
def _prepared(
    kind: str,
    neuron: str,
    numbers: tuple[float, ...],
    form: tuple[torch.dtype, torch.dtype, int, int, int, bool],
    counts: tuple[int, ...],
    asked: tuple[Any, ...],
) -> tuple[Launch, tuple[int, ...], str]:
    """Return the launch for all that a call depends on but its tensors; see `scan._prepared`.

    form: formats of the sequences and of the states, the device's index, samples, neurons, and
    whether steps take 64 bits. Also returns the numbers' bits, and which product it is.
    """
    _, state, device, batch, size, _ = form
    flags: dict[str, Any] = {"SCALARS": mask_of([count == 1 for count in counts])}
    if kind == "forward":
        given, lengths, traced, currents, held = asked
        flags |= {"CURRENTS": currents, "TRACED": int(traced), "HELD_CURRENT": held}
    else:
        given, lengths, traced, comes, held, wanted, states, _ = asked
        flags |= {"TRACED": mask_of(traced), "COMES": comes, "HELD_SPIKES": held}
        flags |= {"WANTED": mask_of(wanted), "WANT_STATES": states}
    flags |= {"GIVEN": given, "LENGTHS": lengths}
    chosen = geometry(kind, size, batch, state)
    flags |= {"SAMPLES": chosen.samples, "ROWS": chosen.rows, "WIDTH": chosen.width}
    block = block_of(size)
    flags |= {"STAGES": chosen.stages, "BLOCK": block}
    flags["KEPT"] = block if chosen.product == "held" else chosen.kept
    kernel = compiled(kind, neuron, chosen.product, **flags)
    programs = -(-batch // chosen.samples)
    return Launch(kernel, programs, chosen.warps, device), bits_of(numbers), chosen.product


def forget() -> None:
    """Forget what was compiled in this process."""
    compiled.cache_clear()
    _prepared.cache_clear()


@functools.cache
def _stepped() -> SteppedRecurrence:
    return SteppedRecurrence(TABLE["triton"])


def _matrix(weight: Tensor, kind: str) -> Tensor:
    """Return the weights from each neuron forward, or to each backward, as rows of whole vectors.

    A row has a multiple of 16 numbers; those that are added are 0.
    """
    rows = weight.T if kind == "forward" else weight
    more = -rows.shape[1] % 16
    return torch.nn.functional.pad(rows, (0, more)) if more else rows.contiguous()


def _scratch(product: str, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return memory `[B, N]` for what a program's threads hand each other: values, and a list."""
    values = None if product == "held" else torch.empty_like(like)
    listed = torch.empty_like(like, dtype=torch.int32) if product == "events" else None
    return values, listed


def forward(
    *,
    current: Tensor,
    weight: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    neuron: str,
    numbers: Sequence[float],
    spikes: Tensor,
    traces: Sequence[Tensor],
    finals: Sequence[Tensor],
    currents: Tensor | None,
) -> None:
    """Fill spikes, traces (or none), finals and currents (or None); see `protocols.Recurrence`."""
    steps, batch, size = current.shape
    if not fits("forward", size):
        _stepped().forward(
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
        return
    x, held = _rows(current)
    matrix = _matrix(weight, "forward")
    starts = tuple([one.contiguous() for one in states])
    values = tuple([one.contiguous() for one in parameters])
    counts = tuple([one.numel() for one in parameters])
    asked = (len(states) > 0, lengths is not None, len(traces) > 0, currents is not None, held)
    state = finals[0].dtype
    form = (current.dtype, state, current.get_device(), batch, size, steps.bit_length() > 31)
    go, bits, product = _prepared("forward", neuron, tuple(numbers), form, counts, asked)
    if lengths is not None:
        lengths = lengths.contiguous()
    go(
        (x, matrix, *starts, *values, lengths),
        x,
        matrix,
        starts or (None,) * len(finals),
        values,
        bits,
        lengths,
        spikes,
        tuple(traces) or (None,) * (len(finals) - 1),
        currents,
        tuple(finals),
        *_scratch(product, finals[0]),
        batch,
        size,
        matrix.shape[1],
        counts,
        steps,
    )


def backward(
    *,
    grad_spikes: Tensor | None,
    grad_finals: Sequence[Tensor | None],
    grad_traces: Sequence[Tensor | None],
    currents: Tensor,
    traces: Sequence[Tensor],
    weight: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    neuron: str,
    numbers: Sequence[float],
    out: Tensor,
    out_states: Sequence[Tensor],
    out_parameters: Sequence[Tensor | None],
) -> None:
    """Fill the gradients of currents, states and parameters; see `protocols.Recurrence`."""
    steps, batch, size = currents.shape
    if not fits("backward", size):
        _stepped().backward(
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
            out_parameters=out_parameters,
        )
        return
    gs, held = _rows(grad_spikes)
    matrix = _matrix(weight, "backward")
    finals = tuple([None if one is None else one.contiguous() for one in grad_finals])
    more = tuple([None if one is None else one.contiguous() for one in grad_traces])
    more = more or (None,) * len(traces)
    starts = tuple([one.contiguous() for one in states])
    values = tuple([one.contiguous() for one in parameters])
    counts = tuple([one.numel() for one in parameters])
    each = [None if one is None else one.new_empty(batch * size) for one in out_parameters]
    asked = (
        len(states) > 0,
        lengths is not None,
        tuple([one is not None for one in more]),
        gs is not None,
        held,
        tuple([one is not None for one in each]),
        len(out_states) > 0,
        tuple([one is not None for one in finals]),
    )
    dtype = out.dtype if gs is None else gs.dtype
    form = (dtype, out.dtype, out.get_device(), batch, size, steps.bit_length() > 31)
    go, bits, product = _prepared("backward", neuron, tuple(numbers), form, counts, asked)
    if lengths is not None:
        lengths = lengths.contiguous()
    go(
        (gs, *finals, *more, currents, *traces, matrix, *starts, *values, lengths),
        gs,
        finals,
        more,
        currents,
        tuple(traces),
        matrix,
        starts or (None,) * len(finals),
        values,
        bits,
        lengths,
        out,
        tuple(out_states) or (None,) * len(finals),
        tuple(each),
        *_scratch(product, out[0]),
        batch,
        size,
        matrix.shape[1],
        counts,
        steps,
    )
    sum_over_batch(each, out_parameters)


def weight_gradient(*, grad: Tensor, spikes: Tensor, out: Tensor) -> None:
    """Fill `out` `[N, N]` with `grad.T @ spikes`, by torch."""
    _stepped().weight_gradient(grad=grad, spikes=spikes, out=out)
