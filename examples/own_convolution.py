"""A convolutional network of one's own: batch norm, dropout, a decay learned by each channel.

1,797 real digits of 8 x 8 pixels that scikit-learn bundles. `python examples/own_convolution.py`
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import neurospike as ns


def lif(channels):
    """Return neurons whose decay is learned, one for each channel of `[T, B, C, H, W]`."""
    return ns.LIF(torch.full((channels, 1, 1), 0.8), learn_beta=True)


def main(epochs=6):
    """Train; accuracy on pictures never trained on, and the decays of the first channels."""
    torch.manual_seed(0)
    digits = load_digits()
    pictures = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    pictures = pictures.expand(-1, 8, -1, -1)  # 8 steps
    data = TensorDataset(pictures.unsqueeze(2), torch.tensor(digits.target))
    train, held_out, test = random_split(data, [1257, 180, 360])
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), lif(16), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), lif(32), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10), ns.LI(0.9)]
    net = ns.Sequential(*layers, batch_first=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss())
    trainer.fit(DataLoader(train, 64, shuffle=True), DataLoader(held_out, 180), epochs)
    return trainer.evaluate(DataLoader(test, 360))["accuracy"], net[2].beta.flatten().tolist()


if __name__ == "__main__":
    accuracy, decays = main()
    print(f"test accuracy {accuracy:.2%}; decays from {min(decays):.2f} to {max(decays):.2f}")
