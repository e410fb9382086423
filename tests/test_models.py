"""The networks: what goes through them step by step, their options, and that depth trains."""

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import neurospike as ns
from benchmarks.stubbed import stubbed
from neurospike.coding import decoding
from neurospike.config import load_config
from neurospike.data import load
from neurospike.errors import ConfigError
from neurospike.models import MODELS
from neurospike.models.conv import POOLINGS
from neurospike.models.parts import SpikeDropout, initialize, normalization
from neurospike.training import draw_network

ROOT = Path(__file__).parents[1]
SMALL = {
    "mlp": {"input_size": 64, "hidden_size": [12, 9]},
    "conv": {"input_size": 64, "channels": [3, 4], "kernel_size": 3, "hidden_size": [12, 9]},
    "resnet": {"input_size": 64, "channels": [3, 4], "blocks": [2, 1]},
}
KINDS = [
    ("mlp", {}),
    ("conv", {}),
    ("conv", {"pooling": "average"}),
    ("conv", {"pooling": "max_current"}),
    *(("resnet", {"shortcut": shortcut}) for shortcut in ("add", "and", "iand", "membrane")),
]


def make(kind, **options):
    torch.manual_seed(0)
    # A low threshold, so that small untrained networks fire in every layer.
    options = {"num_steps": 5, "output_size": 4, "threshold": 0.1, **SMALL[kind], **options}
    return MODELS[kind](**options)


def pictures(count=6):
    return torch.rand(count, 1, 8, 8)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("readout", ["membrane", "spikes"])
@pytest.mark.parametrize("encoding", ["constant", "latency"])
def test_every_network_answers_and_every_weight_learns(kind, options, readout, encoding):
    model = make(kind, readout=readout, encoding=encoding, **options)
    scores, activity, output = model(pictures(), return_activity=True, return_output=True)
    assert scores.shape == (6, 4)
    assert torch.equal(scores, output.mean(0) if readout == "membrane" else output.sum(0))
    assert ("output" in activity) == (readout == "spikes")
    for name, spikes in activity.items():
        assert spikes.shape[:2] == (5, 6), name
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}, name
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_currents_can_be_pooled_before_the_neurons():
    model = make("conv", pooling="max_current", normalization="none").eval()
    images = pictures()
    seen = model.record(images).spikes
    assert {name: spikes.shape[3:] for name, spikes in seen.items() if name.startswith("conv")} == {
        "conv1": (4, 4),
        "conv2": (2, 2),
    }
    flow = images.expand(5, *images.shape)
    for k, stage in enumerate(model.stages):
        pooled = torch.stack([nn.functional.max_pool2d(stage[0](step), 2) for step in flow])
        flow, _ = model.neurons[k](pooled)
        assert flow.any()
        assert torch.equal(flow, seen[f"conv{k + 1}"])


def test_what_halves_the_pictures_has_no_weights():
    names = [set(make("conv", pooling=pooling).state_dict()) for pooling in POOLINGS]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_constant_input_is_the_same_as_its_copies_at_every_step(kind, options):
    model = make(kind, **options).eval()
    images = pictures()
    held = model.record(images)
    # A rate code of full brightness fires at every step, and so does the constant one.
    model.encoding = "rate"
    white = torch.ones_like(images)
    copied = model.record(white)
    model.encoding = "constant"
    once = model.record(white)
    assert torch.equal(copied.current, once.current)
    assert any(spikes.any() for spikes in once.spikes.values())
    for name, spikes in once.spikes.items():
        assert torch.equal(spikes, copied.spikes[name]), name
    assert torch.allclose(once.scores, copied.scores, atol=1e-6)
    assert not torch.equal(held.scores, once.scores)


def test_convolutional_network_is_what_a_loop_over_time_says():
    model = make("conv", encoding="rate", beta=0.7, reset_delay=False).eval()
    recorded = model.record(pictures())
    assert all(spikes.any() for spikes in recorded.spikes.values())
    mems = [None] * len(model.neurons)
    mem, outputs = None, []
    for step in recorded.current:
        flow = step
        for k, neuron in enumerate(model.neurons):
            current = model.stages[k](flow) if k < 2 else model.hidden[k - 2](flow.flatten(1))
            spikes, mems[k] = neuron(current[None], mems[k])
            flow = nn.functional.max_pool2d(spikes[0], 2) if k < 2 else spikes[0]
        trace, mem = model.output(model.last(flow)[None], mem)
        outputs.append(trace[0])
    assert torch.allclose(recorded.output, torch.stack(outputs), atol=1e-5)
    assert torch.allclose(recorded.scores, decoding.membrane(recorded.output))


