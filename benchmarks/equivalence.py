"""A backend against the reference and the float64 oracle, and the ways in which torch calls it.

What the tests do on any machine, for a device that the tests' machines lack; needs no pytest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import neurospike as ns
from tests import oracle

from .device import Device
from .gate import GateError, check_close

SHAPES = (  # of the current, beta and threshold
    ((7, 3, 5), (), ()),
    ((4, 2, 3, 5, 2), (3, 1, 1), (5, 2)),
    ((1, 1, 1), (), (1,)),
    ((5, 3, 1031), (1031,), (1031,)),
    ((16, 2, 4096), (), ()),
    ((40, 2, 700), (), (700,)),
)
BUDGET = {torch.float32: 1e-5, torch.float64: 1e-12}


class Skip(Exception):
    """A check that this machine has no room for."""


@dataclass(frozen=True)
class Check:
    """Something to prove: `run` returns the largest distance of a gradient, or raises."""

    name: str
    run: Callable[[], float]


def checks(device: Device, backend: str) -> Iterator[Check]:
    """Yield the proofs for a backend on a device."""
    for rule in oracle.RULES:
        name = " ".join(str(v) for v in rule.values())
        for dtype in BUDGET:
            yield Check(
                f"rule {name} {str(dtype).removeprefix('torch.')}",
                lambda r=rule, d=dtype: _matrix(device, backend, r, d),
            )
    for surrogate in ns.surrogate.BUILT_IN:
        for rule in (oracle.RULES[0], oracle.RULES[4]):
            yield Check(
                f"surrogate {surrogate}, {rule['reset']}",
                lambda s=surrogate, r=rule: _one(
                    device.type, backend, SHAPES[3], torch.float32, {**r, "surrogate": s}
                ),
            )
    for part in (_twice, _sixteen_bits, _constant, _lengths, _window, _of_spikes, _compiled):
        name = part.__name__.strip("_").replace("_", " ")
        yield Check(name, lambda p=part: p(device.type, backend))
    for part in (_other_stream, _graph, _autocast, _second_device, _long):
        name = part.__name__.strip("_").replace("_", " ")
        yield Check(name, lambda p=part: p(device, backend))


def problem(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Return `[current, mem, beta, threshold]` on the CPU, each to be differentiated."""
    shape, beta, threshold = shapes
    drawn = torch.Generator().manual_seed(0)
    values = (
        torch.randn(shape, generator=drawn) * 0.8,
        torch.randn(shape[1:], generator=drawn),
        0.5 + 0.5 * torch.rand(beta, generator=drawn),
        0.4 + torch.rand(threshold, generator=drawn),
    )
    return [v.to(dtype).requires_grad_() for v in values]


def _matrix(device: Device, backend: str, rule: dict, dtype: torch.dtype) -> float:
    return max(_one(device.type, backend, shapes, dtype, rule) for shapes in SHAPES)


def _one(device: str, backend: str, shapes: Sequence, dtype: torch.dtype, rule: dict) -> float:
    """Spikes and membranes of the reference on the CPU, bit for bit; gradients of the oracle."""
    inputs = problem(shapes, dtype)
    current, mem, beta, threshold = mine = [t.detach().to(device).requires_grad_() for t in inputs]
    options = {"return_trace": True, **rule}
    found = ns.lif(current, mem, beta=beta, threshold=threshold, backend=backend, **options)
    current, mem, beta, threshold = inputs
    same = ns.lif(current, mem, beta=beta, threshold=threshold, backend="reference", **options)
    for what, got, want in zip(("spikes", "membranes", "traces"), found, same):
        # Spikes alone have to be equal in double precision, where a multiplication by a number
        # of the oracle may be rounded in another place.
        if dtype == torch.float32 or what == "spikes":
            _equal(f"{what} of {shapes[0]}", got.cpu(), want)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wanted = oracle.lif(*exact, **rule)
    if not torch.equal(wanted[0].to(dtype), same[0]):
        # A membrane within rounding of the threshold: the gradient is another one there.
        exact, wanted = inputs, same
    gradients = zip(_gradients(found, mine), _gradients(wanted, exact))
    budget = BUDGET[dtype]
    return max(check_close(f"{shapes[0]}", got.cpu(), want, budget) for got, want in gradients)


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=drawn).to(out) for out in outputs]
    total = sum((out * w).sum() for out, w in zip(outputs, weights))
    return list(torch.autograd.grad(total, inputs, materialize_grads=True))


