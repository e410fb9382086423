"""Two sequences of the same spikes in another order, told apart by delays that are found.

`python examples/delays.py`; with the package `dcls` (pip install dcls) also with a delay for every
synapse, by a convolution of that package in front of the same neurons.
"""

import torch
from torch import nn

import neurospike as ns

# --8<-- [start:task]
STEPS, CHANNELS, MAX_DELAY = 40, 8, 16
ORDER = torch.tensor([0, 9, 4, 14, 2, 11, 6, 13])  # when each channel fires, in steps
CLASSES = torch.stack((ORDER, 14 - ORDER))  # and backwards


def samples(count, generator=None):
    """Spikes `[T, B, 8]`, one of each channel in the order of its class, and the classes `[B]`."""
    labels = torch.randint(2, (count,), generator=generator)
    begin = torch.randint(8, (count, 1), generator=generator)  # when is no hint
    spikes = torch.zeros(STEPS, count, CHANNELS)
    spikes.scatter_(0, (CLASSES[labels] + begin).unsqueeze(0), 1.0)
    return spikes, labels


class Detectors(nn.Module):
    """A neuron for each class, which adds up what arrives; only the delays are learned."""

    def __init__(self):
        super().__init__()
        self.delay = ns.Delay((2, CHANNELS), MAX_DELAY, kernel="gaussian", sigma=MAX_DELAY / 2)
        self.neuron = ns.LI(beta=0.3)

    def forward(self, spikes):
        """Return how high each neuron's membrane rises `[B, 2]`."""
        late, _ = self.delay(spikes.unsqueeze(2).expand(-1, -1, 2, -1))
        membrane, _ = self.neuron(late.sum(3))
        return membrane.amax(0)


# --8<-- [end:task]


# --8<-- [start:training]
def train(steps=300):
    """Learn the delays while the kernel narrows; return the detectors."""
    model = Detectors()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    for step in range(steps):
        share = step / steps
        model.delay.sigma.fill_(MAX_DELAY / 2 * (1 - share) + 0.5 * share)
        spikes, labels = samples(64)
        loss = nn.functional.cross_entropy(model(spikes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.delay.kernel = "linear"
    return model


# --8<-- [end:training]


def accuracy(model):
    """Return the share of samples whose detector rises higher."""
    spikes, labels = samples(1000)
    with torch.no_grad():
        return float((model(spikes).argmax(1) == labels).float().mean())


def arrivals(model):
    """Return when the spikes of each class arrive at its own detector `[2, 8]`."""
    return CLASSES + model.delay.delay.detach().clamp(0, MAX_DELAY)


# --8<-- [start:synapses]
class Synapses(nn.Module):
    """A weight and a delay for every synapse, of the package `dcls`, and a readout of ours."""

    def __init__(self):
        super().__init__()
        from DCLS.construct.modules import Dcls1d

        self.synapses = Dcls1d(
            CHANNELS, 2, 1, dilated_kernel_size=MAX_DELAY + 1, bias=False, version="gauss"
        )
        nn.init.constant_(self.synapses.weight, 1.0)
        nn.init.uniform_(self.synapses.P, -MAX_DELAY / 2, MAX_DELAY / 2)
        self.neuron = ns.LI(beta=0.3)

    def forward(self, spikes):
        """Return how high each neuron's membrane rises `[B, 2]`."""
        x = nn.functional.pad(spikes.permute(1, 2, 0), (MAX_DELAY, 0))  # [B, 8, T], causal
        current = self.synapses(x).permute(2, 0, 1)  # [T, B, 2]
        membrane, _ = self.neuron(current)
        return membrane.amax(0)


def train_synapses(steps=300):
    """Learn the delays of all synapses; return the model."""
    model = Synapses()
    optimizer = torch.optim.Adam([model.synapses.P], lr=0.2)
    for step in range(steps):
        with torch.no_grad():  # dcls adds 0.27 to it
            model.synapses.SIG.fill_(MAX_DELAY / 2 * (1 - step / steps) + 0.23)
        spikes, labels = samples(64)
        loss = nn.functional.cross_entropy(model(spikes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.synapses.clamp_parameters()
    return model


# --8<-- [end:synapses]


def main():
    """Find the delays; return the accuracy and how far the arrivals of a class are apart."""
    torch.manual_seed(0)
    before = arrivals(Detectors()).std(1)
    model = train()
    found, apart = accuracy(model), arrivals(model).std(1)
    print(f"accuracy {found:.3f}; a class's spikes arrive within", end=" ")
    print(f"{apart.max():.2f} steps of one another (standard deviation), {before.min():.2f} before")
    try:
        print(f"with a delay for every synapse: accuracy {accuracy(train_synapses()):.3f}")
    except ImportError:
        print("pip install dcls shows a delay for every synapse")
    return found, float(apart.max()), float(before.min())


if __name__ == "__main__":
    main()
