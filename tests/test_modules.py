"""The layers as torch modules: copies, state dicts, moving, and the ways in which people train."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import neurospike as ns

ROOT = Path(__file__).parents[1]


def network(backend: str) -> nn.ModuleDict:
    """A linear layer, neurons that learn, a readout; in float64, to tell rounding from mistakes."""
    return nn.ModuleDict(
        {
            "linear": nn.Linear(6, 9),
            "lif": ns.LIF(
                torch.full((9,), 0.8), 0.7, learn_beta=True, learn_threshold=True, backend=backend
            ),
            "li": ns.LI(0.9, learn_beta=True, backend=backend),
        }
    ).double()


def run(net: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    spikes, _ = net["lif"](net["linear"](x))
    return net["li"](spikes)[0]


def gradients(net: nn.ModuleDict) -> list[torch.Tensor]:
    return [p.grad.clone() for p in net.parameters()]


def whole_gradient(net: nn.ModuleDict, x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    run(net, x).pow(2).sum().backward()
    return gradients(net)


@pytest.fixture
def net(backend):
    return network(backend)


@pytest.fixture
def x():
    return torch.randn(7, 4, 6, dtype=torch.float64)


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, by_pickle, by_torch_save])
def test_copies_after_a_forward_are_whole_and_apart(way, net, x):
    before = run(net, x)
    before.sum().backward()
    twin = way(net)
    assert torch.equal(run(twin, x), before)
    assert repr(twin) == repr(net)
    with torch.no_grad():
        twin["lif"].beta.fill_(0.1)
    assert torch.equal(run(net, x), before)
    assert not torch.equal(run(twin, x), before)


def test_state_dicts_carry_decay_and_threshold(net, x, backend):
    wanted = run(net, x)
    other = network(backend)
    with torch.no_grad():
        for p in other.parameters():
            p.uniform_(0.1, 0.5)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(other, x), wanted)
    names = {"lif.beta", "lif.threshold", "li.beta", "linear.weight", "linear.bias"}
    assert set(net.state_dict()) == names == {name for name, _ in net.named_parameters()}
    fixed = ns.LIF(0.9, backend=backend)
    assert set(fixed.state_dict()) == {"beta", "threshold"}
    assert list(fixed.parameters()) == []


OWN = """
from neurospike.formulas import abs

def own(u):
    return 1.0 / (1.0 + abs(u))
