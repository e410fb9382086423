"""Events of different lengths for a recurrent network of one's own: which tone comes first?

Two groups of 20 channels fire one after the other, in recordings of 40 to 80 steps; the network
has to remember which was the first. `python examples/own_recurrent.py`
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

import neurospike as ns
from neurospike.data import collate


def recordings(count, seed):
    """Return recordings of events, `[T, 40]` each with a length of its own, and who is first."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        steps = int(torch.randint(40, 81, (), generator=generator))
        events = (torch.rand(steps, 40, generator=generator) < 0.02).float()  # noise
        for start, group in ((5, number % 2), (steps - 15, 1 - number % 2)):
            burst = torch.rand(10, 20, generator=generator) < 0.3
            events[start : start + 10, 20 * group : 20 * group + 20] += burst
        found.append((events, number % 2))
    return found


def main(epochs=8):
    """Train; accuracy on recordings never trained on."""
    torch.manual_seed(0)
    net = ns.Sequential(
        nn.Linear(40, 64), ns.Recurrent(ns.SEAdLIF(), 64), nn.Linear(64, 2), ns.LI(beta=0.9)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss(), clip=1.0)
    loader = DataLoader(recordings(512, 0), 32, shuffle=True, collate_fn=collate)
    held_out, test = (DataLoader(recordings(256, n), 256, collate_fn=collate) for n in (1, 2))
    trainer.fit(loader, held_out, epochs)
    return trainer.evaluate(test)["accuracy"]


if __name__ == "__main__":
    print(f"test accuracy {main():.2%}")
