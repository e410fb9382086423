"""The fused CUDA backend of any recorded neuron: the whole time loop in one Triton kernel.

Layout: a sequence is `[T, N]`, `N = B * F`, rows contiguous. One program takes a block of neurons
and keeps their states in registers while it goes through time in chunks of `EVERY` steps, whose
loads overlap. The operations are those recorded of the neuron and of its derived gradient
(`neurospike.neurons`), printed as source for Triton.

Saved for backward: the states before every chunk. The backward kernel takes the chunks in reverse;
it reads a chunk's currents again, runs it forward from the saved states with all states in
registers, then in reverse. With S states in float32 that moves 8 + 4 S / EVERY bytes per
neuron-step forward (read current, write spikes) and 12 + 4 S / EVERY backward (read current and the
spikes' gradient, write the current's).

A sequence that is the same at every step is read once. With lengths a program's neurons lie within
one sample, and it stops at the sample's end; later steps are only filled, never read. Outputs that
are not wanted are compiled away. The number of steps is not a compile-time constant. Number
formats: state float32, or float64 if the current is; 16-bit sequences are read and written as they
are. Gradients of parameters are summed over time in registers, and over the batch by torch: without
atomic additions, whose order would change the result.
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
from neurospike.backend.tensors import are_same, sum_over_batch
from neurospike.kernels.cuda._compile import bits_of, jit
from neurospike.kernels.cuda._formulas import NAMES
from neurospike.kernels.cuda._launch import Launch
from neurospike.kernels.cuda._scan_loop import _backward, _forward
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Program, written
from neurospike.ops import running
from neurospike.ops.wants import mask_of

Given = TypeVar("Given", Tensor, "Tensor | None")

SMALL = 1 << 15  # fewer neurons do not fill the device: they are spread in smaller programs


def geometry(kind: str, size: int, dtype: torch.dtype, loads: int) -> tuple[int, int, int]:
    """Return how many neurons and warps a program has, and how many stages its loop over chunks.

    As measured on an H200; `benchmarks.gpu_sweep` measures another card. With 16 bytes per thread
    of a sequence in float32 or float64 loads have their full width, and as many bytes of each state
    need few enough registers. With 4 stages, 2 chunks are being loaded while a third is computed.
    (With 2, Triton begins to load one only after that.) They wait in shared memory, which is too
    small for many sequences; and a gradient in 16 bits is faster without. If there are few neurons
    they are spread over many multiprocessors, with two for each thread: an asynchronous copy has at
    least 4 bytes.

    kind: "forward" or "backward"; dtype: of the sequences; loads: how many of them are read.
    """
    if size < SMALL:
        return 64, 1, 4
    ahead = loads <= 3 and not (kind == "backward" and dtype.itemsize == 2)
    return 128 if dtype == torch.float64 else 256, 2, 4 if ahead else 1


def _made(text: str, name: str) -> Callable[..., Any]:
    """Return the function defined in a text, whose source Triton can find in `linecache`."""
    file = f"<neurospike {name} {hash(text):x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {}
    exec(compile(text, file, "exec"), space)
    made = FunctionType(space[name].__code__, {}, name)
    made.__module__ = __name__
    return made


def names_of(kind: str, key: str, **flags: Any) -> dict[str, Any]:
    """Return the values of a kernel's free names: flags, and the neuron's step and adjoint.

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
        # One result for each parameter, so that its position does not depend on which are wanted.
        found = iter(results)
        results = tuple(next(found) if want else "0.0" for want in wants)
        gradients = [f"g{k}" for k, is_given in enumerate(given) if is_given]
        text = written("adjoint", [*program.inputs, *gradients], operations, results)
        names["adjoint"] = _made(text, "adjoint")
    return names


@functools.lru_cache(maxsize=512)
def compiled(kind: str, key: str, **flags: Any) -> Any:
    """Return a kernel jitted for a neuron and the wanted outputs."""
    return bind(_forward if kind == "forward" else _backward, names_of(kind, key, **flags), jit)


def _rows(tensor: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return a sequence `[T, ...]` with contiguous rows, and whether it is one row for all."""
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
    """Return the launch of calls that differ only in their tensors, and the numbers' bits.

    Everything for which Triton compiles another kernel is among the arguments, so that one look-up
    in the cache of this function finds the right one.

    form: the sequences' format, the device's index, the neurons, whether the number of steps takes
    64 bits, and the neurons of each sample if samples have lengths, else 0;
    counts: the sizes of the parameters; asked: which tensors are given, and which are wanted.
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

    `saved` holds the states before every chunk, `[ceil(T/EVERY) * B * F]` each.
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
