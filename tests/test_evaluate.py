"""The test of a trained network, and the count of its operations."""

import json

import pytest
import torch
from torch import nn

import neurospike as ns
from neurospike import evaluate, train
from neurospike.training import draw_network
from neurospike.training.energy import count_operations
from neurospike.training.evaluation import Evaluation


def test_operations_are_counted_by_what_each_layer_is_given():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, images):
            spikes = torch.zeros(5, len(images), 3)
            spikes[0, 0, 0] = spikes[2, 1, 1] = spikes[4, 0, 2] = 1
            return self.first(images).sum(1, keepdim=True) + self.second(spikes).sum(0)

    counted = count_operations(Network(), torch.rand(2, 4) / 2 + 0.1)
    assert counted.macs == 4 * 3
    assert counted.acs == pytest.approx(3 * 2 / 2)
    assert counted.dense_macs == 4 * 3 + 3 * 2
    assert counted.nanojoules == pytest.approx((12 * 4.6 + 3 * 0.9) / 1000)
    assert counted.dense_nanojoules == pytest.approx(18 * 4.6 / 1000)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.Conv2d(2, 6, 3, stride=2),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(0, 1), dilation=2, groups=2),
        nn.Conv1d(3, 2, 5, stride=3, padding=2),
        nn.Conv3d(1, 2, 3, padding=1, stride=2),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    ],
)
def test_operations_of_a_convolution_are_its_connections(layer):
    sides = [7, 6, 5][: layer.weight.ndim - 2]
    spikes = (torch.rand(4, layer.in_channels, *sides) < 0.3).float()
    counted = count_operations(layer, spikes)
    # A weight of 1 adds each spike that is met, so the gradient of the sum is what it meets.
    with torch.no_grad():
        layer.weight.fill_(1)
    every = torch.ones_like(spikes, requires_grad=True)
    layer(every).sum().backward()
    assert counted.macs == 0
    assert counted.acs == float((every.grad * spikes).sum()) / 4
    assert counted.dense_macs == float(every.grad.sum()) / 4
    currents = torch.rand(spikes.shape) / 2 + 0.1
    assert count_operations(layer, currents).macs == counted.dense_macs


def test_evaluation_gives_the_accuracy_that_training_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset=digits", "--epochs=2", "--model.hidden_size=32", "--run_dir=out"]
    assert train.main(argv) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert evaluate.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == told
    kept = tmp_path / "checkpoints" / "evaluation"
    assert lines[-3] == f"pictures in {kept.relative_to(tmp_path)}"
    names = ["confusion_matrix", "firing_rates", "input_encoding", "weights"]
    assert sorted(path.name for path in kept.iterdir()) == [f"{name}.png" for name in names]
    assert evaluate.main(["--json", "--pictures=seen"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sorted(result["pictures"]) == [f"seen/{name}.png" for name in names]
    assert f"test accuracy: {result['accuracy']:.2%}" == told
    assert sum(map(sum, result["confusion"])) == 360
    header = next(k for k, line in enumerate(lines) if line.startswith("label "))
    assert lines[header].split() == ["label", "accuracy", *map(str, range(10))]
    for label, row in enumerate(result["confusion"]):
        assert lines[header + 1 + label].split()[0] == str(label)
        assert lines[header + 1 + label].split()[2:] == list(map(str, row))
        assert len(lines[header + 1 + label]) == len(lines[header])  # each under its answer
    macs = f"{result['a_picture']['macs']:,.0f} multiplications"
    assert any(line.startswith(f"per picture {macs} and ") for line in lines)
    assert 0 < result["a_picture"]["acs"] < 25 * 32 * 10
    assert result["a_picture"]["macs"] == 784 * 32

    (tmp_path / "taken").touch()
    assert evaluate.main(["--json", "--pictures=taken"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["pictures"] == []
    reason = "cannot write them into taken: it is not a folder; give another --pictures"
    assert told.err == f"no pictures: {reason}\n"
    assert evaluate.main(["--json", "--no_pictures"]) == 0
    assert "pictures" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dataset=minst"], "unknown data set 'minst': did you mean 'mnist'?"),
        (["--dataset="], "--dataset: got '', wanted a value; leave the flag out for the default"),
        (["--backend=x"], "unknown backend 'x'; choose one of auto, "),
        (["--device=gpu"], "device: got 'gpu', allowed: auto, cpu, cuda or cuda:N; a GPU"),
        (["--device=cuda:9"], "torch finds 0 CUDA devices here; use cpu or auto"),
        (["--data=x"], "no such flag --data; did you mean --dataset?"),
        (["--checkpoint=x"], "no such flag --checkpoint; did you mean --model_path?"),
        (["--json", "x"], "unexpected 'x': every value follows its flag"),
    ],
)
def test_a_wrong_flag_is_told_before_the_model_is_loaded(argv, expected, tmp_path, capsys):
    assert evaluate.main([f"--model_path={tmp_path / 'none.pth'}", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {expected}") or expected in said.err
    assert len(said.err.splitlines()) == 1
    assert "none.pth" not in said.err


@pytest.mark.parametrize(
    ("flag", "expected"), [("--model.normalization=batch", 0), ("--model.threshold=50", 1)]
)
def test_evaluation_tells_of_many_dead_neurons_as_training_does(
    flag, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset=digits", "--epochs=1", "--hidden_size=9", flag, "--run_dir=out"]
    assert train.main(argv) == 0
    trained = capsys.readouterr().out
    assert evaluate.main(["--model_path=out/checkpoints/best_model.pth"]) == 0
    tested = capsys.readouterr().out
    told = "100% of the 9 channels or neurons of hidden1 never fired for any"
    assert trained.count(f"{told} training sample after epoch 1; ") == expected
    assert tested.count(f"{told} test picture; ") == expected
    assert (trained + tested).count("never fired") == 2 * expected


def test_a_layer_of_one_neuron_is_evaluated():
    evaluation = Evaluation("test")
    spikes = {"hidden1": torch.tensor([1.0, 0.0, 0.0, 1.0]).view(2, 2, 1)}
    scores, labels = torch.eye(2), torch.tensor([0, 1])
    evaluation.add(torch.tensor(0.5), scores, labels, spikes)
    assert evaluation.read().spike_rates == {"hidden1": 0.5}


def test_a_confusion_matrix_that_is_known_is_drawn_as_it_is(tmp_path, monkeypatch):
    drawn = []
    plot = ns.SpikeVisualizer.plot_confusion_matrix

    def spy(self, *matrix, **options):
        figure, axes = plot(self, *matrix, **options)
        drawn.append({text.get_position(): int(text.get_text()) for text in axes.texts})
        return figure, axes

    monkeypatch.setattr(ns.SpikeVisualizer, "plot_confusion_matrix", spy)
    batches = [(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))] * 2
    model = ns.SNNModel(16, 4, 2, num_steps=2)
    draw_network(tmp_path, model, batches, [[7, 0], [1, 5]])
    assert drawn == [{(0, 0): 7, (0, 1): 1, (1, 1): 5}]
