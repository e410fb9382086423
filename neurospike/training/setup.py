"""From a configuration to the trainer: optimiser, loss, penalty, schedule, and what they need."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.coding import losses
from neurospike.errors import ConfigError

from .adam import Adam
from .schedule import Schedule
from .trainer import SNNTrainer

if TYPE_CHECKING:
    from neurospike.config import Config


def make_trainer(
    config: "Config", model: nn.Module, fabric: Any, steps: int, epochs: int
) -> SNNTrainer:
    """The trainer that the configuration asks for, of so many steps per epoch."""
    training = config.training
    optimizer = make_optimizer(config, model)
    penalty = None
    if training.rate_penalty:

        def penalty(activity: Mapping[str, Tensor], lengths: Tensor | None = None) -> Tensor:
            low, high = training.rate_low, training.rate_high
            beyond = losses.rate_penalty(activity, low, high, lengths)
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
            warmup=training.warmup_of(epochs * steps),
            every=training.step_epochs * steps,
            gamma=training.gamma,
            patience=training.plateau_patience,
        ),
        on_output=training.loss in losses.LOSSES,
        penalty=penalty,
        clip=training.clip,
        cuda_graph=config.cuda_graph,
        ema=training.ema,
    )


def make_optimizer(config: "Config", model: nn.Module) -> torch.optim.Optimizer:
    """Adam as the configuration has it; weights decay, biases and what neurons learn do not."""
    # Decay is for weight matrices: it would pull biases, and learned beta and threshold, to 0.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    training = config.training
    return Adam(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=True,
    )


def check_batch(
    config: "Config", model: nn.Module, processes: int, pictures: int | None = None
) -> None:
    """Raise ConfigError if a process gets one picture per step and the network needs more.

    pictures: how many there are to train on, once that is known.
    """
    wanted = config.training.batch_size
    size = wanted if pictures is None else min(wanted, pictures)
    if size // processes >= 2 or config.encoding.kind == "none":  # a sequence has several steps
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            copy.deepcopy(model).train()(torch.zeros(1, *config.picture))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                by = f"{processes} process{'es' if processes > 1 else ''}"
                why = "but batch normalisation cannot train on one picture"
                other = "or --model.normalization layer"
                if size == wanted:
                    raise ConfigError(
                        f"training.batch_size: got {size} for {by}, {why}; use a --batch_size of "
                        f"at least {2 * processes}, {other}"
                    ) from None
                raise ConfigError(
                    f"training.validation: got {config.training.validation}, which leaves {size} "
                    f"picture{'s' if size > 1 else ''} for {by}, {why}; hold out less, add "
                    f"pictures until at least {2 * processes} are left, {other}"
                ) from None
