"""Train the digit recogniser: `python -m neurospike.train`.

Reads from top to bottom: what was asked for, the data, the network, the training, the test.
This is also the one place that chooses a backend; model and trainer know none.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurospike import buffers, losses
from neurospike.checks import check_data, check_run
from neurospike.cli import guarded, parse, stopping_whole
from neurospike.config import Config, load_config
from neurospike.data import Batches, DigitData, Split, load
from neurospike.devices import choose_device
from neurospike.dispatch import choose, use_backend
from neurospike.errors import CheckpointError, MissingDependencyError, NeuroSpikeError
from neurospike.loading import build_model
from neurospike.training import (
    Metrics,
    Run,
    SNNTrainer,
    draw_curves,
    draw_network,
    load_checkpoint,
)
from neurospike.training.board import Board
from neurospike.training.progress import summary
from neurospike.training.resume import newest_state, resumable
from neurospike.training.scale import launch, leave, make_fabric
from neurospike.training.schedule import Schedule

ABOUT = (
    "Train a spiking network to recognise digits, test it, and keep all of it in a run folder. "
    "Exit code 0: done; 2: an error, told in a line; 130: interrupted, go on with --resume."
)
PUBLISHED = Path("checkpoints/best_model.pth")  # where prediction looks by default


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.train") -> int:
    """Run the command with these arguments (default: the process's own); its exit code."""

    def job() -> int:
        path, overrides = parse(argv, prog, ABOUT)
        resumed = overrides.pop("resume", None)
        if resumed is not None:
            path = resumable(resumed, path, overrides)
        config = load_config(path, overrides)
        buffers.keep_freed_memory()
        try:
            tested = train(config, resumed)
        except (MemoryError, RuntimeError, TypeError) as error:
            if not _too_large(error):
                raise
            reason = str(error).partition("\n")[0].rstrip(".") or "out of memory"
            raise NeuroSpikeError(
                f"{reason}. Train with a smaller --batch_size, --num_steps or --hidden_size"
            ) from error
        if tested is not None:
            print(f"test accuracy: {tested.accuracy:.2%}", flush=True)
        return 0

    return guarded(job)


def _too_large(error: Exception) -> bool:
    """Whether it tells of memory that there is not, or of more than 64 bits can count."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU torch has no exception of its own for it.
    told = ("DefaultCPUAllocator", "Storage size calculation overflowed", "Overflow when unpacking")
    return any(text in str(error) for text in told)


def train(config: Config, resumed: str | Path | None = None) -> Metrics | None:
    """Do one training run as configured; the metrics of its best model on the test pictures.

    resumed: the folder of a run to go on with, which must have been made with this config.
    Writes a run folder (see `Run`), and a copy of the best model as `checkpoints/best_model.pth`
    of the working folder. Of several processes the first does so, and None comes back from the
    others. Raises NeuroSpikeError and OSError for what the user can put right.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS asks for it, and reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with use_backend(config.backend):
        device = choose_device(config.device, config.backend)
        backend = choose("auto", device.type).name  # also: can it run on this device?
        check_run(config, device, resumed=resumed is not None)
        fabric = make_fabric(device, config.precision, config.devices, config.num_nodes)
        launch(fabric)
        data = load(config.dataset, config.data_path)
        check_data(config, data)
        run = None
        if fabric.is_global_zero:
            print(data.note, flush=True)
            record = {
                "dataset": data.name,
                "note": data.note,
                "backend": backend,
                "device": str(device),
                "processes": fabric.world_size,
                "seed": config.seed,
            }
            settings = {"config": config.model_dump(mode="json"), "record": record}
            run = Run(
                config.run_dir if resumed is None else resumed,
                published=PUBLISHED,
                resumed=resumed is not None,
                **settings,
            )
            print(f"{backend} backend on {device}; the run is kept in {run.folder}", flush=True)
        tested = _train_and_test(config, data, fabric, run, resumed)
        leave(fabric)
        return tested


def _train_and_test(
    config: Config, data: DigitData, fabric: Any, run: Run | None, resumed: str | Path | None
) -> Metrics | None:
    training = config.training
    torch.manual_seed(config.seed)
    rest, held_out = data.train, None
    if training.validation > 0:
        rest, held_out = data.train.split(training.validation, config.seed)

    def batches(split: Split, generator: torch.Generator | None = None) -> Batches:
        return Batches(
            split,
            training.batch_size,
            shuffle=generator is not None,
            generator=generator,
            device=fabric.device,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )

    train_batches = batches(rest, torch.Generator().manual_seed(config.seed))
    epochs = training.epochs_of(len(train_batches))
    model = build_model(config)
    model.truncate(training.segment)
    trainer = _trainer(config, model.to(fabric.device), fabric, len(train_batches), epochs)
    # What is drawn from here on, spikes of a random encoding, is each process's own.
    torch.manual_seed(config.seed + fabric.global_rank)
    if resumed is not None:
        state = newest_state(Path(resumed))
        if state is not None:
            _go_on(trainer, state, train_batches, resumed)
        if run is not None:
            run.go_on(trainer.history, trainer.step)
    board = None
    if config.tensorboard and run is not None:
        picture = data.test.images[:1, None].to(fabric.device).float() / 255
        board = Board(run.folder, model, picture, trainer.step)
    with stopping_whole(trainer.interrupt):
        try:
            trainer.fit(
                train_batches,
                None if held_out is None else batches(held_out),
                epochs,
                run,
                check_every=training.check_every,
                patience=training.patience,
                on_record=None if board is None else board.add,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("" if run is None else _kept(run)) from None
        finally:
            if board is not None:
                board.close()
    fabric.barrier()
    best = run.best if run is not None else None
    best = fabric.broadcast(best)
    model.load_state_dict(load_checkpoint(best, fabric.device)["model"])
    tested = trainer.evaluate(batches(data.test), "test")
    if run is None:
        return None
    run.log("test", **summary(tested))
    for layer, rate in tested.spike_rates.items():
        print(f"spike rate of {layer}: {rate:.4f} a neuron and time step")
    try:
        draw_curves(run.folder)
        draw_network(run.folder, model, batches(data.test), tested.confusion)
    except (MissingDependencyError, OSError) as error:
        print(error)  # a picture less is no reason to fail a finished run
    return tested


def _go_on(
    trainer: SNNTrainer, state: dict[str, Any], batches: Batches, folder: str | Path
) -> None:
    try:
        trainer.load_state_dict(state, batches)
    except (RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{folder}/checkpoints/last.pth: its weights are not those of the configuration beside "
            f"it, {folder}/config.yaml: was that changed? {first}"
        ) from None


def _trainer(config: Config, model: nn.Module, fabric: Any, steps: int, epochs: int) -> SNNTrainer:
    """The trainer that the configuration asks for; `steps` an epoch."""
    training = config.training
    # A gradient that is scaled and clipped cannot be left to a fused optimiser.
    fused = not (config.precision == "16-mixed" and training.clip is not None)
    optimizer = _optimizer(config, model, fused=fused)
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


def _optimizer(config: Config, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
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
        fused=fused,
    )


def _kept(run: Run) -> str:
    whole = f"the last whole epoch in {run.last.name}" if run.last.exists() else ""
    if not run.interrupted.exists():
        return whole and f"{whole} of {run.last.parent}"
    kept = f"the state so far is in {run.interrupted}"
    return kept + (f", {whole}" if whole else "")


if __name__ == "__main__":
    raise SystemExit(main())
