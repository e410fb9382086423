"""Runs of `ns.SNNTrainer` in a folder: stopped, gone on with, extended, begun from others."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_networks import (
    Logits,
    OverTime,
    batches,
    points,
    rows_of,
    same,
    same_end,
    seeded,
    trainer_of,
    weights_of,
)
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import neurospike as ns
from neurospike.errors import CheckpointError, NeuroSpikeError
from neurospike.training import draw_curves, load_checkpoint
from neurospike.training.order import Order
from neurospike.training.schedule import Schedule


class Augmented(torch.utils.data.Dataset):
    """Draws from every generator there is."""

    def __init__(self):
        self.x, self.y = points(40)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return self.x[k] + 0.1 * float(noise), self.y[k]


def sampled():
    weights = torch.ones(40)
    sampler = torch.utils.data.WeightedRandomSampler(weights, 40, generator=seeded(4))
    return DataLoader(Augmented(), 10, sampler=sampler)


def persistent(**options):
    data = TensorDataset(*points(40))
    return DataLoader(data, 10, num_workers=1, persistent_workers=True, **options)


SOURCES = {
    "shuffled": lambda: DataLoader(Augmented(), 10, shuffle=True),
    "generator": lambda: DataLoader(Augmented(), 10, shuffle=True, generator=seeded(3)),
    "sampler": sampled,
    "workers": lambda: DataLoader(Augmented(), 10, shuffle=True, num_workers=1),
    "persistent": lambda: persistent(shuffle=True),
    "list": lambda: list(DataLoader(TensorDataset(*points(40)), 10)),
}


class Drops(Logits):
    """Draws while it is trained, too."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def begin(source, seed=0):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    trainer = trainer_of(Drops)
    trainer.scheduler = Schedule(trainer.optimizer, "cosine", total_steps=12, warmup=2)
    torch.manual_seed(seed)
    return trainer, SOURCES[source]()


def interrupt_in(trainer, step):
    def look(*_):
        if trainer.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)

    return trainer.optimizer.register_step_post_hook(look)


@pytest.mark.parametrize(
    ("source", "step"),
    [
        *((source, 6) for source in SOURCES),
        *(("shuffled", step) for step in (1, 4, 8)),
    ],
)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(source, step, tmp_path, capsys):
    """At Ctrl-C, then in another trainer, whose random numbers are others; 3 epochs of 4 steps."""
    validation, every = batches(20), 3 if source == "shuffled" else None
    trainer, loader = begin(source)
    trainer.fit(loader, validation, 3, tmp_path / "whole", check_every=every)

    trainer, loader = begin(source)
    interrupt_in(trainer, step)
    with pytest.raises(KeyboardInterrupt, match=r"the state so far is in .*interrupted\.pth"):
        trainer.fit(loader, validation, 3, tmp_path / "again", check_every=every)
    assert trainer.step == step

    trainer, loader = begin(source, seed=7)
    trainer.fit(loader, validation, 3, tmp_path / "again", resume=True, check_every=every)
    same_end(tmp_path / "again", tmp_path / "whole")
    assert f"again: {(step - 1) // 4} of 3 epochs are done, and " in capsys.readouterr().out


def test_persistent_workers_of_the_validation_start_apart_from_the_training(tmp_path):
    trainer, loader = begin("shuffled")
    trainer.fit(loader, persistent(), 3, tmp_path / "whole")

    trainer, loader = begin("shuffled")
    interrupt_in(trainer, 6)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader, persistent(), 3, tmp_path / "again")

    trainer, loader = begin("shuffled", seed=7)
    trainer.fit(loader, persistent(), 3, tmp_path / "again", resume=True)
    same_end(tmp_path / "again", tmp_path / "whole")


@pytest.mark.parametrize("source", ["shuffled", "sampler", "persistent"])
def test_the_same_trainer_goes_on_after_ctrl_c(source, tmp_path):
    trainer, loader = begin(source)
    trainer.fit(loader, None, 3, tmp_path / "whole")
    trainer, loader = begin(source)
    for step in (2, 7):
        hook = interrupt_in(trainer, step)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(loader, None, 3, tmp_path / "again")
        hook.remove()
    trainer.fit(loader, None, 3, tmp_path / "again")
    same_end(tmp_path / "again", tmp_path / "whole")


def test_a_finished_run_is_extended(tmp_path, capsys):
    def run(folder, epochs, resume=False):
        torch.manual_seed(0)
        trainer = trainer_of(Drops)
        trainer.fit(batches(shuffle=True), batches(20), epochs, tmp_path / folder, resume=resume)
        return trainer

    run("whole", 4)
    assert run("again", 2, resume=True).epoch == 2  # nothing is there yet: a new run
    with (tmp_path / "again" / "metrics.jsonl").open("a", encoding="utf-8") as rows:
        rows.write('{"kind": "epoch", "epoch": 3}\n')  # of an epoch that was not saved
    run("again", 4, resume=True)
    same_end(tmp_path / "again", tmp_path / "whole")
    run("again", 4, resume=True)  # nothing is left to do
    said = capsys.readouterr().out
    assert "again: 2 of 4 epochs are done; the run goes on" in said
    assert "again: 4 of 4 epochs are done; pass more epochs to train on" in said
    same_end(tmp_path / "again", tmp_path / "whole")


