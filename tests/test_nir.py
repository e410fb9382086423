"""NIR: own networks there and back, files of other libraries' exporters, ours in their hands."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import neurospike as ns
from neurospike.errors import InterchangeError, MissingDependencyError
from neurospike.formulas import fire
from neurospike.interchange.nir import Scale
from neurospike.neurons import zoo

nir = pytest.importorskip("nir")

AT_ONCE = {"reset": "zero", "reset_delay": False}  # NIR's own rule
T, B, N = 30, 3, 12


def frames(*shape):
    return torch.rand(T, B, *(shape or (N,))) * 2


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def wrong(got, wanted):
    """How many outputs differ, of how many spikes."""
    assert got.shape == wanted.shape
    return int((got != wanted).sum()), int(wanted.sum())


def each(low=0.2, high=0.95, size=N):
    return torch.linspace(low, high, size)


NEURONS = {
    "LIF, NIR's reset": lambda: ns.LIF(0.9, 0.7, **AT_ONCE),
    "LIF, detached": lambda: ns.LIF(0.9, 0.7, **AT_ONCE, detach_reset=True),
    "LIF, default": lambda: ns.LIF(each(), each(0.3, 1.0)),
    "LIF, subtract at once": lambda: ns.LIF(each(), 0.7, reset_delay=False),
    "LIF, zero a step later": lambda: ns.LIF(0.77, 0.7, reset="zero"),
    "LIF, no reset": lambda: ns.LIF(0.4, 0.9, reset="none"),
    "LIF, no leak": lambda: ns.LIF(1.0, 0.8, **AT_ONCE),
    "LIF, some without leak": lambda: ns.LIF(each(0.5, 1.0), 0.8, **AT_ONCE),
    "LIF, all leak": lambda: ns.LIF(0.0, 0.8),
    "LIF, learned": lambda: ns.LIF(each(), 0.7, learn_beta=True, surrogate="boxcar"),
    "LIF, cleared": lambda: ns.LIF(0.9, 0.7, neuron=ns.Neuron(zoo.lif_cleared)),
    "PLIF": lambda: ns.PLIF(each(), 0.7),
    "Synaptic, default": lambda: ns.Synaptic(each(), 0.9, 0.7, learn="alpha"),
    "Synaptic, NIR's reset": lambda: ns.Synaptic(0.3, each(), 0.7, **AT_ONCE),
    "Synaptic, zero": lambda: ns.Synaptic(0.5, 0.9, reset="zero"),
    "Synaptic, subtract at once": lambda: ns.Synaptic(0.5, 0.9, reset_delay=False),
    "Synaptic, no reset": lambda: ns.Synaptic(0.5, 0.3, 2.0, reset="none"),
    "to a value": lambda: ns.Spiking(zoo.lif_to, beta=0.9, threshold=0.8, reset=-0.3),
    "synaptic to a value": lambda: ns.Spiking(
        zoo.synaptic_to, alpha=0.4, beta=0.9, threshold=0.8, reset=each(-0.5, 0.1)
    ),
    "Recurrent": lambda: ns.Recurrent(ns.LIF(0.9, 0.7, **AT_ONCE), N),
    "Recurrent, bias and mask": lambda: ns.Recurrent(
        ns.LIF(each(), 0.7), N, bias=True, zero_diagonal=True
    ),
    "Recurrent, Synaptic": lambda: ns.Recurrent(ns.Synaptic(0.5, 0.8), N),
    "Recurrent, no reset": lambda: ns.Recurrent(ns.LIF(0.3, reset="none"), N),
    "LI": lambda: ns.LI(each()),
    "LI, no leak": lambda: ns.LI(1.0),
    "Delay, whole": lambda: ns.Delay(N, 4, torch.arange(N) % 5, learn=False),
    "Delay, fractions": lambda: ns.Delay(N, 6),
    "Scale": lambda: Scale(each()),
}


@pytest.mark.parametrize("kind", NEURONS)
def test_neurons_there_and_back(kind, tmp_path, backend):
    net = ns.Sequential(
        nn.Linear(N, N), NEURONS[kind](), nn.Linear(N, 4), ns.LIF(0.8, 0.05, **AT_ONCE)
    )
    x = frames()
    quietly(ns.to_nir, net, tmp_path / "net.nir", x)
    again = ns.from_nir(tmp_path / "net.nir", backend=backend)
    with ns.use_backend(backend):
        wanted, _ = net(x)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(again(x)[0], wanted)
    for (_, ours), (name, theirs) in zip(net.named_modules(), again.named_modules()):
        if name and "PLIF" not in kind:
            assert str(theirs) in {str(ours), str(ours).replace("auto", backend)}
        learned = [key for key, _ in ours.named_parameters(recurse=False)]
        found = dict(theirs.named_parameters(recurse=False))
        assert list(found) == ["beta" if key == "logit" else key for key in learned]
        for key, value in found.items():
            wanted = ours.beta if key == "beta" else getattr(ours, key)
            mask = getattr(ours, "mask", None) if key == "weight" else None
            assert torch.equal(value, wanted if mask is None else wanted * mask), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dt", [1e-4, 1e-3, 1.0, 0.0137])
def test_constants_come_back_bit_for_bit(dtype, dt, tmp_path):
    beta = torch.cat((torch.rand(4000, dtype=dtype), 1 - torch.rand(90, dtype=dtype) * 1e-6))
    net = ns.Synaptic(beta.flip(0), beta, torch.rand(4090, dtype=dtype) + 0.1, **AT_ONCE)
    ns.to_nir(net, tmp_path / "net.nir", torch.rand(2, 1, 4090, dtype=dtype), dt=dt)
    (again,) = ns.from_nir(tmp_path / "net.nir")
    for name in ("alpha", "beta", "threshold"):
        assert getattr(again, name).dtype == dtype
        assert torch.equal(getattr(again, name), getattr(net, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dt", [1e-4, 1e-3, 1.0, 0.0137])
def test_delays_come_back_bit_for_bit(dtype, dt, tmp_path):
    steps = torch.cat((torch.rand(2000, dtype=dtype) * 60, torch.arange(61, dtype=dtype)))
    net = ns.Delay(2061, 60, steps, learn=False).to(dtype)
    x = torch.rand(70, 1, 2061, dtype=dtype)
    ns.to_nir(net, tmp_path / "net.nir", x, dt=dt)
    (again,) = ns.from_nir(tmp_path / "net.nir")
    assert again.delay.dtype == dtype and torch.equal(again.delay, net.delay)
    assert torch.equal(again(x)[0], net(x)[0])
    (halved,) = ns.from_nir(tmp_path / "net.nir", dt=2 * dt)  # of half as many steps
    torch.testing.assert_close(halved.delay, net.delay / 2)


def test_time_constants_are_those_of_euler_steps(tmp_path):
    net = ns.Sequential(ns.LIF(0.9, 0.5, **AT_ONCE), ns.Synaptic(0.75, 0.5, **AT_ONCE), ns.LI(0.8))
    ns.to_nir(net, tmp_path / "net.nir", frames(), dt=1e-3)
    graph = nir.read(tmp_path / "net.nir")
    assert graph.metadata["dt"] == 1e-3
    lif, cuba, li = (graph.nodes[key] for key in ("lif_0", "synaptic_1", "li_2"))
    assert lif.tau == pytest.approx(0.01) and lif.r == pytest.approx(10.0)
    assert cuba.tau_syn == pytest.approx(4e-3) and cuba.w_in == pytest.approx(4.0)
    assert cuba.tau_mem == pytest.approx(2e-3) and cuba.r == pytest.approx(2.0)
    assert li.tau == pytest.approx(5e-3) and li.r == pytest.approx(5.0)
    for node in (lif, cuba):
        assert (node.v_reset == 0).all() and (node.v_leak == 0).all()
    # At half the step a neuron leaks half as much, and takes in half as much.
    halved = ns.from_nir(tmp_path / "net.nir", dt=5e-4)
    assert halved.lif_0.beta.item() == pytest.approx(0.95)
    assert halved.lif_0_gain.scale.item() == pytest.approx(0.5)


def test_layers_without_memory(tmp_path, backend):
    net = ns.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        ns.LIF(torch.rand(4, 1, 1), 0.2, **AT_ONCE),
        nn.Conv2d(4, 6, (1, 2), groups=2, bias=False, padding="same"),
        ns.LIF(0.5, 0.1, **AT_ONCE),
        ns.Sequential(nn.AvgPool2d(2), nn.Dropout(0.5), nn.Identity()),
        ns.LIF(0.5, 0.1, **AT_ONCE),
        nn.AvgPool2d(2, 1, padding=1, divisor_override=1),
        ns.LIF(0.3, 1.0, **AT_ONCE),
        nn.Flatten(2),
        nn.Conv1d(6, 5, 3, dilation=2),
        ns.Delay((5, 1), 3, 2.0),
        ns.LIF(0.8, 0.3, **AT_ONCE),
        nn.Flatten(-2),
        ns.SpikeLinear(25, 4, bias=False),
        ns.LIF(0.7, 0.1),
    )
    x = frames(1, 8, 8)
    with pytest.warns(UserWarning, match="check of shapes"):
        quiet = ns.to_nir(net, tmp_path / "net.nir", x)
    assert type(quiet).__name__ == "NIRGraph"
    assert net.training and net[4].training
    net.eval()
    again = ns.from_nir(tmp_path / "net.nir", backend=backend)
    with ns.use_backend(backend):
        wanted, _ = net(x)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(again(x)[0], wanted)
    assert [type(one) for one in again if isinstance(one, nn.Linear)] == [ns.SpikeLinear]
    assert again.conv2d_2.bias is None and again.conv2d_2.groups == 2


def test_what_a_reader_of_nir_alone_loses_is_measured_and_told(tmp_path):
    net = ns.Sequential(nn.Linear(N, N), ns.LIF(0.9, 0.7))
    x = frames()
    with pytest.warns(UserWarning) as told:
        ns.to_nir(net, tmp_path / "net.nir", x)
    many, of = wrong(ns.from_nir(tmp_path / "net.nir", written_by="nir")(x)[0], net(x)[0])
    assert many > 0
    assert f"lif_1 {many} of {of} ({100 * many / of:.1f}%)" in str(told[0].message)
    assert "reset='zero', reset_delay=False" in str(told[0].message)
    for exact in (ns.LIF(0.9, 0.7, **AT_ONCE), ns.LIF(0.5, reset="none")):
        net[1] = exact
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ns.to_nir(net, tmp_path / "net.nir", x)
        theirs = ns.from_nir(tmp_path / "net.nir", written_by="nir")
        assert torch.equal(theirs(x)[0], net(x)[0])


def test_a_converted_network_of_snntorch(tmp_path):
    import snntorch

    theirs = nn.Sequential(
        nn.Linear(N, N),
        snntorch.RLeaky(0.9, linear_features=N, init_hidden=True, reset_mechanism="zero"),
        nn.Linear(N, 4),
        snntorch.Leaky(0.8, init_hidden=True, output=True),
    )
    net, x = ns.convert(theirs), frames()
    quietly(ns.to_nir, net, tmp_path / "net.nir", x)
    (spikes, _), _ = net(x)
    assert spikes.sum() > 0
    assert torch.equal(ns.from_nir(tmp_path / "net.nir")(x)[0], spikes)
    assert type(net[-1]) is not ns.LIF  # is left as it was


# Files of others.


def of_snntorch(reset, recurrent):
    snntorch = pytest.importorskip("snntorch")
    export = pytest.importorskip("snntorch.export_nir").export_to_nir
    from snntorch import utils

    options = {"init_hidden": True, "reset_mechanism": reset, "threshold": torch.full((N,), 0.2)}
    first = (
        snntorch.RLeaky(each(), linear_features=N, **options)
        if recurrent
        else snntorch.Leaky(each(), **options)
    )
    second = snntorch.Synaptic(alpha=each(), beta=each().flip(0), **options)
    net = nn.Sequential(nn.Linear(N, N), first, nn.Linear(N, N, bias=False), second)
    graph = export(net, torch.rand(N))  # of one sample: with a batch its export raises

    def run(x):
        utils.reset(net)
        return torch.stack([net(one) for one in x]).detach()

    return graph, run


@pytest.mark.parametrize("recurrent", [False, True], ids=["layers", "recurrent"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_files_of_snntorch(reset, recurrent, tmp_path, backend):
    graph, run = of_snntorch(reset, recurrent)
    nir.write(tmp_path / "theirs.nir", graph)
    x = frames()
    options = {} if reset == "subtract" else {"reset": reset}
    net = ns.from_nir(tmp_path / "theirs.nir", written_by="snntorch", **options, backend=backend)
    many, of = wrong(net(x)[0], run(x))
    assert (many, of > 100) == (0, True)
    many, _ = wrong(ns.from_nir(tmp_path / "theirs.nir")(x)[0], run(x))
    assert many > 0.1 * of  # by NIR's rule, as its own import


@pytest.mark.filterwarnings("ignore")
def test_files_of_norse():
    norse = pytest.importorskip("norse.torch")
    boxes = norse.LIFBoxParameters(v_th=torch.tensor(0.05), v_leak=torch.tensor(0.01))
    cells = norse.LIFParameters(v_th=torch.tensor(0.05))
    layers = [
        nn.Linear(N, N),
        norse.LIFBoxCell(boxes),
        nn.Linear(N, N, bias=False),
        norse.LIFCell(cells),
        norse.IAFCell(),
    ]

    def run(net, x):
        state, found = None, []
        for one in x:
            y, state = net(one, state)
            found.append(y.detach())
        return torch.stack(found)

    x = frames()
    for count in (2, 4, 5):
        net = norse.SequentialState(*layers[:count])
        graph = norse.to_nir(net, x[0])
        many, of = wrong(ns.from_nir(graph, written_by="norse")(x)[0], run(net, x))
        assert (many, of > 100) == (0, True)
    net = norse.SequentialState(nn.Linear(N, N), norse.LIBoxCell())
    trace, _ = ns.from_nir(norse.to_nir(net, x[0]), written_by="norse")(x)
    assert torch.allclose(trace, run(net, x), rtol=0, atol=1e-6)
    # Written with dt=1, time constants are seconds; its cells step by 0.001.
    net = norse.SequentialState(*layers[:2])
    again = ns.from_nir(norse.to_nir(net, x[0], dt=1.0), dt=1e-3)
    assert wrong(again(x)[0], run(net, x))[0] == 0
    with pytest.raises(InterchangeError, match=r"shorter than a step of dt=0\.0001 s; give dt="):
        ns.from_nir(norse.to_nir(net, x[0]))


def test_files_of_spikingjelly(tmp_path, backend):
    based = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    assert based
    net = nn.Sequential(
        layer.Conv2d(1, 3, 3, bias=False),
        neuron.LIFNode(tau=2.0, v_threshold=0.1),
        layer.AvgPool2d(2),
        neuron.IFNode(v_threshold=0.5),
        layer.Flatten(),
        layer.Linear(27, 20),
        neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=0.2),
        neuron.LIFNode(tau=3.0, decay_input=False),
        neuron.ParametricLIFNode(v_threshold=0.2, v_reset=-0.1),
    )
    x = frames(1, 8, 8)
    nir_exchange.export_to_nir(net, x[0], save_path=tmp_path / "theirs.nir")
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    wanted = net(x).detach()
    again = ns.from_nir(tmp_path / "theirs.nir", written_by="spikingjelly", backend=backend)
    many, of = wrong(again(x)[0].detach(), wanted)
    assert (many, of > 100) == (0, True)
    # Membranes that are averages of spikes lie at the threshold, where it fires and NIR does not.
    assert wrong(ns.from_nir(tmp_path / "theirs.nir")(x)[0].detach(), wanted)[0] > 0.1 * of


@pytest.mark.parametrize(
    "kinds, share",
    [
        (("LIF", "IF", "RLIF", "PSU_LIF", "RIF"), 0.0),
        (("CuBaLIF",), 0.3),  # takes the threshold away before the leak, which NIR cannot say
        pytest.param(("RCuBaLIF",), 0.3, marks=pytest.mark.thorough),
    ],
)
def test_files_of_spyx(kinds, share, tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    neurons = pytest.importorskip("spyx.nn")
    exchange = pytest.importorskip("spyx.nir")
    seeds = nnx.Rngs(0)
    layers = [nnx.Linear(N, N, rngs=seeds)]
    layers[0].bias[...] = np.full(N, 0.1)
    for kind in kinds:
        options = {} if kind == "IF" else {"rngs": seeds}
        layers.append(getattr(neurons, kind)((N,), threshold=0.5, **options))
    net = neurons.Sequential(*layers)
    shape = np.array([N])
    nir.write(tmp_path / "theirs.nir", exchange.to_nir(net, {"input": shape}, {"output": shape}))
    x = frames()
    wanted = torch.tensor(np.array(neurons.run(net, x.numpy())[0]))
    again = ns.from_nir(tmp_path / "theirs.nir", written_by="spyx")
    many, of = wrong(again(x)[0].detach(), wanted)
    assert of > 100
    assert many <= share * of
    assert (many > 0) == (share > 0)
    if any(kind.startswith("R") for kind in kinds):
        with pytest.raises(InterchangeError, match="say written_by='spyx'"):
            ns.from_nir(tmp_path / "theirs.nir")


# Ours in the hands of others.

OURS = {
    "LIF": lambda: (
        ns.LIF(0.9, 0.5, **AT_ONCE),
        nn.Linear(N, 4, bias=False),
        ns.LIF(0.8, 0.3, **AT_ONCE),
    ),
    "CubaLIF": lambda: (ns.Synaptic(0.7, 0.9, 0.5, **AT_ONCE),),
    "IF": lambda: (ns.LIF(1.0, 0.5, **AT_ONCE),),
    "Recurrent": lambda: (ns.Recurrent(ns.LIF(0.9, 0.5, **AT_ONCE), N),),
    "conv": lambda: (
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 3, 2),
        ns.LIF(0.8, 0.3, **AT_ONCE),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 5),
        ns.LIF(0.7, 0.1, **AT_ONCE),
    ),
}


def by_snntorch(path):
    return pytest.importorskip("snntorch.import_nir").import_from_nir(nir.read(path))


def by_norse(path):
    return pytest.importorskip("norse.torch").from_nir(nir.read(path), dt=1e-4)


def by_spikingjelly(path):
    based = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    return based.import_from_nir(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, reader",
    [
        ("LIF", by_snntorch),
        ("CubaLIF", by_snntorch),
        ("Recurrent", by_snntorch),
        ("CubaLIF", by_norse),
        ("IF", by_norse),
        *((kind, by_spikingjelly) for kind in OURS),
    ],
)
def test_other_libraries_read_our_files(kind, reader, tmp_path):
    layers = OURS[kind]()
    x = frames()
    before = [nn.Linear(N, N)]
    if kind == "conv":
        layers, before, x = layers[1:], [], frames(1, 3, 4)
    net = ns.Sequential(*before, *layers)
    ns.to_nir(net, tmp_path / "ours.nir", x)
    theirs, state, found = reader(str(tmp_path / "ours.nir")), None, []
    for one in x:
        y, state = theirs(one) if state is None else theirs(one, state)
        found.append(y.detach())
    wanted = net(x)[0].detach()
    assert wanted.sum() > 20
    assert wrong(torch.stack(found), wanted)[0] == 0


# What is refused, in one line each.


def refused(net, *, match, x=None):
    with pytest.raises(InterchangeError, match=match) as error:
        quietly(ns.to_nir, net, None, frames() if x is None else x)
    assert "\n" not in str(error.value)


def squared(current, mem, beta, threshold):
    v = beta * mem * mem + current
    return fire(v - threshold), v


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Own(nn.Module):
    def forward(self, x):
        return x


class InARow(nn.Sequential):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "layer, match",
    [
        (ns.ALIF(), r"layer 0 \(ALIF\): NIR has no node for these neurons; it has those of ns.LIF"),
        (ns.Spiking(squared, beta=0.5, threshold=1.0), "none of your own"),
        (ns.LIF(0.5, neuron=ns.Neuron(squared)), "none of your own"),
        (ns.Recurrent(ns.SEAdLIF(), N), "no adaptive ones"),
        (Own(), "ns.LIF, ns.LI"),
        (ns.OneToOne(0.5), "write it as an ns.Recurrent of ns.LIF"),
        (ns.Delay(N, 4, kernel="gaussian"), "spreads over several .*kernel = 'linear'"),
        (nn.BatchNorm1d(N), "fuse_linear_bn_eval"),
        (Twice(N, N), "it overrides the forward of Linear"),
        (InARow(nn.Linear(N, N)), "forward of its own; to_nir writes layers in a row"),
        (nn.ReLU(), "NIR has no node for it, and to_nir writes layers in a row"),
    ],
)
def test_layers_that_nir_lacks(layer, match):
    refused(nn.Sequential(layer), match=match)


@pytest.mark.parametrize(
    "layer, match",
    [
        (nn.Linear(8, 3), r"NIR multiplies vectors, this gets \(1, 8, 8\); flatten it"),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "pads with zeros"),
        (nn.AvgPool2d(3, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(3, divisor_override=2), "window's size or not at all"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad=True"),
        (nn.MaxPool2d(2), "use nn.AvgPool2d"),
        (nn.LPPool2d(1, 2), "divisor_override=1"),
        (nn.BatchNorm2d(1), "fuse_conv_bn_eval"),
    ],
)
def test_layers_of_maps_that_nir_lacks(layer, match):
    refused(nn.Sequential(layer), match=match, x=frames(1, 8, 8))


def test_an_own_state_at_rest_and_an_empty_network_are_refused():
    rest = {"mem": 0.5}
    refused(ns.Spiking(zoo.lif_subtract, beta=0.5, threshold=1.0, rest=rest), match="at rest")
    refused(ns.Sequential(), match="no layers")


def test_a_layer_that_is_not_what_its_class_says_is_found_out(tmp_path):
    net = ns.Sequential(nn.Linear(N, N), ns.LIF(0.9, 0.3, **AT_ONCE))
    net[0].register_forward_hook(lambda module, given, y: y + 1)
    path = tmp_path / "net.nir"
    path.write_text("the good one")
    with pytest.raises(InterchangeError, match="layer 0: read back it gives other outputs"):
        ns.to_nir(net, path, frames())
    assert path.read_text() == "the good one"
    assert [one.name for one in tmp_path.iterdir()] == ["net.nir"]


@pytest.mark.parametrize(
    "sample, dt, match",
    [
        (np.zeros((2, 1, N)), 1e-4, "sample must be a tensor .* got ndarray"),
        (torch.zeros(2, 1, N, dtype=torch.int64), 1e-4, "floating point, got torch.int64"),
        (torch.zeros(2, N), 1e-4, r"got shape \(2, 12\); make of a batch .* .unsqueeze\(0\)"),
        (torch.zeros(0, 1, N), 1e-4, "at least one step"),
        (torch.zeros(2, 1, N), 0.0, "dt must be the length of a step in seconds, above 0, got 0.0"),
    ],
)
def test_a_sample_or_step_of_the_wrong_kind(sample, dt, match):
    with pytest.raises((TypeError, ValueError), match=match):
        ns.to_nir(ns.LIF(0.5), None, sample, dt)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InterchangeError, match=r"write the file: No such file or directory$"):
        ns.to_nir(ns.LIF(0.5, **AT_ONCE), tmp_path / "no" / "net.nir", frames())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"written_by": "lava"}, "unknown written_by 'lava'; choose one of nir, snntorch"),
        ({"dt": 0.0}, "dt must be the length of a step"),
        ({"reset": "soft"}, "unknown reset 'soft'; choose one of subtract"),
    ],
)
def test_wrong_options_of_reading(options, match):
    with pytest.raises(ValueError, match=match):
        ns.from_nir("net.nir", **options)


def test_files_that_are_none_or_damaged(tmp_path):
    path = tmp_path / "net.nir"

    def raises(match, source=path):
        with pytest.raises(InterchangeError, match=match) as error:
            ns.from_nir(source)
        assert "\n" not in str(error.value)

    raises("net.nir: there is no such file")
    raises("it is a folder, wanted a file", tmp_path)
    path.write_text("no NIR")
    raises("net.nir: cannot be read as NIR")
    ns.to_nir(ns.Sequential(nn.Linear(N, N), ns.LIF(0.9, **AT_ONCE)), path, frames())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    raises("net.nir: cannot be read as NIR")
    path.write_bytes(whole.replace(b"v_threshold", b"v_treshhold"))
    raises("net.nir: cannot be read as NIR")
    raises("from_nir takes a path or a nir.NIRGraph, got int", 3)


def lif(size=3, **changes):
    values = {"tau": 1e-3, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.full(size, value) for name, value in values.items()})


def graph_of(edges, **nodes):
    pairs = [tuple(edge.split("-")) for edge in edges.split()]
    ends = {"in": nir.Input(np.array([3])), "out": nir.Output(np.array([3]))}
    return nir.NIRGraph({**ends, **nodes}, pairs, type_check=False)


ROW = "in-a a-out"
EYE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "graph, match",
    [
        (lambda: graph_of(ROW, a=nir.Linear(np.eye(3)[None])), r"node a \(Linear\): .*two axes"),
        (lambda: graph_of(ROW, a=lif(tau=1e-5)), "tau=1e-05 s is shorter than a step of dt=0.0001"),
        (lambda: graph_of(ROW, a=lif(v_threshold=-1.0)), "threshold must be above 0"),
        (lambda: graph_of(ROW, a=lif(tau=-1.0)), "beta must lie between 0 and 1"),
        (
            lambda: graph_of("in-a a-b b-out", a=nir.Linear(EYE), b=lif(4)),
            "the node a makes 3 features, b takes 4",
        ),
        (lambda: graph_of("in-a a-out in-b b-out", a=lif(), b=lif()), "in leads to a, b"),
        (lambda: graph_of("in-b a-b b-out", a=lif(), b=lif()), "begins at 2 nodes"),
        (lambda: graph_of("in-a a-c a-out", a=lif()), "names the node c, which is not in"),
        (lambda: graph_of("in-a a-a a-out", a=lif()), "all lead to a"),
        (
            lambda: graph_of("in-a a-b b-c c-a b-out", a=lif(), b=lif(), c=nir.Linear(EYE)),
            "all lead to a",
        ),
        (lambda: graph_of("in-a a-out b-b", a=lif(), b=lif()), "no way leads from the input to b"),
        (lambda: graph_of(ROW, a=graph_of("in-x", x=lif()).nodes["x"], b=lif()), "begins at 2"),
        (
            lambda: graph_of(ROW, a=nir.LI(np.ones(3), np.ones(3), np.ones(3))),
            "v_leak is not 0",
        ),
        (
            lambda: graph_of(
                "in-a a-w w-a a-out",
                a=nir.LI(np.ones(3), np.ones(3), np.zeros(3)),
                w=nir.Linear(EYE),
            ),
            "it does not spike",
        ),
        (
            lambda: graph_of("in-a a-w w-a a-out", a=lif(), w=nir.Linear(np.ones((3, 2)))),
            r"come back through weights \(3, 2\)",
        ),
    ],
)
def test_graphs_that_no_layers_compute(graph, match):
    with pytest.raises(InterchangeError, match=match) as error:
        ns.from_nir(graph())
    assert "\n" not in str(error.value)


def test_a_node_that_no_layer_computes():
    class Novel(nir.NIRNode):
        def __init__(self):
            self.metadata = {}

    with pytest.raises(InterchangeError, match=r"node a \(Novel\): no layer computes this; known"):
        ns.from_nir(graph_of(ROW, a=Novel()))


def test_a_reset_that_a_value_to_go_to_does_not_allow():
    graph = graph_of(ROW, a=lif(v_reset=0.5))
    with pytest.raises(InterchangeError, match="v_reset is not v_leak"):
        ns.from_nir(graph, reset="subtract")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    for call in (lambda: ns.to_nir(ns.LIF(0.5), None, frames()), lambda: ns.from_nir("net.nir")):
        with pytest.raises(MissingDependencyError, match=r"pip install nir$"):
            call()


# What NIR says, of files that none of these libraries writes.


def test_leaks_scales_and_values_to_go_to():
    """Against the equation stepped in float64: dv = dt / tau * (v_leak - v + r I)."""
    node = lif(tau=2e-3, r=3.0, v_leak=0.2, v_threshold=0.9, v_reset=-0.4)
    x = torch.rand(T, B, 3)
    v, wanted = torch.full((B, 3), 0.2, dtype=torch.float64), []
    for one in x.double():
        v = v + 1e-4 / 2e-3 * (0.2 - v + 3.0 * one)
        spike = v > 0.9
        v = torch.where(spike, -0.4, v)
        wanted.append(spike.float())
    spikes, _ = ns.from_nir(graph_of(ROW, a=node))(x)
    assert spikes.sum() > 0
    assert torch.equal(spikes, torch.stack(wanted))


def test_gains_reach_what_comes_back_too():
    weight = torch.randn(3, 3)
    x = torch.rand(T, B, 3) * 3
    node = lif(tau=2e-3, r=4.0, v_threshold=0.3)
    back = nir.Affine(weight.numpy(), np.full(3, 0.2, dtype=np.float32))
    net = ns.from_nir(graph_of("in-a a-w w-a a-out", a=node, w=back))
    v, spike, wanted = torch.zeros(B, 3), torch.zeros(B, 3), []
    for one in x:
        v = v + 0.05 * (4.0 * (one + spike @ weight.T + 0.2) - v)
        spike = (v > 0.3).float()
        v = v * (1 - spike)
        wanted.append(spike)
    assert torch.stack(wanted).sum() > 10
    assert torch.equal(net(x)[0], torch.stack(wanted))


def test_thresholds_and_synapses_without_spikes():
    x = torch.rand(T, B, 3)
    alone = ns.from_nir(graph_of(ROW, a=nir.Threshold(np.full(3, 0.5))))
    assert torch.equal(alone(x)[0], (x > 0.5).float())
    synapse = nir.CubaLI(*(np.full(3, one) for one in (2e-4, 5e-4, 5.0, 0.0)), w_in=np.full(3, 2.0))
    trace, _ = ns.from_nir(graph_of(ROW, a=synapse))(x)
    inner, _ = ns.LI(0.5)(x)
    assert torch.allclose(trace, ns.LI(0.8)(inner)[0])
