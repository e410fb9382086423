"""`snntorch_before.py` on fused layers: an import and two lines changed, the loop over time gone.

`python examples/snntorch_after.py`
"""

import time

import snntorch as snn
import torch
from torch import nn

import neurospike as ns
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
    return ns.convert(network)


def loss_and_hits(network, images, labels):
    """Cross-entropy of the membranes summed over the steps; how many pictures are recognised."""
    (spikes, membranes), _ = network(images, num_steps=NUM_STEPS)
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
