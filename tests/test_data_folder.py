"""A folder of one's own pictures, from the files to the answer; CIFAR-10 from its files."""

import gc
import io
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import neurospike as ns
from neurospike import evaluate, export, predict, train
from neurospike.config import load_config
from neurospike.data import folder as folders
from neurospike.data import load, load_folder
from neurospike.errors import ConfigError, DataError
from neurospike.live.answering import Answerer, TestPictures
from neurospike.pictures import read_whole
from neurospike.training import load_checkpoint
from neurospike.training.loading import load_trained

COLOURS = {"blue sky": (30, 60, 220), "grass": (40, 200, 60), "rust": (200, 70, 30)}
SMALL = ["--model.hidden_size=16", "--model.num_steps=3", "--batch_size=8"]


def draw(path, colour, number):
    """A picture of some size, in the lower half of the colour, give or take."""
    drawn = np.random.default_rng(number)
    height, width = drawn.integers(9, 40, 2)
    image = drawn.integers(0, 60, (height, width, 3)).astype(np.uint8)
    image[height // 2 :] = np.clip(np.array(colour) + drawn.integers(-20, 20, 3), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def fill(root, count, colours=COLOURS):
    for label, (name, colour) in enumerate(colours.items()):
        for k in range(count):
            ending = ("png", "jpg", "bmp")[k % 3]
            draw(root / name / f"{k}.{ending}", colour, 100 * label + k)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of three classes with ten pictures each."""
    root = tmp_path_factory.mktemp("shapes")
    fill(root, 10)
    (root / "grass" / "notes.txt").write_text("no picture", encoding="utf-8")
    (root / ".cache").mkdir()
    return root


# Reading


@pytest.mark.parametrize(("colour", "shape"), [(True, (3, 12, 12)), (False, (1, 12, 12))])
def test_pictures_of_any_size_become_one_set(shapes, colour, shape):
    data = load_folder(shapes, size=12, colour=colour)
    assert (data.name, data.classes) == ("folder", tuple(COLOURS))
    assert (len(data.train), len(data.test)) == (24, 6)
    assert data.train.shape == data.test.shape == shape
    assert data.train.labels.bincount().tolist() == [8, 8, 8]
    assert "24 training and 6 test pictures of 3 classes" in data.note
    assert f"drawn by seed 0; scaled to 12 x 12, {'colour' if colour else 'grey'}" in data.note
    if colour:  # the colour is the class's
        lower = data.train.images[:, :, 8:].float().mean((2, 3))
        assert torch.equal(lower.argmax(1), torch.tensor([2, 1, 0])[data.train.labels])


def test_names_may_be_in_capitals_and_in_another_encoding(tmp_path):
    fill(tmp_path, 4)
    first = tmp_path / "grass" / "0.png"
    first.rename(first.with_name("0.PNG"))
    second = tmp_path / "rust" / "0.png"
    try:
        second.rename(second.with_name(os.fsdecode(b"gr\xfcn.png")))  # as of Latin-1
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    data = load_folder(tmp_path, size=8)
    assert len(data.train) + len(data.test) == 12


def test_a_folder_that_is_a_file_or_is_not_there_is_called_so(tmp_path):
    (tmp_path / "file").touch()
    for name, what in (("file", "is a file"), ("nowhere", "is not there")):
        with pytest.raises(DataError, match=f"{name} {what}: give by --data_path"):
            load_folder(tmp_path / name)


def test_the_numbers_are_those_of_prediction(shapes):
    read, note = read_whole(shapes / "rust" / "3.png", 12, colour=True)
    assert note is None
    data = load_folder(shapes, size=12, colour=True)
    both = torch.cat([data.train.images, data.test.images])
    assert any(torch.equal(torch.from_numpy(read), picture) for picture in both)


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_read_may_be_handed_to_torch(shapes, colour):
    assert read_whole(shapes / "rust" / "3.png", 12, colour=colour)[0].flags.writeable


def test_the_draw_follows_the_seed_and_stays_when_pictures_come(tmp_path):
    fill(tmp_path, 10)

    def names(**options):
        held = load_folder(tmp_path, size=4, **options).test.images
        return {picture.numpy().tobytes() for picture in held}

    first = names()
    assert first == names() and first != names(seed=1)
    assert len(names(test=0.5)) == 15
    draw(tmp_path / "rust" / "new.png", (200, 70, 30), 999)
    assert len(first & names()) >= 5


def test_folders_train_and_test_are_taken_as_they_are(tmp_path):
    fill(tmp_path / "train", 4)
    fill(tmp_path / "test" / "inner", 0)
    fill(tmp_path / "test", 2, {"grass": COLOURS["grass"]})
    (tmp_path / "train" / "rust" / "deeper").mkdir()
    draw(tmp_path / "train" / "rust" / "deeper" / "x.png", (9, 9, 9), 1)
    data = load_folder(tmp_path)
    assert data.train.labels.bincount().tolist() == [4, 4, 5]
    assert data.test.labels.tolist() == [1, 1]
    assert "drawn" not in data.note
    assert load("folder", tmp_path).classes == data.classes


def test_transparency_16_bits_and_one_colour(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((3, 0), (10, 20, 30, 255))
    clear.save(tmp_path / "clear.png")
    picture, note = read_whole(tmp_path / "clear.png", 8, colour=True)
    assert picture[:, 0, 3].tolist() == [10, 20, 30] and picture[:, 5, 5].tolist() == [255] * 3
    assert note is None and picture.flags.c_contiguous
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture, _ = read_whole(tmp_path / "deep.png", 8, colour=False)
    assert np.abs(picture[0] - deep / 257).max() <= 0.5
    Image.fromarray(np.eye(8, dtype=np.float32)).save(tmp_path / "float.tif")
    picture, _ = read_whole(tmp_path / "float.tif", 8, colour=False)
    assert np.array_equal(picture[0], 255 * np.eye(8))
    Image.new("L", (4, 6), 77).save(tmp_path / "flat.png")
    _, note = read_whole(tmp_path / "flat.png", 8, colour=False)
    assert note == (
        "only 4 x 6 pixels large, and enlarged to 8 x 8; the picture is of one colour all over"
    )


def test_what_a_reader_should_know_of_a_picture(tmp_path):
    def note(*pictures):
        first, *more = pictures
        first.save(tmp_path / "x.tif", save_all=True, append_images=more)
        return read_whole(tmp_path / "x.tif", 8, colour=False)[1]

    def grey(width, height, dark, bright):
        picture = Image.new("L", (width, height), dark)
        picture.paste(bright, (0, 0, width // 2, height))
        return picture

    assert note(grey(8, 4, 70, 90)) is None  # one side is long enough
    assert note(grey(8, 8, 77, 79)) is None
    assert note(grey(8, 8, 77, 78)) == "the picture is of one colour all over"
    assert note(grey(8, 8, 0, 90), grey(8, 8, 0, 91)) == "the first of 2 frames"


def test_a_picture_in_memory_gets_smaller_by_means_of_its_pixels(tmp_path):
    stripes = np.tile(np.uint8([0, 200]), (16, 8))
    Image.fromarray(stripes).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    picture, _ = read_whole("not there.png", 8, colour=False, content=content)
    assert picture.shape == (1, 8, 8) and abs(int(picture[0, 4, 4]) - 100) < 30


def test_transparency_of_every_mode_is_white(tmp_path):
    for mode, clear in (("LA", (0, 0)), ("RGBA", (0, 0, 0, 0))):
        Image.new(mode, (8, 8), clear).save(tmp_path / "x.png")
        assert (read_whole(tmp_path / "x.png", 8, colour=False)[0] == 255).all()
    Image.new("L", (8, 8), 3).save(tmp_path / "x.png", transparency=3)
    assert (read_whole(tmp_path / "x.png", 8, colour=False)[0] == 255).all()


def test_what_is_wrong_with_a_folder_is_told(tmp_path, monkeypatch):
    def refused(root=tmp_path, **options):
        with pytest.raises(DataError) as caught:
            load_folder(root, **options)
        return str(caught.value)

    assert refused(tmp_path / "none").startswith(f"the folder of pictures {tmp_path}/none is not ")
    assert refused().startswith(f"{tmp_path} has no sub-folder: give by --data_path a folder with")
    (tmp_path / "grass").mkdir()
    assert refused().startswith(f"{tmp_path} has the only class grass: give by")
    (tmp_path / "rust").mkdir()
    assert refused().startswith(f"the class grass has no pictures in {tmp_path}/grass: add some")
    fill(tmp_path, 5)
    for k in range(5):
        (tmp_path / "rust" / f"bad{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines = refused().splitlines()
    assert lines[0] == f"5 of 20 pictures in {tmp_path} cannot be read; mend or delete them:"
    assert sum(f"{tmp_path}/rust/bad" in line for line in lines) == 3
    assert lines[-1] == "... and 2 more"
    monkeypatch.setattr(folders, "MOST_BYTES", 5000)
    assert "20 pictures of 28 x 28 take 0.0 GB, and all of a data set are kept" in refused()
    for part in ("train", "test"):
        fill(tmp_path / "parts" / part, 1)
    (tmp_path / "parts" / "test" / "sea").mkdir()
    assert f"{tmp_path}/parts/test has the class sea, which" in refused(tmp_path / "parts")


# Configuration


def test_inputs_follow_from_the_pictures():
    def config(**overrides):
        return load_config(os.devnull, overrides)

    conv = config(dataset="cifar10", **{"model.kind": "conv"})
    assert (conv.model.input_size, conv.model.in_channels, conv.picture) == (3072, 3, (3, 32, 32))
    flags = {"dataset": "folder", "pictures.size": 16, "pictures.colour": "true"}
    mlp = config(**flags, preprocessing="[{kind: resize, size: 8}]")
    assert (mlp.model.input_size, mlp.model.in_channels, mlp.picture) == (192, 1, (3, 16, 16))
    for key, value, said in (
        ("model.input_size", 100, "model.input_size: got 100, but the pictures of folder have 768"),
        ("encoding.kind", "pixels", "encoding.kind pixels reads pictures of one channel"),
    ):
        with pytest.raises(ConfigError, match=said):
            config(**flags, **{key: value})
    with pytest.raises(ConfigError, match=r"the 5 stages of channels .* halves the picture"):
        config(**flags, **{"model.kind": "conv", "model.channels": "1,2,3,4,5"})
    with pytest.raises(ConfigError, match=r"image_size: no such key; did you mean pictures\.size"):
        config(image_size=3)


@pytest.mark.parametrize("kind", [ns.ConvSNN, ns.ResidualSNN])
def test_networks_take_channels(kind):
    model = kind(input_size=3 * 8 * 8, in_channels=3, channels=[2, 3], num_steps=2)
    assert model(torch.rand(4, 3, 8, 8)).shape == (4, 10)
    with pytest.raises(ValueError, match=r"pictures must be \[B, 3, 8, 8\], as input_size and"):
        model(torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="got 3072; of coloured pictures give in_channels=3"):
        kind(input_size=3072)
    with pytest.raises(ValueError, match="times in_channels=3, such as 2352, got 784"):
        kind(input_size=784, in_channels=3)


# From the command line


@pytest.fixture(scope="module")
def trained_folder(shapes, tmp_path_factory):
    """A working folder in which a network of the shapes was trained, and what was said."""
    work = tmp_path_factory.mktemp("work")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(sys, "stdout", said)
        argv = ["--dataset=folder", f"--data_path={shapes}", "--pictures.colour=true"]
        argv += ["--pictures.size=8", "--epochs=30", "--learning_rate=1e-2", "--run_dir=out"]
        assert train.main([*argv, "--training.validation=0.25", *SMALL]) == 0
    return work, said.getvalue()


def test_trained_resumed_evaluated_and_predicted(
    trained_folder, shapes, tmp_path, monkeypatch, capsys
):
    work, said = trained_folder
    monkeypatch.chdir(work)
    assert "test accuracy: 100.00%" in said
    checkpoint = load_checkpoint("checkpoints/best_model.pth")
    assert checkpoint["record"]["classes"] == list(COLOURS)
    assert checkpoint["config"]["model"]["output_size"] == 3
    assert checkpoint["temperature"] > 0

    assert evaluate.main(["--pictures=seen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(k for k, line in enumerate(lines) if line.startswith("label "))
    assert lines[header].split() == ["label", "accuracy", "blue", "sky", "grass", "rust"]
    for line, name in zip(lines[header + 1 :], COLOURS, strict=False):
        assert line.startswith(f"{name:>8}   100.00%") and len(line) == len(lines[header])
    assert any(line.startswith("confidence and share of right answers differ") for line in lines)
    assert (work / "seen" / "weights.png").is_file()

    draw(tmp_path / "new.png", COLOURS["grass"], 777)
    assert predict.main(["--image_path", str(tmp_path / "new.png"), "--plot=plot.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/new.png: grass, confidence ")
    assert [f"{name} " in lines[1] for name in COLOURS] == [True] * 3
    assert "digit" not in "".join(lines)
    assert predict.main(["--image_path", str(tmp_path / "new.png"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["digit"], row["label"]) == (1, "grass")
    softmax = (torch.tensor(row["scores"]) / checkpoint["temperature"]).softmax(0)
    assert row["confidence"] == pytest.approx(softmax.tolist(), abs=1e-6)

    gc.collect()  # the lock of a run ends with its process, which this one still is
    assert train.main(["--resume=out", "--epochs=31"]) == 0
    assert "epoch 31/31" in capsys.readouterr().out
    other = tmp_path / "other"
    fill(other, 2, {"a": (0, 0, 0), "b": (9, 9, 9), "c": (99, 0, 0)})
    assert evaluate.main([f"--data_path={other}"]) == 2
    assert "the classes in" in (told := capsys.readouterr().err) and "are a, b, c, and" in told
    assert evaluate.main(["--dataset=digits"]) == 2
    assert "the pictures of digits are 28 x 28, and the network learnt from 8 x 8 with 3 chan" in (
        capsys.readouterr().err
    )


@pytest.mark.filterwarnings("error:Glyph")
def test_long_or_wide_names_of_classes_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["strawberry_red", "strawberry_wild", "\u732b", "cafe\u0301"]
    fill(tmp_path / "own", 5, {name: (60 * k, 0, 0) for k, name in enumerate(names)})
    argv = ["--dataset=folder", "--data_path=own", "--pictures.size=8", "--epochs=1"]
    assert train.main([*argv, "--run_dir=out", *SMALL]) == 0
    # DejaVu Sans, which comes with matplotlib, has accents and no Chinese signs.
    told = "confusion_matrix.png: the font has no signs for \u732b, they are drawn as boxes; font."
    assert capsys.readouterr().err.startswith(f"out/{told}")
    assert evaluate.main(["--model_path=out/checkpoints/best_model.pth", "--pictures=seen"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"seen/{told}") and said.err.count("\n") == 1
    lines = said.out.splitlines()
    header = next(k for k, line in enumerate(lines) if line.startswith("label "))
    assert lines[header - 1].endswith("(row), by the number of what was answered (column):")
    assert lines[header].split() == ["label", "accuracy", "0", "1", "2", "3"]
    rows = [line[: line.index("%") - 6] for line in lines[header + 1 : header + 5]]
    # The accent takes no cell of a terminal, the Chinese sign two.
    order = ["cafe\u0301" + 11 * " ", "strawberry_red ", "strawberry_wild", "\u732b" + 13 * " "]
    assert rows == [f"{k} {name}   " for k, name in enumerate(order)]


def test_a_network_of_coloured_pictures_is_exported(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder[0])
    assert export.main(["--out=net.pt2", "--backend=reference"]) == 0
    assert "the same class for 360 of 360 pictures" in capsys.readouterr().out
    net = torch.export.load("net.pt2").module()
    pictures = torch.rand(3, 3, 8, 8)
    expected = ns.load_model("checkpoints/best_model.pth")(pictures)
    torch.testing.assert_close(net(pictures), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_is_too_small_is_told_of_the_classes(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset=folder", f"--data_path={shapes}", "--model.output_size=2", *SMALL]
    assert train.main(argv) == 2
    assert "model.output_size: got 2, but folder has 3 classes" in capsys.readouterr().err


def test_the_live_page_shows_colours_and_names(trained_folder, shapes):
    trained = load_trained(trained_folder[0] / "checkpoints" / "best_model.pth")
    config = trained.config
    pictures = TestPictures(trained.dataset, config.data_path, config.folder_options())
    number, picture, label = pictures.picture(-1)
    assert (number, picture.shape, label) == (5, (3, 8, 8), 2)
    film = Answerer(trained).answer(picture, Answerer(trained).default)
    predicted, _ = predict.predict(trained, picture)
    assert film["classes"] == list(COLOURS)
    assert film["confidence"] == pytest.approx(predicted.confidence, abs=1e-5)
    assert film["votes"][-1] == pytest.approx(film["confidence"], abs=2e-5)
    assert (film["picture"]["count"], film["picture"]["coloured"]) == (1, True)
    assert (film["input"]["height"], film["input"]["width"]) == (8, 8)


# CIFAR-10


def write_cifar(root, count=4, changes=None):
    """Its files as torchvision unpacks them, with pictures of one colour by label."""
    inside = root / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        labels = [(number + k) % 10 for k in range(count)]
        pixels = np.repeat(np.array(labels, np.uint8)[:, None] * 20, 3072, 1)
        pixels[:, :1024] += 9  # the reds
        batch = {b"data": pixels, b"labels": labels, b"batch_label": b"x", **(changes or {})}
        with (inside / name).open("wb") as file:
            pickle.dump(batch, file, protocol=2)
    return inside


def test_cifar10_is_read_from_its_files(tmp_path):
    write_cifar(tmp_path)
    data = load("cifar10", tmp_path)
    assert (len(data.train), len(data.test), data.train.shape) == (20, 4, (3, 32, 32))
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.test.labels.tolist() == [5, 6, 7, 8]
    assert data.test.images[0, :, 3, 4].tolist() == [109, 100, 100]


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({b"labels": [0, 1]}, "2 labels"),
        ({b"labels": [0, 1, 2, 10]}, "labels must be 0 to 9"),
        ({b"data": np.zeros((4, 3))}, r"pictures float64 \[4, 3\]"),
        ({b"extra": Evil()}, "it holds more than arrays: __builtin__.print"),
    ],
)
def test_damaged_files_of_cifar10_are_named_and_run_nothing(tmp_path, capsys, changes, said):
    inside = write_cifar(tmp_path, changes=changes)
    with pytest.raises(DataError, match=said) as caught:
        load("cifar10", tmp_path)
    assert str(caught.value).startswith(
        f"{inside}/data_batch_1 cannot be read as a file of cifar10"
    )
    assert capsys.readouterr().out == ""


def test_missing_cifar10_says_where_from_and_where_to(tmp_path):
    (write_cifar(tmp_path) / "test_batch").unlink()
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    said = str(caught.value)
    assert said.startswith(f"cifar10 is not whole in {tmp_path}/cifar-10-batches-py: test_batch is")
    assert "www.cs.toronto.edu/~kriz/cifar.html and unpack it in" in said


def test_cifar10_is_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data", count=8)
    assert train.main(["--dataset=cifar10", "--epochs=1", "--run_dir=out", *SMALL]) == 0
    assert "cifar10 (40 training and 8 test pictures from" in capsys.readouterr().out
    trained = load_trained("out/checkpoints/best_model.pth")
    assert trained.classes[9] == "truck" and trained.model.input_size == 3072
