"""What a layer is measured against, each with what it computes.

A layer here is a function `current [T, B, N] -> spikes [T, B, N]`, differentiable. The sequence is
taken apart by `unbind` wherever a rival steps in Python: indexing `x[t]` would make torch's
backward quadratic in T and flatter us many times over.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import neurospike as ns
from neurospike import ops

Layer = Callable[[Tensor], Tensor]
BETA = 0.95


@dataclass(frozen=True)
class Rival:
    """A layer of another library, and what one has to know to compare with it.

    `options` are those of `ns.lif` that compute the same, `oracle` a plain loop where there are
    none. `rounding`: whether it rounds in another order, so that a neuron that comes within
    rounding of its threshold may fire otherwise.
    """

    name: str
    package: str
    make: Callable[[], Layer]
    reset: str
    fires: str
    surrogate: str
    timed: str
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle: Callable[[], Layer] | None = None
    rounding: bool = False
    compiled: bool = False

    @property
    def delayed(self) -> bool:
        """Whether its reset waits for the next step, as ours does by default."""
        return self.options.get("reset_delay", True)

    def wanted(self) -> Layer:
        """Return what its gate compares it with."""
        return self.oracle() if self.oracle else ours("reference", **self.options)


def ours(backend: str, **options: Any) -> Layer:
    """NeuroSpike; by default with the semantics of snnTorch."""

    def layer(current: Tensor) -> Tensor:
        return ns.lif(current, beta=BETA, backend=backend, **options)[0]

    return layer


def snntorch_loop() -> Layer:
    """`Leaky` of snnTorch, soft delayed reset, atan(2), stepped over `unbind`."""
    import snntorch

    leaky = snntorch.Leaky(beta=BETA)

    def layer(current: Tensor) -> Tensor:
        if leaky.beta.device != current.device:
            leaky.to(current.device)
        mem = leaky.init_leaky()
        spikes = []
        for current_t in current.unbind(0):
            spike, mem = leaky(current_t, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return layer


def spikingjelly_multi_step() -> Layer:
    """SpikingJelly's `lif_multi_step`: soft immediate reset, fires at `>=`, atan(2).

    Its kernels take a 16-bit current with a float32 state, as ours do.
    """
    from spikingjelly.activation_based import functional, surrogate

    function = surrogate.ATan(alpha=2.0)

    def layer(current: Tensor) -> Tensor:
        mem = torch.zeros_like(current[0], dtype=ops.state_dtype(current.dtype))
        spikes = functional.lif_multi_step(
            current,
            mem,
            tau=1.0 / (1.0 - BETA),
            decay_input=False,
            v_reset=None,
            surrogate_function=function,
        )[0]
        return spikes.to(current.dtype)

    return layer


def compiled(layer: Layer) -> Layer:
    """Return a rival under torch.compile; its first call takes from seconds to minutes."""
    return torch.compile(layer, dynamic=False)


def norse_loop() -> Layer:
    """`LIFBoxCell` of Norse, stepped over `unbind`: `v += dt / tau * (i - v)`, reset at once.

    With `dt / tau = 1 - beta` and a current divided by as much it is `beta * v + current`. Its
    surrogate is named for a slope of 100, which its code does not use: it is that of slope 1.
    """
    import norse.torch as norse
    from norse.torch.functional.reset import reset_subtract

    share = 1.0 - BETA
    parameters = norse.LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(share), reset_method=reset_subtract
    )
    cell = norse.LIFBoxCell(parameters, dt=1.0)

    def layer(current: Tensor) -> Tensor:
        state, spikes = None, []
        for current_t in (current / share).unbind(0):
            spike, state = cell(current_t, state)
            spikes.append(spike)
        return torch.stack(spikes)

    return layer


def spyx_oracle() -> Layer:
    """What spyx computes: the spikes of the step before, and a gradient through the reset."""

    def layer(current: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(current[0]), []
        for current_t in current.unbind(0):
            u = mem - 1.0
            slope = (1.0 / (1.0 + (torch.pi * u) ** 2)).detach()
            spike = (u > 0).to(u.dtype) + slope * (u - u.detach())
            mem = BETA * mem + current_t - spike
            spikes.append(spike)
        return torch.stack(spikes)

    return layer


def _spyx() -> Layer:
    from .rival_jax import Spyx

    return Spyx(BETA)


def installed(package: str) -> bool:
    """Return whether a rival's package is here."""
    return importlib.util.find_spec(package) is not None


def layer_step(layer: Layer, current: Tensor, grad: Tensor) -> Callable[[], object]:
    """Return forward and backward of a layer, given the gradient of its spikes.

    The current's gradient is freed within the step: else the next rival would pay for it.
    """
    if hasattr(layer, "step"):  # of a library with arrays of its own
        return layer.step(current, grad)

    def step() -> None:
        layer(current).backward(grad)
        current.grad = None

    return step


def inference(layer: Layer, current: Tensor) -> Callable[[], object]:
    """Return forward alone, under no_grad."""
    if hasattr(layer, "inference"):
        return layer.inference(current)

    def step() -> None:
        with torch.no_grad():
            layer(current)

    return step


_SNNTORCH = {
    "package": "snntorch",
    "reset": "subtract, a step later",
    "fires": "`>`",
    "surrogate": "atan(2)",
}
_SPIKINGJELLY = {
    "package": "spikingjelly",
    "reset": "subtract, at once",
    "fires": "`>=`",
    "surrogate": "atan(2)",
    "options": {"reset_delay": False},
    "rounding": True,
}
RIVALS = (
    Rival(
        "snntorch",
        make=snntorch_loop,
        timed="`Leaky` stepped over `x.unbind(0)`, spikes stacked",
        **_SNNTORCH,
    ),
    Rival(
        "snntorch compiled",
        make=lambda: compiled(snntorch_loop()),
        timed="that loop under `torch.compile(dynamic=False)`, after its first call",
        compiled=True,
        rounding=True,
        **_SNNTORCH,
    ),
    Rival(
        "spyx",
        package="spyx",
        make=_spyx,
        reset="subtract, a step later, with a gradient through it",
        fires="`>`, told a step later",
        surrogate="atan(2)",
        timed="`spyx.nn.LIF` in `spyx.nn.run` under `jax.jit` on arrays of JAX, all cores",
        oracle=spyx_oracle,
        rounding=True,
    ),
    Rival(
        "spikingjelly",
        make=spikingjelly_multi_step,
        timed="`functional.lif_multi_step`",
        **_SPIKINGJELLY,
    ),
    Rival(
        "spikingjelly compiled",
        make=lambda: compiled(spikingjelly_multi_step()),
        timed="that function under `torch.compile(dynamic=False)`, after its first call",
        compiled=True,
        **_SPIKINGJELLY,
    ),
    Rival(
        "norse",
        package="norse",
        make=norse_loop,
        reset="subtract, at once",
        fires="`>`",
        surrogate="fast_sigmoid(1)",
        timed="`LIFBoxCell` stepped over `unbind`, current scaled once to its Euler step",
        options={"reset_delay": False, "surrogate": ns.surrogate.fast_sigmoid(1.0)},
        rounding=True,
    ),
)


def here(*, slow: bool = False) -> list[Rival]:
    """Return the rivals that are installed; with `slow` also those compiled for minutes."""
    return [r for r in RIVALS if installed(r.package) and (slow or not r.compiled)]
