"""`ns.SNNTrainer` with networks and data of one's own: what they return, how they learn."""

import functools
import json
import warnings

import numpy as np
import pytest
import torch
from own_networks import (
    CLASSES,
    INPUTS,
    STEPS,
    BatchFirst,
    Logits,
    OverTime,
    Sequences,
    Shown,
    Sums,
    WithState,
    batches,
    by_hand,
    points,
    ready,
    regression,
    same,
    seeded,
    trainer_of,
    weights_of,
)
from test_graph import Recorder, both
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import neurospike as ns
from neurospike.coding import decoding, losses
from neurospike.errors import NeuroSpikeError
from neurospike.training import load_checkpoint
from neurospike.training.metrics import Meter, figures

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


class Answers:
    """A measure that gives whatever it was made with."""

    def __init__(self, answer):
        self.answer = answer

    def update(self, scores, targets):
        pass

    def compute(self):
        return self.answer

    reset = compute


def test_measures_of_numpy_and_several_in_one_are_recorded(tmp_path):
    both = {"a": torch.tensor(1.5), "b": np.arange(2)}
    metrics = {
        "double": Answers(np.float64(0.5)),
        "accuracy": Answers(np.float32(0.25)),
        "both": Answers(both),
        "mean": lambda scores, targets: np.float32(2),
    }
    loader = batches()
    trainer = trainer_of(Logits, metrics=metrics, rate=np.float64(0.02))
    (record,) = trainer.fit(loader, loader, np.int64(1), tmp_path / "run")
    assert record["validation_accuracy"] == 0.25
    wanted = {"mean": 2.0, "double": 0.5, "both": {"a": 1.5, "b": [0, 1]}}
    assert record["metrics"] == wanted
    assert json.loads(json.dumps(record)) == record
    again = trainer_of(Logits, metrics=metrics)
    history = again.fit(loader, loader, 2, tmp_path / "run", resume=True)
    assert history[0] == record and len(history) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int64], ids=str)
def test_labels_of_any_integers_are_counted_and_those_of_no_class_in_no_row(dtype):
    labels = torch.arange(100)
    kept = torch.ones(100, dtype=torch.bool)
    if dtype != torch.uint8:
        labels[3], kept[3] = -100, False

    def judge(scores, targets):
        return nn.functional.cross_entropy(scores, targets.long(), ignore_index=-100)

    trainer = trainer_of(lambda: nn.Linear(4, 100), judge)
    found = trainer.evaluate([(torch.rand(100, 4), labels.to(dtype))])
    assert torch.equal(torch.tensor(found["confusion"]).sum(1), kept.long())


def test_labels_that_a_criterion_ignores_count_neither_as_right_nor_as_wrong():
    x, labels = points(12)
    labels[[0, 1, 5]] = -100
    labels[8:] = -100  # all of the last batch
    loader = [(x[part], labels[part]) for part in (slice(0, 4), slice(4, 8), slice(8, 12))]
    trainer = trainer_of(Logits)
    scores = trainer.model(x)
    right = (scores.argmax(1) == labels).sum().item() / 5
    assert 0 < right < 1
    found = trainer.evaluate(loader)
    assert found.accuracy == pytest.approx(right)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(scores, labels).item())
    assert found.samples == 12
    meter = Meter("test")
    for batch, wanted in loader[:2]:
        answers = trainer.model(batch)
        loss = nn.functional.cross_entropy(answers, wanted)
        meter.add(len(batch), figures(loss, answers, wanted, torch.tensor(0.5)))
    meter.collect()
    again = Meter("test")
    again.load_state_dict(meter.state_dict())
    for one in (meter, again):
        read = one.read()
        assert (read.accuracy, read.samples) == (found.accuracy, 8)
        assert read.loss == pytest.approx(found.loss)
    before = {key: value for key, value in meter.state_dict().items() if key != "judged"}
    again.load_state_dict(before)
    assert again.read().accuracy == pytest.approx(right * 5 / 8)
    none = [(x, torch.full((12,), -100))]
    with pytest.raises(NeuroSpikeError, match="none of the 12 labels is the number of a class"):
        trainer.evaluate(none)


