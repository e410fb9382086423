"""Start training runs and kill them: `python tests/killing.py FOLDER FLAGS...`, for test_resume.py.

Everything is imported and compiled once; each run is a fork of that, so that twenty of them take
seconds. First one that nobody disturbs, in FOLDER/whole; then one in FOLDER/killed that is killed
by SIGKILL again and again, and stopped by Ctrl-C: some calls of Python after some step, and at
every kind of moment of a save. No clock has a say in when. It is resumed each time, and in the end
let finish.
"""

import faulthandler
import io
import itertools
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import torch

from neurospike import train
from neurospike.training import SNNTrainer, records

TIMES, STOPS, SAVES = 8, 3, 12  # kills of each kind
STEPS = 11  # of an epoch
CALLS = 3000  # of functions of Python, more than a step and a validation make


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after_steps(number, act):
    """Call `act` in that step of this process, from 1, after its optimiser's."""
    step, steps = SNNTrainer._train_step, itertools.count(1)

    def count(*given):
        done = step(*given)
        if next(steps) == number:
            act()
        return done

    SNNTrainer._train_step = count


def somewhere(drawn):
    """Some calls after some step: within the next, in a validation, in a save, between two."""
    calls = iter(range(drawn.randint(0, CALLS)))

    def look(frame, event, _):
        if event == "call" and next(calls, None) is None:
            die()

    after_steps(drawn.randint(1, 2 * STEPS), lambda: sys.setprofile(look))


def ctrl_c(drawn):
    """In the step after which the process is to stop, be it an epoch's first, last or another."""
    number = drawn.choice([1, STEPS // 2, STEPS - 1, STEPS, STEPS + 1])
    after_steps(number, lambda: os.kill(os.getpid(), signal.SIGINT))


def half_a_file(drawn):
    """The checkpoint is half written."""
    save, left = torch.save, iter(range(drawn.randint(0, 2)))

    def write(state, file):
        if next(left, None) is not None:
            save(state, file)
            return
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    torch.save = write


def not_renamed(drawn):
    """The checkpoint is written, but still has its temporary name."""
    sync, left = os.fsync, iter(range(drawn.randint(0, 2)))
    os.fsync = lambda file: die() if next(left, None) is None else sync(file)


def not_copied(drawn):
    """The last checkpoint is there; if it is the best, its copy is not."""
    save, left = records.Run.save_epoch, iter(range(drawn.randint(0, 2)))

    def cut(run, state, *, is_best):
        if next(left, None) is not None:
            save(run, state, is_best=is_best)
            return
        run.save(state, run.last)
        die()

    records.Run.save_epoch = cut


def half_a_line(drawn):
    """The checkpoint is there, its record half written."""
    write, left = records.Run.write, iter(range(drawn.randint(0, 2)))

    def cut(run, row):
        if next(left, None) is not None:
            write(run, row)
            return
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "ste')
        die()

    records.Run.write = cut


MOMENTS = (half_a_file, not_renamed, not_copied, half_a_line)


def fork(argv, prepare=lambda: None):
    """Run training in a fork of this process; how it ended, as `os.waitpid` has it."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            for number, name in ((1, "out.log"), (2, "err.log")):
                os.dup2(os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
            prepare()
            code = train.main(argv)
        finally:
            if code == 9:  # os._exit leaves no time to tell of an exception
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def main(folder, *flags):
    faulthandler.enable()
    os.chdir(folder)
    with torch.random.fork_rng():  # compile, and import what is imported late
        assert train.main([*flags, "--run_dir=first", "--training.epochs=1"]) == 0
    assert fork([*flags, "--run_dir=whole"]) == 0
    drawn = random.Random(0)
    kinds = (
        [somewhere] * TIMES + [ctrl_c] * STOPS + [MOMENTS[k % len(MOMENTS)] for k in range(SAVES)]
    )
    drawn.shuffle(kinds)
    argv = [*flags, "--run_dir=killed"]
    for kind in kinds:
        status = fork(argv, lambda kind=kind: kind(drawn))
        drawn.random()  # what a fork draws is not drawn here
        if status != (130 << 8 if kind is ctrl_c else signal.SIGKILL):
            said = Path("err.log").read_text()
            raise SystemExit(f"{kind.__name__}: it was not killed, but ended with {status}: {said}")
        sys.stdout.write(f"{kind.__name__}\n")
        sys.stdout.flush()
        if Path("killed/config.yaml").exists():
            argv = ["--resume=killed"]
    Path("killed/.metrics.jsonl.1").touch()  # as of a run killed while it went on with this one
    status = fork(argv)
    assert status == 0, f"left alone it ended with {status}: {Path('err.log').read_text()}"


if __name__ == "__main__":
    main(*sys.argv[1:])
