"""`LIF.from_snntorch`, `ns.convert` and the example: the same spikes as snnTorch's own loop."""

import difflib
import importlib
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from snntorch import surrogate as surrogates
from torch import nn

import neurospike as ns
from neurospike.neurons.snntorch_surrogates import derivative_of
from neurospike.neurons.surrogate import Surrogate, resolve

EXAMPLES = Path(__file__).parents[1] / "examples"


def stepped(leaky, current):
    """Spikes and membranes of snnTorch's layer, stepped over `[T, B, *F]`."""
    leaky.reset_mem()
    mem, spikes, trace = torch.zeros_like(current[0]), [], []
    for x in current:
        spike, mem = leaky(x, mem)
        spikes.append(spike)
        trace.append(mem)
    return torch.stack(spikes), torch.stack(trace)


def gradient(spikes, trace, current):
    weight = torch.linspace(-1, 1, spikes.numel()).view_as(spikes)
    return torch.autograd.grad((spikes * weight + trace).sum(), current)[0]


def check(leaky):
    current = (torch.randn(12, 3, 8) * 0.7).requires_grad_()
    layer = ns.LIF.from_snntorch(leaky)
    spikes, mem, trace = layer(current, return_trace=True)
    wanted, wanted_trace = stepped(leaky, current)
    assert wanted.sum() > 0
    assert torch.equal(spikes, wanted)
    assert torch.equal(trace, wanted_trace)
    assert torch.equal(mem, wanted_trace[-1])
    got, want = gradient(spikes, trace, current), gradient(wanted, wanted_trace, current)
    assert (got - want).norm() <= 1e-5 * want.norm()
    return layer


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("shape", [(), (8,)], ids=["scalar", "each neuron"])
def test_resets_decays_and_thresholds(reset, delay, shape):
    if reset == "subtract" and not delay:
        return  # refused, see below
    leaky = snntorch.Leaky(
        torch.full(shape, 0.8), torch.full(shape, 0.6), reset_mechanism=reset, reset_delay=delay
    )
    layer = check(leaky)
    assert (layer.reset, layer.reset_delay) == (reset, delay)


SURROGATES = {
    "default": None,
    "atan": surrogates.atan(alpha=3.0),
    "fast_sigmoid": surrogates.fast_sigmoid(slope=10),
    "sigmoid": surrogates.sigmoid(slope=4),
    "straight_through": surrogates.straight_through_estimator(),
    "triangular": surrogates.triangular(threshold=2),
    "SFS": surrogates.SFS(slope=10, B=0.5),
    "heaviside": surrogates.heaviside(),
    "spike_rate_escape": surrogates.spike_rate_escape(beta=2, slope=3),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    check(snntorch.Leaky(0.9, spike_grad=SURROGATES[name]))


def test_without_a_surrogate_no_gradient_passes_the_spikes():
    layer = check(snntorch.Leaky(0.9, surrogate_disable=True))
    current = torch.randn(5, 2, 4, requires_grad=True)
    layer(current)[0].sum().backward()
    assert torch.equal(current.grad, torch.zeros_like(current))


def test_float64_has_the_digits_of_theirs():
    current = torch.full((20, 1, 1), 0.3, dtype=torch.float64)
    for theirs in (snntorch.Leaky(0.9, 0.3), snntorch.Leaky(0.9, 0.3).double()):
        wanted, trace = stepped(theirs, current)
        for layer in (ns.LIF.from_snntorch(theirs), ns.LIF.from_snntorch(theirs).double()):
            spikes, _, found = layer(current, return_trace=True)
            assert torch.equal(spikes, wanted.double()) and torch.equal(found, trace)


def test_parameters_that_are_learned_are_shared():
    leaky = snntorch.Leaky(0.9, threshold=torch.tensor(0.5), learn_beta=True, learn_threshold=True)
    layer = ns.LIF.from_snntorch(leaky.eval(), backend="reference")
    assert layer.beta is leaky.beta
    assert layer.threshold is leaky.threshold
    assert not layer.training
    assert layer.backend == "reference"
    assert set(layer.state_dict()) == {"beta", "threshold"}
    whole = ns.LIF.from_snntorch(snntorch.Leaky(beta=1, threshold=2))
    assert (whole.beta.dtype, whole.threshold.item()) == (torch.float32, 2.0)


def test_a_surrogate_in_place_of_one_that_is_not_known():
    def custom(u, grad, spikes):
        return grad

    leaky = snntorch.Leaky(0.9, spike_grad=surrogates.custom_surrogate(custom))
    with pytest.raises(ValueError, match=r"spike_grad .*custom_surrogate.*give its derivative as"):
        ns.LIF.from_snntorch(leaky)
    assert ns.LIF.from_snntorch(leaky, surrogate="boxcar").surrogate.name == "boxcar"


@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inhibition": True}, "has inhibition=True, which the fused layer does not"),
        ({"state_quant": lambda mem: mem.round()}, "has state_quant,"),
        ({"graded_spikes_factor": 2.0}, r"has graded_spikes_factor=2\.0,"),
        ({"graded_spikes_factor": torch.tensor([1.0, 3.0])}, r"factor=\[1\.0, 3\.0\],"),
        ({"learn_graded_spikes_factor": True}, "has learn_graded_spikes_factor=True,"),
        ({"reset_delay": False}, "has reset_delay=False; .* adds the threshold back"),
        (
            {"reset_delay": False, "reset_mechanism": "zero", "threshold": -0.5},
            "has reset_delay=False",
        ),
    ],
)
def test_options_that_cannot_be_expressed_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ns.LIF.from_snntorch(snntorch.Leaky(0.9, **options))


