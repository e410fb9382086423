"""`Spiking`: a layer of neurons that are written as one scalar function, over whole sequences.

The function is recorded when the layer is made (`neurospike.neurons`), its gradient is derived, and
every backend runs it fused over time: one path for the neurons of the library and for your own.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.backend import dispatch
from neurospike.neurons.record import record
from neurospike.neurons.rule import rule_of
from neurospike.neurons.surrogate import Surrogate, resolve
from neurospike.ops.arguments import check_current, check_flag, window_of
from neurospike.ops.bounds import check_beta_gradient, clamped, lies_between
from neurospike.ops.formats import state_dtype, step_shape
from neurospike.ops.time_loop import run
from neurospike.ops.wants import SPIKES, TRACES

from .lif import _Neuron, _show
from .other_names import OF_SPIKING, OTHER_NAMES, instead
from .time_axis import over_time

Bounds = Mapping[str, tuple[float, float]]
UNIT = (0.0, 1.0)


class Spiking(_Neuron):
    """Neurons of your own over whole sequences `[T, B, *F]`, from one scalar function.

        def cuba_lif(current, syn, mem, alpha, beta, threshold):
            syn = alpha * syn + current
            mem = beta * mem + syn - heaviside(mem - threshold) * threshold
            return fire(mem - threshold), syn, mem

        layer = ns.Spiking(cuba_lif, alpha=0.8, beta=0.95, threshold=1.0, learn=("alpha",))
        spikes, (syn, mem) = layer(current)                # [T, B, *F] -> [T, B, *F], each [B, *F]
        spikes, state = layer(more_current, (syn, mem))    # continue

    Args:
        neuron: a function of one time step, `(current, *states, *parameters)` to
            `(spike, *new_states)`. It may use arithmetic, comparison and the free names `fire` (a
            spike, with the surrogate as its derivative), `heaviside`, `detach`, `where`, `minimum`,
            `maximum`, `abs`, `exp`, `log`, `sqrt`, `tanh`, `sigmoid`, `sin` and `cos`. Numbers that
            it reads from outside keep the values they have when the layer is made.
        learn: names of the parameters to learn.
        bounds: `(lowest, highest)` value of a parameter by its name; a constant outside is refused,
            a learned value is clamped.
        bound_gradient: the gradient of a learned value at or beyond the bounds 0 and 1: `"inward"`
            stops it only where a descent step would lead further out, `"clamp"` always, as torch's
            clamp does.
        rest: value of a state before the first step by its name; 0 for all others.
        surrogate: derivative of the spike in the backward pass, see `neurospike.lif`.
        grad_window: see `neurospike.lif`.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        batch_first: take and return `[B, T, *F]`, traces too; states stay `[B, *F]`. See `LIF`.
        parameters: each parameter of the function by its name: a number, a tensor that broadcasts
            against `F`, or an `nn.Parameter`, which is shared and learned.

    The parameters are attributes by their names: `nn.Parameter` if learned, else buffers.

    Raises:
        TypeError: a function that not every backend can run (the error names the line and the
            remedy), a missing or unknown parameter.
        ValueError: a parameter that is NaN or out of its bounds.
    """

    def __init__(
        self,
        neuron: Callable[..., Any],
        *,
        learn: Iterable[str] = (),
        bounds: Bounds | None = None,
        bound_gradient: str = "inward",
        rest: Mapping[str, float] | None = None,
        surrogate: str | Surrogate | Callable[..., Any] = "atan",
        grad_window: float | None = None,
        backend: str = "auto",
        batch_first: bool = False,
        **parameters: float | Tensor,
    ) -> None:
        super().__init__()
        self.batch_first = check_flag("batch_first", batch_first)
        if not callable(neuron) or not hasattr(neuron, "__name__"):
            raise TypeError(
                "neuron must be a function (current, *states, *parameters) to (spike, *new_states),"
                f" got {neuron!r}"
            )
        chosen = resolve(surrogate)
        self.name = neuron.__name__
        self.surrogate, self.grad_window = chosen, grad_window
        self.rule = rule_of(record(neuron), chosen.text, chosen.parameters, window_of(grad_window))
        self.bounds, self.bound_gradient = dict(bounds or {}), bound_gradient
        check_beta_gradient(bound_gradient, "bound_gradient")
        self.rest = self._checked_rest(rest or {})
        dispatch.check_name(backend)
        self.backend = backend
        self._keep_all(parameters, {learn} if isinstance(learn, str) else set(learn))

    @over_time
    def forward(
        self,
        current: Tensor,
        state: Sequence[Tensor] | None = None,
        *,
        num_steps: int | None = None,
        return_trace: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        """Return `(spikes, state)`, and with `return_trace` `(spikes, state, trace)`.

        Args:
            current: `[T, B, *F]`; with `num_steps` `[B, *F]`, the same at every step. float16,
                bfloat16, float32 or float64.
            state: what an earlier call returned, one tensor `[B, *F]` for each of `states`, float64
                if the current is, else float32. Default: the values of `rest`, else 0.
            num_steps: number of steps `T >= 0` of a constant current.
            return_trace: also return each state at every step, a tuple of `[T, B, *F]`.
            lengths: how many of the T steps belong to each sample, `[B]`; see `neurospike.lif`.

        Returns:
            Spikes `[T, B, *F]`, 0 or 1 in the current's number format, and the states after the
            last step, a tuple of `[B, *F]`.

        Raises:
            TypeError, ValueError: a tensor of the wrong kind, shape, number format or device, or
                the wrong number of states.
            BackendError: the backend named cannot run here; every reason is listed.
        """
        spikes, *rest = run(
            self.rule,
            current,
            self._start(state, current, num_steps),
            self.parameter_values(),
            num_steps,
            SPIKES | (TRACES if return_trace else 0) | self._layout,
            self.backend,
            self.segment,
            lengths,
        )
        many = len(self.states)
        states = tuple(rest[:many])
        return (spikes, states, tuple(rest[many:])) if return_trace else (spikes, states)

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states."""
        return self.rule.states

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the function's parameters."""
        return self.rule.parameters

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return the values of the function's parameters, in its order, within their bounds."""
        return tuple(self._bounded(name) for name in self.parameter_names)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        shown = [f"{name}={_show(getattr(self, name))}" for name in self._names()]
        window = [] if self.grad_window is None else [f"grad_window={self.grad_window}"]
        rule = f"surrogate={self.surrogate}"
        end = f"backend={self.backend!r}{self._axes()}"
        return ", ".join([self.name, *shown, rule, *window, end])

    def _names(self) -> tuple[str, ...]:
        """Names of the parameters kept; a subclass may compute the function's from others."""
        return self.parameter_names

    def _bounded(self, name: str) -> Tensor:
        constant = self._constant(name)
        if constant is not None:
            return constant
        value: Tensor = getattr(self, name)
        limits = self.bounds.get(name)
        if limits is None or lies_between(value, *limits):
            return value
        return clamped(value, self.bound_gradient) if limits == UNIT else value.clamp(*limits)

    def _checked_rest(self, rest: Mapping[str, float]) -> dict[str, float]:
        unknown = sorted(set(rest) - set(self.states))
        if unknown:
            raise TypeError(
                f"rest names {', '.join(unknown)}, which is no state of {self.name}; its states "
                f"are {', '.join(self.states)}"
            )
        return {name: float(value) for name, value in rest.items() if value}

    def _keep_all(self, values: dict[str, Any], learn: set[str]) -> None:
        wanted = self._names()
        for what, found in (("parameters", set(values)), ("learn", learn)):
            unknown = sorted(found - set(wanted))
            if unknown and what == "parameters" and unknown[0] in OTHER_NAMES:
                given = values[unknown[0]]
                raise TypeError(
                    f"{self.name} has no argument {unknown[0]}=; "
                    + instead(unknown[0], given, [*wanted, *OF_SPIKING])
                )
            if unknown:
                raise TypeError(
                    f"{what} names {', '.join(unknown)}, which {self.name} does not take; its "
                    f"parameters are {', '.join(wanted) or 'none'}"
                )
        missing = [name for name in wanted if name not in values]
        if missing:
            raise TypeError(
                f"{self.name} needs a value for {', '.join(missing)}: give "
                + ", ".join(f"{name}=..." for name in missing)
            )
        for name in wanted:
            if hasattr(self, name):
                raise TypeError(
                    f"the neuron {self.name!r} has a parameter {name!r}, which is an attribute of "
                    "every layer; give it another name"
                )
            self._keep(name, values[name], name in learn)
            kept = getattr(self, name).detach()
            if not isinstance(values[name], nn.Parameter) and not kept.is_meta:
                self._check_value(name, kept)

    def _check_value(self, name: str, value: Tensor) -> None:
        low, high = self.bounds.get(name, (-math.inf, math.inf))
        if bool(((value < low) | (value > high) | value.isnan()).any()):
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {shown_range(value)}")

    def _check_constants(self) -> None:
        for name in self._names():
            value = getattr(self, name)
            if not isinstance(value, nn.Parameter) and not value.is_meta:
                self._check_value(name, value)

    def rest_of(self, current: Tensor, num_steps: int | None = None) -> Sequence[Tensor]:
        """Return the states before the first step, `[B, *F]` each; empty if all are zero."""
        if not self.rest:
            return ()
        steps = check_current(current, num_steps)
        shape, format_ = step_shape(current, steps), state_dtype(current.dtype)
        full = [self.rest.get(name, 0.0) for name in self.states]
        return tuple(
            torch.full(shape, value, dtype=format_, device=current.device) for value in full
        )

    def _start(
        self, given: Sequence[Tensor] | None, current: Tensor, num_steps: int | None
    ) -> Sequence[Tensor]:
        """Return the states to start from; empty if all are zero."""
        if given is None:
            return self.rest_of(current, num_steps)
        many = len(self.states)
        if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != many:
            got = type(given).__name__ + (
                f" of {len(given)}" if isinstance(given, Sequence) else ""
            )
            raise TypeError(
                f"the state of {self.name} is a tuple ({', '.join(self.states)}) of {many}, got "
                f"{got}"
            )
        return tuple(given)


def shown_range(value: Tensor) -> str:
    """Return a number, or the range of several, as errors show it."""
    if value.numel() == 1:
        return f"{value.item():g}"
    return f"values from {float(value.min()):g} to {float(value.max()):g}"
