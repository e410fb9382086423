"""The functions that a neuron may use by name, in torch, and the surrogates.

A neuron or a surrogate is one plain scalar function that uses these names, arithmetic and
comparison. It is recorded once (`neurospike.neurons`), and the record runs on every backend, so
nothing is written twice. The neurons of the library are in `neurospike.neurons.zoo`.

With H(v) = 1 if v > 0 else 0 (strictly greater), the default LIF is

    mem_t = beta * mem_{t-1} + current_t - H(mem_{t-1} - threshold) * threshold
    spike_t = H(mem_t - threshold)

The derivative of `spike` is replaced by a surrogate h(mem - threshold) (Neftci, Mostafa and Zenke,
2019, doi:10.1109/MSP.2019.2931595). With a gradient window it is 0 where the membrane is further
than that from the threshold (Perez-Nieves and Goodman, NeurIPS 2021, arXiv:2105.08810).
"""

import math

from torch import (  # noqa: F401 (most are for neurons' functions only)
    abs,
    cos,
    detach,
    exp,
    log,
    maximum,
    minimum,
    sin,
    sqrt,
    tanh,
    where,
)


def cast(condition, like):
    """Return 1 where `condition` holds and 0 elsewhere, in the number format of `like`."""
    return condition.to(like.dtype)


PI = math.pi
SQRT_TAU = math.sqrt(2.0 * math.pi)


def heaviside(v):
    """H(v): 1 where `v` is strictly greater than 0, else 0 (0 for NaN)."""
    return cast(v > 0.0, v)


def fire(u):
    """A spike: H(u); in a neuron's function the surrogate is its derivative."""
    return heaviside(u)


# The surrogates: derivative of the spike at u = v - threshold, as `h(u, *parameters)`.


def atan(u, alpha):
    """`(alpha/2) / (1 + (pi*alpha*u/2)^2)`, derivative of `atan(pi*alpha*u/2) / pi`."""
    z = 0.5 * PI * alpha * u
    return 0.5 * alpha / (1.0 + z * z)


def fast_sigmoid(u, slope):
    """`1 / (slope*|u| + 1)^2`, derivative of `u / (1 + slope*|u|)`."""
    z = slope * abs(u) + 1.0
    return 1.0 / (z * z)


def sigmoid(u, slope):
    """`slope * q * (1 - q)`, `q` the logistic of `slope*u`; by `|u|`, so `exp` never overflows."""
    e = exp(-slope * abs(u))
    return slope * e / ((1.0 + e) * (1.0 + e))


def triangular(u, width):
    """`max(0, 1 - |u|/width) / width`."""
    z = 1.0 - abs(u) / width
    return where(z > 0.0, z, 0.0) / width


def straight_through(u):
    """`1`, as if the spike were the membrane itself."""
    return cast(u > 0.0, u) + cast(u <= 0.0, u)


def boxcar(u, width):
    """`1 / width` where `|u| < width / 2`, else 0."""
    return heaviside(0.5 * width - abs(u)) / width


def gaussian(u, sigma):
    """Normal density with standard deviation `sigma`."""
    z = u / sigma
    return exp(-0.5 * z * z) / (sigma * SQRT_TAU)
