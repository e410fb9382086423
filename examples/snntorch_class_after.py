"""`snntorch_class_before.py` on fused layers: each layer is called once, with all time steps.

`python examples/snntorch_class_after.py`
"""

import snntorch as snn
from snntorch_training import NUM_STEPS, report, train
from torch import nn

import neurospike as ns


# --8<-- [start:network]
class Net(nn.Module):
    """784 pixels, 1,000 hidden neurons, 10 output neurons."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 1000)
        self.lif1 = ns.LIF.from_snntorch(snn.Leaky(beta=0.95))
        self.fc2 = nn.Linear(1000, 10)
        self.lif2 = ns.LIF.from_snntorch(snn.Leaky(beta=0.95))

    def forward(self, images):
        """Spikes and membranes of the output neurons, `[T, B, 10]`."""
        spk1, _ = self.lif1(self.fc1(images), num_steps=NUM_STEPS)
        spikes, _, membranes = self.lif2(self.fc2(spk1), return_trace=True)
        return spikes, membranes


# --8<-- [end:network]


def run(network, images):
    """Spikes and membranes of the output neurons, `[T, B, 10]`, for pictures `[B, 1, 28, 28]`."""
    return network(images.flatten(1))


if __name__ == "__main__":
    report(*train(Net, run))
