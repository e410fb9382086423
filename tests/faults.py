"""The faults of `test_faults.py`: each spoils something and returns the command to run.

They stand in a working folder with a run `good` of two epochs, its published copy and a data set.
`TABLE` says of each how the command has to end: exit code, and what is said on stderr.
"""

import errno
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import torch

from neurospike import train
from neurospike.training import Run, SNNTrainer, load_checkpoint, save_checkpoint

SMALL = ["--hidden_size=16", "--num_steps=4", "--batch_size=16", "--threads=1"]
SMALL += ["--training.warmup=0", "--training.rate_penalty=0"]  # it learns in a few steps
NEW = [*SMALL, "--epochs=3", "--run_dir=new"]
RESUME = ["--resume=good"]
LAST, BEST = "good/checkpoints/last.pth", "good/checkpoints/best_model.pth"
PUBLISHED = "checkpoints/best_model.pth"


def fails(number, reason="", of=lambda path: True):
    """A stand-in for a function of the file system that fails where `of` the path says so."""

    def wrap(call):
        def failing(path, *arguments, **options):
            if of(str(path)):
                raise OSError(number, reason or os.strerror(number), str(path))
            return call(path, *arguments, **options)

        return failing

    return wrap


def after(count, action):
    """Do `action` at the call of that number, of the function this is wrapped around."""

    def wrap(call):
        calls = []

        def counting(*arguments, **options):
            calls.append(1)
            if len(calls) == count:
                action()
            return call(*arguments, **options)

        return counting

    return wrap


def spoil(patch, owner, name, wrapper):
    patch.setattr(owner, name, wrapper(getattr(owner, name)))


# Before a run, and what it is told


def config_is_missing(patch):
    return ["--config=none.yaml"]


def config_is_a_folder(patch):
    return ["--config=data"]


def config_is_half_written(patch):
    Path("config.yaml").write_text("training: {epochs: 3", encoding="utf-8")
    return NEW


def config_has_a_wrong_key(patch):
    Path("config.yaml").write_text("training: {epoch: 3}", encoding="utf-8")
    return NEW


def config_is_binary(patch):
    Path("config.yaml").write_bytes(b"\xff\xfe\x00")
    return NEW


def data_vanished(patch):
    Path("data/mnist").unlink()
    return NEW


def data_vanished_before_a_resume(patch):
    Path("data/mnist").unlink()
    return RESUME


def device_is_not_there(patch):
    return [*NEW, "--device=cuda:7"]


def memory_is_too_small(patch):
    return [*NEW, f"--hidden_size={2**45}"]


# The run folder


def folder_holds_a_run(patch):
    return [*SMALL, "--run_dir=good"]


def folder_is_below_a_file(patch):
    return [*SMALL, "--run_dir=data/mnist/run"]


def folder_is_read_only(patch):
    spoil(patch, Path, "mkdir", fails(errno.EROFS, of=lambda path: path.startswith("new")))
    return NEW


def folder_is_being_trained_in(patch):
    other = Run("other", config={})
    shutil.copy("good/config.yaml", "other/config.yaml")
    patch.setattr(Run, "other", other, raising=False)  # its lock is held as long as it lives
    return ["--resume=other"]


def folder_without_a_run(patch):
    return ["--resume=data"]


def folder_lost_its_config(patch):
    Path("good/config.yaml").unlink()
    return RESUME


def folders_config_is_cut_off(patch):
    path = Path("good/config.yaml")
    path.write_bytes(path.read_bytes()[:40] + b"\n  : [")
    return RESUME


def folders_config_was_changed(patch):
    path = Path("good/config.yaml")
    path.write_text(path.read_text().replace("hidden_size: 16", "hidden_size: 8"))
    return RESUME


def folder_vanishes_during_the_run(patch):
    spoil(patch, SNNTrainer, "evaluate", after(2, lambda: shutil.rmtree("new")))
    return NEW


# Writing


