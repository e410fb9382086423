"""A network of one's own leaves the library: torch.onnx.export, torch.export, `ns.to_onnx`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_spiking import ZOO
from torch import nn
from torch.utils import _pytree as pytree

import neurospike as ns
from neurospike.coding.losses import READOUTS
from neurospike.config.cli import check_target
from neurospike.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    NeuroSpikeError,
)
from neurospike.formulas import detach, exp, fire, heaviside, minimum, where
from neurospike.ops import decomposed

N = 6
OPEN = {0: "time", 1: "batch"}
BATCH = ({0: "batch"},)
needs_onnx = pytest.mark.usefixtures("onnx")


@pytest.fixture
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} comes with the extra [onnx]")


def own_neuron(current, a, b, gain):
    a = where(a > 1.0, 0.0, gain * a) + current
    b = 0.9 * b + minimum(a, 2.0) - heaviside(b - 1.0) * detach(exp(-a))
    return fire(b - 0.5), a, b


def recurrent(neuron):
    """A recurrent layer whose sums are exact, in whatever order they are taken."""
    layer = ns.Recurrent(neuron, N)
    with torch.no_grad():
        layer.weight.copy_((layer.weight * 16).round() / 16)
    return layer


LAYERS = {
    **{
        f"lif {reset} {'delayed' if late else 'immediate'}": (
            lambda reset=reset, late=late: ns.LIF(
                torch.linspace(0.5, 0.9, N), reset=reset, reset_delay=late, learn_beta=late
            ),
            1.0,
            0.3,
        )
        for reset in ("subtract", "zero", "none")
        for late in (True, False)
    },
    "li": (lambda: ns.LI(0.9), 1.0, 0.0),
    "own": (lambda: ns.Spiking(own_neuron, gain=0.7, learn="gain"), 1.0, 0.3),
    "recurrent lif": (lambda: recurrent(ns.LIF(0.5)), 1.0, 0.5),
    "recurrent alif": (lambda: recurrent(ns.ALIF()), 1.0, 0.5),
    "delay": (lambda: ns.Delay(N, 4), 1.0, 0.0),
    **ZOO,
}


def state_axes(layer):
    """The axis of samples in each state that a layer takes."""
    if isinstance(layer, ns.Delay):
        return {1: "batch"}
    return {0: "batch"} if isinstance(layer, (ns.LIF, ns.LI)) else BATCH * len(layer.states)


def state_for(layer, batch):
    """A state to carry on from."""
    x = torch.rand(3, batch, N)
    return pytree.tree_map(lambda one: one.detach(), layer(x)[1])


class All(nn.Module):
    """Many layers side by side, so that one export does for all of them."""

    def __init__(self, layers, scales):
        super().__init__()
        self.layers, self.scales = nn.ModuleList(layers), scales

    def forward(self, x, states):
        currents = [x * scale + mean for scale, mean in self.scales]
        return [layer(*both) for layer, *both in zip(self.layers, currents, states)]


FEW = ("lif zero immediate", "li", "own", "recurrent alif", "delay")


def together(names):
    makers = [LAYERS[name] for name in names]
    layers = [make() for make, _, _ in makers]
    return All(layers, [(scale, mean) for _, scale, mean in makers]).eval()


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def answers(path, *given):
    """What onnxruntime makes of a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    leaves = pytree.tree_leaves(given)
    feed = {
        one.name: value.numpy() for one, value in zip(session.get_inputs(), leaves, strict=True)
    }
    return [torch.from_numpy(one) for one in session.run(None, feed)], session


def same(found, wanted):
    return [torch.equal(*both) for both in zip(found, pytree.tree_leaves(wanted), strict=True)]


