"""`ns.convert` of Norse's networks: its spikes, membranes and gradients."""

import copy

import pytest
import torch
from torch import nn

import neurospike as ns

pytest.importorskip("norse")
import norse.torch as norse
from norse.torch.functional.reset import reset_subtract

LIF = norse.LIFParameters(tau_mem_inv=torch.tensor(137.0), v_th=torch.tensor(0.4), alpha=2.0)
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(137.0), v_th=torch.tensor(0.4), alpha=2.0)
AWAY = {"v_leak": torch.tensor(-0.1), "v_reset": torch.tensor(-0.2)}
CASES = {
    "LIFCell": lambda: norse.LIFCell(LIF),
    "LIF": lambda: norse.LIF(LIF, dt=0.002),
    "LIF away": lambda: norse.LIF(LIF._replace(**AWAY)),
    "LIFBoxCell": lambda: norse.LIFBoxCell(BOX),
    "LIFBoxCell away": lambda: norse.LIFBoxCell(BOX._replace(**AWAY), dt=0.003),
    "LIFBoxCell subtract": lambda: norse.LIFBoxCell(BOX._replace(reset_method=reset_subtract)),
    "IAFCell": lambda: norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.1))),
    "IAF": lambda: norse.IAF(norse.IAFParameters(v_th=torch.tensor(2.0))),
    "LICell": lambda: norse.LICell(norse.LIParameters(v_leak=torch.tensor(-0.1))),
    "LI": lambda: norse.LI(dt=0.002),
    "LIBoxCell": lambda: norse.LIBoxCell(norse.LIBoxParameters(v_leak=torch.tensor(0.2))),
}


@pytest.fixture(autouse=True)
def without_compiling():
    """Run on the reference, which every backend is compared with elsewhere, as here in one test."""
    with ns.use_backend("reference"):
        yield


def stepped(theirs, x, sequences):
    """What neurons or a network of Norse give for all steps, and their last state."""
    if sequences:
        return theirs(x)
    state, out = None, []
    for one in x:
        y, state = theirs(one, state)
        out.append(y)
    return torch.stack(out), state


def check(theirs, x, sequences):
    x = x.clone().requires_grad_()
    wanted, last = stepped(theirs, x, sequences)
    layer = ns.convert(theirs)
    found, state = layer(x)
    assert wanted.abs().sum() > 0
    assert torch.equal(found, wanted)
    assert len(state) == len(last)
    for one, other in zip(state, last):
        assert torch.equal(one, other)
    weight = torch.linspace(-1, 1, x.numel()).view_as(x)
    got, want = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, wanted))
    assert (got - want).norm() <= 1e-5 * want.norm()
    return layer


@pytest.mark.parametrize("name", CASES)
def test_neurons_are_theirs_bit_for_bit(name):
    layer = check(CASES[name](), torch.randn(25, 3, 20) * 2 + 0.5, "Cell" not in name)
    assert layer.states in (("v",), ("v", "i"))
    current = torch.randn(10, 3, 20)
    whole, (v, *_) = layer(current)
    _, state = layer(current[:4])
    assert torch.equal(whole[4:], layer(current[4:], state)[0])
    if name.startswith("LI") and "F" not in name:
        assert torch.equal(v, whole[-1])


@pytest.mark.parametrize("name", CASES)
def test_float64_has_the_digits_of_theirs(name):
    theirs = CASES[name]().double()
    current = torch.randn(25, 3, 20, dtype=torch.float64) * 2 + 0.5
    layer = ns.convert(theirs).double()
    (found, state), (wanted, last) = layer(current), stepped(theirs, current, "Cell" not in name)
    assert all(torch.equal(*pair) for pair in zip((found, *state), (wanted, *last)))
    rate = nn.Parameter(torch.tensor(137.0))
    learning = ns.convert(norse.LIF(LIF._replace(tau_mem_inv=rate))).double()
    assert (learning.tau_mem_inv.dtype, learning.v_th.dtype) == (torch.float64, torch.float32)


@pytest.mark.parametrize("name", ["LIF away", "LI"])
def test_the_fused_loop_gives_the_same_bits(name):
    theirs = CASES[name]()
    current = torch.randn(25, 3, 20) * 2 + 0.5
    with torch.no_grad(), ns.use_backend("numba"):
        found, state = ns.convert(theirs)(current)
    wanted, last = theirs(current)
    assert all(torch.equal(*pair) for pair in zip((found, *state), (wanted, *last)))


