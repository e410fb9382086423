"""Recurrent layers in Triton's interpreter; `test_recurrent_triton.py` runs it."""

import pytest
import recurrent_cases as cases
import torch

from neurospike.kernels.cuda import recurrent as kernels

SHAPE = (4, 3, 5)


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
def test_rows_of_the_weight_are_read_in_parts(lengths, monkeypatch):
    monkeypatch.setattr(kernels, "geometry", lambda *_: kernels.Geometry(2, 1, 1))
    kernels.forget()
    try:
        assert cases.check("subtract", SHAPE, torch.float32, "cpu", lengths=lengths) <= 1e-5
    finally:
        kernels.forget()


@pytest.mark.parametrize("dtype", cases.DTYPES[1:], ids=str)
def test_every_format(dtype):
    assert cases.check("zero", SHAPE, dtype, "cpu", lengths=True) <= 1e-5


@pytest.mark.parametrize("neuron", list(cases.NEURONS))
def test_every_neuron_from_rest(neuron):
    assert cases.check(neuron, SHAPE, torch.float32, "cpu", given=False) <= 1e-5


def test_a_layer_too_large_is_stepped(monkeypatch):
    called = []
    stepped = kernels._stepped()
    monkeypatch.setattr(kernels, "LARGEST", {"forward": 4, "backward": 4})
    monkeypatch.setattr(kernels, "_stepped", lambda: called.append(1) or stepped)
    monkeypatch.setattr(kernels, "_prepared", None)
    assert cases.check("subtract", SHAPE, torch.float32, "cpu") <= 1e-5
    assert called


def test_each_gradient_alone_is_that_of_all():
    layer = cases.layer_of("subtract", SHAPE[2], torch.float32, "cpu")
    every = {
        "current": cases.sequence(SHAPE, torch.float32, "cpu").requires_grad_(),
        "state": cases.states_of(layer, 3)[1].requires_grad_(),
        "weight": layer.weight,
        "beta": layer.neuron.beta,
    }

    def gradient(names):
        for name, one in every.items():
            one.requires_grad_(name in names)
        last = cases.states_of(layer, 3)[0]
        spikes = layer(every["current"], (last, every["state"]))[0]
        return torch.autograd.grad(spikes.sum(), [every[name] for name in names])

    for name, wanted in zip(every, gradient(list(every))):
        (alone,) = gradient([name])
        assert wanted.any()
        assert torch.equal(alone, wanted)


def test_a_constant_current():
    layer = cases.layer_of("subtract", SHAPE[2], torch.float32, "cpu")
    current = cases.sequence(SHAPE, torch.float32, "cpu")[0]
    found = layer(current, num_steps=4)[0]
    assert torch.equal(found, layer(current.expand(4, *current.shape).contiguous())[0])
    assert found.sum() > 0


def test_what_lies_beyond_a_sample_is_not_read():
    layer = cases.layer_of("subtract", SHAPE[2], torch.float32, "cpu")
    current = cases.sequence(SHAPE, torch.float32, "cpu")
    lengths = torch.tensor([2, SHAPE[0], 0])
    wanted, last = layer(current, lengths=lengths)
    current[2:, 0] = torch.nan
    current[:, 2] = torch.nan
    current.requires_grad_()
    spikes, state = layer(current, lengths=lengths)
    assert torch.equal(spikes, wanted)
    assert all(map(torch.equal, state, last))
    spikes.sum().backward()
    assert current.grad[:2, 0].any()
    assert not current.grad[2:, 0].any()
    assert not current.grad[:, 2].any()
