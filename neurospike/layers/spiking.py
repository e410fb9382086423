"""`Spiking`: a layer of any neuron, made of one scalar function, over whole sequences.

The function is recorded when the layer is made (`neurospike.neurons`), its gradient is derived, and
every backend runs it fused over time: one path for the neurons of the library and for your own.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import dispatch
from .arguments import check_current, window_of
from .bounds import check_beta_gradient, clamped
from .layers import _Neuron
from .neurons import zoo
from .neurons.record import record
from .neurons.rule import rule_of
from .ops import state_dtype, step_shape
from .surrogate import Surrogate, resolve
from .time_loop import run
from .wants import SPIKES, TRACES

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
        spikes, state = layer(more_current, (syn, mem))    # carry on

    Args:
        neuron: `(current, *states, *parameters)` to `(spike, *new_states)`, in arithmetic,
            comparison and the free names `fire` (a spike, with the surrogate as its derivative),
            `heaviside`, `detach`, `where`, `minimum`, `maximum`, `abs`, `exp`, `log`, `sqrt`,
            `tanh`, `sigmoid`, `sin` and `cos`. Numbers that it reads from outside are taken as they
            are now.
        learn: names of the parameters to learn.
        bounds: lowest and highest value of a parameter by its name; what is learned is clamped.
        bound_gradient: at and beyond the bounds 0 and 1 `"inward"` stops only a gradient that
            leads out, `"clamp"` any, as torch's clamp does.
        rest: value of a state before the first step by its name; 0 for all others.
        surrogate: derivative of the spike in the backward pass, see `neurospike.lif`.
        grad_window: see `neurospike.lif`.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        parameters: each parameter of the function by its name: a number, or a tensor that
            broadcasts against `F`, one value per neuron.

    The parameters are attributes by their names: `nn.Parameter` if learned, else buffers.

    Raises:
        TypeError: a function that not every backend can run (names the line and the remedy), a
            missing or unknown parameter.
        ValueError: a parameter that is not finite or out of its bounds.
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
        **parameters: float | Tensor,
    ) -> None:
        super().__init__()
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

    def forward(
        self,
        current: Tensor,
        state: Sequence[Tensor] | None = None,
        *,
        num_steps: int | None = None,
        return_trace: bool = False,
    ) -> tuple[Any, ...]:
        """Return `(spikes, state)`, and with `return_trace` `(spikes, state, trace)`.

        Args:
            current: `[T, B, *F]`; with `num_steps` `[B, *F]`, the same at every step. float16,
                bfloat16, float32 or float64.
            state: what an earlier call returned, one tensor `[B, *F]` for each of `states`, float64
                if the current is, else float32. Default: at rest.
            num_steps: number of steps `T >= 0` of a constant current.
            return_trace: also return each state at every step, a tuple of `[T, B, *F]`.

        Returns:
            Spikes `[T, B, *F]`, 0 or 1 in the current's number format, and the states after the
            last step, a tuple of `[B, *F]`.

        Raises:
            TypeError, ValueError: a tensor of the wrong kind, shape, number format or device, or
                another number of states.
            BackendError: the backend named cannot run here; every reason is listed.
        """
        out = run(
            self.rule,
            current,
            self._start(state, current, num_steps),
            self.parameter_values(),
            num_steps,
            SPIKES | (TRACES if return_trace else 0),
            self.backend,
            self.segment,
        )
        assert out.spikes is not None
        return (out.spikes, out.states, out.traces) if return_trace else (out.spikes, out.states)

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
        rule = f"surrogate={self.surrogate.name}{self.surrogate.parameters}"
        return ", ".join([self.name, *shown, rule, *window, f"backend={self.backend!r}"])

    def _names(self) -> tuple[str, ...]:
        """The parameters that the layer keeps; a subclass may compute those of its function."""
        return self.parameter_names

    def _bounded(self, name: str) -> Tensor:
        value: Tensor = getattr(self, name)
        limits = self.bounds.get(name)
        if limits is None or not isinstance(value, nn.Parameter):
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
            if not isinstance(values[name], nn.Parameter):
                self._check_value(name, getattr(self, name).detach())

    def _check_value(self, name: str, value: Tensor) -> None:
        low, high = self.bounds.get(name, (-math.inf, math.inf))
        if bool(((value < low) | (value > high) | value.isnan()).any()):
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {_range(value)}")

    def _start(
        self, given: Sequence[Tensor] | None, current: Tensor, num_steps: int | None
    ) -> Sequence[Tensor]:
        """Return the states to start from; none of them where all are zero."""
        if given is None:
            if not self.rest:
                return ()
            steps = check_current(current, num_steps)
            shape, format_ = step_shape(current, steps), state_dtype(current.dtype)
            full = [self.rest.get(name, 0.0) for name in self.states]
            return tuple(
                torch.full(shape, value, dtype=format_, device=current.device) for value in full
            )
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


def _show(value: Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"


def _range(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():g}"
    return f"values from {float(value.min()):g} to {float(value.max()):g}"


def _named(functions: Mapping[str, Callable[..., Any]], reset: str) -> Callable[..., Any]:
    if reset not in functions:
        raise ValueError(f"unknown reset {reset!r}; choose one of {', '.join(functions)}")
    return functions[reset]


class Synaptic(Spiking):
    """LIF neurons with a synaptic current, CuBa-LIF: snnTorch's `Synaptic`, bit for bit.

        syn_t = alpha * syn_{t-1} + current_t
        mem_t = beta * mem_{t-1} + syn_t - H(mem_{t-1} - threshold) * threshold     reset="subtract"

    Args:
        alpha: decay of the synaptic current per step, in [0, 1].
        beta: decay of the membrane per step, in [0, 1].
        threshold: a neuron fires when its membrane is strictly greater.
        reset: at the step after a spike, `"subtract"` the threshold, go to `"zero"`, or `"none"`.
        options: `learn`, `surrogate`, `grad_window` and `backend` of `Spiking`.
    """

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "subtract",
        **options: Any,
    ) -> None:
        function = zoo.synaptic(_named(zoo.RESETS, reset))
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "threshold": threshold,
        }
        super().__init__(function, bounds=bounds, **values, **options)


class Alpha(Spiking):
    """Neurons that answer a spike with an alpha function: snnTorch's `Alpha`, bit for bit.

    States `exc`, `inh` and `mem`. Args: `alpha` and `beta`, the decays per step of the rising and
    of the falling trace, in (0, 1) with `alpha > beta`; `threshold`; `reset`, at the step after a
    spike, of all states to `"zero"`, `"subtract"` or `"none"`; options as of `Spiking`.
    """

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "zero",
        **options: Any,
    ) -> None:
        function = _named(zoo.ALPHA, reset)
        if bool((torch.as_tensor(alpha) <= torch.as_tensor(beta)).any()):
            raise ValueError("alpha must be greater than beta, the decay of the falling trace")
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "threshold": threshold,
        }
        super().__init__(function, bounds=bounds, **values, **options)

    def _names(self) -> tuple[str, ...]:
        return ("alpha", "beta", "threshold")

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return alpha, beta, the scale of the membrane that they make, and the threshold."""
        alpha, beta = self._bounded("alpha"), self._bounded("beta")
        tau = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
        return alpha, beta, tau, self._bounded("threshold")


