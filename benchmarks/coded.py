"""The networks of `benchmarks.events`: 784-1000-10 on spike-coded MNIST, theirs and ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike.coding import losses

from .rivals import BETA

STEPS = 25
SIZES = (784, 1000, 10)
RIVALS = ("snntorch", "ours, dense", "ours, events")
CODINGS = ("rate", "latency")


class Loop(nn.Module):
    """snnTorch as its tutorials 3 and 5 are written: encode, then a Python loop over the steps."""

    def __init__(self, coding: str) -> None:
        """Make the layers; `coding` says how `encode` turns pictures into spikes."""
        import snntorch

        super().__init__()
        inputs, hidden, outputs = SIZES
        self.coding = coding
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = snntorch.Leaky(beta=BETA)
        self.fc2 = nn.Linear(hidden, outputs)
        self.lif2 = snntorch.Leaky(beta=BETA)

    def encode(self, images: Tensor) -> Tensor:
        """Return spikes `[T, B, 784]`, by snnTorch's `spikegen`."""
        from snntorch import spikegen

        if self.coding == "rate":
            return spikegen.rate(images, num_steps=STEPS)
        return spikegen.latency(
            images, num_steps=STEPS, normalize=True, linear=True, clip=True, threshold=0.01
        )

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the output neurons' membranes `[T, B, 10]`."""
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        mems = []
        for step in range(STEPS):
            spike1, mem1 = self.lif1(self.fc1(spikes[step]), mem1)
            # snnTorch's spikes are float32 whatever the layer is; nothing is done in float32.
            _, mem2 = self.lif2(self.fc2(spike1.to(mem1.dtype)), mem2)
            mems.append(mem2)
        return torch.stack(mems)

    def loss(self, spikes: Tensor, labels: Tensor) -> Tensor:
        """Return the tutorial's loss: cross-entropy of each step's membrane, summed over steps."""
        mems = self(spikes)
        total = torch.zeros((1), dtype=torch.float32)
        for step in range(STEPS):
            total += nn.functional.cross_entropy(mems[step], labels)
        return total


class Fused(nn.Module):
    """The same network and loss in NeuroSpike, with a dense or an event-driven linear layer."""

    def __init__(self, coding: str, events: bool) -> None:
        """Make the layers; `coding` says how `encode` turns pictures into spikes."""
        super().__init__()
        inputs, hidden, outputs = SIZES
        linear = ns.SpikeLinear if events else nn.Linear
        self.coding, self.dtype = coding, torch.uint8 if events else torch.float32
        self.fc1 = linear(inputs, hidden)
        self.lif1 = ns.LIF(beta=BETA)
        self.fc2 = linear(hidden, outputs)
        self.lif2 = ns.LIF(beta=BETA)

    def encode(self, images: Tensor) -> Tensor:
        """Return spikes `[T, B, 784]`."""
        return getattr(ns.encoding, self.coding)(images, STEPS, dtype=self.dtype)

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the output neurons' membranes `[T, B, 10]`."""
        hidden, _ = ns.spike_layer(self.fc1, self.lif1, spikes)
        _, _, mems = self.lif2(self.fc2(hidden), return_trace=True)
        return mems

    def loss(self, spikes: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy of each step's membrane, summed over steps."""
        return losses.cross_entropy_membrane(self(spikes), labels)


def network(rival: str, coding: str) -> tuple[Any, torch.optim.Optimizer]:
    """Return a rival's network, always with the same first weights, and its optimiser."""
    torch.manual_seed(0)
    theirs = rival == "snntorch"
    net = Loop(coding) if theirs else Fused(coding, events=rival == "ours, events")
    # The tutorial takes torch's default implementation; the fused one belongs to what we offer.
    fused = None if theirs else True
    return net, torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999), fused=fused)


def training_step(
    net: Any, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """Return one whole training step: encode, forward, loss, backward, update."""

    def step() -> Tensor:
        loss = net.loss(net.encode(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return MNIST's pictures `[N, 784]` in [0, 1] and labels `[N]`."""
    from torchvision.datasets import MNIST

    found = MNIST(str(root), train=train, download=False)
    return found.data.flatten(1).float() / 255, found.targets
