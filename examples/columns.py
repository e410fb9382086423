"""SpikingJelly's example `rsnn_sequential_fmnist` with a feedback layer, on our layers and trainer.

Fashion-MNIST read column by column by integrate-and-fire neurons whose spikes come back to them.
`python examples/columns.py --data data`; interrupt it and run it again, and it goes on.
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets

import neurospike as ns

OPTIONS = {"reset": "zero", "reset_delay": False, "surrogate": "atan"}


class Net(nn.Module):
    """Pictures `[B, 1, 28, 28]` to how often each of ten neurons fires, `[B, 10]`."""

    def __init__(self):
        super().__init__()
        feedback = ns.LIF(1.0, detach_reset=True, **OPTIONS)  # beta = 1: no leak
        self.layers = ns.Sequential(
            nn.Linear(28, 32),
            nn.Linear(32, 32, bias=False),
            ns.Recurrent(feedback, 32, bias=True),
            nn.Linear(32, 10),
            ns.LIF(1.0, **OPTIONS),
        )
        with torch.no_grad():  # to the first weights of one layer of 64 inputs, current and spikes
            for weight in (self.layers[1].weight, *self.layers[2].parameters()):
                weight.mul_(math.sqrt(32 / 64))

    def forward(self, pictures):
        """Read a column per step."""
        return self.layers(pictures.squeeze(1).permute(2, 0, 1))[0].mean(0)


def squared(scores, labels):
    """Return the distance of the firing rates from 1 for the label and 0 for the rest."""
    return nn.functional.mse_loss(scores, nn.functional.one_hot(labels, 10).float())


def main(data, epochs, folder="runs/columns"):
    """Train in a folder, or go on there; what the best network makes of the test pictures."""
    torch.manual_seed(0)
    try:
        sets = [datasets.FashionMNIST(data, train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(
            f"Fashion-MNIST is not whole in {data}/FashionMNIST/raw and could not be downloaded "
            f"there ({reason}): put its four files there, or name another folder by --data"
        ) from None
    train, test = (TensorDataset(one.data[:, None] / 255, one.targets) for one in sets)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    per_epoch = len(train) // 256
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * (step // per_epoch) / epochs)) / 2
    )
    trainer = ns.SNNTrainer(net, optimizer, squared, scheduler=schedule)
    loader = DataLoader(train, 256, shuffle=True, drop_last=True)
    trainer.fit(loader, DataLoader(test, 256), epochs, run=folder, resume=True)
    return trainer.evaluate(DataLoader(test, 256))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of torchvision's data sets")
    parser.add_argument("--epochs", type=int, default=64)
    options = parser.parse_args()
    print(f"test accuracy {main(options.data, options.epochs)['accuracy']:.2%}")
