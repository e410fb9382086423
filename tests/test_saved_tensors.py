"""What hooks of saved tensors hand back to recurrent layers and delays, and sparse gradients."""

import pytest
import torch
from conftest import device_of
from torch.autograd.graph import saved_tensors_hooks

import neurospike as ns

STEPS, BATCH, SIZE = 7, 3, 4
LAYERS = {
    "recurrent": lambda **options: ns.Recurrent(
        ns.LIF(torch.linspace(0.5, 0.9, SIZE), learn_beta=True, **options), SIZE
    ),
    "delay": lambda **options: ns.Delay(SIZE, 3, **options),
}
CHANGES = {
    "gaps": lambda one: one.repeat_interleave(2, 0)[::2] if one.dim() else one,
    "other formats": lambda one: (
        one.double() if one.is_floating_point() else one.to(torch.int32).long().to(torch.int16)
    ),
}


@pytest.mark.parametrize("lengths", [None, [STEPS, 0, 4]], ids=["all steps", "lengths"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_what_was_saved(name, change, lengths, fused):
    layer = LAYERS[name](backend=fused).to(device_of(fused))
    x, grad = torch.randn(2, STEPS, BATCH, SIZE, device=device_of(fused))
    results = []
    for unpack in (torch.clone, CHANGES[change]):
        leaf = x.clone().requires_grad_()
        with saved_tensors_hooks(lambda one: one, unpack):
            out, _ = layer(leaf, lengths=lengths)
        results.append(torch.autograd.grad(out, [leaf, *layer.parameters()], grad))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", LAYERS)
def test_a_sparse_gradient_is_that_of_its_numbers(name, fused):
    layer = LAYERS[name](backend=fused).to(device_of(fused))
    x = torch.randn(STEPS, BATCH, SIZE, device=device_of(fused))
    places = torch.randint(SIZE, (STEPS, BATCH, 2), device=device_of(fused))
    results = []
    for sparse in (False, True):
        leaf = x.clone().requires_grad_()
        loss = torch.gather(layer(leaf)[0], 2, places, sparse_grad=sparse).sum()
        results.append(torch.autograd.grad(loss, [leaf, *layer.parameters()]))
    assert all(map(torch.equal, *results))
