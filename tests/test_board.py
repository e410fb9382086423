"""TensorBoard's files: what is in them, and that a run ends the same with and without."""

import json
import sys
import threading

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike import train
from neurospike.errors import MissingDependencyError
from neurospike.training import load_checkpoint
from neurospike.training.board import Board
from neurospike.training.tiles import (
    HIGH,
    INK,
    LEFT,
    LINE,
    LOW,
    draw_membranes,
    draw_raster,
    draw_weights,
)

SMALL = ["--dataset=digits", "--hidden_size=16", "--num_steps=4", "--threads=1", "--epochs=2"]
needs_tensorboard = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("tensorboard"),
    reason="tensorboard comes with the extra [tensorboard]",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@needs_tensorboard
def test_a_run_leaves_curves_and_pictures_and_is_the_same_run(folder):
    random = [*SMALL, "--encoding.kind=rate", "--model.dropout=0.1"]
    assert train.main([*random, "--run_dir=plain"]) == 0
    assert train.main([*random, "--run_dir=shown", "--tensorboard"]) == 0
    plain, shown = (load_checkpoint(f"{name}/checkpoints/last.pth") for name in ("plain", "shown"))
    for name, value in plain["model"].items():
        assert torch.equal(value, shown["model"][name]), name
    assert not (folder / "plain" / "tensorboard").exists()
    found = events(folder / "shown")
    epochs = [row for row in rows(folder / "shown") if row["kind"] == "epoch"]
    for tag, key in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        scalars = found.Scalars(tag)
        assert [event.step for event in scalars] == [row["step"] for row in epochs]
        assert [event.value for event in scalars] == pytest.approx([row[key] for row in epochs])
    assert found.Scalars("spike_rates/hidden1")[0].value == pytest.approx(
        epochs[0]["spike_rates"]["hidden1"]
    )
    images = set(found.Tags()["images"])
    assert images == {
        "spikes/hidden1",
        "membranes/hidden1",
        "membranes/output",
        "weights/first",
    }

    assert found.Images("spikes/hidden1")[0].encoded_image_string.startswith(b"\x89PNG")


@needs_tensorboard
@pytest.mark.parametrize("model", [ns.ConvSNN(channels=[2]), ns.ResidualSNN(channels=[2, 3])])
def test_every_network_can_be_looked_at_and_is_left_as_it_was(tmp_path, model):
    board = Board(tmp_path, model.train(), torch.rand(1, 1, 28, 28), step=7)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    board.add({"kind": "step", "step": 8, "train_loss": 0.5})
    assert torch.equal(torch.get_rng_state(), drawn)
    board.close()
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("loss/train")] == [(8, 0.5)]
    tags = {kind: set() for kind in ("spikes", "membranes", "weights")}
    for tag in found.Tags()["images"]:
        kind, _, layer = tag.partition("/")
        tags[kind].add(layer)
    assert len(tags["membranes"]) >= 2
    assert tags["spikes"] <= tags["membranes"]  # under the same names


@needs_tensorboard
def test_pictures_wait_for_nobody_and_numbers_are_never_left_out(tmp_path, monkeypatch):
    go_on = threading.Event()

    def slow(seen):
        go_on.wait(60)
        return {}

    monkeypatch.setattr("neurospike.training.board._images", slow)
    looks = []
    monkeypatch.setattr("neurospike.training.board._look", lambda *_: looks.append(1) or {"a": 1})
    board = Board(tmp_path, ns.SNNModel(), torch.rand(1, 1, 28, 28))
    for step in range(20):
        board.add({"kind": "step", "step": step, "train_loss": float(step)})
    assert len(looks) < 5
    go_on.set()
    board.close()
    assert [event.value for event in events(tmp_path).Scalars("loss/train")] == list(range(20))


