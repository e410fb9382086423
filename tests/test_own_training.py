"""`ns.SNNTrainer` with networks and data of one's own: what they return, and how they go on."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graph import Recorder, both
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import neurospike as ns
from neurospike.coding import losses
from neurospike.errors import CheckpointError, NeuroSpikeError
from neurospike.training import draw_curves, load_checkpoint, scale
from neurospike.training.order import Order
from neurospike.training.schedule import Schedule

INPUTS, CLASSES, STEPS = 6, 3, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=48, seed=1):
    """Points of three classes: the largest pair of inputs."""
    x = torch.rand(count, INPUTS, generator=seeded(seed))
    return x, x.unflatten(1, (CLASSES, 2)).sum(2).argmax(1)


def batches(size=16, count=48, **options):
    return DataLoader(TensorDataset(*points(count)), size, **options)


class Logits(nn.Module):
    """Scores [B, C] of neurons that it reads out itself."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.first, self.lif = nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5)
        self.last = nn.Linear(12, outputs)

    def over_time(self, x):
        spikes, state = self.lif(self.first(x), num_steps=STEPS)
        return self.last(spikes), state

    def forward(self, x):
        return self.over_time(x)[0].mean(0)


class OverTime(Logits):
    def forward(self, x):
        return self.over_time(x)[0]


class WithState(Logits):
    def forward(self, x):
        return self.over_time(x)


class BatchFirst(Logits):
    batch_first = True

    def forward(self, x):
        return self.over_time(x)[0].transpose(0, 1)


class Shown(nn.Module):
    """An `ns.Sequential` that sees its input at every step."""

    def __init__(self):
        super().__init__()
        self.net = ns.Sequential(
            nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5), nn.Linear(12, CLASSES), ns.LI(0.9)
        )

    def forward(self, x):
        return self.net(x, num_steps=STEPS)


class Sequences(nn.Module):
    """Makes sequences, for a Sequential that is wanted with the batch first."""

    batch_first = True

    def __init__(self):
        super().__init__()
        layers = nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5), nn.Linear(12, CLASSES)
        self.net = ns.Sequential(*layers, batch_first=True)

    def forward(self, x):
        return self.net(x[:, None].expand(-1, STEPS, -1))


def ready():
    return ns.SNNModel(INPUTS, 12, CLASSES, num_steps=STEPS)


def trainer_of(make, criterion=None, rate=0.02, **options):
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    return ns.SNNTrainer(net, optimizer, criterion or nn.CrossEntropyLoss(), **options)


def weights_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def by_hand(make, loss_of, loader, epochs=2):
    """What a plain loop makes of a network."""
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, fused=True)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_of(net, x, y).backward()
            optimizer.step()
    return weights_of(net)


# What a network returns


@pytest.mark.parametrize(
    ("make", "scores"),
    [
        (Logits, lambda found: found),
        (OverTime, lambda found: found.mean(0)),
        (WithState, lambda found: found[0].mean(0)),
        (BatchFirst, lambda found: found.mean(1)),
        (Shown, lambda found: found[0].mean(0)),
        (Sequences, lambda found: found[0].mean(1)),
        (ready, lambda found: found),
    ],
    ids=["logits", "over time", "state", "batch first", "sequential", "sequences", "ready"],
)
def test_every_kind_of_network_trains_as_in_a_loop_of_ones_own(make, scores, capsys):
    loader = batches()
    criterion = nn.CrossEntropyLoss()
    wanted = by_hand(make, lambda net, x, y: criterion(scores(net(x)), y), loader)
    trainer = trainer_of(make)
    history = trainer.fit(loader, loader, 2)
    found = weights_of(trainer.model)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    with torch.no_grad():
        x, y = points()
        right = (scores(trainer.model(x)).argmax(1) == y).float().mean()
    assert history[-1]["validation_accuracy"] == pytest.approx(float(right))
    (rate,) = history[-1]["spike_rates"].values()
    assert 0 < rate < 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if "never fired" not in line] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]


