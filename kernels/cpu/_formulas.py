"""The free names of a neuron's function, for Numba.

Functions that a processor has no instruction for are computed in float64 and rounded, as the
other backends do: libraries differ in the last bit of float32, and a spike would show it.
"""

import math

import numpy as np

single = np.float32  # rebound to the state's format
double = np.float64
double_exp, double_log, double_tanh = math.exp, math.log, math.tanh
double_sin, double_cos, square_root = math.sin, math.cos, math.sqrt
quick_exp = math.exp


def heaviside(u):
    """1 where `u` is strictly greater than 0, else 0."""
    return 1.0 if u > 0.0 else 0.0


def detach(u):
    """The value itself; only gradients stop here."""
    return u


def number(value, like):
    """A number that is written in the function; literals have the state's format already."""
    return value


def where(condition, a, b):
    """One of two values."""
    return a if condition else b


def divide(a, b):
    """The quotient, rounded once."""
    return a / b


def minimum(a, b):
    """The lesser of two values; NaN if either is."""
    return a if a < b or a != a else b


def maximum(a, b):
    """The greater of two values; NaN if either is."""
    return a if a > b or a != a else b


def sqrt(u):
    """The square root, rounded once."""
    return square_root(u)


def exp(u):
    """The exponential."""
    return single(double_exp(double(u)))


def log(u):
    """The natural logarithm."""
    return single(double_log(double(u)))


def tanh(u):
    """The hyperbolic tangent."""
    return single(double_tanh(double(u)))


def sin(u):
    """The sine of an angle in radians."""
    return single(double_sin(double(u)))


def cos(u):
    """The cosine of an angle in radians."""
    return single(double_cos(double(u)))


def sigmoid(u):
    """The logistic function `1 / (1 + exp(-u))`."""
    return single(1.0 / (1.0 + double_exp(-double(u))))


def quick_sigmoid(u):
    """The logistic function, in the state's format throughout, as all that is quick."""
    return 1.0 / (1.0 + quick_exp(-u))


FUNCTIONS = (
    *(heaviside, detach, number, where, divide, minimum, maximum),
    *(sqrt, exp, log, tanh, sin, cos, sigmoid, quick_sigmoid),
)
ROUNDED = ("exp", "log", "tanh", "sin", "cos")
