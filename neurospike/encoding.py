"""Turn intensities into currents or spikes over time.

A spiking network sees a sequence, a picture is one frame; an encoder says how the one
becomes the other. Every function takes `data [B, *F]` (floating point, intensities in
[0, 1]) and `num_steps` (T), and returns `[T, B, *F]` in the data's dtype and on its device.
Time is counted in steps from 0. None of them loops over T in Python.

Half-precision data are encoded in float32 (float64 in float64), and only the result is
converted back, so a float16 picture gets the same code as the same values in float32.
Every spike is exactly 0 or 1, which all these dtypes hold.

Sources: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep
Learning", Proc. IEEE 111(9), 2023, section III (rate and latency codes, the RC time); S. Thorpe,
A. Delorme, R. van Rullen, "Spike-based strategies for rapid processing", Neural Networks 14,
2001 (one spike, the stronger the earlier); B. Rueckauer et al., Front. Neurosci. 11:682, 2017
(a constant analog current in place of input spikes).
"""

import math
from typing import Literal

import torch
from torch import Tensor

Curve = Literal["linear", "logarithmic"]
Subthreshold = Literal["silent", "last"]


def constant(data: Tensor, num_steps: int) -> Tensor:
    """Present the same current at every step (direct, or analog, coding).

    Shapes: `data [B, *F]`, any real intensities, to `[T, B, *F]`. The result is an expanded
    view: its stride over T is 0 and nothing is copied, so write into a `.clone()` only.
    Gradients flow through.

    Errors: `TypeError` for data that are not floating point or a `num_steps` that is no int;
    `ValueError` for data without a dimension or `num_steps < 1`.
    """
    _check(data, num_steps)
    return data.unsqueeze(0).expand(num_steps, *data.shape)


def rate(
    data: Tensor,
    num_steps: int,
    *,
    gain: float = 1.0,
    offset: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fire at each step independently, with probability `clamp(gain * data + offset, 0, 1)`.

    Shapes: `data [B, *F]` to spikes (0 or 1) `[T, B, *F]`. A probability of 0 never fires, of
    1 fires at every step. `gain` and `offset` (no unit; 1 and 0 take the intensity as the
    probability) raise or lower the mean rate. The draws are float32 uniforms (float64 for
    float64 data) made on the data's device, from `generator` or from torch's global state:
    the same generator state gives the same spikes on the same kind of device. No gradient
    flows. The NaN check makes a CUDA device wait once.

    Errors: `TypeError`, `ValueError` as for `constant`; `ValueError` for a generator of another
    device than the data's, or when a probability is NaN.
    """
    _check(data, num_steps)
    if generator is not None and not _same_device(generator.device, data.device):
        raise ValueError(
            f"rate got a generator on {generator.device} for data on {data.device}; the draws are "
            f"made where the data are: use torch.Generator(device={str(data.device)!r})"
        )
    probability = _working(data) * gain + offset
    if bool(probability.isnan().any()):
        raise ValueError(
            f"rate got NaN from data with gain={gain}, offset={offset}; a firing probability must "
            "be a number: remove NaN and infinity from the data"
        )
    draws = torch.rand(
        (num_steps, *data.shape),
        dtype=probability.dtype,
        device=data.device,
        generator=generator,
    )
    # Draws lie in [0, 1), so comparing is clamping: 0 and less never fire, 1 and more always.
    # In place: at [T, B, *F] a boolean beside the draws would be the largest temporary.
    return draws.lt_(probability).to(data.dtype)


def latency(
    data: Tensor,
    num_steps: int,
    *,
    curve: Curve = "linear",
    threshold: float = 0.01,
    subthreshold: Subthreshold = "silent",
    tau: float | None = None,
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
    instead. No gradient flows. The range check makes a CUDA device wait once.

    Errors: `TypeError`, `ValueError` as for `constant`; `ValueError` for intensities outside
    [0, 1] or NaN, an unknown `curve` or `subthreshold`, a threshold outside [0, 1) (linear) or
    (0, 1) (logarithmic), a `tau` that is not positive and finite or is given with `"linear"`.
    """
    _check(data, num_steps)
    _check_latency(curve, threshold, subthreshold, tau)
    if not bool(((data >= 0) & (data <= 1)).all()):
        raise ValueError(
            f"latency got intensities from {float(data.min())} to {float(data.max())}; they must "
            "lie in [0, 1]: scale the data, or use data.clamp(0, 1)"
        )
    intensity = _working(data).contiguous()
    edges = torch.tensor(
        _edges(num_steps, curve, threshold, tau), dtype=intensity.dtype, device=data.device
    )
    # Comparing with a table, not computing each time, makes the code independent of how a
    # device or a vectorised loop rounds its logarithm.
    step = num_steps - 1 - torch.bucketize(intensity, edges, right=True)
    fires = intensity > threshold
    if subthreshold == "last":
        step = torch.where(fires, step, num_steps - 1)
        fires = torch.ones_like(fires)
    spikes = data.new_zeros((num_steps, *data.shape))
    return spikes.scatter_(0, step.unsqueeze(0), fires.unsqueeze(0).to(data.dtype))


def _edges(num_steps: int, curve: Curve, threshold: float, tau: float | None) -> list[float]:
    """The T - 1 intensities, ascending, at which the rounded latency goes down by one step.

    Each solves `time(x) = step + 1/2` for x, from the last step to the first.
    """
    last = num_steps - 1
    times = [step + 0.5 for step in reversed(range(last))]
    if curve == "linear":
        return [1 - (1 - threshold) * time / last for time in times]
    window = last if tau is None else tau
    return [threshold / (1 - (1 - threshold) * math.exp(-time / window)) for time in times]


def _working(data: Tensor) -> Tensor:
    return data.detach().to(torch.float64 if data.dtype == torch.float64 else torch.float32)


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (
        one.index is None or other.index is None or one.index == other.index
    )


def _check(data: Tensor, num_steps: int) -> None:
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor, got {type(data).__name__}: use torch.as_tensor")
    if not data.is_floating_point():
        raise TypeError(
            f"data must be floating-point intensities in [0, 1], got {data.dtype}: for pictures of "
            "0..255 divide by 255, as in data / 255"
        )
    if data.ndim == 0:
        raise ValueError("data must be [B, *F], got a tensor without dimensions: use data[None]")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int):
        raise TypeError(f"num_steps must be an int, got {num_steps!r}: use int(...)")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}: ask for 1 or more steps")


def _check_latency(curve: str, threshold: float, subthreshold: str, tau: float | None) -> None:
    if curve not in ("linear", "logarithmic"):
        raise ValueError(f"latency got curve={curve!r}; use 'linear' or 'logarithmic'")
    if subthreshold not in ("silent", "last"):
        raise ValueError(f"latency got subthreshold={subthreshold!r}; use 'silent' or 'last'")
    if not 0 <= threshold < 1 or (threshold == 0 and curve == "logarithmic"):
        wanted = "[0, 1)" if curve == "linear" else "(0, 1)"
        raise ValueError(
            f"latency got threshold={threshold}; the {curve} curve needs one in {wanted}: "
            "0.01 is the default"
        )
    if tau is not None and curve == "linear":
        raise ValueError(
            f"latency got tau={tau} with curve='linear', which has no time constant: leave tau "
            "out, or use curve='logarithmic'"
        )
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"latency got tau={tau}; it must be positive and finite, in steps")
