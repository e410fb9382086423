"""Turn intensities into currents or spikes over time.

A spiking network sees a sequence, a picture is one frame; an encoder says how the one
becomes the other. Every function takes `data [B, *F]` (floating point, intensities in
[0, 1]) and `num_steps` (T), and returns `[T, B, *F]` in the data's dtype and on its device.
Time is counted in steps from 0. None of them loops over T in Python.

`rows` and `pixels` (`neurospike.coding.reading`) show a picture part by part instead, and take no
`num_steps`, which follows from the picture.

`rate` and `latency` hand their spikes over in another format on request: `dtype=torch.uint8` or
`torch.bool` is what `neurospike.SpikeLinear` takes, a quarter of the memory of float32. The spikes
are the same in every format.

Half-precision data are encoded in float32 (float64 in float64), and only the result is
converted back, so a float16 picture gets the same code as the same values in float32.
Every spike is exactly 0 or 1, which all these dtypes hold.

NaN and infinity are refused by every one, as a neuron would hide them: a membrane that is not a
number never fires. That check makes a CUDA device wait once; it is left out where there is nothing
to look at: in torch.compile and torch.export, under `torch.func`, while a CUDA graph is captured,
and on the meta device.

Sources: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep
Learning", Proc. IEEE 111(9), 2023, section III (rate and latency codes, the RC time); S. Thorpe,
A. Delorme, R. van Rullen, "Spike-based strategies for rapid processing", Neural Networks 14,
2001 (one spike, the stronger the earlier); B. Rueckauer et al., Front. Neurosci. 11:682, 2017
(a constant analog current in place of input spikes); P. Lichtsteiner, C. Posch, T. Delbruck, IEEE
J. Solid-State Circuits 43(2), 2008 (events of change); J. Kim et al., "Deep neural networks with
weighted spikes", Neurocomputing 311, 2018 (phase); W. Guo et al., "Neural coding in spiking
neural networks: a comparative study", Front. Neurosci. 15:638474, 2021 (burst).
"""

import math
from typing import Any

import torch
from torch import Tensor

from .intensities import (
    Curve,
    Subthreshold,
    check,
    check_finite,
    check_latency,
    check_number,
    check_probability,
    check_range,
    is_whole,
    numbers,
    same_device,
    spikes_format,
    working,
)
from .reading import pixel_order, pixels, rows

__all__ = [
    "burst",
    "constant",
    "delta",
    "latency",
    "phase",
    "pixel_order",
    "pixels",
    "rate",
    "rows",
]

ONE_KERNEL = frozenset({"cuda"})  # devices where torch draws, compares and writes in one pass
LEAST_COMPILED = 1 << 16  # fewer spikes are made sooner than a compiled loop is loaded
_COMPILED = (torch.bool, torch.uint8, torch.float32, torch.float64)


def constant(data: Tensor, num_steps: int) -> Tensor:
    """Present the same current at every step (direct, or analog, coding).

    Shapes: `data [B, *F]`, any finite intensities, to `[T, B, *F]`. The result is an expanded
    view: its stride over T is 0 and nothing is copied, so write into a `.clone()` only.
    Gradients flow through.

    Errors: `TypeError` for data that are not floating point or a `num_steps` that is no whole
    number; `ValueError` for data without a dimension, NaN or infinity, or `num_steps < 1`.
    """
    num_steps = check(data, num_steps)
    check_finite("constant", data)
    return data.unsqueeze(0).expand(num_steps, *data.shape)


