"""Loops over a row of neurons, written from a neuron's operations in LLVM's language.

For a neuron of one state and two parameters, where the spikes' gradient comes and that of the first
parameter is asked for, they do as these would, on rows of one number per neuron:

    def advance(x, s0, p0, p1, spikes, numbers, n):
        for i in range(n):
            spikes[i], s0[i] = step(x[i], s0[i], p0[i], p1[i], *numbers)

    def retrace(x, s0, p0, p1, after0, numbers, n):
        for i in range(n):
            after0[i] = step(x[i], s0[i], p0[i], p1[i], *numbers)[1]

    def retreat(x, s0, p0, p1, grad_spikes, grad0, out, sum0, numbers, n):
        for i in range(n):
            out[i], grad0[i], more = adjoint(
                x[i], s0[i], p0[i], p1[i], *numbers, grad_spikes[i], grad0[i]
            )
            sum0[i] += more

Each is a C function of integers (see `ADVANCE`, `RETRACE` and `RETREAT` for which), which the
compiled loops over time run by `_memory.call`. So there is one loop over time for all neurons, and
what is compiled for a neuron is a few lines, in some hundredths of a second.

Functions that a processor has no instruction for are computed in float64 and rounded, as the
other backends do: libraries differ in the last bit of float32, and a spike would show it. Those of
the gradient (`program.QUICK`) stay in the state's format.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from neurospike.neurons.derive import derived
from neurospike.neurons.program import Operation, Program, is_constant, needed

# What the functions are given: addresses of rows, and at the end how far apart the rows of a group
# lie, states for example, and how many neurons there are.
ADVANCE = ("x", "states", "parameters", "spikes", "numbers", "apart", "n")
RETRACE = ("x", "states", "parameters", "after", "numbers", "apart", "n")
RETREAT = (
    *("x", "states", "parameters", "grad_spikes", "grad_states", "out", "sums"),
    *("numbers", "apart", "n"),
)

I64 = ir.IntType(64)
DOUBLE = ir.DoubleType()
COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
# Of these LLVM knows what they are, whatever it makes of them.
INTRINSIC = frozenset({"exp", "log", "sqrt", "sin", "cos", "fabs"})

Key = ParamSpec("Key")


class _Scribe:
    """Writes operations on numbers of one format, one after the other."""

    def __init__(self, builder: ir.IRBuilder, kind: Any) -> None:
        self.builder, self.kind = builder, kind

    def constant(self, value: float, kind: Any = None) -> Any:
        return ir.Constant(kind or self.kind, value)

    def call(self, name: str, value: Any) -> Any:
        """Return a function of the C library, in the format of its argument."""
        module = self.builder.module
        kind = ir.FunctionType(value.type, [value.type])
        if name in INTRINSIC:
            function = module.declare_intrinsic(f"llvm.{name}", [value.type], kind)
        else:
            full = name if value.type == DOUBLE else f"{name}f"
            function = module.globals.get(full) or ir.Function(module, kind, full)
        return self.builder.call(function, [value])

    def rounded(self, function: Callable[[Any], Any], value: Any) -> Any:
        """Return a function of a number, computed in float64."""
        if self.kind == DOUBLE:
            return function(value)
        wide = function(self.builder.fpext(value, DOUBLE))
        return self.builder.fptrunc(wide, self.kind)

    def sigmoid(self, u: Any) -> Any:
        one = self.constant(1.0, u.type)
        return self.builder.fdiv(
            one, self.builder.fadd(one, self.call("exp", self.builder.fneg(u)))
        )

    def lesser(self, sign: str, a: Any, b: Any) -> Any:
        """Return the one of two numbers that is less, or more; NaN if either is."""
        build = self.builder
        first = build.or_(build.fcmp_ordered(sign, a, b), build.fcmp_unordered("!=", a, a))
        return build.select(first, a, b)

    def do(self, name: str, *given: Any) -> Any:
        """Return the result of an operation of `program.TEXTS` or `program.QUICK`."""
        build = self.builder
        quick, name = name.startswith("quick_"), name.removeprefix("quick_")
        if name in COMPARISONS:
            return build.fcmp_ordered(COMPARISONS[name], *given)
        if name in ("add", "sub", "mul", "div", "neg"):
            return getattr(build, f"f{name}")(*given)
        if name in ("both", "either"):
            return (build.and_ if name == "both" else build.or_)(*given)
        if name == "where":
            return build.select(*given)
        if name == "heaviside":
            above = build.fcmp_ordered(">", given[0], self.constant(0.0))
            return build.select(above, self.constant(1.0), self.constant(0.0))
        if name == "detach":
            return given[0]
        if name in ("minimum", "maximum"):
            return self.lesser("<" if name == "minimum" else ">", *given)
        if name in ("abs", "sqrt"):  # rounded once by the processor
            return self.call("fabs" if name == "abs" else name, *given)
        function = self.sigmoid if name == "sigmoid" else functools.partial(self.call, name)
        return function(*given) if quick else self.rounded(function, *given)

    def results(
        self, values: dict[str, Any], operations: Sequence[Operation], results: Sequence[str]
    ) -> list[Any]:
        """Write the operations; return the results. `values` has what operands stand for."""

        def value(operand: str) -> Any:
            return self.constant(float(operand)) if is_constant(operand) else values[operand]

        for k, (name, *operands) in enumerate(operations):
            values[f"@{k}"] = self.do(name, *map(value, operands))
        return [value(one) for one in results]


class _Loop:
    """A function over rows: `arguments` are integers, as the loops over time hand them over."""

    numbered = itertools.count()

    def __init__(self, arguments: Sequence[str], program: Program, double: bool) -> None:
        name = f"neurospike_rows_{next(self.numbered)}"
        self.kind = DOUBLE if double else ir.FloatType()
        self.program = program
        self.module = ir.Module(name)
        void = ir.VoidType()
        self.outer = ir.Function(self.module, ir.FunctionType(void, [I64] * len(arguments)), name)
        self.build = ir.IRBuilder(self.outer.append_basic_block())
        self.given = dict(zip(arguments, self.outer.args))
        self.rows: dict[str, Any] = {}
        self.row("x", "x")
        self.group("s", "states", program.states)
        self.group("p", "parameters", program.parameters)
        self.row("numbers", "numbers")

    def row(self, name: str, argument: str, k: int = 0) -> None:
        """Let `name` be row `k` of the rows that begin at an argument."""
        build, size = self.build, 8 if self.kind == DOUBLE else 4
        at = build.mul(self.given["apart"], I64(k * size)) if k else I64(0)
        place = build.add(self.given[argument], at)
        self.rows[name] = build.inttoptr(place, self.kind.as_pointer())

    def group(self, letter: str, argument: str, count: int, first: int = 0) -> None:
        """Let `letter` with a number from `first` on be the rows that begin at an argument."""
        for k in range(count):
            self.row(f"{letter}{first + k}", argument, k)

    def write(
        self,
        alike: int,
        operations: Sequence[Operation],
        results: Sequence[str],
        writes: Sequence[tuple[str, bool]],
        reads: Sequence[str] = (),
    ) -> None:
        """Write the loop: each result into a row of `writes`, or added to it where that says so.

        alike: the parameters, as bits, that have one value for all neurons, which is read once.
        reads: operands beside current, states, parameters and numbers: rows of these names.
        """
        # A function of its own, whose arguments do not overlap: else LLVM would have to see it.
        pointer = self.kind.as_pointer()
        kinds = [*(pointer for _ in self.rows), I64]
        void = ir.VoidType()
        inner = ir.Function(self.module, ir.FunctionType(void, kinds), f"{self.outer.name}_rows")
        inner.linkage = "internal"
        for argument in inner.args[:-1]:
            argument.add_attribute("noalias")
        self.build.call(inner, [*self.rows.values(), self.given["n"]])
        self.build.ret_void()

        begin, loop, end = (inner.append_basic_block(name) for name in ("begin", "loop", "end"))
        build = ir.IRBuilder(begin)
        places, n = dict(zip(self.rows, inner.args)), inner.args[-1]
        values = {
            name: build.load(build.gep(places["numbers"], [I64(k)]))
            for k, name in enumerate(self.program.number_names)
        }
        values |= {
            f"p{k}": build.load(places[f"p{k}"])
            for k in range(self.program.parameters)
            if alike >> k & 1
        }
        build.cbranch(build.icmp_signed(">", n, I64(0)), loop, end)
        build.position_at_end(loop)
        i = build.phi(I64)
        i.add_incoming(I64(0), begin)
        for name in (*self.program.inputs, *reads):
            if name not in values:
                values[name] = build.load(build.gep(places[name], [i]))
        found = _Scribe(build, self.kind).results(values, operations, results)
        for value, (name, added) in zip(found, writes, strict=True):
            place = build.gep(places[name], [i])
            build.store(build.fadd(build.load(place), value) if added else value, place)
        after = build.add(i, I64(1))
        i.add_incoming(after, loop)
        build.cbranch(build.icmp_signed("<", after, n), loop, end)
        build.position_at_end(end)
        build.ret_void()

    def address(self) -> int:
        """Compile the function; return where it is, for good."""
        library = cpu_target.target_context.codegen().create_library(self.module.name)
        library.add_ir_module(self.module)
        library.finalize()
        kept.append(library)
        return library.get_pointer_to_function(self.outer.name)


kept: list[Any] = []  # the machine code of all functions so far, for good


def _once(make: Callable[Key, _Loop]) -> Callable[Key, int]:
    """Let a function that writes a loop return the address of what it compiles to, made once."""

    @functools.wraps(make)
    def address(*key: Key.args, **named: Key.kwargs) -> int:
        with global_compiler_lock:  # LLVM works for one thread at a time
            return make(*key, **named).address()

    return cast(Callable[Key, int], functools.cache(address))


@_once
def advance(neuron: str, double: bool, alike: int, spikes: bool) -> _Loop:
    """Return the function that takes a row of neurons one step on, of arguments `ADVANCE`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: the parameters, as bits, that have one value for all neurons.
        spikes: whether they are written.
    """
    program = Program.parse(neuron)
    loop = _Loop(ADVANCE, program, double)
    writes = [(f"s{k}", False) for k in range(program.states)]
    if spikes:
        loop.row("spikes", "spikes")
        writes.insert(0, ("spikes", False))
    wanted = program.results[0 if spikes else 1 :]
    loop.write(alike, *needed(program.forward, wanted), writes)
    return loop


@_once
def retrace(neuron: str, double: bool, alike: int) -> _Loop:
    """Return the function that writes the states after a step, of arguments `RETRACE`."""
    program = Program.parse(neuron)
    loop = _Loop(RETRACE, program, double)
    loop.group("after", "after", program.states)
    writes = [(f"after{k}", False) for k in range(program.states)]
    loop.write(alike, *needed(program.forward, program.results[1:]), writes)
    return loop


@_once
def retreat(
    neuron: str, double: bool, alike: int, spikes: bool, wanted: int, constant: bool
) -> _Loop:
    """Return the function that takes a row's gradients one step back, of arguments `RETREAT`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: the parameters, as bits, that have one value for all neurons.
        spikes: whether their gradient comes.
        wanted: the parameters, as bits, whose gradients are added to the rows of `sums`, one row
            for each of these.
        constant: whether the current's gradient is added to what is in `out`.
    """
    program = Program.parse(neuron)
    count = program.states
    asked = [wanted >> k & 1 == 1 for k in range(program.parameters)]
    given, wants = (spikes, *[True] * count), (True, *[True] * count, *asked)
    operations, results = derived(program, given, wants)
    loop = _Loop(RETREAT, program, double)
    reads = [f"g{k}" for k in range(0 if spikes else 1, 1 + count)]
    if spikes:
        loop.row("g0", "grad_spikes")
    loop.group("g", "grad_states", count, first=1)
    loop.row("out", "out")
    loop.group("sum", "sums", sum(asked))
    writes = [("out", constant), *((f"g{k}", False) for k in range(1, 1 + count))]
    writes += [(f"sum{k}", True) for k in range(sum(asked))]
    loop.write(alike, operations, results, writes, reads)
    return loop
