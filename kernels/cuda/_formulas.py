"""The free names of a neuron's function, for Triton; kernels/cpu/_scribe.py has the CPU's.

Division and square root are correctly rounded, as in IEEE 754; other functions are computed in
float64 and rounded, as in every backend.
"""

import triton
import triton.language as tl


@triton.jit
def heaviside(u):
    """1 where `u` is strictly greater than 0, else 0."""
    return tl.where(u > 0.0, 1.0, 0.0).to(u.dtype)


@triton.jit
def detach(u):
    """The value itself; its derivative is 0."""
    return u


@triton.jit
def number(value, like):
    """A number in the format and shape of `like`."""
    return tl.zeros_like(like) + value


@triton.jit
def where(condition, a, b):
    """One of two values."""
    return tl.where(condition, a, b)


@triton.jit
def divide(a, b):
    """The quotient, rounded once."""
    if b.dtype == tl.float64:
        return a / b
    return tl.div_rn(a, b)


@triton.jit
def minimum(a, b):
    """The lesser of two values; NaN if either is."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def maximum(a, b):
    """The greater of two values; NaN if either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def absolute(u):
    """The absolute value."""
    return tl.abs(u)


@triton.jit
def sqrt(u):
    """The square root, rounded once."""
    if u.dtype == tl.float64:
        return tl.sqrt(u)
    return tl.sqrt_rn(u)


@triton.jit
def exp(u):
    """The exponential."""
    return tl.exp(u.to(tl.float64)).to(u.dtype)


@triton.jit
def log(u):
    """The natural logarithm."""
    return tl.log(u.to(tl.float64)).to(u.dtype)


@triton.jit
def sin(u):
    """The sine of an angle in radians."""
    return tl.sin(u.to(tl.float64)).to(u.dtype)


@triton.jit
def cos(u):
    """The cosine of an angle in radians."""
    return tl.cos(u.to(tl.float64)).to(u.dtype)


@triton.jit
def sigmoid(u):
    """The logistic function."""
    return (1.0 / (1.0 + tl.exp(-u.to(tl.float64)))).to(u.dtype)


@triton.jit
def tanh(u):
    """The hyperbolic tangent; near 0 its series, where the quotient would lose digits."""
    wide = u.to(tl.float64)
    small = tl.abs(wide)
    e = tl.exp(-2.0 * small)
    square = wide * wide
    series = 62.0 / 2835.0 - square * (1382.0 / 155925.0 - square * 21844.0 / 6081075.0)
    series = 1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0 - square * series))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(wide < 0.0, -far, far)
    return tl.where(small < 0.05, wide - wide * square * series, far).to(u.dtype)


@triton.jit
def quick_exp(u):
    """The exponential, computed in the state's format, as by every function `quick_...`."""
    return tl.exp(u)


@triton.jit
def quick_log(u):
    """The natural logarithm."""
    return tl.log(u)


@triton.jit
def quick_sqrt(u):
    """The square root."""
    return tl.sqrt(u)


@triton.jit
def quick_sin(u):
    """The sine."""
    return tl.sin(u)


@triton.jit
def quick_cos(u):
    """The cosine."""
    return tl.cos(u)


@triton.jit
def quick_sigmoid(u):
    """The logistic function."""
    return 1.0 / (1.0 + tl.exp(-u))


NAMES = {
    "quick_exp": quick_exp,
    "quick_log": quick_log,
    "quick_sqrt": quick_sqrt,
    "quick_tanh": tanh,
    "quick_sin": quick_sin,
    "quick_cos": quick_cos,
    "quick_sigmoid": quick_sigmoid,
    "heaviside": heaviside,
    "detach": detach,
    "number": number,
    "where": where,
    "divide": divide,
    "minimum": minimum,
    "maximum": maximum,
    "abs": absolute,
    "sqrt": sqrt,
    "exp": exp,
    "log": log,
    "sin": sin,
    "cos": cos,
    "sigmoid": sigmoid,
    "tanh": tanh,
}
