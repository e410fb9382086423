"""Translate snnTorch's surrogate gradients, the values of its `spike_grad=`, into ours.

A surrogate of snnTorch 1.0.0 is a function with its parameters in a closure; in the version after
it, it is an object of a class called `<Name>Surrogate`, with the parameters as attributes. Both are
recognised by their names, so snnTorch itself is not imported here.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from neurospike import formulas
from neurospike.formulas import abs, cast, exp, heaviside

# Surrogates of snnTorch that this library does not have, by the formulas that snnTorch computes.


def none(u):  # noqa: ANN001, ANN201
    """No gradient at all, as with `surrogate_disable=True`."""
    return 0.0 * heaviside(u)


def signed(u, threshold):  # noqa: ANN001, ANN201
    """The `triangular` of snnTorch: `threshold` for u below 0, `-threshold` from 0 on."""
    return threshold * (cast(u < 0.0, u) - cast(u >= 0.0, u))


def sparse(u, slope, bound):  # noqa: ANN001, ANN201
    """The sparse fast sigmoid, `SFS`, of snnTorch: 0 for u up to `bound`."""
    z = slope * abs(u) + 1.0
    return heaviside(u - bound) / (z * z)


def escape(u, beta, slope):  # noqa: ANN001, ANN201
    """The `spike_rate_escape` of snnTorch, centred at u = 1."""
    return slope * exp(-beta * abs(u - 1.0))


# By snnTorch's names in lower case without underscores: the derivative, and snnTorch's names of its
# parameters.
_KNOWN: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "atan": (formulas.atan, ("alpha",)),
    "fastsigmoid": (formulas.fast_sigmoid, ("slope",)),
    "sigmoid": (formulas.sigmoid, ("slope",)),
    "straightthroughestimator": (formulas.straight_through, ()),
    "sfs": (sparse, ("slope", "B")),
    "sparsefastsigmoid": (sparse, ("slope", "B")),
    "heaviside": (heaviside, ()),
    "triangular": (signed, ("threshold",)),
    "spikerateescape": (escape, ("beta", "slope")),
}
NAMES = (  # of the surrogates that can be translated, as snnTorch writes them
    "atan, fast_sigmoid, sigmoid, straight_through_estimator, SFS, heaviside, triangular and "
    "spike_rate_escape"
)


def derivative_of(
    spike_grad: object,
) -> tuple[Callable[..., Any], tuple[float, ...]] | None:
    """Return the derivative of a surrogate of snnTorch, and its parameters; None for all else.

    spike_grad: what `snntorch.surrogate.atan(alpha=2.0)` and the like return, in snnTorch 1.0.0 or
    as an object of a class such as `ATanSurrogate`; or the `apply` of a class that has no
    parameters, such as `snntorch.surrogate.Heaviside.apply`. None is returned for the random ones
    (`SSO`, `LSO`), `custom_surrogate`, and functions of other modules.
    """
    given: Mapping[str, Any] = {}
    owner = getattr(spike_grad, "__self__", None)
    if isinstance(owner, type) and getattr(spike_grad, "__name__", "") == "apply":
        place, name = owner.__module__, owner.__name__
    elif inspect.isfunction(spike_grad):
        place, name = spike_grad.__module__, spike_grad.__qualname__.partition(".<locals>.")[0]
        if name == spike_grad.__qualname__:  # a function such as `atan` itself, not its result
            return None
        given = inspect.getclosurevars(spike_grad).nonlocals
    else:
        kind = type(spike_grad)
        place, name = kind.__module__, kind.__name__.removesuffix("Surrogate")
        given = {
            key.lstrip("_"): value for key, value in getattr(spike_grad, "__dict__", {}).items()
        }
    known = _KNOWN.get(name.replace("_", "").lower())
    if place != "snntorch.surrogate" or known is None:
        return None
    function, wanted = known
    if any(key not in given for key in wanted):
        return None
    return function, tuple(float(given[key]) for key in wanted)  # snnTorch takes tensors, too
