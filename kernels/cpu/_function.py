"""C functions of integers that are written in LLVM's language: arguments, loops, vectors in memory.

The compiled loops over time run them by `_intrinsics.call`, with addresses of rows among the
arguments. A function is compiled once for all processes, as `_code` keeps it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, cast

from llvmlite import binding as llvm
from llvmlite import ir

from neurospike.kernels.cpu import _code, _halves
from neurospike.kernels.cpu._scribe import DOUBLE, I32

LINE = 64  # bytes that come from memory together
I64 = ir.IntType(64)

Key = ParamSpec("Key")


class Function:
    """A C function in the making; `given` are its arguments by name, `build` writes at its end.

    Numbers are float64 if `double`, else float32.
    """

    def __init__(self, arguments: Sequence[str], double: bool) -> None:
        self.kind, self.size = (DOUBLE, 8) if double else (ir.FloatType(), 4)
        self.module = ir.Module()
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        self.outer = ir.Function(self.module, kind, "rows")
        self.given: dict[str, Any] = dict(zip(arguments, self.outer.args))
        self.build = ir.IRBuilder(self.block("begin"))

    def block(self, name: str) -> Any:
        return self.outer.append_basic_block(name)

    @contextlib.contextmanager
    def each(self, start: Any, end: Any, step: Any) -> Iterator[Any]:
        """Write a loop from `start` to below `end`; what is written inside is done for each."""
        build, before = self.build, self.build.block
        head, body, done = map(self.block, ("head", "body", "done"))
        build.branch(head)
        build.position_at_end(head)
        i = build.phi(I64)
        i.add_incoming(start, before)
        build.cbranch(build.icmp_signed("<", i, end), body, done)
        build.position_at_end(body)
        yield i
        i.add_incoming(build.add(i, step), build.block)
        build.branch(head)
        build.position_at_end(done)

    def place(self, argument: str, *distances: Any) -> Any:
        """Return the address so many bytes behind one that was given."""
        place = self.given[argument]
        for distance in distances:
            place = self.build.add(place, distance)
        return place

    def times(self, value: Any, count: int) -> Any:
        return self.build.mul(value, I64(count))

    def repeated(self, value: Any, kind: Any) -> Any:
        """Return a vector that has a number at each place."""
        nothing, first = ir.Constant(kind, ir.Undefined), ir.VectorType(I32, kind.count)
        alone = self.build.insert_element(nothing, value, I32(0))
        return self.build.shuffle_vector(alone, nothing, ir.Constant(first, None))

    def bytes_of(self, form: str) -> int:
        """Return how many bytes a number in memory takes, in its own format if `form` is empty."""
        return 2 if form else self.size

    def load(self, place: Any, kind: Any, form: str = "") -> Any:
        """Return a vector that lies in memory, there perhaps in one of `_halves.FORMS`."""
        build = self.build
        stored = ir.VectorType(_halves.I16, kind.count) if form else kind
        value = build.load(build.inttoptr(place, stored.as_pointer()))
        value.align = self.bytes_of(form)
        return _halves.widened(build, value, form) if form else value

    def store(self, value: Any, place: Any, past: int = 0, form: str = "") -> None:
        """Write a vector, perhaps in one of `_halves.FORMS`, rounded to even.

        past: bytes that divide the place, if it goes past the caches; else 0.
        """
        build = self.build
        if form:
            value = _halves.narrowed(build, value, form)
        written = build.store(value, build.inttoptr(place, value.type.as_pointer()))
        written.align = past or self.bytes_of(form)
        if past:
            written.set_metadata("nontemporal", self.module.add_metadata([I32(1)]))

    def fetch(self, place: Any, count: int) -> None:
        """Ask for the lines that hold so many bytes."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        read, keep, data = I32(0), I32(3), I32(1)
        for k in range(0, count, LINE):
            line = self.build.inttoptr(self.build.add(place, I64(k)), byte)
            self.build.call(function, [line, read, keep, data])


def once(make: Callable[Key, Function]) -> Callable[Key, int]:
    """Let what writes a function return the address of what it compiles to, made once."""

    @functools.wraps(make)
    def address(*key: Key.args, **named: Key.kwargs) -> int:
        def write(name: str) -> llvm.ModuleRef:
            made = make(*key, **named)
            module = llvm.parse_assembly(str(made.module))
            module.get_function(made.outer.name).name = name
            return _code.optimised(module, level=2)

        return _code.address((make.__name__, *key, *sorted(named.items())), write)

    return cast(Callable[Key, int], functools.cache(address))