def test_a_run_that_was_killed_before_it_saved_starts_anew(tmp_path, capsys):
    trainer = trainer_of(Logits)
    trainer.optimizer.register_step_post_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(batches(), None, 1, tmp_path / "run")
    trainer_of(Logits).fit(batches(), None, 1, tmp_path / "run", resume=True)
    assert "run: nothing was saved yet, the run starts anew" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "run")) == 1


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = trainer_of(Logits)
    first.fit(batches(), None, 2, tmp_path / "run")
    torch.manual_seed(5)
    other = trainer_of(Logits)
    other.init_from(tmp_path / "run/checkpoints/best_model.pth")
    same(weights_of(other.model), weights_of(first.model))
    assert (other.epoch, other.step, len(other.optimizer.state)) == (0, 0, 0)
    with pytest.raises(CheckpointError) as caught:
        trainer_of(OverTime2).init_from(tmp_path / "run/checkpoints/best_model.pth")
    assert "best_model.pth: its weights are not those of this OverTime2: " in str(caught.value)
    assert "size mismatch for last.weight" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"its network is own_networks.Logits, one of"):
        ns.load_model(tmp_path / "run/checkpoints/best_model.pth")


class OverTime2(OverTime):
    def __init__(self):
        super().__init__(2)


def test_folders_that_will_not_do_are_told(tmp_path):
    loader = batches()
    trainer_of(Logits).fit(loader, None, 1, tmp_path / "run")
    with pytest.raises(NeuroSpikeError, match=r"run holds a run already: pass resume=True to go"):
        trainer_of(Logits).fit(loader, None, 1, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"this OverTime2 and its optimiser cannot go on fr"):
        trainer_of(OverTime2).fit(loader, None, 2, tmp_path / "run", resume=True)
    trainer, other = trainer_of(Drops), batches(shuffle=True)
    interrupt_in(trainer, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(other, None, 1, tmp_path / "other")
    with pytest.raises(CheckpointError, match="the batches have 1 random generators, and 0 were"):
        trainer_of(Drops).fit(
            batches(shuffle=True, generator=seeded()), None, 1, tmp_path / "other", resume=True
        )
    with pytest.raises(ValueError, match=r"the batches ended after 1, and 2 of this epoch were tr"):
        trainer_of(Drops).fit(batches(count=16), None, 1, tmp_path / "other", resume=True)


def test_an_interrupt_at_the_end_of_an_epoch_ends_there():
    trainer = trainer_of(Logits)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches(), None, 3, on_record=lambda record: trainer.interrupt())
    assert (trainer.epoch, trainer.step) == (1, 3)


def test_a_run_does_not_go_on_with_another_optimiser_or_a_scheduler_that_it_had_not(tmp_path):
    trainer_of(Logits).fit(batches(), None, 1, tmp_path / "run")
    net = Logits()
    other = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    trainer = ns.SNNTrainer(net, other, nn.CrossEntropyLoss())
    with pytest.raises(CheckpointError, match="saved with the optimiser Adam, and this is SGD"):
        trainer.fit(batches(), None, 2, tmp_path / "run", resume=True)
    trainer = trainer_of(Logits)
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    with pytest.raises(CheckpointError, match="without a scheduler, and here is one"):
        trainer.fit(batches(), None, 2, tmp_path / "run", resume=True)