def test_a_lifted_cell():
    theirs = norse.Lift(norse.LIFCell(LIF))
    check(theirs, torch.randn(25, 3, 20) * 2 + 0.5, True)


@pytest.mark.parametrize("method", ["super", "triangle", "tanh", "circ", "heavi_erfc"])
def test_gradients_are_those_that_norse_computes(method):
    check(norse.LIFBoxCell(BOX._replace(method=method)), torch.randn(20, 3, 20) * 2, False)


def test_without_a_surrogate_no_gradient_passes_the_spikes():
    layer = ns.convert(norse.LIFBoxCell(BOX._replace(method="heaviside")))
    current = torch.randn(5, 2, 4, requires_grad=True)
    layer(current)[0].sum().backward()
    assert torch.equal(current.grad, torch.zeros_like(current))


def test_time_constants_that_learn_are_shared():
    rate = nn.Parameter(torch.tensor(120.0))
    theirs = norse.LIF(LIF._replace(tau_mem_inv=rate))
    layer = ns.convert(theirs)
    assert layer.tau_mem_inv is rate
    current = torch.randn(20, 3, 20) * 2 + 0.5
    weight = torch.linspace(-1, 1, current.numel()).view_as(current)
    got, want = (
        torch.autograd.grad((one(current)[0] * weight).sum(), rate)[0] for one in (layer, theirs)
    )
    assert (got - want).abs() <= 1e-5 * want.abs()


def exact(net):
    """Give layers small integers for weights, whose products are the same in any order."""
    for one in net.modules():
        if isinstance(one, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                one.weight.copy_((one.weight * 20).round() / 8)
                one.bias.copy_((one.bias * 20).round() / 8)
    return net


def test_networks_of_sequences():
    torch.manual_seed(1)
    net = exact(
        norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 4, 3)), norse.LIF(LIF), norse.Lift(nn.MaxPool2d(2)),
            nn.Flatten(2), nn.Linear(36, 10), norse.SequentialState(nn.ReLU(), norse.LIF(LIF)),
            nn.Linear(10, 5), norse.LI(),
        )
    )  # fmt: skip
    frames = torch.randint(0, 4, (12, 3, 1, 8, 8)).float()
    wanted, _ = net(frames)
    converted = ns.convert(net)
    found, states = converted(frames)
    assert wanted.abs().sum() > 0
    assert torch.equal(found, wanted)
    assert converted[0] is net[0].lifted_module
    _, states = converted(frames[:5])
    assert torch.equal(converted(frames[5:], states)[0], wanted[5:])


def test_networks_of_cells():
    torch.manual_seed(1)
    net = exact(
        norse.SequentialState(
            nn.Flatten(), nn.Linear(64, 20), norse.LIFBoxCell(BOX), nn.Linear(20, 10),
            norse.LIFCell(LIF), nn.Linear(10, 5), norse.LICell(),
        )
    )  # fmt: skip
    frames = torch.randint(0, 4, (12, 3, 1, 8, 8)).float()
    wanted, _ = stepped(net, frames, False)
    found, states = ns.convert(net)(frames)
    assert wanted.abs().sum() > 0
    assert torch.equal(found, wanted)
    assert [len(state) for state in states] == [1, 2, 2]
    held, _ = ns.convert(net)(frames[0], num_steps=12)
    assert torch.equal(held, ns.convert(net)(frames[:1].expand(12, -1, -1, -1, -1))[0])


class Leaking(norse.LIFCell):
    def forward(self, x, state=None):
        return x, state


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.row = norse.SequentialState(nn.Linear(4, 4), norse.LIF())

    def forward(self, x):
        return self.row(x)[0]


class Averaging(nn.Module):
    """A layer that hands on its state, which a SequentialState sees by the name."""

    def forward(self, x, state=None):
        state = x if state is None else 0.5 * (state + x)
        return state, state


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRU(4, 4), nn.RNN(4, 4), Averaging()])
def test_layers_whose_state_norse_hands_on_are_refused(layer):
    name = type(layer).__name__
    message = f"{name}.* its (output|state), which no layer here hands on.*carries_state = True"
    rows = {
        "1": norse.SequentialState(norse.LIF(), layer, norse.LIF()),
        "0": norse.SequentialState(layer, norse.LIF()),
        "1.lifted_module": norse.SequentialState(norse.LIF(), norse.Lift(layer)),
    }
    for place, net in rows.items():
        with pytest.raises(TypeError, match=f"cannot convert {place}, {message}"):
            ns.convert(net)


