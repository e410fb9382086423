"""When adding up the rows of active inputs is faster than the dense product.

Both times are linear in what there is to do, and the factors are those of any processor with caches
and vectors; `Policy` has them in units of a product of the dense layer. A batch is first looked at
in a few of its rows; only if that looks promising are its events found, and then they are counted.

The two products differ in their last bits, and a spike may depend on those. The choice is therefore
made by the batch alone, so that a program with the same seed computes the same in every process, as
torch's own does (`torch.backends.cudnn.benchmark` is off by default, too). One factor is the
machine's own: how much faster it multiplies densely than it adds up rows from its caches. By
`use_policy(Policy(factor=None))` it is measured, once per process, and the bits are then those of
the measurement; never under `torch.use_deterministic_algorithms`.
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
PLAUSIBLE = (0.4, 2.5)  # no machine's own factor lies outside; other programs may have disturbed it


@dataclass(frozen=True)
class Policy:
    """By what dense and event-driven products are weighed; `use_policy` sets it.

    Attributes:
        factor: this machine's ratio of event-driven to dense time, over the one that the costs
            below expect; None measures it, once per process.
        margin: share of the dense product's time up to which events are taken.
        least_products: products (inputs times outputs) of a layer from which its spikes are looked
            at; in a smaller one, looking would take a noticeable share of the time.
        wide: outputs from which finding all events in bytes takes under 2% of the dense product.
        sample: inputs that are looked at, in at least 8 rows: each row waits for the memory.
        rest: batches that a module in training does not look at after one that did not pay: Python
            costs most between large products.
        panel: outputs that are summed together at least.
        add: products of the dense layer that take as long as adding one number of a row; likewise
            look: going through one input; write: writing one output; read: reading one number of a
            gradient; pack: packing one weight.
        far, add_far: inputs whose rows and sums of four no second-level cache holds; `add` then.
        events, trained_events: events per row up to which a layer is run with its neurons in one
            loop, without gradients and with them: what is added up twice backward, and scattered,
            then takes less time than currents take to be written and read. It was 20 to 40 trained,
            in layers of 256 to 2048 inputs and 512 to 1024 outputs, and without gradients 20 to 40
            with 2048 inputs, 40 to 150 with fewer.
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
    """What `use_policy` set, one per thread as torch's modes; torch.compile guards it."""

    def __init__(self) -> None:
        self.policy = Policy()


_scoped = _Scoped()


def policy() -> Policy:
    """Return the policy of this thread."""
    return _scoped.policy


@contextlib.contextmanager
def use_policy(policy: Policy) -> Iterator[None]:
    """Weigh products by this policy inside the `with` block, in this thread."""
    before, _scoped.policy = _scoped.policy, policy
    try:
        yield
    finally:
        _scoped.policy = before


def promising(row: dispatch.Backend, spikes: Tensor, weight: Tensor, trained: bool) -> bool:
    """Whether events may pay for spikes `[M, K]`, judged by some of the rows."""
    if spikes.element_size() == 1 and weight.shape[0] >= policy().wide:
        return True
    # An odd stride: rows of every step and sample, also where batches are powers of two.
    rows = max(8, policy().sample // max(1, spikes.shape[1]))
    seen = spikes.detach()[:: max(1, spikes.shape[0] // rows) | 1]
    share = int(torch.count_nonzero(seen)) / max(1, seen.numel())
    # Groups of four with any, if inputs were active one independently of the other.
    sums = spikes.numel() / 4 * (1 - (1 - share) ** 4)
    return _less(row, sums, spikes.shape[0], weight, trained)


def layer_pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Whether a layer and its neurons are best run in one loop, by what was found in spikes."""
    rows = found.counts.shape[1] - 1
    few = found.events < rows * (policy().trained_events if trained else policy().events)
    return few and not found.valued and pays(row, found, weight, trained)


def pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Whether what was `found` in spikes is summed faster than multiplied densely."""
    sums = found.events if found.valued else found.groups
    return _less(row, sums, found.counts.shape[1] - 1, weight, trained)


def _less(row: dispatch.Backend, sums: float, rows: int, weight: Tensor, trained: bool) -> bool:
    """Whether so many sums in so many rows take clearly less time than the dense product."""
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
    """Measure how the ratio of event-driven to dense time is to the one that `Policy` expects."""
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

        # What disturbs a call only makes it longer.
        least = _least((lambda: torch.addmm(bias, wide, weight.t()), sparse))
    groups = module.find(spikes, bits).groups
    expected = Policy().cost(groups, rows, width, outputs, False) / (rows * width * outputs)
    low, high = PLAUSIBLE
    return min(max(least[1] / least[0] / expected, low), high)


def _least(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the least time of each call, in rounds."""
    found = []
    for _ in range(1 + ROUNDS):
        times = []
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(times)
    return [min(times) for times in zip(*found)]
