"""C functions of integers written as LLVM IR: arguments, loops, vectors in memory.

The compiled loops over time run them by `_intrinsics.call`, with addresses of rows among the
arguments. A function is compiled once for all processes, because `_code` keeps it on disk.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, cast

from llvmlite import binding as llvm
from llvmlite import ir

from neurospike.kernels.cpu import _code, _halves
from neurospike.kernels.cpu._scribe import DOUBLE, I32

LINE = 64  # bytes of a cache line
I64 = ir.IntType(64)

Key = ParamSpec("Key")


class Function:
    """A C function being written; `given` are its arguments by name, `build` appends instructions.

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
        """Write a loop from `start` to below `end`; the `with` block writes its body."""
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
        """Return the address in an argument plus distances in bytes."""
        place = self.given[argument]
        for distance in distances:
            place = self.build.add(place, distance)
        return place

    def times(self, value: Any, count: int) -> Any:
        return self.build.mul(value, I64(count))

    def repeated(self, value: Any, kind: Any) -> Any:
        """Return a vector that has a number in every lane."""
        nothing, first = ir.Constant(kind, ir.Undefined), ir.VectorType(I32, kind.count)
        alone = self.build.insert_element(nothing, value, I32(0))
        return self.build.shuffle_vector(alone, nothing, ir.Constant(first, None))

    def bytes_of(self, form: str) -> int:
        """Return how many bytes a number takes in memory, in the state's format without `form`."""
        return 2 if form else self.size

    def load(self, place: Any, kind: Any, form: str = "") -> Any:
        """Load a vector from an address, widened if `form` is one of `_halves.FORMS`."""
        build = self.build
        stored = ir.VectorType(_halves.I16, kind.count) if form else kind
        value = build.load(build.inttoptr(place, stored.as_pointer()))
        value.align = self.bytes_of(form)
        return _halves.widened(build, value, form) if form else value

    def store(self, value: Any, place: Any, past: int = 0, form: str = "") -> None:
        """Store a vector, rounded to even if `form` is one of `_halves.FORMS`.

        past: alignment of the place in bytes, for a store past the caches; else 0.
        """
        build = self.build
        if form:
            value = _halves.narrowed(build, value, form)
        written = build.store(value, build.inttoptr(place, value.type.as_pointer()))
        written.align = past or self.bytes_of(form)
        if past:
            written.set_metadata("nontemporal", self.module.add_metadata([I32(1)]))

    def fetch(self, place: Any, count: int) -> None:
        """Prefetch the cache lines that hold `count` bytes from an address on."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        read, keep, data = I32(0), I32(3), I32(1)
        for k in range(0, count, LINE):
            line = self.build.inttoptr(self.build.add(place, I64(k)), byte)
            self.build.call(function, [line, read, keep, data])


def once(make: Callable[Key, Function]) -> Callable[Key, int]:
    """Decorate what writes a C function, so that it returns the compiled one's address, cached."""

    @functools.wraps(make)
    def address(*key: Key.args, **named: Key.kwargs) -> int:
        def write(name: str) -> llvm.ModuleRef:
            made = make(*key, **named)
            module = llvm.parse_assembly(str(made.module))
            module.get_function(made.outer.name).name = name
            return _code.optimised(module, level=2)

        return _code.address((make.__name__, *key, *sorted(named.items())), write)

    return cast(Callable[Key, int], functools.cache(address))