"""


def test_a_surrogate_of_the_users_survives_pickle_into_another_process(tmp_path):
    """As by the workers of a data loader or of a distributed run."""
    (tmp_path / "own_surrogate.py").write_text(OWN)
    maker = (
        "import sys, torch, neurospike as ns, own_surrogate\n"
        "layer = ns.LIF(0.9, surrogate=own_surrogate.own, backend='reference')\n"
    )
    user = "import sys, torch\nlayer = torch.load('layer.pt', weights_only=False)\n"
    gradient = (
        "x = torch.linspace(0, 1, 12).reshape(3, 2, 2).requires_grad_()\n"
        "layer(x)[0].sum().backward()\n"
        "print(x.grad.tolist())\n"
    )
    texts = []
    for program in (maker + "torch.save(layer, 'layer.pt')\n" + gradient, user + gradient):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]


def test_moving_to_another_format_moves_all_of_it(backend):
    layer = ns.LIF(0.5, 0.75, learn_beta=True, backend=backend)
    x = torch.randn(5, 2, 8)
    single = layer(x)
    for dtype, state in [
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        moved = copy.deepcopy(layer).to(dtype)
        spikes, mem = moved(x.to(dtype))
        assert (spikes.dtype, mem.dtype) == (dtype, state)
        # A layer in one format takes currents of another: decay 0.5 and threshold 0.75 are exact.
        assert all(torch.equal(a, b) for a, b in zip(moved(x), single))


def test_learned_parameters_get_the_gradients_of_the_functional_form(backend):
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    beta, threshold = torch.rand(5).double(), torch.rand(()).double()
    layer = ns.LIF(beta, threshold, learn_beta=True, learn_threshold=True, backend=backend)
    layer(x)[0].sum().backward()
    leaves = beta.requires_grad_(), threshold.requires_grad_()
    spikes, _ = ns.lif(x, beta=beta, threshold=threshold, backend=backend)
    wanted = torch.autograd.grad(spikes.sum(), leaves)
    assert torch.equal(layer.beta.grad, wanted[0])
    assert torch.equal(layer.threshold.grad, wanted[1])
    assert layer.beta.grad.abs().sum() > 0
    assert layer.threshold.grad.abs() > 0


BETAS = [-0.1, 0.0, 0.5, 1.0, 1.1]


@pytest.mark.parametrize("start", BETAS)
@pytest.mark.parametrize("kind", [ns.LIF, ns.LI])
def test_a_learned_decay_comes_back_from_a_bound(kind, start, backend):
    """A gradient passes unless a step against it would lead out of 0 to 1, or further out."""
    x = torch.rand(6, 2, 4) * 0.1
    inside = torch.tensor(min(max(start, 0.0), 1.0), requires_grad=True)
    mem = torch.zeros(2, 4)
    for current in x:
        mem = inside * mem + current
    (whole,) = torch.autograd.grad(mem.sum(), inside)
    for sign in (1, -1):
        layer = kind(nn.Parameter(torch.tensor(start)), backend=backend)
        loss = sign * layer(x)[1].sum()
        loss.backward()
        outward = (sign > 0 and start <= 0) or (sign < 0 and start >= 1)
        wanted = torch.zeros(()) if outward else sign * whole
        assert torch.allclose(layer.beta.grad, wanted)
    assert whole > 0


@pytest.mark.parametrize("gradient", ["inward", "clamp"])
def test_a_decay_that_a_step_took_beyond_1(gradient, backend):
    layer = ns.LIF(0.95, learn_beta=True, beta_gradient=gradient, backend=backend)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.full((5, 1, 3), 0.1)
    for sign in (-1, 1, 1, 1, 1):
        optimizer.zero_grad()
        (sign * layer(x)[1].sum()).backward()
        optimizer.step()
        if sign < 0:
            assert layer.beta > 1
    assert (layer.beta < 1) == (gradient == "inward")


@pytest.mark.parametrize("start", BETAS)
def test_the_gradient_of_torchs_clamp_is_there_by_name(start, backend):
    """At the edges too, where torch's releases differ in the gradient that they let through."""
    x = torch.rand(6, 2, 4) * 0.1
    given = nn.Parameter(torch.tensor(start))
    layer = ns.LIF(given, beta_gradient="clamp", backend=backend)
    assert "beta_gradient='clamp'" in repr(layer)
    assert "beta_gradient" not in repr(ns.LIF(0.9))
    layer(x)[1].sum().backward()
    leaf = torch.tensor(start, requires_grad=True)
    mem = torch.zeros(2, 4)
    for current in x:
        mem = leaf.clamp(0, 1) * mem + current
    mem.sum().backward()
    assert torch.allclose(layer.beta.grad, leaf.grad)
    assert (leaf.grad > 0) or start != 0.5


@pytest.mark.parametrize("learn", [False, True])
def test_a_converted_layer_keeps_what_training_made_of_it(learn, backend):
    """Decays beyond their bounds or at them, and a negative threshold, with snnTorch's gradient."""
    decays, threshold = torch.tensor([1.3, -0.2, 0.5, 1.0, 0.0]), -0.5
    leaky = snntorch.Leaky(decays, threshold, learn_beta=learn)
    layer = ns.LIF.from_snntorch(leaky, backend=backend)
    x, mem, spikes = torch.randn(6, 2, 5), torch.zeros(2, 5), []
    for current in x:
        spike, mem = leaky(current, mem)
        spikes.append(spike)
    found, last = layer(x)
    assert torch.equal(found, torch.stack(spikes))
    # A constant is clamped once, also when it is loaded.
    assert torch.equal(layer.beta, decays if learn else decays.clamp(0.0, 1.0))
    if learn:
        assert layer.beta is leaky.beta
        (wanted,) = torch.autograd.grad(mem.sum(), leaky.beta)
        (got,) = torch.autograd.grad(last.sum(), layer.beta)
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
    layer.load_state_dict({"beta": decays, "threshold": torch.tensor(threshold)}, strict=False)
    assert torch.equal(layer.beta, decays if learn else decays.clamp(0.0, 1.0))


@pytest.mark.parametrize("make", [ns.LIF, ns.LI])
def test_a_layer_that_was_pickled_with_a_decay_out_of_range_clamps_it(make):
    """Version 0.1 kept it as it was, and clamped it at every call."""
    layer = make(0.5)
    layer.beta = torch.tensor(1.3)
    again = pickle.loads(pickle.dumps(layer))
    assert again.beta.item() == 1.0


