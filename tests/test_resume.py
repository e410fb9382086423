"""A run that was killed goes on and ends as if it had never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurospike import train
from neurospike.errors import NeuroSpikeError
from neurospike.training import Run, load_checkpoint

ROOT = Path(__file__).parents[1]
MOMENTS = ("at a random moment", "half_a_file", "not_renamed", "not_copied", "half_a_line")
SMALL = [
    "--dataset=digits",
    "--model.hidden_size=32",
    "--model.num_steps=4",
    "--threads=1",
    "--epochs=30",
    "--training.check_every=16",
    "--encoding.kind=rate",
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a run `whole` and one `killed`, and how the latter was killed each time."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killing.py"), str(folder), *SMALL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return folder, [line for line in lines if line in MOMENTS]


@pytest.fixture(scope="module")
def undisturbed(killed):
    return killed[0] / "whole"


def every_row(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rows(folder):
    timed = ("seconds", "samples_per_second")
    kept = [row for row in every_row(folder) if row["kind"] not in ("run", "resume")]
    return [{key: value for key, value in row.items() if key not in timed} for row in kept]


def same_end(one, other):
    for name in ("last.pth", "best_model.pth"):
        first, second = (load_checkpoint(run / "checkpoints" / name) for run in (one, other))
        assert first["step"] == second["step"]
        for part, value in first["model"].items():
            assert torch.equal(value, second["model"][part]), (name, part)
    assert rows(one) == rows(other)


def test_killed_at_twenty_moments_and_resumed_ends_with_the_same_bits(killed):
    folder, moments = killed
    assert len(moments) >= 20
    assert all(moments.count(moment) >= 3 for moment in MOMENTS)
    same_end(folder / "killed", folder / "whole")
    resumed = [row for row in every_row(folder / "killed") if row["kind"] == "resume"]
    assert len(resumed) >= 12
    assert len({row["step"] for row in resumed}) >= 5  # it got on between the kills
    left = [p.name for p in (folder / "killed").rglob(".*")]
    assert left == [".lock"]
    assert not (folder / "err.log").read_text(encoding="utf-8")


def test_damaged_newest_checkpoint_is_told_of_and_another_is_taken(
    tmp_path, undisturbed, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/best_model.pth"):
        (folder / name).write_bytes((undisturbed / name).read_bytes())
    whole = (undisturbed / "checkpoints" / "last.pth").read_bytes()
    (folder / "checkpoints" / "last.pth").write_bytes(whole[:-500])
    threads = torch.get_num_threads()
    assert train.main(["--resume=out"]) == 0
    torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert "last.pth: damaged, or not a NeuroSpike checkpoint" in said
    assert said.endswith("; going on from another\n")
    same_end(folder, undisturbed)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--resume=nothing"], "--resume: nothing holds no run: it has no config.yaml"),
        (["--resume=out", "--epochs=9"], "--training.epochs: a resumed run keeps its config"),
        (["--resume=out", "--config=x.yaml"], "--config: a resumed run keeps its config"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/config.yaml").touch()
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert len(said.splitlines()) == 1


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    first = Run(tmp_path / "run", config={})
    with pytest.raises(NeuroSpikeError, match=r"another process is training in .*/run now"):
        Run(first.folder, config={}, resumed=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([*TWO, "--run_dir=run"]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


TWO = [*SMALL[:-2], "--training.validation=0.1", "--epochs=2"]
LAUNCHED = {
    "by itself": ["-m", "neurospike.train", "--devices=2"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "neurospike.train"],
    "fabric run": [
        *("-m", "lightning_fabric.cli"),
        *("--accelerator=cpu", "--devices=2", "--strategy=ddp"),
        str(ROOT / "neurospike" / "train.py"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_two_processes_train_as_one_does(tmp_path, alone, launcher):
    if launcher == "fabric run":
        pytest.importorskip("click", reason="fabric run needs click")
    done = subprocess.run(
        [sys.executable, *LAUNCHED[launcher], *TWO, "--run_dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    start, *_ = every_row(tmp_path / "run")
    assert start["processes"] == 2
    for one, two in zip(rows(alone), rows(tmp_path / "run"), strict=True):
        if one["kind"] == "epoch":
            assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
            assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-5)
