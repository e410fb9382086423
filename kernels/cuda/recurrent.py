"""Recurrent layers on a GPU: the whole time loop, with the product of each step, in one kernel.

    current_t = x_t + weight @ spikes_{t-1}

The kernels, and how a program goes through time, are in `_recurrent_loop`. This file decides which
layers they run and how these are divided, and launches them.

Read and written per neuron-step in float32, beside the weight: forward 8 bytes, and 4 each for the
sum that reached the neuron and for every state, which are saved for backward; backward 12, and 4
for every state. Layers that are too large (`fits`) are run step by step, with a product by torch at
each step: then all samples share one reading of the weight. Number formats: state float32, or
float64 if the current is; 16-bit sequences are read and written as they are; the spikes that act on
the next step are in the state's format. Nothing is contracted to fused multiply-adds.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from neurospike.backend.binding import bind
from neurospike.backend.dispatch import TABLE
from neurospike.backend.tensors import sum_over_batch
from neurospike.kernels.cuda._compile import bits_of, jit
from neurospike.kernels.cuda._launch import Launch
from neurospike.kernels.cuda._recurrent_loop import _backward, _forward
from neurospike.kernels.cuda.scan import _rows, names_of
from neurospike.ops.stepped_recurrence import SteppedRecurrence
from neurospike.ops.wants import mask_of

# The most neurons of a layer that is run here. Backward reads the whole weight at each step, once
# per sample; for larger layers torch's product, which reads it once for all samples, is faster: 100
# steps of 32 samples of 1024 neurons took 1.55 ms as a CUDA graph on an H200.
LARGEST = {"forward": 1024, "backward": 512}


class Geometry(NamedTuple):
    """How a program is divided.

    Attributes:
        rows: how many rows of the weight are read at once, a power of two.
        width: how many neighbouring numbers of a row a thread reads at once, a power of two.
        warps: how many warps a program has.
    """

    rows: int
    width: int
    warps: int


def block_of(size: int) -> int:
    """Return the size of a program's block: a power of two of 16 or more, at least `size`."""
    return max(16, triton.next_power_of_2(size))


def geometry(kind: str, size: int, dtype: torch.dtype) -> Geometry:
    """Return how a layer of `size` neurons is divided.

    The best of a sweep in float32 on an H200, where 100 steps of 32 samples of 128 neurons took
    93 us forward and 161 us backward, 100 steps of 64 samples of 512 neurons 168 us and 1153 us
    (`benchmarks.gpu_recurrent` measures another card). The kernels that were measured could take
    several samples per program too. Not measured: layers of 64 neurons and fewer, of more than 512,
    and float64, which gets no more rows than there are registers for.

    kind: "forward" or "backward"; dtype: of the states.
    """
    block = block_of(size)
    if block >= 512:
        rows, width, warps = 32, 4, 4 if block == 512 else 8
    elif kind == "backward":
        rows, width, warps = 32, 2, 4
    else:
        rows, width, warps = (16, 2, 4) if block == 256 else (8, 2, 8)
    if dtype == torch.float64:
        rows = min(8, rows // 2)
    return Geometry(rows, min(width, max(1, block // 32)), warps)


def fits(kind: str, size: int) -> bool:
    """Whether a layer of `size` neurons is run by a kernel here, and not step by step."""
    return size <= LARGEST[kind]


@functools.lru_cache(maxsize=512)
def compiled(kind: str, key: str, **flags: Any) -> Any:
    """Return a kernel jitted for a neuron, a geometry and the wanted outputs."""
    names = names_of(kind, key, SPIKES=True, **flags)
    return bind(_forward if kind == "forward" else _backward, names, jit)


@functools.lru_cache(maxsize=4096)
def _prepared(
    kind: str,
    neuron: str,
    numbers: tuple[float, ...],
    form: tuple[torch.dtype, torch.dtype, int, int, int, bool],
    counts: tuple[int, ...],
    asked: tuple[Any, ...],
) -> tuple[Launch, tuple[int, ...]]:
    """Return the launch of calls that differ only in their tensors; see `scan._prepared`.

    form: formats of the sequences and of the states, the device's index, neurons, samples, and
    whether the number of steps takes 64 bits.
    """
    _, state, device, size, batch, _ = form
    flags: dict[str, Any] = {"SCALARS": mask_of([count == 1 for count in counts])}
    if kind == "forward":
        given, lengths, traced, currents, held = asked
        flags |= {"CURRENTS": currents, "TRACED": int(traced), "HELD_CURRENT": held}
    else:
        given, lengths, traced, comes, held, wanted, states, _ = asked
        flags |= {"TRACED": mask_of(traced), "COMES": comes, "HELD_SPIKES": held}
        flags |= {"WANTED": mask_of(wanted), "WANT_STATES": states}
    rows, width, warps = geometry(kind, size, state)
    flags |= {"GIVEN": given, "LENGTHS": lengths}
    flags |= {"BLOCK": block_of(size), "ROWS": rows, "WIDTH": width}
    kernel = compiled(kind, neuron, **flags)
    return Launch(kernel, batch, warps, device), bits_of(numbers)


def forget() -> None:
    """Forget what was compiled in this process."""
    compiled.cache_clear()
    _prepared.cache_clear()


@functools.cache
def _stepped() -> SteppedRecurrence:
    return SteppedRecurrence(TABLE["triton"])


def _matrix(weight: Tensor, kind: str) -> Tensor:
    """Return the weight as rows: forward those from each neuron, backward those to each neuron.

    Rows are padded with zeros to a multiple of 16 numbers.
    """
    rows = weight.T if kind == "forward" else weight
    more = -rows.shape[1] % 16
    return torch.nn.functional.pad(rows, (0, more)) if more else rows.contiguous()


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
    form = (current.dtype, state, current.get_device(), size, batch, steps.bit_length() > 31)
    go, bits = _prepared("forward", neuron, tuple(numbers), form, counts, asked)
    if lengths is not None:
        lengths = lengths.contiguous()
    go(
        (x, matrix, *starts, *values, lengths),
        (
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
            torch.empty_like(finals[0]),
            torch.empty_like(finals[0], dtype=torch.int32),
            size,
            batch,
            matrix.shape[1],
            counts,
            steps,
        ),
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
    form = (dtype, out.dtype, out.get_device(), size, batch, steps.bit_length() > 31)
    go, bits = _prepared("backward", neuron, tuple(numbers), form, counts, asked)
    if lengths is not None:
        lengths = lengths.contiguous()
    go(
        (gs, *finals, *more, currents, *traces, matrix, *starts, *values, lengths),
        (
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
            torch.empty_like(out[0]),
            size,
            batch,
            matrix.shape[1],
            counts,
            steps,
        ),
    )
    sum_over_batch(each, out_parameters)


def weight_gradient(*, grad: Tensor, spikes: Tensor, out: Tensor) -> None:
    """Fill `out` `[N, N]` with `grad.T @ spikes`, by torch."""
    _stepped().weight_gradient(grad=grad, spikes=spikes, out=out)
