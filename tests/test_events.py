"""Recordings of events: binned as counted by hand, read by tonic's classes, trained on."""

import importlib
import importlib.util
import json
import shutil
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import US, WRITERS, counted, events_of, needs_tonic, write_nmnist, write_shd

from neurospike import data, evaluate, export, predict, train
from neurospike.config.schema import RECORDED
from neurospike.data import Batches, Binning, Recordings
from neurospike.data.events import SOURCES
from neurospike.errors import DataError, MissingDependencyError

SENSORS = [(700, 1, 1), (34, 34, 2), (128, 128, 2)]


def structured(events, sides):
    """As tonic has them."""
    names = ("t", "x", "p") if sides[1] == 1 else ("t", "x", "y", "p")
    columns = dict(zip(("t", "x", "y", "p"), events.T))
    found = np.empty(len(events), dtype=[(name, np.int64) for name in names])
    for name in names:
        found[name] = columns[name]
    return found


@pytest.mark.parametrize("sides", SENSORS)
@pytest.mark.parametrize(
    "options",
    [{"time_bin": 4}, {"time_bin": 0.7, "pool": 2}, {"bins": 7}, {"bins": 20, "pool": 2}],
)
def test_frames_are_those_counted_one_by_one(sides, options):
    random = np.random.default_rng(0)
    events = events_of(3, 10, sides, 400, 0.05, random)
    events = random.permutation(events)  # in any order, from any time
    events[:, 0] += 123_456
    frames = Binning(sides, **options)(structured(events, sides))
    assert frames.dtype == torch.float32
    assert np.array_equal(frames.numpy(), counted(events, sides, **{"time_bin": 10, **options}))
    assert frames.sum() == len(events)


def test_a_recording_without_events_is_a_silent_step_or_as_many_as_wanted():
    none = structured(np.zeros((0, 4), np.int64), (34, 34, 2))
    assert Binning((34, 34, 2))(none).shape == (1, 2, 34, 34)
    found = Binning((34, 34, 2), bins=5, pool=2)(none)
    assert found.shape == (5, 2, 17, 17)
    assert not found.any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"time_bin": 0}, ValueError, r"time_bin must be at least 0\.001 ms, got 0"),
        ({"time_bin": float("nan")}, ValueError, "time_bin must be at least"),
        ({"time_bin": "4"}, TypeError, "time_bin must be a number of milliseconds, got '4'"),
        ({"bins": 0}, ValueError, "bins must be at least 1, got 0"),
        ({"bins": 2.5}, TypeError, "bins must be a whole number, got 2.5"),
        ({"pool": True}, TypeError, "pool must be a whole number, got True"),
        ({"pool": 3}, ValueError, "pool must divide the sensor's 700, got 3"),
        ({"sensor_size": (700,)}, ValueError, r"sensor_size must be \(width, height, polarities"),
        ({"sensor_size": (700, 1, 0)}, ValueError, r"each at least 1, got \(700, 1, 0\)"),
    ],
)
def test_a_binning_refuses_what_has_no_meaning(options, kind, message):
    with pytest.raises(kind, match=message):
        Binning(**{"sensor_size": (700, 1, 1), **options})


def test_events_outside_the_sensor_and_too_many_steps_are_refused():
    outside = structured(np.array([[0, 700, 0, 0]]), (700, 1, 1))
    with pytest.raises(ValueError, match="events have x from 0 to 700, and the sensor's are 0 to"):
        Binning((700, 1, 1))(outside)
    for name, wrong in (("t", np.nan), ("x", -np.inf)):
        events = {key: np.array([0.0, 5.0, 6.0]) for key in ("t", "x", "p")}
        assert Binning((700, 1, 1))(events).sum() == 3
        events[name][1] = wrong
        wanted = rf"events have {name}={wrong} at 1 of 3 places, the first is 1: leave these events"
        with pytest.raises(ValueError, match=wanted):
            Binning((700, 1, 1))(events)
    long = structured(np.array([[0, 0, 0, 0], [7 * US, 0, 0, 0]]), (128, 128, 2))
    with pytest.raises(ValueError, match=r"7000001 steps of 2 x 128 x 128 are too many .* of 7 s"):
        Binning((128, 128, 2), time_bin=0.001)(long)