def test_layers_keep_the_mode_that_each_is_in():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)),
        snntorch.Leaky(0.9, init_hidden=True),
        nn.Sequential(nn.BatchNorm1d(8), snntorch.Leaky(0.9, init_hidden=True)),
    )
    net[0][1].eval()  # a frozen normalisation, which both networks share
    net[2].eval()
    modes = {name: layer.training for name, layer in net.named_modules()}
    converted = ns.convert(net)
    for found in (net, converted):
        assert {name: layer.training for name, layer in found.named_modules()} == modes


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"convert takes neurons of .*, got list"):
        ns.convert([snntorch.Leaky(0.9)])


def test_other_neurons_are_refused_and_what_to_use_is_said():
    for neuron, advice in (
        (snntorch.Lapicque(0.9, init_hidden=True), r"ns.LIF\(beta=1 - time_step / \(R \* C\)\)"),
        (snntorch.LeakyParallel(4, 4), "carries_state = True for ns.Sequential"),
    ):
        name = type(neuron).__name__
        with pytest.raises(
            TypeError, match=f"Leaky, got a {name} of snnTorch: .* is Leaky, .*{advice}"
        ):
            ns.LIF.from_snntorch(neuron)
        with pytest.raises(TypeError, match=f"cannot convert 1, a {name} of snnTorch: .*{advice}"):
            ns.convert(nn.Sequential(nn.Linear(4, 4), neuron))
    with pytest.raises(TypeError, match="Leaky, got ReLU; of snnTorch's neurons that is the one"):
        ns.LIF.from_snntorch(nn.ReLU())
    with pytest.raises(TypeError, match=r"got a Synaptic of snnTorch; convert takes neurons"):
        ns.LIF.from_snntorch(snntorch.Synaptic(0.9, 0.8))


OTHERS = {
    "Synaptic": lambda **options: snntorch.Synaptic(0.7, 0.8, **options),
    "Alpha": lambda **options: snntorch.Alpha(0.9, 0.8, **options),
    "RLeaky": lambda **options: snntorch.RLeaky(0.8, V=-0.3, all_to_all=False, **options),
    "RSynaptic": lambda **options: snntorch.RSynaptic(
        0.7, 0.8, V=torch.linspace(-0.5, 0.5, 8), all_to_all=False, **options
    ),
}


