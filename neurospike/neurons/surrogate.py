"""Surrogate gradients, which replace the derivative of the spike in the backward pass.

The forward pass is always `H(u)`, `u = membrane - threshold`. A surrogate is the derivative used
instead of that of `H`; the formulas are in `neurospike.formulas`, one scalar function each. Any
function of your own in the same style (arithmetic, comparison, and names such as `exp`, `abs` and
`where` imported from `neurospike.formulas`) is a surrogate on every backend:

    from neurospike.formulas import abs

    def cusp(u):
        return 1.0 / (1.0 + abs(u))

    ns.LIF(beta=0.9, surrogate=cusp)

Numbers that it reads from outside keep the values they have when the layer is made. A function that
not every backend can run is then refused; the error names the line and what to write instead.

The parameters of the built-in surrogates are positive finite numbers, in units of the membrane or
its inverse; anything else raises ValueError.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from neurospike import formulas

from . import snntorch_surrogates, spikingjelly_surrogates, stepped
from .record import arguments_of, record_surrogate


@dataclass(frozen=True)
class Surrogate:
    """A derivative `function(u, *parameters)` with its parameters' values.

    Calling it with a tensor `u` of any shape returns the derivative, with the same shape and dtype.

    Raises:
        TypeError: a parameter that is not a plain number, such as a tensor; surrogates are not
            learned.
    """

    function: Callable[..., Any]
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for value in self.parameters:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(
                    f"a surrogate's parameters must be plain numbers, which are not learned, got "
                    f"{value!r}"
                )

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Return the derivative at `u`, elementwise."""
        return self.function(u, *self.parameters)

    def __str__(self) -> str:
        values = ", ".join(f"{value:g}" for value in self.parameters)
        return f"{self.name}({values})" if values else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        text = getattr(self.function, "text", None)
        if text is None:
            return Surrogate, (self.function, self.parameters)
        return _recorded, (self.name, text, self.parameters)

    @property
    def text(self) -> str:
        """The recorded derivative as text; see `neurons.program`."""
        if is_built_in(self.function):
            return _TEXTS[self.function.__name__]
        text: str = self.function.text  # type: ignore[attr-defined]
        return text

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__


def _recorded(name: str, text: str, parameters: tuple[float, ...]) -> Surrogate:
    """Return a recorded surrogate, whose function is made from its text."""
    return Surrogate(stepped.surrogate_of(text, name), parameters)


def atan(alpha: float = 2.0) -> Surrogate:
    """`(alpha/2) / (1 + (pi*alpha*u/2)^2)`; Fang et al. 2021, arXiv:2007.05785. As in snnTorch."""
    return Surrogate(formulas.atan, (_positive("alpha", alpha),))


def fast_sigmoid(slope: float = 25.0) -> Surrogate:
    """`1 / (slope*|u| + 1)^2`; Zenke and Ganguli 2018, doi:10.1162/neco_a_01086. As in snnTorch."""
    return Surrogate(formulas.fast_sigmoid, (_positive("slope", slope),))


def sigmoid(slope: float = 25.0) -> Surrogate:
    """`slope*q*(1-q)`, with `q` the logistic function of `slope*u`.

    snnTorch 1.0.0 has the same formula but gives NaN for `u <= -3.5`; this one is always finite.
    """
    return Surrogate(formulas.sigmoid, (_positive("slope", slope),))


def triangular(width: float = 1.0) -> Surrogate:
    """`max(0, 1 - |u|/width) / width`; Bellec et al. 2018, arXiv:1803.09574.

    Not snnTorch's `triangular`, whose derivative is the constant +-threshold on each side of 0.
    """
    return Surrogate(formulas.triangular, (_positive("width", width),))


def straight_through() -> Surrogate:
    """`1` everywhere; Bengio, Leonard and Courville 2013, arXiv:1308.3432. As in snnTorch."""
    return Surrogate(formulas.straight_through)


def boxcar(width: float = 1.0) -> Surrogate:
    """`1/width` where `|u| < width/2`, else 0; Wu et al. 2018, doi:10.3389/fnins.2018.00331."""
    return Surrogate(formulas.boxcar, (_positive("width", width),))


def gaussian(sigma: float = 0.5) -> Surrogate:
    """Normal density of standard deviation `sigma`; Yin et al. 2020, arXiv:2005.11633."""
    return Surrogate(formulas.gaussian, (_positive("sigma", sigma),))


BUILT_IN: dict[str, Callable[..., Surrogate]] = {
    maker.__name__: maker
    for maker in (atan, fast_sigmoid, sigmoid, triangular, straight_through, boxcar, gaussian)
}


_TEXTS = {
    name: record_surrogate(function, (1.0,) * (len(arguments_of("surrogate", function)) - 1))[0]
    for name, function in ((name, getattr(formulas, name)) for name in BUILT_IN)
}


def resolve(surrogate: "str | Surrogate | Callable[..., Any]") -> Surrogate:
    """Return the `Surrogate` that a name, a `Surrogate` or a scalar function stands for.

    A surrogate of snnTorch or SpikingJelly is translated. A function of the user is recorded
    (`neurospike.neurons.record`): the result computes the same, and the numbers that the function
    reads from outside are its parameters.

    Raises:
        ValueError: an unknown name.
        TypeError: none of the three, a function that not every backend can run, or a surrogate of
            snnTorch or SpikingJelly that has no counterpart.
    """
    if isinstance(surrogate, str):
        if surrogate not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise ValueError(f"unknown surrogate {surrogate!r}; choose one of {known}")
        return BUILT_IN[surrogate]()
    if not isinstance(surrogate, Surrogate):
        if not callable(surrogate):
            raise TypeError(
                f"surrogate must be a name, a Surrogate or a function of u, got {surrogate!r}"
            )
        if surrogate in BUILT_IN.values():
            raise TypeError(
                f"surrogate got the function {surrogate.__name__} that makes one; call it, as in "
                f"surrogate={surrogate.__name__}(), or give its name, {surrogate.__name__!r}"
            )
        surrogate = Surrogate(*(_translated(surrogate) or (surrogate, ())))
    if is_built_in(surrogate.function) or hasattr(surrogate.function, "text"):
        return surrogate
    text, numbers = record_surrogate(surrogate.function, surrogate.parameters)
    return _recorded(surrogate.function.__name__, text, numbers)


_OTHERS = {
    "snntorch.surrogate": (snntorch_surrogates, "atan(alpha=2.0)"),
    "spikingjelly.activation_based.surrogate": (spikingjelly_surrogates, "ATan(alpha=2.0)"),
}


def _translated(surrogate: Any) -> tuple[Callable[..., Any], tuple[float, ...]] | None:
    """Return the derivative and parameters of another library's surrogate; None for all else."""
    owner = getattr(surrogate, "__self__", surrogate)
    if not inspect.isfunction(owner) and not inspect.isclass(owner):
        owner = type(owner)
    known = _OTHERS.get(owner.__module__)
    if known is None:
        return None
    library, example = known
    found = library.derivative_of(surrogate)
    if found is None:
        name = owner.__qualname__.partition(".<locals>.")[0]
        raise TypeError(
            f"surrogate got {name} of {owner.__module__}, which cannot be translated as it is; "
            f"give what a call makes, as in surrogate.{example}, of {library.NAMES}; or the "
            "derivative as a function of u"
        )
    return found


def is_built_in(function: Callable[..., Any]) -> bool:
    """Return whether a derivative is one of the surrogates in `neurospike.formulas`."""
    name = getattr(function, "__name__", "")
    return name in BUILT_IN and getattr(formulas, name) is function


def _positive(name: str, value: float) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)