@pytest.mark.parametrize("shortcut", ["add", "and", "iand", "membrane"])
def test_residual_network_is_what_a_loop_over_blocks_says(shortcut):
    model = make("resnet", encoding="rate", shortcut=shortcut).eval()
    recorded = model.record(pictures())
    assert sum(bool(spikes.any()) for spikes in recorded.spikes.values()) >= 3

    def convolved(layer, flow):
        return torch.stack([layer(step) for step in flow])

    flow = convolved(model.stem, recorded.current)
    if shortcut != "membrane":
        flow = model.stem_neurons(flow)[0]
    for block in model.blocks:
        if shortcut == "membrane":
            inner = convolved(block.first, block.neurons[0](flow)[0])
            inner = convolved(block.second, block.neurons[1](inner)[0])
            flow = inner + (flow if block.around is None else convolved(block.around, flow))
            continue
        inner = block.neurons[0](convolved(block.first, flow))[0]
        fired = block.neurons[1](convolved(block.second, inner))[0]
        around = flow
        if block.around is not None:
            around = block.around_neurons(convolved(block.around, flow))[0]
        joined = {
            "add": fired + around,
            "and": torch.where((fired > 0) & (around > 0), fired * around, 0.0),
            "iand": torch.where(fired > 0, 0.0, around),
        }
        flow = joined[shortcut]
    if shortcut == "membrane":
        flow = model.stem_neurons(flow)[0]
    trace = model.output(model.last(flow.mean((3, 4))))[0]
    assert torch.allclose(recorded.output, trace, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_networks_can_be_copied_pickled_and_restored(kind):
    model = make(kind, learn_beta=True, learn_threshold=True).eval()
    images = pictures()
    again = make(kind, learn_beta=True, learn_threshold=True)
    again.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again.eval()):
        assert torch.equal(copied(images), model(images))
    names = [name for name, _ in model.named_parameters()]
    assert any(name.endswith("beta") for name in names)
    assert any(name.endswith("threshold") for name in names)


# Parts


def test_dropout_silences_the_same_neurons_at_every_step_and_keeps_the_mean():
    dropout = SpikeDropout(0.25)
    dropped = dropout(torch.ones(7, 50, 80))
    assert bool((dropped == dropped[0]).all())
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert len({tuple(sample.tolist()) for sample in dropped[0]}) == 50
    ones = torch.ones(2, 3, 4)
    assert dropout.eval()(ones) is ones


