"""Train the digit recogniser: `python -m neurospike.train`.

Reads from top to bottom: what was asked for, the data, the network, the training, the test.
This is also the one place that chooses a backend; model and trainer know none.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from neurospike import buffers
from neurospike.cli import guarded, parse
from neurospike.config import Config, load_config
from neurospike.data import Batches, DigitData, Preprocessing, load
from neurospike.devices import check_backend, choose_device
from neurospike.dispatch import choose, use_backend
from neurospike.errors import ConfigError, MissingDependencyError
from neurospike.loading import build_model
from neurospike.training import (
    Metrics,
    Run,
    SNNTrainer,
    draw_curves,
    draw_network,
    load_checkpoint,
)

PUBLISHED = Path("checkpoints/best_model.pth")  # where prediction looks by default


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.train") -> int:
    """Run the command with these arguments (default: the process's own); its exit code."""

    def job() -> int:
        path, overrides = parse(argv, prog, "Train a spiking network to recognise digits.")
        config = load_config(path, overrides)
        buffers.keep_freed_memory()
        tested = train(config)
        print(f"test accuracy: {tested.accuracy:.2%}", flush=True)
        return 0

    return guarded(job)


def train(config: Config) -> Metrics:
    """Do one training run as configured; the metrics of its best model on the test pictures.

    Writes a run folder (see `Run`), and a copy of the best model as `checkpoints/best_model.pth`
    of the working folder. Raises NeuroSpikeError and OSError for what the user can put right.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with use_backend(check_backend(config.backend)):
        device = choose_device(config.device, config.backend)
        backend = choose("auto", device.type).name  # also: can it run on this device?
        data = load(config.dataset, config.data_path)
        print(data.note, flush=True)
        _check_sizes(config, data)
        run = Run(
            config.run_dir,
            config=config.model_dump(mode="json"),
            record={
                "dataset": data.name,
                "note": data.note,
                "backend": backend,
                "device": str(device),
                "seed": config.seed,
            },
            published=PUBLISHED,
        )
        print(f"{backend} backend on {device}; the run is kept in {run.folder}", flush=True)
        return _train_and_test(config, data, device, run)


def _train_and_test(config: Config, data: DigitData, device: torch.device, run: Run) -> Metrics:
    training = config.training
    torch.manual_seed(config.seed)
    shuffle = torch.Generator().manual_seed(config.seed)
    rest, held_out = data.train, None
    if training.validation > 0:
        rest, held_out = data.train.split(training.validation, config.seed)
    train_batches = Batches(
        rest, training.batch_size, shuffle=True, generator=shuffle, device=device
    )
    held_out_batches = (
        None if held_out is None else Batches(held_out, training.batch_size, device=device)
    )
    test_batches = Batches(data.test, training.batch_size, device=device)

    model = build_model(config).to(device)
    optimizer = _optimizer(config, model)
    scheduler = None
    if training.schedule == "cosine":
        steps = training.epochs * len(train_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    trainer = SNNTrainer(
        model, optimizer, nn.CrossEntropyLoss(), device=device, scheduler=scheduler
    )
    try:
        trainer.fit(train_batches, held_out_batches, training.epochs, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(run)) from None

    model.load_state_dict(load_checkpoint(run.best, device)["model"])
    tested = trainer.evaluate(test_batches, "test")
    run.log("test", loss=tested.loss, accuracy=tested.accuracy, spike_rates=tested.spike_rates)
    for layer, rate in tested.spike_rates.items():
        print(f"spike rate of {layer}: {rate:.4f} a neuron and time step")
    try:
        draw_curves(run.folder)
        draw_network(run.folder, model, test_batches)
    except MissingDependencyError as error:
        print(error)  # a picture less is no reason to fail a finished run
    return tested


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
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


def _check_sizes(config: Config, data: DigitData) -> None:
    """Raise ConfigError for a network that does not fit the pictures or has too few classes."""
    try:
        height, width = Preprocessing(config.preprocessing).size(*data.train.images[0].shape)
    except ValueError as error:
        raise ConfigError(f"preprocessing: {error}") from None
    if config.model.input_size != height * width:
        raise ConfigError(
            f"model.input_size: got {config.model.input_size}, but the pictures of {data.name} "
            f"have {height * width} pixels"
        )
    classes = int(data.train.labels.max()) + 1
    if config.model.output_size < classes:
        raise ConfigError(
            f"model.output_size: got {config.model.output_size}, but {data.name} has {classes} "
            "classes"
        )


def _kept(run: Run) -> str:
    kept = f"the state so far is in {run.interrupted}"
    return kept + (f", the last whole epoch in {run.last.name}" if run.last.exists() else "")


if __name__ == "__main__":
    raise SystemExit(main())