def test_a_label_beyond_the_classes_is_told_beside_those_that_are_ignored():
    x, labels = points(6)
    labels[0], labels[1] = -100, CLASSES
    told = rf"which are from \d to {CLASSES}, but must be 0 to {CLASSES - 1}: Target"
    with pytest.raises(IndexError, match=told):
        trainer_of(Logits).evaluate([(x, labels)])


def test_to_give_the_most_frequent_label_is_to_guess_also_where_labels_are_ignored():
    labels = torch.tensor([0, 0, 1, -100, -100, -100])
    trainer = trainer_of(lambda: nn.Linear(4, 2))
    with torch.no_grad():
        trainer.model.weight.zero_()
        trainer.model.bias.copy_(torch.tensor([1.0, 0.0]))
    found = trainer.evaluate([(torch.rand(6, 4), labels)])
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.guessing


def test_a_learning_rate_that_is_a_tensor_is_recorded_as_a_number(tmp_path):
    net, rate = Logits(), torch.tensor(0.5)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss())
    (record,) = trainer.fit(batches(), None, 1, tmp_path / "run")
    assert record["learning_rate"] == 0.5


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


class FiresOn(nn.Module):
    """Uses the lengths in its readout only: its neurons fire at every step, beyond the end too."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.lif, self.out = ns.LIF(0.9, 0.2, batch_first=batch_first), nn.Linear(INPUTS, CLASSES)

    def forward(self, x, lengths=None):
        scores = self.out(self.lif(x)[0])
        scores = scores.transpose(0, 1) if self.batch_first else scores
        return decoding.membrane(scores, lengths=lengths)


@pytest.mark.parametrize("batch_first", [False, True])
def test_spikes_beyond_a_samples_end_are_not_counted(batch_first):
    x = torch.zeros(10, 4, INPUTS)
    lengths = torch.tensor([1, 2, 1, 4])
    x[torch.arange(10)[:, None] >= lengths] = 5.0  # all fire there
    x[:2, 3, 0] = 5.0
    given = x.transpose(0, 1) if batch_first else x
    trainer = trainer_of(lambda: FiresOn(batch_first))
    found = trainer.evaluate([(given, lengths, torch.tensor([0, 1, 2, 0]))])
    spikes = trainer.model.lif(given)[0]
    spikes = spikes.transpose(0, 1) if batch_first else spikes
    assert spikes.mean() > 0.5
    wanted = torch.cat([spikes[:steps, k] for k, steps in enumerate(lengths.tolist())]).mean(0)
    assert 0 < wanted[0] < 1 and not wanted[1:].any()
    assert found.spike_rates["lif"] == pytest.approx(float(wanted.mean()))
    assert found.activity["lif"].dead == pytest.approx(1 - 1 / INPUTS)
    assert found.activity["lif"].saturated == 0


class Halves(FiresOn):
    """Its neurons run over every second step."""

    def forward(self, x, lengths=None):
        return self.out(self.lif(x[::2])[0]).mean(0)


def test_the_rate_of_a_layer_of_fewer_steps_is_no_more_than_1():
    trainer = trainer_of(lambda: Halves(False))
    batch = (torch.full((10, 2, INPUTS), 5.0), torch.tensor([10, 1]), torch.tensor([0, 1]))
    assert trainer.evaluate([batch]).spike_rates["lif"] == 1


# Number formats, graphs, TensorBoard


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


def test_layers_that_were_given_no_steps_fired_at_a_rate_of_zero():
    net = ns.Sequential(nn.Linear(4, 8), ns.LIF(0.9), nn.Linear(8, 3), ns.LI(0.9))
    trainer = ns.SNNTrainer(net, torch.optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss())
    lengths = torch.zeros(2, dtype=torch.int64)
    found = trainer.evaluate([(torch.rand(5, 2, 4), lengths, torch.tensor([0, 1]))])
    assert found["spike_rates"] == {"1": 0.0}
