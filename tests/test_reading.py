"""Networks that read a picture part by part, with adaptive and recurrent neurons, and their use."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

import neurospike as ns
from neurospike import evaluate, export, train
from neurospike.config import check_config, load_config
from neurospike.data import Batches, load
from neurospike.errors import ConfigError
from neurospike.live.answering import Answerer, Choice
from neurospike.models.neurons import NEURONS, InRanges, hidden_neurons
from neurospike.models.parts import over_steps
from neurospike.predict import predict
from neurospike.training import draw_network, load_checkpoint
from neurospike.training.board import _look
from neurospike.training.energy import count_operations
from neurospike.training.loading import Trained, build_model, build_on_meta, load_trained
from neurospike.training.scale import make_fabric
from neurospike.training.setup import make_trainer

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("smnist_*.yaml"))
STEPS = {"rows": 8, "pixels": 64}
# Without a compiled loop: what is tested here is the network, and compiling takes its time.
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
def plain():
    with ns.use_backend("reference"):
        yield


def make(**options):
    torch.manual_seed(0)
    options = {"tau": (1, 4), "tau_adaptation": (5, 20), "threshold": 0.05, **options}
    options = {"hidden_size": [12, 9], "output_size": 4, **options}
    return ns.SNNModel(64, **options)


def pictures(count=5):
    return torch.rand(count, 1, 8, 8)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("encoding", ["rows", "pixels", "constant"])
def test_networks_answer_and_every_weight_learns(neuron, recurrent, encoding):
    model = make(encoding=encoding, neuron=neuron, recurrent=recurrent)
    scores, activity = model(pictures(), return_activity=True)
    assert scores.shape == (5, 4)
    steps = STEPS.get(encoding, 25)
    assert model.num_steps == steps
    for size, spikes in zip((12, 9), activity.values(), strict=True):
        assert spikes.shape == (steps, 5, size)
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        if "weight" in name:
            assert bool(parameter.grad.any()), name
    torch.manual_seed(1)
    again = ns.SNNModel(
        64,
        [12, 9],
        4,
        tau=(1, 4),
        tau_adaptation=(5, 20),
        threshold=0.05,
        encoding=encoding,
        neuron=neuron,
        recurrent=recurrent,
    )
    images = pictures()
    assert not torch.equal(again(images), model(images))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("encoding", ["rows", "pixels"])
def test_a_network_that_reads_is_what_a_loop_over_the_parts_says(encoding):
    options = {"permute": 3} if encoding == "pixels" else {}
    model = make(
        encoding=encoding,
        encoding_options=options,
        neuron="se_adlif",
        recurrent=True,
    ).eval()
    images = pictures()
    recorded = model.record(images)
    assert all(0.02 < spikes.mean() < 0.9 for spikes in recorded.spikes.values())
    order = ns.encoding.pixel_order(64, 3)
    layers = []
    for neurons, size in zip(model.neurons, (12, 9)):
        values = [value.detach() for value in neurons.neuron.parameter_values()]
        layers.append((neurons.weight.detach(), values, [torch.zeros(5, size)] * 3))
    mem, outputs = torch.zeros(5, 4), []
    for step in range(STEPS[encoding]):
        flow = images[:, 0, step] if encoding == "rows" else images.flatten(1)[:, order[step], None]
        for k, (weight, (d_u, d_w, a, b, q, threshold), (last, u, w)) in enumerate(layers):
            u = d_u * u + (1 - d_u) * (model.linears[k](flow) + last @ weight.T - w)
            fired = (u > threshold).float()
            u = u * (1 - fired)
            w = d_w * w + (1 - d_w) * q * (a * u + b * fired)
            layers[k] = (weight, (d_u, d_w, a, b, q, threshold), (fired, u, w))
            flow = fired
        mem = 0.95 * mem + model.linears[2](flow)
        outputs.append(mem)
    assert torch.allclose(recorded.output, torch.stack(outputs), atol=1e-5)


# Neurons in ranges


def test_constants_stay_in_their_ranges_and_come_back_to_them():
    torch.manual_seed(0)
    layer = hidden_neurons("se_adlif", 500, (5, 25), (60, 300), {"threshold": 0.5})
    values = dict(zip(layer.parameter_names, layer.parameter_values()))
    assert (values["q"].item(), values["threshold"].item()) == (120, 0.5)
    for name, low, high in (
        ("d_u", math.exp(-1 / 5), math.exp(-1 / 25)),
        ("d_w", math.exp(-1 / 60), math.exp(-1 / 300)),
        ("a", 0, 1),
        ("b", 0, 2),
    ):
        found = values[name].detach()
        assert low <= found.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < found.max() <= high, name
    with torch.no_grad():
        layer.a_share.copy_(torch.linspace(-1, 2, 500))
    values = dict(zip(layer.parameter_names, layer.parameter_values()))
    assert values["a"].min() == 0 and values["a"].max() == 1
    values["a"].sum().backward()  # downhill from 2 leads back, further below 0 does not
    assert layer.a_share.grad[-1] == 1 and layer.a_share.grad[0] == 0


def test_adaptive_neurons_take_the_options_that_are_theirs():
    layer = hidden_neurons(
        "alif", 3, (2, 10), (10, 60), {"beta": 0.1, "surrogate": "triangular", "grad_window": 0.7}
    )
    assert isinstance(layer, InRanges)
    assert layer.rule.states == ("mem", "tired")
    assert (layer.surrogate.name, layer.grad_window) == ("triangular", 0.7)
    beta, rho, *_ = layer.parameter_values()
    assert bool((beta >= math.exp(-1 / 2)).all()) and bool((rho <= math.exp(-1 / 60)).all())
    again = copy.deepcopy(layer)
    assert torch.equal(again.parameter_values()[0], beta)
    model = make(neuron="alif", recurrent=True, encoding="rows", readout="spikes")
    assert isinstance(model.output, ns.LIF)  # that of the readout stays as it was
    model.truncate(3)
    assert {layer.segment for layer in model.neurons} == {3}


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neuron": "adlif"}, "unknown neuron 'adlif'; choose one of lif, alif, se_adlif"),
        ({"encoding": "columns"}, "unknown encoding 'columns'; choose one of constant"),
        ({"encoding": "rows", "num_steps": 25}, "64 pixels in 8 steps, got num_steps=25: leave it"),
        ({"encoding": "pixels", "num_steps": 8}, "64 pixels in 64 steps, got num_steps=8"),
        ({"neuron": "alif", "tau": (5,)}, "tau must be two time constants in steps, the shorter"),
        ({"neuron": "alif", "tau": (9, 5)}, "such as 5 and 25; got \\[9, 5\\]"),
        ({"neuron": "se_adlif", "tau_adaptation": (0, 5)}, "tau_adaptation must be two time"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_networks_that_see_whole_pictures_cannot_read_them():
    with pytest.raises(ValueError, match="ConvSNN sees whole pictures at every step and cannot re"):
        ns.ConvSNN(64, channels=2, encoding="rows")
    with pytest.raises(ValueError, match="pixels of a square picture, such as 784, got 60"):
        ns.SNNModel(60, 4, encoding="rows")


def test_the_commands_line_says_why_a_network_cannot_read(capsys):
    flags = ["--dataset=digits", "--encoding.kind=rows"]
    assert train.main([*flags, "--model.kind=conv"]) == 2
    assert "a network of model.kind conv sees whole pictures at every step; use mlp, or" in (
        capsys.readouterr().err
    )
    crop = "--preprocessing=[{kind: resize, size: [4, 9]}]"
    assert train.main([*flags, crop, "--model.input_size=36"]) == 2
    assert "leaves pictures of 4 x 9 pixels, and encoding.kind rows takes square ones" in (
        capsys.readouterr().err
    )


def test_a_network_is_presented_only_what_its_first_layer_takes():
    reads, sees = make(encoding="rows"), make()
    assert reads.codings == ("rows",)
    assert "rows" not in sees.codings and "rate" in sees.codings
    with pytest.raises(ValueError, match="learnt to see pictures by rows and cannot be given cons"):
        reads.presented("constant", 8)
    with pytest.raises(ValueError, match="by constant and cannot be given pixels"):
        sees.presented("pixels", 64)
    with pytest.raises(ValueError, match="reads a picture by rows in 8 steps, got 9"):
        reads.presented("rows", 9)
    images = pictures()
    assert torch.equal(reads.presented("rows", 8)(images), reads(images))


# In use


@pytest.mark.parametrize("neuron", ["se_adlif", "alif"])
def test_a_run_is_trained_kept_loaded_tested_and_predicts(neuron, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset=digits", "--epochs=1", "--hidden_size=10,8", "--run_dir=out"]
    flags += ["--encoding.kind=rows", f"--model.neuron={neuron}", "--model.recurrent=true"]
    flags += ["--model.tau=1,6", "--model.tau_adaptation=5,30", "--training.segment=9"]
    assert train.main([*flags, "--backend=reference"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    path = "out/checkpoints/best_model.pth"
    assert evaluate.main(["--json", "--backend=reference", f"--model_path={path}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert f"test accuracy: {result['accuracy']:.2%}" == told
    names = ["confusion_matrix", "firing_rates", "input_encoding", "weights"]
    assert sorted(Path(path).stem for path in result["pictures"]) == names
    assert "neurons.0.weight" in load_checkpoint(path)["model"]
    trained = load_trained(path)
    assert (trained.config.model.neuron, trained.config.model.num_steps) == (neuron, 28)
    picture = torch.linspace(0, 1, 784).view(28, 28)
    found, spikes = predict(trained, picture)
    scores = ns.load_model(path)(picture[None])
    assert found.scores == pytest.approx(scores[0].tolist())
    assert spikes["hidden2"].shape == (28, 8)
    assert train.main(["--config=out/config.yaml", "--run_dir=more", f"--init_from={path}"]) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_train_a_few_steps(path):
    config = load_config(path, {"dataset": "digits", "model.hidden_size": "12,10"})
    torch.manual_seed(0)
    assert build_on_meta(config) is not None
    model = build_model(config)
    part = load("digits", "").train.split(0.98, 0)[0]
    batches = Batches(part, 15, shuffle=False)
    trainer = make_trainer(config, model, make_fabric("cpu"), len(batches), 4)
    before = copy.deepcopy(model.state_dict())
    metrics = trainer.train_epoch(batches)
    assert math.isfinite(metrics.loss)
    assert trainer.step == 2
    # Hidden layers may still be silent, but the gradient goes through all of them to the first.
    assert not torch.equal(model.linears[0].weight, before["linears.0.weight"])


@pytest.mark.parametrize("encoding", ["rows", "pixels"])
def test_a_run_keeps_pictures_of_a_network_that_reads(encoding, tmp_path):
    model = make(encoding=encoding, neuron="se_adlif", recurrent=True)
    paths = draw_network(tmp_path, model, [(pictures(), torch.arange(5) % 4)])
    assert len(paths) == 4
    _, axes = ns.SpikeVisualizer().plot_input_encoding(
        pictures(1), model.record(pictures(1)).current
    )
    assert axes[2].get_title() == "as it is read"
    assert axes[2].images[0].get_array().shape == (8, 8)


def test_returning_spikes_are_counted():
    model = make(encoding="rows", neuron="alif", recurrent=True)
    model.neurons[0] = ns.Recurrent(model.neurons[0].neuron, 12, zero_diagonal=True)
    images = pictures()
    seen = model.record(images)
    counted = count_operations(model, images)
    first, second = seen.spikes.values()
    back = first[:-1].sum() * 11 + second[:-1].sum() * 9
    forward = first.sum() * 9 + second.sum() * 4
    assert counted.acs == pytest.approx(float(back + forward) / 5)
    assert counted.macs == 8 * 8 * 12  # pixels are no spikes
    assert counted.dense_macs == 8 * (8 * 12 + 12 * 9 + 9 * 4) + 7 * (12 * 11 + 9 * 9)
    whole = make(recurrent=True)
    assert count_operations(whole, images).dense_macs == 64 * 12 + 12 * 9 + 9 * 4 + 12 * 12 + 9 * 9


def test_the_board_shows_membranes_of_recurrent_layers():
    model = make(encoding="rows", neuron="se_adlif", recurrent=True)
    seen = _look(model, pictures(1))
    assert list(seen["membranes"]) == ["hidden1", "hidden2", "output"]
    trace, fired, threshold, chosen = seen["membranes"]["hidden1"]
    assert threshold == pytest.approx(0.05)
    current = over_steps(model.linears[0], model.record(pictures(1)).current)
    assert current.shape == (8, 1, 12)
    assert trace.shape == (8, len(chosen)) and set(fired.ravel()) <= {0.0, 1.0}
    assert trace[fired > 0].max() == 0  # an SE-adLIF is at 0 after a spike: it is its membrane
    assert trace.any()


def test_exported_readers_answer_alike_and_long_ones_are_refused(tmp_path):
    model = make(encoding="rows", neuron="alif", recurrent=True, hidden_size=6)
    checked = export.export_model(model, tmp_path / "m.pt2", "pt2", pictures=pictures(20))
    assert (checked.alike, checked.backend) == (20, "reference")
    long = make(encoding="pixels", hidden_size=6)
    for form in ("pt2", "onnx"):
        with pytest.raises(ConfigError, match=f"takes 64 steps, and {form} of the backend"):
            export.export_model(long, tmp_path / "m", form, pictures=pictures(20))


# The live page


def answerer(kind, **encoding):
    config = check_config(
        {
            "dataset": "digits",
            "model": {"hidden_size": [14, 11], "neuron": "se_adlif", "recurrent": True},
            "encoding": {"kind": kind, **encoding},
            "preprocessing": ["deskew"],
        },
        "the test",
    )
    return Answerer(Trained(build_model(config).eval(), config, "digits", {}))


@pytest.mark.parametrize(("kind", "steps"), [("rows", 28), ("pixels", 784)])
def test_the_film_says_what_is_read_at_each_step(kind, steps):
    seen = answerer(kind, permute=5)
    film = seen.answer(torch.rand(28, 28), seen.default)
    reading = film["reading"]
    assert (film["steps"], len(reading["places"]), seen.most_steps) == (
        steps,
        steps,
        max(steps, 100),
    )
    if kind == "rows":
        assert (reading["name"], reading["part"]) == ("row", (1, 28))
        assert reading["places"] == [28 * row for row in range(28)]
    else:
        assert reading["part"] == (1, 1)
        assert reading["places"] == ns.encoding.pixel_order(784, 5).tolist()
    assert (reading["picture"]["height"], reading["picture"]["width"]) == (28, 28)
    assert (
        seen.description == f"recurrent mlp network trained on digits, {kind} coding, {steps} steps"
    )
    json.dumps(film, allow_nan=False)


def test_a_visitor_cannot_ask_for_other_codings_or_steps():
    seen = answerer("rows")
    assert seen.codings == ("rows",) and seen.reads
    with pytest.raises(ValueError, match="another network's coding 'rate'; choose one of rows"):
        seen.check(Choice("rate", 28))
    with pytest.raises(ValueError, match="reads a picture in 28 steps, got 27"):
        seen.check(Choice("rows", 27))
    whole = Answerer(Trained(make(), check_config({}, "t"), "digits", {}))
    with pytest.raises(ValueError, match="another network's coding 'rows'; choose one of constant"):
        whole.check(Choice("rows", 28))
    assert not whole.reads and whole._reading(pictures(1)) is None