READ_OUT = [
    ("counts", lambda out: out.sum(0)),
    ("first_spike", ns.decoding.first_spike),
    ("membrane", lambda out: out.mean(0)),
    (functools.partial(ns.decoding.membrane, how="last"), lambda out: out[-1]),
    (lambda out: out[1] * 2, lambda out: out[1] * 2),
]


@pytest.mark.parametrize(("readout", "plain"), READ_OUT)
def test_a_readout_is_a_name_or_a_function(readout, plain):
    class Spikes(Logits):
        def forward(self, x):
            return ns.lif(self.over_time(x)[0], beta=0.9, threshold=0.3)

    loader = batches(count=16)
    criterion = nn.CrossEntropyLoss()
    wanted = by_hand(Spikes, lambda net, x, y: criterion(plain(net(x)[0]), y), loader)
    trainer = trainer_of(Spikes, readout=readout)
    trainer.fit(loader, None, 2)
    found = weights_of(trainer.model)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [OverTime, BatchFirst, WithState])
def test_a_criterion_may_look_at_the_output_over_time(make):
    trainer = trainer_of(make, losses.cross_entropy_membrane, on_output=True)
    trainer.train_epoch(batches())
    wanted = by_hand(
        OverTime, lambda net, x, y: losses.cross_entropy_membrane(net(x), y), batches(), 1
    )
    for name, value in weights_of(trainer.model).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    assert trainer.evaluate(batches()).accuracy is not None  # of the scores


# Targets that are no classes


def regression(count=48):
    x, _ = points(count)
    return DataLoader(TensorDataset(x, x[:, :2] - x[:, 2:4]), 16)


def test_a_regression_has_no_accuracy_and_its_best_has_the_least_loss(tmp_path, capsys):
    trainer = trainer_of(functools.partial(OverTime, 2), nn.MSELoss(), rate=0.3)
    loader = regression()
    history = trainer.fit(loader, loader, 6, tmp_path / "run", patience=6)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert not any("accuracy" in line for line in said)
    assert all(row["validation_accuracy"] is row["train_accuracy"] is None for row in history)
    least = min(history, key=lambda row: row["validation_loss"])
    best = load_checkpoint(tmp_path / "run/checkpoints/best_model.pth")
    assert best["epoch"] == least["epoch"]
    assert "best so far" in said[best["epoch"] - 1]
    found = trainer.evaluate(loader)
    assert "accuracy" not in found
    assert found["loss"] == pytest.approx(history[-1]["validation_loss"])


@pytest.mark.parametrize("batch_first", [False, True])
def test_targets_of_every_step_are_compared_step_by_step(batch_first):
    class Follows(nn.Module):
        def __init__(self):
            super().__init__()
            self.batch_first = batch_first
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x)

    shape = (7, STEPS, 2) if batch_first else (STEPS, 7, 2)
    x = torch.rand(shape, generator=seeded())
    trainer = trainer_of(Follows, nn.MSELoss(), readout="every_step")
    found = trainer.evaluate([(x, x.flip(2))])
    assert found.samples == 7
    error = (trainer.model(x) - x.flip(2)).square().mean()
    assert found.loss == pytest.approx(error.item())
    trainer.fit([(x, x.flip(2))] * 20, None, 3)
    assert trainer.evaluate([(x, x.flip(2))]).loss < 0.5 * found.loss


def test_outputs_of_several_axes_are_compared_as_they_are():
    pictures = torch.rand(10, 1, 4, 4, generator=seeded())
    trainer = trainer_of(lambda: nn.Conv2d(1, 1, 3, padding=1), nn.MSELoss(), readout="none")
    loader = [(pictures, pictures)]
    before = trainer.evaluate(loader)
    assert before.samples == 10
    trainer.fit(loader * 10, None, 2)
    assert trainer.evaluate(loader).loss < before.loss


