"""`snntorch_before.py` on fused layers: an import and two lines changed, the loop over time gone.

`python examples/snntorch_after.py`
"""

import snntorch as snn
import torch
from snntorch_training import NUM_STEPS, report, train
from torch import nn

import neurospike as ns


def make_network():
    """784 pixels, 1,000 hidden neurons, 10 output neurons."""
    ones = {"graded_spikes_factor": torch.ones(1)}  # snnTorch's spikes are float32 without
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1000),
        snn.Leaky(beta=0.95, init_hidden=True, **ones),
        nn.Linear(1000, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True, **ones),
    )
    return ns.convert(network)


def run(network, images):
    """Spikes and membranes of the output neurons, `[T, B, 10]`, for pictures `[B, 1, 28, 28]`."""
    (spikes, membranes), _ = network(images, num_steps=NUM_STEPS)
    return spikes, membranes


if __name__ == "__main__":
    report(*train(make_network, run))
