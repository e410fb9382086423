"""The time loops of recurrent layers as Triton kernels; `recurrent` chooses and launches them.

A program takes one sample with all its neurons and keeps their states in registers while it goes
through time; samples do not act on each other, so that no program waits for another. The results of
a step that the next one needs reach the other threads of the program through global memory:

- Forward, spikes: the program lists those that are not 0, and adds up the rows of the weight of
  these neurons alone (`_listed`). Rows of silent neurons are not read.
- Backward, gradients of the currents, of which few are 0: it stores all of them and adds up all
  rows (`_dense`).

Between a store and the loads of the same memory by other threads there is a `tl.debug_barrier`,
which orders global memory within a program. Sums have a fixed order, so that a call repeats to the
last bit.
"""

import triton.language as tl

from neurospike.kernels.cuda._scan_loop import _like, _load, _numbers, _parameters, _store

# Compile-time constants, rebound for each variant of a kernel. Functions imported from `_scan_loop`
# read some of them too.
BLOCK = 256  # neurons, a power of two and at least as many as there are
ROWS = 32  # rows of the weight that are read at once
WIDTH = 1  # columns of the weight that a thread reads at once
STATES = 1
PARAMETERS = 2
GIVEN = False  # whether there are states to start from
LENGTHS = False
TRACED = 0  # forward: whether there are traces; backward: bit mask of those with a gradient
CURRENTS = False  # whether the sums that reach the neurons are stored
HELD_CURRENT = False  # whether the current is one row for all steps
COMES = True  # whether the spikes have a gradient
HELD_SPIKES = False  # whether that is one row for all steps
WANTED = 0  # bit mask of the parameters whose gradients are wanted
WANT_STATES = False


def step(*arguments):
    """Stand-in for the neuron's step, which is generated from its program."""


def adjoint(*arguments):
    """Stand-in for the gradient of the step, which is derived from the program."""


def _place(size, batch):
    """Return this program's neurons as `_scan_loop._place` does.

    That is: their offsets, which of them exist, how many neurons there are in all samples, and that
    number again.
    """
    sample = tl.program_id(0).to(tl.int64)
    neurons = tl.max_contiguous(tl.arange(0, BLOCK), WIDTH)
    total = tl.cast(batch, tl.int64) * size
    return sample * size + neurons, neurons < size, total, total


def _steps(lengths_ptr, steps):
    """Return how many steps there are, in 64 bits, and how many of them this sample has."""
    # A sequence may be longer than 2^31 numbers.
    steps = steps.to(tl.int64)
    mine = steps
    if LENGTHS:
        mine = tl.minimum(tl.maximum(tl.load(lengths_ptr + tl.program_id(0)), 0), steps)
    return steps, mine


