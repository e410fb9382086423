"""`LIF.from_snntorch`, `ns.convert` and the example: the same spikes as snnTorch's own loop."""

import difflib
import importlib.util
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from snntorch import surrogate as surrogates
from torch import nn

import neurospike as ns

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
        ({"inhibition": True}, "has inhibition=True, which ns.LIF does not have"),
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


def test_other_neurons_are_refused():
    for neuron in (snntorch.Synaptic(0.9, 0.8), snntorch.RLeaky(0.9, all_to_all=False), nn.ReLU()):
        with pytest.raises(TypeError, match=f"Leaky, got {type(neuron).__name__}"):
            ns.LIF.from_snntorch(neuron)


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

    with pytest.raises(TypeError, match=r"neurons, a snntorch.Leaky inside a Net, whose forward"):
        ns.convert(Net())
    with pytest.raises(TypeError, match=r"cannot convert 1.neurons, a snntorch.Leaky inside a Net"):
        ns.convert(nn.Sequential(nn.ReLU(), Net()))
    with pytest.raises(TypeError, match=r"cannot convert 0.0, a snntorch.Synaptic; "):
        ns.convert(nn.Sequential(nn.Sequential(snntorch.Synaptic(0.9, 0.8))))
    with pytest.raises(TypeError, match="got Linear"):
        ns.convert(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="layer 1: this Leaky has graded_spikes_factor"):
        ns.convert(nn.Sequential(nn.ReLU(), snntorch.Leaky(0.9, graded_spikes_factor=2.0)))


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_differs_in_an_import_and_two_lines():
    files = [EXAMPLES / f"snntorch_{name}.py" for name in ("before", "after")]
    before, after = (file.read_text().split('"""\n', 1)[1].splitlines() for file in files)
    added = [line[2:] for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert added == [
        "import neurospike as ns",
        "    return ns.convert(network)",
        "    (spikes, membranes), _ = network(images, num_steps=NUM_STEPS)",
    ]


def test_the_example_learns_the_same_digits_and_prints_its_gain(capsys):
    results = {}
    for name in ("snntorch_before", "snntorch_after"):
        results[name] = example(name).main(epochs=1)
    (losses, accuracy, slow), (fused_losses, fused_accuracy, fast) = results.values()
    # The same spikes; the products over 25 steps at once are summed in another order.
    assert fused_losses[0] == pytest.approx(losses[0], rel=1e-6)
    assert fused_losses == pytest.approx(losses, rel=2e-2)
    assert abs(accuracy - fused_accuracy) <= 0.03
    assert min(accuracy, fused_accuracy) > 0.5
    with capsys.disabled():
        sys.stdout.write(f"\ntutorial 5: {slow:.0f} ms a step, fused {fast:.0f} ms\n")
