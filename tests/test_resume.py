"""A run that was killed goes on and ends as if it had never stopped."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import neurospike as ns
from neurospike import train
from neurospike.data import Batches, Split
from neurospike.errors import CheckpointError, NeuroSpikeError
from neurospike.layers.break_even import Policy, use_policy
from neurospike.training import Run, SNNTrainer, load_checkpoint, metrics
from neurospike.training.checkpoint import save_checkpoint
from neurospike.training.resume import newest_state
from neurospike.training.state import part_of, random_state, set_random_state

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
MOMENTS = ("somewhere", "ctrl_c", "half_a_file", "not_renamed", "not_copied", "half_a_line")
# Of the default width: of its first layer, events are summed or not as each batch is.
WIDE = ["--dataset=digits", "--model.num_steps=4", "--threads=1", "--encoding.kind=rate"]
SMALL = [
    "--dataset=digits",
    "--model.hidden_size=32",
    "--model.num_steps=4",
    "--threads=1",
    "--training.warmup=0",  # whose length follows from that of the run
    "--training.rate_penalty=0",  # which each of several processes takes of its own samples
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a run `whole` and one `killed`, and how the latter was killed each time."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests" / "killing.py"), str(folder), *WIDE),
            *("--epochs=24", "--training.check_every=16"),
        ],
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
    assert len({row["step"] for row in resumed}) >= 12  # it got on between the kills
    left = [p.name for p in (folder / "killed").rglob(".*")]
    assert left == [".lock"]
    said = (folder / "err.log").read_text(encoding="utf-8").splitlines()
    assert len(said) == moments.count("ctrl_c")
    assert all(line.startswith("interrupted; the state so far is in killed/") for line in said)


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
        (["--resume=out", "--batch_size=9"], "--training.batch_size: a resumed run keeps its con"),
        (["--resume=out", "--init_from=x.pth"], "--init_from: starts a new run, and --resume goes"),
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


def test_a_run_of_ones_own_network_is_gone_on_with_in_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer, train_batches, _ = begin()
    trainer.fit(train_batches, None, 1, "mine")
    assert train.main(["--resume=mine"]) == 2
    assert capsys.readouterr().err == (
        "error: --resume: the network of the run in mine is neurospike.models.mlp.SNNModel, "
        "one of your own, which a run folder does not hold: make it, then "
        "SNNTrainer(...).fit(..., run='mine', resume=True)\n"
    )


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    first = Run(tmp_path / "run", config={})
    with pytest.raises(NeuroSpikeError, match=r"another process is training in .*/run now"):
        Run(first.folder, config={}, resumed=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_run_that_is_let_go_of_is_free_whatever_was_forked_meanwhile(tmp_path):
    first = Run(tmp_path / "run", config={})
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        first.release()
        Run(first.folder, config={}, resumed=True).release()
    finally:
        worker.kill()
        worker.join()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([*TWO, "--run_dir=run"]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


TWO = [*SMALL, "--training.validation=0.1", "--epochs=2"]
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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    start, *_ = every_row(tmp_path / "run")
    assert start["processes"] == 2
    for one, two in zip(rows(alone), rows(tmp_path / "run"), strict=True):
        if one["kind"] == "epoch":
            assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
            assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-5)
        else:  # the test: each picture by one of the processes
            labels = [[sum(row) for row in tested["confusion"]] for tested in (one, two)]
            assert labels[0] == labels[1]
            for layer, rate in one["spike_rates"].items():
                assert two["spike_rates"][layer] == pytest.approx(rate, rel=1e-3)


def test_one_of_two_processes_is_stopped_and_both_go_on_with_the_same_bits(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests" / "two_processes.py"), str(tmp_path), *WIDE),
            *("--epochs=2", "--training.check_every=5"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = (tmp_path / "err.log").read_text()
    assert done.returncode == 0, done.stderr + told
    assert "error: another process of this run has ended; its own lines say why; --resume" in told
    whole, stopped, alone = (tmp_path / name for name in ("whole", "stopped", "alone"))
    same_end(whole, stopped)
    resumed = [row for row in every_row(stopped) if row["kind"] == "resume"]
    assert [row["step"] for row in resumed] == [8]  # the first at which they agree, after step 3
    one, two = load_checkpoint(stopped / "checkpoints" / "interrupted.pth")["random"]
    assert not torch.equal(one["cpu"], two["cpu"])
    ends = [run for run in (whole, alone) if rows(run)[-1]["kind"] == "test"]
    assert len(ends) == 2
    first = {run: next(row for row in rows(run) if row["kind"] == "epoch") for run in ends}
    assert first[whole]["train_loss"] == pytest.approx(first[alone]["train_loss"], rel=0.02)


# Where an epoch begins, and where it ends


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


class Cut(Run):
    """A run that is killed once it has saved after the step `cut`."""

    cut = None

    def save_epoch(self, state, *, is_best):
        super().save_epoch(state, is_best=is_best)
        if state["step"] == self.cut:
            raise Killed


DIGITS = Split(
    torch.randint(256, (41, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.randint(10, (41,), generator=torch.Generator().manual_seed(1)),
)


def begin():
    """A trainer of a network that draws its spikes and looks at its batches; its two sources."""
    torch.manual_seed(0)
    model = ns.SNNModel(784, 16, num_steps=3, encoding="rate", dropout=0.1)
    trainer = SNNTrainer(model, torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss())
    order = torch.Generator().manual_seed(1)
    return trainer, Batches(DIGITS, 10, shuffle=True, generator=order), Batches(DIGITS, 20)


def fit(run, trainer, train_batches, validation, **options):
    with use_policy(Policy(least_products=0, rest=3)):  # some batches are multiplied densely
        trainer.fit(train_batches, validation, 2, run, **options)


def interrupt_in(trainer, step):
    def look(*_):
        if trainer.step == step - 1:
            trainer.interrupt()

    return trainer.optimizer.register_step_post_hook(look)


FIRST, MIDDLE, LAST, SECOND, END = 1, 2, 4, 5, 8  # steps of two epochs of 4


@pytest.mark.parametrize(
    ("how", "step", "check_every"),
    [
        *(("interrupted", step, None) for step in (FIRST, MIDDLE, LAST, SECOND, END)),
        *(("interrupted", step, 2) for step in (FIRST, MIDDLE, LAST, SECOND, END)),
        *(("killed", step, 1) for step in (FIRST, MIDDLE, LAST, SECOND, END)),
        *(("killed", step, None) for step in (LAST, END)),
    ],
)
def test_stopped_after_any_step_it_tells_what_it_would_have_told(how, step, check_every, tmp_path):
    fit(Run(tmp_path / "whole", config={}), *begin(), check_every=check_every)

    def stop():  # its run is let go of at the end
        run = Cut(tmp_path / "again", config={})
        trainer, *batches = begin()
        if how == "killed":
            run.cut = step
        else:
            interrupt_in(trainer, step)
        with pytest.raises((KeyboardInterrupt, Killed)):
            fit(run, trainer, *batches, check_every=check_every)

    stop()
    run = Run(tmp_path / "again", config={}, resumed=True)
    trainer, *batches = begin()
    state = newest_state(run.folder)
    assert state["step"] == step
    trainer.load_state_dict(state, batches[0])
    run.go_on(trainer.history, trainer.step)
    fit(run, trainer, *batches, check_every=check_every)
    same_end(tmp_path / "again", tmp_path / "whole")
    told = [row for row in every_row(tmp_path / "again") if row["kind"] == "epoch"]
    if state["epoch_step"]:  # the time before counts too
        assert told[state["epoch"]]["seconds"] >= state["epoch_sums"][0]["seconds"] > 0


def test_batches_that_a_layer_does_not_look_at_are_counted_on():
    """After the first, of which events do not pay, three are multiplied densely."""
    images = torch.full((40, 28, 28), 5, dtype=torch.uint8)
    images[:10] = 255
    batches = Batches(Split(images, torch.arange(40) % 10), 10)
    costs = {"add": 6.0, "look": 0.0, "write": 0.0, "read": 0.0, "pack": 0.0}

    def start():
        torch.manual_seed(0)
        model = ns.SNNModel(784, 64, num_steps=3, encoding="rate")
        return SNNTrainer(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss())

    whole, stopped, again, forgetful = (start() for _ in range(4))
    with use_policy(Policy(least_products=0, rest=3, **costs)):
        torch.manual_seed(1)
        whole.fit(batches, None, 1)
        interrupt_in(stopped, 1)
        torch.manual_seed(1)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(batches, None, 1)
        state = stopped.state_dict(batches)
        for trainer, counts in ((again, state["unpromising"]), (forgetful, [{}])):
            trainer.load_state_dict({**state, "unpromising": counts}, batches)
            trainer.fit(batches, None, 1)
    found = [
        torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        for trainer in (whole, again, forgetful)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])  # so the counts matter here


@pytest.mark.parametrize(("step", "last"), [(3, "check"), (5, "whole epoch"), (6, "check")])
def test_what_an_interrupted_run_keeps_is_called_what_it_is(step, last, tmp_path):
    def stop(run, step, last):
        trainer, *batches = begin()
        if run.resumed:
            state = newest_state(run.folder)
            trainer.load_state_dict(state, batches[0])
            run.go_on(trainer.history, trainer.step, state["path"])
        interrupt_in(trainer, step)
        with pytest.raises(KeyboardInterrupt, match=f", the last {last} in last.pth$"):
            fit(run, trainer, *batches, check_every=3)
        run.release()

    stop(Run(tmp_path / "run", config={}), step, last)
    if step != 5:  # the process that goes on says the same before its first check
        stop(Run(tmp_path / "run", config={}, resumed=True), step + 1, last)


def test_checks_within_an_epoch_do_not_count_as_time_of_training(monkeypatch):
    now = [0.0]  # a clock that stands still, but for validations and steps
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer, train_batches, validation = begin()
    step, evaluate = trainer._train_step, trainer.evaluate

    def taking(seconds, call):
        def take(*given):
            now[0] += seconds
            return call(*given)

        return take

    monkeypatch.setattr(trainer, "_train_step", taking(1, step))
    monkeypatch.setattr(trainer, "evaluate", taking(100, evaluate))
    fit(None, trainer, train_batches, validation, check_every=3)
    seconds = [(row["kind"], row["seconds"]) for row in trainer.history]
    assert seconds == [("step", 3), ("epoch", 4), ("step", 2), ("epoch", 4)]
    assert trainer.history[-1]["samples_per_second"] == pytest.approx(41 / 4)


def test_after_an_interrupt_the_same_trainer_goes_on():
    fit(None, *(whole := begin()))
    again = begin()
    for step in (2, 4):
        hook = interrupt_in(again[0], step)
        with pytest.raises(KeyboardInterrupt):
            fit(None, *again)
        hook.remove()
        assert again[0].step == step
    fit(None, *again)
    for one, other in zip(*(trainer.history for trainer, *_ in (whole, again)), strict=True):
        assert one["train_loss"] == other["train_loss"]
    pair = (trainer.model.parameters() for trainer, *_ in (whole, again))
    for one, other in zip(*pair, strict=True):
        assert torch.equal(one, other)


def test_a_state_without_the_order_of_its_batches_cannot_go_on_within_an_epoch():
    trainer, *_ = begin()
    batches = list(Batches(DIGITS, 10))
    interrupt_in(trainer, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches, None, 1)
    state = trainer.state_dict()
    with pytest.raises(ValueError, match="saved after 2 batches of an epoch, and their order is"):
        begin()[0].load_state_dict(state, batches)


# Random numbers of other machines and other numbers of processes


def saved_by(count):
    states = []
    for rank in range(count):
        torch.manual_seed(rank)
        sums = {"loss": 1.5, "correct": 2, "samples": 4, "seconds": 3.0, "gradient_norm": 1.0}
        states.append({"random": random_state(), "epoch_sums": sums, "unpromising": {"a": rank}})
    return states


def test_as_many_processes_draw_as_before_and_others_each_from_a_stream_of_its_own():
    saved = saved_by(2)

    def draws(world):
        found = []
        for rank in range(world):
            set_random_state(part_of(saved, rank, world)["random"])
            found.append(tuple(torch.rand(3).tolist()))
        return found

    expected = []
    for rank in range(2):
        torch.manual_seed(rank)
        expected.append(tuple(torch.rand(3).tolist()))
    assert draws(2) == expected
    assert [part_of(saved, rank, 2)["unpromising"]["a"] for rank in range(2)] == [0, 1]
    for world in (1, 3, 4):
        found = draws(world)
        assert found == draws(world)
        assert len({*found, *expected}) == world + 2
        parts = [part_of(saved, rank, world)["epoch_sums"] for rank in range(world)]
        assert sum(part["samples"] for part in parts) == 8
        assert sum(part["loss"] for part in parts) == 3.0


def test_a_gpus_random_numbers_go_on_on_whatever_gpu_there_is(monkeypatch):
    set_on = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.ones(16).byte())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: set_on.append((state.sum(), str(device)))
    )
    state = random_state("cuda:5")
    wanted = torch.rand(3)
    set_random_state(state, "cuda:0")
    assert set_on == [(16, "cuda:0")]
    assert torch.equal(torch.rand(3), wanted)
    set_random_state(state, "cpu")  # a machine without one
    assert torch.equal(torch.rand(3), wanted)
    assert len(set_on) == 1
    set_random_state(random_state("cpu"), "cuda")
    assert len(set_on) == 1


def test_a_random_state_of_another_torch_is_told_as_what_it_is():
    with pytest.raises(CheckpointError, match="state of the random numbers in the checkpoint does"):
        set_random_state({"cpu": torch.zeros(7, dtype=torch.uint8), "cuda": None})


# Longer, and from weights


@pytest.fixture
def finished(alone, tmp_path, monkeypatch):
    """A copy of the run `alone` of two epochs, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "draw_network", lambda *_: [])  # takes a second each
    monkeypatch.setattr(train, "draw_curves", lambda *_: None)
    shutil.copytree(alone, "run")
    threads = torch.get_num_threads()
    yield tmp_path / "run"
    torch.set_num_threads(threads)


