"""Losses, readouts and schedules against plain loops over time."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from neurospike.coding import losses
from neurospike.config import load_config
from neurospike.errors import ConfigError
from neurospike.training.schedule import Schedule

T, B, C = 7, 5, 4


@pytest.fixture
def labels():
    return torch.randint(C, (B,))


@pytest.fixture
def trace():
    return torch.randn(T, B, C, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def spikes():
    return (torch.rand(T, B, C) < 0.2).double().requires_grad_()


def test_losses_are_what_a_loop_over_time_gives(trace, spikes, labels):
    summed = sum(F.cross_entropy(step, labels) for step in trace)
    torch.testing.assert_close(losses.cross_entropy_membrane(trace, labels), summed)
    highest = torch.stack(list(trace)).max(0).values
    expected = F.cross_entropy(highest, labels)
    torch.testing.assert_close(losses.cross_entropy_max_membrane(trace, labels), expected)
    count = sum(spikes)
    torch.testing.assert_close(
        losses.cross_entropy_count(spikes, labels), F.cross_entropy(count, labels)
    )
    rate = sum(F.cross_entropy(step, labels) for step in spikes) / T
    torch.testing.assert_close(losses.cross_entropy_rate(spikes, labels), rate)
    wanted = torch.full((B, C), 0.2, dtype=torch.float64)
    wanted[range(B), labels] = 0.8
    expected = ((count / T - wanted) ** 2).mean()
    torch.testing.assert_close(losses.mse_count(spikes, labels), expected)


@pytest.mark.parametrize("classes", [losses.SHORT - 1, losses.SHORT])
@pytest.mark.parametrize("layout", ["steps", "samples"])
def test_few_and_many_classes_are_summed_alike(classes, layout):
    trace = torch.randn(T, B, classes, dtype=torch.float64)
    if layout == "samples":
        trace = trace.transpose(0, 1).contiguous().transpose(0, 1)
    labels = torch.randint(classes, (B,))
    each = torch.stack([F.cross_entropy(step, labels, reduction="none") for step in trace])
    found = losses.cross_entropy_membrane(trace, labels)
    torch.testing.assert_close(found, each.sum(0).mean())
    lengths = torch.tensor([T, 0, 3, 1, T - 1])
    own = sum(each[: lengths[b], b].sum() for b in range(B)) / B
    found = losses.cross_entropy_membrane(trace, labels, lengths=lengths)
    torch.testing.assert_close(found, own)


def test_first_spike_is_the_first_and_every_earlier_step_has_a_gradient(spikes, labels):
    first = losses.first_spike(spikes)
    for b in range(B):
        for c in range(C):
            when = spikes[:, b, c].nonzero()
            assert -first[b, c] == (int(when[0]) if len(when) else T)
    silent = torch.zeros(T, 1, 1, requires_grad=True)
    losses.first_spike(silent).sum().backward()
    # A spike at step t would save the T - t silent steps from t on.
    assert silent.grad.flatten().tolist() == [T - t for t in range(T)]
    losses.cross_entropy_first_spike(spikes, labels).backward()
    assert spikes.grad.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_first_spike_has_the_gradient_of_torchs_product(steps, rate):
    spikes = (torch.rand(steps, 6, 3, dtype=torch.float64) < rate).double().requires_grad_()
    weights = torch.randn(6, 3, dtype=torch.float64)
    found, wanted = losses.first_spike(spikes), -(1 - spikes).cumprod(0).sum(0)
    assert torch.equal(found, wanted)
    grads = [torch.autograd.grad(one, spikes, weights)[0] for one in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


# A mean squared error has targets made of labels, which torch looks at on the CPU.
WAITING = {name: loss for name, loss in losses.LOSSES.items() if name != "mse_count"}


@pytest.mark.parametrize("name", [*losses.READOUTS, *WAITING])
def test_nothing_waits_for_a_number(name, spikes, labels):
    """As for a GPU, which no CUDA graph records."""
    given = (spikes,) if name in losses.READOUTS else (spikes, labels)
    with torch.profiler.profile() as seen:
        {**losses.READOUTS, **WAITING}[name](*given).sum().backward()
    names = {event.name for event in seen.events()}
    assert "aten::sum" in names
    assert not {"aten::item", "aten::nonzero", "aten::equal"} & names
    assert spikes.grad is not None


def test_rate_penalty_is_zero_within_the_bounds_and_pulls_towards_them():
    spikes = torch.zeros(10, 1, 3)
    spikes[:2, 0, 1] = 1
    spikes[:, 0, 2] = 1
    spikes.requires_grad_()
    penalty = losses.rate_penalty({"hidden1": spikes}, 0.1, 0.5)
    assert penalty.item() == pytest.approx((0.1**2 + 0 + 0.5**2) / 3)
    penalty.backward()
    pull = spikes.grad[0, 0].sign().tolist()
    assert pull == [-1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="at least one layer, got none"):
        losses.rate_penalty({})


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("lengths", [None, [T, 3, 0, 1, T]], ids=["whole", "lengths"])
def test_a_sample_whose_label_is_to_be_ignored_does_not_count(name, lengths, spikes, labels):
    loss, kept = losses.LOSSES[name], torch.tensor([True, False, True, False, True])
    labels[~kept] = -100
    own = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    found = loss(spikes, labels, **own)
    alone = {key: value[kept] for key, value in own.items()}
    torch.testing.assert_close(found, loss(spikes[:, kept], labels[kept], **alone))
    found.backward()
    assert not spikes.grad[:, ~kept].any()
    assert spikes.grad[:, kept].any()
    # As torch's own: the mean of no sample.
    assert loss(spikes, torch.full((B,), -100), **own).isnan()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_labels_may_be_any_integers(name, spikes, labels):
    loss = losses.LOSSES[name]
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(loss(spikes, labels.to(dtype)), loss(spikes, labels))


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize(
    ("labels", "error", "told"),
    [
        ([0, 1, 2, 3, 0], TypeError, "labels must be a tensor of integers [B], .*, got list"),
        (torch.rand(B), TypeError, "labels must be a tensor of integers .*, got torch.float32"),
        (torch.eye(B, C).long(), ValueError, "labels must be [B], .* 5 samples .* shape (5, 4)"),
        (torch.tensor([0, 1]), ValueError, "labels must be [B], .* 5 samples .* shape (2,)"),
        (
            torch.tensor([0, 1, 4, 2, 3]),
            ValueError,
            "labels must be 0 to 3, for 4 classes, or -100 where .*, got 4 for sample 2",
        ),
        (
            torch.tensor([0, -100, -1, 2, 3]),
            ValueError,
            "labels must be 0 to 3, for 4 classes, or -100 where .*, got -1 for sample 2",
        ),
        (torch.zeros(B, dtype=torch.int64, device="meta"), ValueError, "labels are on meta"),
    ],
    ids=["list", "floats", "one-hot", "too few", "above", "below", "device"],
)
def test_labels_that_are_none_are_refused(name, labels, error, told, spikes):
    with pytest.raises(error) as caught:
        losses.LOSSES[name](spikes, labels)
    assert re.search(re.escape(told).replace(r"\.\*", ".*"), str(caught.value))


@pytest.mark.parametrize("name", [*losses.READOUTS, *losses.LOSSES])
@pytest.mark.parametrize(
    ("output", "error", "told"),
    [
        (torch.rand(0, B, C), ValueError, r"\[T, B, C\] with at least one step, got .*\(0, 5, 4\)"),
        (torch.rand(B, C), ValueError, r"\[T, B, C\] with at least one step, got .*\(5, 4\)"),
        (torch.ones(T, B, C).bool(), TypeError, "floating-point tensor, got torch.bool: use"),
        ((torch.rand(T, B, C), None), TypeError, "floating-point tensor, got tuple"),
    ],
    ids=["no step", "no time", "bool", "pair"],
)
def test_an_output_that_is_none_is_refused(name, output, error, told, labels):
    given = (output,) if name in losses.READOUTS else (output, labels)
    with pytest.raises(error, match=told):
        (losses.READOUTS | losses.LOSSES)[name](*given)


def test_a_penalty_on_what_are_no_spikes_by_layer_is_refused(spikes):
    with pytest.raises(TypeError, match=r"rate_penalty needs the spikes .* by layer, .*got Tensor"):
        losses.rate_penalty(spikes)
    with pytest.raises(ValueError, match=r"at least one step, got 'a' of shape \(0, 5, 4\)"):
        losses.rate_penalty({"a": spikes[:0]})


def test_losses_compile_to_one_graph(spikes, labels):
    for name, loss in losses.LOSSES.items():
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(spikes, labels), loss(spikes, labels), msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_output_of_many_steps_is_added_up_in_float32(dtype):
    spikes = torch.ones(3000, 1, 3, dtype=dtype)
    spikes[0, 0, 1] = spikes[:2, 0, 2] = 0
    labels = torch.tensor([1])
    assert losses.spike_count(spikes).tolist() == [[3000, 2999, 2998]]
    assert losses.first_spike(spikes).tolist() == [[0, -1, -2]]
    late = torch.zeros(3000, 1, 2, dtype=dtype)
    late[2999, 0, 0] = 1
    assert losses.first_spike(late).tolist() == [[-2999, -3000]]
    assert losses.mean_membrane(spikes)[0].diff().tolist() == pytest.approx(
        [-1 / 3000] * 2, rel=1e-3
    )
    for readout in losses.READOUTS.values():
        assert readout(spikes).dtype == torch.float32
        assert readout(spikes.double()).dtype == torch.float64
    for loss in losses.LOSSES.values():
        assert torch.equal(loss(spikes, labels), loss(spikes.float(), labels))
    assert losses.rate_penalty({"a": spikes}) == losses.rate_penalty({"a": spikes.float()})


def rates(kind, steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = Schedule(optimizer, kind, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return found


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"kind must be one of constant, .*, got 'Cosine'"):
        rates("Cosine", 1)
    for options in ({"every": 0}, {"patience": 0}, {"warmup": -1}, {"total_steps": -1}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            rates("step", 1, **options)


def test_schedules():
    assert rates("constant", 3) == [2, 2, 2]
    cosine = [1 + math.cos(math.pi * k / 4) for k in range(4)]
    assert rates("cosine", 6, total_steps=4) == pytest.approx([*cosine, 0, 0])
    assert rates("step", 5, every=2, gamma=0.5) == [2, 2, 1, 1, 0.5]
    assert rates("constant", 5, warmup=4) == [0.5, 1, 1.5, 2, 2]
    warm = [0.5, 1, 1.5, 2]
    assert rates("cosine", 8, total_steps=8, warmup=4) == pytest.approx([*warm, *cosine])
    assert rates("cosine", 4, total_steps=4, warmup=4) == warm  # all of the run
    assert rates("cosine", 3, total_steps=2, warmup=1) == [2, 2, 0]
    assert rates("step", 5, every=2, gamma=0.5, warmup=4) == [0.5, 1, 0.75, 1, 0.5]


def test_plateau_drops_after_as_many_worse_losses_and_is_resumed():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(optimizer, "plateau", gamma=0.5, patience=2, warmup=4)
    seen = []
    for loss in (3.0, 3.5, 2.0, 2.5, 2.0, 2.5, 1.0, 1.5):
        schedule.report(loss)
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [0.5, 0.75, 1, 1, 0.5, 0.5, 0.5, 0.5]
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=8.0)
    again = Schedule(other, "plateau", gamma=0.5, patience=2, warmup=4)
    again.load_state_dict(schedule.state_dict())
    assert other.param_groups[0]["lr"] == 0.5
    again.report(1.5)
    assert other.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"training.loss": "mse_count"}, "training.loss mse_count needs model.readout spikes"),
        (
            {"training.loss": "cross_entropy_membrane", "model.readout": "spikes"},
            "cross_entropy_membrane needs model.readout membrane",
        ),
        ({"training.rate_low": 0.5}, "rate_low must not be above rate_high"),
        (
            {"training.patience": 1, "training.validation": 0},
            "patience and schedule: plateau need a validation share above 0",
        ),
    ],
)
def test_keys_that_do_not_agree_are_refused(tmp_path, monkeypatch, overrides, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
