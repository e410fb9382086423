"""`pytest benchmarks --benchmark-only`; with `--benchmark-disable` it runs the gates alone.

Each candidate is timed only after it was shown to compute what its oracle computes. Every backend
that runs here and every rival that is installed stands in each group, on the CPU and, where there
is one, on the GPU; for ratios between rivals, which need runs that alternate, see
`python -m benchmarks.cpu`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.data import Batches, Split, load

from . import rivals
from .gate import check_close, gate
from .networks import NETWORKS, training_step, tutorial
from .timing import synchronize, tensors
from .workload import Workload

pytestmark = pytest.mark.benchmark(max_time=0.5)
CASES = ("25x32x256", "100x128x1000")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = {
    device: [name for name in ns.backends() if not dispatch.unsupported_reasons(name, device)]
    for device in DEVICES
}


@dataclass(frozen=True)
class Contender:
    """A layer on a device: ours with some options, or a rival's."""

    name: str
    device: str
    make: Callable[[], rivals.Layer]
    wanted: Callable[[], rivals.Layer]
    rounding: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}-{self.device}"

    @property
    def group(self) -> str:
        """What is said of it in the title of a group."""
        return "" if self.device == "cpu" else ", GPU"


def contenders(slow: bool) -> list[Contender]:
    """Return every layer that can be timed here."""
    found = []
    for device in DEVICES:
        for name in BACKENDS[device]:
            for title, options in ((name, {}), (f"{name}, immediate", {"reset_delay": False})):
                make = functools.partial(rivals.ours, name, **options)
                wanted = functools.partial(rivals.ours, "reference", **options)
                found.append(Contender(title, device, make, wanted, options=tuple(options.items())))
        for rival in rivals.here(slow=slow):
            if device == "cpu" or rival.package != "spyx":
                one = Contender(rival.name, device, rival.make, rival.wanted, rival.rounding)
                found.append(one)
    return found


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))


@functools.cache
def proved(case: str, contender: Contender) -> tuple[rivals.Layer, torch.Tensor, torch.Tensor]:
    """Return a layer that passed its gate, the current and the gradient that it is timed on."""
    if contender.name == "snntorch compiled" and not case.startswith("25x"):
        pytest.skip("unrolled over 100 steps it compiles for many minutes")
    current, grad = tensors(case)
    current = current.detach().to(contender.device).requires_grad_()
    grad = grad.to(contender.device)
    layer = contender.make()
    gate(str(contender), layer, contender.wanted(), current, grad, rounding=contender.rounding)
    return layer, current, grad


def waiting(call):
    """Return a call that ends when the device has done it."""

    def both():
        call()
        synchronize()

    return both


@pytest.mark.parametrize("case", CASES)
def test_layer_training_step(benchmark, contender, case):
    layer, current, grad = proved(case, contender)
    benchmark.group = f"layer, training step, {case} (T x B x N){contender.group}"
    benchmark.name = contender.name
    benchmark(waiting(rivals.layer_step(layer, current, grad)))


@pytest.mark.parametrize("case", CASES)
def test_layer_inference(benchmark, contender, case):
    layer, current, _ = proved(case, contender)
    benchmark.group = f"layer, inference, {case} (T x B x N){contender.group}"
    benchmark.name = contender.name
    benchmark(waiting(rivals.inference(layer, current)))


@pytest.mark.parametrize("neurons", [512, 2048])
def test_linear_and_lif(benchmark, contender, neurons):
    """The workload of open-neuromorphic: see `workload.py`."""
    if contender.options or contender.name.endswith("compiled"):
        pytest.skip("one of ours is enough, and 500 steps are not unrolled")
    if neurons > 512 and contender.name not in ("numba", "triton", "snntorch"):
        pytest.skip("python -m benchmarks.cpu has every rival at this size")
    work = Workload(neurons, contender.device)
    layer = contender.make()
    work.prove(contender.name, layer, contender.wanted(), contender.rounding)
    benchmark.group = f"whole forward and backward, {work.case}{contender.group}"
    benchmark.name = contender.name
    benchmark.pedantic(waiting(work.step(layer)), rounds=5 if neurons == 512 else 2)


