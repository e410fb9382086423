"""The loop over time of any recorded neuron on a CPU, forward and backward, as Numba compiles it.

`scan` divides neurons among threads, fills the arrays of a job and runs these loops; the vectorised
loops over a row of neurons are those of `_rows`, called by their addresses.
"""

import numpy as np

from neurospike.kernels.cpu._intrinsics import address, array_at, call, fence, stream, take
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, place_of, row_of

PAD = 16  # numbers between rows of scratch; without, rows of some steps would share few cache sets
TOGETHER = 4  # time steps that one call takes a row of neurons through

# Sizes of a job: steps, neurons in a block, neurons in all, blocks, neurons of a sample (all of
# them, if a block may span several); states and parameters of a neuron; 1 if outputs are written
# past the caches; bytes of a number of the current, of the spikes or their gradient, and of the
# current's gradient. Strides, in numbers, between two steps and between two samples: of the
# current, of the spikes' gradient, of the current's gradient, and of all other sequences; a stride
# of 0 between steps stands for one row at all steps. Then addresses of functions of `_rows`:
# `advance` or `retrace`, and `retreat`.
STEPS, WIDTH, COUNT, PARTS, FEATURES, STATES, PARAMETERS, PAST = range(SIZES, SIZES + 8)
X_BYTES, SPIKES_BYTES, OUT_BYTES = range(PAST + 1, PAST + 4)
X_STEP, X_EACH, GRAD_STEP, GRAD_EACH, OUT_STEP, OUT_EACH, STEP, EACH = range(PAST + 4, PAST + 12)
ONWARD, BACK = range(PAST + 12, PAST + 14)

NUMBER = np.float32(0)  # rebound to the state's format
BYTE = np.uint8(0)


def _array(job_at, k):
    """Return the `k`-th array of a job; size 0 stands for an absent one."""
    return array_of(job_at, k, NUMBER)


def _fill(out, values, start):
    """Write one value per neuron, from neuron `start` on; `values` repeats over the neurons."""
    if values.size == 1:
        for i in range(out.size):
            out[i] = values[0]
        return
    k = start % values.size
    for i in range(out.size):
        out[i] = values[k]
        k += 1
        if k == values.size:
            k = 0


def _start(out, values, low):
    """Fill `out` with `values` from neuron `low` on, or with zeros if `values` is empty."""
    for i in range(out.size):
        out[i] = values[low + i] if values.size > 0 else 0.0


def _step_of(count, size):
    """Return the stride over time of a sequence of `count` numbers; 0 if one row stands for all."""
    return 0 if count == size else size


def _place(job, lengths, part):
    """Return a block's sample, its first neuron in that, and its numbers of neurons and steps."""
    block = job[WIDTH]
    each = (job[FEATURES] + block - 1) // block
    sample, first = part // each, part % each * block
    steps = job[STEPS]
    if lengths.size > 0:
        steps = max(0, min(lengths[sample], steps))
    return sample, first, min(block, job[FEATURES] - first), steps


def _begin(job_at, scratch, states_at, parameters_at, apart, low, n):
    """Write a block's first states and its parameters into rows of the scratch."""
    job = job_of(job_at)
    states = job[STATES]
    for s in range(states):
        _start(row_of(scratch, states_at + s * apart, n), _array(job_at, 1 + s), low)
    for p in range(job[PARAMETERS]):
        row = row_of(scratch, parameters_at + p * apart, n)
        _fill(row, _array(job_at, 1 + states + p), low)


def _keep(job_at, states, scratch, own, apart, first, at, n):
    """Write states, rows of the scratch, into those arrays of a job that are present."""
    for s in range(states):
        array = _array(job_at, first + s)
        if array.size > 0:
            _start(row_of(array, at, n), scratch, own + s * apart)


def _add_traces(job_at, states, scratch, own, apart, first, at, low, size, n):
    """Add the gradients of the traces at a step, where present, to those of the states.

    They begin at `at` in a sequence, and at `low` in one row of `size` numbers for all steps.
    """
    for s in range(states):
        trace = _array(job_at, first + s)
        if trace.size > 0:
            place = low if trace.size == size else at
            _add(row_of(scratch, own + s * apart, n), row_of(trace, place, n))


def _forward(job_at):
    job = job_of(job_at)
    states, parameters, past = job[STATES], job[PARAMETERS], job[PAST] == 1
    current, _ = place_of(job_at, 0)
    outputs = 1 + states + parameters
    spikes, spikes_count = place_of(job_at, outputs)
    numbers = _array(job_at, outputs + 1 + 2 * states)
    traces, finals = outputs + 1, outputs + 1 + states
    lengths = array_of(job_at, outputs + 2 + 2 * states, 0)
    scratch = _array(job_at, outputs + 3 + 2 * states)
    apart, x_step, step = job[WIDTH] + PAD, job[X_STEP], job[STEP]
    traced = states > 0 and _array(job_at, traces).size > 0
    each = 1 if traced else TOGETHER
    # Rows of the scratch: states, parameters, a row of zeros to stream from.
    own = take(job, SLOT) * (states + parameters + 1) * apart
    parameters_at = own + states * apart
    zeros_at = parameters_at + parameters * apart
    part = take(job, NEXT)
    while part < job[PARTS]:
        sample, first, n, steps = _place(job, lengths, part)
        low, begin = sample * job[FEATURES] + first, sample * job[EACH] + first
        x_begin = sample * job[X_EACH] + first
        _begin(job_at, scratch, own, parameters_at, apart, low, n)
        for t in range(0, steps, each):
            taken = min(each, steps - t)
            out = t * step + begin
            call(
                job[ONWARD],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, own),
                    address(scratch, parameters_at),
                    spikes + out * job[SPIKES_BYTES],
                    address(numbers, 0),
                    apart,
                    n,
                    taken,
                    x_step,
                    step,
                ),
            )
            if traced:
                _keep(job_at, states, scratch, own, apart, traces, out, n)
        zeros = address(scratch, zeros_at)
        for t in range(steps, job[STEPS]):
            if spikes_count > 0:
                _zero(spikes, t * step + begin, n, job[SPIKES_BYTES], zeros, past)
            _keep(job_at, states, scratch, own, apart, traces, t * step + begin, n)
        _keep(job_at, states, scratch, own, apart, finals, low, n)
        part = take(job, NEXT)
    if past:
        fence()


