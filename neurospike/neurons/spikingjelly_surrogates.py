"""Translate SpikingJelly's surrogate gradients, objects of its classes, into ours.

They are recognised by their names and attributes, so SpikingJelly itself is not imported here.
"""

from collections.abc import Callable
from typing import Any

from neurospike import formulas
from neurospike.formulas import abs, exp, log, minimum, where

# Surrogates of SpikingJelly that this library does not have, by the formulas that it computes.


def piecewise_exp(u, alpha):  # noqa: ANN001, ANN201
    """`PiecewiseExp`."""
    return 0.5 * alpha * exp(-alpha * abs(u))


def soft_sign(u, alpha):  # noqa: ANN001, ANN201
    """`SoftSign`, whose slope at 0 is `alpha / 2`."""
    z = 1.0 / alpha + abs(u)
    return 1.0 / (2.0 * alpha * z * z)


def super_spike(u, alpha):  # noqa: ANN001, ANN201
    """`SuperSpike`, whose alpha is its height rather than its slope."""
    z = abs(u) + 1.0
    return alpha / (z * z)


def log_abs(u, alpha):  # noqa: ANN001, ANN201
    """`NonzeroSignLogAbs`."""
    return 1.0 / (1.0 / alpha + abs(u))


def piecewise_leaky(u, w, c):  # noqa: ANN001, ANN201
    """`PiecewiseLeakyReLU`."""
    return where(abs(u) < w, 1.0 / (2.0 * w), c)


def s2nn(u, alpha, beta):  # noqa: ANN001, ANN201
    """`S2NN`, which has a different formula on each side of 0."""
    q = 1.0 / (1.0 + exp(-alpha * u))
    return where(u < 0.0, alpha * q * (1.0 - q), beta / (u + 1.0))


def q_pseudo_spike(u, alpha):  # noqa: ANN001, ANN201
    """`QPseudoSpike`."""
    return exp(-alpha * log(1.0 + 2.0 / (alpha - 1.0) * abs(u)))


def leaky_k(u, leak, k):  # noqa: ANN001, ANN201
    """`LeakyKReLU`."""
    return where(u >= 0.0, k, leak)


def fake_numerical(u, alpha):  # noqa: ANN001, ANN201
    """`FakeNumericalGradient`."""
    return minimum(1.0 / abs(u), alpha)


def log_tailed(u, alpha):  # noqa: ANN001, ANN201
    """`LogTailedReLU`."""
    return where(u > 1.0, 1.0 / u, where(u <= 0.0, alpha, 1.0))


def _same(*values: float) -> tuple[float, ...]:
    return values


def _width(alpha: float) -> tuple[float, ...]:
    return (1.0 / alpha,)


def _deviation(alpha: float) -> tuple[float, ...]:
    return (1.0 / (alpha * 2.0**0.5),)


# By SpikingJelly's class: the derivative, the attributes that hold its parameters, and a function
# that converts these to ours.
_KNOWN: dict[str, tuple[Callable[..., Any], tuple[str, ...], Callable[..., tuple[float, ...]]]] = {
    "ATan": (formulas.atan, ("alpha",), _same),
    "Sigmoid": (formulas.sigmoid, ("alpha",), _same),
    "PiecewiseQuadratic": (formulas.triangular, ("alpha",), _width),
    "Rect": (formulas.boxcar, ("alpha",), _width),
    "Erf": (formulas.gaussian, ("alpha",), _deviation),
    "DeterministicPass": (formulas.straight_through, (), _same),
    "PiecewiseExp": (piecewise_exp, ("alpha",), _same),
    "SoftSign": (soft_sign, ("alpha",), _same),
    "SuperSpike": (super_spike, ("alpha",), _same),
    "NonzeroSignLogAbs": (log_abs, ("alpha",), _same),
    "PiecewiseLeakyReLU": (piecewise_leaky, ("w", "c"), _same),
    "S2NN": (s2nn, ("alpha", "beta"), _same),
    "QPseudoSpike": (q_pseudo_spike, ("alpha",), _same),
    "LeakyKReLU": (leaky_k, ("leak", "k"), _same),
    "FakeNumericalGradient": (fake_numerical, ("alpha",), _same),
    "LogTailedReLU": (log_tailed, ("alpha",), _same),
}
NAMES = ", ".join(_KNOWN)


def derivative_of(surrogate: object) -> tuple[Callable[..., Any], tuple[float, ...]] | None:
    """Return the derivative of a surrogate of SpikingJelly, and its parameters; None for all else.

    surrogate: an object such as `surrogate.ATan(alpha=2.0)`. None is returned for those that draw
    at random (`PoissonPass`), the Fourier series, learned ones, and those with `spiking=False`.
    """
    kind = type(surrogate)
    known = _KNOWN.get(kind.__name__)
    is_theirs = kind.__module__ == "spikingjelly.activation_based.surrogate"
    if not is_theirs or known is None or not getattr(surrogate, "spiking", False):
        return None
    function, names, ours = known
    numbers = [getattr(surrogate, name) for name in names]
    return function, ours(*map(float, numbers))
