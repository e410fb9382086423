"""Decide when adding up the weights of active inputs is faster than the dense product.

The time of either product is linear in its operations, with factors that hold for any processor
with caches and vector units; `Policy` has them in units of one multiplication of the dense product.
A few rows of a batch are examined first; only if these look promising are all its active inputs
(events) found and counted.

The two products differ in their last bits, and a spike may depend on those. The choice therefore
depends on the batch alone, so that a program with the same seed computes the same in every process,
as torch's own does (`torch.backends.cudnn.benchmark` is off by default, too). One factor is the
machine's own: how much faster it multiplies densely than it adds up rows from its caches. With
`use_policy(Policy(factor=None))` it is measured once per process, and the last bits then depend on
the measurement; under `torch.use_deterministic_algorithms` it is never measured.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurospike.backend import dispatch

SHAPE = (256, 512, 512)  # rows, inputs and outputs of the layer that is measured
DENSITY = 0.1  # share of its inputs that are active
ROUNDS = 10
PLAUSIBLE = (0.4, 2.5)  # a measured factor outside was disturbed by other programs, and is clamped


@dataclass(frozen=True)
class Policy:
    """Costs by which the dense and the event-driven product are compared; `use_policy` sets it.

    Attributes:
        factor: this machine's ratio of event-driven to dense time, divided by the ratio that the
            costs below predict; None measures it, once per process.
        margin: events are used up to this share of the dense product's time.
        least_products: number of products of a call (all its inputs times outputs) from which
            spikes are examined; below, that would take a noticeable share of the time.
        wide: number of outputs from which finding all events in bytes takes under 2% of the dense
            product.
        sample: number of inputs examined first, in at least 8 rows: each row waits for the memory.
        rest: after a batch whose events did not pay, the number of batches that a module in
            training does not examine: Python costs most between large products.
        panel: least number of outputs that are summed together.
        add: products of the dense layer that take as long as adding one number of a row; likewise
            look: going through one input; write: writing one output; read: reading one number of a
            gradient; pack: packing one weight.
        far: number of inputs above which no second-level cache holds the rows and sums of four.
        add_far: `add` above that number.
        events, trained_events: events per row up to which a layer and its neurons run in one loop,
            without gradients and with them: what is added up twice backward, and scattered, then
            takes less time than writing and reading the currents. The measured break-even was 20 to
            40 with gradients, in layers of 256 to 2048 inputs and 512 to 1024 outputs; without
            gradients it was 20 to 40 with 2048 inputs, 40 to 150 with fewer.
    """

    factor: float | None = 1.0
    margin: float = 0.75
    least_products: int = 1 << 26
    wide: int = 512
    sample: int = 4096
    rest: int = 7
    panel: int = 64
    add: float = 2.0
    look: float = 20.0
    write: float = 40.0
    read: float = 75.0
    pack: float = 65.0
    far: int = 2048
    add_far: float = 3.0
    events: int = 40
    trained_events: int = 16

    def cost(self, sums: float, rows: int, width: int, outputs: int, trained: bool) -> float:
        """Return the event-driven cost, forward and, if `trained`, of the weight's gradient."""
        add = self.add if width <= self.far else self.add_far
        adding = add * sums * (-(-outputs // self.panel) * self.panel)
        both = adding + self.look * rows * width + self.pack * width * outputs
        forward = both + self.write * rows * outputs
        return forward + both + self.read * rows * outputs if trained else forward


class _Scoped(threading.local):
    """The policy set by `use_policy`, per thread like torch's modes; torch.compile guards it."""

    def __init__(self) -> None:
        self.policy = Policy()


_scoped = _Scoped()


def policy() -> Policy:
    """Return the policy of this thread."""
    return _scoped.policy


@contextlib.contextmanager
def use_policy(policy: Policy) -> Iterator[None]:
    """Compare products by this policy inside the `with` block, in this thread."""
    before, _scoped.policy = _scoped.policy, policy
    try:
        yield
    finally:
        _scoped.policy = before


def promising(row: dispatch.Backend, spikes: Tensor, weight: Tensor, trained: bool) -> bool:
    """Return whether events may pay for spikes `[M, K]`, estimated from some of the rows."""
    if spikes.element_size() == 1 and weight.shape[0] >= policy().wide:
        return True
    # The stride is odd, so that rows of all samples are seen even if the batch is a power of two.
    rows = max(8, policy().sample // max(1, spikes.shape[1]))
    seen = spikes.detach()[:: max(1, spikes.shape[0] // rows) | 1]
    share = int(torch.count_nonzero(seen)) / max(1, seen.numel())
    # Groups of four inputs with an active one, if inputs were active independently.
    sums = spikes.numel() / 4 * (1 - (1 - share) ** 4)
    return _less(row, sums, spikes.shape[0], weight, trained)


def layer_pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Return whether the `found` events are few enough for a layer and its neurons in one loop."""
    rows = found.counts.shape[1] - 1
    few = found.events < rows * (policy().trained_events if trained else policy().events)
    return few and not found.valued and pays(row, found, weight, trained)


def pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Return whether the `found` events are summed faster than the dense product runs."""
    sums = found.events if found.valued else found.groups
    return _less(row, sums, found.counts.shape[1] - 1, weight, trained)


def _less(row: dispatch.Backend, sums: float, rows: int, weight: Tensor, trained: bool) -> bool:
    """Return whether so many sums in so many rows take clearly less time than a dense product."""
    chosen, factor = policy(), policy().factor
    if torch.are_deterministic_algorithms_enabled():
        factor = 1.0
    elif factor is None:
        factor = machine_factor(row, weight.dtype, torch.get_num_threads())
    outputs, width = weight.shape
    dense = (2 if trained else 1) * rows * width * outputs
    return factor * chosen.cost(sums, rows, width, outputs, trained) < chosen.margin * dense


@functools.cache
def machine_factor(row: dispatch.Backend, dtype: torch.dtype, threads: int) -> float:
    """Measure the ratio of event-driven to dense time, divided by that which `Policy` predicts."""
    module = dispatch.linear_of(row)
    rows, width, outputs = SHAPE
    with torch.no_grad(), torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        spikes = torch.rand(rows, width, generator=generator) < DENSITY
        wide = spikes.to(dtype)
        weight, bias = torch.zeros(outputs, width, dtype=dtype), torch.zeros(outputs, dtype=dtype)
        bits = torch.empty(rows, module.words(width), dtype=torch.int64)

        def sparse() -> Tensor:
            found = module.find(spikes, bits)
            return module.forward(spikes=spikes, weight=weight, bias=bias, bits=bits, found=found)

        # Disturbances only make a call longer, so the least time is taken.
        least = _least((lambda: torch.addmm(bias, wide, weight.t()), sparse))
    groups = module.find(spikes, bits).groups
    expected = Policy().cost(groups, rows, width, outputs, False) / (rows * width * outputs)
    low, high = PLAUSIBLE
    return min(max(least[1] / least[0] / expected, low), high)


def _least(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the least time of each call in seconds, over `ROUNDS` rounds after a first one."""
    found = []
    for _ in range(1 + ROUNDS):
        times = []
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(times)
    return [min(times) for times in zip(*found)]
