"""What the live page computes and reads, and its command; no browser. That is in test_live_page."""

import base64
import itertools
import json
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from neurospike.config import check_config
from neurospike.errors import BackendError, DataError, NeuroSpikeError, PictureError
from neurospike.live import watching
from neurospike.live.__main__ import main
from neurospike.live.answering import MOST_ROWS, Answerer, Choice, TestPictures
from neurospike.live.watching import Tail, WatchedRun
from neurospike.pictures import read_picture
from neurospike.predict import predict
from neurospike.training import Run
from neurospike.training.loading import Trained, build_model

PICTURE = torch.linspace(0, 1, 28).outer(torch.linspace(1, 0, 28))


def trained(**sections):
    config = check_config({"dataset": "digits", **sections}, "the test")
    return Trained(build_model(config).eval(), config, "digits", {})


@pytest.fixture
def answerer():
    return Answerer(trained(model={"hidden_size": [300, 40], "num_steps": 12}))


# Answering


@pytest.mark.parametrize("coding", ["constant", "rate", "latency", "delta", "phase", "burst"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
def test_the_answer_is_that_of_prediction(coding, kind):
    network = trained(
        model={"kind": kind, "num_steps": 6, "threshold": 0.1}, encoding={"kind": coding}
    )
    film = Answerer(network).answer(PICTURE, Answerer(network).default)
    predicted, spikes = predict(network, PICTURE)
    assert film["digit"] == predicted.digit
    assert film["confidence"] == pytest.approx(predicted.confidence, abs=1e-5)
    assert film["votes"][-1] == pytest.approx(film["confidence"], abs=2e-5)
    assert [layer["name"] for layer in film["layers"]] == list(spikes)
    for layer in film["layers"]:
        train = spikes[layer["name"]]
        assert layer["counts"] == train.sum(1).int().tolist()
        assert layer["rate"] == pytest.approx(float(train.mean()))
        shown = torch.zeros(6, layer["rows"])
        for step, rows in enumerate(layer["spikes"]):
            shown[step, rows] = 1
        every = -(-layer["neurons"] // layer["rows"])
        assert layer["neurons"] == train.shape[1] and layer["rows"] <= MOST_ROWS
        assert torch.equal(shown, train[:, ::every])
    json.dumps(film, allow_nan=False)


@pytest.mark.parametrize(("coding", "count"), [("constant", 1), ("rate", 12), ("burst", 12)])
def test_the_input_is_packed_as_it_was(answerer, coding, count):
    film = answerer.answer(PICTURE, Choice(coding, 12))
    packed = film["input"]
    levels = np.frombuffer(base64.b64decode(packed["levels"]), np.uint8)
    assert (packed["count"], packed["height"], packed["width"]) == (count, 28, 28)
    assert levels.size == count * 784
    if coding == "constant":
        assert np.array_equal(levels, (PICTURE * 255).round().byte().numpy().ravel())
        assert not packed["spiking"]
    else:
        assert set(levels) == {0, 255} and packed["spiking"]
        assert packed["spikes"] == (levels.reshape(count, 784) > 0).sum(1).tolist()


@pytest.mark.parametrize("readout", ["membrane", "max_membrane", "spikes", "first_spike"])
def test_votes_of_every_readout_end_at_the_confidence(readout):
    network = trained(model={"num_steps": 7, "readout": readout, "threshold": 0.05})
    film = Answerer(network).answer(PICTURE, Choice("constant", 7))
    assert (film["readout"], len(film["votes"]), len(film["output"])) == (readout, 7, 7)
    assert film["votes"][-1] == pytest.approx(film["confidence"], abs=2e-5)


def test_visitors_at_once_get_what_each_would_get_alone(answerer):
    choices = [
        Choice(coding, steps, backend)
        for coding in ("rate", "constant", "latency")
        for steps in (5, 12)
        for backend in ("numba", "reference")
    ]

    def answer(choice):
        film = answerer.answer(PICTURE, choice)
        return {name: value for name, value in film.items() if name != "milliseconds"}

    alone = [answer(choice) for choice in choices]
    start = threading.Barrier(len(choices))

    def together(choice):
        start.wait()
        return [answer(choice) for _ in range(3)]

    with ThreadPoolExecutor(len(choices)) as pool:
        for expected, films in zip(alone, pool.map(together, choices), strict=True):
            assert films == [expected] * 3
    assert answerer.default == Choice("constant", 12)  # the shared network is what it was


def test_refused_choices(answerer):
    with pytest.raises(ValueError, match="unknown coding 'morse'; choose one of constant, rate"):
        answerer.answer(PICTURE, Choice("morse", 5))
    for steps in (-3, 0, 101):
        with pytest.raises(ValueError, match=f"steps must be 1 to 100, got {steps}"):
            answerer.answer(PICTURE, Choice("rate", steps))
    with pytest.raises(BackendError, match=r"backend 'triton' cannot run here: .*numba"):
        answerer.answer(PICTURE, Choice("rate", 5, "triton"))


def test_a_network_of_many_steps_is_answered_with_its_own():
    answerer = Answerer(trained(model={"hidden_size": 8, "num_steps": 150}))
    answerer.warm()
    assert answerer.answer(PICTURE, answerer.default)["steps"] == 150
    assert answerer.answer(PICTURE, Choice("rate", 3))["steps"] == 3
    with pytest.raises(ValueError, match="steps must be 1 to 150, got 151"):
        answerer.answer(PICTURE, Choice("constant", 151))


def test_a_network_presented_otherwise_shares_its_weights(answerer):
    model = answerer.trained.model
    other = model.presented("rate", 3, {"gain": 0.5})
    assert (other.encoding, other.num_steps, other.encoding_options) == ("rate", 3, {"gain": 0.5})
    assert (model.encoding, model.num_steps, model.encoding_options) == ("constant", 12, {})
    assert [p.data_ptr() for p in other.parameters()] == [p.data_ptr() for p in model.parameters()]
    with pytest.raises(ValueError, match="unknown encoding 'morse'"):
        model.presented("morse", 3)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        model.presented("rate", 0)


def test_test_pictures_go_round(tmp_path):
    pictures = TestPictures("digits", tmp_path)
    number, picture, label = pictures.picture(-1)
    assert (number, picture.shape, picture.dtype) == (359, (1, 28, 28), torch.float32)
    assert 0 <= label <= 9 and picture.min() >= 0 and picture.max() <= 1
    assert torch.equal(pictures.picture(number + 360)[1], picture)
    with pytest.raises(DataError, match="downloading was not allowed"):
        TestPictures("mnist", tmp_path / "none").picture(0)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n\0\0"])
def test_bad_bytes_are_told_of_as_a_bad_file_is(tmp_path, content):
    path = tmp_path / "upload.png"
    path.write_bytes(content)
    with pytest.raises(PictureError) as of_file:
        read_picture(path)
    with pytest.raises(PictureError) as of_bytes:
        read_picture("upload.png", content=content)
    assert str(of_file.value).replace(str(path), "upload.png") == str(of_bytes.value)


# Watching


EPOCH = {
    "kind": "epoch",
    "epoch": 1,
    "step": 40,
    "train_loss": 0.5,
    "train_accuracy": 0.8,
    "validation_loss": 0.4,
    "validation_accuracy": 0.9,
    "spike_rates": {"hidden1": 0.2},
    "learning_rate": 1e-3,
}


def test_a_tail_reads_each_line_once_and_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    with pytest.raises(FileNotFoundError):
        tail.read()
    path.write_bytes(b'{"a": 1}\nnot json\n[1]\n{"b"')
    assert tail.read() and tail.rows == [{"a": 1}]
    assert not tail.read()
    with path.open("ab") as file:
        file.write(b': "\xff"}\n{"c": 3}\n')
    assert tail.read() and tail.rows == [{"a": 1}, {"c": 3}]
    path.write_bytes(b'{"d": 4}\n')  # shorter: written anew
    assert tail.read() and tail.rows == [{"d": 4}]
    other = tmp_path / "other"
    other.write_bytes(b'{"e": 5}\n{"f": 6}\n')
    other.replace(path)  # another file, as a resumed run leaves
    assert tail.read() and tail.rows == [{"e": 5}, {"f": 6}]


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(watching, "INTERVAL", 0.0)
    monkeypatch.setattr(watching, "PAUSE", 0.0)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_run_from_before_its_start_to_after_its_end(tmp_path, hasty):
    folder = tmp_path / "run"
    folder.mkdir()
    watched = WatchedRun(folder)
    watched.look()
    assert (watched.state, watched.problem) == ("waiting for the run to start", None)
    folder.rmdir()

    network = trained(model={"hidden_size": 8, "num_steps": 3}, training={"epochs": 3})
    run = Run(folder, config=network.config.model_dump(mode="json"), record={"dataset": "digits"})
    watched.look()
    assert (watched.state, watched.models) == ("waiting for the first epoch", 0)

    run.save_epoch({"model": network.model.state_dict()}, is_best=True)
    run.write(EPOCH)
    watched.look()
    assert watched.state == "epoch 1 of 3 done, accuracy 90.00%"
    assert (watched.models, watched.trained.dataset, watched.problem) == (1, "digits", None)
    seen, before = watched.records, files(folder)
    watched.look()
    assert files(folder) == before  # looking writes nothing
    assert (watched.models, watched.records) == (1, seen)  # nothing new, nothing loaded

    run.write({**EPOCH, "kind": "step", "epoch": 2, "step": 60, "validation_accuracy": 0.95})
    watched.look()
    assert watched.state == "step 60 in epoch 2 of 3 done, accuracy 95.00%"
    assert watched.records == seen + 1
    curves = watched.curves()
    assert curves["accuracy"]["validation"] == [[1.0, 0.9], [1.5, 0.95]]
    assert curves["spikes per neuron and step"] == {"hidden1": [[1.0, 0.2], [1.5, 0.2]]}
    assert list(curves["loss"]) == ["train", "validation"]

    run.last.write_bytes(b"half a checkpoint")
    watched.look()
    assert "last.pth: damaged" in watched.problem and watched.trained is not None
    run.log("test", accuracy=0.9125)
    run.save_epoch({"model": network.model.state_dict()}, is_best=True)
    watched.look()
    assert (watched.state, watched.problem) == ("finished: test accuracy 91.25%", None)
    assert watched.models == 2

    folder.rename(tmp_path / "moved")
    watched.look()
    assert "is gone; what was read of it is shown" in watched.problem
    assert watched.state == "finished: test accuracy 91.25%"


def test_loading_networks_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    network = trained(model={"hidden_size": 8, "num_steps": 3})
    run = Run(tmp_path / "run", config=network.config.model_dump(mode="json"))
    watched = WatchedRun(run.folder)
    for seconds, loaded in ((100, 1), (105, 1), (111, 2)):
        monkeypatch.setattr(watching.time, "monotonic", clock(seconds))
        run.save_epoch({"model": network.model.state_dict()}, is_best=True)
        watched.look()
        assert watched.models == loaded


def clock(seconds):
    """A clock that goes on by a millisecond whenever it is read."""
    ticks = itertools.count()
    return lambda: seconds + next(ticks) / 1000


def test_many_visitors_look_at_the_disk_as_one(tmp_path):
    watched = WatchedRun(tmp_path)
    watched.look()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "run"}) + "\n")
    watched.look()
    assert watched.records == 0  # too soon after the first look


