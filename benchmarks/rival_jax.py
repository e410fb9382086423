"""spyx, which computes in JAX, as a layer that can stand beside those of torch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import spyx
import torch
from flax import nnx
from torch import Tensor


class Spyx:
    """`spyx.nn.LIF` under `jax.lax.scan`, compiled by JAX; timed on arrays of JAX's own."""

    def __init__(self, beta: float) -> None:
        """Make a layer whose surrogate is that of atan(2). beta: its decay per time step."""

        def atan(u: Any) -> Any:
            return 1.0 / (1.0 + (jax.numpy.pi * u) ** 2)

        def forward(current: Any) -> Any:
            layer = spyx.nn.LIF(
                current.shape[2:], beta, activation=spyx.axn.custom(atan), rngs=nnx.Rngs(0)
            )
            return spyx.nn.run(layer, current)[0]

        def both(current: Any, grad: Any) -> Any:
            spikes, pull_back = jax.vjp(forward, current)
            return spikes, pull_back(grad)[0]

        self.forward, self.both = jax.jit(forward), jax.jit(both)

    def __call__(self, current: Tensor) -> Tensor:
        """Return the spikes; their gradient is that of JAX."""
        return _SpyxFunction.apply(current, self)

    def step(self, current: Tensor, grad: Tensor) -> Callable[[], object]:
        """Return forward and backward on arrays that are JAX's already."""
        arrays = _to_jax(current), _to_jax(grad)
        return lambda: jax.block_until_ready(self.both(*arrays))

    def inference(self, current: Tensor) -> Callable[[], object]:
        """Return forward alone."""
        array = _to_jax(current)
        return lambda: jax.block_until_ready(self.forward(array))

    def workload(self, linear: torch.nn.Linear, x: Tensor) -> Callable[[], object]:
        """Return forward and backward of a linear layer and this one, for the sum of spikes."""
        arrays = [_to_jax(t) for t in (linear.weight.t().contiguous(), linear.bias, x)]

        def loss(weight: Any, bias: Any, x: Any) -> Any:
            return self.forward(x @ weight + bias).sum()

        gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return lambda: jax.block_until_ready(gradients(*arrays))


class _SpyxFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, layer: Spyx) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(current)
        return _to_torch(layer.forward(_to_jax(current)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (current,) = ctx.saved_tensors
        return _to_torch(ctx.layer.both(_to_jax(current), _to_jax(grad))[1]), None


def _to_jax(tensor: Tensor) -> Any:
    return jax.numpy.asarray(tensor.detach().numpy())


def _to_torch(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
