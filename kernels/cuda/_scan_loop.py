"""The loop over time of any recorded neuron on a GPU, forward and backward, as Triton compiles it.

`scan` divides the neurons among programs and launches these kernels.
"""

import triton.language as tl

from neurospike.backend.dispatch import TABLE

# Compile-time constants, rebound for each variant of a kernel.
EVERY = TABLE["triton"].checkpoint_every  # steps of a chunk
BLOCK = 256  # neurons of a program
STAGES = 1  # stages of Triton's software pipeline over chunks
STATES = 1
PARAMETERS = 2
NUMBERS = 0
GIVEN = False  # whether there are states to start from
SCALARS = 3  # bit mask of the parameters that all neurons share
SPIKES = True  # whether spikes are written, or have a gradient
TRACED = 0  # bit mask of the states whose trace is written, or has a gradient
SAVED = False  # whether the states before every chunk are saved for backward
CONSTANT = False  # whether the current, and so its gradient, has no time axis
WANTED = 0  # bit mask of the parameters whose gradients are wanted
WANT_STATES = False
HELD_CURRENT = False  # whether it is one row for all steps, which is read once
HELD_SPIKES = False  # the same of the spikes' gradient
HELD_TRACES = 0  # bit mask of the traces' gradients of which the same is true
LENGTHS = False


def step(*arguments):
    """Stand-in for the neuron's step, which is generated from its program."""


def adjoint(*arguments):
    """Stand-in for the gradient of the step, which is derived from the program."""


def _place(size, steps, samples):
    """Return this program's neurons, and how many steps they have.

    The neurons: their offsets, which of them exist, how many neurons there are in all programs, and
    the offset after the last one of this program's sample, or of all.
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
    """Load each parameter: one value for all neurons, or `counts[p]` that repeat over the batch."""
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
        # Small integers arrive in 32 bits, or as constants.
        wide = tl.cast(bits[k], tl.int64)
        found = found + (wide.to(tl.float64, bitcast=True).to(state),)
    return found


def _inside(t, steps, is_whole, place):
    """Return which neurons have a step `t`: all that exist, or none after the last step."""
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
    """Load the row of a sequence that is the same at every step; zeros unless `is_held`."""
    row = zeros
    if is_held:
        row = _load(ptr, 0, place[1], place, zeros.dtype)
    return row


def _chunk(ptr, is_held, held, first, steps, is_whole, place):
    """Load `EVERY` rows from `first` on, all before the first is used, so that loads overlap."""
    rows = ()
    for k in tl.static_range(EVERY):
        if is_held:
            rows = rows + (held,)
        else:
            inside = _inside(first + k, steps, is_whole, place)
            rows = rows + (_load(ptr, first + k, inside, place, held.dtype),)
    return rows


def _like(value, zeros):
    """Return a result as a block in the state's format, even if it is one number for all."""
    return tl.broadcast_to(value, zeros.shape).to(zeros.dtype)


def _forward_chunk(mem, held, parameters, values, zeros, first, steps, is_whole, place, pointers):
    """Take `EVERY` steps from `first` on, or as many as are left unless `is_whole`."""
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
    """Go back through `EVERY` steps from `first` on, or as many as are left unless `is_whole`."""
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
