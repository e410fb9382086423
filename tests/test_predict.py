"""Prediction from picture files: what is read, how it is framed, and what is refused."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mnist import mnist_root
from PIL import Image, ImageDraw

import neurospike as ns
from neurospike import predict, train
from neurospike.data import load
from neurospike.errors import CheckpointError, MissingDependencyError, PictureError
from neurospike.live.__main__ import main as live_main
from neurospike.pictures import read_picture
from neurospike.pictures.doubts import SEVERAL, doubts
from neurospike.pictures.doubts import side_by_side as side_by_side_found
from neurospike.training import load_checkpoint, save_checkpoint
from neurospike.training.loading import load_trained
from neurospike.visualization.prediction import draw_predictions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A network trained for a few seconds on the bundled digits."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        argv = ["--dataset=digits", "--epochs=4", "--run_dir=out", "--learning_rate=4e-3"]
        assert train.main(argv) == 0
    finally:
        os.chdir(before)
    return folder / "checkpoints" / "best_model.pth"


@pytest.fixture(scope="module")
def digits():
    return load("digits", "unused").test


def run(capsys, model, *argv):
    """Exit code, standard output's lines and standard error's lines of the command."""
    code = predict.main(["--model_path", str(model), *map(str, argv)])
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err.splitlines()


def draw_seven(size=(120, 160), ink=0, paper=255, mode="L"):
    image = Image.new("L", size, paper)
    pen = ImageDraw.Draw(image)
    w, h = size
    pen.line([(w * 0.3, h * 0.2), (w * 0.7, h * 0.2), (w * 0.45, h * 0.8)], fill=ink, width=w // 12)
    return image.convert(mode)


# What is said of a picture


def test_pictures_of_the_data_set_get_the_models_own_scores(tmp_path, capsys, model_path, digits):
    model = ns.load_model(model_path)
    temperature = load_checkpoint(model_path)["temperature"]
    for k in range(20):
        Image.fromarray(digits.images[k].numpy()).save(tmp_path / f"{k:02}.png")
    code, out, err = run(capsys, model_path, "--image-path", tmp_path, "--json")
    assert (code, err) == (0, [])
    for k, row in enumerate(map(json.loads, out)):
        images = digits.images[k][None].float() / 255
        scores, activity = model(images, return_activity=True)
        assert row["scores"] == scores[0].tolist()
        assert row["digit"] == int(scores.argmax()) and row["label"] == str(row["digit"])
        assert row["temperature"] == temperature
        assert row["confidence"] == pytest.approx((scores[0] / temperature).softmax(0).tolist())
        fired = activity["hidden1"][:, 0]
        assert row["spikes"]["hidden1"] == {
            "count": int(fired.sum()),
            "rate": pytest.approx(fired.mean().item()),
            "first_step": int(fired.any(1).nonzero()[0]),
        }
        assert row["path"] == str(tmp_path / f"{k:02}.png")


def test_enlarged_moved_and_inverted_pictures_are_still_recognised(tmp_path, model_path, digits):
    trained = load_trained(model_path)
    right = 0
    for k in range(100):
        digit = Image.fromarray(digits.images[k].numpy()).resize((90, 90))
        page = Image.new("RGB", (240, 200), "white")
        page.paste(Image.eval(digit, lambda v: 255 - v).convert("RGB"), (20 + k, k))
        page.save(tmp_path / "page.jpg")
        picture, _ = read_picture(tmp_path / "page.jpg", dataset=trained.dataset)
        prediction, _ = predict.predict(trained, picture)
        right += prediction.digit == int(digits.labels[k])
    assert right >= 75  # of the same pictures as they are: about 90; 8 x 8 grids blur


def test_text_tells_digit_confidences_and_spikes(tmp_path, capsys, model_path):
    draw_seven().save(tmp_path / "seven.png")
    code, out, _ = run(capsys, model_path, "--image_path", tmp_path / "seven.png")
    assert code == 0
    assert out[0].startswith(f"{tmp_path}/seven.png: ")
    assert "confidence" in out[0]
    assert [f"{k} " in out[1] for k in range(10)] == [True] * 10
    assert out[2].startswith("  hidden1 ")
    assert "first at step" in out[2]


def test_spiking_readout_tells_counts_and_first_steps_a_class(tmp_path, capsys, model_path):
    state = load_checkpoint(model_path)
    state["config"]["model"]["readout"] = "spikes"
    state["model"]["output.threshold"] = torch.tensor(1.0)
    save_checkpoint(state, tmp_path / "spiking.pth")
    draw_seven().save(tmp_path / "seven.png")
    path = tmp_path / "spiking.pth"
    code, out, _ = run(capsys, path, "--image_path", tmp_path / "seven.png", "--json")
    row = json.loads(out[0])
    assert code == 0
    model = ns.load_model(path)
    picture, _ = read_picture(tmp_path / "seven.png", dataset="digits")
    spikes = model(picture[None], return_activity=True)[1]["output"][:, 0]
    assert row["output_counts"] == spikes.sum(0).tolist()
    for train_of_class, first in zip(spikes.T, row["output_first_steps"], strict=True):
        when = train_of_class.nonzero()
        assert first == (int(when[0]) if len(when) else None)
    assert any(first is None for first in row["output_first_steps"])
    out = run(capsys, path, "--image_path", tmp_path / "seven.png")[1]
    assert out[-2].startswith("  output spikes 0 ")
    assert out[-1].startswith("  first spike at step 0 ")


def test_random_encoding_predicts_the_same_every_time(tmp_path, capsys, model_path):
    state = load_checkpoint(model_path)
    state["config"]["encoding"]["kind"] = "rate"
    save_checkpoint(state, tmp_path / "rate.pth")
    draw_seven().save(tmp_path / "7.png")
    args = (tmp_path / "rate.pth", "--image_path", tmp_path / "7.png", tmp_path / "7.png", "--json")
    before = torch.get_rng_state()
    _, (first, second), _ = run(capsys, *args)
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_plot_shows_at_most_eight(tmp_path, capsys, model_path):
    draw_seven().save(tmp_path / "7.png")
    names = [tmp_path / "7.png"] * 10
    plot = tmp_path / "out.png"
    code, _, err = run(capsys, model_path, "--image_path", *names, "--plot", plot)
    assert code == 0
    assert err == [f"{plot}: shows the first 8 of 10 pictures"]
    assert Image.open(plot).size[1] > 1000


def test_a_plot_has_room_for_the_names_of_classes(tmp_path):
    names = [f"a class of which there are more, number {number}" for number in range(50)]
    answer = SimpleNamespace(path="p.png", digit=3, label=names[3], confidence=[0.02] * 50)
    rows = [(answer, torch.rand(1, 8, 8), {"hidden1": torch.ones(2, 3)})]
    heights = []
    for classes in ([name[-2:] for name in names], names):
        draw_predictions(rows, tmp_path / "plot.png", classes)
        with Image.open(tmp_path / "plot.png") as drawn:
            heights.append(drawn.height)
    assert heights[0] < 320 and heights[1] > 600


def test_a_plot_has_no_halves_of_time_steps(tmp_path, monkeypatch):
    answer = SimpleNamespace(path="p.png", digit=0, label="0", confidence=[0.5, 0.5])
    train, kept = torch.eye(4, 3), []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    draw_predictions([(answer, torch.rand(1, 8, 8), {"hidden1": train})], "p.png", ["0", "1"])
    raster = kept[0].axes[2]
    assert all(tick == round(tick) for tick in (*raster.get_xticks(), *raster.get_yticks()))
    (marks,) = raster.lines
    assert sorted(zip(*marks.get_data(), strict=True)) == [(0, 0), (1, 1), (2, 2)]
    assert marks.get_markersize() == 8


def test_a_plot_that_could_not_be_drawn_is_refused_before_anything_is_predicted(
    tmp_path, capsys, model_path
):
    draw_seven().save(tmp_path / "7.png")
    (tmp_path / "folder.png").mkdir()
    for plot, said in {
        "no/x.png": f"{tmp_path}/no/x.png: cannot draw into this file: there is no folder",
        "folder.png": f"{tmp_path}/folder.png: cannot draw into this file: it is a folder",
        "out.xyz": f"--plot {tmp_path}/out.xyz: got the ending '.xyz', allowed: ",
        "out": f"--plot {tmp_path}/out: got the ending '', allowed: ",
    }.items():
        argv = ["--image_path", tmp_path / "7.png", "--plot", tmp_path / plot]
        code, out, err = run(capsys, model_path, *argv)
        assert (code, out, len(err)) == (2, [], 1)
        assert err[0].startswith(f"error: {said}")


# How pictures are read


def picture_of(tmp_path, image, name="p.png", dataset="mnist", **options):
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name, dataset=dataset)[0]


def test_training_pictures_are_taken_as_they_are(tmp_path, digits):
    for k in range(50):
        image = digits.images[k]
        read = picture_of(tmp_path, Image.fromarray(image.numpy()), dataset="digits")
        assert torch.equal(read, image.float() / 255)
        read = picture_of(tmp_path, Image.fromarray(255 - image.numpy()), dataset="digits")
        torch.testing.assert_close(read, image.float() / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK", "YCbCr"])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_the_same_digit_in_every_mode_and_polarity(tmp_path, mode, ink, paper):
    wanted = picture_of(tmp_path, draw_seven(ink=255, paper=0))
    image = draw_seven(ink=ink, paper=paper)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(image).astype(np.float32) * 3 - 70)
    else:
        image = image.convert(mode)
    kind = "tiff" if mode in ("F", "CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"p.{kind}")
    try:
        with Image.open(tmp_path / f"p.{kind}") as written:
            written.load()
    except OSError as error:  # Pillow 12 and YCbCr
        pytest.skip(f"this Pillow cannot read what it wrote: {error}")
    read, _ = read_picture(tmp_path / f"p.{kind}", dataset="mnist")
    torch.testing.assert_close(read, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("colour", [0, 255])
def test_transparent_paper_is_what_the_ink_stands_out_from(tmp_path, colour):
    alpha = draw_seven(ink=255, paper=0)
    image = Image.merge("LA", (Image.new("L", alpha.size, colour), alpha))
    wanted = picture_of(tmp_path, draw_seven(ink=255, paper=0))
    torch.testing.assert_close(picture_of(tmp_path, image), wanted, rtol=0, atol=0.02)


def test_a_digit_is_framed_as_mnist_frames_it(tmp_path):
    read = picture_of(tmp_path, draw_seven((400, 600)))
    rows, columns = read.sum(1), read.sum(0)
    assert int((rows > 0).sum()) == 20
    assert read.max() == 1
    middle = (read.sum(1) * torch.arange(28)).sum() / read.sum()
    across = (columns * torch.arange(28)).sum() / read.sum()
    assert abs(middle - 13.5) <= 0.6
    assert abs(across - 13.5) <= 0.6


def test_ink_can_be_said(tmp_path):
    path = tmp_path / "p.png"
    draw_seven(ink=90, paper=60).save(path)
    light = read_picture(path, "light")[0]
    assert torch.equal(light, read_picture(path)[0])
    with pytest.raises(PictureError, match="blank: a dark digit"):
        read_picture(path, "dark")


def test_exif_turns_the_picture_and_frames_are_told(tmp_path):
    upright = draw_seven()
    exif = Image.Exif()
    exif[0x0112] = 3
    read = picture_of(tmp_path, upright.rotate(180), "p.png", exif=exif)
    assert torch.equal(read, picture_of(tmp_path, upright, "q.png"))
    upright.save(
        tmp_path / "a.gif", save_all=True, append_images=[upright.rotate(k) for k in (9, 20)]
    )
    picture, note = read_picture(tmp_path / "a.gif")
    assert note == "the first of 3 frames"
    torch.testing.assert_close(picture, read, rtol=0, atol=0.02)


def test_pillow_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="pip install pillow"):
        read_picture(tmp_path / "p.png")


# Fifty files that are no use


def png(width, height, bits=8, colour=0, data=b""):
    """A PNG file with this header, whatever its data."""

    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or draw_seven(mode="RGB")).save(file, kind, **options)
    return file.getvalue()


def malformed():
    """Name and content of fifty files of which no digit can be read, and what is said of each."""
    whole = {kind: encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
    unread = "damaged, or of a kind|not a picture|cannot be read"
    for kind, data in whole.items():
        for share in (0.02, 0.3, 0.9):
            yield f"cut{share}.{kind}", data[: int(len(data) * share)], unread + "|blank"
        yield f"zeros.{kind}", bytes(len(data)), "not a picture"
    for name, data in {
        "text": b"seven",
        "json": b"{}",
        "html": b"<html><img src=7.png></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pickle": b"\x80\x04K\x01.",
        "gzip": gzip.compress(b"seven"),
        "signature": b"\x89PNG\r\n\x1a\n",
        "random": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    }.items():
        yield name + ".png", data, unread
    yield "empty.png", b"", "the file is empty"
    yield "vast.png", png(30_000, 30_000), "is too large"
    yield "wide.png", png(2**31 - 1, 1), "is too large|damaged"
    yield "none.png", png(0, 0), unread
    yield "half.png", png(9_000, 6_000), "9000 x 6000 is too large"
    yield "short.png", png(100, 100, data=bytes(9)), unread + "|blank"
    yield "vast.bmp", encoded("BMP")[:18] + struct.pack("<ii", 30_000, 30_000), unread + "|large"
    blanks = {"1x1": (1, 1), "1x28": (1, 28), "28x28": (28, 28), "big": (300, 300)}
    for name, size in blanks.items():
        yield f"blank{name}.png", encoded("PNG", Image.new("L", size, 128)), "blank: "
    yield "clear.png", encoded("PNG", Image.new("RGBA", (50, 50), (9, 9, 9, 0))), "blank: "
    nan = Image.fromarray(np.full((30, 30), np.nan, dtype=np.float32))
    yield "nan.tiff", encoded("TIFF", nan), "no numbers"


def test_fifty_malformed_pictures_get_a_line_each_and_the_rest_is_predicted(
    tmp_path, capsys, model_path
):
    cases = list(malformed())
    assert len({name for name, *_ in cases}) >= 50
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, data, _ in cases:
        (folder / f"{name}.png").write_bytes(data)
    good = ["CMYK", "16 bits", "animated"]
    draw_seven(mode="CMYK").save(folder / "CMYK.jpg")
    Image.fromarray(np.asarray(draw_seven()).astype(np.uint16) * 257).save(folder / "16 bits.png")
    draw_seven().save(folder / "animated.gif", save_all=True, append_images=[draw_seven(ink=90)])
    code, out, err = run(capsys, model_path, "--image_path", folder, "--json")
    assert code == predict.SOME_FAILED
    assert sorted(Path(json.loads(line)["path"]).stem for line in out) == sorted(good)
    assert len(err) == len(cases) + 1
    assert err[-1] == f"{len(cases)} of {len(cases) + 3} pictures could not be predicted"
    said = {line.removeprefix("error: ").removeprefix(f"{folder}/"): line for line in err[:-1]}
    for name, _, wanted in cases:
        (line,) = [text for text in said if text.startswith(f"{name}.png: ")]
        assert any(part in line for part in wanted.split("|")), line


def test_what_is_no_picture_at_all(tmp_path, capsys, model_path):
    fifo, empty = tmp_path / "fifo", tmp_path / "empty"
    os.mkfifo(fifo)
    empty.mkdir()
    (empty / "readme.txt").touch()
    code, _, err = run(capsys, model_path, "--image_path", fifo, tmp_path / "missing.png")
    assert code == 2
    assert err[0] == f"error: {fifo}: not a file that holds a picture"
    assert err[1] == f"error: {tmp_path}/missing.png: cannot be read: No such file or directory"
    code, _, err = run(capsys, model_path, "--image_path", empty)
    assert (code, err) == (2, [f"error: {empty}: a folder without pictures; give files, or "
                               "another one"])  # fmt: skip
    draw_seven().save(empty / "7.png")
    code, _, err = run(capsys, model_path, "--image_path", empty)
    assert (code, err) == (0, [f"{empty}: 1 of 2 files passed over, no pictures by name"])


def test_one_bad_entry_does_not_cost_the_others(tmp_path, capsys, model_path):
    for name in ("a.png", "z.png"):
        draw_seven().save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("seven")
    bad = {
        "empty": "a folder without pictures",
        "outer": f"a folder without pictures (a sub-folder not looked into, such as {tmp_path}",
        "missing.png": "cannot be read: No such file or directory",
        "notes.txt": "not a picture",
        "n" * 300: "cannot be read: File name too long",
    }
    for name, said in bad.items():
        paths = [tmp_path / "a.png", tmp_path / name, tmp_path / "z.png"]
        code, out, err = run(capsys, model_path, "--json", "--image_path", *paths)
        assert (code, len(out)) == (predict.SOME_FAILED, 2), name
        assert len(err) == 2 and said in err[0] and name in err[0]
        assert err[1] == "1 of 3 pictures could not be predicted"


def test_sub_folders_are_named(tmp_path, capsys, model_path):
    draw_seven().save(tmp_path / "7.png")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_seven().save(tmp_path / name / "7.png")
    code, out, err = run(capsys, model_path, "--json", "--image_path", tmp_path)
    assert (code, len(out)) == (0, 1)
    assert err == [f"{tmp_path}: 2 sub-folders not looked into, such as {tmp_path}/one: name each "
                   "that is wanted"]  # fmt: skip


def test_a_picture_needs_no_flag(tmp_path, capsys, model_path):
    for name in ("a.png", "b.png", "c.png"):
        draw_seven().save(tmp_path / name)
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    for argv in ([a, b, c, "--json"], ["--json", a, b, c], [a, "--json", "--image_path", b, c]):
        code, out, _ = run(capsys, model_path, *argv)
        assert code == 0
        assert [json.loads(line)["path"] for line in out] == [str(path) for path in (a, b, c)]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_name_outside_the_code_page_is_printed_all_the_same(
    tmp_path, monkeypatch, model_path, encoding
):
    names = ["a.png", "\u6570.png", "\udcff.png", "z.png"]
    for name in names:
        draw_seven().save(tmp_path / name)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    argv = ["--model_path", str(model_path), str(tmp_path), str(tmp_path / "\u6570")]
    assert predict.main(argv) == predict.SOME_FAILED
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert out.count("  confidence ") == 4 and "\\udcff.png: " in out
    assert ("\u6570" if encoding == "utf-8" else "\\u6570") + ": cannot be read" in err
    assert [stream.errors for stream in streams] == ["strict"] * 2


def test_the_device_is_the_gpu_where_the_backend_runs_on_one(tmp_path, capsys, monkeypatch):
    chosen = []

    def load_trained(path, device):
        chosen.append((path, device.type))
        raise CheckpointError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("neurospike.backend.dispatch._cuda_reasons", list)
    monkeypatch.setattr("neurospike.backend.dispatch._capability", lambda *_: (9, 0))
    monkeypatch.setattr(predict, "load_trained", load_trained)
    monkeypatch.setattr("neurospike.live.__main__.load_trained", load_trained)
    for backend in ("triton", "numba", "auto"):
        assert run(capsys, "m.pth", "7.png", "--backend", backend)[0] == 2
    assert chosen == [("m.pth", "cuda"), ("m.pth", "cpu"), ("m.pth", "cuda")]
    pytest.importorskip("nicegui", reason="the live page needs nicegui: pip install -e '.[live]'")
    assert live_main(["--model_path", "m.pth"]) == 2
    assert chosen[-1] == ("m.pth", "cuda")


def test_the_help_says_what_a_confidence_is_not(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "it can still be near 100% for a wrong answer" in shown


def test_flags_a_user_gets_wrong(capsys, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, model_path)[2] == [
        "error: no picture was named: give picture files, or folders of them"
    ]
    for empty in (["7.png", ""], ["--image_path", " "]):
        assert "a picture's name is empty" in run(capsys, model_path, *empty)[2][0]
    assert "did you mean --image_path?" in run(capsys, model_path, "--imge_path=x")[2][0]
    assert "--ink" in run(capsys, model_path, "--image_path=x", "--ink=red")[2][0]
    assert "unknown backend" in run(capsys, model_path, "--image_path=x", "--backend=numpy")[2][0]
    assert "allowed: auto, cpu" in run(capsys, model_path, "--image_path=x", "--device=gpu")[2][0]
    assert "cuda:99" in run(capsys, model_path, "--image_path=x", "--device=cuda:99")[2][0]
    assert predict.main(["--image_path=x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: checkpoints/best_model.pth: cannot read the checkpoint")


# The model's file


def test_a_loaded_model_is_the_one_saved(model_path):
    model = ns.load_model(model_path)
    assert isinstance(model, ns.SNNModel)
    assert not model.training
    saved = load_checkpoint(model_path)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_checkpoints_that_make_no_model_are_refused_in_one_line(tmp_path, model_path):
    good = load_checkpoint(model_path)

    def refused(**changes):
        state = {key: value for key, value in {**good, **changes}.items() if value is not None}
        save_checkpoint(state, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError) as caught:
            ns.load_model(tmp_path / "bad.pth")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}/bad.pth: ")
        assert "\n" not in message
        return message

    assert "holds weights but no config" in refused(config=None)
    assert "no such key" in refused(config={"modle": {}})
    assert "was it written by another version?" in refused(config={"seed": -1})
    wider = {**good["config"], "model": {**good["config"]["model"], "hidden_size": 9}}
    assert "its weights are not those of its config" in refused(config=wider)
    assert "its weights are not those of its config" in refused(model={"a": 1})


@pytest.mark.thorough
def test_many_predictions_need_no_more_memory_than_few(tmp_path, capsys, model_path):
    for k in range(10):
        draw_seven((28 + 3 * k, 40)).save(tmp_path / f"{k}.png")

    def peak(times):
        code = (
            "import resource, sys; from neurospike import predict;"
            "assert predict.main(sys.argv[1:]) == 0;"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        argv = ["--model_path", model_path, "--image_path", *[tmp_path] * times]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, argv)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("confidence ") == 2 * 10 * times
        return int(done.stderr.split()[-1]) / 1024  # KB on Linux

    few, many = peak(2), peak(100)
    assert many - few < 20, f"{few:.0f} MB for 20 pictures, {many:.0f} MB for 1,000"


# What makes an answer doubtful


def side_by_side(images, k, side):
    """Two of the digits in a picture of `side`, as two digits on a page."""
    both = np.concatenate([images[k], images[k + 1]], axis=1)
    page = Image.new("L", (28, 28))
    page.paste(Image.fromarray(both).resize((side, side // 2)), ((28 - side) // 2, 14 - side // 4))
    return page


def test_several_digits_a_frame_and_too_little_get_a_note(tmp_path, capsys, model_path, digits):
    images = digits.images.numpy()
    framed = Image.fromarray(images[0].copy())
    ImageDraw.Draw(framed).rectangle([0, 0, 27, 27], outline=255)
    dot = Image.new("L", (28, 28))
    dot.paste(255, (12, 12, 15, 15))
    cases = {
        "two": (side_by_side(images, 4, 28), "pieces of ink side by side: are there several dig"),
        "frame": (framed, "ink on all four borders: a frame, or no digit?"),
        "dot": (dot, "only 9 pixels of ink: too little to be a digit"),
    }
    for name, (image, said) in cases.items():
        image.save(tmp_path / f"{name}.png")
        code, out, _ = run(capsys, model_path, "--image_path", tmp_path / f"{name}.png")
        assert code == 0 and said in out[0]
        out = run(capsys, model_path, "--image_path", tmp_path / f"{name}.png", "--json")[1]
        assert said in json.loads(out[0])["note"]


def inked(*pieces):
    """A picture with rectangles of ink, each `(top, bottom, left, right)` and perhaps its value."""
    picture = np.zeros((28, 28), np.float32)
    for top, bottom, left, right, *value in pieces:
        picture[top:bottom, left:right] = value or 1
    return picture


BORDERS = [(0, 1, 0, 28), (27, 28, 0, 28), (0, 28, 0, 1), (0, 28, 27, 28)]
BAR = (4, 24, 6, 10)
DOUBTS = {
    "nothing": ([], None),
    "19 pixels": ([(4, 23, 9, 10)], "only 19 pixels of ink: too little to be a digit"),
    "20 pixels": ([(4, 24, 9, 10)], None),
    "a frame": (BORDERS, "ink on all four borders: a frame, or no digit?"),
    "no top": ([*BORDERS, (0, 1, 0, 28, 0)], None),
    "no bottom": ([*BORDERS, (27, 28, 0, 28, 0)], None),
    "no left": ([*BORDERS, (0, 28, 0, 1, 0)], None),
    "no right": ([*BORDERS, (0, 28, 27, 28, 0)], None),
    "two": ([BAR, (4, 24, 14, 18)], SEVERAL),
    "two, the right one higher": ([BAR, (2, 24, 14, 18)], SEVERAL),
    "two that share a column": ([(1, 13, 4, 12), (15, 27, 11, 19)], SEVERAL),
    "two, one above the other": ([(1, 13, 4, 12), (15, 27, 8, 16)], None),
    "a narrow one below a wide one": ([(1, 3, 2, 22), (1, 14, 2, 4), (15, 27, 19, 23)], None),
    "two that touch at a corner": ([(4, 14, 6, 10), (14, 24, 10, 14)], None),
    "the last two of three": ([(1, 13, 2, 8), (14, 26, 3, 9), (4, 24, 14, 18)], SEVERAL),
    "a thin part": ([(4, 24, 4, 12), (4, 18, 16, 18)], None),
    "a short part": ([BAR, (4, 12, 14, 22)], None),
    "a faint part": ([(4, 24, 4, 12), (4, 24, 16, 20, 0.4)], None),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_is_doubted(name):
    pieces, note = DOUBTS[name]
    assert doubts(inked(*pieces)) == ([] if note is None else [note])


def test_two_digits_are_seldom_missed_and_one_is_never_taken_for_two(digits):
    images = digits.images.numpy()
    assert [doubts(image / np.float32(255)) for image in images] == [[]] * 360
    pairs = [side_by_side(images, k, 26) for k in range(0, 100, 2)]
    found = [side_by_side_found(np.asarray(pair) / np.float32(255)) for pair in pairs]
    assert np.mean(found) > 0.9


def test_no_picture_of_mnist_is_doubted():
    root = mnist_root()
    if root is None:
        pytest.skip("MNIST is not on this machine: set NEUROSPIKE_MNIST to its torchvision root")
    images = load("mnist", root).test.images.numpy() / np.float32(255)
    assert sum(bool(doubts(image)) for image in images) == 0


def test_clothes_have_names_and_are_no_digits(tmp_path, capsys, model_path):
    state = load_checkpoint(model_path)
    state["record"] = {"dataset": "fashion_mnist"}  # as 0.1 wrote it, which knew no names
    del state["temperature"]
    save_checkpoint(state, tmp_path / "fashion.pth")
    Image.new("L", (60, 60), 7).save(tmp_path / "blank.png")
    ImageDraw.Draw(image := Image.new("L", (28, 28))).rectangle([5, 5, 20, 9], fill=200)
    image.save(tmp_path / "bag.png")
    names = load_trained(tmp_path / "fashion.pth").classes
    assert (names[0], names[9]) == ("T-shirt/top", "ankle boot")
    argv = [
        "--image_path",
        tmp_path / "bag.png",
        tmp_path / "blank.png",
        "--plot",
        tmp_path / "p.png",
    ]
    code, out, err = run(capsys, tmp_path / "fashion.pth", *argv)
    assert code == predict.SOME_FAILED
    assert out[0].split(": ")[1].split(",")[0] in names
    assert "ankle boot " in out[1]
    assert "blank: a garment on a background of another brightness is wanted" in err[0]
    assert "digit" not in "".join([*out, *err])
    row = json.loads(run(capsys, tmp_path / "fashion.pth", *argv[:2], "--json")[1][0])
    assert row["temperature"] == 1.0 and row["label"] == names[row["digit"]]
