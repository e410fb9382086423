"""The network of snnTorch's tutorial 5 as that writes it: a class whose `forward` loops over time.

`snntorch_class_after.py` is the same class without the loop. `python
examples/snntorch_class_before.py`
"""

import snntorch as snn
import torch
from snntorch_training import NUM_STEPS, report, train
from torch import nn


# --8<-- [start:network]
class Net(nn.Module):
    """784 pixels, 1,000 hidden neurons, 10 output neurons."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 1000)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(1000, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, images):
        """Spikes and membranes of the output neurons, `[T, B, 10]`."""
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(NUM_STEPS):
            spk1, mem1 = self.lif1(self.fc1(images), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1.to(mem1.dtype)), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


# --8<-- [end:network]


def run(network, images):
    """Spikes and membranes of the output neurons, `[T, B, 10]`, for pictures `[B, 1, 28, 28]`."""
    return network(images.flatten(1))


if __name__ == "__main__":
    report(*train(Net, run))