@needs_onnx
@pytest.mark.parametrize(
    "names", [FEW, pytest.param(tuple(LAYERS), marks=pytest.mark.thorough)], ids=["few", "all"]
)
def test_onnx_of_layers_carries_on_with_the_same_bits(tmp_path, names):
    net = together(names)
    axes = (OPEN, [state_axes(layer) for layer in net.layers])
    states = [state_for(layer, 3) for layer in net.layers]
    torch.onnx.export(
        net,
        (torch.randn(5, 3, N), states),
        str(tmp_path / "f.onnx"),
        dynamo=True,
        dynamic_shapes=axes,
        verbose=False,
    )
    for steps, batch in ((7, 2), (1, 4)):
        x, states = torch.randn(steps, batch, N), [state_for(one, batch) for one in net.layers]
        found, session = answers(tmp_path / "f.onnx", x, states)
        assert all(same(found, net(x, states)))
    assert session.get_inputs()[0].shape == ["time", "batch", N]
    shapes = {("time", "batch", N), ("batch", N), (4, "batch", N)}
    assert {tuple(one.shape) for one in session.get_outputs()} == shapes


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["carried", "lengths", "constant", "float64", "bfloat16"])
@pytest.mark.thorough
def test_taken_apart_a_layer_is_torchs_own_and_the_same(name, kind):
    make, scale, mean = LAYERS[name]
    layer = make().eval()
    dtype = getattr(torch, kind, torch.float32)
    layer.to(dtype if dtype == torch.float64 else torch.float32)
    x = (torch.randn(6, 3, N) * scale + mean).to(dtype)
    options = {}
    if kind == "carried":
        options["state"] = state_for(layer, 3)
        if isinstance(layer, (ns.LIF, ns.LI)):
            options["mem"] = options.pop("state")
    elif kind == "lengths":
        options["lengths"] = torch.tensor([2, 6, 0])
    elif kind == "constant":
        x, options["num_steps"] = x[0], 5
    program = torch.export.export(layer, (x,), options)
    assert any(one.startswith("neurospike.") for one in operators(program))
    apart = program.run_decompositions(decomposed.table())
    assert not any(one.startswith("neurospike.") for one in operators(apart))
    assert all(same(pytree.tree_leaves(apart.module()(x, **options)), layer(x, **options)))


def test_the_trace_is_taken_apart_too(fused):
    layer, x = ns.Synaptic(0.7, 0.8, backend=fused).eval(), torch.randn(6, 3, N)
    program = torch.export.export(layer, (x,), {"return_trace": True})
    assert f"neurospike.{fused}_scan.default" in operators(program)
    apart = program.run_decompositions(decomposed.table())
    assert operators(apart) >= {"scan"}
    assert all(
        same(pytree.tree_leaves(apart.module()(x, return_trace=True)), layer(x, return_trace=True))
    )


def network(fused="auto"):
    """A network of whose sums each is exact."""
    net = ns.Sequential(
        ns.SpikeLinear(8, 12, backend=fused),
        ns.LIF(0.5, threshold=0.5, backend=fused),
        nn.Dropout(0.5),
        nn.Linear(12, 4),
        ns.LI(0.5),
    )
    with torch.no_grad():
        for one in net.parameters():
            one.copy_((one * 64).round() / 64)
    return net


@needs_onnx
def test_to_onnx_names_the_batch_and_keeps_a_good_file(tmp_path, monkeypatch, fused):
    net, path = network(fused).train(), tmp_path / "net.onnx"
    written = ns.to_onnx(net, path, torch.rand(25, 3, 8).round())
    assert net.training and net[2].training
    assert (written.alike, written.largest_difference) == (written.numbers, 0.0)
    assert written.bytes == path.stat().st_size < 40_000  # one step, not 25
    x = torch.rand(25, 5, 8).round()
    found, session = answers(path, x)
    assert all(same(found, net.eval()(x)))
    assert session.get_inputs()[0].shape == [25, "batch", 8]
    assert session.get_outputs()[0].shape == [25, "batch", 4]

    class Fickle(nn.Module):
        def forward(self, x):
            return -x if torch.compiler.is_exporting() else x

    content = path.read_bytes()
    with pytest.raises(NeuroSpikeError, match=r"of 24 numbers .* what was exported gives 0; a net"):
        ns.to_onnx(Fickle(), path, torch.ones(2, 3, 4))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnx onnxscript onnxruntime"):
        ns.to_onnx(net, path, x)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@needs_onnx
