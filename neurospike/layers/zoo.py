"""The neurons of the library as layers: those of `neurospike.neurons.zoo` with their parameters."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from neurospike.neurons import zoo
from neurospike.ops.arguments import check_flag
from neurospike.ops.bounds import check_subtraction

from .lif import number
from .other_names import explain_other_names
from .spiking import UNIT, Spiking, shown_range


def _named(functions: Mapping[str, Callable[..., Any]], reset: str) -> Callable[..., Any]:
    if not isinstance(reset, str) or reset not in functions:
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
        reset: after a spike `"subtract"` the threshold, go to `"zero"`, or `"none"`.
        reset_delay: reset the membrane at the step after the spike (True, as snnTorch) or at once
            (False, as NIR's CubaLIF); the gradient of an immediate reset flows through the spike.
        options: `learn`, `surrogate`, `grad_window`, `backend` and `batch_first` of `Spiking`.

    States `syn` and `mem`. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "subtract",
        reset_delay: bool = True,
        **options: Any,
    ) -> None:
        check_subtraction(threshold, reset)
        delayed, at_once = _named(zoo.RESETS, reset), zoo.RESETS_AT_ONCE[reset]
        is_delayed = check_flag("reset_delay", reset_delay) or reset == "none"
        function = zoo.synaptic(delayed) if is_delayed else zoo.synaptic_at_once(at_once)
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {"alpha": alpha, "beta": beta, "threshold": threshold}
        super().__init__(function, bounds=bounds, **values, **options)


class Alpha(Spiking):
    """Neurons whose response to a spike is an alpha function: snnTorch's `Alpha`, bit for bit.

        exc_t = alpha * exc_{t-1} + current_t
        inh_t = beta * inh_{t-1} - current_t
        mem_t = tau * (exc_t + inh_t)      tau = log(alpha) / (log(beta) - log(alpha)) + 1

    Args:
        alpha: decay of the rising trace per step, in (0, 1), greater than `beta`.
        beta: decay of the falling trace per step, in (0, 1).
        threshold: a neuron fires when its membrane is strictly greater.
        reset: at the step after a spike set all states to `"zero"`, `"subtract"` the threshold, or
            `"none"`.
        options: as for `Synaptic`.

    States `exc`, `inh` and `mem`. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "zero",
        **options: Any,
    ) -> None:
        check_subtraction(threshold, reset)
        function = _named(zoo.ALPHA, reset)
        rising, falling = number("alpha", alpha), number("beta", beta)
        is_known = not (rising.is_meta or falling.is_meta)
        if is_known and bool((rising <= falling).any()):
            raise ValueError(
                "alpha must be greater than beta, the decay of the falling trace, got alpha "
                f"{shown_range(rising)} and beta {shown_range(falling)}"
            )
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {"alpha": alpha, "beta": beta, "threshold": threshold}
        super().__init__(function, bounds=bounds, **values, **options)

    def _names(self) -> tuple[str, ...]:
        return ("alpha", "beta", "threshold")

    def parameter_values(self) -> tuple[Tensor, ...]:
        """Return alpha, beta, the factor tau of the membrane, and the threshold."""
        alpha, beta = self._bounded("alpha"), self._bounded("beta")
        tau = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
        return alpha, beta, tau, self._bounded("threshold")