def test_a_finished_run_can_be_longer_and_keeps_it(finished, capsys):
    done = [row for row in rows(finished) if row["kind"] == "epoch"]
    assert train.main(["--resume=run", "--epochs=3"]) == 0
    said = capsys.readouterr().out
    assert "epochs: 3 in all from now on (training.epochs was 2); the cosine learning rate" in said
    told = [row for row in rows(finished) if row["kind"] == "epoch"]
    assert told[:2] == done
    assert [row["epoch"] for row in told] == [1, 2, 3]
    assert told[2]["learning_rate"] == pytest.approx(1e-3 * 0.25)  # a third of the way is left
    assert [row["kind"] for row in rows(finished)].count("test") == 1
    assert yaml.safe_load((finished / "config.yaml").read_text())["training"]["epochs"] == 3
    assert train.main(["--resume=run", "--epochs=2"]) == 2
    assert "training.epochs: got 2, but the run is in its epoch 3 already; give 3 or more" in (
        capsys.readouterr().err
    )


def test_a_run_killed_in_its_first_epoch_says_that_it_starts_anew(finished, capsys):
    shutil.rmtree("run/checkpoints")
    before = rows(finished)
    assert train.main(["--resume=run"]) == 0
    assert "run: nothing was saved yet, the run starts anew" in capsys.readouterr().out
    assert rows(finished) == before


