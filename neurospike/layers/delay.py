"""`Delay`: a layer that delays each channel of a sequence by its own, learned number of steps.

A weight decides how much of a spike arrives, a delay decides when. Spikes that leave at different
times and arrive together are a coincidence, which a single neuron can detect; with delays a layer
can tell apart sequences of the same spikes in a different order.
"""

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neurospike.backend import dispatch
from neurospike.ops.arguments import check_count, check_current, check_flag, check_lengths, fitted
from neurospike.ops.bounds import clamped
from neurospike.ops.delay import delay
from neurospike.ops.formats import state_dtype

from .lif import _Neuron, _show, _values
from .other_names import explain_other_names
from .time_axis import over_time

KERNELS = ("linear", "gaussian")


class Delay(_Neuron):
    """Delay each channel by its own number of steps, which is learned and need not be whole.

        delay = ns.Delay(128, max_delay=16)
        late, state = delay(current)               # [T, B, 128] -> [T, B, 128], [16, B, 128]
        late, state = delay(more_current, state)   # continue
        net = ns.Sequential(nn.Linear(40, 128), ns.Delay(128, 16), ns.LIF(0.9))

    With d the delay of a channel, from 0 to `max_delay` steps, and x its input, which is 0 before
    the first step, `"linear"` interpolates between two steps,

        y_t = (1 - f) x_{t-k} + f x_{t-k-1},       d = k + f, k a whole number, 0 <= f < 1,

    so the gradient of d compares only the two steps next to it. `"gaussian"` lets d move over
    longer distances: `y_t` is the mean of `x_t` to `x_{t-max_delay}`, the step l steps ago having
    the weight `exp(-(l - d)^2 / (2 sigma^2))` before they are normalised. Hammouamri,
    Khalfaoui-Hassani and Masquelier (2023, arXiv:2306.17670) begin with half of `max_delay` for
    sigma, and shrink it to 0.5 while the network learns:

        delay = ns.Delay(128, 16, kernel="gaussian", sigma=8.0)
        delay.sigma.mul_(0.95).clamp_(min=0.5)     # after each epoch
        delay.kernel = "linear"                    # after training

    The input is read once whatever the kernel. Per step and channel, `"linear"` costs two
    multiplications forward and four backward; `"gaussian"` costs `max_delay + 1` forward and twice
    as many backward.

    Args:
        size: shape of the delays, an integer or a tuple: the features `F`, or a shape that
            broadcasts against them, such as `(12, 1, 1)` for one delay per map of a convolution, or
            `()` for a single delay.
        max_delay: the longest delay, in steps, 1 or more.
        delay: in steps from 0 to `max_delay`: a number, or a tensor of the shape `size`; an
            `nn.Parameter` is shared and learned. Default: drawn uniformly for each channel.
        learn: make the delays a parameter. Learned delays may leave their bounds; they are clamped
            where they are used, and a gradient that leads back inside is let through.
        kernel: `"linear"` or `"gaussian"`; an attribute that may be changed, to `"gaussian"` only
            if the layer has a sigma.
        sigma: width of the Gaussian, in steps, above 0. A buffer in the state dict.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        batch_first: take and return `[B, T, *F]`; the state stays `[max_delay, B, *F]`. See `LIF`.

    Raises:
        TypeError: a size, `max_delay`, delay or sigma that is not a number.
        ValueError: a delay that is NaN or out of range, of the wrong shape; `max_delay` below 1; an
            unknown kernel; sigma not above 0.
    """

    delay: Tensor
    sigma: Tensor

    @explain_other_names
    def __init__(
        self,
        size: int | Sequence[int],
        max_delay: int,
        delay: float | Tensor | None = None,
        learn: bool = True,
        kernel: str = "linear",
        sigma: float | None = None,
        backend: str = "auto",
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first = check_flag("batch_first", batch_first)
        self.size = _size_of(size)
        self.max_delay = check_count("max_delay", max_delay)
        self.kernel = kernel
        self._check_kernel()
        self._keep("delay", self._begin(delay), check_flag("learn", learn))
        if not isinstance(delay, nn.Parameter):
            self._check_delay()
        if kernel == "gaussian" or sigma is not None:
            self._keep("sigma", max(0.5, self.max_delay / 2) if sigma is None else sigma)
            self._check_sigma()
        dispatch.check_name(backend)
        self.backend = backend

    @over_time
    def forward(
        self,
        current: Tensor,
        state: Tensor | None = None,
        *,
        num_steps: int | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `(late [T, B, *F], state [max_delay, B, *F])`, both in the current's format.

        Args:
            current: spikes or currents `[T, B, *F]`; with `num_steps` `[B, *F]`, the same at every
                step. float16, bfloat16, float32 or float64; 16-bit formats are summed in float32.
            state: what an earlier call returned, the last `max_delay` steps before these. Default:
                zeros. Gradients flow to it, too.
            num_steps: number of steps `T >= 0` of a constant current.
            lengths: integers `[B]`, how many of the T steps belong to each sample; see
                `neurospike.lif`. After them the output is 0, and the input there has no effect on
                the state or on gradients.

        Raises:
            TypeError: a tensor of integers, complex numbers or another unsupported format.
            ValueError: a wrong shape or device, lengths out of range.
            BackendError: the backend named cannot run here; every reason is listed.
        """
        self._check_kernel()
        steps = check_current(current, num_steps)
        if lengths is not None:
            lengths = check_lengths(lengths, current, steps)
        if steps >= 0:
            current = current.expand(steps, *current.shape)
        self._check_state(state, current)
        lag, weights = self._taps(current)
        row = dispatch.choose(self.backend, current.device)
        late = delay(row, current, state, lag, weights, lengths, self.max_delay)
        return late, _last(current, state, self.max_delay, lengths)

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    def _taps(self, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return each channel's lag `[P]`, the steps to its first tap, and weights `[taps, P]`."""
        features = current.shape[2:]
        within = clamped(self.delay, "inward", float(self.max_delay))
        d = fitted("delay", within, current, current.shape[1:], state_dtype(current.dtype))
        d = (d.reshape(()) if d.numel() == 1 else d).expand(features).reshape(-1)
        if self.kernel == "gaussian":
            if not hasattr(self, "sigma"):
                raise ValueError(
                    "this Delay was made without a sigma, which kernel='gaussian' needs; give one "
                    "when it is made, ns.Delay(..., sigma=8.0)"
                )
            ago = torch.arange(self.max_delay + 1, dtype=d.dtype, device=d.device).unsqueeze(1)
            # With a sigma shrunk to 0 the nearest step has the whole weight.
            distance = (ago - d) / self.sigma.to(d.dtype).clamp(min=1e-6)
            return torch.zeros_like(d, dtype=torch.int32), torch.softmax(-0.5 * distance**2, 0)
        # At max_delay the fraction is 1, so that no step further back is read.
        whole = d.detach().floor().clamp(max=self.max_delay - 1)
        # NaN converts to an arbitrary integer, which would be used as an index.
        lag = whole.to(torch.int32).clamp(0, self.max_delay - 1)
        fraction = d - whole
        return lag, torch.stack((1.0 - fraction, fraction))

    def _begin(self, delay: float | Tensor | None) -> float | Tensor:
        """Return the delays to keep: drawn, or one number for each channel, or those given."""
        if isinstance(delay, nn.Parameter):
            found: float | Tensor = delay
        elif delay is None:
            found = torch.rand(self.size) * self.max_delay
        elif isinstance(delay, Tensor):
            found = delay.expand(self.size) if delay.numel() == 1 else delay
        elif isinstance(delay, Real) and not isinstance(delay, bool):
            wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
            found = torch.full(self.size, float(delay), dtype=wide)
        else:
            found = delay  # refused by `number`, which raises TypeError
        if isinstance(found, Tensor) and found.shape != self.size:
            raise ValueError(
                f"delay must have the shape {self.size} that size says, or be one number, got the "
                f"shape {tuple(found.shape)}"
            )
        return found

    def _check_kernel(self) -> None:
        if self.kernel not in KERNELS:
            known = ", ".join(KERNELS)
            raise ValueError(f"unknown kernel {self.kernel!r}; choose one of {known}")

    def _check_constants(self) -> None:
        """Raise ValueError for constants out of range; learned delays are not checked."""
        if not isinstance(self.delay, nn.Parameter):
            self._check_delay()
        self._check_sigma()

    def _check_delay(self) -> None:
        values = _values(self.delay)
        if values.is_meta:
            return
        wrong = values[~((values >= 0.0) & (values <= self.max_delay))]
        if wrong.numel():
            raise ValueError(
                f"delay must lie between 0 and max_delay={self.max_delay} steps, got "
                f"{wrong[0].item():g}"
            )

    def _check_sigma(self) -> None:
        sigma = getattr(self, "sigma", None)
        if sigma is None or sigma.is_meta:
            return
        if sigma.numel() != 1 or not 0.0 < sigma.item() < float("inf"):
            raise ValueError(f"sigma must be a number of steps above 0, got {sigma.tolist()}")

    def _check_state(self, state: Tensor | None, current: Tensor) -> None:
        if state is None:
            return
        if not isinstance(state, Tensor):
            raise TypeError(
                "state must be the tensor that an earlier call returned, got "
                f"{type(state).__name__}"
            )
        wanted = (self.max_delay, *current.shape[1:])
        if state.shape != wanted:
            raise ValueError(
                f"state must hold the last max_delay steps, [max_delay, B, *F] = {tuple(wanted)}, "
                f"got {tuple(state.shape)}"
            )
        if state.dtype != current.dtype:
            raise TypeError(
                f"state must be {current.dtype} as the current is, got {state.dtype}; convert it "
                f"with .to({current.dtype})"
            )
        if state.device != current.device:
            raise ValueError(
                f"state is on {state.device}, current on {current.device}; move one of them"
            )

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        width = f", sigma={_show(self.sigma)}" if self.kernel == "gaussian" else ""
        return (
            f"size={self.size}, max_delay={self.max_delay}, delay={_show(self.delay)}, "
            f"learn={isinstance(self.delay, nn.Parameter)}, kernel={self.kernel!r}{width}, "
            f"backend={self.backend!r}{self._axes()}"
        )


def _last(current: Tensor, state: Tensor | None, max_delay: int, lengths: Tensor | None) -> Tensor:
    """Return the last `max_delay` steps of each sample, out of the state's and these."""
    steps, shape = current.shape[0], (max_delay, *current.shape[1:])
    # An exported program has to work for any number of steps, so it must not branch on theirs.
    exporting = torch.compiler.is_exporting()
    if lengths is None and not exporting and steps >= max_delay:
        return current[steps - max_delay :].clone()
    before = current.new_zeros(shape) if state is None else state
    if lengths is None:
        return torch.cat((before if exporting else before[steps:], current))[-max_delay:]
    if steps == 0:
        return before.clone()
    # Indexes into the state's steps followed by these.
    at = lengths + torch.arange(max_delay, device=current.device).unsqueeze(1)
    samples = torch.arange(current.shape[1], device=current.device)
    old = before[at.clamp(max=max_delay - 1), samples]
    new = current[(at - max_delay).clamp(min=0), samples]
    return torch.where((at < max_delay).view(*at.shape, *(1,) * (current.dim() - 2)), old, new)


def _size_of(size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the delays."""
    if isinstance(size, Sequence) and not isinstance(size, str):
        return tuple(check_count("size", one) for one in size)
    return (check_count("size", size),)
