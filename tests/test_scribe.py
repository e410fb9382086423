"""Functions that are written out in LLVM's language, against many digits."""

import ctypes
import decimal
import math

import numpy as np
import pytest

from neurospike.backend import dispatch

pytest.importorskip("llvmlite")
function = dispatch.load(".kernels.cpu._function")
scribe = dispatch.load(".kernels.cpu._scribe")

FORMATS = {"float64": (np.float64, 52), "float32": (np.float32, 23)}


@function.once
def exp_of_rows(double, bytes_at_once):
    """A function that writes the exponentials of `n` numbers."""
    made = function.Function(("x", "out", "n"), double)
    kind = scribe.ir.VectorType(made.kind, bytes_at_once // made.size)
    end, step = made.times(made.given["n"], made.size), function.I64(bytes_at_once)
    with made.each(function.I64(0), end, step) as i:
        found = scribe.Scribe(made.build, kind).exp(made.load(made.place("x", i), kind))
        made.store(found, made.place("out", i))
    made.build.ret_void()
    return made


def exp(x):
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
    found = []
    for bytes_at_once in (64, x.itemsize):
        out = np.empty_like(x)
        address = exp_of_rows(x.dtype == np.float64, bytes_at_once)
        kind(address)(x.ctypes.data, out.ctypes.data, x.size)
        found.append(out)
    np.testing.assert_array_equal(*found)  # in a vector, and alone
    return found[0]


@pytest.mark.parametrize("name", FORMATS)
def test_the_exponential_function_is_right_to_its_last_bit(name):
    number, digits = FORMATS[name]
    limits = np.finfo(number)
    ends = (math.log(limits.smallest_normal), math.log(limits.max))
    random = np.random.default_rng(0)
    parts = [random.uniform(*ends, 960), random.normal(0, 1, 960), random.normal(0, 1e-6, 64)]
    # Halfway between whole powers of 2 the series has furthest to go.
    parts.append((np.arange(-80, 80) + 0.5) * math.log(2.0))
    x = np.concatenate(parts).astype(number)
    with decimal.localcontext() as context:
        context.prec = 50
        for given, found in zip(x.tolist(), exp(x).tolist()):
            wanted = decimal.Decimal(given).exp()
            last = decimal.Decimal(2.0 ** (math.floor(math.log2(found)) - digits))
            assert abs(decimal.Decimal(found) - wanted) < decimal.Decimal("1.1") * last, given


@pytest.mark.parametrize("name", FORMATS)
def test_the_exponential_function_at_its_ends(name):
    number, _ = FORMATS[name]
    limits = np.finfo(number)
    top, bottom = math.log(limits.max), math.log(float(limits.smallest_subnormal))
    step = 1e-4
    given = [0.0, -0.0, math.inf, -math.inf, math.nan, top - step, top + step, bottom + step]
    given += [bottom - 1.0, limits.max, limits.min, limits.smallest_subnormal, 1.0, -1.0, 2.0, 0.5]
    zero, *found = exp(np.array(given, number)).tolist()
    assert zero == 1.0
    assert found[0] == 1.0
    assert found[1:3] == [math.inf, 0.0]
    assert math.isnan(found[3])
    assert 0.99 * limits.max < found[4] < math.inf
    assert found[5] == math.inf
    assert found[6] == limits.smallest_subnormal
    assert found[7:11] == [0.0, math.inf, 0.0, 1.0]
