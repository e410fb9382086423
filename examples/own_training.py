"""Train a network of one's own on data of one's own, and go on with it: `ns.SNNTrainer`.

1,797 real digits of 8 x 8 pixels that scikit-learn bundles, each shown for 10 steps.
`python examples/own_training.py`; interrupt it and run it again, and it goes on where it stopped.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import neurospike as ns


class Net(nn.Module):
    """Pictures `[B, 64]` to membranes over time `[T, B, 10]`, and the neurons' states."""

    def __init__(self):
        super().__init__()
        self.layers = ns.Sequential(nn.Linear(64, 128), ns.LIF(0.9), nn.Linear(128, 10), ns.LI(0.9))

    def forward(self, pictures):
        """Show the pictures at every step."""
        return self.layers(pictures, num_steps=10)


def main(folder="runs/own", epochs=10):
    """Train in a folder, or go on there; what the best network makes of the test pictures."""
    torch.manual_seed(0)
    digits = load_digits()
    pictures = torch.tensor(digits.data / 16, dtype=torch.float32)
    data = TensorDataset(pictures, torch.tensor(digits.target))
    train, held_out, test = random_split(data, [1257, 180, 360])

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss(), clip=1.0)
    loader = DataLoader(train, 64, shuffle=True)
    trainer.fit(loader, DataLoader(held_out, 180), epochs, run=folder, resume=True)
    trainer.init_from(f"{folder}/checkpoints/best_model.pth")
    return trainer.evaluate(DataLoader(test, 360))


if __name__ == "__main__":
    found = main()
    print(f"accuracy {found['accuracy']:.2%}, spikes per step {found['spike_rates']}")
