"""What a neuron computes in one step, as a short list of scalar operations.

`record` makes a `Program` of a function, `derive` appends its gradient, and every backend gets the
same operations in the same order, printed as a Python function that its compiler takes. So nothing
about a neuron is written twice, and the operations stay as their author wrote them, bit for bit.

A program travels through torch operators, and through graphs that torch.compile and torch.export
make, as a string of this form, which `Program.parse` reads back. Reading it runs no code.

    1 2 0 1 | mul p0 s0;add @0 x;sub @1 p1;fire @2 | @3 @1 | mul u n0;... | @2

That is: one state, two parameters, no number of the neuron and one of the surrogate; the neuron's
operations; its results, the spike and one value for each state; the surrogate's operations and its
result. `x` is the current, `s`, `p` and `n` are states, parameters and numbers, `u` is what `fire`
was given, `@k` the result of operation k of the same list, and anything else is a constant.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# Operations, with the number of operands and how each is written in Python.
TEXTS: dict[str, tuple[int, str]] = {
    "add": (2, "{0} + {1}"),
    "sub": (2, "{0} - {1}"),
    "mul": (2, "{0} * {1}"),
    "div": (2, "divide({0}, {1})"),
    "neg": (1, "-{0}"),
    "gt": (2, "{0} > {1}"),
    "ge": (2, "{0} >= {1}"),
    "lt": (2, "{0} < {1}"),
    "le": (2, "{0} <= {1}"),
    "both": (2, "{0} & {1}"),
    "either": (2, "{0} | {1}"),
    "where": (3, "where({0}, {1}, {2})"),
    "heaviside": (1, "heaviside({0})"),
    "fire": (1, "fire({0})"),
    "detach": (1, "detach({0})"),
    "abs": (1, "abs({0})"),
    "exp": (1, "exp({0})"),
    "log": (1, "log({0})"),
    "sqrt": (1, "sqrt({0})"),
    "tanh": (1, "tanh({0})"),
    "sigmoid": (1, "sigmoid({0})"),
    "sin": (1, "sin({0})"),
    "cos": (1, "cos({0})"),
    "minimum": (2, "minimum({0}, {1})"),
    "maximum": (2, "maximum({0}, {1})"),
}
# Operations whose result is true or false.
CONDITIONS = frozenset({"gt", "ge", "lt", "le", "both", "either"})

Operation = tuple[str, ...]  # its name, then its operands
_OPERAND = re.compile(r"x|u|[spng]\d+|@\d+|-?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|-?inf|nan")


def is_constant(operand: str) -> bool:
    """Return whether an operand is a number that stands in the function itself."""
    return operand[0] not in "xuspng@" or operand == "nan"


@dataclass(frozen=True)
class Program:
    """One time step of a neuron with its surrogate; see the module's docstring.

    Attributes:
        states: how many states the neuron has.
        parameters: how many parameters.
        numbers: how many numbers the neuron read from outside of its function, and how many
            the surrogate takes; they are handed over with every call and may change.
        operations: of the neuron.
        results: the spike, then the new states.
        surrogate: the operations of the surrogate of `u`.
        slope: its result.
    """

    states: int
    parameters: int
    numbers: tuple[int, int]
    operations: tuple[Operation, ...]
    results: tuple[str, ...]
    surrogate: tuple[Operation, ...]
    slope: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The operands that a step is given: current, states, parameters, numbers."""
        count = sum(self.numbers)
        groups = (("s", self.states), ("p", self.parameters), ("n", count))
        return ("x", *(f"{letter}{k}" for letter, many in groups for k in range(many)))

    @property
    def forward(self) -> tuple[Operation, ...]:
        """The neuron's operations where no gradient is recorded: a spike is H(u), nothing more."""
        return tuple(("heaviside", *o) if n == "fire" else (n, *o) for n, *o in self.operations)

    def windowed(self) -> "Program":
        """Return the same with a surrogate that is 0 further from 0 than one more number, its last.

        Source: N. Perez-Nieves, D. F. M. Goodman, NeurIPS 2021, arXiv:2105.08810.
        """
        own, handed = self.numbers
        k = len(self.surrogate)
        more = (
            ("abs", "u"),
            ("le", f"@{k}", f"n{own + handed}"),
            ("where", f"@{k + 1}", self.slope, "0.0"),
        )
        return replace(
            self,
            numbers=(own, handed + 1),
            surrogate=(*self.surrogate, *more),
            slope=f"@{k + 2}",
        )

    def __str__(self) -> str:
        sizes = f"{self.states} {self.parameters} {self.numbers[0]} {self.numbers[1]}"
        lists = (self.operations, self.surrogate)
        first, second = (";".join(" ".join(one) for one in listed) for listed in lists)
        return f"{sizes}|{first}|{' '.join(self.results)}|{second}|{self.slope}"

    @staticmethod
    @functools.cache
    def parse(text: str) -> "Program":
        """Return the program that `str` wrote as `text`; ValueError if it is none."""
        try:
            sizes, first, results, second, slope = text.split("|")
            states, parameters, own, surrogate = map(int, sizes.split(" "))
            program = Program(
                states,
                parameters,
                (own, surrogate),
                _operations(first),
                tuple(results.split(" ")),
                _operations(second),
                slope,
            )
        except ValueError as error:
            raise ValueError(f"not a recorded neuron: {text[:80]!r} ({error})") from None
        return program


