"""`Program`: one time step of a neuron as a short list of scalar operations.

`record` turns a function into a program, `derive` appends its gradient, and every backend gets the
same operations in the same order, printed as a Python function that its compiler takes. So nothing
about a neuron is written twice, and its operations are done as their author wrote them, bit for
bit.

A program is passed through torch operators, and through graphs of torch.compile and torch.export,
as a string of this form, which `Program.parse` reads back without running any code.

    1 2 0 | mul p0 s0;add @0 x;sub @1 p1;fire @2 | @3 @1 | 1 | mul u h0;... | @2

The first three parts are the neuron's: its number of states, of parameters, and of numbers that it
reads from outside, here 1, 2 and 0; its operations; its results, which are the spike and one value
for each state. The last three are the surrogate's: its number of numbers; its operations; its
result. `x` is the current, `s` and `p` are states and parameters, `n` and `h` the numbers of neuron
and surrogate, `u` is the argument of `fire`, `@k` the result of operation k of the same list, and
anything else is a constant. (The string itself has no spaces beside the bars.)
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# For each operation, the number of its operands and how it is written in Python.
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
# Operations of gradients, which need not be exact to the last bit: the fastest that there are.
QUICK: dict[str, tuple[int, str]] = {
    "quick_div": (2, "{0} / {1}"),
    **{
        f"quick_{name}": (1, f"quick_{name}({{0}})")
        for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos")
    },
}
_WRITTEN = TEXTS | QUICK
# Operations whose result is true or false.
CONDITIONS = frozenset({"gt", "ge", "lt", "le", "both", "either"})

Operation = tuple[str, ...]  # its name, then its operands
_OPERAND = re.compile(r"x|u|[spnhg]\d+|@\d+|-?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|-?inf|nan")


def is_constant(operand: str) -> bool:
    """Return whether an operand is a number written in the function itself."""
    return operand[0] not in "xuspnhg@" or operand == "nan"


def is_negative_zero(value: float) -> bool:
    """Return whether a number is -0.0, which a look-up by value would confuse with 0.0."""
    return value == 0.0 and math.copysign(1.0, value) < 0.0


@dataclass(frozen=True)
class Program:
    """One time step of a neuron with its surrogate; see the module's docstring.

    Attributes:
        states: number of states.
        parameters: number of parameters.
        numbers: how many numbers the neuron reads from outside its function, and how many the
            surrogate does; their values are passed with every call and may change.
        operations: the neuron's operations.
        results: operands of the spike and of the new states.
        surrogate: the operations of the surrogate, a function of `u`.
        slope: operand of the surrogate's result.
    """

    states: int
    parameters: int
    numbers: tuple[int, int]
    operations: tuple[Operation, ...]
    results: tuple[str, ...]
    surrogate: tuple[Operation, ...]
    slope: str

    @property
    def number_names(self) -> tuple[str, ...]:
        """The operands that are numbers, in the order in which they are passed."""
        return tuple(f"{letter}{k}" for letter, n in zip("nh", self.numbers) for k in range(n))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The operands that are inputs of a step: current, states, parameters, numbers."""
        groups = (("s", self.states), ("p", self.parameters))
        names = (f"{letter}{k}" for letter, many in groups for k in range(many))
        return ("x", *names, *self.number_names)

    @property
    def forward(self) -> tuple[Operation, ...]:
        """The neuron's operations without a gradient, with `heaviside` in place of `fire`."""
        return tuple(("heaviside", *o) if n == "fire" else (n, *o) for n, *o in self.operations)

    def __str__(self) -> str:
        sizes = (self.states, self.parameters, self.numbers[0])
        neuron = text_of(sizes, self.operations, self.results)
        return f"{neuron}|{text_of(self.numbers[1:], self.surrogate, (self.slope,))}"

    @staticmethod
    @functools.cache
    def parse(text: str) -> "Program":
        """Return the program that `str` wrote as `text`; raise ValueError for any other text."""
        try:
            parts = text.split("|")
            sizes, operations, results = half("|".join(parts[:3]))
            handed, surrogate, slope = half("|".join(parts[3:]))
            states, parameters, own = map(int, sizes.split(" "))
            program = Program(
                states,
                parameters,
                (own, int(handed)),
                operations,
                tuple(results.split(" ")),
                surrogate,
                slope,
            )
        except ValueError as error:
            raise ValueError(f"not a recorded neuron: {text[:80]!r} ({error})") from None
        return program


