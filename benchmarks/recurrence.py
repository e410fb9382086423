"""Measure recurrent layers on the CPU: `python -m benchmarks.recurrence [--out DIR]`.

Training steps of `ns.Recurrent` against snnTorch's `RLeaky`, and of recurrent SE-adLIF against the
same equations stepped in torch, beside the products that no such step can leave out: one for each
step forward, one for each step backward, and the weight's gradient. Every case passes the
equivalence gate first. Writes `DIR/recurrence.json`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import neurospike as ns

from . import rivals
from .gate import DIFFERENT, GateError, check_close
from .neurons import Spike
from .rivals import BETA, Layer
from .saved import bytes_saved, peak_memory
from .telling import Row, store, tell
from .timing import interleave, machine, tensors

OURS = "neurospike"
PRODUCTS = "the products alone"
CASES = ("100x64x256", "100x64x512", "250x32x128")  # of RLeaky
ADAPTIVE = "100x64x256"  # of SE-adLIF


def stepped_rleaky(layer: ns.Recurrent) -> nn.Module:
    """Return snnTorch's `RLeaky`, of LIF neurons, with the weight and bias of a layer of ours."""
    import snntorch

    neurons = snntorch.RLeaky(BETA, all_to_all=True, linear_features=layer.size)
    neurons.recurrent.weight, neurons.recurrent.bias = layer.weight, layer.bias
    return _Stepped(neurons)


class _Stepped(nn.Module):
    def __init__(self, neurons: nn.Module) -> None:
        super().__init__()
        self.neurons = neurons

    def forward(self, current: Tensor) -> Tensor:
        spike, mem = self.neurons.reset_mem()
        spikes = []
        for x in current.unbind(0):
            spike, mem = self.neurons(x, spike, mem)
            spikes.append(spike)
        return torch.stack(spikes)


def stepped_adlif(layer: ns.Recurrent) -> Layer:
    """Recurrent SE-adLIF in a loop over time in torch, with the weights of a layer of ours."""
    neuron = layer.neuron
    assert isinstance(neuron, ns.SEAdLIF)
    d_u, d_w, a, b, q, threshold = (value.detach() for value in neuron.parameter_values())

    def run(current: Tensor) -> Tensor:
        u = w = spike = torch.zeros_like(current[0])
        spikes = []
        for x in current.unbind(0):
            x = nn.functional.linear(spike, layer.weight, layer.bias) + x
            u = d_u * u + (1.0 - d_u) * (x - w)
            spike = Spike.apply(u - threshold)
            u = u * (1.0 - spike.detach())
            w = d_w * w + (1.0 - d_w) * q * (a * u + b * spike)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def gate(name: str, layer: nn.Module, ours: Layer, oracle: Layer, case: str) -> dict[str, float]:
    """Compare the spikes of samples, and gradients of current and weight where all are equal.

    Sums of the weight's rows are rounded in another order. A neuron within rounding of its
    threshold may fire otherwise, and then its whole sample goes another way from there.

    Raises:
        GateError: too many spikes differ, or the gradients of samples that are equal.
    """
    current, grad = tensors(case)
    found, wanted = ours(current).detach(), oracle(current).detach()
    flipped = float((found != wanted).double().mean())
    same = (found == wanted).all(0).all(-1)
    if flipped > DIFFERENT or not same.any():
        raise GateError(f"{name}: {flipped:.1e} of the spikes differ from the oracle's")
    current, grad = current.detach()[:, same].requires_grad_(), grad[:, same]
    gradients = []
    for run in (ours, oracle):
        inputs = [current, *layer.parameters()]
        gradients.append(torch.autograd.grad(run(current), inputs, grad, allow_unused=True))
    far = [check_close(name, *both) for both in zip(*gradients) if both[0] is not None]
    return {"spikes that differ": flipped, "gradients' distance": max(far)}


def products(layer: ns.Recurrent, spikes: Tensor, grad: Tensor) -> Callable[[], object]:
    """Return the products of a training step, dense, by torch."""
    weight, size = layer.weight.detach(), layer.size

    def run() -> None:
        for spike in spikes.unbind(0):
            spike @ weight.T
        for d in grad.unbind(0):
            d @ weight
        grad.view(-1, size).T @ spikes.view(-1, size)

    return run


def measure(case: str, layer: ns.Recurrent, rival: str, other: Layer, seconds: float) -> Row:
    """Time a training step of ours beside the other's and the products, after the gate."""

    def ours(current: Tensor) -> Tensor:
        spikes: Tensor = layer(current)[0]
        return spikes

    name = f"recurrent {layer.neuron.__class__.__name__}, {case}"
    equal = gate(name, layer, ours, other, case)
    current, grad = tensors(case)
    spikes = ours(current).detach()
    steps = {
        OURS: rivals.layer_step(ours, current, grad),
        rival: rivals.layer_step(other, current, grad),
    }
    found = interleave(
        {**steps, PRODUCTS: products(layer, spikes, grad)}, seconds=seconds, finest=0.1
    )
    peaks = {key: peak_memory(step, lambda: None) for key, step in steps.items()}
    saved = {key: bytes_saved(run, current) for key, run in ((OURS, ours), (rival, other))}
    ratios = {
        f"{rival} / {OURS}": found[rival].over(found[OURS]),
        f"{OURS} / {PRODUCTS}": found[OURS].over(found[PRODUCTS]),
        f"peak memory of a step, {rival} / {OURS}": peaks[rival] / peaks[OURS],
        f"kept for backward, {rival} / {OURS}": saved[rival] / saved[OURS],
    }
    rate = float(spikes.mean())
    return tell(f"{name}, training step", found, ratios, peak_mb=peaks, fired=rate, **equal)


def layers(case: str) -> tuple[ns.Recurrent, ns.Recurrent]:
    """Return layers of LIF and of SE-adLIF neurons that fire at the currents of `tensors`."""
    size = int(case.split("x")[2])
    torch.manual_seed(0)
    adlif = ns.SEAdLIF(0.6, 0.9, 0.5, 1.0, 1.0, 0.3, backend="numba")
    lif = ns.LIF(BETA, backend="numba")
    return ns.Recurrent(lif, size, bias=True), ns.Recurrent(adlif, size, bias=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrence", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=2, help="as many for every rival")
    parser.add_argument("--seconds", type=float, default=20.0, help="time spent on each case")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: Row = {"machine": machine(), "cases": []}
    print(json.dumps(results["machine"], indent=2))
    for case in CASES:
        lif, _ = layers(case)
        row = measure(case, lif, "snntorch", stepped_rleaky(lif), options.seconds)
        results["cases"].append(row)
    _, adlif = layers(ADAPTIVE)
    row = measure(ADAPTIVE, adlif, "torch", stepped_adlif(adlif), options.seconds)
    results["cases"].append(row)
    store(results, options.out / "recurrence.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
