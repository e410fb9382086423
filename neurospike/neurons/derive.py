"""The gradient of a neuron's step, derived from its operations.

The reverse sweep is appended to the operations of the forward step, so the values that it
recomputes equal those of the forward step bit for bit; the gradient itself uses faster operations
(`program.QUICK`). Sources: A. Griewank, A. Walther, "Evaluating derivatives", SIAM 2008, chapter 3
(the reverse mode); E. O. Neftci, H. Mostafa and F. Zenke, 2019, doi:10.1109/MSP.2019.2931595 (the
surrogate in place of the spike's derivative).

Where a function is not differentiable, the gradients are those of torch: 0 for `abs` at 0, half for
each operand of `minimum` and `maximum` where they are equal.
"""

import functools
from collections.abc import Sequence

from .program import CONDITIONS, QUICK, Operation, Program, is_constant, needed, renamed


class _Sweep:
    """The operations so far, and the gradient of each operand."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operations: list[Operation] = list(program.forward)
        self.gradients: dict[str, str] = {}

    def do(self, name: str, *operands: str) -> str:
        quick = f"quick_{name}"
        self.operations.append((quick if quick in QUICK else name, *operands))
        return f"@{len(self.operations) - 1}"

    def add(self, operand: str, gradient: str) -> None:
        """Add to the gradient of an operand."""
        if is_constant(operand):
            return
        before = self.gradients.get(operand)
        self.gradients[operand] = gradient if before is None else self.do("add", before, gradient)

    def slope(self, u: str) -> str:
        """Append the surrogate at `u`; return the operand of its result."""
        names = {"u": u}
        for k, operation in enumerate(self.program.surrogate):
            names[f"@{k}"] = self.do(*renamed(operation, names))
        return names.get(self.program.slope, self.program.slope)

    def through(self, result: str, name: str, a: str, b: str = "", c: str = "") -> None:
        """Propagate the gradient of an operation's result to its operands."""
        g = self.gradients[result]
        if name == "add":
            self.add(a, g)
            self.add(b, g)
        elif name == "sub":
            self.add(a, g)
            if not is_constant(b):
                self.add(b, self.do("neg", g))
        elif name == "mul":
            for one, other in ((a, b), (b, a)):
                if not is_constant(one):
                    self.add(one, self.do("mul", g, other))
        elif name == "div":
            if not is_constant(a):
                self.add(a, self.do("div", g, b))
            if not is_constant(b):
                self.add(b, self.do("div", self.do("mul", self.do("neg", g), result), b))
        elif name == "neg":
            self.add(a, self.do("neg", g))
        elif name == "where":
            if not is_constant(b):
                self.add(b, self.do("where", a, g, "0.0"))
            if not is_constant(c):
                self.add(c, self.do("where", a, "0.0", g))
        elif name == "fire":
            self.add(a, self.do("mul", g, self.slope(a)))
        elif name in ("minimum", "maximum"):
            less, more = ("lt", "gt") if name == "minimum" else ("gt", "lt")
            half = self.do("mul", "0.5", g)
            for one, first, second in ((a, less, more), (b, more, less)):
                if not is_constant(one):
                    beyond = self.do("where", self.do(second, a, b), "0.0", half)
                    self.add(one, self.do("where", self.do(first, a, b), g, beyond))
        elif name not in ("heaviside", "detach") and name not in CONDITIONS:
            self.add(a, self.smooth(name, result, a, g))

    def smooth(self, name: str, y: str, a: str, g: str) -> str:
        """Return the gradient of `a`, given the gradient `g` of the function's value `y`."""
        if name == "exp":
            return self.do("mul", g, y)
        if name == "log":
            return self.do("div", g, a)
        if name == "sqrt":
            return self.do("div", g, self.do("mul", "2.0", y))
        if name == "tanh":
            return self.do("mul", g, self.do("sub", "1.0", self.do("mul", y, y)))
        if name == "sigmoid":
            return self.do("mul", g, self.do("mul", y, self.do("sub", "1.0", y)))
        if name == "sin":
            return self.do("mul", g, self.do("cos", a))
        if name == "cos":
            return self.do("neg", self.do("mul", g, self.do("sin", a)))
        assert name == "abs"
        rising = self.do("where", self.do("gt", a, "0.0"), g, "0.0")
        return self.do("where", self.do("lt", a, "0.0"), self.do("neg", g), rising)


@functools.cache
def derived(
    program: Program, given: tuple[bool, ...], wanted: tuple[bool, ...]
) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """Return the operations of a step's gradient, and its results.

    Args:
        program: the step.
        given: for the spike and each new state, whether its gradient is an input, as operand `g0`,
            `g1` and so on; the others are 0.
        wanted: for the current, each state and each parameter, whether its gradient is asked for.

    Returns:
        The operations, which recompute what they need of the forward step, and the operands of the
        wanted gradients, in that order; the constant `0.0` for an input without an effect.
    """
    sweep = _Sweep(program)
    for k, (result, is_given) in enumerate(zip(program.results, given, strict=True)):
        if is_given:
            sweep.add(result, f"g{k}")
    for k in range(len(program.operations) - 1, -1, -1):
        if f"@{k}" in sweep.gradients:
            sweep.through(f"@{k}", *program.operations[k])
    inputs: Sequence[str] = program.inputs[: len(wanted)]
    results = [sweep.gradients.get(one, "0.0") for one, want in zip(inputs, wanted) if want]
    return needed(sweep.operations, results)