def _add_rows(sums, rows, inside, values, matrix):
    """Add to `sums` the rows of the matrix that are `inside`, each times its value."""
    matrix_ptr, stride, _ = matrix
    columns = tl.max_contiguous(tl.arange(0, BLOCK), WIDTH)
    mask = inside[:, None] & (columns < stride)[None, :]
    found = tl.load(matrix_ptr + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    return sums + found * values[:, None]


def _listed(values, values_ptr, list_ptr, matrix):
    """Return the sum over neurons k of `values[k]`, mostly 0, times row k of the matrix."""
    base = tl.program_id(0).to(tl.int64) * matrix[2]
    fires = values != 0.0
    index = tl.cumsum(fires.to(tl.int32), 0) - 1
    many = tl.sum(fires.to(tl.int32), 0)
    tl.debug_barrier()  # all threads have read the list of the step before
    tl.store(list_ptr + base + index, tl.arange(0, BLOCK), mask=fires)
    tl.store(values_ptr + base + index, values, mask=fires)
    tl.debug_barrier()
    sums = tl.zeros([ROWS, BLOCK], values.dtype)
    for first in tl.range(0, many, ROWS):
        k = first + tl.arange(0, ROWS)
        rows = tl.load(list_ptr + base + k, mask=k < many, other=0)
        each = tl.load(values_ptr + base + k, mask=k < many, other=0.0)
        sums = _add_rows(sums, rows, k < many, each, matrix)
    return tl.sum(sums, 0)


def _dense(values, values_ptr, place, matrix):
    """Return the sum over neurons k of `values[k]` times row k of the matrix."""
    size = matrix[2]
    base = tl.program_id(0).to(tl.int64) * size
    tl.debug_barrier()  # all threads have read the values of the step before
    tl.store(values_ptr + place[0], values, mask=place[1])
    tl.debug_barrier()
    sums = tl.zeros([ROWS, BLOCK], values.dtype)
    for first in tl.range(0, size, ROWS):
        k = first + tl.arange(0, ROWS)
        each = tl.load(values_ptr + base + k, mask=k < size, other=0.0)
        sums = _add_rows(sums, k, k < size, each, matrix)
    return tl.sum(sums, 0)


def _start(states_ptr, s, place, zeros):
    """Return state `s` before the first step; number 0 is the spikes of the step before it."""
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
    values_ptr,
    list_ptr,
    size,
    batch,
    stride,
    counts,
    steps,
):
    place = _place(size, batch)
    offsets, valid, _, _ = place
    steps, mine = _steps(lengths_ptr, steps)
    state = finals_ptr[0].dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([BLOCK], state)
    matrix = (matrix_ptr, stride, size)
    last = _start(states_ptr, 0, place, zeros)
    mem = ()
    for s in tl.static_range(STATES):
        mem = mem + (_start(states_ptr, 1 + s, place, zeros),)
    for t in tl.range(0, mine):
        x = _load(x_ptr, 0 if HELD_CURRENT else t, valid, place, state)
        total = x + _listed(last, values_ptr, list_ptr, matrix)
        found = step(total, *mem, *parameters, *values)
        last = tl.where(valid, _like(found[0], zeros), 0.0)
        _store(spikes_ptr, t, last, valid, place)
        if CURRENTS:
            _store(currents_ptr, t, total, valid, place)
        mem = ()
        for s in tl.static_range(STATES):
            mem = mem + (_like(found[1 + s], zeros),)
            if TRACED:
                _store(traces_ptr[s], t, mem[s], valid, place)
    if LENGTHS:
        for t in tl.range(mine, steps):
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
    values_ptr,
    size,
    batch,
    stride,
    counts,
    steps,
):
    place = _place(size, batch)
    offsets, valid, _, _ = place
    steps, mine = _steps(lengths_ptr, steps)
    state = out_ptr.dtype.element_ty
    parameters = _parameters(parameters_ptr, counts, place)
    values = _numbers(numbers, state)
    zeros = tl.zeros([BLOCK], state)
    matrix = (matrix_ptr, stride, size)
    first = ()
    carry = ()  # gradients of the last step's spikes, and of the states
    for s in tl.static_range(1 + STATES):
        if s > 0:
            first = first + (_start(states_ptr, s, place, zeros),)
        if grad_finals_ptr[s] is not None:
            carry = carry + (tl.load(grad_finals_ptr[s] + offsets, mask=valid, other=0.0),)
        else:
            carry = carry + (zeros,)
    sums = ()
    for _ in tl.static_range(PARAMETERS):
        sums = sums + (zeros,)
    d = zeros  # gradient of the current of the following step
    for after in tl.range(0, mine):
        t = mine - 1 - after
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
        # The last step's spikes act on no later step.
        coming = tl.where(after > 0, _dense(d, values_ptr, place, matrix), carry[0])
        found = adjoint(current, *before, *parameters, *values, coming + comes, *given)
        d = _like(found[0], zeros)
        _store(out_ptr, t, d, valid, place)
        carried = (carry[0],)
        for s in tl.static_range(STATES):
            carried = carried + (_like(found[1 + s], zeros),)
        carry = carried
        summed = ()
        for p in tl.static_range(PARAMETERS):
            if (WANTED >> p) & 1:
                summed = summed + (sums[p] + _like(found[1 + STATES + p], zeros),)
            else:
                summed = summed + (zeros,)
        sums = summed
    if LENGTHS:
        for t in tl.range(mine, steps):
            _store(out_ptr, t, zeros, valid, place)
    if WANT_STATES:
        coming = tl.where(mine > 0, _dense(d, values_ptr, place, matrix), carry[0])
        tl.store(out_states_ptr[0] + offsets, coming, mask=valid)
        for s in tl.static_range(STATES):
            tl.store(out_states_ptr[1 + s] + offsets, carry[1 + s], mask=valid)
    for p in tl.static_range(PARAMETERS):
        if (WANTED >> p) & 1:
            tl.store(out_parameters_ptr[p] + offsets, sums[p], mask=valid)