def rate(
    data: Tensor,
    num_steps: int,
    *,
    gain: float = 1.0,
    offset: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Fire at each step independently, with probability `clamp(gain * data + offset, 0, 1)`.

    Shapes: `data [B, *F]` to spikes (0 or 1) `[T, B, *F]`. A probability of 0 never fires, of
    1 fires at every step. `gain` and `offset` (no unit; 1 and 0 take the intensity as the
    probability) raise or lower the mean rate. The draws are float32 uniforms (float64 for
    float64 data) made on the data's device, from `generator` or from torch's global state:
    the same generator state gives the same spikes on the same kind of device, in every `dtype`
    (default: the data's) and whichever code draws. No gradient flows.

    Errors: `TypeError`, `ValueError` as for `constant`; `TypeError` for a `dtype` that is neither
    bool, uint8 nor floating point; `ValueError` for a generator of another device than the data's,
    a probability that is NaN or infinite, or data that seem to be pictures of 0..255: both they
    and the probabilities made of them reach beyond 32.
    """
    num_steps = check(data, num_steps)
    dtype = spikes_format("rate", data, dtype)
    check_number("rate", "gain", gain)
    check_number("rate", "offset", offset)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"rate got generator={generator!r}; it must be a torch.Generator, or None for torch's "
            "global one"
        )
    if generator is not None and not same_device(generator.device, data.device):
        raise ValueError(
            f"rate got a generator on {generator.device} for data on {data.device}; the draws are "
            f"made where the data are: use torch.Generator(device={str(data.device)!r})"
        )
    probability = working(data) * gain + offset
    check_probability(data, probability, gain, offset)
    module = _coder("draws", probability, num_steps)
    compact = None if module is None else module.spikes(probability, num_steps, generator)
    if compact is not None:
        return compact.view(dtype) if dtype == torch.bool else compact.to(dtype)
    drawn_by: Any = {} if generator is None else {"generator": generator}  # for torch.export
    shape = (num_steps, *data.shape)
    is_mapped = torch._C._are_functorch_transforms_active()
    if data.device.type in ONE_KERNEL and probability.dtype == torch.float32 and not is_mapped:
        # Where values are not checked, as in a CUDA graph, NaN would make the device fail.
        chance = probability.nan_to_num(0.0).clamp_(0.0, 1.0)
        return torch.empty(shape, dtype=dtype, device=data.device).bernoulli_(chance, **drawn_by)
    draws = torch.rand(shape, dtype=probability.dtype, device=data.device, **drawn_by)
    # Draws lie in [0, 1), so comparing is clamping: 0 and less never fire, 1 and more always.
    if is_mapped:  # with randomness="same" the draws of one sample are those of all
        return draws.lt(probability).to(dtype)
    # In place: at [T, B, *F] a boolean beside the draws would be the largest temporary.
    return draws.lt_(probability).to(dtype)


def latency(
    data: Tensor,
    num_steps: int,
    *,
    curve: Curve = "linear",
    threshold: float = 0.01,
    subthreshold: Subthreshold = "silent",
    tau: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Fire once, the brighter the earlier.

    Shapes: `data [B, *F]` in [0, 1] to spikes (0 or 1) `[T, B, *F]`, exactly one over T for
    every intensity `x > threshold`. The time in steps, rounded to the nearest step (a tie goes
    to the earlier one):

    - `"linear"`: `(T - 1) * (1 - x) / (1 - threshold)`, so 0 at x = 1 and T - 1 at the threshold;
    - `"logarithmic"`: an RC neuron charged by x crosses the threshold after
      `tau * ln(x / (x - threshold))`; counted from the crossing time of x = 1, and T - 1 for
      everything later, so 0 at x = 1 and T - 1 in the limit of the threshold. `tau` is the
      time constant in steps; by default the window, T - 1 (intensities under about 1.6
      thresholds then share the last step). A larger one spreads bright intensities further.

    Intensities at or below `threshold` stay `"silent"`, or all fire at the `"last"` step.

    The times depend on the arguments only, so a sample has the same code alone and in any
    batch; snnTorch's `spikegen.latency(normalize=True)` divides by the batch's latest time
    instead. `dtype` is the spikes' format, by default the data's. No gradient flows.

    Errors: `TypeError`, `ValueError` as for `constant`, `TypeError` for a `dtype` as for `rate`;
    `ValueError` for intensities outside [0, 1] or NaN, an unknown `curve` or `subthreshold`, a
    threshold outside [0, 1) (linear) or (0, 1) (logarithmic), a `tau` that is not positive and
    finite or is given with `"linear"`.
    """
    num_steps = check(data, num_steps)
    dtype = spikes_format("latency", data, dtype)
    check_latency(curve, threshold, subthreshold, tau)
    intensity = working(data)
    table = _edges(num_steps, curve, threshold, tau)
    module = _coder("latency", intensity, num_steps)
    if module is not None and dtype in _COMPILED:
        last = subthreshold == "last"
        found = module.spikes(intensity, table, threshold, last, dtype)
        if found is not None:
            return found
    check_range("latency", data)
    intensity = intensity.contiguous()
    edges = numbers(table, intensity.dtype, data.device)
    # Comparing with a table, not computing each time, makes the code independent of how a
    # device or a vectorised loop rounds its logarithm.
    step = num_steps - 1 - torch.bucketize(intensity, edges, right=True)
    fires = intensity > threshold
    if subthreshold == "last":
        step = torch.where(fires, step, num_steps - 1)
        fires = torch.ones_like(fires)
    spikes = data.new_zeros((num_steps, *data.shape), dtype=dtype)
    return spikes.scatter_(0, step.unsqueeze(0), fires.unsqueeze(0).to(dtype))


def delta(
    data: Tensor, num_steps: int | None = None, *, threshold: float = 0.1, off_spikes: bool = True
) -> Tensor:
    """Fire when the intensity has changed by `threshold`: 1 for brighter, -1 for darker.

    Shapes: a sequence `data [T, B, *F]` (any finite values) to spikes `[T, B, *F]`, comparing each
    step with the one before, and the first with 0; as snnTorch's `spikegen.delta(off_spike=True)`.
    Without `off_spikes` what gets darker is silent.

    With `num_steps`, `data [B, *F]` is a still picture, in which nothing changes; it is faded in
    from black, `x * (t + 1) / T` at step t, and fires whenever that has risen by another
    `threshold` since the last spike, as the pixels of an event camera do, but once a step at most.
    So intensity x fires `floor(x / threshold)` times, evenly spread, where T allows.

    Within a millionth of a threshold counts as reached. No gradient flows.

    Errors: `TypeError`, `ValueError` as for `constant`; `ValueError` for a threshold that is not
    positive and finite.
    """
    steps = check(data, 1 if num_steps is None else num_steps)
    check_number("delta", "threshold", threshold)
    if not 0 < threshold < math.inf:
        raise ValueError(
            f"delta got threshold={threshold}; it must be positive and finite: 0.1 is the default"
        )
    check_finite("delta", data)
    near = threshold * (1 - 1e-6)
    values = working(data)
    if num_steps is None:
        change = torch.diff(values, dim=0, prepend=torch.zeros_like(values[:1]))
        spikes = (change >= near).to(data.dtype)
        return spikes - (change <= -near).to(data.dtype) if off_spikes else spikes
    # Levels passed by each step: one product, rounded once, so every device counts the same ones.
    fade = [step / steps / near for step in range(steps + 1)]
    table = numbers(fade, values.dtype, data.device)
    levels = (values * table.view((-1,) + (1,) * data.ndim)).trunc_()
    change = torch.diff(levels, dim=0).clamp_(-1.0 if off_spikes else 0.0, 1.0)
    return change.to(data.dtype)


def phase(data: Tensor, num_steps: int, *, period: int = 8, weighted: bool = False) -> Tensor:
    """Fire the intensity's binary digits, the highest first, again and again.

    Shapes: `data [B, *F]` in [0, 1] to spikes `[T, B, *F]`. At phase k of every `period` (in steps;
    also the number of digits) a pixel fires if its digit of worth `2^-(k + 1)` is 1, so an early
    spike says more than a late one. The digits are those of `floor(x * 2^period)`, at most
    `2^period - 1`. `weighted` sends each spike with its worth instead of 1; a whole period then
    sums to the intensity, rounded down. No gradient flows.

    Errors: `TypeError`, `ValueError` as for `latency`; `ValueError` for a period that is not a
    whole number from 1 to 16.
    """
    num_steps = check(data, num_steps)
    if not is_whole(period) or not 1 <= period <= 16:
        raise ValueError(
            f"phase got period={period!r}; it must be a whole number of steps from 1 to 16: 8 is "
            "the default, a step a binary digit"
        )
    check_range("phase", data)
    period = int(period)
    top = 2**period - 1
    digits = (working(data) * 2**period).floor_().clamp_(max=top).to(torch.int32)
    phases = torch.arange(num_steps, device=data.device) % period
    places = (period - 1 - phases).to(torch.int32).view((-1,) + (1,) * data.ndim)
    spikes = torch.bitwise_right_shift(digits, places).remainder_(2).to(data.dtype)
    if weighted:
        worth = torch.exp2(-(phases + 1.0)).to(data.dtype)
        spikes *= worth.view(places.shape)
    return spikes


def burst(
    data: Tensor,
    num_steps: int,
    *,
    max_spikes: int = 5,
    min_interval: int = 1,
    max_interval: int | None = None,
) -> Tensor:
    """Fire a burst from step 0 on: the brighter, the more spikes and the closer together.

    Shapes: `data [B, *F]` in [0, 1] to spikes (0 or 1) `[T, B, *F]`. Intensity x fires
    `ceil(max_spikes * x)` spikes, `ceil(max_interval - (max_interval - min_interval) * x)` steps
    apart; 0 fires none. By default `max_interval` is the largest with which a burst of
    `max_spikes` still fits into T (at least `min_interval`); spikes beyond T are lost. Up to a
    millionth above a whole number is rounded down to it. No gradient flows.

    Errors: `TypeError`, `ValueError` as for `latency`; `ValueError` for a `max_spikes` or interval
    that is not a whole number of at least 1, or a `max_interval` below `min_interval`.
    """
    num_steps = check(data, num_steps)
    given = {"max_spikes": max_spikes, "min_interval": min_interval}
    given |= {} if max_interval is None else {"max_interval": max_interval}
    for name, value in given.items():
        if not is_whole(value) or value < 1:
            raise ValueError(f"burst got {name}={value!r}; it must be a whole number, 1 or more")
    spikes, shortest = int(max_spikes), int(min_interval)
    fitting = max(shortest, (num_steps - 1) // max(1, spikes - 1))
    longest = fitting if max_interval is None else int(max_interval)
    if longest < shortest:
        raise ValueError(
            f"burst got max_interval={longest} below min_interval={shortest}: swap them"
        )
    check_range("burst", data)
    intensity = working(data).contiguous()
    count, interval = (
        torch.bucketize(
            intensity,
            numbers(table, intensity.dtype, data.device),
            out_int32=True,
            right=right,
        )
        for table, right in zip(_bursts(num_steps, spikes, shortest, longest), (False, True))
    )
    interval = min(longest, num_steps) - interval
    step = torch.arange(num_steps, dtype=torch.int32, device=data.device)
    step = step.view((-1,) + (1,) * data.ndim)
    return ((step % interval == 0) & (step // interval < count)).to(data.dtype)


def _bursts(
    num_steps: int, spikes: int, shortest: int, longest: int
) -> tuple[list[float], list[float]]:
    """Return two tables of intensities, ascending, at which a burst changes.

    Above each intensity of the first table it has one more spike; from each of the second on its
    interval is one step shorter. They solve the formulas of `burst` for x. Left out is what makes
    no difference within T: more than T spikes, and intervals of more than T steps.
    """
    more = [(k + 1e-6) / spikes for k in range(min(spikes, num_steps))]
    first = max(1, longest - num_steps + 1)
    span = longest - shortest
    return more, [(k - 1e-6) / span for k in range(first, span + 1)]


def _edges(num_steps: int, curve: Curve, threshold: float, tau: float | None) -> list[float]:
    """Return the T - 1 intensities, ascending, at which the rounded latency falls by one step.

    Each solves `time(x) = step + 1/2` for x, from the last step to the first.
    """
    last = num_steps - 1
    times = [step + 0.5 for step in reversed(range(last))]
    if curve == "linear":
        return [1 - (1 - threshold) * time / last for time in times]
    window = last if tau is None else tau
    return [threshold / (1 - (1 - threshold) * math.exp(-time / window)) for time in times]


def _coder(kind: str, data: Tensor, num_steps: int) -> Any:
    """Return a backend's module that makes the spikes in one pass; None if there is none."""
    # Under these a size may not be a number, and a tensor may stand for several.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if num_steps * data.numel() < LEAST_COMPILED:
        return None
    from neurospike.backend.dispatch import coder

    return coder(kind, data)