@pytest.mark.thorough
def test_onnx_of_a_constant_current_and_of_lengths(tmp_path):
    net = network().eval()
    ns.to_onnx(net, tmp_path / "c.onnx", torch.ones(3, 8), num_steps=25)
    x = torch.rand(5, 8).round()
    found, session = answers(tmp_path / "c.onnx", x)
    assert all(same(found, net(x, num_steps=25)))
    assert session.get_inputs()[0].shape == ["batch", 8]
    lengths = torch.tensor([3, 9, 0])
    ns.to_onnx(net, tmp_path / "l.onnx", torch.ones(9, 3, 8), axes=OPEN, lengths=lengths)
    x, lengths = torch.rand(7, 4, 8).round(), torch.tensor([7, 0, 2, 5])
    found, _ = answers(tmp_path / "l.onnx", x, lengths)
    assert all(same(found, net(x, lengths=lengths)))


class BatchFirst(nn.Module):
    """A network of one's own that hands its lengths to its layers."""

    batch_first = True

    def __init__(self):
        super().__init__()
        self.linear, self.lif = nn.Linear(8, 4), ns.LIF(0.9, 0.2, batch_first=True)

    def forward(self, x, lengths=None):
        return self.lif(self.linear(x), lengths=lengths)[0]


def batch_first(which):
    layers = nn.Linear(8, 4), ns.LIF(0.9, 0.2)
    net = BatchFirst() if which == "own" else ns.Sequential(*layers, batch_first=True)
    with torch.no_grad():
        for one in net.parameters():  # whose sums are exact, in whatever order they are taken
            one.copy_((one * 64).round() / 64)
    return net


@pytest.mark.parametrize("which", ["own", "sequential"])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_to_pt2_leaves_the_batch_open_where_it_comes_first(tmp_path, which, with_lengths):
    net, x = batch_first(which), torch.rand(5, 7, 8).round()
    sample, given = {}, {}
    if with_lengths:
        sample["lengths"], given["lengths"] = torch.tensor([3, 7, 0]), torch.tensor([7, 0, 2, 5, 1])
    ns.to_pt2(net, tmp_path / "net.pt2", x[:3], **sample)
    found = torch.export.load(tmp_path / "net.pt2").module()(x, **given)
    wanted = net(x, **given)
    assert all(same(pytree.tree_leaves(found), wanted))


@needs_onnx
@pytest.mark.parametrize("with_lengths", [False, True])
def test_to_onnx_names_the_batch_where_it_comes_first(tmp_path, with_lengths):
    net, x = batch_first("sequential"), torch.rand(5, 7, 8).round()
    sample, given = {}, {}
    if with_lengths:
        sample["lengths"], given["lengths"] = torch.tensor([3, 7, 0]), torch.tensor([7, 0, 2, 5, 1])
    ns.to_onnx(net, tmp_path / "net.onnx", x[:3], **sample)
    found, session = answers(tmp_path / "net.onnx", x, *given.values())
    assert all(same(found, net(x, **given)))
    assert session.get_inputs()[0].shape == ["batch", 7, 8]
    assert session.get_outputs()[0].shape == ["batch", 7, 4]