def disk_full_in_the_middle_of_a_checkpoint(patch):
    # A real one, of the kernel: no file may grow beyond 4 KB from the second epoch on.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (4096, before[1])
    patch.callbacks.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
    full = after(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    spoil(patch, SNNTrainer, "train_epoch", full)
    return NEW


def disk_full_when_a_checkpoint_is_synced(patch):
    spoil(patch, os, "fsync", fails(errno.ENOSPC))
    return NEW


def disk_full_when_a_checkpoint_is_renamed(patch):
    spoil(patch, Path, "replace", fails(errno.ENOSPC, of=lambda path: ".last.pth" in path))
    return NEW


def disk_full_when_the_best_is_copied(patch):
    spoil(patch, shutil, "copyfileobj", fails(errno.ENOSPC))
    return NEW


def no_room_for_the_published_copy(patch):
    spoil(
        patch, Path, "replace", fails(errno.ENOSPC, of=lambda p: p.startswith("checkpoints/.best"))
    )
    return NEW


def published_copy_is_a_folder(patch):
    Path(PUBLISHED).unlink()
    Path(PUBLISHED).mkdir()
    return NEW


def best_is_a_folder(patch):
    Path(BEST).unlink()
    Path(BEST).mkdir()
    changed = load_checkpoint(LAST)
    save_checkpoint({**changed, "epoch": 1, "best": None}, LAST)
    return RESUME


def disk_becomes_read_only(patch):
    of = fails(errno.EROFS, of=lambda path: ".last.pth" in path)
    spoil(patch, SNNTrainer, "train_epoch", after(2, lambda: spoil(patch, Path, "open", of)))
    return NEW


def metrics_cannot_be_written(patch):
    of = fails(errno.ENOSPC, of=lambda path: path.endswith("metrics.jsonl"))
    spoil(patch, SNNTrainer, "train_epoch", after(2, lambda: spoil(patch, Path, "open", of)))
    return NEW


def pictures_cannot_be_written(patch):
    def take(*_):
        Path("new/training_curves.png").mkdir()

    spoil(patch, SNNTrainer, "evaluate", after(4, take))
    return NEW


def nobody_reads_the_output(patch):
    class Closed:
        lines = 0

        def write(self, text):
            Closed.lines += text.count("\n")
            if Closed.lines > 3:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        def flush(self):
            pass

    patch.setattr("sys.stdout", Closed())
    return NEW


# Checkpoints to go on from


def last_is_cut_off(patch):
    content = Path(LAST).read_bytes()
    Path(LAST).write_bytes(content[: len(content) // 2])
    return RESUME


def last_has_a_flipped_bit(patch):
    content = bytearray(Path(LAST).read_bytes())
    content[len(content) // 2] ^= 4  # of a weight, or of Adam's numbers
    Path(LAST).write_bytes(content)
    return RESUME


def last_is_empty(patch):
    Path(LAST).write_bytes(b"")
    return RESUME


def all_are_cut_off(patch):
    for path in (LAST, BEST):
        Path(path).write_bytes(Path(path).read_bytes()[:-900])
    return RESUME


def all_are_foreign(patch):
    for path in (LAST, BEST):
        torch.save({"weights": torch.ones(3)}, path)
    return RESUME


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def all_hold_code(patch):
    for path in (LAST, BEST):
        Path(path).write_bytes(pickle.dumps({"model": {"a": Malicious()}}))
    return RESUME


def all_are_of_a_version_that_cannot_resume(patch):
    for path in (LAST, BEST):
        save_checkpoint({"model": load_checkpoint(path)["model"]}, path)
    return RESUME


def last_holds_a_weight_that_is_no_number(patch):
    state = load_checkpoint(LAST)
    state["model"]["linears.0.weight"][3, 4] = torch.nan
    save_checkpoint({**state, "epoch": 1}, LAST)
    Path(BEST).unlink()
    return RESUME


def metrics_end_in_half_a_line(patch):
    with Path("good/metrics.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    return RESUME


def metrics_vanished(patch):
    Path("good/metrics.jsonl").unlink()
    return RESUME


# The numbers


def loss_is_no_number(patch):
    return [*NEW, "--learning_rate=1e38"]


def gradient_explodes(patch):
    return [*NEW, "--training.rate_penalty=1e38", "--training.rate_low=1", "--training.rate_high=1"]


def pictures_are_no_numbers(patch):
    class Batches(train.Batches):
        def __iter__(self):
            for images, labels in super().__iter__():
                yield images * torch.nan, labels

    patch.setattr(train, "Batches", Batches)
    return NEW


# The person


def press(number):
    return lambda: os.kill(os.getpid(), number)


def ctrl_c(patch):
    spoil(patch, SNNTrainer, "_train_step", after(15, press(signal.SIGINT)))
    return NEW


def ctrl_c_twice(patch):
    def twice():
        press(signal.SIGINT)()
        press(signal.SIGINT)()

    spoil(patch, SNNTrainer, "_train_step", after(15, twice))
    return NEW


def terminated(patch):
    spoil(patch, SNNTrainer, "_train_step", after(15, press(signal.SIGTERM)))
    return NEW


def ctrl_c_before_the_first_save(patch):
    spoil(patch, SNNTrainer, "_train_step", after(2, press(signal.SIGINT)))
    return NEW


def ctrl_c_during_the_test(patch):
    spoil(patch, SNNTrainer, "evaluate", after(4, press(signal.SIGINT)))
    return NEW


def terminated_during_the_test(patch):
    spoil(patch, SNNTrainer, "evaluate", after(4, press(signal.SIGTERM)))
    return NEW


def terminated_while_it_draws(patch):
    patch.setattr(train, "draw_network", lambda *_: press(signal.SIGTERM)())
    return NEW


TRAINED = "interrupted; the trained network is in new/checkpoints/best_model.pth; --resume new"
LR = (
    "Try a smaller learning rate or gradient clipping (training.clip, in Python clip). "
    "Checkpoints saved before are good."
)
TABLE = [
    (config_is_missing, 2, "none.yaml: cannot read the config file: No such file"),
    (config_is_a_folder, 2, "data: cannot read the config file: Is a directory"),
    (config_is_half_written, 2, "config.yaml, line 1: not valid YAML"),
    (config_has_a_wrong_key, 2, "training.epoch: no such key; did you mean training.epochs?"),
    (config_is_binary, 2, "config.yaml: not a config file"),
    (data_vanished, 2, "data/: the files of auto are not there"),
    (data_vanished_before_a_resume, 2, "data/: the files of auto are not there"),
    (device_is_not_there, 2, "device: got 'cuda:7', but torch finds"),
    (
        memory_is_too_small,
        2,
        "GB in all. Train with a smaller --batch_size, --num_steps or --hidden_size",
    ),
    (folder_holds_a_run, 2, "the run folder good holds a config.yaml already; give another"),
    (folder_is_below_a_file, 2, "cannot write the run folder data/mnist/run: "),
    (folder_is_read_only, 2, "cannot write the run folder new: Read-only file system"),
    (folder_is_being_trained_in, 2, "another process is training in other now; wait for it"),
    (folder_without_a_run, 2, "--resume: data holds no run: it has no config.yaml"),
    (folder_lost_its_config, 2, "--resume: good holds no run: it has no config.yaml"),
    (folders_config_is_cut_off, 2, "good/config.yaml"),
    (folders_config_was_changed, 2, "last.pth: its weights are not those of the configuration"),
    (folder_vanishes_during_the_run, 0, ""),
    (disk_full_in_the_middle_of_a_checkpoint, 2, "last.pth: cannot write the checkpoint: "),
    (disk_full_when_a_checkpoint_is_synced, 2, "last.pth: cannot write the checkpoint: No space"),
    (disk_full_when_a_checkpoint_is_renamed, 2, "last.pth: cannot write the checkpoint: No space"),
    (disk_full_when_the_best_is_copied, 2, "best_model.pth: cannot write the checkpoint: No space"),
    (no_room_for_the_published_copy, 2, f"{PUBLISHED}: cannot write the checkpoint: No space"),
    (published_copy_is_a_folder, 2, f"{PUBLISHED}: cannot write the checkpoint: Is a directory"),
    (best_is_a_folder, 2, "best_model.pth: cannot write the checkpoint: Is a directory"),
    (disk_becomes_read_only, 2, "last.pth: cannot write the checkpoint: Read-only file system"),
    (metrics_cannot_be_written, 2, "No space left on device: 'new/metrics.jsonl'"),
    (pictures_cannot_be_written, 0, ""),
    (nobody_reads_the_output, 2, "what read its output has gone; --resume new goes on with it"),
    (last_is_cut_off, 0, "last.pth: damaged, or not a NeuroSpike checkpoint"),
    (last_has_a_flipped_bit, 0, "last.pth: damaged, or not a NeuroSpike checkpoint"),
    (last_is_empty, 0, "last.pth: damaged, or not a NeuroSpike checkpoint"),
    (all_are_cut_off, 2, "last.pth: damaged, or not a NeuroSpike checkpoint"),
    (all_are_foreign, 2, "last.pth: not a NeuroSpike checkpoint: it holds no model"),
    (all_hold_code, 2, "last.pth: damaged, or not a NeuroSpike checkpoint"),
    (all_are_of_a_version_that_cannot_resume, 2, "written by a version that cannot resume"),
    (last_holds_a_weight_that_is_no_number, 2, "not finite first: the parameter linears.0.weight"),
    (metrics_end_in_half_a_line, 0, ""),
    (metrics_vanished, 0, ""),
    (loss_is_no_number, 2, "epoch 1: the loss became nan at step 2; not finite first: the "),
    (gradient_explodes, 2, "epoch 1: the "),
    (pictures_are_no_numbers, 2, "at step 1; not finite first: the inputs of that batch. " + LR),
    (ctrl_c, 130, "interrupted; the state so far is in new/checkpoints/interrupted.pth, the last"),
    (ctrl_c_twice, 130, "interrupted; the last whole epoch in last.pth of new/checkpoints"),
    (terminated, 130, "interrupted; the state so far is in new/checkpoints/interrupted.pth"),
    (ctrl_c_before_the_first_save, 130, "interrupted; the state so far is in new/checkpoints/"),
    (ctrl_c_during_the_test, 130, TRAINED),
    (terminated_during_the_test, 130, TRAINED),
    (terminated_while_it_draws, 130, TRAINED),
]
SPOILT = {  # by the fault itself
    published_copy_is_a_folder: {PUBLISHED},
    best_is_a_folder: {BEST, LAST},
    last_is_cut_off: set(),  # written anew by the run that went on
    all_are_cut_off: {LAST, BEST},
    all_are_foreign: {LAST, BEST},
    all_hold_code: {LAST, BEST},
    all_are_of_a_version_that_cannot_resume: {LAST, BEST},
    last_holds_a_weight_that_is_no_number: {LAST, BEST},
}
