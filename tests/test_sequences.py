"""Sequences of different lengths: padded, answered as each one alone, and trained on."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

import neurospike as ns
from neurospike.coding import losses
from neurospike.config import load_config
from neurospike.models.network import SpikingNetwork
from neurospike.training import SNNTrainer
from neurospike.training.batch import parts_of
from neurospike.training.energy import count_operations

INPUTS, CLASSES = 12, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(count=30, longest=15, inputs=INPUTS, seed=0):
    """Spikes `[T_i, inputs]` of which a third of the inputs fire more, and which third."""
    generator, found = seeded(seed), []
    for number in range(count):
        steps = int(torch.randint(2, longest + 1, (), generator=generator))
        rates = torch.full((inputs,), 0.05)
        part = inputs // CLASSES
        rates[number % CLASSES * part :][:part] = 0.6
        fired = torch.rand(steps, inputs, generator=generator) < rates
        found.append((fired.float(), number % CLASSES))
    return found


def model_of(seed=0, **options):
    torch.manual_seed(seed)
    given = {"encoding": "none", "beta": 0.8, **options}
    return ns.SNNModel(INPUTS, [16, 10], CLASSES, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3)])
def test_collate_pads_with_zeros_and_tells_the_lengths(dtype, shape):
    lengths = [3, 0, 5, 1]
    parts = [torch.randint(1, 9, (steps, *shape), generator=seeded()) for steps in lengths]
    parts = [part.to(dtype) for part in parts]
    padded, found, labels = ns.data.collate(list(zip(parts, [7, 8, 9, 7])))
    assert padded.shape == (5, 4, *shape)
    assert padded.dtype == dtype
    assert (found.tolist(), found.dtype) == (lengths, torch.int64)
    assert (labels.tolist(), labels.dtype) == ([7, 8, 9, 7], torch.int64)
    for number, part in enumerate(parts):
        assert torch.equal(padded[: len(part), number], part)
        assert not padded[len(part) :, number].any()


def test_collate_serves_a_data_loader_of_arrays_and_labels_of_any_shape():
    data = [(np.ones((k + 1, 2), np.float32), torch.tensor([k, 2.5])) for k in range(5)]
    batches = list(DataLoader(data, 2, collate_fn=ns.data.collate))
    assert [batch[0].shape for batch in batches] == [(2, 2, 2), (4, 2, 2), (5, 1, 2)]
    assert batches[1][1].tolist() == [3, 4]
    assert batches[1][2].tolist() == [[2, 2.5], [3, 2.5]]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([], ValueError, "collate got no samples"),
        (iter([]), TypeError, r"a list of pairs \(sequence, label\), got list_iterator"),
        (
            [(torch.zeros(3), 0), (pack_sequence([torch.zeros(3)]), 1)],
            TypeError,
            "the sequence of sample 1 is a PackedSequence",
        ),
        ([torch.zeros(3, 2)], TypeError, r"pairs \(sequence, label\), got Tensor as sample 0"),
        ([(torch.zeros(3, 2), 0, 1)], TypeError, "got tuple as sample 0"),
        ([(torch.tensor(1.0), 0)], ValueError, "got a single number as sample 0"),
        (
            [(torch.zeros(3, 2), 0), (torch.zeros(3, 2).byte(), 0)],
            TypeError,
            "one number format, got torch.float32 and, as sample 1, torch.uint8",
        ),
        (
            [(torch.zeros(3, 2), 0), (torch.zeros(4, 3), 0)],
            ValueError,
            r"one shape per step, got \[3, 2\] and, as sample 1, \[4, 3\]",
        ),
        (
            [(torch.zeros(3, 2), 0), (torch.zeros(4, 2), [0, 1])],
            ValueError,
            r"labels of a batch must have one shape, got \[\] and, as sample 1, \[2\]",
        ),
    ],
)
def test_collate_refuses_what_cannot_be_padded(given, kind, message):
    with pytest.raises(kind, match=message):
        ns.data.collate(given)


NETWORKS = [
    {},
    {"readout": "max_membrane", "normalization": "layer"},
    {"readout": "spikes", "dropout": 0.3},
    {"readout": "first_spike"},
    {"neuron": "se_adlif", "recurrent": True, "threshold": 0.1},
    {"neuron": "alif", "tau": (3, 8)},
]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_sample_among_longer_ones_is_answered_as_alone(options):
    model = model_of(**options).eval()
    data = samples(20)
    padded, lengths, _ = ns.data.collate(data)
    scores, activity, output = model(
        padded, return_activity=True, return_output=True, lengths=lengths
    )
    assert sum(spikes.sum() for spikes in activity.values()) > 0
    for number, (sequence, _) in enumerate(data):
        alone, fired = model(sequence.unsqueeze(1), return_activity=True)
        torch.testing.assert_close(scores[number : number + 1], alone, rtol=0, atol=1e-6)
        steps = len(sequence)
        if options.get("readout") not in losses.SPIKING_READOUTS:
            assert (output[steps:, number] == output[steps - 1, number]).all()
        for name, spikes in fired.items():
            assert torch.equal(activity[name][:steps, number], spikes[:, 0])
            assert not activity[name][steps:, number].any()
    recorded = model.record(padded, lengths)
    torch.testing.assert_close(recorded.votes[-1], scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [*NETWORKS, {"normalization": "batch"}], ids=str)
def test_padding_changes_neither_loss_nor_gradients(options):
    data = samples(12)
    padded, lengths, labels = ns.data.collate(data)
    more = torch.cat([padded, torch.ones(7, 12, INPUTS)])  # and what lies there is not looked at
    found = []
    for given in (padded, more):
        model = model_of(**{**options, "dropout": 0.0})
        loss = nn.functional.cross_entropy(model(given, lengths=lengths), labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_compact_frames_are_answered_as_floating_point_ones(dtype):
    model = model_of()
    padded, lengths, _ = ns.data.collate(samples(8))
    assert torch.equal(
        model(padded.to(dtype), lengths=lengths), model(padded, lengths=lengths.tolist())
    )


def test_a_sample_without_steps_gets_the_scores_of_rest():
    for readout in losses.READOUTS:
        model = model_of(readout=readout)
        padded, lengths, _ = ns.data.collate(
            [(torch.ones(0, INPUTS), 0), (torch.ones(4, INPUTS), 1)]
        )
        scores = model(padded, lengths=lengths)
        assert scores.isfinite().all()
        assert (scores[0] == scores[0, 0]).all()


def test_networks_refuse_what_are_no_sequences():
    model, images = model_of(), torch.rand(2, 1, 28, 28)
    sequences = torch.zeros(5, 2, INPUTS)
    for given, kind, message in (
        (sequences.long(), TypeError, "must be tensors .* got torch.int64: use .float"),
        (
            sequences[0],
            ValueError,
            r"must be \[T, B, \*F\] with at least one step, got .* \[2, 12\]",
        ),
        (sequences[:0], ValueError, "with at least one step"),
        (torch.zeros(5, 2, 11), ValueError, "frames must have input_size = 12 values each, .* 11"),
        (sequences.fill_(float("nan")), ValueError, "a network got NaN or infinity"),
    ):
        with pytest.raises(kind, match=message):
            model(given)
    sequences = torch.zeros(5, 2, INPUTS)
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and the 5 steps .* got 6"):
        model(sequences, lengths=torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="lengths are for sequences, and this network shows pic"):
        ns.SNNModel(784, 4)(images, lengths=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="preprocessing is for pictures"):
        model_of(preprocessing=["deskew"])
    with pytest.raises(ValueError, match="ConvSNN sees whole pictures"):
        ns.ConvSNN(784, encoding="none")
    with pytest.raises(ValueError, match="learnt to see pictures by none and cannot be given rate"):
        model.presented("rate", 5)
    assert isinstance(model, SpikingNetwork)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_of_padded_outputs_are_the_mean_of_those_alone(name):
    lengths = torch.tensor([3, 7, 1, 5])
    labels = torch.tensor([0, 2, 1, 2])
    output = torch.rand(7, 4, 3, generator=seeded(), dtype=torch.float64)
    if name in losses.SPIKE_LOSSES:
        output = (output > 0.6).double()
    own = torch.arange(7)[:, None] < lengths
    held = output[lengths - 1, torch.arange(4)] * (name not in losses.SPIKE_LOSSES)
    output = torch.where(own[:, :, None], output, held).requires_grad_()
    loss = losses.LOSSES[name](output, labels, lengths=lengths)
    alone = [
        losses.LOSSES[name](output[:steps, [k]], labels[[k]])
        for k, steps in enumerate(lengths.tolist())
    ]
    wanted = torch.stack(alone).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss, output, retain_graph=True)
    (right,) = torch.autograd.grad(wanted, output)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-15)
    whole = losses.LOSSES[name](output, labels)
    torch.testing.assert_close(
        losses.LOSSES[name](output, labels, lengths=torch.full((4,), 7)), whole, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", losses.LOSSES)
def test_what_lies_beyond_a_samples_end_may_be_anything(name):
    lengths, labels = torch.tensor([3, 0, 5]), torch.tensor([0, 2, 1])
    output = (torch.rand(5, 3, 3, generator=seeded()) > 0.6).float()
    beyond = (torch.arange(5)[:, None] >= lengths)[:, :, None]
    found = []
    for padding in (0.0, float("nan")):
        given = output.masked_fill(beyond, padding).requires_grad_()
        loss = losses.LOSSES[name](given, labels, lengths=lengths)
        found.append((loss.detach(), *torch.autograd.grad(loss, given)))
    assert found[0][0] > 0 and found[0][1].any()
    assert all(torch.equal(*pair) for pair in zip(*found))


def test_the_penalty_on_rates_counts_a_samples_own_steps():
    spikes = torch.zeros(8, 2, 3)
    spikes[:2, 0] = 1
    lengths = torch.tensor([2, 8])
    found = losses.rate_penalty({"a": spikes}, 0.0, 0.1, lengths=lengths)
    torch.testing.assert_close(found, torch.tensor((2 / 10 - 0.1) ** 2))


@pytest.mark.parametrize("recurrent", [False, True])
def test_operations_of_padded_sequences_are_those_of_each_alone(recurrent):
    model = model_of(recurrent=recurrent).eval()
    data = samples(9)
    data = [(sequence * 1.5, label) for sequence, label in data]  # so multiplications too
    padded, lengths, _ = ns.data.collate(data)
    found = count_operations(model, padded, lengths)
    every = [
        count_operations(model, sequence.unsqueeze(1), torch.tensor([len(sequence)]))
        for sequence, _ in data
    ]
    for name in ("macs", "acs", "dense_macs"):
        wanted = sum(getattr(one, name) for one in every) / len(every)
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-6)
    assert found.macs > 0 < found.acs


def test_the_network_for_shd_fires_from_the_start():
    config = load_config(Path(__file__).parents[1] / "configs" / "shd.yaml")
    torch.manual_seed(0)
    model = ns.SNNModel(**config.network_arguments()).eval()
    # As many events as a second of SHD has in its 250 steps of 140 channels, about 8,000.
    rates = (torch.rand(4, 140) ** 2).expand(100, 4, 140)
    _, activity = model(torch.poisson(rates * (32 / 140 * 3)), return_activity=True)
    assert all(0.01 < float(spikes.detach().mean()) < 0.3 for spikes in activity.values())


def make(model, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    criterion = options.pop("criterion", nn.CrossEntropyLoss())
    return SNNTrainer(model, optimizer, criterion, **options)


def loader(data, size=6, generator=None):
    return DataLoader(
        data,
        size,
        shuffle=generator is not None,
        generator=generator,
        collate_fn=ns.data.collate,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"criterion": losses.cross_entropy_membrane, "on_output": True},
        {"penalty": lambda activity, lengths: losses.rate_penalty(activity, lengths=lengths)},
        {"fabric": "bf16-mixed"},
    ],
    ids=["scores", "output", "penalty", "bfloat16"],
)
def test_the_trainer_learns_from_sequences_of_different_lengths(options, capsys):
    options = dict(options)
    if "fabric" in options:
        options["fabric"] = ns.training.scale.make_fabric("cpu", options["fabric"])
    trainer = make(model_of(), **options)
    history = trainer.fit(loader(samples(60), generator=seeded()), loader(samples(30, seed=1)), 5)
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.8


def test_a_batch_moves_the_weights_as_its_samples_alone_do():
    data, model = samples(6), model_of()
    trainer = make(copy.deepcopy(model))
    (batch,) = loader(data)
    grads = {}
    step = trainer.optimizer.step

    def keep(*args, **kwargs):
        grads.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
        return step(*args, **kwargs)

    trainer.optimizer.step = keep
    found = trainer.train_epoch([batch])
    total = 0.0
    for sequence, label in data:
        loss = nn.functional.cross_entropy(model(sequence.unsqueeze(1)), torch.tensor([label]))
        (loss / len(data)).backward()
        total += float(loss.detach()) / len(data)
    assert found.loss == pytest.approx(total, rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_an_evaluation_is_that_of_each_sample_alone():
    trainer = make(model_of())
    data = samples(17)
    found, alone = trainer.evaluate(loader(data)), trainer.evaluate(loader(data, 1))
    assert found.loss == pytest.approx(alone.loss, rel=1e-6)
    assert (found.accuracy, found.samples) == (alone.accuracy, 17)
    for name, layer in found.activity.items():
        assert layer.rate == pytest.approx(alone.activity[name].rate, rel=1e-6)
        assert layer.rate > 0


def test_a_run_of_sequences_goes_on_where_it_stopped(capsys):
    def run(epochs, trainer=None, state=None):
        order = seeded(3)
        batches = loader(samples(30), generator=order)
        trainer = trainer or make(model_of(dropout=0.2))
        if state is not None:
            trainer.load_state_dict(state, batches)
        trainer.fit(batches, None, epochs)
        return trainer, trainer.state_dict(batches)

    torch.manual_seed(5)
    whole, _ = run(4)
    torch.manual_seed(5)
    _, state = run(2)
    torch.manual_seed(99)
    again, _ = run(4, make(model_of(seed=7, dropout=0.2)), copy.deepcopy(state))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        (
            (torch.zeros(5, 2, INPUTS),),
            ValueError,
            r"be \(inputs, targets\) or .* got 1 parts",
        ),
        (
            (torch.zeros(5, 2, INPUTS), torch.tensor([5, 9]), torch.tensor([0, 1])),
            ValueError,
            "lengths must lie between 0 and the 5 steps of the current, got 9 for sample 1",
        ),
        (
            (torch.zeros(5, 2, INPUTS), torch.tensor([5.0, 1.0]), torch.tensor([0, 1])),
            TypeError,
            "lengths must be integers",
        ),
        (
            (torch.zeros(5, 2, INPUTS), torch.tensor([5]), torch.tensor([0, 1])),
            ValueError,
            "lengths must be .B., one for each of the 2 samples",
        ),
    ],
)
def test_the_trainer_refuses_batches_that_do_not_fit(batch, kind, message):
    trainer = make(model_of())
    for use in (trainer.train_epoch, trainer.evaluate):
        with pytest.raises(kind, match=message):
            use([batch])


def test_lengths_are_looked_at_before_they_go_to_another_device():
    batch = (torch.zeros(5, 2, INPUTS), torch.tensor([5, 9]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="got 9 for sample 1"):
        parts_of(batch, "meta")
    images, labels, lengths = parts_of((batch[0], torch.tensor([5, 0]), batch[2]), "meta")
    assert {images.device.type, labels.device.type, lengths.device.type} == {"meta"}


def test_a_number_that_is_none_is_told_of(capsys):
    data = samples(12)
    data[7] = (data[7][0] * float("nan"), data[7][1])
    with pytest.raises(ns.errors.NeuroSpikeError, match="bad inputs at step 2"):
        make(model_of()).fit(loader(data), None, 1)
