"""From a configuration to the trainer: optimiser, loss, penalty and schedule."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike import losses
from neurospike.training.schedule import Schedule
from neurospike.training.trainer import SNNTrainer

if TYPE_CHECKING:
    from neurospike.config import Config


def make_trainer(
    config: "Config", model: nn.Module, fabric: Any, steps: int, epochs: int
) -> SNNTrainer:
    """The trainer that the configuration asks for, of so many steps per epoch."""
    training = config.training
    optimizer = _optimizer(config, model)
    penalty = None
    if training.rate_penalty:

        def penalty(activity: Mapping[str, Tensor]) -> Tensor:
            beyond = losses.rate_penalty(activity, training.rate_low, training.rate_high)
            return training.rate_penalty * beyond

    return SNNTrainer(
        model,
        optimizer,
        losses.LOSSES.get(training.loss, nn.CrossEntropyLoss()),
        fabric=fabric,
        scheduler=Schedule(
            optimizer,
            training.schedule,
            total_steps=epochs * steps,
            warmup=training.warmup,
            every=training.step_epochs * steps,
            gamma=training.gamma,
            patience=training.plateau_patience,
        ),
        on_output=training.loss in losses.LOSSES,
        penalty=penalty,
        clip=training.clip,
    )


def _optimizer(config: "Config", model: nn.Module) -> torch.optim.Optimizer:
    # Decay is for weight matrices: it would pull biases, and learned beta and threshold, to 0.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    training = config.training
    return torch.optim.Adam(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=True,
    )