def test_a_run_can_start_from_weights(finished, capsys):
    best = "run/checkpoints/best_model.pth"
    argv = [*TWO[:-1], "--epochs=1", "--run_dir=tuned", f"--init_from={best}"]
    assert train.main([*argv, "--training.learning_rate=1e-9", "--model.dropout=0.1"]) == 0
    start, tuned = (load_checkpoint(path)["model"] for path in (best, "tuned/checkpoints/last.pth"))
    assert all(torch.allclose(value, tuned[name], atol=1e-6) for name, value in start.items())
    assert every_row(Path("tuned"))[0]["init_from"] == best
    capsys.readouterr()
    for change, expected in (
        (
            "--model.beta=0.9",
            "holds a network with model.beta 0.95, the new run's has 0.9; they mu",
        ),
        ("--model.hidden_size=33", "model.hidden_size 32, the new run's has 33"),
        ("--init_from=gone.pth", "gone.pth: cannot read the checkpoint: No such file"),
    ):
        assert train.main([*argv, "--run_dir=other", change]) == 2
        said = capsys.readouterr()
        assert expected in said.err
        assert len(said.err.splitlines()) == 1
        assert not said.out
        assert not Path("other").exists()


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_whose_best_model_is_lost_goes_on_with_another(finished, capsys, how, epochs):
    best, last = (Path("run/checkpoints") / name for name in ("best_model.pth", "last.pth"))
    state = load_checkpoint(last)
    save_checkpoint({**state, "best": (1.0, 0.0), "waited": 1}, last)  # the best was before
    best.unlink()
    if how == "damaged":
        best.write_bytes(b"no checkpoint")
    assert train.main(["--resume=run", f"--epochs={epochs}"]) == 0
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == (
        f"{best} is lost; the best model is from now on that of {last}, until a better one is "
        "trained"
    )
    assert len(said.splitlines()) == 1 + (how == "damaged")
    known = [row for row in rows(finished) if row["kind"] == "epoch"][1:]
    expected = max(known, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert load_checkpoint(best)["step"] == expected["step"]
    assert rows(finished)[-1]["kind"] == "test"


def test_the_score_of_a_state_is_that_of_the_validation_it_was_saved_after(tmp_path):
    trainer, train_batches, validation = begin()
    run = Run(tmp_path / "run", config={})
    fit(run, trainer, train_batches, validation)
    told = trainer.history[-1]
    run.best.unlink()
    state = {**trainer.state_dict(train_batches), "best": (2.0, 0.0), "waited": 1}
    scores = []
    for steps in (0, 1):  # since the validation
        run.save({**state, "step": state["step"] + steps}, run.last)
        scores.append(newest_state(run.folder)["best"])
    assert scores == [(told["validation_accuracy"], -told["validation_loss"]), None]


# What is left for prediction


def test_only_a_run_in_the_working_folder_leaves_its_model_there(finished, tmp_path, capsys):
    published = Path("checkpoints/best_model.pth")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    argv = [*SMALL, "--epochs=1"]
    assert train.main([*argv, f"--run_dir={tmp_path}/outside"]) == 0
    assert "not in the working folder: checkpoints/best_model.pth stays as it is" in (
        capsys.readouterr().out
    )
    assert not published.exists()
    assert train.main([*argv, "--run_dir=inside"]) == 0
    assert "checkpoints/best_model.pth is this run's best model from now on\n" in (
        capsys.readouterr().out
    )
    good = published.read_bytes()
    assert good == Path("inside/checkpoints/best_model.pth").read_bytes()
    assert train.main([*argv, "--run_dir=wild", "--training.learning_rate=1e10"]) == 0
    said = capsys.readouterr().out
    assert (
        "best_model.pth stays as it was: this run's best model is no better than guessing" in said
    )
    assert published.read_bytes() == good


def test_the_published_copy_is_calibrated_after_a_resume_without_a_better_epoch(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    published, trainer = Path("published.pth"), begin()[0]
    first = Run("run", config={}, published=published)
    first.save_epoch(trainer.state_dict(), is_best=True)
    trainer.waited = 1
    first.save_epoch(trainer.state_dict(), is_best=False)
    first.release()
    for other in (False, True):  # whether another run has published meanwhile
        if other:
            published.write_bytes(b"another run's")
        run = Run("run", config={}, published=published, resumed=True)
        run.go_on([], 4)
        run.calibrate(1.5)
        run.release()
        assert load_checkpoint(run.best)["temperature"] == 1.5
        assert (published.read_bytes() == run.best.read_bytes()) is not other
    assert capsys.readouterr().out.count("is this run's best model from now on") == 1
