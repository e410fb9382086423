"""What `ns.SNNTrainer` refuses of networks and data of one's own, and what it says."""

import pytest
import torch
from own_networks import CLASSES, INPUTS, STEPS, Logits, OverTime, Sums, batches, points, trainer_of
from torch import nn

import neurospike as ns
from neurospike.coding import losses
from neurospike.errors import NeuroSpikeError
from neurospike.training import scale


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
        {"optimizer": lambda net: torch.optim.LBFGS(net.parameters())},
        TypeError,
        "optimizer is LBFGS, whose step computes the loss several times",
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
    ({"clip": -1}, ValueError, "clip must be a norm above 0, such as 1.0, or None for no clip"),
    ({"clip": 0}, ValueError, "None for no clipping, got 0"),
    ({"clip": float("nan")}, ValueError, "None for no clipping, got nan"),
    ({"clip": "a"}, TypeError, "clip must be a number, or None for no clipping, got str"),
    ({"clip": True}, TypeError, "clip must be a number, or None for no clipping, got bool"),
    ({"metrics": [len]}, TypeError, "metrics must be a dict of names to functions or torchmetric"),
    *(
        ({"metrics": {name: len}}, ValueError, f"the metric {name!r} has a name that is taken; c")
        for name in ("loss", "seconds", "spike_rates", "dead_neurons", "saturated_neurons")
    ),
    ({"metrics": {"zeros": Sums}}, TypeError, "an object with update, compute and reset, got Sums"),
]


@pytest.mark.parametrize(("given", "kind", "message"), MISUSES)
def test_misuse_is_told_at_construction(given, kind, message):
    net = given.get("make", Logits)()
    make = given.get("optimizer", lambda net: torch.optim.SGD(net.parameters(), 0.1))
    optimizer = make(net if isinstance(net, nn.Module) else Logits())
    options = {k: given[k] for k in ("readout", "metrics", "clip") if k in given}
    if "scheduler" in given:
        options["scheduler"] = given["scheduler"](optimizer)
    criterion = given.get("criterion", nn.CrossEntropyLoss())
    with pytest.raises(kind) as caught:
        ns.SNNTrainer(net, optimizer, criterion, **options)
    assert message in str(caught.value)


def fails(scores, targets):
    raise ValueError("for another reason")


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
        {"criterion": fails},
        Logits,
        [(X, Y)],
        ValueError,
        "fails was given float32 [16, 3] and targets int64 [16]: for another reason",
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


def test_a_validation_that_is_none_is_told_before_training():
    trainer = trainer_of(Logits)
    with pytest.raises(TypeError, match="validation is a list_iterator, which is used up after"):
        trainer.fit(batches(), iter([(X, Y)]), 1)
    assert trainer.step == 0


def test_epochs_in_the_place_of_the_validation_are_told():
    with pytest.raises(
        TypeError, match=r"needs a number of epochs, such as fit\(train, epochs=10\)"
    ):
        trainer_of(Logits).fit(batches(), 3)


@pytest.mark.parametrize("name", ["epochs", "check_every", "patience"])
@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0, ValueError, "must be at least 1, got 0"),
        (-1, ValueError, "must be at least 1, got -1"),
        (2.5, TypeError, "must be a whole number, such as 10, got 2.5"),
        ("2", TypeError, "must be a whole number, such as 10, got '2'"),
        (True, TypeError, "must be a whole number, such as 10, got True"),
    ],
)
def test_counts_of_a_fit_are_whole_numbers_of_1_or_more(tmp_path, name, value, kind, message):
    trainer = trainer_of(Logits)
    with pytest.raises(kind) as caught:
        trainer.fit(batches(), batches(), run=tmp_path / "run", **{"epochs": 1, name: value})
    assert str(caught.value) == f"{name} {message}"
    assert trainer.step == 0 and not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("which", ["train", "validation"])
def test_batches_that_are_none_are_told_before_there_is_a_folder(tmp_path, which):
    dropped = batches(64, drop_last=True)  # of fewer samples
    sources = {"train": batches(), "validation": batches(), which: dropped}
    trainer = trainer_of(Logits)
    with pytest.raises(ValueError, match=f"{which}: no samples to run.* drop_last"):
        trainer.fit(**sources, epochs=1, run=tmp_path / "run")
    with pytest.raises(TypeError, match="is used up after one epoch"):
        trainer.fit(iter(batches()), epochs=1, run=tmp_path / "run")
    with pytest.raises(NeuroSpikeError, match=r"evaluation: no samples to run.* drop_la"):
        trainer.evaluate(dropped)
    trainer.fit(batches(), batches(), epochs=1, run=tmp_path / "run")  # the folder is not taken


def test_a_measure_that_returns_nothing_is_told():
    trainer = trainer_of(Logits, metrics={"mine": lambda scores, targets: None})
    with pytest.raises(TypeError, match=r"metric 'mine' returned a NoneType; it must retur"):
        trainer.evaluate(batches())


def test_several_processes_want_a_sampler_of_their_own(monkeypatch):
    monkeypatch.setattr(scale.OneProcess, "world_size", 2)
    with pytest.raises(
        ValueError, match="train is a DataLoader that gives each of the 2 processes"
    ):
        trainer_of(Logits).fit(batches(), None, 1)
