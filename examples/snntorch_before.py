"""snnTorch's tutorial 5 as one writes it in snnTorch: two layers of neurons, a loop over time.

The network and its training are those of https://snntorch.readthedocs.io (tutorial 5), on the 1,797
real digits that scikit-learn bundles. `snntorch_after.py` is this file with an import and two lines
changed, and the loop gone. `python examples/snntorch_before.py`
"""

import time

import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from neurospike.data import Batches, load

NUM_STEPS = 25


def make_network():
    """784 pixels, 1,000 hidden neurons, 10 output neurons."""
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1000),
        snn.Leaky(beta=0.95, init_hidden=True),
        nn.Linear(1000, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True),
    )
    return network


def over_time(network, images):
    """Spikes and membranes of the output neurons, `[T, B, 10]`, for pictures `[B, 1, 28, 28]`."""
    utils.reset(network)
    steps = [network(images) for _ in range(NUM_STEPS)]
    spikes, membranes = zip(*steps, strict=True)
    return torch.stack(spikes), torch.stack(membranes)


def loss_and_hits(network, images, labels):
    """Cross-entropy of the membranes summed over the steps; how many pictures are recognised."""
    spikes, membranes = over_time(network, images)
    every_step = labels.expand(NUM_STEPS, -1)
    loss = nn.functional.cross_entropy(membranes.flatten(0, 1), every_step.flatten())
    return loss * NUM_STEPS, (spikes.sum(0).argmax(1) == labels).sum().item()


def main(epochs=2):
    """Train; return the loss of each step, the accuracy on the test digits, and ms a step."""
    torch.manual_seed(0)
    data = load("digits", "data")
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    shuffled = torch.Generator().manual_seed(0)
    losses, seconds = [], []
    for _ in range(epochs):
        for images, labels in Batches(data.train, 128, shuffle=True, generator=shuffled):
            start = time.perf_counter()
            loss, _ = loss_and_hits(network, images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
    with torch.no_grad():
        hits = sum(loss_and_hits(network, *batch)[1] for batch in Batches(data.test, 128))
    return losses, hits / len(data.test), 1000 * sorted(seconds)[len(seconds) // 2]


if __name__ == "__main__":
    losses, accuracy, milliseconds = main()
    print(f"loss {losses[-1]:.2f}, test accuracy {accuracy:.2%}, {milliseconds:.1f} ms a step")
