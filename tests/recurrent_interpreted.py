"""Recurrent layers in Triton's interpreter; `test_recurrent_triton.py` runs it."""

import pytest
import recurrent_cases as cases
import torch

import neurospike as ns
from neurospike.kernels.cuda import recurrent as kernels

GEOMETRIES = {
    "held": cases.geometry_of("held"),
    "held, 2 samples": cases.geometry_of("held", 2),
    "events": cases.geometry_of("events"),
    "events, 2 samples": cases.geometry_of("events", 2),
    "dense": cases.geometry_of("dense"),
    "dense, 2 samples, some kept": cases.geometry_of("dense", 2, 8),
}
SHAPE = (5, 3, 9)


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def geometry(request, monkeypatch):
    monkeypatch.setattr(kernels, "geometry", lambda *sizes: request.param)
    kernels.forget()
    yield request.param
    kernels.forget()


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
def test_every_way_of_a_product(geometry, lengths):
    assert cases.check("subtract", SHAPE, torch.float32, "cpu", lengths=lengths) <= 1e-5


@pytest.mark.parametrize("dtype", cases.DTYPES[1:], ids=str)
@pytest.mark.parametrize("neuron", ["zero", "seadlif"])
def test_every_format(neuron, dtype):
    assert cases.check(neuron, SHAPE, dtype, "cpu", lengths=True) <= 1e-5


@pytest.mark.parametrize("neuron", list(cases.NEURONS))
def test_every_neuron_from_rest(neuron):
    assert cases.check(neuron, SHAPE, torch.float32, "cpu", given=False) <= 1e-5


def test_a_layer_too_large_is_stepped(monkeypatch):
    called = []
    stepped = kernels._stepped()
    monkeypatch.setattr(kernels, "LARGEST", {"forward": 8, "backward": 8})
    monkeypatch.setattr(kernels, "_stepped", lambda: called.append(1) or stepped)
    assert cases.check("subtract", SHAPE, torch.float32, "cpu") <= 1e-5
    assert len(called) == 6  # of one proof: a layer, its sums and its gradient; and three segments


@pytest.mark.parametrize("wanted", ["current", "weight", "state", "beta"])
def test_each_gradient_alone_is_that_of_all(wanted):
    layer = cases.layer_of("subtract", 9, torch.float32, "cpu")
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

    (alone,) = gradient([wanted])
    assert torch.equal(alone, gradient(list(every))[list(every).index(wanted)])


def test_a_constant_current():
    layer = cases.layer_of("subtract", 9, torch.float32, "cpu")
    current = cases.sequence(SHAPE, torch.float32, "cpu")[0]
    found = layer(current, num_steps=4)[0]
    assert torch.equal(found, layer(current.expand(4, *current.shape).contiguous())[0])
    assert found.sum() > 0


def test_what_lies_beyond_a_sample_is_not_read():
    layer = cases.layer_of("subtract", 9, torch.float32, "cpu")
    current = cases.sequence(SHAPE, torch.float32, "cpu")
    lengths = torch.tensor([3, 9, -1])  # of 5 steps
    wanted, last = layer(current, lengths=lengths.clamp(0, 5))
    current[3:, 0] = torch.nan
    current[:, 2] = torch.nan
    current.requires_grad_()
    spikes, state = layer(current, lengths=lengths)
    assert torch.equal(spikes, wanted)
    assert all(map(torch.equal, state, last))
    spikes.sum().backward()
    assert not current.grad[3:, 0].any()
    assert not current.grad[:, 2].any()
    assert isinstance(layer, ns.Recurrent)
