"""A backend against the reference and the float64 oracle, and the ways in which torch calls it.

What the tests do on any machine, for a device that the tests' machines lack; needs no pytest.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import neurospike as ns
from neurospike import dispatch
from tests import oracle

from .gate import GateError, check_close

RULES = (
    {"reset": "subtract"},
    {"reset": "zero"},
    {"reset": "none"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False},
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
)
SHAPES = (  # of the current, beta and threshold
    ((7, 3, 5), (), ()),
    ((4, 2, 3, 5, 2), (3, 1, 1), (5, 2)),
    ((1, 1, 1), (), (1,)),
    ((5, 3, 1031), (1031,), (1031,)),
    ((16, 2, 4096), (), ()),
    ((40, 2, 700), (), (700,)),
)
BUDGET = {torch.float32: 1e-5, torch.float64: 1e-12}
LONG = (3, 1 << 30)  # more numbers than 32 bits count


@dataclass(frozen=True)
class Check:
    """Something to prove: `run` returns the largest distance of a gradient, or raises."""

    name: str
    run: Callable[[], float]


def checks(device: str, backend: str) -> Iterator[Check]:
    """Yield the proofs for a backend on a device; those of CUDA only there."""
    for rule in RULES:
        name = " ".join(str(v) for v in rule.values())
        yield Check(f"rule {name}", lambda r=rule: _matrix(device, backend, r))
    for surrogate in ns.surrogate.BUILT_IN:
        for rule in (RULES[0], RULES[4]):
            yield Check(
                f"surrogate {surrogate}, {rule['reset']}",
                lambda s=surrogate, r=rule: _one(
                    device, backend, SHAPES[3], torch.float32, {**r, "surrogate": s}
                ),
            )
    for part in (_twice, _sixteen_bits, _constant, _window, _of_spikes, _compiled):
        yield Check(part.__name__.strip("_").replace("_", " "), lambda p=part: p(device, backend))
    if device == "cuda":
        for part in (_other_stream, _graph, _autocast, _second_device, _long):
            title = part.__name__.strip("_").replace("_", " ")
            yield Check(title, lambda p=part: p(backend))


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


def _matrix(device: str, backend: str, rule: dict) -> float:
    every = [_one(device, backend, s, d, rule) for s in SHAPES for d in BUDGET]
    return max(every)


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


def _other_stream(backend: str) -> float:
    wanted = _run("cuda", backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = _run("cuda", backend)
    torch.cuda.current_stream().wait_stream(stream)
    for got, want in zip(found, wanted):
        _equal("on another stream", got, want)
    return 0.0


def _graph(backend: str) -> float:
    """A captured forward and backward, replayed on new values."""
    layer = ns.LIF(0.9, learn_beta=True, backend=backend).cuda()
    held = torch.zeros(25, 4, 1000, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        spikes, mem = layer(held)
        (grad,) = torch.autograd.grad(spikes.sum() + mem.sum(), held)
        return spikes, grad

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        held.copy_(torch.randn_like(held))
    graph.replay()
    for got, want in zip(found, step()):
        _equal("a replayed graph", got, want)
    return 0.0


def _autocast(backend: str) -> float:
    """16-bit currents of a linear layer reach the fused kernel as they are."""
    linear, layer = torch.nn.Linear(64, 100).cuda(), ns.LIF(0.9, backend=backend).cuda()
    pictures = torch.rand(25, 8, 64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16), _launches(backend) as count:
        spikes, mem = layer(linear(pictures))
        (spikes.sum() + mem.sum()).backward()
    if spikes.dtype != torch.bfloat16 or mem.dtype != torch.float32:
        raise GateError(f"autocast: spikes of {spikes.dtype} and a state of {mem.dtype}")
    if len(count) != 2:
        raise GateError(f"autocast: {len(count)} launches of fused kernels, wanted 2")
    return 0.0


@contextlib.contextmanager
def _launches(backend: str) -> Iterator[list[object]]:
    module = dispatch.load(dispatch.TABLE[backend].module)
    launch, seen = module._launch, []

    def counted(kernel: object, *rest: object) -> None:
        seen.append(kernel)
        launch(kernel, *rest)

    module._launch = counted
    try:
        yield seen
    finally:
        module._launch = launch


def _second_device(backend: str) -> float:
    """The last device, while the first is the current one."""
    last = f"cuda:{torch.cuda.device_count() - 1}"
    for got, want in zip(_run(last, backend), _run("cuda:0", backend)):
        _equal(last, got.cpu(), want.cpu())
    return 0.0


def _long(backend: str) -> float:
    """A sequence of more than 2^31 numbers: its last neurons are those of a short one."""
    needed = 2 * 2 * LONG[0] * LONG[1] + 4 * LONG[1]
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        raise MemoryError(f"{needed / 2**30:.0f} GiB of the device's memory are not free")
    current = torch.empty(LONG[0], 1, LONG[1], dtype=torch.bfloat16, device="cuda").normal_()
    with torch.no_grad():
        spikes, mem = ns.lif(current, beta=0.9, backend=backend)
        few = ns.lif(current[..., -1024:].clone(), beta=0.9, backend=backend)
    _equal("spikes of a long sequence", spikes[..., -1024:], few[0])
    _equal("membranes of a long sequence", mem[..., -1024:], few[1])
    return 0.0
