"""Loops over neurons and a few steps, generated from a neuron's operations as LLVM IR.

For a neuron of one state and two parameters, where the spikes have a gradient and that of the first
parameter is wanted, they compute the same as these, on rows of one number per neuron:

    def advance(x, s0, p0, p1, spikes, numbers, n, steps):
        for i in range(n):
            for t in range(steps):
                spikes[t][i], s0[i] = step(x[t][i], s0[i], p0[i], p1[i], *numbers)

    def retrace(x, s0, p0, p1, numbers, n, steps):
        for i in range(n):
            for t in range(steps):
                s0[t + 1][i] = step(x[t][i], s0[t][i], p0[i], p1[i], *numbers)[1]

    def retreat(x, s0, p0, p1, grad_spikes, grad0, out, sum0, numbers, n, steps):
        for i in range(n):
            for t in reversed(range(steps)):
                out[t][i], grad0[i], more = adjoint(
                    x[t][i], s0[t][i], p0[i], p1[i], *numbers, grad_spikes[t][i], grad0[i]
                )
                sum0[i] += more

Each is a C function of integers (listed in `ADVANCE`, `RETRACE` and `RETREAT`), which the compiled
loops over time run by `_intrinsics.call`. So there is one loop over time for all neurons, and only
a few lines are compiled for each neuron, in some hundredths of a second. Values carried from step
to step stay in registers, a vector of neurons at a time; one call therefore takes several steps,
where the loop over time has nothing else to do between them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from neurospike.kernels.cpu._function import I64, Function, once
from neurospike.kernels.cpu._scribe import Scribe
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Operation, Program, needed

# Arguments of the functions: addresses of rows; `apart`, how many numbers apart the rows of a group
# lie (such as the states); how many neurons and steps there are; and how many numbers apart the
# rows of successive steps lie. The groups of states before successive steps follow one another.
ADVANCE = (
    *("x", "states", "parameters", "spikes", "numbers"),
    *("apart", "n", "steps", "x_stride", "spikes_stride"),
)
RETRACE = ("x", "states", "parameters", "numbers", "apart", "n", "steps", "x_stride")
RETREAT = (
    *("x", "states", "parameters", "grad_spikes", "grad_states", "out", "sums", "numbers"),
    *("apart", "n", "steps", "x_stride", "spikes_stride", "out_stride"),
)

VECTOR = 128  # bytes of each value that are computed at once: two of the widest registers
AHEAD = 4  # steps ahead that rows are prefetched, as many bytes as are computed


class _Result(NamedTuple):
    """Where a result of a step goes.

    into: the row, one per step, that it is written into; None if it is not written.
    carried: the operand that it replaces for the next step, or is added to; None if there is none.
    added: whether it is added to that operand.
    kept: whether the operand's last value is written back to where its first was read.
    """

    into: str | None = None
    carried: str | None = None
    added: bool = False
    kept: bool = True


class _Loop(Function):
    """A function over rows of neurons; `back`: whether it goes from the last step to the first."""

    def __init__(
        self, arguments: Sequence[str], program: Program, double: bool, back: bool = False
    ) -> None:
        super().__init__(arguments, double)
        self.program, self.back = program, back
        self.rows: dict[str, Any] = {}  # address of each, at the first step to be taken
        self.strides: dict[str, Any] = {}  # bytes to the next step, of rows that have one per step
        self.forms: dict[str, str] = {}  # the format of each in memory, as in `_halves.FORMS`
        self.fetched: list[str] = []  # rows that are prefetched some steps ahead
        # Rows written past the caches, with their alignment in bytes.
        self.past: dict[str, int] = {}
        build, start, self.end = self.build, self.block("start"), self.block("end")
        build.cbranch(build.icmp_signed(">", self.given["steps"], I64(0)), start, self.end)
        build.position_at_end(start)
        self.group("p", "parameters", program.parameters)

    def row(self, name: str, argument: str, k: int = 0, stride: Any = None, form: str = "") -> None:
        """Let `name` be row `k` of the rows that begin at the address in an argument.

        stride: numbers from a step's row to that of the next; None for one row at all steps.
        form: the format of its numbers in memory, one of `_halves.FORMS`; empty for the state's.
        """
        build, size = self.build, I64(self.bytes_of(form))
        self.forms[name] = form
        place = build.add(self.given[argument], build.mul(self.given["apart"], I64(k * self.size)))
        if stride is not None:
            stride = build.mul(stride, size)
            if self.back:
                last = build.sub(self.given["steps"], I64(1))
                place, stride = build.add(place, build.mul(last, stride)), build.neg(stride)
            self.strides[name] = stride
        self.rows[name] = place

    def group(
        self,
        letter: str,
        argument: str,
        count: int,
        first: int = 0,
        row: int = 0,
        stride: Any = None,
    ) -> None:
        """Name `count` rows of an argument, from `row` on, by `letter` and numbers from `first`."""
        for k in range(count):
            self.row(f"{letter}{first + k}", argument, row + k, stride)

    def per_step(self) -> Any:
        """Return how many numbers apart the states before two successive steps lie."""
        return self.build.mul(self.given["apart"], I64(self.program.states))

    def write(
        self,
        alike: int,
        operations: Sequence[Operation],
        results: Sequence[str],
        becomes: Sequence[_Result],
    ) -> None:
        """Write the loops: over vectors of neurons, and then over the neurons that are left.

        alike: a bit mask of the parameters with one value for all neurons, which is read once.
        results: the operands that are the results; becomes: where each of them goes.
        """
        build, low = self.build, I64(0)
        places = {
            name: build.add(self.given["numbers"], I64(k * self.size))
            for k, name in enumerate(self.program.number_names)
        }
        for k in range(self.program.parameters):
            if alike >> k & 1:
                places[f"p{k}"] = self.rows.pop(f"p{k}")
        one = self.kind.as_pointer()
        values = {name: build.load(build.inttoptr(at, one)) for name, at in places.items()}
        for lanes in (VECTOR // self.size, 1):
            low = self.neurons(lanes, low, values, operations, results, becomes)
        build.branch(self.end)
        build.position_at_end(self.end)
        build.ret_void()

    def neurons(
        self,
        lanes: int,
        low: Any,
        numbers: dict[str, Any],
        operations: Sequence[Operation],
        results: Sequence[str],
        becomes: Sequence[_Result],
    ) -> Any:
        """Write the loop over neurons from `low` on, `lanes` at once; return the first one left."""
        build, kind = self.build, ir.VectorType(self.kind, lanes)
        shared = {name: self.repeated(one, kind) for name, one in numbers.items()}
        before = build.block
        head, body, step, after, done = map(self.block, ("head", "body", "step", "after", "done"))
        build.branch(head)
        build.position_at_end(head)
        i = build.phi(I64)
        i.add_incoming(low, before)
        following = build.add(i, I64(lanes))
        build.cbranch(build.icmp_signed("<=", following, self.given["n"]), body, done)

        build.position_at_end(body)
        places = {
            name: build.add(row, self.times(i, self.bytes_of(self.forms[name])))
            for name, row in self.rows.items()
        }

        carried = [one.carried for one in becomes if one.carried is not None]
        written = {one.into for one in becomes}
        begun = {  # values carried from step to step, or the same at every step
            name: self.load(place, kind, self.forms[name])
            for name, place in places.items()
            if name in carried or (name not in self.strides and name not in written)
        }
        build.branch(step)

        build.position_at_end(step)
        t = build.phi(I64)
        t.add_incoming(I64(0), body)
        at = {name: build.phi(I64) for name in self.strides}
        for name, place in at.items():
            place.add_incoming(places[name], body)
        values = shared | begun
        phis = {name: build.phi(kind) for name in carried}
        for name, phi in phis.items():
            phi.add_incoming(begun[name], body)
        values |= phis
        values |= {
            name: self.load(place, kind, self.forms[name])
            for name, place in at.items()
            if name not in values and name not in written
        }
        if lanes > 1:
            for name in self.fetched:
                ahead = build.add(at[name], self.times(self.strides[name], AHEAD))
                self.fetch(ahead, lanes * self.bytes_of(self.forms[name]))
        found = Scribe(build, kind).results(values, operations, results)
        last = {}
        for value, (into, operand, added, kept) in zip(found, becomes, strict=True):
            if into is not None:
                past = self.past.get(into, 0) if lanes > 1 else 0
                self.store(value, at[into], past, self.forms[into])
            if operand is not None:
                phi = phis[operand]
                onward = build.fadd(phi, value) if added else value
                phi.add_incoming(onward, step)
                if kept:
                    last[operand] = onward
        next_t = build.add(t, I64(1))
        t.add_incoming(next_t, step)
        for name, place in at.items():
            place.add_incoming(build.add(place, self.strides[name]), step)
        build.cbranch(build.icmp_signed("<", next_t, self.given["steps"]), step, after)

        build.position_at_end(after)
        for name, value in last.items():
            self.store(value, places[name], form=self.forms[name])
        i.add_incoming(following, after)
        build.branch(head)
        build.position_at_end(done)
        return i


@once
def advance(
    neuron: str,
    double: bool,
    alike: int,
    spikes: bool,
    past: int = 0,
    forms: tuple[str, str] = ("", ""),
) -> _Loop:
    """Return the function that takes a row of neurons some steps on, with arguments `ADVANCE`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: a bit mask of the parameters that have one value for all neurons.
        spikes: whether they are written.
        past: alignment of their rows in bytes, if they are written past the caches; else 0.
        forms: formats of current and spikes in memory.
    """
    program = Program.parse(neuron)
    loop = _Loop(ADVANCE, program, double)
    loop.row("x", "x", stride=loop.given["x_stride"], form=forms[0])
    loop.fetched, loop.past = ["x"], {"spikes": past}
    loop.group("s", "states", program.states)
    becomes = [_Result(carried=f"s{k}") for k in range(program.states)]
    if spikes:
        loop.row("spikes", "spikes", stride=loop.given["spikes_stride"], form=forms[1])
        becomes.insert(0, _Result(into="spikes"))
    wanted = program.results[0 if spikes else 1 :]
    loop.write(alike, *needed(program.forward, wanted), becomes)
    return loop


@once
def retrace(neuron: str, double: bool, alike: int, form: str = "") -> _Loop:
    """Return the function that writes the states after each step, with arguments `RETRACE`.

    form: format of the current in memory.
    """
    program = Program.parse(neuron)
    count = program.states
    loop = _Loop(RETRACE, program, double)
    loop.row("x", "x", stride=loop.given["x_stride"], form=form)
    loop.fetched = ["x"]
    loop.group("s", "states", count)
    loop.group("after", "states", count, row=count, stride=loop.per_step())
    becomes = [_Result(f"after{k}", f"s{k}", kept=False) for k in range(count)]
    loop.write(alike, *needed(program.forward, program.results[1:]), becomes)
    return loop


@once
def retreat(
    neuron: str,
    double: bool,
    alike: int,
    spikes: bool,
    wanted: int,
    constant: bool,
    past: int = 0,
    forms: tuple[str, str, str] = ("", "", ""),
) -> _Loop:
    """Return the function that takes a row's gradients some steps back, with arguments `RETREAT`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: a bit mask of the parameters that have one value for all neurons.
        spikes: whether they have a gradient.
        wanted: a bit mask of the parameters whose gradients are added to the rows of `sums`, which
            has one row for each of them.
        constant: whether the current's gradient is added to the one row of `out`.
        past: alignment of the rows of `out` in bytes, if written past the caches; else 0.
        forms: formats of the current, the spikes' gradient and `out` in memory.
    """
    program = Program.parse(neuron)
    count = program.states
    asked = [wanted >> k & 1 == 1 for k in range(program.parameters)]
    given, wants = (spikes, *[True] * count), (True, *[True] * count, *asked)
    operations, results = derived(program, given, wants)
    loop = _Loop(RETREAT, program, double, back=True)
    loop.row("x", "x", stride=loop.given["x_stride"], form=forms[0])
    loop.group("s", "states", count, stride=loop.per_step())
    if spikes:
        loop.row("g0", "grad_spikes", stride=loop.given["spikes_stride"], form=forms[1])
        loop.fetched = ["g0"]
    loop.past = {"out": past}
    loop.group("g", "grad_states", count, first=1)
    stride = None if constant else loop.given["out_stride"]
    loop.row("out", "out", stride=stride, form=forms[2])
    loop.group("sum", "sums", sum(asked))
    becomes = [_Result(carried="out", added=True) if constant else _Result(into="out")]
    becomes += [_Result(carried=f"g{k}") for k in range(1, 1 + count)]
    becomes += [_Result(carried=f"sum{k}", added=True) for k in range(sum(asked))]
    loop.write(alike, operations, results, becomes)
    return loop
