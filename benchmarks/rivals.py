"""What a layer or a network is measured against, each with what it computes.

A layer here is a function `current [T, B, N] -> spikes [T, B, N]`, differentiable. The sequence is
taken apart by `unbind` wherever a rival steps in Python: indexing `x[t]` would make torch's
backward quadratic in T and flatter us many times over.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns
from neurospike import losses

Layer = Callable[[Tensor], Tensor]
BETA = 0.95


def ours(backend: str, *, reset_delay: bool = True) -> Layer:
    """NeuroSpike; with `reset_delay` the semantics of snnTorch, without those of SpikingJelly."""

    def layer(current: Tensor) -> Tensor:
        return ns.lif(current, beta=BETA, reset_delay=reset_delay, backend=backend)[0]

    return layer


def snntorch_loop() -> Layer:
    """`Leaky` of snnTorch, soft delayed reset, atan(2), stepped over `unbind`."""
    import snntorch

    leaky = snntorch.Leaky(beta=BETA)

    def layer(current: Tensor) -> Tensor:
        mem = leaky.init_leaky()
        spikes = []
        for current_t in current.unbind(0):
            spike, mem = leaky(current_t, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return layer


def spikingjelly_multi_step() -> Layer:
    """SpikingJelly's `lif_multi_step`: soft immediate reset, fires at `>=`, atan(2)."""
    from spikingjelly.activation_based import functional, surrogate

    function = surrogate.ATan(alpha=2.0)

    def layer(current: Tensor) -> Tensor:
        mem = torch.zeros_like(current[0])
        return functional.lif_multi_step(
            current,
            mem,
            tau=1.0 / (1.0 - BETA),
            decay_input=False,
            v_reset=None,
            surrogate_function=function,
        )[0]

    return layer


def compiled(layer: Layer) -> Layer:
    """Return a rival under torch.compile; its first call takes from seconds to minutes."""
    return torch.compile(layer, dynamic=False)


def installed(package: str) -> bool:
    """Return whether a rival's package is here."""
    return importlib.util.find_spec(package) is not None


class Tutorial5(nn.Module):
    """The network of snnTorch's fifth tutorial, stepped in Python as its authors step it."""

    def __init__(self, inputs: int = 784, hidden: int = 1000, outputs: int = 10, steps: int = 25):
        """Make the layers: `inputs`-`hidden`-`outputs`, shown for `steps`."""
        import snntorch

        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = snntorch.Leaky(beta=BETA)
        self.fc2 = nn.Linear(hidden, outputs)
        self.lif2 = snntorch.Leaky(beta=BETA)

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
        self.lif1 = ns.LIF(beta=BETA, backend=backend)
        self.fc2 = nn.Linear(hidden, outputs)
        self.lif2 = ns.LIF(beta=BETA, backend=backend)

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


def layer_step(layer: Layer, current: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return forward and backward of a layer, given the gradient of its spikes.

    The current's gradient is freed within the step: else the next rival would pay for it.
    """

    def step() -> None:
        layer(current).backward(grad)
        current.grad = None

    return step


def inference(layer: Layer, current: Tensor) -> Callable[[], None]:
    """Return forward alone, under no_grad."""

    def step() -> None:
        with torch.no_grad():
            layer(current)

    return step
