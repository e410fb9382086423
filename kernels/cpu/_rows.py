"""Loops over neurons and a few steps, written from a neuron's operations in LLVM's language.

For a neuron of one state and two parameters, where the spikes' gradient comes and that of the first
parameter is asked for, they do as these would, on rows of one number per neuron:

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

Each is a C function of integers (see `ADVANCE`, `RETRACE` and `RETREAT` for which), which the
compiled loops over time run by `_intrinsics.call`. So there is one loop over time for all neurons,
and what is compiled for a neuron is a few lines, in some hundredths of a second. What goes from
step to step stays in registers, a vector of neurons at a time; rows are therefore handed over a few
steps at once, where nothing else is to be done between them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from neurospike.kernels.cpu._function import I64, Function, once
from neurospike.kernels.cpu._scribe import Scribe
from neurospike.neurons.derive import derived
from neurospike.neurons.program import Operation, Program, needed

# What the functions are given: addresses of rows, and at the end how far apart the rows of a group
# lie, states for example, how many neurons and steps there are, and how far apart the rows of
# successive steps lie. States before successive steps lie one group behind the other.
ADVANCE = (
    *("x", "states", "parameters", "spikes", "numbers"),
    *("apart", "n", "steps", "x_stride", "spikes_stride"),
)
RETRACE = ("x", "states", "parameters", "numbers", "apart", "n", "steps", "x_stride")
RETREAT = (
    *("x", "states", "parameters", "grad_spikes", "grad_states", "out", "sums", "numbers"),
    *("apart", "n", "steps", "x_stride", "spikes_stride", "out_stride"),
)

VECTOR = 128  # bytes of each value that are computed at once: two registers of the widest kind
AHEAD = 4  # steps ahead that a row is fetched: a line each time one is computed


class _Result(NamedTuple):
    """What becomes of a result of a step.

    into: the row of the step that it is written into; None for nothing.
    carried: the operand that it is at the next step, or that it is added to; None for none.
    added: whether it is added.
    kept: whether the last one is written where the first came from.
    """

    into: str | None = None
    carried: str | None = None
    added: bool = False
    kept: bool = True


class _Loop(Function):
    """A function over rows; `back`: whether it begins with the last step."""

    def __init__(
        self, arguments: Sequence[str], program: Program, double: bool, back: bool = False
    ) -> None:
        super().__init__(arguments, double)
        self.program, self.back = program, back
        self.rows: dict[str, Any] = {}  # where each begins, at the first step to be taken
        self.strides: dict[str, Any] = {}  # bytes from there to the next step, if there are any
        self.forms: dict[str, str] = {}  # how the numbers of each lie in memory
        self.fetched: list[str] = []  # rows that are asked for some steps ahead
        # Rows written past the caches, and how many bytes divide their places.
        self.past: dict[str, int] = {}
        build, start, self.end = self.build, self.block("start"), self.block("end")
        build.cbranch(build.icmp_signed(">", self.given["steps"], I64(0)), start, self.end)
        build.position_at_end(start)
        self.group("p", "parameters", program.parameters)

    def row(self, name: str, argument: str, k: int = 0, stride: Any = None, form: str = "") -> None:
        """Let `name` be row `k` of the rows that begin at an argument.

        stride: numbers from a step's row to that of the next; None where it is the same one.
        form: that of its numbers in memory.
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
        """Let `letter` with a number from `first` on be the rows of an argument from `row` on."""
        for k in range(count):
            self.row(f"{letter}{first + k}", argument, row + k, stride)

    def per_step(self) -> Any:
        """Return how many numbers the states before a step are."""
        return self.build.mul(self.given["apart"], I64(self.program.states))

    def write(
        self,
        alike: int,
        operations: Sequence[Operation],
        results: Sequence[str],
        becomes: Sequence[_Result],
    ) -> None:
        """Write the loops: over vectors of neurons, and then over the neurons that are left.

        alike: the parameters, as bits, that have one value for all neurons, which is read once.
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
        begun = {  # what goes from step to step, or is the same at each
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
    """Return the function that takes a row of neurons some steps on, of arguments `ADVANCE`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: the parameters, as bits, that have one value for all neurons.
        spikes: whether they are written.
        past: bytes that divide the places of their rows, if they go past the caches; else 0.
        forms: of current and spikes in memory.
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
    """Return the function that writes the states after each step, of arguments `RETRACE`.

    form: that of the current in memory.
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
    """Return the function that takes a row's gradients some steps back, of arguments `RETREAT`.

    Args:
        neuron: a `Program` as text.
        double: whether numbers are float64, else they are float32.
        alike: the parameters, as bits, that have one value for all neurons.
        spikes: whether their gradient comes.
        wanted: the parameters, as bits, whose gradients are added to the rows of `sums`, one row
            for each of these.
        constant: whether the current's gradient is added to what is in `out`.
        past: bytes that divide the places of the rows of `out`, if they go past the caches; else 0.
        forms: of the current, the spikes' gradient and `out` in memory.
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