@needs_tensorboard
def test_a_folder_that_cannot_be_written_ends_the_recording_and_not_the_run(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "tensorboard").touch()
    assert train.main([*SMALL, "--run_dir=out", "--tensorboard"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("tensorboard: out/tensorboard: cannot be written: ")
    assert len(said.splitlines()) == 1


def test_without_tensorboard_it_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        Board(folder, ns.SNNModel(), torch.rand(1, 1, 28, 28))
    assert train.main([*SMALL, "--run_dir=out", "--tensorboard"]) == 2
    assert capsys.readouterr().err.startswith("error: --tensorboard needs tensorboard, which")


# The pictures, without their frames


def inside(image):
    """What stands right of the numbers, below the title and above the steps."""
    return image[LINE:-LINE, LEFT:]


def test_a_raster_is_dark_where_a_neuron_fired():
    spikes = np.zeros((4, 3))
    spikes[1, 2] = 1
    image = inside(draw_raster(spikes))
    dark = (image == INK).all(-1)
    assert dark.mean() == pytest.approx(1 / 12)
    down, across = image.shape[0] // 3, image.shape[1] // 4
    assert dark[2 * down :, across : 2 * across].all()
    assert len(inside(draw_raster(np.zeros((4, 1000))))) == 200


def test_membranes_show_level_threshold_and_spikes():
    trace = np.array([[0.0], [1.0], [2.0], [2.0]])
    image = draw_membranes(trace, trace > 1.5, 1.5, [7])
    image = inside(image)[:, : 4 * 50]
    line = (image == LOW).all(-1)
    heights = [line[:, step * 50 + 5].argmax() for step in range(4)]
    assert image.shape[0] < 60
    assert heights[0] > heights[1] > heights[2] == heights[3]
    ticks = (image == HIGH).all(-1).any(0)
    assert [bool(ticks[step * 50]) for step in range(4)] == [False, False, True, True]
    assert draw_membranes(np.zeros((3, 0)), np.zeros((3, 0)), None, []).shape == (1, 1, 3)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_membranes_that_are_not_finite_are_drawn_at_the_border(strange):
    trace = np.array([[0.0, 0.5], [1.0, 0.5], [2.0, 0.5], [2.0, strange]], dtype=np.float32)
    fired = np.zeros_like(trace)
    image = draw_membranes(trace, fired, np.inf, [7, 8])
    first, second = np.split(inside(image)[: len(image) - 2 * LINE, : 4 * 50], 2)
    heights = [(second == LOW).all(-1)[:, step * 50 + 5].argmax() for step in range(4)]
    assert heights[0] == heights[1] == heights[2]
    assert (heights[3] < heights[0]) == (strange > 0)
    assert (
        first == inside(draw_membranes(trace[:, :1], fired, None, [7]))[: len(first), :200]
    ).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_white(strange):
    weights = np.array([[strange, 0.5], [0.25, -1.0]])
    assert (draw_weights(weights) == draw_weights(np.array([[0.0, 0.5], [0.25, -1.0]]))).all()


@needs_tensorboard
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_measures_that_are_dicts_or_lists_and_numbers_that_are_not_finite_are_recorded(tmp_path):
    net = ns.Sequential(torch.nn.Linear(3, 4), ns.LIF(0.9))
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    board = Board(tmp_path, net, torch.rand(5, 1, 3))
    own = {"parts": {"left": 1, "right": [2.0, 3.0]}, "said": "nothing", "none": None}
    board.add({"step": 1, "train_loss": float("nan"), "metrics": own})
    board.add({"step": 2, "train_loss": 1.0, "metrics": {"all": 4.0}})
    board.close()
    found = events(tmp_path)
    tags = ["metrics/parts/left", "metrics/parts/right/0", "metrics/parts/right/1", "metrics/all"]
    assert set(found.Tags()["scalars"]) == {"loss/train", *tags}
    assert [found.Scalars(tag)[0].value for tag in tags] == [1.0, 2.0, 3.0, 4.0]
    assert [event.step for event in found.Scalars("loss/train")] == [1, 2]
    assert "membranes/1" in found.Tags()["images"]


@pytest.mark.parametrize("shape", [(7, 16), (7, 10), (3, 2, 5, 5), (100, 784)])
def test_weights_are_blue_below_zero_and_vermilion_above(shape):
    weights = np.zeros(shape, dtype=np.float32)
    weights.reshape(len(weights), -1)[0] = 1
    weights.reshape(len(weights), -1)[1] = -1
    image = draw_weights(weights)[LINE:, LEFT:]
    assert (image[0, 0] == HIGH).all()
    ends = np.flatnonzero((image[0] != HIGH).any(-1))[0] + 2  # a grey line of two pixels
    assert (image[0, ends] == LOW).all()


def test_the_frame_names_neurons_and_steps():
    """Other numbers, another frame; the picture in it is the same."""
    spikes, trace = np.zeros((4, 3)), np.zeros((4, 2))
    few, many = draw_raster(spikes), draw_raster(np.zeros((8, 3)))
    assert (few[:LINE] < 255).any()  # a title
    assert (few[-LINE:, :LEFT] == 255).all()
    assert (few[-LINE:] != many[-LINE:]).any()  # the last step
    one, other = (draw_membranes(trace, trace, 1.0, drawn) for drawn in ([3, 5], [3, 81]))
    assert (one[:, LEFT:] == other[:, LEFT:]).all()
    assert (one[LINE : len(one) // 2, :LEFT] == other[LINE : len(one) // 2, :LEFT]).all()
    assert (one[len(one) // 2 :, :LEFT] != other[len(one) // 2 :, :LEFT]).any()
    assert (draw_weights(np.ones((2, 4)))[:LINE] != draw_weights(np.ones((2, 4)) * 3)[:LINE]).any()