def test_after_news_the_browser_has_a_pause(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    watched = WatchedRun(tmp_path)
    for seconds, records in ((100, 1), (109, 1), (111, 2), (120, 2), (122, 3)):
        monkeypatch.setattr(watching.time, "monotonic", clock(seconds))
        with path.open("a") as file:
            file.write(json.dumps({"kind": "run"}) + "\n")
        watched.look()
        assert watched.records == records, seconds


def test_a_folder_of_runs_means_its_newest(tmp_path):
    for age, name in ((200, "old"), (100, "new"), (300, "oldest")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "metrics.jsonl"
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert WatchedRun(tmp_path).folder == tmp_path / "new"
    with pytest.raises(NeuroSpikeError, match=r"no such folder; start python -m neurospike\.train"):
        WatchedRun(tmp_path / "none")


# The command


def told(capsys, *flags):
    code = main([*map(str, flags)])
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return code, said.err


def test_mistakes_on_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = told(capsys)
    assert code == 2 and "checkpoints/best_model.pth: cannot read the checkpoint" in said
    code, said = told(capsys, "--port", "http")
    assert code == 2 and "--port: got 'http', wanted a whole number of 0 to 65535" in said
    code, said = told(capsys, "--watch", tmp_path, "--model_path", "x.pth")
    assert code == 2 and "give --model_path or --watch, not both" in said
    code, said = told(capsys, "--watch")
    assert code == 2 and "--watch runs: no such folder" in said
    code, said = told(capsys, "--modelpath", "x.pth")
    assert code == 2 and "did you mean --model_path?" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("neurospike.live.__main__._watched", WatchedRun)  # without its nice
        code, said = told(capsys, "--watch", tmp_path, "--port", port)
    assert code == 2 and f"port {port} cannot be had" in said and "--port 0" in said


def test_without_nicegui(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    for name in [name for name in sys.modules if name.startswith("neurospike.live.p")]:
        monkeypatch.delitem(sys.modules, name)
    code, said = told(capsys)
    assert code == 2 and "the live page needs nicegui" in said
    assert "pip install 'nicegui>=3'" in said