def test_the_choice_of_the_gradient_is_checked():
    for make in (ns.LIF, ns.LI, lambda beta, **o: ns.lif(torch.rand(2, 1, 1), beta=beta, **o)):
        with pytest.raises(ValueError, match="'sigmoid'; choose one of inward, clamp"):
            make(0.9, beta_gradient="sigmoid")


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_round_no_decay(narrow):
    """The state stays float32, and so do the numbers that it is multiplied with and compared to."""
    layer = ns.LIF(0.95, 0.7, learn_threshold=True)
    before = [value.clone() for value in (layer.beta, layer.threshold)]
    for moved in (layer.to(narrow), layer.half(), layer.bfloat16(), layer.to("cpu", narrow)):
        for value, wanted in zip((moved.beta, moved.threshold), before):
            assert value.dtype == torch.float32
            assert torch.equal(value, wanted)
    assert {value.dtype for value in layer.double().state_dict().values()} == {torch.float64}
    assert layer.float().beta.dtype == torch.float32
    elsewhere = ns.LI(0.9).to("meta", narrow)
    assert (elsewhere.beta.device.type, elsewhere.beta.dtype) == ("meta", torch.float32)
    net = nn.Sequential(nn.Linear(2, 2), ns.LIF(0.95)).to(narrow)
    assert (net[0].weight.dtype, net[1].beta.dtype) == (narrow, torch.float32)
    loaded = ns.LIF(0.5)
    loaded.load_state_dict({"beta": torch.tensor(0.25).to(narrow), "threshold": torch.tensor(1.0)})
    assert loaded.beta.item() == 0.25 and loaded.beta.dtype == torch.float32


def test_nor_does_a_narrow_default_format():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert ns.LIF(0.95).beta.item() == pytest.approx(0.95, rel=1e-7)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_surrogate_that_is_a_closure_is_pickled_with_its_numbers(backend):
    def scaled(scale):
        return lambda u: scale / (1 + abs(u))

    def gradient(layer):
        x = torch.linspace(0, 1, 12).reshape(3, 2, 2).requires_grad_()
        layer(x)[0].sum().backward()
        return x.grad

    layers = [ns.LIF(0.9, surrogate=scaled(scale), backend=backend) for scale in (1.0, 3.0)]
    found = [gradient(way(layer)) for layer in layers for way in (by_pickle, copy.deepcopy)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], gradient(layers[0]))
    assert torch.allclose(found[2], 3 * found[0])


def test_functional_call_replaces_the_parameters(net, x):
    values = {name: value.clone() for name, value in net.state_dict().items()}
    values["lif.beta"] = torch.full((9,), 0.3, dtype=torch.float64)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return run(self.net, x)

    values = {f"net.{name}": value for name, value in values.items()}
    replaced = torch.func.functional_call(Whole(), values, (x,))
    net.load_state_dict({name.removeprefix("net."): value for name, value in values.items()})
    assert torch.equal(replaced, run(net, x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant, net, x):
    wanted = whole_gradient(net, x)
    net.zero_grad()
    leaf = x.clone().requires_grad_()  # the reentrant form needs an input that has a gradient
    spikes, _ = checkpoint(lambda x: net["lif"](net["linear"](x)), leaf, use_reentrant=reentrant)
    net["li"](spikes)[0].pow(2).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(net), wanted))


def test_gradients_accumulate_over_parts_of_a_batch(net, x):
    wanted = whole_gradient(net, x)
    net.zero_grad()
    for part in x.split(1, dim=1):
        run(net, part).pow(2).sum().backward()
    for got, want in zip(gradients(net), wanted):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_second_backward_over_a_graph_that_was_kept(net, x):
    once = whole_gradient(net, x)
    net.zero_grad()
    loss = run(net, x).pow(2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert all(torch.equal(a, 2 * b) for a, b in zip(gradients(net), once))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_current_changed_in_place_after_the_forward_is_noticed(backend):
    x = torch.randn(5, 2, 4, requires_grad=True)
    current = x * 1.0
    spikes, _ = ns.lif(current, beta=0.9, surrogate="gaussian", backend=backend)
    untouched = torch.autograd.grad(spikes.sum(), x, retain_graph=True)[0]
    current.mul_(2.0)
    try:
        touched = torch.autograd.grad(spikes.sum(), x)[0]
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:  # a backend that keeps the membranes does not need the current again
        assert torch.equal(touched, untouched)


DISTRIBUTED = """
import copy, os, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
import neurospike as ns

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 9)
        self.lif = ns.LIF(torch.full((9,), 0.8), learn_beta=True)
    def forward(self, x):
        return self.lif(self.linear(x))[0]

def gradients(net, x):
    net(x).sum().backward()
    return [p.grad.clone() for p in net.parameters()]

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(5, 4, 6, dtype=torch.float64)
    whole = gradients(copy.deepcopy(net), x)
    mine = gradients(DistributedDataParallel(net), x[:, 2 * rank : 2 * rank + 2])
    for got, want in zip(mine, whole):
        assert torch.allclose(2 * got, want, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
    print("equal")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_distributed_data_parallel_averages_the_gradients(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"  # torch may tell of its connections before
