"""Spiking layers over whole sequences: `lif`, `LIF` and the readout `LI`.

Like `torch.nn.RNN` they take `[T, B, *F]` and return the sequence and the last state. They know
no backend: which code runs the time loop changes the speed and nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import dispatch, ops, rule
from .arguments import check_current, check_mem, flat_parameter, parameters_of, window_of
from .surrogate import Surrogate, resolve


class _Outputs(NamedTuple):
    spikes: Tensor
    mem: Tensor
    trace: Tensor


def lif(
    current: Tensor,
    mem: Tensor | None = None,
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    surrogate: str | Surrogate | Callable[..., Any] = "atan",
    reset: str = "subtract",
    reset_delay: bool = True,
    detach_reset: bool = False,
    neuron: rule.Neuron | None = None,
    grad_window: float | None = None,
    num_steps: int | None = None,
    return_trace: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Run leaky integrate-and-fire neurons over a whole sequence.

    The equations are in `neurospike.formulas`; with the default reset they are those of snnTorch's
    `Leaky` (Eshraghian et al. 2023, arXiv:2109.12894), bit for bit in float32.

    Args:
        current: input current `[T, B, *F]`; with `num_steps` `[B, *F]`, held constant and read
            once. float16, bfloat16, float32 or float64.
        mem: membrane `[B, *F]` to carry on from, float64 if the current is, else float32. Default:
            zeros. Its reset is due at the first step if it lies above the threshold.
        beta: decay a step, clamped to [0, 1]; a number or a tensor that broadcasts against `F`.
        threshold: a neuron fires when its membrane is strictly greater; number or tensor likewise.
        surrogate: derivative of the spike in the backward pass: a name, an object of
            `neurospike.surrogate`, or a scalar function of your own.
        reset: after a spike `"subtract"` the threshold, go to `"zero"`, or `"none"`.
        reset_delay: reset at the step after the spike (True) or at once (False).
        detach_reset: let no gradient flow through an immediate reset.
        neuron: a `neurospike.Neuron`, another recurrence, in place of all that `reset` says.
        grad_window: let the spike's gradient flow only where the membrane lies within this distance
            of the threshold (Perez-Nieves and Goodman 2021, arXiv:2105.08810). Default: everywhere.
        num_steps: number of steps `T >= 0` of a constant current.
        return_trace: also return the membrane at every step.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.

    Returns:
        `(spikes [T, B, *F], mem [B, *F])`, and with `return_trace` `trace [T, B, *F]` as a third.
        Spikes are 0 or 1 in the current's number format, membranes in the state's. Gradients flow
        to `current`, `mem`, `beta` and `threshold`.

    Raises:
        TypeError: a tensor of integers, complex numbers or another unsupported format.
        ValueError: a wrong shape, device or option.
        BackendError: the backend named cannot run here; every reason is listed.
    """
    chosen = resolve(surrogate)
    window = window_of(grad_window)
    key = rule.key_of(
        reset, bool(reset_delay), bool(detach_reset), chosen.function, neuron, bool(window)
    )
    out = _run(
        current,
        mem,
        beta,
        threshold,
        key,
        chosen.parameters + window,
        num_steps,
        True,
        return_trace,
        backend,
    )
    return tuple(out) if return_trace else (out.spikes, out.mem)


class _Neuron(nn.Module):
    """Decay and threshold as buffers or parameters: what every layer here keeps."""

    carries_state = True  # for `Sequential`: called as layer(x, state), returns (output, state)
    segment: int | None = None  # steps after which the gradient is cut off; see `_segments`
    beta: Tensor

    def _keep(self, name: str, value: float | Tensor, learn: bool) -> None:
        try:
            tensor = torch.as_tensor(value).detach().clone()
            if tensor.is_complex() or tensor.dtype == torch.bool:
                raise TypeError
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"{name} must be a number or a tensor of numbers, got {value!r}"
            ) from None
        if not tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


