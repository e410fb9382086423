"""The loop over time of recurrent layers on a CPU, forward and backward, as Numba compiles it.

`recurrent` divides a layer among threads, fills the arrays of a job and runs these loops.
"""

import numpy as np

from neurospike.kernels.cpu._intrinsics import (
    address,
    call,
    graded,
    lowest,
    multiply_rows,
    nonzero,
    prefetch,
    sum_rows,
    take,
)
from neurospike.kernels.cpu._job import NEXT, SIZES, SLOT, array_of, job_of, row_of
from neurospike.kernels.cpu._scan_loop import (
    _add,
    _add_traces,
    _array,
    _fill,
    _keep,
    _start,
    _step_of,
)
from neurospike.kernels.cpu.linear_scan import _copy

TOGETHER = 4  # samples that are multiplied at once: their sums take 8 of the 16 registers of AVX2
SHARE = 0.35  # share of firing neurons from which a dense product takes less time

# Sizes of a job: steps, samples, neurons, samples of a tile, neurons rounded up to panels; states
# and parameters of a neuron. Then addresses of functions of `_rows`: `advance` or `retrace`, and
# `retreat`.
STEPS, BATCH, NEURONS, WHOLE_TILE, PADDED, STATES, PARAMETERS, ONWARD, BACK = range(
    SIZES, SIZES + 9
)

# Compile-time constants of a kernel, rebound for each number format.
NUMBER = np.float32(0)
INDEX = np.int32(0)
PANEL = 64
BLOCK = 16


def _sum(out, one, other):
    for i in range(out.size):
        out[i] = one[i] + other[i]


def _with_step(t, lengths, order, low, count):
    """Return how many of a tile's first `count` samples have a step `t`; these come first."""
    if lengths.size > 0:
        while count > 0 and lengths[order[low + count - 1]] <= t:
            count -= 1
    return count


