"""Train the digit recogniser: `python -m neurospike.train`.

Reads from top to bottom: what was asked for, the data, the network, the training, the test.
This is also the one place that chooses a backend; model and trainer know none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurospike.backend import buffers
from neurospike.backend.dispatch import choose, use_backend
from neurospike.config.cli import guarded, parse
from neurospike.config.devices import choose_device
from neurospike.config.kinds import RECORDED
from neurospike.data import (
    Batches,
    DigitData,
    EventData,
    Recordings,
    Split,
    load,
    load_folder,
    load_recordings,
)
from neurospike.data.classes import names_of
from neurospike.errors import MissingDependencyError, NeuroSpikeError
from neurospike.models import SpikingNetwork
from neurospike.training import Metrics, Run, draw_curves, draw_network, load_checkpoint
from neurospike.training.calibration import temperature_of
from neurospike.training.checks import check_data, check_run, pictures_left, with_classes
from neurospike.training.fitting import Stopped, go_on
from neurospike.training.loading import build_model
from neurospike.training.resume import check_epochs, newest_state, resumable, start_from, tell
from neurospike.training.scale import launch, leave, make_fabric, telling_who_is_gone
from neurospike.training.setup import check_batch, make_trainer
from neurospike.training.stopping import stopping_whole

if TYPE_CHECKING:
    from neurospike.config import Config
    from neurospike.training import SNNTrainer

ABOUT = (
    "Train a spiking network to recognise digits, test it, and keep all of it in a run folder. "
    "Exit code 0: done; 2: an error, told in a line; 130: interrupted, go on with --resume."
)
PUBLISHED = Path("checkpoints/best_model.pth")  # where prediction looks by default


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.train") -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""

    def job() -> int:
        # Here, where a missing package of it is reported in a line.
        from neurospike.config import load_config

        path, overrides = parse(argv, prog, ABOUT)
        resumed, start = overrides.pop("resume", None), overrides.pop("init_from", None)
        if resumed is not None:
            path = resumable(resumed, path, overrides, start)
        config = load_config(path, overrides)
        buffers.keep_freed_memory()
        try:
            tested = train(config, resumed, init_from=start)
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
    """True for out-of-memory and size-overflow errors."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU torch has no exception of its own for it.
    told = ("DefaultCPUAllocator", "Storage size calculation overflowed", "Overflow when unpacking")
    return any(text in str(error) for text in told)


