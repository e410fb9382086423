"""snnTorch's tutorial 5 with an `nn.Sequential`: two layers of neurons, a loop over time.

The network and its training are those of https://snntorch.readthedocs.io (tutorial 5), on the 1,797
real digits that scikit-learn bundles. `snntorch_after.py` is this file with an import and two lines
changed, and the loop gone. `python examples/snntorch_before.py`
"""

import snntorch as snn
import torch
from snntorch import utils
from snntorch_training import NUM_STEPS, report, train
from torch import nn


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
    return network


def run(network, images):
    """Spikes and membranes of the output neurons, `[T, B, 10]`, for pictures `[B, 1, 28, 28]`."""
    utils.reset(network)
    steps = [network(images) for _ in range(NUM_STEPS)]
    spikes, membranes = zip(*steps, strict=True)
    return torch.stack(spikes), torch.stack(membranes)


if __name__ == "__main__":
    report(*train(make_network, run))