@pytest.mark.parametrize(("name", "message"), [("scheduler", "scheduler"), ("average", "mean of")])
def test_a_run_does_not_go_on_without_what_it_was_trained_by(name, message, tmp_path):
    def trainer():
        net = Logits()
        optimizer = torch.optim.Adam(net.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        parts = (net, optimizer, nn.CrossEntropyLoss())
        return ns.SNNTrainer(*parts, scheduler=scheduler, ema=0.9)

    trainer().fit(batches(), None, 1, tmp_path / "run")
    without = trainer()
    setattr(without, name, None)
    with pytest.raises(CheckpointError, match=f"saved with a {message}.* and here is none"):
        without.fit(batches(), None, 2, tmp_path / "run", resume=True)
    trainer().fit(batches(), None, 2, tmp_path / "run", resume=True)


def test_a_run_goes_on_whatever_became_of_its_records(tmp_path):
    trainer_of(Logits).fit(batches(), None, 1, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\0{"kind"')
    trainer_of(Logits).fit(batches(), None, 2, tmp_path / "run", resume=True)
    kinds = [row["kind"] for row in rows_of(tmp_path / "run")]
    assert kinds.count("epoch") == 2


def test_a_validation_that_is_cut_short_is_not_saved(tmp_path):
    class Cut(list):
        def __iter__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(Logits).fit(batches(), Cut([None]), 1, tmp_path / "run")
    assert not list(tmp_path.rglob("*.pth"))


def test_a_handler_of_ones_own_is_left_to_it():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("own"))
    try:
        trainer = trainer_of(Logits)
        interrupt_in(trainer, 1)
        trainer.fit(batches(), None, 1)
        assert heard == ["own"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    trainer = trainer_of(Logits)

    def twice(*_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second was not heard")

    trainer.optimizer.register_step_post_hook(twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches(), None, 1, tmp_path / "run")
    assert not list(tmp_path.rglob("*.pth"))  # of weights between two steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_process_goes_on_with_its_own_order():
    device = torch.device("cpu")
    kept = []
    for rank in range(2):
        torch.manual_seed(rank)
        loader = batches(12, shuffle=True)
        order = Order(device, rank, 2)
        started = order.begin(loader, 0)
        next(started)
        kept.append((order.state(loader, 1), next(started)[0]))
    states = [state for state, _ in kept]
    for rank, (_, wanted) in enumerate(kept):
        loader, order = batches(12, shuffle=True), Order(device, rank, 2)
        order.restore(loader, states, 1)
        assert torch.equal(next(order.begin(loader, 0))[0], wanted)
    with pytest.raises(ValueError, match="within an epoch by 2 processes, and this is one of 3"):
        Order(device, 0, 3).restore(batches(), states, 1)
    with pytest.raises(ValueError, match="saved with batches of another kind"):
        Order(device, 0, 2).restore(ns.data.Batches(digits(), 4), states, 1)


def in_a_sampler(seed):
    """Batches whose order is drawn by a sampler within a sampler of batches."""
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(range(8), generator=generator)
    return DataLoader(range(8), batch_sampler=BatchSampler(sampler, 2, drop_last=False))


def by_itself(seed):
    """Batches that keep account of their order."""
    data = ns.data.Split(torch.zeros(8, 4, 4, dtype=torch.uint8), torch.arange(8))
    generator = torch.Generator().manual_seed(seed)
    return ns.data.Batches(data, 2, shuffle=True, generator=generator)


def given_out(order, batches):
    found = order.begin(batches, 0)
    return [(one[1] if isinstance(one, tuple) else one).tolist() for one in found]


@pytest.mark.parametrize("make", [in_a_sampler, by_itself])
def test_an_order_goes_on_where_it_was_in_this_process_and_in_another(make):
    order, batches = Order(torch.device("cpu")), make(0)
    whole = given_out(order, batches)
    if make is by_itself:
        batches = make(0)
    state = order.state(batches, 2)
    order.go_on(batches, 2)
    assert given_out(order, batches) == whole[2:]
    other, again = Order(torch.device("cpu")), make(5)
    other.restore(again, [state], 2)
    assert given_out(other, again) == whole[2:]


def test_a_state_without_an_order_lets_no_batch_be_passed_over():
    order, batches = Order(torch.device("cpu")), in_a_sampler(0)
    given_out(order, batches)
    order.go_on(batches, 2)
    order.restore(batches, [None], 0)
    assert len(given_out(order, batches)) == 4


def digits():
    return ns.data.Split(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.zeros(8).long())


@pytest.mark.thorough
def test_two_processes_stop_together_and_end_as_if_they_had_not(tmp_path):
    script = Path(__file__).with_name("own_two_processes.py")
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*started, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=script.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same_end(tmp_path / "again", tmp_path / "whole")
    assert "again: 1 of 2 epochs are done, and 4 steps of the next" in done.stdout


def test_without_validation_the_last_epoch_is_the_best(tmp_path):
    trainer = trainer_of(Logits)
    (record,) = trainer.fit(batches(), epochs=1)
    assert (record["epoch"], record["validation_loss"]) == (1, None)
    assert trainer.fit(batches(), epochs=3, run=tmp_path / "run") == trainer.history
    best = load_checkpoint(tmp_path / "run/checkpoints/best_model.pth")
    assert best["epoch"] == 3


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (nn.functional.cross_entropy, "cross_entropy"),
        (lambda scores, targets: scores.square().mean(), "loss"),
    ],
)
def test_curves_call_the_loss_by_its_name(criterion, name, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda own, path: drawn.append(own) or save(own, path))
    trainer_of(Logits, criterion).fit(batches(), batches(), 1, tmp_path / "run")
    draw_curves(tmp_path / "run")
    assert drawn[0].axes[0].get_ylabel() == name
