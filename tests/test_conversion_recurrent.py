"""`ns.convert` of snnTorch's `RLeaky` and `RSynaptic` whose neurons all act on each other."""

import copy
import pickle

import pytest
import snntorch
import torch
from torch import nn
from torch.nn.utils import prune

import neurospike as ns

KINDS = {
    "RLeaky": lambda size, **options: snntorch.RLeaky(
        torch.linspace(0.8, 0.95, size), linear_features=size, **options
    ),
    "RSynaptic": lambda size, **options: snntorch.RSynaptic(
        0.7, torch.linspace(0.8, 0.95, size), linear_features=size, **options
    ),
}
RESETS = ["subtract", "zero", "none"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


class Wide(torch.autograd.Function):
    """snnTorch's default surrogate, whose own spikes and gradients are float32 whatever it gets."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad / (1 + (torch.pi * ctx.saved_tensors[0]) ** 2)


def stepped(theirs, current):
    """Spikes and states at every step of snnTorch's neurons from rest, each `[T, B, N]`."""
    state = [torch.zeros_like(current[0])] * (3 if isinstance(theirs, snntorch.RSynaptic) else 2)
    steps = []
    for x in current:
        state = theirs(x, *state)
        steps.append(state)
    return [torch.stack(one) for one in zip(*steps)]


def drive(reset, *shape, dtype=torch.float32):
    """A current at which neurons without a reset fire now and then, too."""
    return torch.randn(*shape, dtype=dtype) * 0.5 + (-0.02 if reset == "none" else 0.1)


@pytest.mark.parametrize("reset", RESETS)
def test_under_one_spike_in_ten_thousand_differs_by_another_order_of_additions(kind, reset):
    theirs = KINDS[kind](64, reset_mechanism=reset)
    current = drive(reset, 100, 32, 64)
    with torch.no_grad():
        wanted, *wanted_states = stepped(theirs, current)
        (spikes, *traces), _ = ns.convert(theirs)(current)
    assert 0.02 < wanted.mean() < 0.6
    assert (spikes != wanted).sum() < 1e-4 * wanted.sum()
    agree = (spikes == wanted).all(2).all(0)
    assert agree.float().mean() > 0.9
    for one, other in zip(traces, wanted_states):
        torch.testing.assert_close(one[:, agree], other[:, agree], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reset", RESETS)
def test_replayed_currents_give_snntorchs_spikes_bit_for_bit(kind, reset):
    """Weights and inputs are multiples of 1/32, so that sums in any order are the same number."""
    theirs = KINDS[kind](16, reset_mechanism=reset)
    current = (drive(reset, 50, 4, 16) * 32).round() / 32
    with torch.no_grad():
        for one in theirs.recurrent.parameters():
            one.copy_((one * 32).round() / 32)
        layer = ns.convert(theirs)
        (spikes, *traces), _ = layer(current)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        theirs.recurrent = nn.Identity()  # of spikes that are 0: all that comes is the input
        states = [torch.zeros(4, 16) for _ in traces]
        for t, total in enumerate(current + (before @ layer.weight.T + layer.bias)):
            spike, *states = theirs(total, torch.zeros(4, 16), *states)
            assert torch.equal(spikes[t], spike)
            for state, trace in zip(states, traces):
                assert torch.equal(trace[t], state)
    assert spikes.sum() > 50


def gradients(found, leaves):
    generator = torch.Generator().manual_seed(5)
    total = 0.0
    for one in found:
        total = total + (one * torch.randn(one.shape, generator=generator).to(one.dtype)).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_are_snntorchs(kind, reset, dtype):
    learned = {"learn_beta": True, "learn_threshold": True, "threshold": torch.ones(12)}
    learned |= {"learn_alpha": True} if kind == "RSynaptic" else {}
    theirs = KINDS[kind](12, reset_mechanism=reset, spike_grad=Wide.apply, **learned).to(dtype)
    wide, layer = copy.deepcopy(theirs).double(), ns.convert(theirs, surrogate="atan")
    current = drive(reset, 20, 3, 12, dtype=dtype).requires_grad_()
    wanted = stepped(theirs, current)
    found, _ = layer(current)
    assert torch.equal(found[0], wanted[0]) and wanted[0].sum() > 20
    leaves = [current, *theirs.parameters()]
    assert len(leaves) == {"RLeaky": 5, "RSynaptic": 6}[kind]
    # Of one number for all neurons, as alpha is, what is added up nearly cancels out: float32 sums
    # in two orders are each as far from the float64 one as from one another.
    exact_current = current.detach().double().requires_grad_()
    exact = stepped(wide, exact_current)
    assert torch.equal(exact[0].to(dtype), wanted[0])
    exact_leaves = [exact_current, *wide.parameters()]
    budget = 1e-5 if dtype == torch.float32 else 1e-10
    for one, other, truth in zip(
        gradients(found, leaves), gradients(wanted, leaves), gradients(exact, exact_leaves)
    ):
        assert (one - truth).norm() <= budget * truth.norm() + (other - truth).norm()
        assert truth.norm() > 0


def test_weights_and_what_is_learned_are_shared(kind):
    theirs = KINDS[kind](5, learn_beta=True, learn_threshold=True)
    torch.manual_seed(3)
    layer = ns.convert(theirs.eval())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # making the layer has drawn nothing
    assert layer.weight is theirs.recurrent.weight and layer.bias is theirs.recurrent.bias
    assert layer.neuron.beta is theirs.beta and layer.neuron.threshold is theirs.threshold
    assert not layer.training and not layer.neuron.training
    assert {id(p) for p in layer.parameters()} == {id(p) for p in theirs.parameters()}


def test_weights_that_do_not_learn_stay_constant_and_a_bias_may_be_left_out():
    theirs = snntorch.RLeaky(0.9, linear_features=5, learn_recurrent=False, init_hidden=True)
    layer = ns.convert(theirs)
    current = torch.randn(6, 2, 5, requires_grad=True)
    layer(current)[0].sum().backward()
    assert layer.weight.grad is None and not layer.weight.requires_grad
    theirs.recurrent = nn.Linear(5, 5, bias=False)
    layer = ns.convert(theirs)
    assert layer.bias is None
    wanted = torch.stack([theirs(x) for x in current])
    assert torch.equal(layer(current)[0], wanted)


@pytest.mark.parametrize("reset", RESETS)
def test_states_are_carried_in_snntorchs_order(kind, reset):
    theirs = KINDS[kind](8, reset_mechanism=reset)
    layer = ns.convert(theirs)
    current = drive(reset, 21, 3, 8)
    with torch.no_grad():
        state = [torch.rand(3, 8) for _ in layer.states]
        state[0] = state[0].round()
        (spikes, *_), after = layer(current, state)
        for x in current:
            wanted = theirs(x, *state)
            state = wanted
    assert layer.states == ("spike", "syn", "mem") if kind == "RSynaptic" else ("spike", "mem")
    assert torch.equal(spikes[-1], state[0])
    for one, other in zip(after, state):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, True), ({"init_hidden": True}, False), ({"init_hidden": True, "output": True}, True)],
)
def test_the_last_layer_returns_what_snntorchs_does(kind, options, shown):
    theirs = KINDS[kind](6, **options)
    found, state = ns.convert(nn.Sequential(nn.Identity(), theirs))(torch.randn(4, 2, 6))
    assert isinstance(found, tuple) == shown
    if shown:
        assert len(found) == {"RLeaky": 2, "RSynaptic": 3}[kind] == len(state[0])
        assert all(one.shape == (4, 2, 6) for one in found)
    constant, _ = ns.convert(theirs)(torch.ones(2, 6), num_steps=4)
    assert (constant[0] if shown else constant).shape == (4, 2, 6)