class LIF(_Neuron):
    """Leaky integrate-and-fire layer; see `lif` for the arguments, shapes and equations.

    `beta` and `threshold` are in the state dict; `learn_beta` and `learn_threshold` make them
    parameters (beta is clamped to [0, 1] where it is used, its gradient is 0 outside).

        lif = LIF(beta=0.95)
        spikes, mem = lif(current)                 # [T, B, *F] -> [T, B, *F], [B, *F]
        spikes, mem = lif(more_current, mem)       # carry on
    """

    threshold: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        surrogate: str | Surrogate | Callable[..., Any] = "atan",
        reset: str = "subtract",
        reset_delay: bool = True,
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        backend: str = "auto",
        neuron: rule.Neuron | None = None,
        grad_window: float | None = None,
    ) -> None:
        super().__init__()
        self._keep("beta", beta, learn_beta)
        self._keep("threshold", threshold, learn_threshold)
        self.surrogate = resolve(surrogate)
        self.reset, self.reset_delay, self.detach_reset = reset, reset_delay, detach_reset
        self.neuron, self.grad_window = neuron, grad_window
        self._follow()
        dispatch.check_name(backend)
        self.backend = backend

    @classmethod
    def from_snntorch(
        cls,
        leaky: nn.Module,
        surrogate: str | Surrogate | Callable[..., Any] | None = None,
        backend: str = "auto",
    ) -> "LIF":
        """Return a layer that computes over a whole sequence what a `snntorch.Leaky` steps.

        Args:
            leaky: its decay, threshold, reset and surrogate are taken; parameters that it learns
                are shared, not copied. `init_hidden` and `output` only say how it is called.
            surrogate: in place of its own.
            backend: see `LIF`.

        Raises:
            TypeError: no `snntorch.Leaky`.
            ValueError: an option that this layer does not have, which is named: inhibition,
                quantised state, graded spikes, a spike_grad that is not snnTorch's, or an immediate
                reset by subtraction, which differs above the threshold.
        """
        from .conversion import from_leaky

        return from_leaky(cls, leaky, surrogate, backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A process that unpickles the layer has not seen a surrogate of the user's own.
        self._follow()

    def _follow(self) -> None:
        window = window_of(getattr(self, "grad_window", None))  # layers pickled before had none
        self.rule = rule.key_of(
            self.reset,
            bool(self.reset_delay),
            bool(self.detach_reset),
            self.surrogate.function,
            self.neuron,
            bool(window),
        )
        self.numbers = self.surrogate.parameters + window

    def forward(
        self,
        current: Tensor,
        mem: Tensor | None = None,
        *,
        num_steps: int | None = None,
        return_trace: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return `(spikes, mem)`, and with `return_trace` `(spikes, mem, trace)`; see `lif`."""
        out = _segments(
            self.segment,
            current,
            mem,
            self.beta,
            self.threshold,
            self.rule,
            self.numbers,
            num_steps,
            True,
            return_trace,
            self.backend,
        )
        return tuple(out) if return_trace else (out.spikes, out.mem)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        own = f"neuron={self.neuron.charge.__name__}, " if self.neuron is not None else ""
        reset = f"reset={self.reset!r}, reset_delay={self.reset_delay}, "
        window = f"grad_window={self.grad_window}, " if self.grad_window is not None else ""
        return (
            f"beta={_show(self.beta)}, threshold={_show(self.threshold)}, "
            f"surrogate={self.surrogate.name}{self.surrogate.parameters}, {own or reset}{window}"
            f"backend={self.backend!r}"
        )


class LI(_Neuron):
    """Leaky integrator, a readout that never spikes: `mem_t = beta * mem_{t-1} + current_t`.

        li = LI(beta=0.95)
        trace, mem = li(current)                   # [T, B, *F] -> [T, B, *F], [B, *F]

    Arguments, number formats and errors are those of `lif`; the trace is in the state's format.
    """

    def __init__(
        self, beta: float | Tensor, learn_beta: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        self._keep("beta", beta, learn_beta)
        self.rule = rule.key_of("none", True, False, resolve("straight_through").function)
        dispatch.check_name(backend)
        self.backend = backend

    def forward(
        self, current: Tensor, mem: Tensor | None = None, *, num_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `(trace [T, B, *F], mem [B, *F])`."""
        out = _segments(
            self.segment,
            current,
            mem,
            self.beta,
            1.0,
            self.rule,
            (),
            num_steps,
            False,
            True,
            self.backend,
        )
        return out.trace, out.mem

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"beta={_show(self.beta)}, backend={self.backend!r}"


def _segments(
    segment: int | None,
    current: Tensor,
    mem: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    key: str,
    parameters: tuple[float, ...],
    num_steps: int | None,
    *options: Any,
) -> _Outputs:
    """Run `segment` steps at a time, carrying the membrane on without its gradient.

    That is truncated backpropagation through time (Williams and Peng, Neural Computation 2(4),
    1990). Time enters a network of such layers through their membranes alone, so cutting these is
    cutting the whole network. None, or without gradients: all steps at once, the same values.
    """
    if segment is None or not torch.is_grad_enabled():
        return _run(current, mem, beta, threshold, key, parameters, num_steps, *options)
    steps = check_current(current, num_steps)
    total = steps if steps >= 0 else current.shape[0]
    if segment >= total:
        return _run(current, mem, beta, threshold, key, parameters, num_steps, *options)
    parts = []
    for start in range(0, total, segment):
        length = min(segment, total - start)
        given = current if steps >= 0 else current[start : start + length]
        constant = length if steps >= 0 else None
        parts.append(_run(given, mem, beta, threshold, key, parameters, constant, *options))
        mem = parts[-1].mem.detach()
    spikes, mems, traces = zip(*parts, strict=True)
    return _Outputs(torch.cat(spikes), mems[-1], torch.cat(traces))


def _run(
    current: Tensor,
    mem: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    key: str,
    parameters: tuple[float, ...],
    num_steps: int | None,
    want_spikes: bool,
    want_trace: bool,
    backend: str,
) -> _Outputs:
    """Check the arguments, choose the backend and call it."""
    steps = check_current(current, num_steps)
    shape = ops.step_shape(current, steps)
    state = ops.state_dtype(current.dtype)
    if mem is not None:
        check_mem(mem, current, shape, state)
    beta, threshold = parameters_of(beta, threshold, current, shape, state)
    row = dispatch.choose(backend, current.device)
    if row.fused:
        flat = (flat_parameter(beta, shape), flat_parameter(threshold, shape))
        return _Outputs(
            *ops.fused_lif(
                row.name, current, mem, *flat, key, parameters, steps, want_spikes, want_trace
            )
        )
    whole = current.to(state)
    if steps >= 0:
        whole = whole.expand(steps, *shape)
    start = whole.new_zeros(shape) if mem is None else mem
    lif_of = dispatch.load(row.module).lif
    spikes, mem, trace = lif_of(whole, start, beta, threshold, rule.from_key(key), parameters)
    return _Outputs(spikes.to(current.dtype), mem, trace)


def _show(value: Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