def train(
    config: Config, resumed: str | Path | None = None, *, init_from: str | Path | None = None
) -> Metrics | None:
    """Do one training run as configured; return the test metrics of its best model.

    resumed: the folder of a run to resume, which must have been made with this config, but for its
    epochs. init_from: a checkpoint whose weights a new run starts from.
    Writes a run folder (see `Run`), and if that lies in the working folder, a copy of the best
    model as `checkpoints/best_model.pth` there. With several processes the first does so, and the
    others return None. Raises NeuroSpikeError and OSError for what the user can put right.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS asks for it, and reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    config = with_classes(config)
    with use_backend(config.backend):
        device = choose_device(config.device, config.backend)
        backend = choose("auto", device).name  # raises if it cannot run on this device
        check_run(config, device, resumed=resumed is not None)
        fabric = make_fabric(device, config.precision, config.devices, config.num_nodes)
        launch(fabric)
        state = None if resumed is None else newest_state(Path(resumed))
        fabric.barrier()  # before the first process changes what it finds there
        check_epochs(config, state)
        torch.manual_seed(config.seed)
        model = build_model(config)
        check_batch(config, model, fabric.world_size)
        if init_from is not None:
            start_from(init_from, model, config)
        data = _load(config)
        check_data(config, data)
        check_batch(config, model, fabric.world_size, pictures_left(config, data))
        run = None
        if fabric.is_global_zero:
            print(data.note, flush=True)
            record = {
                "dataset": data.name,
                "classes": list(data.classes),
                "note": data.note,
                "backend": backend,
                "device": str(device),
                "processes": fabric.world_size,
                "seed": config.seed,
                "criterion": config.training.loss,
                "init_from": None if init_from is None else str(init_from),
            }
            run = _run_of(config, record, resumed)
            print(f"{backend} backend on {device}; the run is kept in {run.folder}", flush=True)
            if run.published is None:
                print(f"that is not in the working folder: {PUBLISHED} stays as it is", flush=True)
        gone = telling_who_is_gone(fabric, "its own lines say why; --resume goes on with the run")
        with gone, _output_closed(run):
            tested = _train_and_test(config, data, model, fabric, run, state)
        leave(fabric)
        return tested


def _load(config: Config) -> DigitData | EventData:
    if config.dataset in RECORDED:
        return load_recordings(config.dataset, config.data_path, **config.events.model_dump())
    if config.dataset == "folder":
        return load_folder(config.data_path, **config.folder_options())
    return load(config.dataset, config.data_path)


def _run_of(config: Config, record: dict[str, Any], resumed: str | Path | None) -> Run:
    folder = config.run_dir if resumed is None else resumed
    within = folder is None
    if folder is not None:
        # Links are not followed: one in the working folder to a larger disk is within it.
        within = Path.cwd() in Path(os.path.abspath(folder)).parents  # noqa: PTH100
    return Run(
        folder,
        config=config.model_dump(mode="json"),
        record=record,
        published=PUBLISHED if within else None,
        resumed=resumed is not None,
    )


def _train_and_test(
    config: Config,
    data: DigitData | EventData,
    model: SpikingNetwork,
    fabric: Any,
    run: Run | None,
    state: dict[str, Any] | None,
) -> Metrics | None:
    training = config.training
    rest: Split | Recordings = data.train
    held_out: Split | Recordings | None = None
    if training.validation > 0:
        rest, held_out = data.train.split(training.validation, config.seed)

    def batches(split: Split | Recordings, generator: torch.Generator | None = None) -> Batches:
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
    model.truncate(training.segment)
    trainer = make_trainer(config, model.to(fabric.device), fabric, len(train_batches), epochs)
    # From here on each process draws its own numbers, as for the spikes of a random encoding.
    torch.manual_seed(config.seed + fabric.global_rank)
    if state is not None:
        beside = Path(state["path"]).parents[1] / "config.yaml"
        why_not = f"its weights are not those of the configuration beside it, {beside}: was that"
        go_on(trainer, state, train_batches, f"{why_not} changed?")
    if run is not None and run.resumed:
        tell(trainer, state, config, epochs, run.folder)
        run.go_on(trainer.history, trainer.step, None if state is None else state["path"])
    board = None
    if config.tensorboard and run is not None:
        # Here, because other runs need not load what it draws with.
        from neurospike.training.board import Board

        first = Batches(data.test.select(torch.tensor([0])), 1, device=fabric.device)
        board = Board(run.folder, model, next(iter(first))[0], trainer.step)
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
    except Stopped:
        leave(fabric)
        raise
    finally:
        if board is not None:
            board.close()
    with _interrupted_after_training(run):
        return _test(config, data, model, trainer, batches, held_out, run)


@contextmanager
def _output_closed(run: Run | None) -> Iterator[None]:
    """Say how to resume a run that ended because nobody reads its output any more."""
    try:
        yield
    except BrokenPipeError:
        if run is None:
            raise
        raise NeuroSpikeError(
            "the run ended because what read its output has gone; "
            f"--resume {run.folder} goes on with it"
        ) from None


@contextmanager
def _interrupted_after_training(run: Run | None) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the test; say where the network is, and how to test it."""

    def stop() -> None:
        raise KeyboardInterrupt

    try:
        with stopping_whole(stop):
            yield
    except KeyboardInterrupt as interrupt:
        if run is not None and not interrupt.args:
            interrupt.args = (
                f"the trained network is in {run.best}; --resume {run.folder} tests it",
            )
        raise


def _test(
    config: Config,
    data: DigitData | EventData,
    model: SpikingNetwork,
    trainer: SNNTrainer,
    batches: Callable[[Split | Recordings], Batches],
    held_out: Split | Recordings | None,
    run: Run | None,
) -> Metrics | None:
    """Test the best model, fit its temperature, draw; return None but in the first process."""
    fabric = trainer.fabric
    fabric.barrier()
    path = fabric.broadcast(run.best if run is not None else None)
    best = load_checkpoint(path, fabric.device)
    model.load_state_dict(best["model"])
    tested = trainer.evaluate(batches(data.test), "test")
    if run is None:
        return None
    temperature = 1.0
    if held_out is not None:
        # Every batch of it runs in this one process, the first.
        one = Batches(held_out, config.training.batch_size, device=fabric.device)
        temperature = temperature_of(model, one, config.seed)
        run.calibrate(temperature)
        print(f"confidences have the temperature {temperature:.3g}, fitted to the validation")
    run.log("test", **tested, temperature=temperature)
    for layer, rate in tested.spike_rates.items():
        print(f"spike rate of {layer}: {rate:.4f} per neuron and time step")
    if run.published is not None and best.get("guessing"):
        print(f"{PUBLISHED} stays as it was: this run's best model is no better than guessing")
    try:
        draw_curves(run.folder)
        names = names_of(data.name, config.model.output_size, data.classes)
        draw_network(run.folder, model, batches(data.test), tested.confusion, names)
    except (MissingDependencyError, OSError) as error:
        print(error)  # a picture less is no reason to fail a finished run
    return tested


if __name__ == "__main__":
    raise SystemExit(main())