def _equal(what: str, found: Tensor, wanted: Tensor) -> None:
    if not torch.equal(found, wanted):
        differ = int((found != wanted).sum())
        raise GateError(f"{what}: {differ} of {wanted.numel()} numbers differ")


def _run(device: str, backend: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Outputs and gradients of a layer with learned scalars, on values that are always the same."""
    inputs = problem(((16, 4, 1000), (), ()), torch.float32)
    current, mem, beta, threshold = (t.detach().to(device).requires_grad_() for t in inputs)
    current = current.detach().to(dtype).requires_grad_()
    out = ns.lif(current, mem, beta=beta, threshold=threshold, backend=backend, return_trace=True)
    return [*(o.detach() for o in out), *_gradients(out, [current, mem, beta, threshold])]


def _twice(device: str, backend: str) -> float:
    for first, second in zip(_run(device, backend), _run(device, backend)):
        _equal("a second run", second, first)
    return 0.0


def _sixteen_bits(device: str, backend: str) -> float:
    for dtype in (torch.float16, torch.bfloat16):
        current = torch.randn(12, 2, 65, generator=torch.Generator().manual_seed(0)).to(dtype)
        narrow = current.to(device).requires_grad_()
        wide = current.detach().to(device).float().requires_grad_()
        outputs = [ns.lif(x, beta=0.9, backend=backend) for x in (narrow, wide)]
        _equal(f"spikes of {dtype}", outputs[0][0].float(), outputs[1][0])
        _equal(f"membranes of {dtype}", outputs[0][1], outputs[1][1])
        for spikes, mem in outputs:
            (spikes.sum() + mem.sum()).backward()
        _equal(f"gradients of {dtype}", narrow.grad, wide.grad.to(dtype))
    return 0.0


def _constant(device: str, backend: str) -> float:
    held, _, beta, threshold = (
        t.detach().to(device) for t in problem(((1, 3, 70), (70,), ()), torch.float64)
    )
    held = held[0].requires_grad_()
    options = {"beta": beta, "threshold": threshold, "return_trace": True, "backend": backend}
    found = ns.lif(held, num_steps=25, **options)
    wanted = ns.lif(held.expand(25, 3, 70), **options)
    for got, want in zip(found, wanted):
        _equal("a constant current", got, want)
    pairs = zip(_gradients(found, [held]), _gradients(wanted, [held]))
    return max(check_close("a constant current", got, want, 1e-12) for got, want in pairs)


def _lengths(device: str, backend: str) -> float:
    """Samples that end sooner than others, and NaN after that, which nobody reads."""
    found = []
    for on, name in ((device, backend), ("cpu", "reference")):
        inputs = problem(((20, 5, 300), (300,), ()), torch.float64)
        lengths = torch.tensor([20, 0, 3, 16, 1])
        with torch.no_grad():
            inputs[0][torch.arange(20)[:, None] >= lengths] = torch.nan
        current, mem, beta, threshold = mine = [t.detach().to(on).requires_grad_() for t in inputs]
        options = {"beta": beta, "threshold": threshold, "backend": name, "return_trace": True}
        out = ns.lif(current, mem, lengths=lengths.to(on), **options)
        found.append((out[0].cpu(), [grad.cpu() for grad in _gradients(out, mine)]))
    (spikes, gradients), (same, wanted) = found
    _equal("spikes of several lengths", spikes, same)
    pairs = zip(gradients, wanted)
    return max(check_close("several lengths", got, want, 1e-12) for got, want in pairs)


def _window(device: str, backend: str) -> float:
    """Surrogate gradients that are cut off, some of them and not all."""
    current = problem(SHAPES[3], torch.float64)[0]
    found = []
    for on, name in ((device, backend), ("cpu", "reference")):
        for window in (0.3, None):
            leaf = current.detach().to(on).requires_grad_()
            out = ns.lif(leaf, beta=0.9, grad_window=window, backend=name)
            found.append(_gradients(out, [leaf])[0].cpu())
    if torch.equal(found[0], found[1]):
        raise GateError("a window of 0.3 cut nothing off")
    return check_close("with a window", found[0], found[2], 1e-12)


def _of_spikes(device: str, backend: str) -> float:
    """`ns.spike_layer` is a linear layer and its neurons in a row."""
    linear = ns.SpikeLinear(70, 90, backend=backend).to(device)
    neurons = ns.LIF(0.9, backend=backend).to(device)
    spikes = (torch.rand(12, 4, 70, generator=torch.Generator().manual_seed(0)) < 0.1).to(device)
    currents = torch.nn.functional.linear(spikes.float(), linear.weight, linear.bias)
    found, wanted = ns.spike_layer(linear, neurons, spikes), neurons(currents)
    for got, want in zip(found, wanted):
        _equal("a layer of spikes", got, want)
    parameters = list(linear.parameters())
    pairs = zip(_gradients(found, parameters), _gradients(wanted, parameters))
    return max(check_close("a layer of spikes", got, want) for got, want in pairs)


def _compiled(device: str, backend: str) -> float:
    layer = ns.LIF(0.9, learn_beta=True, backend=backend).to(device)
    current = torch.randn(8, 2, 100, device=device)
    grads = []
    outputs = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        leaf = current.clone().requires_grad_()
        spikes, mem = function(leaf)
        (spikes.sum() + mem.sum()).backward()
        outputs.append(spikes.detach())
        grads.append(leaf.grad)
    _equal("under torch.compile", outputs[1], outputs[0])
    return check_close("under torch.compile", grads[1], grads[0])


def _other_stream(device: Device, backend: str) -> float:
    wanted = _run(device.type, backend)
    found = device.on_another_stream(lambda: _run(device.type, backend))
    for got, want in zip(found, wanted):
        _equal("on another stream", got, want)
    return 0.0


def _graph(device: Device, backend: str) -> float:
    """A recorded forward and backward, replayed on new values."""
    layer = ns.LIF(0.9, learn_beta=True, backend=backend).to(device.type)
    held = torch.zeros(25, 4, 1000, device=device.type, requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        spikes, mem = layer(held)
        (grad,) = torch.autograd.grad(spikes.sum() + mem.sum(), held)
        return spikes.detach(), grad

    recorded = device.record(step)
    with torch.no_grad():
        held.copy_(torch.randn_like(held))
    for got, want in zip(recorded(), step()):
        _equal("a replayed graph", got, want)
    return 0.0


def _autocast(device: Device, backend: str) -> float:
    """16-bit currents of a linear layer reach the fused kernel as they are."""
    linear = torch.nn.Linear(64, 100).to(device.type)
    layer = ns.LIF(0.9, backend=backend).to(device.type)
    pictures = torch.rand(25, 8, 64, device=device.type)
    with torch.autocast(device.type, dtype=torch.bfloat16), Launches() as launches:
        spikes, mem = layer(linear(pictures))
        (spikes.sum() + mem.sum()).backward()
    if spikes.dtype != torch.bfloat16 or mem.dtype != torch.float32:
        raise GateError(f"autocast: spikes of {spikes.dtype} and a state of {mem.dtype}")
    wanted = [f"{backend}_scan", f"{backend}_scan_backward"]
    if launches.names != wanted:
        raise GateError(f"autocast: {launches.names} were launched, wanted {wanted}")
    return 0.0


class Launches(TorchDispatchMode):
    """Records the names of our operators that run within the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and keep its name if it is ours."""
        space, _, name = func.name().partition("::")
        if space == "neurospike":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _second_device(device: Device, backend: str) -> float:
    """The last device, while the first is the current one."""
    last = device.last()
    for got, want in zip(_run(last, backend), _run(device.type, backend)):
        _equal(last, got.cpu(), want.cpu())
    return 0.0


def _long(device: Device, backend: str) -> float:
    """A sequence of more than 2^31 numbers: its last neurons are those of a short one."""
    steps, neurons = device.long
    needed = 2 * 2 * steps * neurons + 4 * neurons
    if device.free_bytes() < 1.2 * needed:
        raise Skip(f"{needed / 2**30:.0f} GiB of the device's memory are not free")
    current = torch.empty(steps, 1, neurons, dtype=torch.bfloat16, device=device.type).normal_()
    with torch.no_grad():
        spikes, mem = ns.lif(current, beta=0.9, backend=backend)
        few = ns.lif(current[..., -1024:].clone(), beta=0.9, backend=backend)
    _equal("spikes of a long sequence", spikes[..., -1024:], few[0])
    _equal("membranes of a long sequence", mem[..., -1024:], few[1])
    return 0.0
