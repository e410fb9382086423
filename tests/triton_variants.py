"""Every variant of the Triton kernels that a layer can ask for, launched where there is no GPU.

A kernel is compiled for what its call needs, so that a variant nobody tried is code nobody
compiled. Here a variant is a row of values; `launch` calls the backend with tensors that fit it.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from test_neuron import QUADRATIC
from torch import Tensor

from neurospike import ops
from neurospike.kernels.cuda import _scan_loop as scan_loop
from neurospike.kernels.cuda import scan as scan_triton
from neurospike.neurons import rule, snntorch_surrogates, surrogate, zoo
from neurospike.neurons.record import record

SUBTRACT = ("subtract", True, False)
RULES = {
    "subtract": SUBTRACT,
    "zero": ("zero", True, False),
    "none": ("none", True, False),
    "subtract immediate": ("subtract", False, False),
    "zero immediate": ("zero", False, False),
    "subtract detached": ("subtract", False, True),
    "zero detached": ("zero", False, True),
    "own neuron": SUBTRACT,
}
# Of no threshold, and of more than one state.
OTHERS = {"li": zoo.li, "synaptic": zoo.synaptic()}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
STEPS = 20  # no multiple of a chunk


def _sparse(bound: float) -> surrogate.Surrogate:
    return surrogate.resolve(surrogate.Surrogate(snntorch_surrogates.sparse, (25.0, bound)))


SURROGATES = {
    **{name: surrogate.resolve(name) for name in surrogate.BUILT_IN},
    "parameter 0": _sparse(0.0),
    "parameter 5e-324": _sparse(5e-324),
    "parameter below 0": _sparse(-1.0),
}
BOTH = (False, True)
COMMON = {  # what a kernel depends on
    "rule": (*RULES, *OTHERS),
    "dtype": DTYPES,
    "constant": BOTH,
    "held current": BOTH,
    "mem": BOTH,
    "lengths": BOTH,
    "one beta": BOTH,
    "one threshold": BOTH,
    # 1 and multiples of 16 are compiled apart; from scan_triton.SMALL on it is another geometry.
    "neurons": (1, 37, 64, scan_triton.SMALL, scan_triton.SMALL + 3),
}
FORWARD = COMMON | {"spikes": BOTH, "trace": BOTH, "saved": BOTH}
BACKWARD = COMMON | {
    "spikes": BOTH,  # which gradients come; "held" is one row for all steps, as of a sum
    "spikes held": BOTH,
    "trace": BOTH,
    "trace held": BOTH,
    "final": BOTH,
    "learned": ((), ("beta",), ("threshold",), ("beta", "threshold")),
    "windowed": BOTH,
    "surrogate": tuple(SURROGATES),
}
Variant = dict[str, Any]
Pair = tuple[str, Any, str, Any]


def product(factors: Mapping[str, Sequence[Any]]) -> Iterator[Variant]:
    """Yield every combination."""
    for values in itertools.product(*factors.values()):
        yield dict(zip(factors, values))


def filled(variants: Iterable[Variant], factors: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Give each variant a value of every factor that it lacks, so that all pairs appear soon."""
    missing, drawn = every_pair(factors), random.Random(0)
    return [_best(variant, factors, missing, drawn) for variant in variants]


