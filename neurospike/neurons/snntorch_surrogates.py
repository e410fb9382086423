"""snnTorch's surrogate gradients as ours: what `spike_grad=` holds, read and translated.

snnTorch 1.0.0 makes a surrogate as a function that holds its parameters in a closure; the version
after it makes objects of classes called `<Name>Surrogate`, with the parameters as attributes. Both
are known by their names, so snnTorch itself is not imported here.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from neurospike import formulas
from neurospike.formulas import abs, cast, exp, heaviside

# Surrogates of snnTorch that are not among ours, in the formulas that it computes.


def none(u):  # noqa: ANN001, ANN201
    """No gradient at all, as with `surrogate_disable=True`."""
    return 0.0 * heaviside(u)


def signed(u, threshold):  # noqa: ANN001, ANN201
    """The `triangular` of snnTorch: the threshold below it, minus the threshold from it on."""
    return threshold * (cast(u < 0.0, u) - cast(u >= 0.0, u))


def sparse(u, slope, bound):  # noqa: ANN001, ANN201
    """The sparse fast sigmoid, `SFS`, of snnTorch: 0 up to the bound."""
    z = slope * abs(u) + 1.0
    return heaviside(u - bound) / (z * z)


def escape(u, beta, slope):  # noqa: ANN001, ANN201
    """The `spike_rate_escape` of snnTorch, around u = 1."""
    return slope * exp(-beta * abs(u - 1.0))


# By snnTorch's names in small letters without underscores: the derivative, and what it is called
# with, by snnTorch's names of it.
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
NAMES = (  # that can be translated, as snnTorch writes them
    "atan, fast_sigmoid, sigmoid, straight_through_estimator, SFS, heaviside, triangular and "
    "spike_rate_escape"
)


def derivative_of(
    spike_grad: object,
) -> tuple[Callable[..., Any], tuple[float, ...]] | None:
    """Return what one of snnTorch's surrogates computes, and its numbers; None for anything else.

    spike_grad: what `snntorch.surrogate.atan(alpha=2.0)` and its like return, in snnTorch 1.0.0 or
    as an object of a class such as `ATanSurrogate`; or the `apply` of a class that has no
    parameters, such as `snntorch.surrogate.Heaviside.apply`. Not known are the random ones (`SSO`,
    `LSO`), `custom_surrogate`, and functions of other modules.
    """
    given: Mapping[str, Any] = {}
    owner = getattr(spike_grad, "__self__", None)
    if isinstance(owner, type) and getattr(spike_grad, "__name__", "") == "apply":
        place, name = owner.__module__, owner.__name__
    elif inspect.isfunction(spike_grad):
        place, name = spike_grad.__module__, spike_grad.__qualname__.partition(".<locals>.")[0]
        if name == spike_grad.__qualname__:  # the maker itself, which nobody has called
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
