"""Faults injected into runs: each ends with a clear line, and nothing that was saved is lost.

After each fault of `faults.py` the checkpoints that it did not spoil itself must load, and make the
network they were. Runs that are killed by SIGKILL, which no process can do to itself and go on
testing, are in `test_resume.py`: 22 of them.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from faults import (
    BEST,
    LAST,
    PUBLISHED,
    RESUME,
    SMALL,
    SPOILT,
    TABLE,
    ctrl_c,
    disk_becomes_read_only,
    metrics_cannot_be_written,
    terminated,
)
from test_cli import tiny_split

import neurospike as ns
from neurospike import evaluate, export, predict, train
from neurospike.data import DigitData
from neurospike.errors import DataError
from neurospike.training import checkpoint, load_checkpoint


def load(name, data_path, download=True):
    if not Path("data/mnist").exists():
        raise DataError(f"{data_path}: the files of {name} are not there")
    return DigitData("digits", tiny_split(200, 0), tiny_split(80, 1), "tiny pictures")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "load", load)
        Path("data").mkdir()
        Path("data/mnist").touch()
        threads = torch.get_num_threads()
        assert train.main([*SMALL, "--epochs=2", "--run_dir=good"]) == 0
        torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(train, "load", load)
    monkeypatch.setattr(evaluate, "load", load)
    monkeypatch.setattr(train, "draw_network", lambda *_: [])  # takes a second each
    threads = torch.get_num_threads()
    yield tmp_path / "work"
    torch.set_num_threads(threads)


@pytest.fixture
def patch(monkeypatch):
    monkeypatch.callbacks = []
    yield monkeypatch
    for callback in monkeypatch.callbacks:
        callback()


@pytest.mark.parametrize(
    ("fault", "code", "expected"), [pytest.param(*row, id=row[0].__name__) for row in TABLE]
)
def test_a_fault_costs_a_line_and_nothing_that_was_saved(
    fault, code, expected, folder, patch, capsys
):
    good = load_checkpoint(BEST)["model"]
    argv = fault(patch)
    found = train.main(argv)
    patch.undo()
    for callback in patch.callbacks:
        callback()
    os.chdir(folder)
    said = capsys.readouterr().err
    assert found == code, said
    assert expected in said
    lines = said.splitlines()
    assert 1 <= len(lines) <= 2 if expected else not lines
    assert not code or lines[-1].startswith(("error: ", "interrupted"))
    assert "Traceback" not in said
    assert not Path("ran").exists()
    for path in {LAST, BEST, PUBLISHED} - SPOILT.get(fault, set()):
        if argv is not RESUME or path == BEST:
            ns.load_model(path)
    if argv is not RESUME and PUBLISHED not in SPOILT.get(fault, set()):
        kept = load_checkpoint(BEST)["model"]
        assert all(torch.equal(value, kept[name]) for name, value in good.items())
    # Whatever the new run saved is whole, and nothing half written is left beside it.
    assert not list(Path().glob("*/checkpoints/.*.pth.*"))
    for path in Path("new/checkpoints").glob("*.pth"):
        assert all(value.isfinite().all() for value in load_checkpoint(path)["model"].values())


def test_there_are_at_least_thirty_faults():
    assert len({fault for fault, *_ in TABLE}) >= 30


# What uses a trained network


@pytest.mark.parametrize(
    ("command", "argv", "expected"),
    [
        (predict, ["--image_path=no.png"], "no.png: cannot be read: No such file or directory"),
        (predict, ["--image_path=data"], "data: a folder without pictures"),
        (predict, ["--image_path=x", "--model_path=data"], "data: cannot read the checkpoint: Is"),
        (predict, ["--image_path=x", "--model_path=cut.pth"], "cut.pth: damaged, or not a"),
        (evaluate, ["--model_path=cut.pth"], "cut.pth: damaged, or not a NeuroSpike"),
        (evaluate, ["--data_path=gone"], "gone: the files of digits are not there"),
        (export, ["--out=data/mnist/m.pt2"], "data/mnist/m.pt2: cannot write the file: "),
        (export, ["--model_path=cut.pth", "--out=m.pt2"], "cut.pth: damaged"),
    ],
)
def test_faults_of_what_uses_a_network(command, argv, expected, folder, capsys):
    content = Path(BEST).read_bytes()
    Path("cut.pth").write_bytes(content[:-700])
    if "--data_path=gone" in argv:
        Path("data/mnist").unlink()
    assert command.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said
    assert len(said.splitlines()) == 1
    assert Path(BEST).read_bytes() == content
    assert checkpoint.load_checkpoint(PUBLISHED)["epoch"] >= 1


def test_an_interrupted_run_goes_on_and_ends_as_another_does(folder, patch, capsys):
    assert train.main([*SMALL, "--epochs=3", "--run_dir=whole"]) == 0
    for fault in (ctrl_c, terminated, metrics_cannot_be_written, disk_becomes_read_only):
        shutil.rmtree("new", ignore_errors=True)
        with pytest.MonkeyPatch.context() as inner:
            inner.chdir(folder)
            inner.setattr(train, "load", load)
            assert train.main(fault(inner)) in (2, 130)
        patch.setattr(train, "load", load)
        assert train.main(["--resume=new"]) == 0
        one, other = (load_checkpoint(f"{name}/checkpoints/last.pth") for name in ("whole", "new"))
        assert one["step"] == other["step"]
        for name, value in one["model"].items():
            assert torch.equal(value, other["model"][name]), (fault.__name__, name)
    capsys.readouterr()
