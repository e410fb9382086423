"""A neuron of one's own in ten lines: it fires, every backend runs it, and it learns the digits.

`python examples/own_neuron.py`
"""

# --8<-- [start:neuron]
import torch
from torch import nn

import neurospike as ns
from neurospike.data import Batches, load
from neurospike.formulas import fire

NUM_STEPS = 20


def tiring(current, syn, mem, tired, alpha, beta, rho, rise):
    """Synapses whose current decays, and a threshold that every spike raises."""
    syn = alpha * syn + current
    mem = beta * mem + syn
    threshold = 1.0 + rise * tired
    spike = fire(mem - threshold)
    return spike, syn, mem - spike * threshold, rho * tired + spike


def make_neuron(neurons=1, **options):
    """A layer of it: each neuron learns decays of its own, which stay between 0 and 1."""
    return ns.Spiking(
        tiring,
        alpha=torch.full((neurons,), 0.5),
        beta=torch.full((neurons,), 0.8),
        rho=0.95,
        rise=0.5,
        learn=("alpha", "beta"),
        bounds={"alpha": (0.0, 1.0), "beta": (0.0, 1.0)},
        **options,
    )


# --8<-- [end:neuron]


# --8<-- [start:proof]
def prove():
    """Compare the fused loop with torch's autograd; return the largest distance of a gradient."""
    drawn = torch.Generator().manual_seed(0)
    current = torch.rand(30, 4, 50, generator=drawn) * 0.4
    found = {}
    for backend in ("numba", "reference"):
        neuron, x = make_neuron(50, backend=backend), current.clone().requires_grad_()
        spikes, states, traces = neuron(x, return_trace=True)
        total = spikes.sum() + sum(trace.cos().sum() for trace in traces)
        found[backend] = (
            (spikes, *states, *traces),
            torch.autograd.grad(total, (x, *neuron.parameters())),
        )
    (ours, gradients), (torchs, wanted) = found["numba"], found["reference"]
    assert all(map(torch.equal, ours, torchs))
    return max(float((g - w).norm() / w.norm()) for g, w in zip(gradients, wanted))


# --8<-- [end:proof]


# --8<-- [start:network]
def make_network():
    """Pictures `[B, 1, 28, 28]`, the same at every step, to membranes `[T, B, 10]`."""
    return ns.Sequential(
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(14 * 14, 64),
        make_neuron(64),
        nn.Linear(64, 10),
        ns.LI(0.9),
    )


def train(epochs=6):
    """Train on the 1,797 digits that scikit-learn bundles; the network and its accuracy."""
    torch.manual_seed(0)
    data = load("digits", "data")
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    shuffled = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for images, labels in Batches(data.train, 64, shuffle=True, generator=shuffled):
            membranes, _ = network(images, num_steps=NUM_STEPS)
            loss = nn.functional.cross_entropy(ns.decoding.membrane(membranes), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        hits = sum(
            int((network(images, num_steps=NUM_STEPS)[0].mean(0).argmax(1) == labels).sum())
            for images, labels in Batches(data.test, 128)
        )
    return network, hits / len(data.test)


# --8<-- [end:network]


def watch():
    """Spikes of a LIF and of this neuron under one steady current, 60 steps of each."""
    steady = torch.full((60, 1, 1), 0.3)
    with torch.no_grad():
        return {
            "LIF": ns.LIF(0.8)(steady)[0].flatten(),
            "tiring": make_neuron()(steady)[0].flatten(),
        }


if __name__ == "__main__":
    for name, spikes in watch().items():
        print(f"{name:8}{''.join('|' if spike else '.' for spike in spikes)}")
    print(f"numba: spikes and states are torch's, gradients to {prove():.1e}")
    network, accuracy = train()
    neuron = network[3]
    print(
        f"digits: {accuracy:.2%}; alpha from {neuron.alpha.min():.2f} to {neuron.alpha.max():.2f}"
    )