def test_dropout_acts_in_training_mode_only():
    for kind in MODELS:
        model, images = make(kind, dropout=0.5), pictures()
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_normalisations_give_the_variance_they_promise(dimensions):
    current = 3 + 5 * torch.randn(400, 6, *[4] * (2 * (dimensions - 1)))
    channels = current.transpose(0, 1).flatten(1)
    assert normalization("none", 6, dimensions, 2.0)(current) is current
    for kind, deviation in (("batch", 1.0), ("threshold_batch", 2.0)):
        normal = normalization(kind, 6, dimensions, 2.0)(current).transpose(0, 1).flatten(1)
        assert normal.shape == channels.shape
        assert normal.mean(1).tolist() == pytest.approx([0] * 6, abs=1e-4)
        assert normal.std(1).tolist() == pytest.approx([deviation] * 6, rel=0.01)
    alone = normalization("layer", 6, dimensions, 2.0)
    assert torch.allclose(alone(current)[:1], alone(current[:1]), atol=1e-6)
    assert alone(current).flatten(1).var(1, correction=0).tolist() == pytest.approx(
        [1] * 400, rel=0.01
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("size", [100, 1600])
@pytest.mark.parametrize("constant", [True, False])
def test_fluctuation_weights_let_membranes_swing_by_a_threshold(beta, size, constant):
    layer = nn.Linear(size, 300)
    initialize(layer, "fluctuation", beta, threshold=1.5, constant=constant)
    spikes = (torch.rand(200, 8, size) < 0.1).float()
    if constant:
        spikes = spikes[:1].expand(200, 8, size)
    trace, _ = ns.LI(beta)(layer(spikes).detach())
    assert float(trace[100:].std()) == pytest.approx(1.5, rel=0.15)


def test_first_weights_of_each_kind():
    torch.manual_seed(0)
    wanted = nn.Linear(400, 300)
    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    initialize(layer, "torch", 0.9, 1.0, False)
    assert torch.equal(layer.weight, wanted.weight)
    initialize(layer, "kaiming", 0.9, 1.0, False)
    assert float(layer.weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_takes_every_option_from_yaml(tmp_path, kind):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"model: {{kind: {kind}, input_size: 64, channels: [3, 4], blocks: [1, 2],\n"
        "  hidden_size: 8, kernel_size: 3, output_size: 4, num_steps: 3, beta: 0.7,\n"
        "  threshold: 0.5, surrogate: triangular, reset: zero, reset_delay: false,\n"
        "  detach_reset: true, grad_window: 0.8, learn_beta: true, learn_threshold: true,\n"
        "  readout: spikes,\n"
        "  normalization: threshold_batch, dropout: 0.1, init: fluctuation}\n"
        "encoding: {kind: phase}\npreprocessing: [deskew]\n",
        encoding="utf-8",
    )
    config = load_config(path)
    model = MODELS[config.model.kind](**config.network_arguments())
    assert model(pictures()).shape == (6, 4)
    neurons = [module for module in model.modules() if isinstance(module, ns.LIF)]
    assert len(neurons) >= 2
    for neuron in neurons:
        assert neuron.surrogate.name == "triangular"
        assert (neuron.reset, neuron.reset_delay, neuron.detach_reset) == ("zero", False, True)
        assert neuron.grad_window == 0.8
        assert isinstance(neuron.beta, nn.Parameter)
        assert neuron.beta.item() == pytest.approx(0.7)
        assert isinstance(neuron.threshold, nn.Parameter)
        assert neuron.threshold.item() == 0.5
    scales = [
        module.weight
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    ]
    assert scales
    assert all(bool((scale == 0.5).all()) for scale in scales)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("encoding", ["constant", "latency"])
def test_a_run_keeps_pictures_of_every_network(tmp_path, kind, encoding):
    batches = [(pictures(), torch.arange(6) % 4), (pictures(2), torch.tensor([1, 3]))]
    model = make(kind, encoding=encoding, preprocessing=["deskew"])
    paths = draw_network(tmp_path, model, batches)
    names = ["confusion_matrix", "firing_rates", "input_encoding", "weights"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert draw_network(tmp_path, model, []) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_configurations_of_the_repository_build_their_networks(path):
    config = load_config(path)
    model = MODELS[config.model.kind](**config.network_arguments()).eval()
    given = torch.rand(2, 1, 28, 28)
    if config.encoding.kind == "none":  # as many steps as it happens to have
        given = torch.rand(5, 2, config.model.input_size)
    assert model(given).shape == (2, config.model.output_size)


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {"encoding": "morse"}, "unknown encoding 'morse'; choose one of constant"),
        ("mlp", {"readout": "mean"}, "unknown readout 'mean'"),
        ("mlp", {"normalization": "group"}, "unknown normalization 'group'"),
        ("mlp", {"init": "zeros"}, "unknown init 'zeros'"),
        ("mlp", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("mlp", {"hidden_size": []}, "must be a hidden layer"),
        ("mlp", {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ("conv", {"pooling": "min"}, "unknown pooling 'min'"),
        ("conv", {"channels": []}, "at least one stage"),
        ("conv", {"channels": [3] * 4}, "got a side of 8, 4 stages"),
        ("conv", {"kernel_size": 4}, "kernel_size 4; use fewer stages or an odd kernel"),
        ("conv", {"input_size": 60}, "pixels of a square picture, such as 784, got 60"),
        ("resnet", {"shortcut": "or"}, "unknown shortcut 'or'"),
        ("resnet", {"blocks": [1]}, "one number of at least 1 for each stage"),
        ("resnet", {"blocks": [0, 1]}, "one number of at least 1 for each stage"),
    ],
)
def test_impossible_networks_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


def test_one_number_is_a_list_of_one():
    conv = ns.ConvSNN(64, channels=np.int64(3), kernel_size=3, hidden_size=5, output_size=4)
    assert (len(conv.stages), len(conv.hidden)) == (1, 1)
    assert len(ns.ResidualSNN(64, 3, 2).blocks) == 2
    assert len(ns.SNNModel(64, np.array([5, 6])).neurons) == 2
    for options in (
        {"channels": "8"},
        {"channels": 8.0},
        {"channels": [8, 1.5]},
        {"channels": True},
    ):
        with pytest.raises(
            TypeError, match="channels must be a whole number or a list of them, go"
        ):
            ns.ConvSNN(64, **options)
    with pytest.raises(TypeError, match=r"num_steps must be a whole number, got 2\.5"):
        ns.SNNModel(64, 5, num_steps=2.5)
    assert make("mlp", num_steps=np.int64(3)).record(pictures()).output.shape == (3, 6, 4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("encoding", ["constant", "rate", "latency", "delta", "phase", "burst"])
def test_pictures_that_are_none_are_refused(kind, encoding):
    model = make(kind, encoding=encoding).eval()
    images = pictures() * 255
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    with pytest.raises(
        ValueError, match=r"got values from 0 to 255: .*divide by 255, as in images"
    ):
        model(images)
    with pytest.raises(
        TypeError, match=r"floating-point tensor .* got torch.uint8: .*divide by 255"
    ):
        model(torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
    for wrong in (float("nan"), float("inf")):
        images = pictures()
        images[2, 0, 3, 3] = wrong
        with pytest.raises(ValueError, match=r"NaN or infinity|to inf|to nan"):
            model(images)


def test_standardised_pictures_have_a_constant_code():
    images = (pictures() - 0.13) / 0.31
    assert bool(make("mlp")(images).isfinite().all())
    assert bool(make("mlp", preprocessing=["normalize"])(pictures()).isfinite().all())


@pytest.mark.parametrize("readout", ["membrane", "max_membrane", "spikes", "first_spike"])
def test_scores_under_autocast_are_float32(readout):
    model = make("mlp", readout=readout, num_steps=300).eval()
    with torch.autocast("cpu", torch.bfloat16):
        recorded = model.record(pictures())
    assert recorded.scores.dtype == recorded.votes.dtype == torch.float32
    assert torch.allclose(recorded.votes[-1], recorded.scores, rtol=1e-5)
    if readout == "spikes":
        assert recorded.output.dtype == torch.bfloat16
        assert torch.equal(recorded.scores, recorded.output.float().sum(0))


@pytest.mark.parametrize("kind", MODELS)
def test_pictures_need_no_channel_axis(kind):
    model, images = make(kind).eval(), pictures()
    assert torch.equal(model(images[:, 0]), model(images))


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_pictures_of_another_shape_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"must be \[B, 1, 8, 8\], as input_size and in_channels say, got"
    ):
        make(kind)(torch.rand(6, 1, 8, 9))


def test_a_network_without_its_layers_says_what_it_lacks():
    bare = ns.models.SpikingNetwork(1, (), "constant", None, "membrane", "torch", {})
    with pytest.raises(NotImplementedError, match="see neurospike/models/mlp"):
        bare(pictures())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: resnet, blocks: [1]", "model: channels [16, 32] and blocks [1] must have"),
        ("kind: conv, kernel_size: 4", "model: kernel_size must be odd, got 4"),
        ("kind: conv, input_size: 60", "model: kind conv needs square pictures, got an input_size"),
        ("kind: cnn", "model.kind: got 'cnn', allowed: mlp, conv, resnet"),
        ("dropout: 1", "model.dropout: got 1, allowed: a number >= 0 and < 1"),
        ("channels: [a]", "model.channels: got ['a'], allowed: a list of whole numbers >= 1"),
    ],
)
def test_impossible_configurations_are_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{{text}}}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)


