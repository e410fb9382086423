"""Measure neurons of more than one state: `python -m benchmarks.neurons [--out DIR] [--compiled]`.

Training steps of `ns.Synaptic` against snnTorch's, of `ns.SEAdLIF` against the same equations
stepped in torch, beside a copy of 20 B per neuron-step; and the first call of a new neuron in a new
process. Every case passes the equivalence gate first. Writes `DIR/neurons.json`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import neurospike as ns

from . import rivals
from .cpu import FLOOR
from .gate import gate
from .rivals import BETA, Layer
from .telling import Row, number_printed, store, tell
from .timing import copy_bandwidth, interleave, machine, tensors

COMPILED_STEPS = 25  # unrolled: more of them compile for minutes


class Spike(torch.autograd.Function):
    """H(u) with the derivative of atan(2), as a user of torch writes it."""

    @staticmethod
    def forward(ctx: object, u: Tensor) -> Tensor:
        """Return H(u)."""
        ctx.save_for_backward(u)  # type: ignore[attr-defined]
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """Return the gradient of u."""
        (u,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad / (1.0 + (torch.pi * u) ** 2)


def stepped_adlif(layer: ns.SEAdLIF) -> Layer:
    """SE-adLIF in a loop over time in torch, with the parameters of a layer."""
    d_u, d_w, a, b, q, threshold = (value.detach() for value in layer.parameter_values())

    def run(current: Tensor) -> Tensor:
        u = w = torch.zeros_like(current[0])
        spikes = []
        for x in current.unbind(0):
            u = d_u * u + (1.0 - d_u) * (x - w)
            spike = Spike.apply(u - threshold)
            u = u * (1.0 - spike.detach())
            w = d_w * w + (1.0 - d_w) * q * (a * u + b * spike)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def stepped_synaptic() -> Layer:
    """`Synaptic` of snnTorch, stepped over `unbind`."""
    import snntorch

    neurons = snntorch.Synaptic(alpha=0.9, beta=BETA)

    def run(current: Tensor) -> Tensor:
        syn, mem = neurons.reset_mem()
        spikes = []
        for x in current.unbind(0):
            spike, syn, mem = neurons(x, syn, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def spikes_of(layer: torch.nn.Module) -> Layer:
    """Return a layer as a function from current to spikes."""
    return lambda current: layer(current)[0]


def adlif() -> ns.SEAdLIF:
    """Return SE-adLIF neurons that fire at the currents of `timing.tensors`."""
    return ns.SEAdLIF(0.6, 0.9, 0.5, 1.0, 1.0, 0.3, backend="numba")


def measure(
    case: str, name: str, ours: Layer, others: dict[str, Layer], seconds: float, exact: bool = True
) -> Row:
    """Time a training step of ours beside the others and the floor, after the gate."""
    current, grad = tensors(case)
    for other, layer in others.items():
        gate(f"{name} {case}, {other}", ours, layer, current, grad, rounding=not exact)
    calls: dict[str, Callable[[], object]] = {name: rivals.layer_step(ours, current, grad)}
    calls |= {other: rivals.layer_step(layer, current, grad) for other, layer in others.items()}
    calls[FLOOR] = copy_bandwidth(20 * current.numel())
    found = interleave(calls, seconds=seconds)
    ratios = {f"{other} / {name}": found[other].over(found[name]) for other in others}
    ratios[f"{name} / floor"] = found[name].over(found[FLOOR])
    return tell(f"{name}, {case}, training step", found, ratios)


FIRST_CALL = """
import sys, time, torch, neurospike as ns
from neurospike.formulas import fire, heaviside
def neuron(current, a, b, c, decay):
    a = decay * a + current
    b = decay * b + a
    c = decay * c + b - heaviside(c - 1.0)
    return fire(c - 1.0), a, b, c
x = torch.randn(25, 32, 256, requires_grad=True)
if sys.argv[1:]:
    ns.LIF(0.9, backend="numba")(x)[0].sum().backward()
start = time.perf_counter()
ns.Spiking(neuron, decay=0.8, backend="numba")(x)[0].sum().backward()
print(time.perf_counter() - start)
"""


def start() -> Row:
    """First forward and backward of a new neuron: cold, warm, and after another neuron's."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FIRST_CALL]
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        cold, *warm = (number_printed(command, environment) for _ in range(4))
        after = min(number_printed([*command, "after"], environment) for _ in range(3))
    print(
        f"first call of a new neuron: {cold:.2f} s, with kept code {min(warm):.2f} s, after "
        f"another neuron's {after:.2f} s\n"
    )
    return {
        "case": "first call of a new neuron, seconds",
        "cold": cold,
        "warm": min(warm),
        "after another's": after,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neurons", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent on each case")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="also against loops under torch.compile, whose first calls take minutes",
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: Row = {"machine": machine(), "cases": []}
    print(json.dumps(results["machine"], indent=2))
    synaptic = spikes_of(ns.Synaptic(0.9, BETA, backend="numba"))
    layer = adlif()
    cases: list[tuple[str, str, Layer, dict[str, Layer], bool]] = [
        ("25x128x1000", "Synaptic", synaptic, {"snntorch": stepped_synaptic()}, True),
        ("100x128x1000", "Synaptic", synaptic, {"snntorch": stepped_synaptic()}, True),
        ("100x128x1000", "SEAdLIF", spikes_of(layer), {"torch": stepped_adlif(layer)}, False),
    ]
    if options.compiled:
        compiled = {"torch compiled": rivals.compiled(stepped_adlif(layer))}
        cases.append((f"{COMPILED_STEPS}x128x1000", "SEAdLIF", spikes_of(layer), compiled, False))
    for case, name, ours, others, exact in cases:
        results["cases"].append(measure(case, name, ours, others, options.seconds, exact))
    results["start"] = start()
    store(results, options.out / "neurons.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
