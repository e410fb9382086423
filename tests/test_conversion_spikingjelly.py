"""`ns.convert` of SpikingJelly's networks: its spikes, membranes and gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn

import neurospike as ns

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import functional, layer, neuron, surrogate

KINDS = {
    "LIF": lambda **options: neuron.LIFNode(tau=3.7, **options),
    "LIF added": lambda **options: neuron.LIFNode(tau=2.0, decay_input=False, **options),
    "PLIF": lambda **options: neuron.ParametricLIFNode(init_tau=3.0, **options),
    "PLIF added": lambda **options: neuron.ParametricLIFNode(decay_input=False, **options),
    "IF": lambda **options: neuron.IFNode(**options),
}


@pytest.fixture(autouse=True)
def without_compiling():
    """Run on the reference, which every backend is compared with elsewhere, as here in one test."""
    with ns.use_backend("reference"):
        yield


def stepped(theirs, x, mode="m"):
    """What a network of SpikingJelly gives from rest for all steps."""
    functional.reset_net(theirs)
    return theirs(x) if mode == "m" else torch.stack([theirs(one) for one in x])


def gradients(spikes, leaves):
    weight = torch.linspace(-1, 1, spikes.numel()).view_as(spikes)
    return torch.autograd.grad((spikes * weight).sum(), leaves)


def check(theirs, x):
    x = x.clone().requires_grad_()
    wanted = stepped(theirs, x, theirs.step_mode)
    converted = ns.convert(theirs)
    spikes, (v,) = converted(x)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(spikes, wanted)
    assert torch.equal(v, theirs.v)
    leaves = [x, *theirs.parameters()]
    assert {id(one) for one in converted.parameters()} == {id(one) for one in leaves[1:]}
    for got, want in zip(gradients(spikes, leaves), gradients(wanted, leaves)):
        assert (got - want).norm() <= 1e-5 * want.norm()
    return converted


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.2])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "through"])
@pytest.mark.parametrize("kind", KINDS)
def test_neurons_are_theirs_bit_for_bit(kind, detach, v_reset):
    options = {"v_threshold": 0.8, "v_reset": v_reset, "detach_reset": detach}
    for mode in ("m", "s"):
        check(KINDS[kind](**options, step_mode=mode), torch.randn(15, 3, 20) * 1.5 + 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_has_the_digits_of_theirs(kind):
    theirs = KINDS[kind](v_threshold=0.3, v_reset=0.1, step_mode="m").double()
    check(theirs, torch.randn(15, 3, 20, dtype=torch.float64) * 1.5 + 0.3)
    x = torch.full((10, 1, 1), 0.3, dtype=torch.float64)
    theirs = neuron.IFNode(v_threshold=0.3, step_mode="m")
    for backend in ("reference", "numba"):
        with ns.use_backend(backend):
            for net in (ns.convert(theirs), ns.convert(theirs).double()):
                assert torch.equal(net(x)[0], stepped(theirs, x))


def test_digits_of_64_bits_change_nothing_in_other_formats():
    theirs = neuron.LIFNode(tau=3.7, v_threshold=0.3, v_reset=-0.1, step_mode="m")
    x = torch.randn(15, 3, 20) * 1.5 + 0.3
    layer = check(theirs, x)
    formats = {name: one.dtype for name, one in layer.state_dict().items()}
    assert set(formats.values()) == {torch.float64}
    assert ns.convert(neuron.IFNode(0.5)).v_threshold.dtype == torch.float32  # which holds it
    wanted, (v,) = layer(x)
    for backend in ("reference", "numba"):
        with ns.use_backend(backend):
            for net in (copy.deepcopy(layer), copy.deepcopy(layer).float()):
                spikes, (found,) = net(x)
                assert torch.equal(spikes, wanted) and torch.equal(found, v)
    half, _ = copy.deepcopy(layer).half()(x.half())
    assert torch.equal(half, layer(x.half().float())[0].half())
    earlier = {name: one.float() for name, one in layer.state_dict().items()}
    layer.load_state_dict(earlier)  # as it was saved before
    assert torch.equal(layer(x)[0], wanted)
    networks = [ns.Recurrent(one, 20) for one in (ns.convert(theirs), layer.float())]
    networks[1].load_state_dict(networks[0].state_dict())
    assert torch.equal(*(one(x)[0] for one in networks))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_membrane_exactly_at_the_threshold_fires_as_theirs_does(backend):
    x = (torch.randn(20, 3, 50) * 4).round() / 2
    theirs = neuron.LIFNode(step_mode="m")
    with ns.use_backend(backend):
        layer = check(theirs, x)
    assert layer.surrogate == ns.surrogate.sigmoid(4.0)
    above, _ = ns.LIF(0.5, reset="zero", reset_delay=False)(x / 2)
    assert (above != stepped(theirs, x)).sum() > 10  # at the threshold ours does not


SURROGATES = {
    "ATan": surrogate.ATan(alpha=3.0),
    "Sigmoid": surrogate.Sigmoid(alpha=2.5),
    "PiecewiseQuadratic": surrogate.PiecewiseQuadratic(alpha=1.5),
    "PiecewiseExp": surrogate.PiecewiseExp(alpha=1.5),
    "SoftSign": surrogate.SoftSign(alpha=3.0),
    "SuperSpike": surrogate.SuperSpike(alpha=1.5),
    "NonzeroSignLogAbs": surrogate.NonzeroSignLogAbs(alpha=1.5),
    "Erf": surrogate.Erf(alpha=1.5),
    "PiecewiseLeakyReLU": surrogate.PiecewiseLeakyReLU(w=0.5, c=0.1),
    "S2NN": surrogate.S2NN(alpha=3.0, beta=0.7),
    "QPseudoSpike": surrogate.QPseudoSpike(alpha=2.5),
    "LeakyKReLU": surrogate.LeakyKReLU(leak=0.2, k=0.9),
    "FakeNumericalGradient": surrogate.FakeNumericalGradient(alpha=0.4),
    "LogTailedReLU": surrogate.LogTailedReLU(alpha=0.3),
    "DeterministicPass": surrogate.DeterministicPass(),
    "Rect": surrogate.Rect(alpha=0.7),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_theirs_wherever_one_is_taken(name):
    theirs = SURROGATES[name]
    u = torch.linspace(-2.03, 2.01, 200, dtype=torch.float64).requires_grad_()
    wanted = torch.autograd.grad(theirs(u).sum(), u)[0]
    for holder in (
        ns.LIF(0.9, surrogate=theirs),
        ns.Synaptic(0.8, 0.9, surrogate=theirs),
        ns.convert(neuron.IFNode(surrogate_function=theirs)),
    ):
        torch.testing.assert_close(holder.surrogate(u.detach()), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "theirs",
    [
        surrogate.PoissonPass(),
        surrogate.SquarewaveFourierSeries(),
        surrogate.ATan(spiking=False),
        surrogate.ATan,
    ],
)
def test_surrogates_without_a_counterpart_are_named(theirs):
    with pytest.raises(TypeError, match=r"surrogate got \w+ of spikingjelly.*as in surrogate.ATan"):
        ns.LIF(0.9, surrogate=theirs)
    if isinstance(theirs, nn.Module):
        node = neuron.LIFNode(surrogate_function=theirs)
        with pytest.raises(ValueError, match=r"layer 1: .*surrogate_function .*surrogate="):
            ns.convert(nn.Sequential(nn.Linear(2, 2), node))
        assert ns.convert(node, surrogate="boxcar").surrogate == ns.surrogate.boxcar()


def whole(*layers):
    """A network whose products of small integers are the same in any order."""
    net = nn.Sequential(*layers)
    for one in net.modules():
        if isinstance(one, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                one.weight.copy_((one.weight * 20).round() / 8)
                one.bias.copy_((one.bias * 20).round() / 8)
    return net


def convolutional(mode):
    torch.manual_seed(3)
    net = whole(
        layer.Conv2d(1, 4, 3), layer.BatchNorm2d(4), neuron.IFNode(0.5),
        layer.MaxPool2d(2), layer.Flatten(), layer.Dropout(0.5), layer.Linear(36, 10),
        neuron.LIFNode(2.0, v_threshold=0.2), nn.Linear(10, 5),
        neuron.ParametricLIFNode(v_threshold=0.05),
    )  # fmt: skip
    functional.set_step_mode(net, mode)
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_networks_of_both_step_modes(mode, training):
    net = convolutional(mode).train(training)
    if mode == "s" and training:
        del net[1]  # which takes the statistics of each step there
    converted = ns.convert(copy.deepcopy(net))
    frames = torch.randint(0, 4, (6, 3, 1, 8, 8)).float()
    torch.manual_seed(0)
    wanted = stepped(net, frames, mode)
    torch.manual_seed(0)
    found, states = converted(frames)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(found, wanted)
    assert len(states) == 4  # the mask of the dropout among them
    again, _ = converted(frames[3:], converted(frames[:3])[1]) if not training else (wanted[3:], 0)
    assert torch.equal(again, wanted[3:])
    kinds = [type(one).__module__.partition(".")[0] for one in converted.modules()]
    assert "spikingjelly" not in kinds


def test_parameters_are_shared_and_the_network_itself_is_left_as_it_was():
    net = convolutional("m")
    before = copy.deepcopy(net.state_dict())
    converted = ns.convert(net)
    assert converted[0].weight is net[0].weight
    assert converted[9].w is net[9].w
    assert converted[1].running_mean is net[1].running_mean
    assert [one.step_mode for one in net if hasattr(one, "step_mode")] == ["m"] * 9
    assert all(torch.equal(one, net.state_dict()[key]) for key, one in before.items())


def test_containers_are_opened():
    torch.manual_seed(2)
    frames = torch.randint(0, 4, (6, 3, 1, 8, 8)).float()
    net = whole(
        layer.SeqToANNContainer(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten()),
        layer.MultiStepContainer(nn.Linear(36, 10), neuron.IFNode()),
        layer.StepModeContainer(False, "m", nn.Linear(10, 10)),
        layer.StepModeContainer(True, "m", neuron.LIFNode(tau=2.0, v_threshold=0.2)),
        nn.Linear(10, 5), neuron.LIFNode(tau=2.0, v_threshold=0.1, step_mode="m"),
    )  # fmt: skip
    wanted = stepped(net, frames)
    found, _ = ns.convert(net)(frames)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(found, wanted)


def test_a_layer_of_torch_that_is_given_sequences_is_given_them_here():
    net = whole(
        nn.Flatten(2), nn.Linear(64, 8), nn.ReLU(), nn.Softmax(0),
        neuron.IFNode(0.3, step_mode="m"),
    )  # fmt: skip
    frames = torch.randint(0, 4, (6, 3, 1, 8, 8)).float()
    wanted = stepped(net, frames)
    found, states = ns.convert(net)(frames)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(found, wanted)
    assert [state is None for state in states] == [True, True, False]


def test_a_layer_along_the_batch_of_all_steps_works_along_it_here():
    net = whole(
        layer.SeqToANNContainer(nn.Linear(8, 8), nn.Softmax(0)), neuron.IFNode(0.1, step_mode="m")
    )
    frames = torch.randint(0, 4, (6, 3, 8)).float()
    wanted = stepped(net, frames)
    found, _ = ns.convert(net)(frames)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(found, wanted)
    for flat in (layer.Flatten(0), layer.MultiStepContainer(nn.Softmax(0))):
        mode = "s" if isinstance(flat, layer.Flatten) else "m"
        with pytest.raises(ValueError, match=r"layer 0\S*: this \w+ has (start_)?dim=0, the batch"):
            ns.convert(nn.Sequential(flat, neuron.IFNode(step_mode=mode)))


def test_a_recurrent_layer_of_torch_is_refused_unless_it_returns_its_output_alone():
    class Output(nn.GRU):
        def forward(self, x):
            return super().forward(x)[0]

    net = nn.Sequential(nn.GRU(4, 4), neuron.IFNode(step_mode="m"))
    message = "convert 0, GRU: it returns its state beside its output, which no layer here"
    with pytest.raises(TypeError, match=message):
        ns.convert(net)
    net[0] = Output(4, 4)
    x = torch.randn(6, 3, 4) * 4
    assert torch.equal(ns.convert(net)(x)[0], stepped(net, x))


def test_a_row_without_neurons_is_given_what_its_layers_take():
    net = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(4, 4, step_mode="m"))
    x = torch.rand(6, 3, 2, 2)
    assert torch.equal(ns.convert(net)(x)[0], net(x))


STEPPED = {  # layers whose step_mode "s" makes another thing of a sequence, and of which shape
    "Flatten": (lambda: layer.Flatten(start_dim=2, step_mode="s"), (6, 3, 1, 4, 4)),
    "BatchNorm1d": (lambda: layer.BatchNorm1d(3, step_mode="s"), (6, 3, 16)),
    "GroupNorm": (lambda: layer.GroupNorm(3, 3, step_mode="s"), (6, 3, 16)),
    "Conv1d": (lambda: layer.Conv1d(3, 3, 1, step_mode="s"), (6, 3, 16)),
    "Container": (
        lambda: layer.StepModeContainer(False, "s", layer.BatchNorm1d(3)),
        (6, 3, 16),
    ),
}


@pytest.mark.parametrize("name", STEPPED)
def test_layers_in_single_steps_among_neurons_that_take_sequences(name):
    make, shape = STEPPED[name]
    torch.manual_seed(4)
    net = whole(
        neuron.IFNode(step_mode="m"), make(), layer.Linear(16, 4, step_mode="s"),
        neuron.IFNode(0.3, step_mode="m"),
    )  # fmt: skip
    frames = torch.randint(0, 3, shape).float()
    wanted = stepped(copy.deepcopy(net), frames)
    found, _ = ns.convert(net)(frames)
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("made", "mode", "message"),
    [
        (layer.Dropout(0.5, "s"), "m", "1: this Dropout takes single steps, in a place .* whole"),
        (layer.Dropout2d(0.5, "m"), "s", "1: this Dropout2d takes whole sequences, .* single"),
        (layer.Linear(4, 4, step_mode="m"), "s", "1: this Linear takes whole .* make all layers"),
        (
            layer.MultiStepContainer(nn.Linear(4, 4)),
            "s",
            "1: this MultiStepContainer takes whole sequences, in a place that is given single",
        ),
        (
            layer.SeqToANNContainer(nn.Linear(4, 4)),
            "s",
            "1: this SeqToANNContainer takes whole sequences, in a place that is given single",
        ),
    ],
)
def test_layers_of_the_other_step_mode_are_refused(made, mode, message):
    with pytest.raises(ValueError, match=message):
        ns.convert(nn.Sequential(neuron.IFNode(step_mode=mode), made))


@pytest.mark.parametrize(
    "made",
    [
        lambda: layer.MultiStepContainer(nn.Linear(4, 4)),
        lambda: layer.SeqToANNContainer(nn.Linear(4, 4)),
        lambda: layer.Dropout(0.5, "m"),
    ],
)
def test_hooks_on_containers_and_dropout_are_refused(made):
    hooked = made()
    hooked.register_forward_hook(print)
    net = nn.Sequential(hooked, neuron.IFNode(step_mode="m"))
    with pytest.raises(ValueError, match=r"0 is a \w+ with the hook print, which the module in"):
        ns.convert(net)
    net[0] = layer.Linear(4, 4, step_mode="m")
    seen = []
    net[0].register_forward_hook(lambda *given: seen.append(given))
    ns.convert(net)(torch.rand(5, 2, 4))
    assert len(seen) == 1


class Renamed(neuron.LIFNode):
    """A LIFNode with another default."""

    def __init__(self, tau=3.0):
        super().__init__(tau)

    def extra_repr(self):
        return "mine"


class Leaking(neuron.LIFNode):
    def single_step_functional_forward(self, inputs, states):
        return inputs, states


class Net(nn.Module):
    def __init__(self, neurons):
        super().__init__()
        self.row = nn.Sequential(layer.Linear(4, 4), neurons)

    def forward(self, x):
        return self.row(x).mean(0)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.Sequential(neuron.QIFNode()), TypeError, "convert 0, a QIFNode of Spiki.*Spiking"),
        (neuron.SimpleIFNode(), TypeError, "convert the module, a Simple.*use neuron.IFNode"),
        (
            Leaking(),
            TypeError,
            "Leaking, a LIFNode of SpikingJelly that overrides single_step_functional_f",
        ),
        (Net(neuron.LIFNode()), TypeError, r"row.1, a LIFN.* inside a Net, .*net.row = ns.convert"),
        (
            nn.Sequential(neuron.LIFNode(step_mode="m"), neuron.LIFNode()),
            ValueError,
            "layer 1: this LIFNode takes single steps, in a place that is given whole sequences",
        ),
        (
            layer.SeqToANNContainer(neuron.LIFNode()),
            ValueError,
            "the network is a SeqToANNContainer that holds layers with a state",
        ),
        (
            nn.Sequential(layer.TLastMultiStepContainer(neuron.LIFNode())),
            TypeError,
            "carries_state",
        ),
        (
            nn.Sequential(layer.LinearRecurrentContainer(neuron.LIFNode(), 2, 2)),
            TypeError,
            "columns of rc.weight that the input meets to an nn.Linear.*ns.Recurrent",
        ),
        (nn.Sequential(*[neuron.LIFNode()] * 2), ValueError, "0 and 1 are one and the same LIFN"),
        (nn.Sequential(*[layer.Dropout()] * 2), ValueError, "0 and 1 are one and the same Dropout"),
        (layer.Linear(2, 2), TypeError, "convert takes neurons of snnTorch, Spik.*, got Linear"),
    ],
)
def test_what_cannot_be_converted_is_named(module, error, message):
    with pytest.raises(error, match=message):
        ns.convert(module)


def test_a_number_format_of_the_membrane_is_refused():
    theirs = neuron.LIFNode(step_mode="m")
    theirs._neuron_precision = (torch.float16, "fp32", "fp32")
    with pytest.raises(ValueError, match="this LIFNode keeps its membrane in a number format"):
        ns.convert(theirs)


def test_a_subclass_that_computes_as_theirs_does_is_converted():
    check(Renamed(), torch.randn(15, 3, 20) * 1.5 + 0.3)


def test_a_converted_network_is_saved_and_read():
    net = ns.convert(convolutional("m").eval())
    frames = torch.randint(0, 4, (6, 3, 1, 8, 8)).float()
    assert torch.equal(pickle.loads(pickle.dumps(net))(frames)[0], net(frames)[0])
    again = ns.convert(convolutional("m").eval())
    with torch.no_grad():
        again[0].weight.zero_()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(frames)[0], net(frames)[0])


def test_what_is_said_of_a_recurrent_container_gives_its_spikes():
    """Weights and inputs are multiples of 1/32: sums in any order are the same number."""
    theirs = layer.LinearRecurrentContainer(neuron.LIFNode(), 6, 6)
    with torch.no_grad():
        for one in theirs.rc.parameters():
            one.copy_((one * 64).round() / 32)
    x = (torch.randn(20, 3, 6) * 64).round() / 32
    enter, back = (
        nn.Linear(6, 6, bias=False),
        ns.Recurrent(ns.convert(neuron.LIFNode()), 6, bias=True),
    )
    with torch.no_grad():
        enter.weight.copy_(theirs.rc.weight[:, :6])
        back.weight.copy_(theirs.rc.weight[:, 6:])
        back.bias.copy_(theirs.rc.bias)
        wanted = stepped(theirs, x, mode="s")
        spikes, _ = ns.Sequential(enter, back)(x)
    assert 0.1 < wanted.mean() < 0.9
    assert torch.equal(spikes, wanted)