def stepped_with_states(neurons, current):
    """Spikes and states at every step of neurons of snnTorch, `[T, B, *F]` each."""
    steps = [neurons(x) for x in current]
    return [torch.stack(one) for one in zip(*steps)]


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("name", OTHERS)
def test_neurons_of_more_states_are_snntorchs_bit_for_bit(name, reset):
    theirs = OTHERS[name](init_hidden=True, output=True, reset_mechanism=reset)
    current = (torch.randn(20, 3, 8) * 0.6 + 0.2).requires_grad_()
    wanted = stepped_with_states(theirs, current)
    found, _ = ns.convert(theirs)(current)
    assert len(found) == len(wanted) and wanted[0].sum() > 10
    for one, other in zip(found, wanted):
        assert torch.equal(one, other)
    leaves = [current, *theirs.parameters()]
    assert len(leaves) == 1 + ("R" in name)
    weights = [torch.linspace(-1, 1, one.numel()).view_as(one) for one in found]
    for one, other in zip(
        torch.autograd.grad(sum((w * f).sum() for w, f in zip(weights, found)), leaves),
        torch.autograd.grad(sum((w * f).sum() for w, f in zip(weights, wanted)), leaves),
    ):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_what_they_learn_is_shared_and_clamped_as_snntorch_does():
    theirs = snntorch.Synaptic(
        torch.tensor([0.5, 1.0, 1.2]), torch.tensor([-0.1, 0.5, 0.9]), learn_alpha=True,
        learn_beta=True, learn_threshold=True, init_hidden=True,
    )  # fmt: skip
    layer = ns.convert(nn.Sequential(nn.Identity(), theirs, nn.Linear(3, 2)))[1]
    assert type(layer) is ns.Synaptic
    for name in ("alpha", "beta", "threshold"):
        assert getattr(layer, name) is getattr(theirs, name)
    current = torch.randn(9, 2, 3)
    wanted = torch.stack([theirs(x) for x in current])
    got = layer(current)[0]
    assert torch.equal(got, wanted)
    leaves = list(theirs.parameters())
    weight = torch.randn(9, 2, 3)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((wanted * weight).sum(), leaves),
    ):
        torch.testing.assert_close(one, other)


