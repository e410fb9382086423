"""A network of one's own: `ns.Sequential` puts spiking neurons and ordinary torch layers in a row.

A convolutional network learns the 1,797 real digits that scikit-learn bundles.
`python examples/own_network.py`
"""

import torch
from torch import nn

import neurospike as ns
from neurospike.data import Batches, load

NUM_STEPS = 8


# --8<-- [start:network]
def make_network():
    """Pictures `[B, 1, 28, 28]`, the same at every step, to membranes `[T, B, 10]`."""
    return ns.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(1, 12, 5, padding=2),
        nn.BatchNorm2d(12),
        ns.LIF(beta=0.9),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 7 * 7, 64),
        ns.LIF(beta=0.9, learn_beta=True),
        nn.Linear(64, 10),
        ns.LI(beta=0.9),  # the readout integrates and never fires
    )


# --8<-- [end:network]


def answer(network, images):
    """Scores `[B, 10]`: the readout's membranes, averaged over time."""
    membranes, _ = network(images, num_steps=NUM_STEPS)
    return ns.decoding.membrane(membranes)


def main(epochs=4):
    """Train; return the loss of each step and the accuracy on the test digits."""
    torch.manual_seed(0)
    data = load("digits", "data")
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    shuffled = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(epochs):
        for images, labels in Batches(data.train, 64, shuffle=True, generator=shuffled):
            loss = nn.functional.cross_entropy(answer(network, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    network.eval()
    with torch.no_grad():
        hits = sum(
            int((answer(network, images).argmax(1) == labels).sum())
            for images, labels in Batches(data.test, 128)
        )
    return losses, hits / len(data.test)


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, test accuracy {accuracy:.2%}")
