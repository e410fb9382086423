"""Recurrent layers on the CPU: the whole time loop, with the weight, in one compiled kernel.

    current_t = x_t + weight @ spikes_{t-1}

The neurons of a sample act on one another at every step, so a thread takes a tile of samples with
all their neurons, whose states stay in its caches. Forward, the rows of the transposed weight that
belong to the few neurons that fired are added up in registers, one panel of neurons after another,
so that a panel serves all samples of the tile. Where many fired, the tile is multiplied densely
instead; both ways sum in the same order, to the same bits. Backward, the gradients of a step's
currents are multiplied with the weight, a block of samples at once. Loops over a sample's neurons
are those of `_rows`, as in `scan`.

Saved for backward: `currents`, the sums that reached the neurons. The states before each step are
computed again into a scratch, of one number for each state, neuron, step and sample of a tile.

With lengths, samples are sorted by them, the longest first: so the samples of a tile that have a
step t are its first ones, and nothing is computed for the others.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import buffers
from neurospike.backend.tensors import sum_over_batch
from neurospike.kernels.cpu import _rows, linear
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._job import run
from neurospike.kernels.cpu._recurrent_loop import _backward, _forward
from neurospike.kernels.cpu._sequences import rows
from neurospike.kernels.cpu.events import FORMATS, find, words
from neurospike.kernels.cpu.events import threads as threads_for
from neurospike.kernels.cpu.linear import pack
from neurospike.kernels.cpu.scan import _given, alike_of, as_tensor
from neurospike.neurons.program import Program
from neurospike.ops.wants import mask_of

# Bytes of sums, one for each neuron of a part, that stay in registers: while the rows of one sample
# are added up, and while a block of samples is multiplied.
PANEL_BYTES = 256
BLOCK_BYTES = 64
TILE = 8  # samples that go through time together, at most
OVERWRITES = True  # a step's currents are read before their gradients are written
# Costs of an event-driven weight gradient, in products of a dense one: of reading one number of the
# currents' gradients, and of adding one to a sum.
READ, ADD = 60.0, 5.0


@functools.cache
def _compiled(backward: bool, state: torch.dtype) -> Any:
    """Return the forward or backward kernel, for any neuron, compiled for a number format."""
    names: dict[str, Any] = {"INDEX": np.int32(0)}
    names |= {"PANEL": PANEL_BYTES // state.itemsize, "BLOCK": BLOCK_BYTES // state.itemsize}
    return compiled(_backward if backward else _forward, names, FORMATS[state])


def _tiles(batch: int) -> tuple[int, int]:
    """Return a tile's samples, at most a thread's share of them, and how many tiles there are."""
    tile = min(TILE, -(-batch // torch.get_num_threads()))
    return tile, -(-batch // tile)


def _in_order(lengths: Tensor | None, batch: int) -> Tensor:
    """Return the indices of the samples, those with the most steps first."""
    if lengths is None:
        return torch.arange(batch, device="cpu")
    return torch.argsort(lengths, descending=True, stable=True)


def _wide(tensor: Tensor, state: torch.dtype) -> Tensor:
    """Return an output in the state's format: itself, or a new one to be copied into it."""
    return tensor if tensor.dtype == state else buffers.empty(tensor.shape, state)


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
    """Do as `protocols.Recurrence` says."""
    (steps, batch, size), state, count = current.shape, weight.dtype, len(finals) - 1
    wide = _wide(spikes, state)
    panel = PANEL_BYTES // state.itemsize
    packed = pack(weight, panel)
    padded = packed.shape[0] * panel
    tile, tiles = _tiles(batch)
    threads = threads_for(steps * batch * size * (4 + size // 8), tiles)
    advance = _rows.advance(neuron, state == torch.float64, alike_of(parameters), True)
    arrays = (
        rows(current, state),
        packed,
        _in_order(lengths, batch),
        lengths,
        *_given([one.contiguous() for one in states], count + 1),
        *[one.contiguous() for one in parameters],
        wide,
        currents,
        as_tensor(tuple(numbers), state),
        *_given(traces, count),
        *finals,
        torch.empty(threads * tile * (size + 1), dtype=torch.int32, device="cpu"),
    )
    scratch = (tile * (count + 1) + len(parameters) + 1) * size + tile * padded + panel
    sizes = (steps, batch, size, tile, padded, count, len(parameters), advance)
    run(_compiled(False, state), arrays, sizes, threads, scratch, state)
    if wide is not spikes:
        spikes.copy_(wide)


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
    """Do as `protocols.Recurrence` says; `traces` are computed again and not read."""
    (steps, batch, size), state = currents.shape, currents.dtype
    count = Program.parse(neuron).states
    gs = rows(grad_spikes, state)
    gts = [rows(one, state) for one in grad_traces] or [None] * count
    wanted = mask_of([one is not None for one in out_parameters])
    panel = PANEL_BYTES // state.itemsize
    padded = -(-size // panel) * panel
    # The same as `pack(weight.T, panel)`, without transposing twice.
    whole = torch.nn.functional.pad(weight, (0, padded - size)) if padded > size else weight
    packed = whole.reshape(size, -1, panel).transpose(0, 1).contiguous()
    alike, double = alike_of(parameters), state == torch.float64
    retrace = _rows.retrace(neuron, double, alike)
    retreat = _rows.retreat(neuron, double, alike, True, wanted, False)
    shape = (batch, size)
    asked = [None if one is None else out.new_empty(shape) for one in out_parameters]
    tile, tiles = _tiles(batch)
    arrays = (
        currents,
        packed,
        _in_order(lengths, batch),
        lengths,
        *_given([one.contiguous() for one in states[1:]], count),
        *[one.contiguous() for one in parameters],
        gs,
        *gts,
        *[None if one is None else one.to(state).contiguous() for one in grad_finals],
        out,
        *_given(out_states, count + 1),
        *asked,
        as_tensor(tuple(numbers), state),
    )
    rows_each = tile * (count + 1 + len(parameters)) + len(parameters) + tile * steps * count
    threads = threads_for(steps * batch * size * (8 + size // 2), tiles)
    scratch = rows_each * size + tile * padded
    sizes = (steps, batch, size, tile, padded, count, len(parameters), retrace, retreat)
    run(_compiled(True, state), arrays, sizes, threads, scratch, state)
    sum_over_batch(asked, out_parameters)


def weight_gradient(*, grad: Tensor, spikes: Tensor, out: Tensor) -> None:
    """Fill `out` `[N, N]` with `grad.T @ spikes`, event-driven where few neurons fired."""
    count, size = spikes.shape
    if count > 0 and size > READ:
        bits = spikes.new_empty((count, words(size)), dtype=torch.int64)
        found = find(spikes.contiguous(), bits)
        sums = found.events if found.valued else found.groups
        if ADD * sums + READ * count < count * size:
            linear.backward(grad=grad, spikes=spikes, bits=bits, valued=found.valued, out=out)
            return
    torch.mm(grad.T, spikes, out=out)