def mixed(**last):
    return nn.Sequential(
        nn.Linear(6, 8), snntorch.RLeaky(0.9, linear_features=8, init_hidden=True),
        nn.Sequential(nn.Linear(8, 8), snntorch.RSynaptic(0.7, 0.8, linear_features=8,
            init_hidden=True, learn_alpha=True)),
        snntorch.RLeaky(0.8, V=-0.3, all_to_all=False, init_hidden=True),
        nn.Linear(8, 8), snntorch.Alpha(0.9, 0.8, init_hidden=True),
        nn.Linear(8, 7), snntorch.Leaky(0.9, init_hidden=True),
        nn.Linear(7, 5), snntorch.RSynaptic(0.6, 0.9, linear_features=5, **last),
    )  # fmt: skip


def test_a_network_that_mixes_them_is_converted_whole():
    net = mixed(init_hidden=True, output=True)
    frames = torch.randn(15, 4, 6) * 4
    wanted = [torch.stack(one) for one in zip(*[net(x) for x in frames])]
    converted = ns.convert(net)
    found, states = converted(frames)
    assert wanted[0].sum() > 0 and len(found) == 3
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found[1:], wanted[1:]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    kinds = [type(layer) for layer in (converted[1], converted[2][1], converted[3])]
    assert kinds == [ns.Recurrent, ns.Recurrent, ns.OneToOne]
    leaves = list(net.parameters())
    assert {id(p) for p in converted.parameters()} == {id(p) for p in leaves}
    for one, other in zip(gradients(found, leaves), gradients(wanted, leaves)):
        assert (one - other).norm() <= 1e-4 * max(1e-3, float(other.norm()))
    (first, *_), before = converted(frames[:7])
    (rest, *_), after = converted(frames[7:], before)
    assert torch.equal(torch.cat([first, rest]), found[0])
    assert torch.equal(after[-1][-1], states[-1][-1])