def _operations(text: str) -> tuple[Operation, ...]:
    listed = tuple(tuple(one.split(" ")) for one in text.split(";")) if text else ()
    for name, *operands in listed:
        if name not in TEXTS or TEXTS[name][0] != len(operands):
            raise ValueError(f"unknown operation {name!r} of {len(operands)}")
        for operand in operands:
            if not _OPERAND.fullmatch(operand):
                raise ValueError(f"unknown operand {operand!r}")
    return listed


def written(
    name: str, arguments: Sequence[str], operations: Sequence[Operation], results: Sequence[str]
) -> str:
    """Return the source of a Python function of straight lines that does these operations.

    Numbers that are arguments of a function, or results, are written as `number(c, x)`: as bare
    ones they would have a format of their own, in compilers as in torch.
    """
    lines = [f"def {name}({', '.join(arguments)}):"]
    for k, (operation, *operands) in enumerate(operations):
        called = "(" in TEXTS[operation][1]
        texts = [_text(one, called) for one in operands]
        lines.append(f"    t{k} = {TEXTS[operation][1].format(*texts)}")
    ending = ", ".join(_text(one, True) for one in results)
    lines.append(f"    return {ending}{',' if len(results) == 1 else ''}")
    return "\n".join(lines) + "\n"


def _text(operand: str, formatted: bool) -> str:
    if operand[0] == "@":
        return f"t{operand[1:]}"
    if not is_constant(operand):
        return f"number({operand}, x)" if formatted and operand[0] == "n" else operand
    # `inf` and `nan` have no literals.
    value = operand if operand.lstrip("-")[0].isdigit() else f"({operand})"
    return f"number({value}, x)" if formatted else value


def needed(
    operations: Sequence[Operation], results: Sequence[str]
) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """Return the operations that the results depend on, numbered anew, and the results."""
    wanted = {int(one[1:]) for one in results if one[0] == "@"}
    for k in range(len(operations) - 1, -1, -1):
        if k in wanted:
            wanted.update(int(one[1:]) for one in operations[k][1:] if one[0] == "@")
    numbers = {f"@{k}": f"@{i}" for i, k in enumerate(sorted(wanted))}
    kept = tuple(renamed(operations[k], numbers) for k in sorted(wanted))
    return kept, tuple(numbers.get(one, one) for one in results)


def renamed(operation: Operation, names: Mapping[str, str]) -> Operation:
    """Return an operation with its operands replaced where `names` has another one."""
    return (operation[0], *(names.get(one, one) for one in operation[1:]))
