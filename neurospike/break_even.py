"""When adding up the rows of active inputs is faster than the dense product.

Both times are linear in what there is to do, and all but one of the factors are those of any
processor with caches and vectors; `Costs` has them in units of a product of the dense layer. The
one that is the machine's own, how much faster it multiplies densely than it adds up rows from its
caches, is measured: once a process, for each number format and number of threads, in a few
milliseconds. A batch is first looked at in a few of its rows; only if that looks promising are its
events found, and then they are counted.

Under `torch.use_deterministic_algorithms` nothing is measured, so that the same batch is computed
in the same way in every process.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch

LEAST_PRODUCTS = 1 << 26  # in a smaller layer, looking would be felt
WIDE = 512  # outputs from which finding all events in bytes takes under 2% of the dense product
SAMPLE = 4096  # inputs that are looked at, in at least 8 rows: each row waits for the memory
REST = 7  # batches after one that was looked at in vain: Python costs most between large products
MARGIN = 0.75  # of the dense product's time, up to which events are taken
PANEL = 64  # outputs that are summed together at least

# Products of the dense layer that take as long as, event-driven, adding one number of a row, going
# through one input, writing one output, reading one number of a gradient, packing one weight.
ADD, LOOK, WRITE, READ, PACK = 2.0, 20.0, 40.0, 75.0, 65.0
FAR, ADD_FAR = 2048, 3.0  # inputs whose rows and sums of four no second-level cache holds

# Events a row, up to which a layer is run with its neurons in one loop: what is added up twice
# backward, and scattered, then takes less time than currents take to be written and read. It was
# 20 to 40 trained, in layers of 256 to 2048 inputs and 512 to 1024 outputs, and without gradients
# 20 to 40 with 2048 inputs, 40 to 150 with fewer.
EVENTS, TRAINED_EVENTS = 40, 16

SHAPE = (256, 512, 512)  # rows, inputs and outputs of the layer that is measured
DENSITY = 0.1  # share of its inputs that are active
ROUNDS = 10
PLAUSIBLE = (0.4, 2.5)  # no machine's own factor lies outside; other programs may have disturbed it


def promising(row: dispatch.Backend, spikes: Tensor, weight: Tensor, trained: bool) -> bool:
    """Whether events may pay for spikes `[M, K]`, judged by some of the rows."""
    if spikes.element_size() == 1 and weight.shape[0] >= WIDE:
        return True
    # An odd stride: rows of every step and sample, also where batches are powers of two.
    rows = max(8, SAMPLE // max(1, spikes.shape[1]))
    seen = spikes.detach()[:: max(1, spikes.shape[0] // rows) | 1]
    share = int(torch.count_nonzero(seen)) / max(1, seen.numel())
    # Groups of four with any, if inputs were active one independently of the other.
    sums = spikes.numel() / 4 * (1 - (1 - share) ** 4)
    return _less(row, sums, spikes.shape[0], weight, trained)


def layer_pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Whether a layer and its neurons are best run in one loop, by what was found in spikes."""
    rows = found.counts.shape[1] - 1
    few = found.events < rows * (TRAINED_EVENTS if trained else EVENTS)
    return few and not found.valued and pays(row, found, weight, trained)


def pays(row: dispatch.Backend, found: Any, weight: Tensor, trained: bool) -> bool:
    """Whether what was `found` in spikes is summed faster than multiplied densely."""
    sums = found.events if found.valued else found.groups
    return _less(row, sums, found.counts.shape[1] - 1, weight, trained)


def _less(row: dispatch.Backend, sums: float, rows: int, weight: Tensor, trained: bool) -> bool:
    """Whether so many sums in so many rows take clearly less time than the dense product."""
    factor = 1.0
    if not torch.are_deterministic_algorithms_enabled():
        factor = machine_factor(row, weight.dtype, torch.get_num_threads())
    outputs, width = weight.shape
    dense = (2 if trained else 1) * rows * width * outputs
    return factor * _events(sums, rows, width, outputs, trained) < MARGIN * dense


def _events(sums: float, rows: int, width: int, outputs: int, trained: bool) -> float:
    """Return the event-driven cost, forward and, if `trained`, of the weight's gradient."""
    adding = (ADD if width <= FAR else ADD_FAR) * sums * (-(-outputs // PANEL) * PANEL)
    looking = LOOK * rows * width
    forward = adding + looking + WRITE * rows * outputs + PACK * width * outputs
    if not trained:
        return forward
    return forward + adding + looking + READ * rows * outputs + PACK * width * outputs


@functools.cache
def machine_factor(row: dispatch.Backend, dtype: torch.dtype, threads: int) -> float:
    """Measure how the ratio of event-driven to dense time is to the one that `_events` expects."""
    module = dispatch.load(row.linear)
    rows, width, outputs = SHAPE
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        spikes = torch.rand(rows, width, generator=generator) < DENSITY
        wide = spikes.to(dtype)
        weight, bias = torch.zeros(outputs, width, dtype=dtype), torch.zeros(outputs, dtype=dtype)
        bits = torch.empty(rows, module.words(width), dtype=torch.int64)

        def sparse() -> Tensor:
            return module.forward(spikes, weight, bias, bits, module.find(spikes, bits))

        # What disturbs a call only makes it longer.
        least = _least((lambda: torch.addmm(bias, wide, weight.t()), sparse))
    expected = _events(module.find(spikes, bits).groups, rows, width, outputs, False) / (
        rows * width * outputs
    )
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
