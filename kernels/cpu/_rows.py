"""Loops over a row of neurons, written for a neuron's number of states and parameters.

For a neuron of one state and two parameters, with spikes and no parameter that all share:

    def advance_row(x, s0, p0, p1, spikes, numbers):
        h0 = numbers[0]
        for i in range(x.size):
            spike, a0 = step(x[i], s0[i], p0[i], p1[i], h0)
            s0[i] = a0
            spikes[i] = spike

`lay` returns the rows of a block's states, one behind the other in a scratch, and of its
parameters, and `sums_of` those of the gradients of parameters; `advance`, `retrace` and `retreat`
call the loops on them, for their number differs from neuron to neuron as well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from neurospike.kernels.cpu._formulas import FUNCTIONS, ROUNDED
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Program, needed, written


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{k}" for k in range(count)]


def _made(text: str, name: str) -> Callable[..., Any]:
    """Return the function `name` of a text; its free names are bound later."""
    space: dict[str, Any] = {}
    exec(compile(text, f"<{name}>", "exec"), space)
    made = FunctionType(space[name].__code__, {}, name)
    made.__module__ = __name__  # Numba imports it where it loads what it kept
    return made


def _row_text(
    name: str,
    program: Program,
    alike: int,
    results: Sequence[str],
    call: str,
    more: tuple[Sequence[str], Sequence[str]],
    lines: Sequence[str],
) -> str:
    """Return a function that calls `call` for each neuron of a row, and then does `lines`.

    alike: the parameters, as bits, that have one value for all neurons, which is read once.
    more: arrays beside current, states and parameters, and what of them is handed to `call`.
    """
    arrays = ["x", *_names("s", program.states), *_names("p", program.parameters), *more[0]]
    text = [f"def {name}({', '.join([*arrays, 'numbers'])}):"]
    text += [f"    {one} = numbers[{k}]" for k, one in enumerate(program.number_names)]
    text += [f"    v{k} = p{k}[0]" for k in range(alike.bit_length()) if alike >> k & 1]
    reads = ["x[i]", *(f"s{k}[i]" for k in range(program.states))]
    reads += [f"v{k}" if alike >> k & 1 else f"p{k}[i]" for k in range(program.parameters)]
    given = ", ".join([*reads, *program.number_names, *more[1]])
    text += ["    for i in range(x.size):", f"        {', '.join(results)}, = {call}({given})"]
    return "\n".join([*text, *(f"        {line}" for line in lines)]) + "\n"


def _rows_at(base: str, count: int, size: str = "x.size") -> list[str]:
    return [f"row_of(scratch, {base} + {k} * block, {size})" for k in range(count)]


def _tuple(parts: Sequence[str]) -> str:
    return f"({', '.join(parts)}{',' * (len(parts) == 1)})"


def _laying(program: Program) -> str:
    rows = [*_rows_at("at", program.states, "n"), *_rows_at("then", program.parameters, "n")]
    return f"def lay(scratch, at, then, block, n):\n    return {_tuple(rows)}\n"


def _parameter_rows(program: Program) -> list[str]:
    return [f"rows[{program.states + k}]" for k in range(program.parameters)]


@functools.lru_cache(maxsize=256)
def advancing(key: str, spikes: bool, alike: int) -> dict[str, Any]:
    """Return `advance`, `advance_row` and what they call, for a neuron."""
    program = Program.parse(key)
    after = _names("a", program.states)
    lines = [f"s{k}[i] = {new}" for k, new in enumerate(after)] + ["spikes[i] = spike"] * spikes
    more: tuple[list[str], list[str]] = (["spikes"], [])
    row = _row_text("advance_row", program, alike, ["spike", *after], "step", more, lines)
    places = ", ".join(f"rows[{k}]" for k in range(program.states + program.parameters))
    outer = (
        f"def advance(x, rows, spikes, numbers):\n    advance_row(x, {places}, spikes, numbers)\n"
    )
    step = written("step", program.inputs, program.forward, program.results)
    texts = {"step": step, "advance_row": row, "advance": outer, "lay": _laying(program)}
    return {name: _made(text, name) for name, text in texts.items()}


@functools.lru_cache(maxsize=256)
def retracing(key: str, alike: int) -> dict[str, Any]:
    """Return `retrace`, `retrace_row` and what they call, for a neuron."""
    program = Program.parse(key)
    count = program.states
    after, places_after = _names("a", count), _names("o", count)
    lines = [f"{place}[i] = {new}" for place, new in zip(places_after, after)]
    row = _row_text("retrace_row", program, alike, after, "move", (places_after, []), lines)
    places = [*_rows_at("before", count), *_parameter_rows(program)]
    places += _rows_at(f"before + {count} * block", count)
    outer = (
        "def retrace(x, scratch, before, rows, block, numbers):\n"
        f"    retrace_row({', '.join(['x', *places, 'numbers'])})\n"
    )
    move = written("move", program.inputs, *needed(program.forward, program.results[1:]))
    texts = {"move": move, "retrace_row": row, "retrace": outer, "lay": _laying(program)}
    return {name: _made(text, name) for name, text in texts.items()}


@functools.lru_cache(maxsize=256)
def retreating(key: str, spikes: bool, wanted: int, constant: bool, alike: int) -> dict[str, Any]:
    """Return `retreat`, `retreat_row` and what they call, for a neuron and what is asked for.

    Where a parameter is not asked for, `retreat_row` takes no row `q` for its gradient.
    """
    program = Program.parse(key)
    count = program.states
    asked = [k for k in range(program.parameters) if wanted >> k & 1]
    given = (spikes, *(True for _ in range(count)))
    wants = (True, *(True for _ in range(count)), *(k in asked for k in range(program.parameters)))
    operations, results = derived(program, given, wants)
    arguments = [*program.inputs, *(f"g{k}" for k in range(0 if spikes else 1, 1 + count))]
    adjoint = written("adjoint", arguments, operations, results)
    carries, sums = _names("c", count), [f"q{k}" for k in asked]
    found = ["d", *_names("d", count), *(f"e{k}" for k in asked)]
    lines = [f"out[i] {'+=' if constant else '='} d"]
    lines += [f"{carry}[i] = d{k}" for k, carry in enumerate(carries)]
    lines += [f"q{k}[i] += e{k}" for k in asked]
    gradients = [*(["spikes[i]"] if spikes else []), *(f"{carry}[i]" for carry in carries)]
    more = (["spikes", *carries, "out", *sums], gradients)
    row = _row_text("retreat_row", program, alike, found, "adjoint", more, lines)
    places = [*_rows_at("before", count), *_parameter_rows(program)]
    ends = ["spikes", *(f"rows[{k}]" for k in range(count)), "out"]
    ends += [f"sums[{k}]" for k in range(len(asked))]
    outer = (
        "def retreat(x, scratch, before, rows, sums, block, spikes, out, numbers):\n"
        f"    retreat_row({', '.join(['x', *places, *ends, 'numbers'])})\n"
    )
    rows = _tuple([f"row_of(_array(job_at, wanted + {k}), low, n)" for k in asked])
    summing = f"def sums_of(job_at, wanted, low, n):\n    return {rows}\n"
    texts = {"adjoint": adjoint, "retreat_row": row, "retreat": outer, "sums_of": summing}
    return {name: _made(text, name) for name, text in texts.items()}


@functools.cache
def formulas(literal: Any) -> dict[str, Any]:
    """Return what the free names of a neuron stand for, in a number format."""
    found: dict[str, Any] = {one.__name__: one for one in FUNCTIONS}
    names = {
        f"{prefix}_{name}": getattr(math, name)
        for name in ROUNDED
        for prefix in ("double", "quick")
    }
    names |= {"square_root": math.sqrt, "quick_sqrt": math.sqrt}
    names |= {"abs": abs, "single": literal, "double": np.float64}
    return found | names