def _backward(job_at):
    job = job_of(job_at)
    states, parameters, past = job[STATES], job[PARAMETERS], job[PAST] == 1
    current, _ = place_of(job_at, 0)
    given = 1 + states + parameters
    grad_spikes, _ = place_of(job_at, given)
    traces, finals = given + 1, given + 1 + states
    outputs = finals + states
    out, _ = place_of(job_at, outputs)
    wanted = outputs + 1 + states
    numbers = _array(job_at, wanted + parameters)
    lengths = array_of(job_at, wanted + parameters + 1, 0)
    scratch = _array(job_at, wanted + parameters + 2)
    nothing = row_of(scratch, 0, 0)
    size, apart = job[COUNT], job[WIDTH] + PAD
    x_step, grad_step, step = job[X_STEP], job[GRAD_STEP], job[STEP]
    out_step = job[OUT_STEP]
    traced = False
    for s in range(states):
        traced = traced or _array(job_at, traces + s).size > 0
    each = 1 if traced else TOGETHER
    # Rows of the scratch: gradients of the states, parameters, gradients of the parameters, a row
    # of zeros to stream from, the history.
    own = take(job, SLOT) * (states + 2 * parameters + 1 + job[STEPS] * states) * apart
    parameters_at = own + states * apart
    sums_at = parameters_at + parameters * apart
    zeros_at = sums_at + parameters * apart
    history = zeros_at + apart
    part = take(job, NEXT)
    while part < job[PARTS]:
        sample, first, n, steps = _place(job, lengths, part)
        low, begin = sample * job[FEATURES] + first, sample * job[EACH] + first
        x_begin, grad_begin = sample * job[X_EACH] + first, sample * job[GRAD_EACH] + first
        out_begin = sample * job[OUT_EACH] + first
        _begin(job_at, scratch, history, parameters_at, apart, low, n)
        for t in range(0, steps - 1, TOGETHER):
            call(
                job[ONWARD],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, history + t * states * apart),
                    address(scratch, parameters_at),
                    address(numbers, 0),
                    apart,
                    n,
                    min(TOGETHER, steps - 1 - t),
                    x_step,
                ),
            )
        for s in range(states):
            _start(row_of(scratch, own + s * apart, n), _array(job_at, finals + s), low)
        _start(row_of(scratch, sums_at, parameters * apart), nothing, 0)
        if out_step == 0:
            _start(row_of(_array(job_at, outputs), low, n), nothing, 0)
        t = steps
        while t > 0:
            taken = min(each, t)
            t -= taken
            if traced:
                at = t * step + begin
                _add_traces(job_at, states, scratch, own, apart, traces, at, low, size, n)
            call(
                job[BACK],
                (
                    current + (t * x_step + x_begin) * job[X_BYTES],
                    address(scratch, history + t * states * apart),
                    address(scratch, parameters_at),
                    grad_spikes + (t * grad_step + grad_begin) * job[SPIKES_BYTES],
                    address(scratch, own),
                    out + (t * out_step + out_begin) * job[OUT_BYTES],
                    address(scratch, sums_at),
                    address(numbers, 0),
                    apart,
                    n,
                    taken,
                    x_step,
                    grad_step,
                    out_step,
                ),
            )
        zeros = address(scratch, zeros_at)
        if out_step > 0:
            for t in range(steps, job[STEPS]):
                _zero(out, t * step + begin, n, job[OUT_BYTES], zeros, past)
        _keep(job_at, states, scratch, own, apart, outputs + 1, low, n)
        asked = sums_at
        for p in range(parameters):
            target = _array(job_at, wanted + p)
            if target.size > 0:
                _start(row_of(target, low, n), scratch, asked)
                asked += apart
        part = take(job, NEXT)
    if past:
        fence()


def _zero(place, start, n, size, zeros, past):
    """Write `n` zeros of `size` bytes each to number `start` of the sequence at address `place`.

    past: whether to write past the caches, from `zeros`, the address of a row of scratch.
    """
    target = array_at(place + start * size, n * size, BYTE)
    row = array_at(zeros, n * size, BYTE) if past else target
    for i in range(row.size):
        row[i] = 0
    if past:
        stream(target, 0, row)


def _add(out, values):
    """Add a row to another."""
    for i in range(out.size):
        out[i] += values[i]
