"""The exponential moving average of the weights, which takes their place between steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """A running mean of a network's parameters and floating-point buffers.

    At rest the network holds the mean; while it is trained it holds the weights that the optimiser
    moves, and this object keeps the mean. The two are swapped in place, on the network's device.

    After step n (from 0) the mean moves to the weights by `1 - decay`, or by `9 / (10 + n)` where
    that is more, so that the first weights are soon forgotten (as in TensorFlow's
    `ExponentialMovingAverage` with `num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        saved = model.state_dict(keep_vars=True).values()
        tensors = (one for one in saved if isinstance(one, Tensor) and one.is_floating_point())
        held = {id(tensor): tensor for tensor in tensors}  # once, however many names it has
        parameters = [tensor for tensor in held.values() if isinstance(tensor, nn.Parameter)]
        self._parameters = parameters
        self._held = [tensor.detach() for tensor in held.values()]
        self._other = [tensor.clone() for tensor in self._held]
        self._others = dict(zip(held, self._other))
        self._steps = torch.zeros((), device=self._held[0].device)  # where a CUDA graph counts them
        self._is_training = False
        self._versions = self._versions_now()

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the weights after a step, without waiting for the device."""
        share = (9 / (10 + self._steps)).clamp_min(1 - self._decay)
        if share.is_cpu:  # in one pass, for which torch wants a number
            torch._foreach_lerp_(self._other, self._held, float(share))
        else:
            moved = torch._foreach_sub(self._held, self._other)
            torch._foreach_mul_(moved, share)
            torch._foreach_add_(self._other, moved)
        self._steps += 1

    def train(self) -> None:
        """Let the network hold the weights that are trained.

        Training continues from weights that were set at rest, such as by `load_state_dict`, and
        the mean begins anew with them.
        """
        self._take_over()
        self._swap()
        self._is_training = True

    def rest(self) -> None:
        """Let the network hold the mean."""
        if self._is_training:
            self._swap()
            self._is_training = False
            self._versions = self._versions_now()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Let the network hold the mean for as long as this lasts."""
        was_training = self._is_training
        self.rest()
        try:
            yield
        finally:
            if was_training:
                self.train()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights that the network holds."""
        torch._foreach_copy_(self._other, self._held)
        self._steps.zero_()
        self._versions = self._versions_now()

    def state_dicts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the network's state dict with the mean, and what training continues from."""
        if not self._is_training:
            self._take_over()
        held = dict(self._model.state_dict())
        named = self._model.state_dict(keep_vars=True).items()
        other = {name: self._others.get(id(tensor), held[name]) for name, tensor in named}
        mean, trained = (other, held) if self._is_training else (held, other)
        return mean, {"weights": trained, "steps": self._steps}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Continue from what `state_dicts` returned, once the network holds the mean.

        state: None of a run that had no mean: it begins with the weights of the network. Raises
        ValueError for a mean that is NaN: it would stay NaN, and no step would report it.
        """
        for name, parameter in self._model.named_parameters():
            if parameter.isnan().any():
                raise ValueError(f"not finite first: the parameter {name}")
        weights: dict[str, Tensor] = {}
        if state is not None:  # copied first, for it may be what is written over
            saved = state["weights"].items()
            weights = {name: one.clone() for name, one in saved if isinstance(one, Tensor)}
        steps = state["steps"].clone() if state is not None else torch.zeros(())
        was_training, self._is_training = self._is_training, False
        self.restart()
        with torch.no_grad():
            for name, tensor in self._model.state_dict(keep_vars=True).items():
                if name in weights and id(tensor) in self._others:
                    self._others[id(tensor)].copy_(weights[name])
            self._steps.copy_(steps)
        if was_training:
            self.train()

    def _take_over(self) -> None:
        """Begin anew if weights were set since the network came to rest."""
        if self._versions_now() != self._versions:
            self.restart()

    @torch.no_grad()
    def _swap(self) -> None:
        kept = [tensor.clone() for tensor in self._held]
        torch._foreach_copy_(self._held, self._other)
        torch._foreach_copy_(self._other, kept)

    def _versions_now(self) -> list[int]:
        # Buffers change by running the network, parameters only if somebody sets them.
        return [parameter._version for parameter in self._parameters]
