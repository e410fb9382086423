"""Whole networks that are measured: snnTorch's tutorial 5 as written, and the same one fused."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike.coding import losses

from . import rivals

NETWORKS = {"snntorch": False, "numba": True}  # name: whether its neurons are fused


class Tutorial5(nn.Module):
    """The network of snnTorch's fifth tutorial, stepped in Python as its authors step it."""

    def __init__(self, inputs: int = 784, hidden: int = 1000, outputs: int = 10, steps: int = 25):
        """Make the layers: `inputs`-`hidden`-`outputs`, shown for `steps`."""
        import snntorch

        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = snntorch.Leaky(beta=rivals.BETA)
        self.fc2 = nn.Linear(hidden, outputs)
        self.lif2 = snntorch.Leaky(beta=rivals.BETA)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output neurons' spikes and membranes `[T, B, outputs]`."""
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, mems = [], []
        for _ in range(self.steps):
            spike1, mem1 = self.lif1(self.fc1(images), mem1)
            spike2, mem2 = self.lif2(self.fc2(spike1), mem2)
            spikes.append(spike2)
            mems.append(mem2)
        return torch.stack(spikes), torch.stack(mems)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the tutorial's loss: cross-entropy of each step's membrane, summed over steps."""
        _, mems = self(images)
        total = torch.zeros((1), dtype=torch.float32, device=images.device)
        for step in range(self.steps):
            total += nn.functional.cross_entropy(mems[step], labels)
        return total


class FusedTutorial5(nn.Module):
    """The same network and loss with NeuroSpike's layers."""

    def __init__(
        self,
        inputs: int = 784,
        hidden: int = 1000,
        outputs: int = 10,
        steps: int = 25,
        backend: str = "auto",
    ):
        """Make the layers: `inputs`-`hidden`-`outputs`, shown for `steps`."""
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = ns.LIF(beta=rivals.BETA, backend=backend)
        self.fc2 = ns.SpikeLinear(hidden, outputs)
        self.lif2 = ns.LIF(beta=rivals.BETA, backend=backend)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output neurons' spikes and membranes `[T, B, outputs]`."""
        spikes, _ = self.lif1(self.fc1(images), num_steps=self.steps)
        spikes, _, mems = self.lif2(self.fc2(spikes), return_trace=True)
        return spikes, mems

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy of each step's membrane, summed over steps."""
        _, mems = self(images)
        return losses.cross_entropy_membrane(mems, labels)


def training_step(
    network: Any, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], Tensor]:
    """Return one whole training step: forward, loss, backward, update."""

    def step() -> Tensor:
        loss = network.loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def tutorial(fused: bool) -> tuple[Any, Tensor, Tensor, torch.optim.Optimizer]:
    """Return the network, a batch of 128 with labels, and the optimiser of a rival."""
    torch.manual_seed(0)
    net = FusedTutorial5() if fused else Tutorial5()
    images, labels = torch.rand(128, 784), torch.randint(0, 10, (128,))
    # The tutorial takes torch's default implementation; the fused one belongs to what we offer.
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999), fused=fused or None)
    return net, images, labels, optimizer