def test_a_mixed_network_is_converted_whole():
    net = nn.Sequential(
        nn.Linear(6, 8), OTHERS["RSynaptic"](init_hidden=True),
        nn.Linear(8, 8), OTHERS["Alpha"](init_hidden=True),
        nn.Linear(8, 5), snntorch.Leaky(0.9, init_hidden=True, output=True),
    )  # fmt: skip
    frames = torch.randn(15, 4, 6) * 4
    wanted = stepped_with_states(net, frames)
    (spikes, mems), states = ns.convert(net)(frames)
    assert wanted[0].sum() > 0 and len(states) == 3
    assert torch.equal(spikes, wanted[0])
    torch.testing.assert_close(mems, wanted[1])


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        (lambda: OTHERS["Synaptic"](reset_delay=False), "this Synaptic has reset_delay=False"),
        (lambda: OTHERS["RLeaky"](state_quant=torch.round), "this RLeaky has state_quant"),
        (
            lambda: OTHERS["Alpha"](spike_grad=lambda u: u),
            "this Alpha has the spike_grad .* surrogate=",
        ),
    ],
)
def test_what_other_neurons_have_and_a_fused_layer_has_not_is_named(neurons, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ns.convert(neurons())
    with pytest.raises((ValueError, TypeError), match=f"layer 1: .*{message}"):
        ns.convert(nn.Sequential(nn.Linear(4, 4), neurons()))


def test_the_advice_for_lapicque_is_right():
    lapicque = snntorch.Lapicque(R=4.0, C=2.0, time_step=0.5, threshold=0.3)
    current = torch.randn(12, 3, 8)
    mem, spikes = torch.zeros(3, 8), []
    for x in current:
        spike, mem = lapicque(x, mem)
        spikes.append(spike)
    found, last = ns.LIF(1 - 0.5 / 8, threshold=0.3)(current * 0.5 / 2)
    assert torch.stack(spikes).sum() > 0
    assert torch.equal(found, torch.stack(spikes))
    torch.testing.assert_close(last, mem)


class Renamed(snntorch.Leaky):
    """Leaky with a default and a method of its own: its equations are the same."""

    def __init__(self, beta=0.8, **options):
        super().__init__(beta, threshold=0.5, **options)

    def rate(self, spikes):
        return spikes.mean(0)


def test_a_subclass_that_computes_as_leaky_does_is_converted():
    assert check(Renamed()).threshold == 0.5
    network = ns.convert(nn.Sequential(nn.Linear(4, 4), Renamed(init_hidden=True)))
    assert type(network[1]) is ns.LIF


def test_a_subclass_is_refused_for_the_options_that_leaky_is_refused_for():
    with pytest.raises(ValueError, match=r"has reset_delay=False; .* adds the threshold back"):
        ns.convert(Renamed(reset_delay=False))


def test_a_subclass_that_computes_something_else_is_refused():
    class Doubled(snntorch.Leaky):
        def fire(self, mem):
            return 2 * super().fire(mem)

    with pytest.raises(
        TypeError, match=r"cannot convert 0, Doubled, a Leaky of snnTorch that overrides fire"
    ):
        ns.convert(nn.Sequential(Doubled(0.9, init_hidden=True)))
    with pytest.raises(TypeError, match=r"got Doubled, a Leaky of snnTorch that overrides fire"):
        ns.LIF.from_snntorch(Doubled(0.9))
    patched = snntorch.Leaky(0.9)
    patched.forward = lambda x: (x, x)
    with pytest.raises(TypeError, match="overrides forward"):
        ns.convert(patched)


def test_a_reset_changed_later_is_refused_as_snntorch_does_not_follow_it():
    leaky = snntorch.Leaky(0.9)
    leaky.reset_mechanism = "zero"
    with pytest.raises(ValueError, match="says reset_mechanism='zero' and steps with '_base_sub'"):
        ns.LIF.from_snntorch(leaky)


def test_a_decay_beyond_its_bounds_is_clamped_as_snntorch_does():
    assert check(snntorch.Leaky(1.2, threshold=2.0)).beta_gradient == "clamp"
    learned = snntorch.Leaky(-0.1, learn_beta=True)
    assert ns.LIF.from_snntorch(learned).beta is learned.beta


# The surrogates of the version after 1.0.0


def newer(name, **parameters):
    """An object as the next snnTorch makes it: of a class, its parameters attributes."""
    kind = type(name, (), {"__module__": "snntorch.surrogate"})
    made = kind()
    vars(made).update(parameters)
    return made


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [
        (newer("ATanSurrogate", alpha=3.0), surrogates.atan(alpha=3.0)),
        (newer("FastSigmoidSurrogate", slope=10), surrogates.fast_sigmoid(slope=10)),
        (newer("SigmoidSurrogate", slope=torch.tensor(4)), surrogates.sigmoid(slope=4)),
        (newer("StraightThroughEstimatorSurrogate"), surrogates.straight_through_estimator()),
        (newer("TriangularSurrogate", threshold=2), surrogates.triangular(threshold=2)),
        (newer("SparseFastSigmoidSurrogate", slope=10, B=0.5), surrogates.SFS(slope=10, B=0.5)),
        (newer("HeavisideSurrogate"), surrogates.heaviside()),
        (newer("SpikeRateEscapeSurrogate", beta=2, slope=3), surrogates.spike_rate_escape(2, 3)),
        (surrogates.Heaviside.apply, surrogates.heaviside()),
        (surrogates.StraightThroughEstimator.apply, surrogates.straight_through_estimator()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_surrogates_as_objects_and_as_classes(theirs, wanted):
    found = derivative_of(theirs)
    assert found == derivative_of(wanted)
    assert ns.LIF.from_snntorch(snntorch.Leaky(0.9, spike_grad=theirs)).surrogate == resolve(
        Surrogate(*found)
    )


@pytest.mark.parametrize(
    "spike_grad",
    [
        lambda u: surrogates.ATan.apply(u, 2.0),
        surrogates.atan,  # not called
        surrogates.ATan.apply,  # without its alpha: snnTorch itself fails
        surrogates.LSO(),
        surrogates.SSO(),
        newer("ATanSurrogate"),
        newer("UnheardOfSurrogate", alpha=2.0),
        type("ATanSurrogate", (), {"alpha": 2.0, "__module__": "mine"})(),
        "atan",
        None,
    ],
    ids=range(10),
)
def test_what_is_no_derivative_of_snntorchs_is_not_guessed(spike_grad):
    assert derivative_of(spike_grad) is None


def test_a_surrogate_for_every_layer_of_a_network():
    inner = nn.Sequential(snntorch.Leaky(0.9, init_hidden=True, spike_grad=surrogates.LSO()))
    network = nn.Sequential(
        snntorch.Leaky(0.9, init_hidden=True, spike_grad=lambda u: u), inner, snntorch.Leaky(0.9)
    )
    with pytest.raises(ValueError, match=r"layer 0: .*give its derivative as surrogate=.*convert"):
        ns.convert(network)
    for surrogate in ("boxcar", ns.surrogate.boxcar(1.0)):
        converted = ns.convert(network, surrogate=surrogate)
        layers = (converted[0], converted[1][0], converted[2])
        assert [layer.surrogate for layer in layers] == [ns.surrogate.boxcar()] * 3
    assert ns.convert(snntorch.Leaky(0.9), surrogate="sigmoid").surrogate.name == "sigmoid"


# Modules that stand twice, and networks that are none


def test_a_layer_that_stands_twice_runs_twice():
    tied, act = nn.Linear(5, 5), nn.Hardtanh()
    with torch.no_grad():
        tied.weight.copy_(torch.randint(-3, 4, (5, 5)) / 4)
        tied.bias.fill_(0.25)
    leaky = [snntorch.Leaky(0.75, init_hidden=True) for _ in range(2)]
    shared = nn.Sequential(tied, act)
    net = nn.Sequential(shared, act, leaky[0], shared, act, leaky[1])
    x = torch.randint(0, 4, (3, 5)).float()
    wanted = torch.stack([net(x) for _ in range(10)])
    converted = ns.convert(net)
    found, states = converted(x, num_steps=10)
    assert len(converted) == 6
    assert len(states) == 2
    assert wanted.sum() > 0
    assert torch.equal(found, wanted)


def test_a_leaky_that_stands_twice_is_refused():
    leaky = snntorch.Leaky(0.9, init_hidden=True)
    block = nn.Sequential(nn.Linear(4, 4), leaky)
    with pytest.raises(ValueError, match="layers 0 and 2 are one and the same Leaky, which keeps"):
        ns.convert(nn.Sequential(leaky, nn.Linear(4, 4), leaky))
    with pytest.raises(ValueError, match=r"layers 0.1 and 1.1 are one .* a Leaky for each place"):
        ns.convert(nn.Sequential(block, block))


def test_layers_that_draw_draw_at_every_step_as_in_snntorchs_loop():
    class Bernoulli(nn.Module):
        def forward(self, x):
            return (torch.rand_like(x) < x).float()

    leaky = snntorch.Leaky(0.0, init_hidden=True, reset_mechanism="none", threshold=0.5)
    net = nn.Sequential(Bernoulli(), nn.Flatten(), leaky)
    x = torch.rand(2, 4, 100)
    torch.manual_seed(1)
    wanted = torch.stack([net(x) for _ in range(5)])
    torch.manual_seed(1)
    found, _ = ns.convert(net)(x, num_steps=5)
    assert torch.equal(found, wanted)
    assert not torch.equal(found[0], found[1])


def test_a_sequential_with_a_forward_of_its_own_is_not_taken_for_a_row():
    class Skip(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    net = nn.Sequential(Skip(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True)))
    with pytest.raises(
        TypeError, match=r"0.1, a Leaky of snnTorch inside a Skip, whose forward steps"
    ):
        ns.convert(net)
    plain = ns.convert(nn.Sequential(Skip(nn.Linear(4, 4)), snntorch.Leaky(0.9)))
    assert type(plain[0]) is Skip


def convolutional(**last):
    """Bit-equal layers for any size of batch: small integers are summed without rounding."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        snntorch.Leaky(0.75, init_hidden=True),
        nn.Sequential(nn.MaxPool2d(2), snntorch.Leaky(0.5, learn_beta=True, init_hidden=True)),
        nn.Flatten(),
        nn.Linear(36, 5),
        snntorch.Leaky(0.9, **last),
    )
    with torch.no_grad():
        for layer in (net[0], net[4]):
            layer.weight.copy_((layer.weight * 40).round() / 8)
            layer.bias.zero_()
    return net


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("output", [True, False])
def test_converted_networks_give_the_same_spikes(constant, output):
    net = convolutional(init_hidden=True, output=output)
    frames = torch.randint(0, 4, (6, 3, 1, 8, 8)).float()
    if constant:
        frames = frames[:1].expand(6, -1, -1, -1, -1)
    for layer in (net[1], net[2][1], net[5]):
        layer.reset_mem()
    by_steps = [net(frame) for frame in frames]
    converted = ns.convert(net)
    found, states = converted(frames[0], num_steps=6) if constant else converted(frames)
    if output:
        spikes, trace = found
        assert torch.equal(spikes, torch.stack([step[0] for step in by_steps]))
        assert torch.equal(trace, torch.stack([step[1] for step in by_steps]))
    else:
        spikes = found
        assert torch.equal(spikes, torch.stack(by_steps))
    assert spikes.sum() > 0
    assert [type(state) for state in states] == [torch.Tensor, tuple, torch.Tensor]
    assert isinstance(converted, ns.Sequential)
    assert {id(p) for p in converted.parameters()} == {id(p) for p in net.parameters()}
    assert converted[0] is net[0]


def test_a_last_layer_without_hidden_state_returns_its_membrane_too():
    (spikes, trace), _ = ns.convert(nn.Sequential(snntorch.Leaky(0.9)))(torch.rand(4, 2, 3))
    assert spikes.shape == trace.shape == (4, 2, 3)
    assert isinstance(ns.convert(snntorch.Leaky(0.9, init_hidden=True)), ns.LIF)


def test_what_cannot_be_converted_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.neurons = snntorch.Leaky(0.9)

    with pytest.raises(
        TypeError, match=r"neurons, a Leaky of snnTorch inside a Net, whose forward"
    ):
        ns.convert(Net())
    with pytest.raises(
        TypeError, match=r"cannot convert 1.neurons, a Leaky of snnTorch inside a Net"
    ):
        ns.convert(nn.Sequential(nn.ReLU(), Net()))
    with pytest.raises(TypeError, match=r"cannot convert 0.0, a Lapicque of snnTorch: "):
        ns.convert(nn.Sequential(nn.Sequential(snntorch.Lapicque(0.9))))
    with pytest.raises(TypeError, match="got Linear"):
        ns.convert(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="layer 1: this Leaky has graded_spikes_factor"):
        ns.convert(nn.Sequential(nn.ReLU(), snntorch.Leaky(0.9, graded_spikes_factor=2.0)))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Softmax(0), "dim"),
        (nn.LogSoftmax(0), "dim"),
        (nn.Softmin(0), "dim"),
        (nn.GLU(0), "dim"),
        (nn.Unflatten(0, (1, -1)), "dim"),
        (nn.Flatten(0), "start_dim"),
    ],
)
def test_layers_along_the_batch_of_a_step_are_refused(layer, name):
    def row(last):
        return nn.Sequential(
            nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True), nn.Sequential(last),
            snntorch.Leaky(0.5, threshold=0.3, init_hidden=True),
        )  # fmt: skip

    message = rf"layer 2.0: this {type(layer).__name__} has {name}=0, the batch of a .*\[T \* B"
    with pytest.raises(ValueError, match=message):
        ns.convert(row(layer))
    for kept in (nn.Softmax(1), nn.Softmax(-1), nn.Flatten(), nn.Unflatten(1, (4,))):
        assert ns.convert(row(kept))[2][0] is kept


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_on_what_is_replaced_are_refused(register):
    def watch(*given):
        """Do nothing."""

    inner = nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True))
    net = nn.Sequential(inner, nn.Sequential(nn.ReLU()))
    for module, where in ((inner, "0 is a Seq"), (net, "the network is a Seq")):
        handle = getattr(module, register)(watch)
        with pytest.raises(ValueError, match=rf"{where}.* with the hook \S+watch, .*remove it"):
            ns.convert(net)
        handle.remove()
    for kept in (inner[0], net[1]):
        getattr(kept, register)(watch)
    converted = ns.convert(net)
    assert converted[0][0] is inner[0] and converted[1] is net[1]


SCRIPTS = ("before", "after", "class_before", "class_after")


def test_the_example_differs_in_an_import_and_two_lines():
    files = [EXAMPLES / f"snntorch_{name}.py" for name in ("before", "after")]
    before, after = (file.read_text().split('"""\n', 1)[1].splitlines() for file in files)
    added = [line[2:] for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert [line for line in added if line] == [
        "import neurospike as ns",
        "    return ns.convert(network)",
        "    (spikes, membranes), _ = network(images, num_steps=NUM_STEPS)",
        "    return spikes, membranes",
    ]


def test_the_examples_learn_the_same_digits_and_print_the_same_accuracy(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    training = importlib.import_module("snntorch_training")
    printed, losses, times = [], [], {}
    for name in SCRIPTS:
        script = importlib.import_module(f"snntorch_{name}")
        found = training.train(getattr(script, "make_network", None) or script.Net, script.run, 1)
        training.report(*found)
        printed.append(capsys.readouterr().out.rpartition(",")[0])
        losses.append(torch.tensor(found[0], dtype=torch.float64))
        times[name] = round(found[2])
        assert found[1] > 0.8
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-12, atol=0)
    assert len(set(printed)) == 1 and "test accuracy" in printed[0]
    with capsys.disabled():
        sys.stdout.write(f"\ntutorial 5, ms a step in float64: {times}\n")


def test_weights_of_the_class_are_read_by_the_class_without_the_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before, after = (
        importlib.import_module(f"snntorch_class_{name}").Net() for name in SCRIPTS[:2]
    )
    missing, _ = after.load_state_dict(before.state_dict(), strict=False)
    assert not missing
    images = torch.randint(0, 2, (3, 784)).double()
    with torch.no_grad():
        spikes, membranes = before.double()(images)
        found, traces = after.double()(images)
    assert torch.equal(found.to(spikes.dtype), spikes) and spikes.sum() > 0
    torch.testing.assert_close(traces, membranes, rtol=1e-12, atol=1e-14)


def test_a_layer_takes_snntorchs_surrogates_as_they_are():
    theirs, ours = (
        ns.LIF(0.9, surrogate=surrogates.fast_sigmoid(slope=7)),
        ns.LIF(0.9, surrogate=ns.surrogate.fast_sigmoid(7.0)),
    )
    assert (theirs.surrogate, theirs.rule) == (ours.surrogate, ours.rule)


@pytest.mark.parametrize(
    "theirs", [surrogates.LSO(), surrogates.custom_surrogate(max), surrogates.atan, surrogates.ATan]
)
def test_a_surrogate_of_snntorchs_without_a_counterpart_is_named(theirs):
    for make in (lambda s: ns.LIF(0.9, surrogate=s), lambda s: ns.Synaptic(0.8, 0.9, surrogate=s)):
        with pytest.raises(TypeError, match=r"got (LSO|custom|atan|ATan).* as in surrogate.atan\("):
            make(theirs)


def test_the_row_inside_a_class_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.row = nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True))

    with pytest.raises(TypeError, match=r"convert row.1, .*: net.row = ns.convert\(net.row\)"):
        ns.convert(Net())


def test_a_network_without_values_is_refused_and_a_converted_one_may_lose_them():
    net = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.9, init_hidden=True))
    converted = ns.convert(net).to("meta")
    assert "beta=tensor()" in repr(converted)
    with pytest.raises(ValueError, match=r"Leaky is on the meta device, .* ns.convert returns"):
        ns.convert(net.to("meta"))