def test_one_stage_may_be_a_number_on_the_command_line():
    config = load_config(ROOT / "config.yaml", {"model.channels": "8", "model.blocks": "20"})
    assert (config.model.channels, config.model.blocks) == ([8], [20])


# Depth


@pytest.mark.parametrize("shortcut", ["add", "membrane"])
def test_twenty_blocks_train_without_spikes_or_gradients_vanishing(shortcut):
    torch.manual_seed(0)
    digits = load("digits", "unused").train
    images = digits.images[:512].float().div(255).unsqueeze(1)
    images = nn.functional.avg_pool2d(images, 4)
    model = ns.ResidualSNN(
        49, [8], [20], shortcut, num_steps=2, beta=0.5, reset_delay=False, detach_reset=True
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for step in range(48):
        part = slice(step % 8 * 64, step % 8 * 64 + 64)
        scores, activity = model(images[part], return_activity=True)
        loss = nn.functional.cross_entropy(scores, digits.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    rates = [activity[f"block{k}"].mean().item() for k in range(1, 21)]
    norms = [
        float(torch.stack([p.grad.norm() for p in block.parameters() if p.grad.ndim == 4]).norm())
        for block in model.blocks
    ]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert min(rates) > 0.01
    assert max(rates) < 0.9
    assert min(norms) > 0.01 * max(norms)


@pytest.mark.parametrize("encoding", ["rate", "latency"])
def test_spikes_enter_a_fully_connected_network_as_bytes(encoding):
    """And the answer is that to floats."""
    model = make("mlp", encoding=encoding).eval()
    torch.manual_seed(4)
    recorded = model.record(pictures())
    assert recorded.current.dtype == torch.uint8
    model.encoding_options = {"dtype": torch.float32}
    torch.manual_seed(4)
    floats = model.record(pictures())
    assert torch.equal(floats.current, recorded.current.float())
    assert torch.equal(floats.scores, recorded.scores)


class _Conversions(TorchDispatchMode):
    """Notes the passes that make another number format of a sequence of so many steps."""

    def __init__(self, steps, batch):
        super().__init__()
        self.lengths, self.found = (steps, steps * batch), []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        is_conversion = operator is torch.ops.aten._to_copy.default and out.dim() > 1
        if is_conversion and out.shape[0] in self.lengths:
            self.found.append((*out.shape, args[0].dtype, out.dtype))
        return out


@pytest.mark.parametrize("encoding", ["constant", "rate", "latency"])
@pytest.mark.parametrize("kind", SMALL)
def test_on_a_gpu_no_sequence_changes_its_format_under_autocast(kind, encoding):
    """Spikes leave in the format that the next layer multiplies in, and so do gradients."""
    steps, batch = 7, 3
    net = make(kind, encoding=encoding, num_steps=steps)
    with stubbed(), ns.use_backend("triton"), _Conversions(steps, batch) as conversions:
        with torch.autocast("cpu", torch.bfloat16):
            scores = net(torch.rand(batch, 1, 8, 8))
        scores.float().sum().backward()
    encoded = 1 if encoding == "rate" else 0  # written as asked for, once it was drawn
    assert len(conversions.found) == encoded, conversions.found


WRONG = [
    ("output_size", 2.5, TypeError),
    ("output_size", "10", TypeError),
    ("input_size", "784", TypeError),
    ("input_size", 784.5, TypeError),
    ("in_channels", 1.0, TypeError),
    ("in_channels", None, TypeError),
    ("kernel_size", 2.5, TypeError),
    ("kernel_size", 4, ValueError),
    ("num_steps", "4", TypeError),
    ("num_steps", 2.5, TypeError),
    ("channels", "x", TypeError),
    ("dropout", "x", TypeError),
    ("dropout", 1.0, ValueError),
    ("encoding_options", 3, TypeError),
    ("encoding_options", ["gain"], TypeError),
    ("preprocessing", 3, ValueError),
    ("preprocessing", "blur", ValueError),
    ("bogus", 3, TypeError),
]


@pytest.mark.parametrize(
    ("make", "name", "value", "error"),
    [
        (make, *wrong)
        for make in (ns.SNNModel, ns.ConvSNN, ns.ResidualSNN, ns.ConvEncoder)
        for wrong in WRONG
        if wrong[0] in (*inspect.signature(make).parameters, "bogus")
    ],
)
def test_every_argument_that_is_none_is_named(make, name, value, error):
    with pytest.raises(error, match=rf"\b{name}\b") as caught:
        make(**{name: value})
    assert name == "bogus" or str(value) in str(caught.value)


def test_a_misspelt_argument_of_a_network_is_answered_with_its_own():
    with pytest.raises(TypeError, match=r"SNNModel has no argument hidden=; did you mean hidden_s"):
        ns.SNNModel(784, hidden=100)
    with pytest.raises(
        TypeError, match="ConvSNN has no argument spike_grad=; give surrogate= inst"
    ):
        ns.ConvSNN(spike_grad="atan")
    with pytest.raises(
        TypeError, match=r"it takes channels, num_steps, kernel_size, .* learn_beta"
    ):
        ns.ConvEncoder(bogus=1)
    assert ns.SNNModel(backend="reference").neurons[0].backend == "reference"


@pytest.mark.parametrize(
    ("encoding", "has"),
    [("rate", "gain, offset, generator, dtype"), ("rows", "none"), ("none", "none")],
)
def test_an_option_that_an_encoding_lacks_is_refused_when_the_network_is_made(encoding, has):
    expected = f"encoding_options: {encoding} has no option 'tau'; it has {has}"
    with pytest.raises(TypeError, match=expected):
        ns.SNNModel(64, 8, 10, encoding=encoding, encoding_options={"tau": 2.0})
    if encoding == "rate":
        model = ns.SNNModel(64, 8, 10, encoding="latency", encoding_options={"tau": 2.0})
        with pytest.raises(TypeError, match=expected):
            model.presented("rate", 5, {"tau": 2.0})
