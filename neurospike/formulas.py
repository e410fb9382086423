"""The contract: one time step of a LIF neuron, its gradient and the surrogates, written once.

Everything here is plain scalar arithmetic on a few free names (`exp`, `abs`, `where`, `cast`) and
five flags (`DELAYED`, `SUBTRACT`, `ZERO`, `DETACHED`, `WINDOWED`). Torch runs these functions as
they are, on whole tensors. A compiled backend re-jits the code of the very same functions with the
free names and flags rebound (`bind`), so no source text is generated and nothing is written twice.

Notation: `mem` membrane, `beta` decay, `H(v) = 1 if v > 0 else 0` (strictly greater). `v` is
the membrane that is compared with the threshold, `mem` the one handed to the next step:

    delayed reset    R = H(mem - threshold)         no gradient flows through R
                     v = beta * mem + current - R * threshold               SUBTRACT
                     v = beta * ((1 - R) * mem) + current                   ZERO
                     v = beta * mem + current                               neither
                     spike = H(v - threshold),  mem' = v
    immediate reset  v = beta * mem + current,  spike = H(v - threshold)
                     mem' = v - spike * threshold                           SUBTRACT
                     mem' = v * (1 - spike)                                 ZERO

The derivative of `spike` is replaced by a surrogate h(v - threshold) (Neftci, Mostafa and Zenke,
2019, doi:10.1109/MSP.2019.2931595), which with a window is 0 further from the threshold
(Perez-Nieves and Goodman, NeurIPS 2021, arXiv:2105.08810). With g_s and g_m the gradients of
`spike` and of `mem'` (the latter holding all that comes from later steps), the chain rule gives

    delayed          d = g_s * h + g_m
                     d_mem = beta * d  (ZERO: * (1 - R)),   d_current = d
                     d_beta = d * mem  (ZERO: * (1 - R))
                     d_threshold = -g_s * h  (SUBTRACT: - R * d)
    immediate        G = g_s + g_m * dmem'/dspike,  where dmem'/dspike = -threshold  (SUBTRACT)
                         or -v (ZERO), and 0 if DETACHED
                     d = G * h + g_m  (ZERO: g_m * (1 - spike))
                     d_mem = beta * d,  d_current = d,  d_beta = d * mem
                     d_threshold = -G * h  (SUBTRACT: - spike * g_m)

Float literals take the number format of the state: `binding` casts them for compilers that would
widen. Integer literals would widen too, so there are none.
"""

import math

from torch import (  # noqa: F401 (most are for the functions of neurons)
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


FREE_NAMES = ("exp", "abs", "where", "cast")

DELAYED = True
SUBTRACT = True
ZERO = False
DETACHED = False
WINDOWED = False

PI = math.pi
SQRT_TAU = math.sqrt(2.0 * math.pi)


def heaviside(v):
    """H(v): 1 where `v` is strictly greater than 0, else 0 (0 for NaN)."""
    return cast(v > 0.0, v)


def fire(u):
    """A spike: H(u); in a neuron's function the surrogate is its derivative."""
    return heaviside(u)


def charge(mem, current, beta, threshold):
    """Integrate one step's current; return the membrane `v` that is compared with the threshold."""
    if DELAYED and SUBTRACT:
        return beta * mem + current - heaviside(mem - threshold) * threshold
    if DELAYED and ZERO:
        return beta * ((1.0 - heaviside(mem - threshold)) * mem) + current
    return beta * mem + current


def settle(v, spike, threshold):
    """Return the membrane for the next step: `v` after an immediate reset, if there is one."""
    if not DELAYED and SUBTRACT:
        return v - spike * threshold
    if not DELAYED and ZERO:
        return v * (1.0 - spike)
    return v


def step(mem, current, beta, threshold):
    """One time step: `(spike, mem, v)`."""
    v = charge(mem, current, beta, threshold)
    spike = heaviside(v - threshold)
    return spike, settle(v, spike, threshold), v


def step_vjp(mem, v, beta, threshold, surrogate, grad_spike, grad_mem):
    """Gradient of `step`: `(grad_current, grad_mem, grad_beta, grad_threshold)`.

    `mem` is the membrane before the step, `v` the one compared with the threshold, `surrogate` the
    derivative h(v - threshold), `grad_spike` and `grad_mem` the gradients of the step's results.
    """
    if DELAYED:
        d = grad_spike * surrogate + grad_mem
        grad_threshold = -(grad_spike * surrogate)
        if SUBTRACT:
            grad_threshold = grad_threshold - heaviside(mem - threshold) * d
        if ZERO:
            kept = 1.0 - heaviside(mem - threshold)
            return d, beta * d * kept, d * (kept * mem), grad_threshold
        return d, beta * d, d * mem, grad_threshold
    spike = heaviside(v - threshold)
    total = grad_spike
    if SUBTRACT and not DETACHED:
        total = grad_spike - grad_mem * threshold
    if ZERO and not DETACHED:
        total = grad_spike - grad_mem * v
    grad_threshold = -(total * surrogate)
    direct = grad_mem
    if SUBTRACT:
        grad_threshold = grad_threshold - spike * grad_mem
    if ZERO:
        direct = (1.0 - spike) * grad_mem
    d = total * surrogate + direct
    return d, beta * d, d * mem, grad_threshold


def windowed(h, u, window):
    """Return the surrogate `h` where `|u| <= window`, else 0, if there is a window."""
    if WINDOWED:
        return where(abs(u) <= window, h, 0.0)
    return h


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
    """`slope * q * (1 - q)` with `q` the logistic of `slope*u`; even in u, so no tail overflows."""
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
