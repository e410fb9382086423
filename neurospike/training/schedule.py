"""Learning rate schedules."""

import math
from typing import Any, Literal, get_args

from torch.optim import Optimizer

Kind = Literal["constant", "cosine", "step", "plateau"]


class Schedule:
    """Scales the learning rates of an optimiser's groups; call `step` after every step.

    Unlike torch's schedules it combines a warm-up with every kind, the plateau included, and is
    saved and resumed as one.

    Args:
        optimizer: whose rates are scaled from what they are now.
        kind: `"constant"`; `"cosine"`, falling to zero over `total_steps` (Loshchilov and Hutter
            2017, arXiv:1608.03983); `"step"`, times `gamma` after every `every` steps; `"plateau"`,
            times `gamma` when `report` was given a loss not better than the best `patience` times
            in a row.
        total_steps: steps of the whole run, warm-up included, for `"cosine"`.
        warmup: steps over which the rate rises linearly from near zero first, whatever the kind.
        every: steps between two drops of `"step"`.
        gamma: factor of a drop.
        patience: reports before a drop of `"plateau"`.

    Raises:
        ValueError: another kind, or a number of steps or reports that is too small.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        kind: Kind = "constant",
        *,
        total_steps: int = 1,
        warmup: int = 0,
        every: int = 1,
        gamma: float = 0.1,
        patience: int = 3,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        for name, count, least in (
            ("total_steps", total_steps, 0),
            ("warmup", warmup, 0),
            ("every", every, 1),
            ("patience", patience, 1),
        ):
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        self.optimizer, self.kind = optimizer, kind
        self.total_steps, self.warmup = total_steps, warmup
        self.every, self.gamma, self.patience = every, gamma, patience
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.taken = 0  # steps
        self.drops = 0  # of a plateau schedule
        self.waited = 0
        self.best = math.inf
        self._apply()

    def factor(self) -> float:
        """Return what the learning rate is multiplied by now."""
        rise = min(1.0, (self.taken + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "cosine":
            # The warm-up's steps are not part of the fall.
            whole = max(1, self.total_steps - self.warmup)
            done = min(1.0, max(0, self.taken - self.warmup) / whole)
            return rise * 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "step":
            return rise * self.gamma ** (self.taken // self.every)
        if self.kind == "plateau":
            return rise * self.gamma**self.drops
        return rise

    def step(self) -> None:
        """Count a step of the optimiser and set the rates of the next."""
        self.taken += 1
        self._apply()

    def report(self, loss: float) -> None:
        """Take in a validation loss, of which only a plateau schedule takes notice."""
        if loss < self.best:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            self.drops, self.waited = self.drops + 1, 0
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during a run; the rest is given by the configuration."""
        names = ("taken", "drops", "waited", "best", "base")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
        self._apply()

    def _apply(self) -> None:
        factor = self.factor()
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