def some_recordings(count=23, shape=(2, 3), seed=0):
    """Recordings of 1 to 9 steps, and their frames."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (count,), generator=generator)
    counts = torch.randint(0, 30, (count,), generator=generator)
    size = int(np.prod(shape))
    cells = [
        torch.randint(int(length) * size, (int(n),), generator=generator, dtype=torch.int32)
        for length, n in zip(lengths, counts)
    ]
    frames = [
        torch.bincount(one, minlength=int(length) * size).view(-1, *shape).float()
        for one, length in zip(cells, lengths)
    ]
    labels = torch.arange(count) % 5
    return Recordings(torch.cat(cells), counts, lengths, labels, shape), frames


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_of_recordings_are_their_frames_padded(rank):
    recordings, frames = some_recordings()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    batches = Batches(
        recordings,
        5,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        smallest=1,
        rank=rank,
        world=2,
    )
    for index, (sequences, lengths, labels) in enumerate(batches):
        chosen = order[5 * index : 5 * index + 5][rank::2].tolist()
        assert sequences.dtype == torch.float32
        wanted, own, right = data.collate([(frames[k], k % 5) for k in chosen])
        assert torch.equal(sequences, wanted)
        assert torch.equal(lengths, own)
        assert torch.equal(labels, right)
    assert index == 4


def test_places_in_a_batch_may_be_beyond_what_32_bits_count():
    """As of a long recording among many; its cells are not, for there are no others in a frame."""
    last = 2**31 - 700
    one, three = torch.tensor([1, 0, 0]), torch.arange(3)
    cells = torch.tensor([last], dtype=torch.int32)
    recordings = Recordings(cells, one, 1 + one * last // 700, three, (700,))
    places, *_ = recordings.gather(recordings.tensors, three, three)
    step, place = divmod(last, 700)
    assert places.tolist() == [step * 3 * 700 + place]


def test_a_process_without_a_recording_gets_an_empty_batch():
    recordings, _ = some_recordings(1)
    (batch,) = Batches(recordings, 5, smallest=1, rank=1, world=2)
    assert [len(part) for part in batch[1:]] == [0, 0]
    assert batch[0].shape == (int(recordings.lengths), 0, 2, 3)


def test_a_part_of_recordings_has_their_events():
    recordings, frames = some_recordings()
    rest, held_out = recordings.split(0.3, seed=4)
    assert (len(rest), len(held_out)) == (16, 7)
    again = recordings.split(0.3, seed=4)[1]
    assert torch.equal(again.cells, held_out.cells)
    found = {}
    for part in (rest, held_out):
        for sequences, lengths, _ in Batches(part, 1):
            assert len(sequences) == int(lengths)
            found[sequences.numpy().tobytes()] = found.get(sequences.numpy().tobytes(), 0) + 1
    for one in frames:
        assert found[one.unsqueeze(1).contiguous().numpy().tobytes()] >= 1
    with pytest.raises(ValueError, match="fraction must be at least 0 and below 1, got 1"):
        recordings.split(1, seed=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cells", torch.zeros(9).long(), r"cells must be int32 \[E\], got torch.int64 \[9\]"),
        ("counts", torch.tensor([4, 4]), "counts add up to 8, but there are 9 cells"),
        ("lengths", torch.tensor([4.0, 5.0]), r"lengths must be int64 \[N\].* torch.float32 \[2\]"),
        ("labels", torch.tensor([1]), r"counts must be int64 \[N\], one number per recording"),
    ],
)
def test_recordings_refuse_tensors_that_do_not_fit(name, value, message):
    given = {
        "cells": torch.zeros(9, dtype=torch.int32),
        "counts": torch.tensor([4, 5]),
        "lengths": torch.tensor([1, 1]),
        "labels": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        Recordings(**{**given, name: value}, shape=(3,))


@pytest.fixture
def offline(monkeypatch):
    """No network; what was asked for."""
    asked = []

    def urlopen(request, *args, **kwargs):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@needs_tonic
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("options", [{"time_bin": 8, "pool": 2}, {"bins": 6}])
def test_each_data_set_is_read_from_files_in_its_own_format(name, options, tmp_path, offline):
    made = WRITERS[name](tmp_path)
    source = SOURCES[name]
    found = data.load_recordings(name, tmp_path, **options)
    for part, recordings in (("train", found.train), ("test", found.test)):
        wanted = {}
        for events, label in made[part]:
            frames = counted(events, source.sensor_size, **{"time_bin": 10, **options})
            wanted.setdefault(label, []).append(torch.from_numpy(frames))
        assert len(recordings) == sum(map(len, wanted.values()))
        for sequences, _, label in Batches(recordings, 1):
            alike = [torch.equal(one, sequences[:, 0]) for one in wanted[int(label)]]
            assert alike.count(True) == 1
            del wanted[int(label)][alike.index(True)]
    assert not offline
    assert found.note.startswith(f"{name} ({len(found.train)} training and {len(found.test)} test")
    assert str(tmp_path / source.tonic) in found.note


@needs_tonic
def test_events_are_handed_on_as_tonic_has_them(tmp_path, offline):
    from tonic.datasets import NMNIST

    made = write_nmnist(tmp_path)
    found = data.open_recordings("nmnist", tmp_path, train=False)
    assert type(found) is NMNIST  # so that worker processes can be given it
    events, label = found[3]
    assert (label, label) == (made["test"][3][1], 1)
    assert np.array_equal(events["t"], made["test"][3][0][:, 0])
    binning = Binning(NMNIST.sensor_size, bins=4)
    loader = torch.utils.data.DataLoader(
        data.open_recordings("nmnist", tmp_path, transform=binning), 5, collate_fn=data.collate
    )
    sequences, lengths, labels = next(iter(loader))
    assert sequences.shape == (4, 5, 2, 34, 34)
    assert lengths.tolist() == [4] * 5
    assert labels.tolist() == [0, 0, 1, 1, 2]


@needs_tonic
@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_download_is_one_line_that_says_what_to_do(name, tmp_path, offline):
    with pytest.raises(DataError) as caught:
        data.load_recordings(name, tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert f"{name} is not whole in {tmp_path / SOURCES[name].tonic}" in said
    assert "could not be downloaded (" in said
    assert "put its files there" in said and SOURCES[name].train in said
    assert offline and not (tmp_path / SOURCES[name].tonic).exists()
    offline.clear()
    with pytest.raises(DataError, match="downloading was not allowed"):
        data.load_recordings(name, tmp_path, download=False)
    assert not offline


@needs_tonic
def test_an_archive_that_was_not_unpacked_to_its_end_is_not_taken_for_whole(tmp_path, offline):
    write_nmnist(tmp_path)
    (tmp_path / "NMNIST" / "train.zip").write_bytes(b"the archive beside which 20 files are few")
    with pytest.raises(DataError, match=r"nmnist is not whole in .* could not be downloaded"):
        data.load_recordings("nmnist", tmp_path)


@needs_tonic
def test_damaged_files_are_one_line(tmp_path, offline):
    write_shd(tmp_path)
    (tmp_path / "SHD" / "shd_test.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"^shd in .*SHD cannot be read \(.*\): replace its files"):
        data.load_recordings("shd", tmp_path)
    gestures = tmp_path / "DVSGesture"
    WRITERS["dvs_gesture"](tmp_path)
    broken = next(gestures.glob("ibmGestureTrain/*/4.npy"))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"dvs_gesture in .*, recording \d+ cannot be read"):
        data.load_recordings("dvs_gesture", tmp_path)
    np.save(broken, np.array([[128, 0, 0, 0]]))
    with pytest.raises(DataError, match=r"recording \d+: events have x from 0 to 128"):
        data.load_recordings("dvs_gesture", tmp_path)
    shutil.move(broken, broken.with_name("11.npy"))
    np.save(broken.with_name("11.npy"), np.array([[0, 0, 0, 0]]))
    with pytest.raises(DataError, match="has labels from 0 to 11, and they should be 0 to 10"):
        data.load_recordings("dvs_gesture", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the data path .*file is a file: give the folder"):
        data.load_recordings("shd", tmp_path / "file")


def test_the_configuration_knows_the_data_sets():
    assert tuple(SOURCES) == RECORDED


def test_an_unknown_name_and_a_lack_of_tonic_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="unknown data set 'sdh': did you mean 'shd'"):
        data.load_recordings("sdh", tmp_path)
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(MissingDependencyError, match=r"pip install -U tonic$"):
        data.load_recordings("shd", tmp_path)


def flags(tmp_path, *more):
    return [
        "--dataset=shd",
        f"--data_path={tmp_path}",
        "--encoding.kind=none",
        "--events.pool=5",
        "--model.input_size=140",
        "--model.output_size=20",
        "--hidden_size=24",
        "--batch_size=8",
        "--training.validation=0.1",
        "--learning_rate=0.02",
        "--training.schedule=constant",
        "--training.warmup=0",
        *more,
    ]


@needs_tonic
def test_the_commands_train_test_and_go_on_on_recordings(tmp_path, monkeypatch, capsys, offline):
    write_shd(tmp_path, each=4)
    monkeypatch.chdir(tmp_path)
    assert train.main(flags(tmp_path, "--epochs=6", "--run_dir=whole")) == 0
    said = capsys.readouterr().out
    assert "shd (80 training and 80 test recordings" in said
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    tested = rows[-1]["accuracy"]
    assert tested > 0.3
    names = {path.name for path in (tmp_path / "whole").glob("*.png")}
    assert {"confusion_matrix.png", "firing_rates.png"} <= names

    assert evaluate.main(["--model_path=whole/checkpoints/best_model.pth", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == tested
    assert result["a_picture"]["macs"] > 0
    argv = ["--model_path=whole/checkpoints/best_model.pth", "--no_pictures"]
    assert evaluate.main(argv) == 0
    said = capsys.readouterr().out
    assert "recordings that show a label (row), by what was answered" in said
    assert "per recording " in said

    # Half of it, and then the rest, is the whole bit for bit.
    assert train.main(flags(tmp_path, "--epochs=3", "--run_dir=half", "--tensorboard")) == 0
    assert train.main(["--resume=half", "--epochs=6"]) == 0
    one, other = (
        torch.load(f"{run}/checkpoints/last.pth", weights_only=True)["model"]
        for run in ("whole", "half")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    capsys.readouterr()

    model = "--model_path=whole/checkpoints/best_model.pth"
    (tmp_path / "x.png").write_bytes(b"")
    live = importlib.import_module("neurospike.live.__main__")
    for command in (
        lambda: predict.main([model, "x.png"]),
        lambda: export.main([model, "--out=x.pt2"]),
        lambda: live.main([model]),
    ):
        assert command() == 2
        assert "was trained on recordings of events (shd), and a picture is none" in (
            capsys.readouterr().err
        )
    assert evaluate.main([model, "--dataset=digits"]) == 2
    assert "--dataset: digits has pictures, and the network was trained on recordings (shd)" in (
        capsys.readouterr().err
    )


@needs_tonic
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model.input_size=700"],
            "model.input_size: got 700, but the frames of shd have 140 values with events.pool 5",
        ),
        (["--model.output_size=10"], "model.output_size: got 10, but shd has 20 classes"),
        (["--events.pool=3"], "events.pool: pool must divide the sensor's 700, got 3"),
        (["--encoding.kind=rate"], "dataset shd has recordings, got encoding.kind rate: use none"),
        (
            ["--dataset=digits"],
            "dataset digits has pictures, got encoding.kind none: use constant, or a dataset of "
            "shd, nmnist, dvs_gesture",
        ),
        (
            ["--model.kind=conv", "--model.input_size=144"],
            "dataset shd has recordings, and model.kind conv takes pictures: use mlp",
        ),
        (
            ["--preprocessing=[deskew]"],
            "dataset shd has recordings, and preprocessing is for pictures: leave it out",
        ),
        (["--events.time_bin=0"], "--events.time_bin: got '0', allowed: a number >= 0.001"),
        ([], "shd is not whole in"),
    ],
)
def test_a_run_that_cannot_be_is_told_of_in_a_line(
    more, message, tmp_path, monkeypatch, capsys, offline
):
    monkeypatch.chdir(tmp_path)
    argv = [flag for flag in flags(tmp_path) if flag.split("=")[0] not in str(more)]
    assert train.main([*argv, *more, "--epochs=1"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_without_tonic_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tonic" else find(name)
    )
    monkeypatch.chdir(tmp_path)
    assert train.main(flags(tmp_path)) == 2
    assert capsys.readouterr().err == (
        "error: dataset shd is read by tonic, which is not installed: pip install -U tonic\n"
    )