@pytest.mark.parametrize("neurons", [512, 2048])
@pytest.mark.parametrize("device", DEVICES)
def test_linear_and_lif_floor(benchmark, device, neurons):
    work = Workload(neurons, device)
    title = "" if device == "cpu" else ", GPU"
    benchmark.group = f"whole forward and backward, {work.case}{title}"
    benchmark.name = "its three products alone"
    benchmark.pedantic(waiting(work.floor()), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_training_step(benchmark, name):
    benchmark.group = "whole training step, 784-1000-10, T=25, batch 128, constant input"
    benchmark.name = {"snntorch": "snntorch, tutorial 5"}.get(name, name)
    gradients = []
    for fused in (NETWORKS["snntorch"], NETWORKS[name]):
        network, images, labels, optimizer = tutorial(fused)
        network.loss(images, labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    check_close(name, gradients[1], gradients[0])
    benchmark(training_step(network, images, labels, optimizer))


def trainer(device):
    """Return a recogniser's trainer and real digits."""
    torch.manual_seed(0)
    model = ns.SNNModel(input_size=784, hidden_size=256).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return ns.SNNTrainer(model, optimizer, torch.nn.CrossEntropyLoss())


@pytest.mark.parametrize(("device", "name"), [(d, n) for d in DEVICES for n in BACKENDS[d]])
def test_one_epoch(benchmark, device, name, tmp_path):
    digits = load("digits", tmp_path).train
    losses = []
    for backend in ("reference", name):
        with ns.use_backend(backend):
            shuffled = torch.Generator().manual_seed(0)
            batches = Batches(digits, 128, shuffle=True, generator=shuffled)
            model = trainer(device)
            losses.append(model.train_epoch(batches).loss)
    # The products over all steps at once are the same; a spike that rounding flips may come later.
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    title = "" if device == "cpu" else ", GPU"
    benchmark.group = f"one epoch, {len(digits)} digits, 784-256-10, T=25, batch 128{title}"
    benchmark.name = name
    with ns.use_backend(name):
        benchmark.pedantic(waiting(lambda: model.train_epoch(batches)), rounds=3)


def test_batches(benchmark):
    benchmark.group = "shuffled batches of 128, 60,000 pictures of 28 x 28, without a network"
    benchmark.name = "an epoch"
    images = torch.randint(256, (60_000, 28, 28), dtype=torch.uint8)
    batches = Batches(Split(images, torch.randint(10, (60_000,))), 128, shuffle=True)
    found = benchmark.pedantic(lambda: sum(len(labels) for _, labels in batches), rounds=3)
    assert found == 60_000


PLOTS = {
    "raster": lambda v, spikes: v.plot_spike_train(spikes),
    "membranes": lambda v, spikes: v.plot_membrane_potential(spikes),
    "firing rates": lambda v, spikes: v.plot_firing_rates(spikes),
    "input of spikes": lambda v, spikes: v.plot_input_encoding(torch.rand(100, 100), spikes),
    "input of currents": lambda v, spikes: v.plot_input_encoding(torch.rand(100, 100), spikes / 2),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots(benchmark, name, tmp_path):
    benchmark.group = "plots, drawn and saved, 10,000 neurons, T=1000, 5% spikes"
    benchmark.name = name
    spikes, visualizer = (torch.rand(1000, 10_000) < 0.05).float(), ns.SpikeVisualizer(dpi=50)
    path = tmp_path / "plot.png"
    benchmark.pedantic(lambda: PLOTS[name](visualizer, spikes)[0].savefig(path), rounds=2)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("coding", ["constant", "rate", "latency", "delta", "phase", "burst"])
def test_encoders(benchmark, coding):
    benchmark.group = "encoders, 128 pictures of 784 pixels, T=25"
    benchmark.name = coding
    images = torch.rand(128, 784)
    encode = getattr(ns.encoding, coding)
    if coding == "delta":
        images = torch.rand(25, 128, 784)
        found = benchmark(lambda: encode(images))
    else:
        found = benchmark(lambda: encode(images, 25))
    assert found.shape == (25, 128, 784)