def test_a_layer_of_ours_keeps_its_state_among_theirs():
    ours = ns.Synaptic(0.8, 0.9, threshold=0.3)
    net = norse.SequentialState(norse.LIF(LIF), ours, norse.LI())
    current = torch.randn(20, 3, 8) * 2 + 0.5
    wanted, _ = net(current)
    converted = ns.convert(net)
    found, states = converted(current)
    assert converted[1] is ours and len(states[1]) == 2
    assert torch.equal(found, wanted) and found.abs().sum() > 0


def test_a_layer_that_is_given_sequences_returns_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    net = ns.convert(norse.SequentialState(norse.LIF(), Pair()))
    with pytest.raises(TypeError, match=r"layer 1 .*Pair returned a tuple, wanted one tensor"):
        net(torch.rand(5, 2, 4))


def changed(**attributes):
    theirs = norse.LIF()
    vars(theirs).update(attributes)
    return theirs


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (norse.LIFRecurrent(2, 4), TypeError, "module, a LIFRecurrent of Norse: .*ns.Recurrent"),
        (norse.SequentialState(norse.LIFAdEx()), TypeError, "convert 0, a LIFAdEx.*for ns.Spiking"),
        (
            Leaking(),
            TypeError,
            "Leaking, a LIFCell of Norse that overrides forward: .* use LIFCell itself",
        ),
        (Net(), TypeError, r"row.1, a LIF of Norse inside a Net.*: net.row = ns.convert\(net.row"),
        (norse.SequentialState(norse.LIF(), return_hidden=True), TypeError, "leave return_hidden"),
        (
            norse.SequentialState(norse.LIF(), norse.LIFCell()),
            ValueError,
            "layer 1: this LIFCell takes single steps, in a place that is given whole sequences",
        ),
        (norse.LIF(record_states=True), ValueError, "record_states=True; leave it out, and ask"),
        (changed(activation=max), ValueError, "this LIF steps with max, not with lif_feed_forward"),
        (
            norse.LIF(LIF._replace(method="adjoint")),
            ValueError,
            "has method='adjoint', whose gradient .* or give a surrogate to ns.convert",
        ),
        (
            norse.LIFBoxCell(BOX._replace(reset_method=lambda z, v, r, th: v)),
            ValueError,
            "the reset_method <lambda>, .*reset_value or reset_subtract",
        ),
        (
            norse.LIFCell(LIF._replace(v_leak=nn.Parameter(torch.tensor(0.1)))),
            ValueError,
            "begins at a membrane that is learned",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(module, error, message):
    with pytest.raises(error, match=message):
        ns.convert(module)


def test_a_hook_on_a_lifted_layer_is_kept_and_on_the_container_refused():
    net = norse.SequentialState(norse.Lift(nn.Linear(4, 4)), norse.LIF())
    net[0].lifted_module.register_forward_hook(print)
    assert ns.convert(net)[0] is net[0].lifted_module
    net[0].register_forward_hook(print)
    with pytest.raises(ValueError, match=r"0 is a Lift with the hook print, .*remove it before"):
        ns.convert(net)


def test_a_surrogate_in_place_of_theirs():
    theirs = norse.LIF(LIF._replace(method="adjoint"))
    layer = ns.convert(theirs, surrogate="boxcar")
    assert layer.surrogate == ns.surrogate.boxcar()
    current = torch.randn(20, 3, 20) * 2 + 0.5
    assert torch.equal(layer(current)[0], norse.LIF(LIF)(current)[0])


def test_layers_are_copied_and_shown():
    layer = ns.convert(norse.LIF(LIF))
    current = torch.randn(10, 2, 5)
    assert torch.equal(copy.deepcopy(layer)(current)[0], layer(current)[0])
    assert repr(layer).startswith("Euler(lif, tau_mem_inv=137, tau_syn_inv=200, v_leak=0, v_th=0.4")
