"""`Rule`, the recorded neuron and surrogate of a layer, and `Neuron`, a recurrence for `LIF`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import zoo
from .program import windowed
from .record import Recorded, record

RESETS = ("subtract", "zero", "none")


@dataclass(frozen=True)
class Rule:
    """The recorded neuron and surrogate that a layer passes to a backend, made once.

    Attributes:
        program: neuron and surrogate as text; see `neurons.program`.
        numbers: values of the numbers that both read; they may change while the program stays.
        states: names of the states.
        parameters: names of the parameters.
    """

    program: str
    numbers: tuple[float, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]


class Neuron:
    """A recurrence of one state, written as a plain scalar function, that replaces the LIF's.

        def quadratic(current, mem, beta, threshold):
            v = beta * mem + (1.0 - beta) * mem * mem + current
            spike = fire(v - threshold)
            return spike, v * (1.0 - spike)

        layer = ns.LIF(0.9, neuron=ns.Neuron(quadratic))

    Args:
        step: a function of one time step, `(current, mem, beta, threshold)` to `(spike, mem)`. Its
            gradient is derived. What it may use is listed in `neurospike.Spiking`, which takes
            functions of any number of states and parameters.

    Raises:
        TypeError: not a function, or three of them, as version 0.1 took.
    """

    def __init__(self, step: Callable[..., Any] | None = None, *others: Any, **named: Any) -> None:
        if step is None or others or named:
            raise TypeError(
                "Neuron takes one function, whose gradient is derived: write charge and settle as "
                "def step(current, mem, beta, threshold): v = ...; spike = fire(v - threshold); "
                "return spike, v * (1.0 - spike); and leave out step_vjp"
            )
        if not callable(step):
            raise TypeError(
                "Neuron takes a function (current, mem, beta, threshold) to (spike, mem), got "
                f"{step!r}"
            )
        self.step: Callable[..., Any] = step


def rule_of(
    neuron: Recorded, surrogate: str, numbers: tuple[float, ...], window: tuple[float, ...] = ()
) -> Rule:
    """Return the rule of a recorded neuron and a recorded surrogate with its numbers.

    window: empty, or the distance from the threshold beyond which no gradient flows.
    """
    half = windowed(surrogate) if window else surrogate
    every = (*neuron.numbers, *numbers, *window)
    return Rule(f"{neuron.text}|{half}", every, neuron.states, neuron.parameters)


# Recorded at import, because a function cannot be recorded inside torch.compile.
_LIF = {key: record(function) for key, function in zoo.LIF.items()}
LI = rule_of(record(zoo.li), "0||1.0", ())


def lif_of(reset: str, delayed: bool, detached: bool, neuron: Neuron | None) -> Recorded:
    """Return the recorded LIF with the given reset, or the given neuron recorded in its place.

    Raises:
        ValueError: an unknown reset, or one given for a neuron that has its own.
        TypeError: not a `Neuron`, or one whose function not every backend can run.
    """
    if reset not in RESETS:
        raise ValueError(f"unknown reset {reset!r}; choose one of {', '.join(RESETS)}")
    if neuron is None:
        # Without a reset there is nothing to delay; with a delayed one there is nothing to detach.
        is_delayed = delayed or reset == "none"
        timing = "delayed" if is_delayed else "detached" if detached else "immediate"
        return _LIF[f"{reset} {timing}"]
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a Neuron(step), got {neuron!r}")
    if (reset, delayed, detached) != ("subtract", True, False):
        raise ValueError(
            f"got reset={reset!r}, reset_delay={delayed}, detach_reset={detached} beside a neuron, "
            "whose function says what a spike does; leave them out"
        )
    found = record(neuron.step)
    if (len(found.states), len(found.parameters)) != (1, 2):
        taken = ", ".join(("current", *found.states, *found.parameters))
        raise TypeError(
            f"the neuron {neuron.step.__name__!r} takes ({taken}), of which {len(found.states)} "
            "are states; that of a LIF takes (current, mem, beta, threshold) and returns (spike, "
            "mem). ns.Spiking takes any other"
        )
    return found
