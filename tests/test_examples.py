"""The scripts of `examples/` do what they and the documentation say; quick settings."""

import importlib
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from equivalence import check
from mnist import idx

import neurospike as ns
from neurospike import config, models
from neurospike.backend import dispatch
from neurospike.data import load

EXAMPLES = Path(__file__).parents[1] / "examples"
# With tests of their own: here, or in test_conversion.py.
TESTED = {
    "codings",
    "columns",
    "delays",
    "own_backend",
    "own_convolution",
    "own_model",
    "own_network",
    "own_neuron",
    "own_recurrent",
    "own_surrogate",
    "own_training",
    "snntorch_after",
    "snntorch_before",
    "snntorch_class_after",
    "snntorch_class_before",
    "snntorch_training",
    "streaming",
}
RULES = [
    *({"reset": reset} for reset in ("subtract", "zero", "none")),
    *({"reset": reset, "reset_delay": False} for reset in ("subtract", "zero")),
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
]


@pytest.fixture
def example(monkeypatch):
    """Import a script of examples/ by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_every_example_has_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_delays_are_found_that_let_spikes_arrive_together(example):
    accuracy, apart, before = example("delays").main()
    assert accuracy > 0.99
    assert apart < 0.5 < before


def test_a_delay_for_every_synapse_is_found(example):
    pytest.importorskip("DCLS")
    script = example("delays")
    torch.manual_seed(0)
    assert script.accuracy(script.train_synapses(150)) > 0.95


def test_own_network_learns(example):
    losses, accuracy = example("own_network").main(epochs=1)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert accuracy > 0.7


def test_own_training_learns_and_goes_on(example, tmp_path, capsys):
    pytest.importorskip("sklearn")
    script = example("own_training")
    script.main(tmp_path / "run", epochs=7)
    found = script.main(tmp_path / "run")
    assert found["accuracy"] > 0.96
    lines = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/run: 7 of 10 epochs are done; the run goes on" in lines
    assert sum(line.startswith("epoch") for line in lines) == 10


def test_own_convolution_learns_with_decays_of_its_own(example):
    pytest.importorskip("sklearn")
    accuracy, decays = example("own_convolution").main(epochs=4)
    assert accuracy > 0.9
    assert len(set(decays)) == 16 and min(decays) < 0.79


def test_own_recurrent_network_remembers_who_came_first(example):
    assert example("own_recurrent").main() > 0.95


def test_a_stream_says_what_the_whole_says(example, tmp_path):
    at_once, streamed = example("streaming").main(tmp_path / "state.pt")
    torch.testing.assert_close(streamed, at_once, rtol=1e-5, atol=1e-5)
    assert at_once[200:].any()


def test_columns_learns_from_files_of_fashion_mnist(example, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    digits = load("digits", "")
    for name, split, count in (("train", digits.train, 1024), ("t10k", digits.test, 256)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(split.images[:count]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(split.labels[:count]))
    script, run = example("columns"), tmp_path / "run"
    before = script.main(str(tmp_path), 1, run)
    after = script.main(str(tmp_path), 20, run)  # goes on
    assert after["loss"] < before["loss"] < 0.2
    assert set(after["spike_rates"]) == {"layers.2", "layers.4"}


@pytest.mark.parametrize("error", [RuntimeError("no mirror"), OSError("read-only")])
def test_columns_says_what_to_do_without_its_pictures(example, tmp_path, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        SystemExit, match=r"\(.*\): put its four files there, or name another"
    ) as told:
        example("columns").main(str(tmp_path), 1, tmp_path / "run")
    assert "\n" not in str(told.value)
    assert f"Fashion-MNIST is not whole in {tmp_path}/FashionMNIST/raw" in str(told.value)
    assert not (tmp_path / "run").exists()


def test_columns_is_the_network_of_spikingjellys_example(example):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    torch.manual_seed(0)
    inner = neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True)
    theirs = torch.nn.Sequential(
        layer.Linear(28, 32),
        layer.LinearRecurrentContainer(inner, in_features=32, out_features=32, bias=True),
        layer.Linear(32, 10),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
    ).double()
    functional.set_step_mode(theirs, step_mode="m")
    ours = example("columns").Net().double()
    first, before, feedback, last, _ = ours.layers
    both = theirs[1].rc.weight.detach()
    assert before.weight.abs().max() < 64**-0.5 and feedback.weight.abs().max() < 64**-0.5
    with torch.no_grad():
        for mine, other in ((first, theirs[0]), (last, theirs[2])):
            mine.load_state_dict(other.state_dict())
        before.weight.copy_(both[:, :32])
        feedback.weight.copy_(both[:, 32:])
        feedback.bias.copy_(theirs[1].rc.bias)
    pictures = torch.rand(6, 1, 28, 28).double()
    answer, wanted = ours(pictures), theirs(pictures.squeeze(1).permute(2, 0, 1)).mean(0)
    assert wanted.any() and torch.equal(answer, wanted)
    for scores in (answer, wanted):
        (scores - torch.eye(10)[:6].double()).square().mean().backward()
    gradient = theirs[1].rc.weight.grad
    torch.testing.assert_close(before.weight.grad, gradient[:, :32], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(feedback.weight.grad, gradient[:, 32:], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first.weight.grad, theirs[0].weight.grad, rtol=1e-9, atol=1e-12)


def test_own_surrogate_is_the_gradient_of_every_backend(example):
    script = example("own_surrogate")
    membrane, derivative = script.one_step()
    wanted = [1.0 if abs(u) <= 0.5 else 2.718281828 ** (-4 * (abs(u) - 0.5)) for u in membrane - 1]
    assert torch.allclose(derivative, torch.tensor(wanted), atol=1e-6)
    distances = script.main()
    assert distances.keys() == {"reference", "numba"}
    assert max(distances.values()) < 1e-6


def test_own_neuron_tires_is_torchs_and_learns(example):
    script = example("own_neuron")
    assert script.prove() < 1e-6
    spikes = script.watch()
    gaps = spikes["tiring"].nonzero().flatten().diff()
    assert gaps[0] < gaps[-1]
    assert spikes["LIF"].nonzero().flatten().diff().unique().numel() <= 2
    network, accuracy = script.train(epochs=3)
    assert accuracy > 0.85
    learned = network[3]
    assert learned.alpha.shape == learned.beta.shape == (64,)
    assert (learned.alpha - 0.5).abs().max() > 0.01


def test_own_backend_passes_the_check_of_every_backend(example, capsys):
    script = example("own_backend")
    script.register()
    try:
        assert script.main() < 1e-5
        for number, rule in enumerate(RULES):
            check(script.NAME, rule, list(ns.surrogate.BUILT_IN)[number])
        held = torch.rand(2, 5).requires_grad_()
        whole = held.detach().expand(7, 2, 5)
        spikes, _ = ns.lif(held, beta=0.9, num_steps=7, backend=script.NAME)
        assert torch.equal(spikes, ns.lif(whole, beta=0.9, backend=script.NAME)[0])
        spikes.sum().backward()
        assert bool((held.grad != 0).any())
    finally:
        del dispatch.TABLE[script.NAME]


def test_own_model_trains_from_the_configuration(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = example("own_model")
    flags = ["--epochs=4", "--hidden_size=32,32", "--model.dropout=0.1"]
    flags += ["--model.normalization=batch"]
    try:
        assert script.main("run", *flags) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert float(last.removeprefix("test accuracy: ").removesuffix("%")) > 60
        assert (tmp_path / "run/firing_rates.png").exists()
        model = ns.load_model("run/checkpoints/best_model.pth")
        assert type(model) is script.DenseSNN
        assert model.layers[1][0].weight.shape == (32, 32)
        assert model.last.weight.shape == (10, 64)
    finally:
        del models.MODELS["dense"], config.KINDS["dense"]
        del sys.modules["own_model"]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("mlp", (), "the kind 'mlp' is taken by SNNModel; choose another"),
        ("new", ("depth",), "keys must be of blocks, .* got depth"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name, keys, message):
    with pytest.raises(ValueError, match=message):
        models.register(name, models.SNNModel, keys)
    assert models.MODELS.keys() == config.KINDS.keys()


def test_codings_are_drawn_and_told(example, tmp_path):
    script = example("codings")
    codes = script.main(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(script.CODINGS)
    image = script.digit()
    for coding, code in codes.items():
        assert torch.equal(code, script.encode(image, coding))
        assert code.shape == {"rows": (28, 28), "pixels": (784, 1)}.get(coding, (25, 784))
    assert torch.equal(codes["rows"], image)
    assert torch.equal(codes["latency"].sum(0), (image.flatten() > 0.01).float())