def _list_fired(spikes, size, places, at):
    """List the places of a row of spikes that are not 0; return how many, and whether all are 1."""
    count, odd = 0, 0
    for word in range((size + 63) // 64):
        start = word * 64
        found = 0
        if start + 64 <= size:
            found = nonzero(spikes, start)
            odd |= graded(spikes, start)
        else:
            for k in range(size - start):
                value = spikes[start + k]
                found |= (1 if value != 0 else 0) << k
                odd |= 1 if value != 0 and value != 1 else 0
        while found != 0:
            places[at + count] = start + lowest(found)
            count += 1
            found &= found - 1
    return count, odd == 0


def _multiply(scratch, out_at, padded, at, size, count, packed):
    """Write the product of `count` rows `[size]` and a matrix in panels to `out_at`."""
    for panel in range(padded // PANEL):
        low, first = panel * PANEL, panel * PANEL * size
        to, row, m = out_at + low, at, 0
        while m + TOGETHER <= count:
            for column in range(0, min(PANEL, size - low), BLOCK):
                multiply_rows(
                    scratch, to + column, padded, scratch, row, size, packed, first + column,
                    PANEL, size, TOGETHER, BLOCK,
                )  # fmt: skip
            m, to, row = m + TOGETHER, to + TOGETHER * padded, row + TOGETHER * size
        while m < count:
            multiply_rows(
                scratch, to, padded, scratch, row, size, packed, first, PANEL, size, 1, PANEL
            )
            m, to, row = m + 1, to + padded, row + size


def _come_back(scratch, sums_at, padded, last_at, size, count, packed, places):
    """Write `weight @ spikes` of each of a tile's samples to `sums_at`."""
    fired, plain = 0, True
    for m in range(count):
        many, is_plain = _list_fired(
            row_of(scratch, last_at + m * size, size), size, places, m * size
        )
        places[places.size - 1 - m] = many
        fired += many
        plain = plain and is_plain
    if plain and fired > SHARE * count * size:
        _multiply(scratch, sums_at, padded, last_at, size, count, packed)
        return
    zeros = row_of(scratch, sums_at + count * padded, PANEL)
    for panel in range(padded // PANEL):
        matrix = packed[panel * size * PANEL : (panel + 1) * size * PANEL]
        for m in range(count):
            to, first = sums_at + m * padded + panel * PANEL, m * size
            end = first + places[places.size - 1 - m]
            if plain:
                sum_rows(scratch, to, zeros, 0, matrix, places, first, end, PANEL)
            else:
                _sum_graded(scratch, to, matrix, places, first, end, last_at)


def _sum_graded(scratch, to, matrix, places, first, end, last_at):
    """Sum rows times spikes other than 1, which only the state before the first step can have."""
    for i in range(PANEL):
        scratch[to + i] = 0.0
    row = first
    for e in range(first, end):
        value = scratch[last_at + row + places[e]]
        for i in range(PANEL):
            scratch[to + i] += value * matrix[places[e] * PANEL + i]


def _forward(job_at):
    job = job_of(job_at)
    steps, batch, size = job[STEPS], job[BATCH], job[NEURONS]
    tile, padded = job[WHOLE_TILE], job[PADDED]
    states, parameters = job[STATES], job[PARAMETERS]
    current, packed = _array(job_at, 0), _array(job_at, 1)
    order, lengths = array_of(job_at, 2, 0), array_of(job_at, 3, 0)
    given = 4
    outputs = given + 1 + states + parameters
    spikes, currents, numbers = (
        _array(job_at, outputs),
        _array(job_at, outputs + 1),
        _array(job_at, outputs + 2),
    )
    traces, finals = outputs + 3, outputs + 3 + states
    all_places = array_of(job_at, finals + 1 + states, INDEX)
    scratch = _array(job_at, finals + 2 + states)
    stride = _step_of(current.size, batch * size)
    traced = states > 0 and _array(job_at, traces).size > 0
    slot = take(job, SLOT)
    places = row_of(all_places, slot * tile * (size + 1), tile * (size + 1))
    # Rows of the scratch: states and last spikes of the tile, parameters, a total, sums.
    states_at = slot * (
        tile * (states + 1) * size + (parameters + 1) * size + tile * padded + PANEL
    )
    last_at = states_at + tile * states * size
    parameters_at = last_at + tile * size
    total_at = parameters_at + parameters * size
    sums_at = total_at + size
    for p in range(parameters):
        row = row_of(scratch, parameters_at + p * size, size)
        _fill(row, _array(job_at, given + 1 + states + p), 0)
    part = take(job, NEXT)
    while part * tile < batch:
        low = part * tile
        count = min(tile, batch - low)
        for m in range(count):
            at = order[low + m] * size
            _start(row_of(scratch, last_at + m * size, size), _array(job_at, given), at)
            for s in range(states):
                row = row_of(scratch, states_at + (m * states + s) * size, size)
                _start(row, _array(job_at, given + 1 + s), at)
        for t in range(steps):
            having = _with_step(t, lengths, order, low, count)
            for i in range(PANEL):
                scratch[sums_at + having * padded + i] = 0.0
            _come_back(scratch, sums_at, padded, last_at, size, having, packed, places)
            for m in range(having):
                at = order[low + m] * size
                out = t * batch * size + at
                if t + 1 < steps:
                    prefetch(current, (t + 1) * stride + at, size)
                total = row_of(scratch, total_at, size)
                if currents.size > 0:
                    total = row_of(currents, out, size)
                x, sums = (
                    row_of(current, t * stride + at, size),
                    row_of(scratch, sums_at + m * padded, size),
                )
                _sum(total, x, sums)
                own = states_at + m * states * size
                fired = row_of(scratch, last_at + m * size, size)
                call(
                    job[ONWARD],
                    (
                        address(total, 0),
                        address(scratch, own),
                        address(scratch, parameters_at),
                        address(fired, 0),
                        address(numbers, 0),
                        size,
                        size,
                        1,  # step: the strides are not used
                        0,
                        0,
                    ),
                )
                _copy(row_of(spikes, out, size), fired)
                if traced:
                    _keep(job_at, states, scratch, own, size, traces, out, size)
            for m in range(having, count):
                out = (t * batch + order[low + m]) * size
                _start(row_of(spikes, out, size), row_of(scratch, 0, 0), 0)
                _keep(
                    job_at, states, scratch, states_at + m * states * size, size, traces, out, size
                )
        for m in range(count):
            at = order[low + m] * size
            _copy(
                row_of(_array(job_at, finals), at, size), row_of(scratch, last_at + m * size, size)
            )
            _keep(
                job_at, states, scratch, states_at + m * states * size, size, finals + 1, at, size
            )
        part = take(job, NEXT)


def _backward(job_at):
    job = job_of(job_at)
    steps, batch, size = job[STEPS], job[BATCH], job[NEURONS]
    tile, padded = job[WHOLE_TILE], job[PADDED]
    states, parameters = job[STATES], job[PARAMETERS]
    currents, packed = _array(job_at, 0), _array(job_at, 1)
    order, lengths = array_of(job_at, 2, 0), array_of(job_at, 3, 0)
    given = 4
    gradients = given + states + parameters
    grad_spikes = _array(job_at, gradients)
    traces, finals = gradients + 1, gradients + 1 + states
    outputs = finals + 1 + states
    out = _array(job_at, outputs)
    wanted = outputs + 2 + states
    numbers = _array(job_at, wanted + parameters)
    scratch = _array(job_at, wanted + parameters + 1)
    nothing = row_of(scratch, 0, 0)
    stride = _step_of(grad_spikes.size, batch * size)
    traced = False
    for s in range(states):
        traced = traced or _array(job_at, traces + s).size > 0
    # Rows of the scratch: gradients of states and currents of the tile, parameters, sums of their
    # gradients for each sample, gradients that the next step's currents give to the spikes, the
    # states before each step.
    rows_each = tile * (states + 1 + parameters) + parameters + tile * steps * states
    states_at = take(job, SLOT) * (rows_each * size + tile * padded)
    grads_at = states_at + tile * states * size
    parameters_at = grads_at + tile * size
    sums_at = parameters_at + parameters * size
    coming_at = sums_at + tile * parameters * size
    history = coming_at + tile * padded
    for p in range(parameters):
        row = row_of(scratch, parameters_at + p * size, size)
        _fill(row, _array(job_at, given + states + p), 0)
    part = take(job, NEXT)
    while part * tile < batch:
        low = part * tile
        count = min(tile, batch - low)
        for m in range(count):
            at = order[low + m] * size
            before = history + m * steps * states * size
            own = states_at + m * states * size
            for s in range(states):
                _start(row_of(scratch, before + s * size, size), _array(job_at, given + s), at)
                _start(row_of(scratch, own + s * size, size), _array(job_at, finals + 1 + s), at)
            _start(row_of(scratch, coming_at + m * padded, size), _array(job_at, finals), at)
            sums = row_of(scratch, sums_at + m * parameters * size, parameters * size)
            _start(sums, nothing, 0)
            many = max(0, min(steps, lengths[order[low + m]])) if lengths.size > 0 else steps
            call(
                job[ONWARD],
                (
                    address(currents, at),
                    address(scratch, before),
                    address(scratch, parameters_at),
                    address(numbers, 0),
                    size,
                    size,
                    many - 1,
                    batch * size,
                ),
            )
        for t in range(steps - 1, -1, -1):
            having = _with_step(t, lengths, order, low, count)
            for m in range(having):
                at = order[low + m] * size
                here = t * batch * size + at
                if t > 0:
                    prefetch(currents, here - batch * size, size)
                    if grad_spikes.size > 0:
                        prefetch(grad_spikes, (t - 1) * stride + at, size)
                    prefetch(scratch, history + (m * steps + t - 1) * states * size, states * size)
                own = states_at + m * states * size
                g = row_of(scratch, coming_at + m * padded, size)
                if grad_spikes.size > 0:
                    _add(g, row_of(grad_spikes, t * stride + at, size))
                if traced:
                    _add_traces(
                        job_at, states, scratch, own, size, traces, here, at, batch * size, size
                    )
                d = row_of(scratch, grads_at + m * size, size)
                call(
                    job[BACK],
                    (
                        address(currents, here),
                        address(scratch, history + (m * steps + t) * states * size),
                        address(scratch, parameters_at),
                        address(g, 0),
                        address(scratch, own),
                        address(d, 0),
                        address(scratch, sums_at + m * parameters * size),
                        address(numbers, 0),
                        size,
                        size,
                        1,  # step: the strides are not used
                        0,
                        0,
                        0,
                    ),
                )
                _copy(row_of(out, here, size), d)
            _multiply(scratch, coming_at, padded, grads_at, size, having, packed)
            for m in range(having, count):
                _start(row_of(out, (t * batch + order[low + m]) * size, size), nothing, 0)
        for m in range(count):
            at = order[low + m] * size
            last = _array(job_at, outputs + 1)
            if last.size > 0:
                _copy(row_of(last, at, size), row_of(scratch, coming_at + m * padded, size))
                _keep(
                    job_at,
                    states,
                    scratch,
                    states_at + m * states * size,
                    size,
                    outputs + 2,
                    at,
                    size,
                )
            asked = sums_at + m * parameters * size
            for p in range(parameters):
                target = _array(job_at, wanted + p)
                if target.size > 0:
                    _copy(row_of(target, at, size), row_of(scratch, asked, size))
                    asked += size
        part = take(job, NEXT)