# Measures


class Sums:
    """A measure as those of torchmetrics: the share of answers that are 0."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.zeros = self.seen = 0

    def update(self, scores, targets):
        self.zeros += int((scores.argmax(1) == 0).sum())
        self.seen += len(targets)

    def compute(self):
        return torch.tensor(self.zeros / self.seen)


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


def test_measures_of_ones_own_are_means_over_samples(tmp_path, capsys):
    def margin(scores, targets):
        top = scores.topk(2, 1).values
        return (top[:, 0] - top[:, 1]).mean()

    trainer = trainer_of(Logits, metrics={"margin": margin, "zeros": Sums()})
    loader = batches(20)  # 20, 20 and 8
    history = trainer.fit(loader, loader, 2, tmp_path / "run")
    found = trainer.evaluate(loader)
    x, y = points()
    with torch.no_grad():
        scores = trainer.model(x)
    assert found["margin"] == pytest.approx(float(margin(scores, y)), rel=1e-5)
    assert found["zeros"] == pytest.approx(float((scores.argmax(1) == 0).float().mean()))
    assert found["accuracy"] == pytest.approx(float((scores.argmax(1) == y).float().mean()))
    assert history[-1]["metrics"] == {key: found[key] for key in ("margin", "zeros")}
    assert f"margin {found['margin']:.4g}" in capsys.readouterr().out.splitlines()[-1]
    assert json.loads(json.dumps(dict(found)))["spike_rates"] == found.spike_rates


def test_torchmetrics_measure_and_a_measure_called_accuracy_is_the_accuracy():
    torchmetrics = pytest.importorskip("torchmetrics")
    macro = torchmetrics.Accuracy("multiclass", num_classes=CLASSES, average="macro")
    found = trainer_of(Logits, metrics={"accuracy": macro}).evaluate(batches(20))
    shares = [share for share in found.class_accuracy if share is not None]
    assert found.accuracy == pytest.approx(sum(shares) / len(shares))
    assert found["accuracy"] == found.accuracy


# Spikes


def test_a_penalty_is_of_the_spikes_that_hooks_see():
    def penalty(activity):
        return losses.rate_penalty(activity, 0.4, 0.5)

    def loss_of(net, x, y):
        spikes, _ = net.lif(net.first(x), num_steps=STEPS)
        scores = net.last(spikes).mean(0)
        return nn.functional.cross_entropy(scores, y) + penalty({"lif": spikes})

    trainer = trainer_of(Logits, penalty=penalty)
    trainer.fit(batches(), None, 2)
    same(weights_of(trainer.model), by_hand(Logits, loss_of, batches()))
    without = trainer_of(Logits)
    without.fit(batches(), None, 2)
    assert not torch.equal(without.model.first.weight, trainer.model.first.weight)
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_a_network_without_spikes_is_evaluated_without():
    found = trainer_of(lambda: nn.Linear(INPUTS, CLASSES)).evaluate(batches())
    assert found.spike_rates == {}


class Reads(nn.Module):
    """Sequences of different lengths, each to the mean of its own steps."""

    def __init__(self):
        super().__init__()
        self.net = ns.Sequential(nn.Linear(INPUTS, 8), ns.LIF(0.8), nn.Linear(8, CLASSES))

    def forward(self, x, lengths=None):
        return self.net(x, lengths=lengths)


def test_sequences_are_read_out_over_their_own_steps():
    x, y = points(12)
    data = [
        ((x[k] + 1).expand(2 + k % 4, INPUTS) * torch.rand(1, generator=seeded(k)), int(y[k]))
        for k in range(12)
    ]

    def loader(size):
        return DataLoader(data, size, collate_fn=ns.data.collate)

    trainer = trainer_of(Reads, penalty=lambda activity: losses.rate_penalty(activity))
    trainer.fit(loader(4), None, 2)
    whole, alone = trainer.evaluate(loader(6)), trainer.evaluate(loader(1))
    assert whole.loss == pytest.approx(alone.loss, rel=1e-5)
    assert whole.spike_rates == pytest.approx(alone.spike_rates)


# Runs that stop and go on


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


SOURCES = {
    "shuffled": lambda: DataLoader(Augmented(), 10, shuffle=True),
    "generator": lambda: DataLoader(Augmented(), 10, shuffle=True, generator=seeded(3)),
    "sampler": sampled,
    "workers": lambda: DataLoader(Augmented(), 10, shuffle=True, num_workers=1),
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


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    timed = ("seconds", "samples_per_second")
    epochs = [row for row in rows if row["kind"] in ("epoch", "step")]
    return [{k: v for k, v in row.items() if k not in timed} for row in epochs]


def same_end(folder, other):
    one, two = (load_checkpoint(each / "checkpoints/last.pth") for each in (folder, other))
    same(one["model"], two["model"])
    for state, wanted in zip(
        one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True
    ):
        same(state, wanted)
    assert torch.equal(one["random"][0]["cpu"], two["random"][0]["cpu"])
    assert rows_of(folder) == rows_of(other)


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


@pytest.mark.parametrize("source", ["shuffled", "sampler"])
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
    with pytest.raises(CheckpointError, match=r"its network is test_own_training.Logits, one of"):
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


def test_a_second_ctrl_c_does_not_wait():
    trainer = trainer_of(Logits)

    def twice(*_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second was not heard")

    trainer.optimizer.register_step_post_hook(twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches(), None, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Number formats, graphs, processes, TensorBoard


def test_bfloat16_is_the_same_with_fabric_and_without():
    from lightning_fabric import Fabric

    def run(**options):
        trainer = trainer_of(Shown, penalty=losses.rate_penalty, clip=0.5, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(batches(), batches(), 2)
        return trainer

    one = run(precision="bf16-mixed")
    other = run(fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    same(weights_of(one.model), weights_of(other.model))
    assert not torch.equal(one.model.net[0].weight, run().model.net[0].weight)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Shown, {"penalty": losses.rate_penalty, "clip": 0.5}),
        (Logits, {}),
        (functools.partial(OverTime, 2), {"criterion": nn.MSELoss()}),
    ],
)
def test_steps_of_ones_own_network_are_replayed_as_they_are(make, options, monkeypatch):
    data = regression() if "criterion" in options else batches()

    def run(mode):
        trainer = trainer_of(make, cuda_graph=mode, **options)
        trainer.fit(data, data, 3)
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    assert (device.captures, plain.replayed, replayed.replayed) == (1, 0, 6)
    same(weights_of(plain.model), weights_of(replayed.model))
    assert plain.evaluate(data).loss == replayed.evaluate(data).loss


def test_why_steps_of_ones_own_network_are_not_replayed_is_a_line(monkeypatch, capsys):
    class Counts(Logits):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    def run(mode):
        trainer = trainer_of(Counts, cuda_graph=mode)
        trainer.fit(batches(), None, 2)
        return trainer

    plain, replayed, _ = both(monkeypatch, run, Recorder())
    same(weights_of(plain.model), weights_of(replayed.model))
    said = capsys.readouterr().out.splitlines()
    assert "steps are not replayed as one CUDA graph: calls changes from step to step" in said


def test_inputs_that_are_not_finite_are_told_though_neurons_hide_them():
    x, y = points()
    x[20, 0] = torch.nan
    with pytest.raises(NeuroSpikeError, match=r"at step 2; not finite first: the inputs of that b"):
        trainer_of(lambda: Spiking(nn.Linear(INPUTS, 4))).train_epoch(
            DataLoader(TensorDataset(x, y), 16)
        )


class Spiking(nn.Module):
    """Whose first layer is not learnt, so that no gradient passes what is hidden."""

    def __init__(self, first):
        super().__init__()
        self.first, self.last = first.requires_grad_(False), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(ns.lif(self.first(x), beta=0.9, num_steps=STEPS)[0])


def test_what_happens_in_ones_own_network_is_shown_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from neurospike.training.board import Board

    trainer = trainer_of(Shown, metrics={"zeros": Sums()})
    board = Board(tmp_path, trainer.model, points()[0][:1])
    trainer.fit(batches(), batches(), 2, on_record=board.add)
    board.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("metrics/zeros")] == [3, 6]
    assert set(found.Tags()["images"]) == {
        "spikes/net.1",
        "membranes/net.1",
        "membranes/net.3",
        "weights/first",
    }


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
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same_end(tmp_path / "again", tmp_path / "whole")
    assert "again: 1 of 2 epochs are done, and 4 steps of the next" in done.stdout


def test_a_sampler_is_told_the_epoch():
    class Sampler(torch.utils.data.DistributedSampler):
        told = ()

        def set_epoch(self, epoch):
            self.told = (*self.told, epoch)

    data = TensorDataset(*points())
    sampler = Sampler(data, 2, 0)
    trainer_of(Logits).fit(DataLoader(data, 8, sampler=sampler), None, 3)
    assert sampler.told == (0, 1, 2)


def test_batches_without_a_number_are_trained_on(capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(*points(), strict=True)

    history = trainer_of(Logits).fit(DataLoader(Stream(), 16), None, 2)
    assert len(history) == 2


# Refusals


def returning(value):
    """A network that returns something of its scores [16, 3]."""

    class Net(Logits):
        def forward(self, x):
            return value(super().forward(x))

    return Net


TOLD = "expected scores [B, C], scores over time [T, B, C], or a tuple that begins with one of them"
ANSWERS = [
    (lambda s: {"logits": s}, TypeError, f"Net returned a dict of 'logits'; {TOLD}, such as (out"),
    (lambda s: None, TypeError, f"Net returned None; {TOLD}"),
    (lambda s: [s, s], TypeError, "Net returned a list of 2; stack the steps, as in torch.stack("),
    (lambda s: (), TypeError, f"Net returned a tuple of 0; {TOLD}"),
    (lambda s: ({}, s), TypeError, f"a tuple (dict of 0, tensor of shape [16, 3]); {TOLD}"),
    (
        lambda s: s.argmax(1),
        TypeError,
        "returned a tensor of shape [16] and int64; expected floating-",
    ),
    (lambda s: s.sum(), ValueError, f"a tensor of shape [] for a batch of 16; {TOLD}"),
    (lambda s: s[:5], ValueError, f"a tensor of shape [5, 3] for a batch of 16; {TOLD}"),
    (
        lambda s: s.expand(4, 16, 3).transpose(0, 1),
        ValueError,
        "returned a tensor of shape [16, 4, 3] for a batch of 16; over time it is to be [T, B, C]: "
        "return output.transpose(0, 1), or set batch_first = True on the network",
    ),
    (lambda s: s[None, ..., None], ValueError, "shape [1, 16, 3, 1]; expected scores [B, C], sco"),
    (lambda s: s.detach(), ValueError, "the loss of Net has no gradient: what it returns must be"),
]


@pytest.mark.parametrize(("value", "kind", "message"), ANSWERS)
def test_what_no_answer_is_is_told_at_the_first_batch(value, kind, message):
    trainer = trainer_of(returning(value))
    with pytest.raises(kind) as caught:
        trainer.fit(batches(), None, 1)
    assert message in str(caught.value)
    assert trainer.step == 0


def net():
    return Logits()


STEPWISE = torch.zeros(STEPS, 16, CLASSES)
MISUSES = [
    ({"make": lambda: "net"}, TypeError, "model must be a torch.nn.Module, got str"),
    (
        {"optimizer": lambda net: torch.optim.Adam},
        TypeError,
        "optimizer must be one of torch.optim, such as torch.optim.Adam(model.parameters()), got A",
    ),
    (
        {"optimizer": lambda net: torch.optim.Adam(Logits().parameters())},
        ValueError,
        "the optimizer holds none of the parameters of Logits: make it with model.parameters()",
    ),
    (
        {"criterion": nn.MSELoss},
        TypeError,
        "criterion must be a function (scores, targets) that returns the loss, such as torch.nn."
        "MSELoss(), got MSELoss",
    ),
    ({"criterion": None}, TypeError, "such as torch.nn.CrossEntropyLoss(), got NoneType"),
    (
        {"scheduler": lambda one: torch.optim.lr_scheduler.ReduceLROnPlateau(one)},
        TypeError,
        "ReduceLROnPlateau wants a loss: use neurospike.training.schedule.Schedule(optimizer, 'pl",
    ),
    ({"scheduler": lambda one: 1}, TypeError, "scheduler must have a method step(), got int"),
    (
        {"readout": "spikes"},
        ValueError,
        "unknown readout 'spikes'; choose one of membrane, counts, first_spike, every_step, none, "
        "or pass a function from the output over time [T, B, C] to scores [B, C]",
    ),
    ({"readout": 3}, TypeError, "readout must be a name or a function from the output over time"),
    ({"metrics": [len]}, TypeError, "metrics must be a dict of names to functions or torchmetric"),
    ({"metrics": {"loss": len}}, ValueError, "the metric 'loss' has a name that is taken; choose"),
    ({"metrics": {"zeros": Sums}}, TypeError, "an object with update, compute and reset, got Sums"),
]


@pytest.mark.parametrize(("given", "kind", "message"), MISUSES)
def test_misuse_is_told_at_construction(given, kind, message):
    net = given.get("make", Logits)()
    make = given.get("optimizer", lambda net: torch.optim.SGD(net.parameters(), 0.1))
    optimizer = make(net if isinstance(net, nn.Module) else Logits())
    options = {k: given[k] for k in ("readout", "metrics") if k in given}
    if "scheduler" in given:
        options["scheduler"] = given["scheduler"](optimizer)
    criterion = given.get("criterion", nn.CrossEntropyLoss())
    with pytest.raises(kind) as caught:
        ns.SNNTrainer(net, optimizer, criterion, **options)
    assert message in str(caught.value)


X, Y = points(16)
FIRST_BATCH = [
    ({"readout": "counts"}, Logits, [(X, Y)], ValueError, "no time axis that a readout could look"),
    ({"on_output": True}, Logits, [(X, Y)], ValueError, "[16, 3], and on_output gives the criteri"),
    (
        {"readout": lambda out: out.sum()},
        OverTime,
        [(X, Y)],
        ValueError,
        "readout made a tensor of",
    ),
    (
        {},
        OverTime,
        [(X, STEPWISE)],
        ValueError,
        "and the targets have that shape too: pass readout",
    ),
    (
        {"readout": "every_step"},
        OverTime,
        [(X, Y)],
        ValueError,
        "the targets of a batch must be [T, B, ...], with readout='every_step', got the shape [16]",
    ),
    (
        {"penalty": losses.rate_penalty},
        lambda: nn.Linear(INPUTS, CLASSES),
        [(X, Y)],
        ValueError,
        "Linear has no spiking layer of neurospike, such as ns.LIF: leave penalty out, or let its",
    ),
    (
        {"criterion": lambda scores, targets: 0.0},
        Logits,
        [(X, Y)],
        TypeError,
        "returned a float; a criterion must return a tensor of one number, the mean loss",
    ),
    (
        {"criterion": nn.CrossEntropyLoss(reduction="none")},
        Logits,
        [(X, Y)],
        ValueError,
        "CrossEntropyLoss returned a tensor of shape [16]; a criterion must return one number",
    ),
    (
        {},
        Logits,
        [(X, Y + 1)],
        IndexError,
        "CrossEntropyLoss was given float32 [16, 3] and targets int64 [16], which are from 1 to 3, "
        "but must be 0 to 2: ",
    ),
    (
        {},
        Logits,
        [(X, Y.int().float())],
        RuntimeError,
        "float32 [16, 3] and targets float32 [16]: ",
    ),
    (
        {},
        Logits,
        [{"x": X, "y": Y}],
        TypeError,
        "a batch must be (inputs, targets) or (sequences, l",
    ),
    (
        {},
        Logits,
        [(X.numpy(), Y)],
        TypeError,
        "the inputs of a batch must be a tensor, got ndarra",
    ),
    ({}, Logits, [(X, Y, Y, Y)], ValueError, "or (sequences, lengths, targets), got 4 parts"),
    (
        {},
        Logits,
        [(X, torch.tensor(1))],
        ValueError,
        "the targets of a batch must be [B, ...], got",
    ),
    (
        {},
        OverTime,
        [(X.expand(4, 16, 6), torch.full((16,), 4), Y)],
        TypeError,
        "OverTime.forward takes no lengths: give it a keyword lengths=None, or let the batches be",
    ),
    ({}, Logits, iter([(X, Y)]), TypeError, "train is a list_iterator, which is used up after one"),
    (
        {},
        Logits,
        3,
        TypeError,
        "train must be batches (inputs, targets), such as a DataLoader, got int",
    ),
]


@pytest.mark.parametrize(("options", "make", "data", "kind", "message"), FIRST_BATCH)
def test_misuse_is_told_at_the_first_batch(options, make, data, kind, message):
    trainer = trainer_of(make, **options)
    with pytest.raises(kind) as caught:
        trainer.fit(data, None, 1)
    assert message in str(caught.value)
    assert trainer.step == 0


def test_epochs_in_the_place_of_the_validation_are_told():
    with pytest.raises(
        TypeError, match=r"needs a number of epochs, such as fit\(train, epochs=10\)"
    ):
        trainer_of(Logits).fit(batches(), 3)


def test_a_batch_as_long_as_time_is_not_guessed_at():
    trainer = trainer_of(lambda: Wrapped())
    x, y = torch.rand(STEPS, STEPS, INPUTS), torch.zeros(STEPS).long()
    with pytest.raises(ValueError, match="a layer of it has batch_first=True: set batch_first = T"):
        trainer.evaluate([(x, y)])
    trainer.model.batch_first = True
    made = ns.SNNTrainer(trainer.model, trainer.optimizer, trainer.criterion)
    with torch.no_grad():
        scores = made.model(x)[0].mean(1)
        wanted = nn.functional.cross_entropy(scores, y)
    assert made.evaluate([(x, y)]).loss == pytest.approx(wanted.item())


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ns.Sequential(nn.Linear(INPUTS, CLASSES), ns.LI(0.9), batch_first=True)

    def forward(self, x):
        return self.net(x)


def test_targets_like_the_output_want_a_word():
    trainer = trainer_of(OverTime, nn.MSELoss())
    x = torch.rand(STEPS, INPUTS)  # so that the batch has as many samples as there are steps
    with pytest.raises(ValueError, match="targets have that shape too: pass readout='every_step'"):
        trainer.evaluate([(x, torch.zeros(STEPS, STEPS, CLASSES))])


def test_a_measure_that_is_no_number_is_told():
    trainer = trainer_of(Logits, metrics={"each": lambda scores, targets: scores.argmax(1)})
    with pytest.raises(
        ValueError, match=r"metric 'each' returned a tensor of shape \[16\]; it must"
    ):
        trainer.evaluate(batches())


def test_several_processes_want_a_sampler_of_their_own(monkeypatch):
    monkeypatch.setattr(scale.OneProcess, "world_size", 2)
    with pytest.raises(
        ValueError, match="train is a DataLoader that gives each of the 2 processes"
    ):
        trainer_of(Logits).fit(batches(), None, 1)