def test_to_pt2_runs_with_torch_alone_through_the_reference(tmp_path):
    net = network()
    with ns.use_backend("reference"):
        written = ns.to_pt2(net, tmp_path / "alone.pt2", torch.rand(3, 2, 8).round())
    assert written.largest_difference == 0.0
    ns.to_pt2(net, tmp_path / "fused.pt2", torch.rand(3, 2, 8).round(), axes=OPEN)
    program = torch.export.load(tmp_path / "fused.pt2").run_decompositions(decomposed.table())
    torch.export.save(program, tmp_path / "apart.pt2")
    x = torch.rand(3, 5, 8).round()
    torch.save((x, net.eval()(x)[0]), tmp_path / "wanted.pt")
    root = str(Path(ns.__file__).parents[1])
    script = (
        "import sys, torch\n"
        "x, wanted = torch.load('wanted.pt')\n"
        "for name in ('alone', 'apart', 'fused'):\n"
        "    out, _ = torch.export.load(name + '.pt2').module()(x)\n"
        "    assert torch.equal(out, wanted)\n"
        "    if name == 'apart':\n"
        "        assert 'neurospike' not in sys.modules\n"
        f"        sys.path.append({root!r})\n"
        "        import neurospike\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_what_is_wrong_with_a_sample_is_said(tmp_path):
    net, x = network(), torch.rand(5, 3, 8)
    for sample, options, expected in (
        (
            (x, (x[0], x[0])),
            {},
            r"has 2 arguments, .* axes=\(\{1: \"batch\"\}, \(\{0: \"batch\"\},",
        ),
        (x[:, :1], {}, r"\(5, 1, 8\) has 1 along its open axis 1 'batch'"),
        (x[0], {"axes": {2: "time"}}, r"axis 2 'time' of a tensor \(3, 8\), which has 2 axes"),
        (x, {"axes": {-4: "time"}}, r"axis -4 'time' of a tensor \(5, 3, 8\), which has 3 axes"),
        (x[:, :1], {"axes": {-2: "batch"}}, "has 1 along its open axis -2 'batch'"),
        (x, {"axes": [0, 1]}, r"of a tensor \(5, 3, 8\) must be the numbers .* got \[0, 1\]"),
        (x, {"axes": {0: 0}}, r"with their names, such as \{0: \"time\", .* got \{0: 0\}"),
        (x, {"axes": ({0: "t"}, {0: "b"})}, r"axes has \(.*\) for 1 arguments or states; give a"),
        (x, {"axes": ()}, r"axes has \(\) for 1 arguments"),
        ((x, (x[0],)), {"axes": ({0: "t"}, {0: "b"})}, r"axes has \{0: 'b'\} for 1 arguments"),
    ):
        with pytest.raises(ValueError, match=expected):
            ns.to_pt2(net, tmp_path / "f", sample, **options)
    with pytest.raises(CheckpointError, match="cannot write the file"):
        ns.to_pt2(ns.LIF(0.9), tmp_path, x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        ns.to_pt2(ns.LIF(0.9), tmp_path / "f", x, steps=3)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_what_onnx_lacks_is_said_of_a_sample(tmp_path):
    with pytest.raises(ValueError, match="bfloat16, which onnxruntime does not compute with"):
        ns.to_onnx(ns.LIF(0.9).bfloat16(), tmp_path / "f", torch.rand(5, 3, 8).bfloat16())
    with pytest.raises(TypeError, match=r"got torch\.uint8; convert it with"):
        ns.to_onnx(ns.LIF(0.9), tmp_path / "f", torch.ones(5, 3, 8, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


class Read(nn.Module):
    """Every readout and decoder of one layer's spikes."""

    def forward(self, spikes, lengths):
        decoders = [ns.decoding.counts, ns.decoding.first_spike, ns.decoding.membrane]
        return [read(spikes, lengths=lengths) for read in [*READOUTS.values(), *decoders]]


@needs_onnx
def test_every_readout_is_in_the_file(tmp_path):
    path, net = tmp_path / "read.onnx", Read()
    axes = ({0: "time", 1: "batch"}, {0: "batch"})
    spikes = torch.tensor([0.0, 0.0, 1.0])[torch.randint(3, (6, 4, 5))]
    ns.to_onnx(net, path, (spikes, torch.tensor([6, 3, 1, 0])), axes=axes)
    spikes = torch.tensor([0.0, 0.0, 1.0])[torch.randint(3, (9, 3, 5))]
    lengths = torch.tensor([9, 2, 5])
    for found, wanted in zip(answers(path, spikes, lengths)[0], net(spikes, lengths), strict=True):
        torch.testing.assert_close(found, wanted)  # a mean is a sum in another order


def test_axes_count_from_the_last_one_too(tmp_path):
    net, path = ns.LIF(0.9), tmp_path / "net.pt2"
    ns.to_pt2(net, path, torch.rand(5, 3, 8), axes={-3: "time", -2: "batch"})
    x = 3 * torch.rand(9, 1, 8)
    assert all(same(torch.export.load(path).module()(x), net(x)))


@needs_onnx
@pytest.mark.parametrize("named", ["by text", "by Dim"])
def test_axes_of_onnx_have_their_names_however_they_are_given(tmp_path, named):
    x, path = torch.rand(5, 3, 8), tmp_path / "net.onnx"
    dims = {-3: torch.export.Dim("time", min=2), -2: torch.export.Dim("batch", min=2)}
    ns.to_onnx(ns.LIF(0.9), path, x, axes={-3: "time", -2: "batch"} if named == "by text" else dims)
    found, session = answers(path, x[:4, :2])
    assert session.get_inputs()[0].shape == ["time", "batch", 8]
    assert all(same(found, ns.LIF(0.9)(x[:4, :2])))


def test_an_export_leaves_the_random_state_as_it_is(tmp_path):
    torch.manual_seed(7)
    x, state = torch.rand(5, 3, 8), torch.get_rng_state()
    ns.to_pt2(ns.LIF(0.9), tmp_path / "net.pt2", x)
    assert torch.equal(torch.get_rng_state(), state)


class Strange(nn.Module):
    """Returns an infinity and a NaN, and with `fickle` other numbers beside them in the file."""

    def __init__(self, fickle=False):
        super().__init__()
        self.fickle = fickle

    def forward(self, x):
        beside = x + 1 if self.fickle and torch.compiler.is_exporting() else x
        strange = torch.tensor([torch.inf, -torch.inf, torch.nan]).to(x)
        return torch.cat([strange.expand(*x.shape[:2], 3), beside], -1), x > 0


def test_what_is_not_finite_is_compared_as_it_is(tmp_path):
    x = torch.rand(2, 3, 4)
    written = ns.to_pt2(Strange(), tmp_path / "net.pt2", x)
    assert (written.alike, written.numbers, written.largest_difference) == (66, 66, 0.0)
    with pytest.raises(NeuroSpikeError, match=r"of 66 numbers .* what was exported gives 42; a"):
        ns.to_pt2(Strange(fickle=True), tmp_path / "net.pt2", x)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_or_device_is_not_replaced(tmp_path):
    path = tmp_path / "pipe.pt2"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"--out: .* is a device or a pipe; name a file"):
        check_target("--out", str(path))
    with pytest.raises(CheckpointError, match="it is a device or a pipe; name a file"):
        ns.to_pt2(ns.LIF(0.9), path, torch.rand(5, 3, 8))
    assert path.is_fifo()


def test_torch_func_of_what_has_none_says_what_has(fused):
    x = torch.rand(2, 5, 3, N)
    for layer, kind in (
        (ns.Delay(N, 4, backend=fused), "torch.vmap of a Delay"),
        (ns.Recurrent(ns.LIF(0.9, backend=fused), N), r"torch.func \(grad, vmap\) of a Recurrent"),
    ):
        each = torch.vmap(torch.func.grad(lambda one, layer=layer: layer(one)[0].sum()))
        with pytest.raises(BackendError, match=f"{kind} was asked .* make the layer with backend="):
            each(x)
    for layer in (ns.Delay(N, 4, backend="reference"), recurrent(ns.LIF(0.5, backend="reference"))):
        each = torch.vmap(torch.func.grad(lambda one, layer=layer: layer(one)[0].sum()))(x)
        whole = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(sum(layer(one)[0].sum() for one in whole), whole)
        assert torch.allclose(each, wanted, rtol=1e-5, atol=1e-6)
