"""What the four scripts `snntorch_*.py` have in common: 1,797 real digits, and training on them.

Everything is float64. The scripts add up the same numbers in different orders, and in float32 the
last bits, which that changes, would decide a spike here and there, and in the end a picture: their
accuracies would differ by one or two in 360. In float64 they print the same.
"""

import time

import torch
from torch import nn

from neurospike.data import Batches, load

NUM_STEPS = 25


def loss_and_hits(spikes, membranes, labels):
    """Cross-entropy of the membranes summed over the steps; how many pictures are recognised."""
    every_step = labels.expand(NUM_STEPS, -1)
    loss = nn.functional.cross_entropy(membranes.flatten(0, 1), every_step.flatten())
    return loss * NUM_STEPS, (spikes.sum(0).argmax(1) == labels).sum().item()


def train(make_network, run, epochs=2):
    """Train; return the loss of each step, the accuracy on the test digits, and ms a step.

    run: `(network, images [B, 1, 28, 28])` to spikes and membranes of the output neurons, each
        `[T, B, 10]`.
    """
    torch.manual_seed(0)
    data = load("digits", "data")
    network = make_network().double()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    shuffled = torch.Generator().manual_seed(0)
    losses, seconds = [], []
    for _ in range(epochs):
        for images, labels in Batches(data.train, 128, shuffle=True, generator=shuffled):
            start = time.perf_counter()
            loss, _ = loss_and_hits(*run(network, images.double()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
    hits = 0
    with torch.no_grad():
        for images, labels in Batches(data.test, 128):
            hits += loss_and_hits(*run(network, images.double()), labels)[1]
    return losses, hits / len(data.test), 1000 * sorted(seconds)[len(seconds) // 2]


def report(losses, accuracy, milliseconds):
    """Print what `train` returned."""
    print(f"loss {losses[-1]:.2f}, test accuracy {accuracy:.2%}, {milliseconds:.1f} ms a step")
