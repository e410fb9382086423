"""Every variant of the Triton kernels that a layer can ask for, launched where there is no GPU.

A kernel is compiled for what its call needs, so that a variant nobody tried is code nobody
compiled. Here a variant is a row of values; `launch` calls the backend with tensors that fit it.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from test_neuron import QUADRATIC
from torch import Tensor

from neurospike import ops, rule, snntorch_surrogates, surrogate
from neurospike.kernels import lif_triton

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
    "rule": tuple(RULES),
    "dtype": DTYPES,
    "constant": BOTH,
    "held current": BOTH,
    "mem": BOTH,
    "one beta": BOTH,
    "one threshold": BOTH,
    # 1 and multiples of 16 are compiled apart; from lif_triton.SMALL on it is another geometry.
    "neurons": (1, 37, 64, lif_triton.SMALL, lif_triton.SMALL + 3),
}
FORWARD = COMMON | {"spikes": BOTH, "trace": BOTH, "saved": BOTH}
BACKWARD = COMMON | {
    "spikes": BOTH,  # which gradients come; "held" is one row for all steps, as of a sum
    "spikes held": BOTH,
    "trace": BOTH,
    "trace held": BOTH,
    "final": BOTH,
    "learned": BOTH,
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


class _Tensors:
    """Tensors of a variant, whose memory nobody reads."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.dtype, self.steps = variant["dtype"], variant.get("steps", STEPS)
        self.state = ops.state_dtype(self.dtype)
        self.shape = (1, variant["neurons"])
        windowed = variant.get("windowed", False)
        chosen = SURROGATES[variant.get("surrogate", "atan")]
        neuron = QUADRATIC if variant["rule"] == "own neuron" else None
        which = RULES[variant["rule"]]
        self.key = rule.key_of(*which, chosen.function, neuron, windowed)
        self.numbers = chosen.parameters + (0.5,) * windowed

    def rows(self, wanted: bool, dtype: torch.dtype, is_held: bool = False) -> Tensor:
        """Return a sequence `[T, 1, N]`; an empty tensor if none is wanted."""
        if is_held:
            return torch.empty(1, *self.shape, dtype=dtype).expand(self.steps, *self.shape)
        return torch.empty((self.steps, *self.shape) if wanted else 0, dtype=dtype)

    def row(self, wanted: bool = True) -> Tensor | None:
        return torch.empty(self.shape, dtype=self.state) if wanted else None

    def parameter(self, name: str) -> Tensor:
        return torch.empty(1 if self.variant[name] else self.shape[1], dtype=self.state)

    def current(self) -> Tensor:
        if self.variant["constant"]:
            return torch.empty(self.shape, dtype=self.dtype)
        return self.rows(True, self.dtype, self.variant["held current"])

    def saved(self, wanted: bool = True) -> Tensor:
        chunks = -(-self.steps // lif_triton.EVERY)
        return torch.empty(chunks * self.shape[1] if wanted else 0, dtype=self.state)

    def forward(self) -> None:
        v = self.variant
        lif_triton.forward(
            self.current(),
            self.row(v["mem"]),
            self.parameter("one beta"),
            self.parameter("one threshold"),
            self.key,
            self.numbers,
            self.steps,
            v["constant"],
            self.rows(v["spikes"], self.dtype),
            self.row(),
            self.rows(v["trace"], self.state),
            self.saved(v["saved"]),
        )

    def backward(self) -> None:
        v = self.variant
        current = self.current()
        beta, threshold = self.parameter("one beta"), self.parameter("one threshold")
        empty = torch.empty(0, dtype=self.state)
        lif_triton.backward(
            self.rows(True, self.dtype, v["spikes held"]) if v["spikes"] else None,
            self.row(v["final"]),
            self.rows(True, self.state, v["trace held"]) if v["trace"] else None,
            current,
            self.row(v["mem"]),
            beta,
            threshold,
            self.saved(),
            self.key,
            self.numbers,
            self.steps,
            v["constant"],
            torch.empty(current.shape, dtype=self.dtype),
            torch.empty(self.shape, dtype=self.state) if v["mem"] else empty,
            torch.empty_like(beta) if v["learned"] else empty,
            torch.empty_like(threshold) if v["learned"] else empty,
        )
