"""Surrogate gradients within a window of the threshold."""

import copy
import pickle

import pytest
import torch

import neurospike as ns
from tests import oracle

RULES = [
    {},
    {"reset": "zero"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
]


def gradients(run, leaves):
    spikes, mem, trace = run(*leaves)
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).to(spikes)
    total = (spikes * weight).sum() + (mem * mem).sum() + (trace * weight).sum()
    return torch.autograd.grad(total, leaves)


def leaves(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(9, 3, 70, generator=generator, dtype=dtype) * 0.8
    mem = torch.randn(3, 70, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (current, mem, torch.tensor(0.9, dtype=dtype))]


@pytest.mark.parametrize("surrogate", ["atan", "straight_through", "sigmoid"])
@pytest.mark.parametrize("rule", RULES)
def test_against_the_oracle_with_its_surrogate_cut_off(rule, surrogate, backend, monkeypatch):
    whole = oracle.SURROGATES[surrogate]
    cut = {surrogate: lambda u: torch.where(u.abs() <= 0.3, whole(u), torch.zeros_like(u))}
    monkeypatch.setattr(oracle, "SURROGATES", cut)
    given = leaves()
    options = {"surrogate": surrogate, **rule}

    def ours(current, mem, beta):
        return ns.lif(
            current,
            mem,
            beta=beta,
            grad_window=0.3,
            return_trace=True,
            backend=backend,
            **options,
        )

    def theirs(current, mem, beta):
        return oracle.lif(current, mem, beta, torch.tensor(1.0, dtype=torch.float64), **options)

    for found, wanted in zip(gradients(ours, given), gradients(theirs, given)):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_edge_belongs_to_the_window(backend):
    current = torch.tensor([[[0.5, 0.75, 1.25, 1.5, 1.5 + 2**-20]]], requires_grad=True)
    spikes, _ = ns.lif(
        current, beta=0.0, surrogate="straight_through", grad_window=0.5, backend=backend
    )
    spikes.sum().backward()
    assert current.grad.flatten().tolist() == [1, 1, 1, 1, 0]


def test_no_window_and_one_that_holds_all_are_the_same(backend):
    found = []
    for window in (None, 1e9):
        layer = ns.LIF(0.9, grad_window=window, backend=backend)
        current = leaves(torch.float32)[0]
        layer(current)[0].sum().backward()
        found.append(current.grad)
    assert torch.equal(*found)


def test_a_layer_keeps_its_window(backend):
    layer = ns.LIF(0.9, grad_window=0.2, backend=backend)
    assert "grad_window=0.2" in repr(layer)
    assert "grad_window" not in repr(ns.LIF(0.9))
    found = []
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        current = leaves(torch.float32)[0]
        one(current)[0].sum().backward()
        found.append(current.grad)
    assert all(torch.equal(found[0], other) for other in found)
    whole = leaves(torch.float32)[0]
    ns.LIF(0.9, backend=backend)(whole)[0].sum().backward()
    assert not torch.equal(whole.grad, found[0])


@pytest.mark.parametrize("window", [0, -1.0, float("nan"), "1", True])
def test_windows_that_are_none(window):
    with pytest.raises(ValueError, match="grad_window must be a number above 0"):
        ns.LIF(0.9, grad_window=window)
    with pytest.raises(ValueError, match="grad_window must be a number above 0"):
        ns.lif(torch.zeros(2, 1, 3), beta=0.9, grad_window=window)
