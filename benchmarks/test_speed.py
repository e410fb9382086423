"""`pytest benchmarks --benchmark-only`; with `--benchmark-disable` it runs the gates alone.

Each candidate is timed only after it was shown to compute what the group's oracle computes. Every
backend that runs here and every rival that is installed stands in each group; for ratios between
rivals, which need runs that alternate, see `python -m benchmarks.cpu`.
"""

import pytest
import torch

import neurospike as ns

from . import rivals
from .cpu import NETWORKS, tensors, tutorial
from .gate import check_close, gate

CASES = ("25x32x256", "25x128x1000", "100x128x1000")
BACKENDS = [name for name, why_not in ns.backends().items() if why_not is None]
CANDIDATES = {name: lambda name=name: rivals.ours(name) for name in BACKENDS}
CANDIDATES["snntorch loop"] = rivals.snntorch_loop
IMMEDIATE = {name: lambda name=name: rivals.ours(name, reset_delay=False) for name in BACKENDS}
if rivals.installed("spikingjelly"):
    IMMEDIATE["spikingjelly"] = rivals.spikingjelly_multi_step


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CANDIDATES)
def test_layer_training_step(benchmark, name, case):
    benchmark.group = f"layer, training step, {case}"
    current, grad = tensors(case)
    layer = CANDIDATES[name]()
    gate(name, layer, rivals.snntorch_loop(), current, grad)
    benchmark(rivals.layer_step(layer, current, grad))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMMEDIATE)
def test_layer_training_step_immediate_reset(benchmark, name, case):
    benchmark.group = f"layer with immediate reset, training step, {case}"
    current, grad = tensors(case)
    layer = IMMEDIATE[name]()
    gate(name, layer, IMMEDIATE["reference"](), current, grad)
    benchmark(rivals.layer_step(layer, current, grad))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CANDIDATES)
def test_layer_inference(benchmark, name, case):
    benchmark.group = f"layer, inference, {case}"
    current, grad = tensors(case)
    layer = CANDIDATES[name]()
    gate(name, layer, rivals.snntorch_loop(), current, grad)
    benchmark(rivals.inference(layer, current))


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_training_step(benchmark, name):
    benchmark.group = "whole training step, 784-1000-10, T=25, batch 128, constant input"
    gradients = []
    for fused in (NETWORKS["snntorch"], NETWORKS[name]):
        network, images, labels, optimizer = tutorial(fused)
        network.loss(images, labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    check_close(name, gradients[1], gradients[0])
    benchmark(rivals.training_step(network, images, labels, optimizer))


@pytest.mark.parametrize("coding", ["constant", "rate", "latency", "delta", "phase", "burst"])
def test_encoders(benchmark, coding):
    benchmark.group = "encoders, 128 pictures of 784 pixels, T=25"
    images = torch.rand(128, 784)
    encode = getattr(ns.encoding, coding)
    if coding == "delta":
        images = torch.rand(25, 128, 784)
        found = benchmark(lambda: encode(images))
    else:
        found = benchmark(lambda: encode(images, 25))
    assert found.shape == (25, 128, 784)