def test_a_converted_network_is_copied_pickled_and_saved():
    converted = ns.convert(mixed()).eval()
    frames = torch.randn(9, 2, 6) * 4
    with torch.no_grad():
        (spikes, *_), _ = converted(frames)
        other = ns.convert(mixed())
        other.load_state_dict(converted.state_dict())
        for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), other):
            assert torch.equal(again(frames)[0][0], spikes)
    assert spikes.sum() > 0


def masked():
    theirs = snntorch.RLeaky(0.9, linear_features=4)
    prune.random_unstructured(theirs.recurrent, "weight", 0.5)
    return theirs


def replaced(recurrent):
    theirs = snntorch.RSynaptic(0.9, 0.8, linear_features=4)
    theirs.recurrent = recurrent
    return theirs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: snntorch.RLeaky(0.9, conv2d_channels=3, kernel_size=3),
            "this RLeaky has conv2d_channels=3: .* through a convolution",
        ),
        (
            lambda: snntorch.RSynaptic(0.9, 0.8, conv2d_channels=2, kernel_size=(3, 3)),
            "this RSynaptic has conv2d_channels=2: .* use linear_features",
        ),
        (
            lambda: snntorch.RLeaky(0.9, linear_features=4, reset_delay=False),
            "this RLeaky has reset_delay=False, which",
        ),
        (lambda: snntorch.RLeaky(0.9, linear_features=4, state_quant=torch.round), "state_quant"),
        (
            lambda: snntorch.RSynaptic(0.9, 0.8, linear_features=4, spike_grad=lambda u: u),
            "this RSynaptic has the spike_grad .* surrogate=",
        ),
        (masked, "this RLeaky has the recurrent layer Linear.* without hooks"),
        (lambda: replaced(nn.Identity()), r"this RSynaptic has the recurrent layer Identity\(\)"),
        (lambda: replaced(nn.Linear(4, 3)), "recurrent layer Linear.*a square nn.Linear"),
    ],
)
def test_what_a_fused_layer_has_not_is_named_with_the_layer(make, message):
    with pytest.raises(ValueError, match=message):
        ns.convert(make())
    with pytest.raises(ValueError, match=f"layer 1: .*{message}"):
        ns.convert(nn.Sequential(nn.Linear(4, 4), make()))


def test_neurons_that_stand_twice_are_refused(kind):
    theirs = KINDS[kind](4, init_hidden=True)
    with pytest.raises(ValueError, match=f"layers 0 and 2 are one and the same {kind}"):
        ns.convert(nn.Sequential(theirs, nn.Linear(4, 4), theirs))