def text_of(sizes: Sequence[int], operations: Sequence[Operation], results: Sequence[str]) -> str:
    """Return one half of a program, a neuron or a surrogate, as text."""
    lines = ";".join(" ".join(one) for one in operations)
    return f"{' '.join(map(str, sizes))}|{lines}|{' '.join(results)}"


def half(text: str) -> tuple[str, tuple[Operation, ...], str]:
    """Return sizes, operations and results of what `text_of` wrote."""
    sizes, lines, results = text.split("|")
    return sizes, _operations(lines), results


def windowed(surrogate: str) -> str:
    """Return the text of a surrogate cut off to 0 where `|u|` exceeds a window.

    The window is one more number of the surrogate, its last. Source: N. Perez-Nieves, D. F. M.
    Goodman, NeurIPS 2021, arXiv:2105.08810.
    """
    handed, lines, slope = surrogate.split("|")
    k = lines.count(";") + 1 if lines else 0
    window = f"abs u;le @{k} h{handed};where @{k + 1} {slope} 0.0"
    return f"{int(handed) + 1}|{lines}{';' * bool(lines)}{window}|@{k + 2}"


@functools.lru_cache(maxsize=1024)
def with_numbers(text: str, constants: int) -> str:
    """Return a program whose parameters with a bit set in `constants` are read as numbers.

    These follow the numbers that the neuron reads already. So a parameter that is not learned and
    is the same for all neurons needs no tensor.
    """
    neuron = Program.parse(text)
    own = neuron.numbers[0]
    names, kept = {}, 0
    for k in range(neuron.parameters):
        if constants >> k & 1:
            names[f"p{k}"] = f"n{own}"
            own += 1
        else:
            names[f"p{k}"] = f"p{kept}"
            kept += 1
    return str(
        dataclasses.replace(
            neuron,
            parameters=kept,
            numbers=(own, neuron.numbers[1]),
            operations=tuple(renamed(one, names) for one in neuron.operations),
            results=tuple(names.get(one, one) for one in neuron.results),
        )
    )


def with_bias(text: str) -> str:
    """Return a program with one more parameter, its last, which is added to the current."""
    neuron = Program.parse(text)
    count = len(neuron.operations)
    names = {"x": "@0", **{f"@{k}": f"@{k + 1}" for k in range(count)}}
    first = ("add", "x", f"p{neuron.parameters}")
    return str(
        dataclasses.replace(
            neuron,
            parameters=neuron.parameters + 1,
            operations=(first, *(renamed(one, names) for one in neuron.operations)),
            results=tuple(names.get(one, one) for one in neuron.results),
        )
    )


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
    """Return the source of a straight-line Python function that does these operations.

    Constants and numbers from outside that are arguments of a function, or results, are written as
    `number(c, x)`, which gives them the format of `x`: in compilers as in torch, a bare number has
    a format of its own.
    """
    lines = [f"def {name}({', '.join(arguments)}):"]
    for k, (operation, *operands) in enumerate(operations):
        called = "(" in _WRITTEN[operation][1]
        texts = [_text(one, called) for one in operands]
        lines.append(f"    t{k} = {_WRITTEN[operation][1].format(*texts)}")
    ending = ", ".join(_text(one, True) for one in results)
    lines.append(f"    return {ending}{',' if len(results) == 1 else ''}")
    return "\n".join(lines) + "\n"


def _text(operand: str, formatted: bool) -> str:
    if operand[0] == "@":
        return f"t{operand[1:]}"
    if not is_constant(operand):
        return f"number({operand}, x)" if formatted and operand[0] in "nh" else operand
    # `inf` and `nan` have no literals.
    value = operand if operand.lstrip("-")[0].isdigit() else f"({operand})"
    return f"number({value}, x)" if formatted else value


def needed(
    operations: Sequence[Operation], results: Sequence[str]
) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """Return only the operations that the results depend on, renumbered, and the results."""
    wanted = {int(one[1:]) for one in results if one[0] == "@"}
    for k in range(len(operations) - 1, -1, -1):
        if k in wanted:
            wanted.update(int(one[1:]) for one in operations[k][1:] if one[0] == "@")
    numbers = {f"@{k}": f"@{i}" for i, k in enumerate(sorted(wanted))}
    kept = tuple(renamed(operations[k], numbers) for k in sorted(wanted))
    return kept, tuple(numbers.get(one, one) for one in results)


def renamed(operation: Operation, names: Mapping[str, str]) -> Operation:
    """Return an operation whose operands are replaced by those that `names` has for them."""
    return (operation[0], *(names.get(one, one) for one in operation[1:]))
