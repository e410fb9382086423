"""The commands that measure training run, on little, and refuse to measure what is not equal."""

import json

import pytest
import torch
import yaml
from mnist import mnist_root

from benchmarks import accuracy, board, epoch, predictions
from neurospike.config import Config
from neurospike.training import save_checkpoint
from neurospike.training.loading import build_model

ROOT = mnist_root()
needs_mnist = pytest.mark.skipif(ROOT is None, reason="MNIST is not here; see tests/mnist.py")
FEW = [f"--data_path={ROOT}", "--pictures=256", "--rounds=1", "--threads=1"]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@needs_mnist
def test_an_epoch_is_measured_against_the_same_network(tmp_path, capsys):
    assert epoch.main([*FEW, f"--out={tmp_path / 'epoch.json'}"]) == 0
    found = json.loads((tmp_path / "epoch.json").read_text(encoding="utf-8"))
    assert found["largest_difference"] < 1e-5
    assert found["ratio"]["snntorch"] > 1
    assert "times as fast as snntorch" in capsys.readouterr().out


def test_networks_that_differ_are_not_timed():
    rivals = epoch.networks()
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    assert epoch.check_equal(rivals, images, labels) < 1e-5
    with torch.no_grad():
        rivals["snntorch"].linears[1].weight[0, 0] += 0.1
    with pytest.raises(SystemExit, match=r"the networks differ by .* nothing was timed"):
        epoch.check_equal(rivals, images, labels)


@needs_mnist
def test_the_cost_of_tensorboard_is_measured(capsys):
    pytest.importorskip("tensorboard")
    assert board.main([*FEW, "--epochs=1"]) == 0
    assert "TensorBoard costs" in capsys.readouterr().out


def test_predictions_are_counted_and_their_memory_watched(tmp_path, capsys, monkeypatch):
    config = Config(model={"hidden_size": 16, "num_steps": 3}, dataset="digits")
    state = {"model": build_model(config).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint(state, tmp_path / "model.pth")
    argv = [f"--model_path={tmp_path / 'model.pth'}", "--dataset=digits", "--pictures=50"]
    assert predictions.main(argv) == 0
    assert capsys.readouterr().out.startswith("50 pictures in ")
    sizes = iter([100.0] * 5 + [200.0] * 5)
    monkeypatch.setattr(predictions, "resident", lambda: next(sizes))
    assert predictions.main(argv) == 1
    assert "grown by 100.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "name"), [("32-true", "default"), ("bf16-mixed", "default_bf16-mixed")]
)
def test_a_run_is_known_by_its_configuration(tmp_path, precision, name):
    config = Config(precision=precision).model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    start = dict.fromkeys(
        ("seed", "dataset", "backend", "device", "threads", "cpus", "time", "versions")
    )
    rows = [
        {"kind": "run", **start},
        {"kind": "epoch", "seconds": 2.0},
        {"kind": "test", "accuracy": 0.9, "spike_rates": {}},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found, row = accuracy.row_of(tmp_path)
    assert (found, row["test_accuracy"], row["training_seconds"]) == (name, 0.9, 2.0)
    changed = {**config, "training": {**config["training"], "epochs": 3}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"got a run of neither config\.yaml nor configs"):
        accuracy.row_of(tmp_path)