class PLIF(Spiking):
    """LIF neurons whose decay is learned through a sigmoid; Fang et al. 2021, arXiv:2007.05785.

    The parameter is `logit`, and `beta = sigmoid(logit)`, so a learned decay never leaves (0, 1).
    The threshold is subtracted at the step after a spike.

    Args:
        beta: initial decay of the membrane per step, in (0, 1).
        threshold: a neuron fires when its membrane is strictly greater.
        options: as for `Synaptic`; by default `learn=("logit",)`.

    State `mem`, in a tuple. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
    def __init__(
        self, beta: float | Tensor, threshold: float | Tensor = 1.0, **options: Any
    ) -> None:
        check_subtraction(threshold, "subtract")
        start = number("beta", beta).to(torch.get_default_dtype())
        if not (start.is_meta or bool(((start > 0) & (start < 1)).all())):
            raise ValueError(f"beta must lie in (0, 1), got {shown_range(start)}")
        values: dict[str, Any] = {"logit": torch.logit(start), "threshold": threshold}
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

    A neuron fires when its membrane exceeds `threshold + rise * tired`, which is then subtracted at
    once; `tired_t = rho * tired_{t-1} + (1 - rho) * spike_t`.

    Args:
        beta: decay of the membrane per step, in [0, 1].
        rho: decay of the adaptation `tired` per step, in [0, 1].
        rise: by how much `tired` raises the threshold.
        threshold: threshold of a neuron that has not fired.
        options: as for `Synaptic`.

    States `mem` and `tired`. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
    def __init__(
        self,
        beta: float | Tensor = 0.95,
        rho: float | Tensor = 0.995,
        rise: float | Tensor = 1.8,
        threshold: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        check_subtraction(threshold, "subtract")
        bounds = {"beta": UNIT, "rho": UNIT}
        values: dict[str, Any] = {"beta": beta, "rho": rho, "rise": rise, "threshold": threshold}
        super().__init__(zoo.alif, bounds=bounds, **values, **options)


class SEAdLIF(Spiking):
    """Adaptive LIF neurons by symplectic Euler steps; Baronig et al. 2024, arXiv:2408.07517.

        mem_t = d_u * mem_{t-1} + (1 - d_u) * (current_t - adaptation_{t-1}),  0 after a spike
        adaptation_t = d_w * adaptation_{t-1} + (1 - d_w) * q * (a * mem_t + b * spike_t)

    Args:
        d_u: decay of the membrane per step, in [0, 1].
        d_w: decay of the adaptation per step, in [0, 1].
        a: how strongly the membrane feeds the adaptation, at least 0.
        b: how strongly spikes feed the adaptation, at least 0.
        q: scale of both.
        threshold: a neuron fires when its membrane is strictly greater, and is reset to zero at
            once.
        options: as for `Synaptic`.

    States `mem` and `adaptation`. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
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

        v_t = v_{t-1} + dt * (0.04 * v_{t-1}**2 + 5 * v_{t-1} + 140 - u_{t-1} + current_t)
        u_t = u_{t-1} + dt * a * (b * v_t - u_{t-1})

    Where `v_t` exceeds 30 mV the neuron fires: `v_t` becomes `c`, and `d` is added to `u_t`. The
    defaults are the paper's regular spiking cell. Currents have the paper's unit; a neuron fires at
    about 10.

    Args:
        a: rate of the recovery `u`, per ms.
        b: how strongly `u` follows `v`.
        c: value of `v` after a spike, in mV.
        d: by how much a spike raises `u`.
        dt: length of a step, in ms.
        options: as for `Synaptic`, and `rest`.

    States `v` (mV, -65 at rest) and `u` (-13 at rest). Shapes, number formats and errors are those
    of `Spiking`.
    """

    @explain_other_names
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
        values: dict[str, Any] = {"a": a, "b": b, "c": c, "d": d, "dt": dt}
        super().__init__(zoo.izhikevich, **{"rest": rest, **options}, **values)


class QIF(Spiking):
    """Quadratic integrate-and-fire neurons; Ermentrout 1996, doi:10.1162/neco.1996.8.5.979.

    A step is `mem + rate * (gain * mem * (mem - critical) + current)`; a spike resets it to zero.

    Args:
        rate: length of a step divided by the membrane's time constant.
        gain: factor of the quadratic term.
        critical: value above which the membrane rises by itself.
        threshold: a neuron fires when its membrane is strictly greater.
        options: as for `Synaptic`.

    State `mem`, in a tuple. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
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

    A step is `mem + rate * (sharpness * exp((mem - critical) / sharpness) - mem + current)`; a
    spike resets it to zero.

    Args:
        rate: length of a step divided by the membrane's time constant.
        sharpness: difference in the membrane over which the exponential grows by a factor e, above
            0.
        critical: value of the membrane where the exponential rise sets in.
        threshold: a neuron fires when its membrane is strictly greater.
        options: as for `Synaptic`.

    State `mem`, in a tuple. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
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

        damping = (sqrt(1 - (dt * omega)**2) - 1) / dt - offset - tired_{t-1}
        real_t = real_{t-1} + dt * (damping * real_{t-1} - omega * imag_{t-1} + current_t)
        imag_t = imag_{t-1} + dt * (omega * real_{t-1} + damping * imag_{t-1})
        tired_t = gamma * tired_{t-1} + spike_t

    Args:
        omega: resonance frequency, in rad per second; `abs(omega) * dt <= 1`.
        offset: offset of the damping, per second.
        gamma: decay of the refractoriness `tired` per step, in [0, 1].
        threshold: a neuron fires when `real_t` is strictly greater than `threshold + tired_{t-1}`.
        dt: length of a step, in seconds, above 0.
        options: as for `Synaptic`.

    States `real`, `imag` and `tired`. Shapes, number formats and errors are those of `Spiking`.
    """

    @explain_other_names
    def __init__(
        self,
        omega: float | Tensor = 10.0,
        offset: float | Tensor = 1.0,
        gamma: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        dt: float = 0.01,
        **options: Any,
    ) -> None:
        if isinstance(dt, bool) or not isinstance(dt, Real) or not 0.0 < dt < math.inf:
            raise ValueError(f"dt must be a number above 0, the step in seconds, got {dt!r}")
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
    """LIF neurons, each fed back its own last spike; snnTorch's `RLeaky(all_to_all=False)`.

    Args:
        beta: decay of the membrane per step, in [0, 1].
        weight: weight of the neuron's own last spike.
        threshold: a neuron fires when its membrane is strictly greater.
        alpha: decay per step, in [0, 1], of a synaptic current that sums up current and spike, as
            in snnTorch's `RSynaptic(all_to_all=False)`. Default: no synaptic current.
        reset: as for `Synaptic`, at the step after the spike.
        options: as for `Synaptic`.

    States `spike` and `mem`, with `alpha` also `syn` between them. Shapes, number formats and
    errors are those of `Spiking`.
    """

    @explain_other_names
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
        check_subtraction(threshold, reset)
        make = zoo.one_to_one if alpha is None else zoo.synaptic_one_to_one
        bounds = {"alpha": UNIT, "beta": UNIT}
        values: dict[str, Any] = {"beta": beta, "weight": weight, "threshold": threshold}
        if alpha is not None:
            values["alpha"] = alpha
        super().__init__(make(_named(zoo.RESETS, reset)), bounds=bounds, **values, **options)