class PLIF(Spiking):
    """LIF neurons whose decay is a logistic function; Fang et al. 2021, arXiv:2007.05785.

    `beta = sigmoid(logit)`, so a learned decay never leaves (0, 1). Args: `beta`, the decay per
    step to begin with, in (0, 1); `threshold`; options as of `Spiking`, by default
    `learn=("logit",)`.
    """

    def __init__(
        self, beta: float | Tensor, threshold: float | Tensor = 1.0, **options: Any
    ) -> None:
        start = torch.as_tensor(beta, dtype=torch.get_default_dtype())
        if not bool(((start > 0) & (start < 1)).all()):
            raise ValueError(f"beta must lie in (0, 1), got {_range(start)}")
        values: dict[str, Any] = {
            "logit": torch.logit(start),
            "threshold": threshold,
        }
        super().__init__(zoo.lif_subtract, **{"learn": ("logit",), **options}, **values)

    @property
    def beta(self) -> Tensor:  # type: ignore[override]
        """The decay per step."""
        return torch.sigmoid(self._bounded("logit"))

    def _names(self) -> tuple[str, ...]:
        return ("logit", "threshold")

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return the decay and the threshold."""
        return self.beta, self._bounded("threshold")


class ALIF(Spiking):
    """LIF neurons with a threshold that rises at every spike; Bellec et al. 2018, arXiv:1803.09574.

    They fire when the membrane exceeds `threshold + rise * tired`, which a reset then takes away.
    States `mem` and `tired`. Args: `beta` and `rho`, the decays per step of membrane and threshold,
    in [0, 1]; `rise`; `threshold`; options as of `Spiking`.
    """

    def __init__(
        self,
        beta: float | Tensor = 0.95,
        rho: float | Tensor = 0.995,
        rise: float | Tensor = 1.8,
        threshold: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        bounds = {"beta": UNIT, "rho": UNIT}
        values: dict[str, Any] = {
            "beta": beta,
            "rho": rho,
            "rise": rise,
            "threshold": threshold,
        }
        super().__init__(zoo.alif, bounds=bounds, **values, **options)


class SEAdLIF(Spiking):
    """Adaptive LIF neurons by symplectic Euler steps; Baronig et al. 2024, arXiv:2408.07517.

    States `mem` and `adaptation`. Args: `d_u` and `d_w`, the decays per step of membrane and
    adaptation, in [0, 1]; `a` and `b`, how strongly membrane and spikes feed the adaptation, at
    least 0; `q`, their scale; `threshold`; options as of `Spiking`.
    """

    def __init__(
        self,
        d_u: float | Tensor = 0.9,
        d_w: float | Tensor = 0.98,
        a: float | Tensor = 0.5,
        b: float | Tensor = 1.0,
        q: float | Tensor = 120.0,
        threshold: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        positive = (0.0, math.inf)
        bounds = {"d_u": UNIT, "d_w": UNIT, "a": positive, "b": positive}
        values: dict[str, Any] = {
            "d_u": d_u,
            "d_w": d_w,
            "a": a,
            "b": b,
            "q": q,
            "threshold": threshold,
        }
        super().__init__(zoo.se_adlif, bounds=bounds, **values, **options)


class Izhikevich(Spiking):
    """Neurons of two states that spike, burst or chatter; Izhikevich 2003, IEEE TNN 14(6).

    States `v` (mV, -65 at rest) and `u` (-13). Args: `a`, `b`, `c` (mV) and `d` of the paper, by
    default its regular spiking cell; `dt`, the step in ms; options as of `Spiking`. Currents are
    those of the paper, about 10 to fire.
    """

    def __init__(
        self,
        a: float | Tensor = 0.02,
        b: float | Tensor = 0.2,
        c: float | Tensor = -65.0,
        d: float | Tensor = 8.0,
        dt: float | Tensor = 0.5,
        **options: Any,
    ) -> None:
        rest = {"v": -65.0, "u": -13.0}
        values: dict[str, Any] = {
            "a": a,
            "b": b,
            "c": c,
            "d": d,
            "dt": dt,
        }
        super().__init__(zoo.izhikevich, **{"rest": rest, **options}, **values)


class QIF(Spiking):
    """Quadratic integrate-and-fire neurons; Ermentrout 1996, doi:10.1162/neco.1996.8.5.979.

    `mem + rate * (gain * mem * (mem - critical) + current)`, to zero at a spike. Args: `rate`, the
    step as a share of the time constant; `gain`; `critical`, the membrane from which it rises by
    itself; `threshold`; options as of `Spiking`.
    """

    def __init__(
        self,
        rate: float | Tensor = 0.1,
        gain: float | Tensor = 1.0,
        critical: float | Tensor = 0.5,
        threshold: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        values: dict[str, Any] = {
            "rate": rate,
            "gain": gain,
            "critical": critical,
            "threshold": threshold,
        }
        super().__init__(zoo.qif, **values, **options)


class EIF(Spiking):
    """Exponential integrate-and-fire neurons; Fourcaud-Trocme et al. 2003, J. Neurosci. 23(37).

    `mem + rate * (sharpness * exp((mem - critical) / sharpness) - mem + current)`, to zero at a
    spike. Args: `rate`, the step as a share of the time constant; `sharpness` of the rise, above 0;
    `critical`, where the rise begins; `threshold`; options as of `Spiking`.
    """

    def __init__(
        self,
        rate: float | Tensor = 0.1,
        sharpness: float | Tensor = 0.2,
        critical: float | Tensor = 0.7,
        threshold: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        bounds = {"sharpness": (1e-6, math.inf)}
        values: dict[str, Any] = {
            "rate": rate,
            "sharpness": sharpness,
            "critical": critical,
            "threshold": threshold,
        }
        super().__init__(zoo.eif, bounds=bounds, **values, **options)


class BRF(Spiking):
    """Balanced resonate-and-fire neurons; Higuchi et al. 2024, arXiv:2402.14603.

    States `real`, `imag` and `tired`. Args: `omega`, the frequency they answer to, in rad per
    second, with `omega * dt <= 1`; `offset` of the damping; `gamma`, the decay per step of the
    refractoriness, in [0, 1]; `threshold`; `dt`, the step in seconds; options as of `Spiking`.
    """

    def __init__(
        self,
        omega: float | Tensor = 10.0,
        offset: float | Tensor = 1.0,
        gamma: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        dt: float = 0.01,
        **options: Any,
    ) -> None:
        bounds = {"gamma": UNIT, "omega": (-1.0 / dt, 1.0 / dt)}
        values: dict[str, Any] = {
            "omega": omega,
            "offset": offset,
            "gamma": gamma,
            "threshold": threshold,
            "dt": dt,
        }
        super().__init__(zoo.brf, bounds=bounds, **values, **options)


class OneToOne(Spiking):
    """LIF neurons to which their own last spike returns; snnTorch's `RLeaky(all_to_all=False)`.

    States `spike` and `mem`, with `alpha` also `syn` between them. Args: `beta`, the decay of the
    membrane per step, in [0, 1]; `weight` of the returning spike; `threshold`; `alpha`, the decay
    per step of a synaptic current that takes in current and spike, as snnTorch's
    `RSynaptic(all_to_all=False)`, without it none; `reset` as of `Synaptic`; options as of
    `Spiking`.
    """

    def __init__(
        self,
        beta: float | Tensor,
        weight: float | Tensor = 1.0,
        threshold: float | Tensor = 1.0,
        *,
        alpha: float | Tensor | None = None,
        reset: str = "subtract",
        **options: Any,
    ) -> None:
        make = zoo.one_to_one if alpha is None else zoo.synaptic_one_to_one
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {"beta": beta, "weight": weight, "threshold": threshold}
        if alpha is not None:
            values["alpha"] = alpha
        super().__init__(make(_named(zoo.RESETS, reset)), bounds=bounds, **values, **options)