def covering(factors: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Return few variants in which every pair of values of two factors appears."""
    missing, drawn, found = every_pair(factors), random.Random(0), []
    while missing:
        name_a, a, name_b, b = min(missing, key=str)
        found.append(_best({name_a: a, name_b: b}, factors, missing, drawn))
    return found


def _best(
    fixed: Variant, factors: Mapping[str, Sequence[Any]], missing: set[Pair], drawn: random.Random
) -> Variant:
    """Return the one with the most missing pairs of some variants that are drawn."""
    candidates = [
        {n: fixed[n] if n in fixed else drawn.choice(f) for n, f in factors.items()}
        for _ in range(30)
    ]
    best = max(candidates, key=lambda variant: len(missing & pairs(variant)))
    missing -= pairs(best)
    return best


def pairs(variant: Variant) -> set[Pair]:
    """Return the pairs of values that appear in a variant."""
    return {(*a, *b) for a, b in itertools.combinations(variant.items(), 2)}


def every_pair(factors: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Return the pairs of values of two factors that there are."""
    two = itertools.combinations(factors, 2)
    return {p for a, b in two for v in product({a: factors[a], b: factors[b]}) for p in pairs(v)}


def launch(kind: str, variant: Variant) -> None:
    """Call the backend's "forward" or "backward" as a layer would that needs this variant."""
    given = _Tensors(variant)
    (given.forward if kind == "forward" else given.backward)()


def _learned_as(name: str) -> str:
    """Return the factor of a parameter: that of the threshold, or that of the decays."""
    return "threshold" if name == "threshold" else "beta"


class _Tensors:
    """Tensors of a variant, whose memory nobody reads."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.dtype, self.steps = variant["dtype"], variant.get("steps", STEPS)
        self.state = ops.state_dtype(self.dtype)
        self.shape = (1, variant["neurons"])
        windowed = variant.get("windowed", False)
        chosen = SURROGATES[variant.get("surrogate", "atan")]
        if variant["rule"] in OTHERS:
            recorded = record(OTHERS[variant["rule"]])
        else:
            neuron = QUADRATIC if variant["rule"] == "own neuron" else None
            recorded = rule.lif_of(*RULES[variant["rule"]], neuron)
        window = (0.5,) if windowed else ()
        self.rule = rule.rule_of(recorded, chosen.text, chosen.parameters, window)

    def rows(self, dtype: torch.dtype, is_held: bool = False) -> Tensor:
        """Return a sequence `[T, 1, N]`."""
        if is_held:
            return torch.empty(1, *self.shape, dtype=dtype).expand(self.steps, *self.shape)
        return torch.empty((self.steps, *self.shape), dtype=dtype)

    def row(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.state)

    def each(self, make: Callable[[], Any]) -> list[Any]:
        """Return one for each state."""
        return [make() for _ in self.rule.states]

    def common(self) -> dict[str, Any]:
        v, one = self.variant, (1, self.shape[1])
        current = torch.empty(self.shape, dtype=self.dtype)
        if not v["constant"]:
            current = self.rows(self.dtype, v["held current"])
        return {
            "current": current,
            "states": self.each(self.row) if v["mem"] else [],
            "parameters": [
                torch.empty(one[not v[f"one {_learned_as(name)}"]], dtype=self.state)
                for name in self.rule.parameters
            ],
            "neuron": self.rule.program,
            "numbers": self.rule.numbers,
            "steps": self.steps,
            "constant": v["constant"],
            "lengths": torch.empty(1, dtype=torch.int64) if v["lengths"] else None,
        }

    def first(self, wanted: bool, make: Callable[[], Any]) -> list[Any]:
        """Return one for the first state if wanted, and None for the others."""
        return [make() if wanted and k == 0 else None for k in range(len(self.rule.states))]

    def saved(self, wanted: bool = True) -> list[Tensor]:
        chunks = -(-self.steps // scan_loop.EVERY)
        length = chunks * self.shape[1]
        return self.each(lambda: torch.empty(length, dtype=self.state)) if wanted else []

    def forward(self) -> None:
        v = self.variant
        scan_triton.forward(
            **self.common(),
            spikes=self.rows(self.dtype) if v["spikes"] else None,
            finals=self.each(self.row),
            traces=self.each(lambda: self.rows(self.state)) if v["trace"] else [],
            saved=self.saved(v["saved"]),
        )

    def backward(self) -> None:
        v, given = self.variant, self.common()
        scan_triton.backward(
            **given,
            grad_spikes=self.rows(self.dtype, v["spikes held"]) if v["spikes"] else None,
            grad_finals=self.first(v["final"], self.row),
            grad_traces=self.first(v["trace"], lambda: self.rows(self.state, v["trace held"])),
            saved=self.saved(),
            out=torch.empty(given["current"].shape, dtype=self.dtype),
            out_states=self.each(self.row) if v["mem"] else [],
            out_parameters=[
                torch.empty_like(one) if _learned_as(name) in v["learned"] else None
                for name, one in zip(self.rule.parameters, given["parameters"])
            ],
        )
