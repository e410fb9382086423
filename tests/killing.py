"""Start training runs and kill them: `python tests/killing.py FOLDER FLAGS...`, for test_resume.py.

Everything is imported and compiled once; each run is a fork of that, so that twenty of them take
seconds. First one that nobody disturbs, in FOLDER/whole; then one in FOLDER/killed that is killed
again and again, by SIGKILL: after a random time on the processor, and at every kind of moment of a
save. It is resumed each time, and in the end let finish.
"""

import faulthandler
import io
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from neurospike import train
from neurospike.training import records

TIMES, SAVES = 10, 12  # kills of each kind


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(number):
    """The checkpoint is half written."""
    save, left = torch.save, iter(range(number - 1))

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


def not_renamed(number):
    """The checkpoint is written, but still has its temporary name."""
    sync, left = os.fsync, iter(range(number - 1))
    os.fsync = lambda file: die() if next(left, None) is None else sync(file)


def not_copied(number):
    """The last checkpoint is there; if it is the best, its copy is not."""
    save, left = records.Run.save_epoch, iter(range(number - 1))

    def cut(run, state, *, is_best):
        if next(left, None) is not None:
            save(run, state, is_best=is_best)
            return
        run.save(state, run.last)
        die()

    records.Run.save_epoch = cut


def half_a_line(number):
    """The checkpoint is there, its record half written."""
    write, left = records.Run.write, iter(range(number - 1))

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
    return pid


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_after(pid, seconds):
    while processor_seconds(pid) < seconds:
        time.sleep(0.002)
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit("a run ended before it was killed")
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def main(folder, *flags):
    faulthandler.enable()
    os.chdir(folder)
    with torch.random.fork_rng():  # compile, and import what is imported late
        assert train.main([*flags, "--run_dir=first", "--training.epochs=1"]) == 0
    assert os.waitpid(fork([*flags, "--run_dir=whole"]), 0)[1] == 0
    drawn = random.Random(0)
    kinds = [None] * TIMES + [MOMENTS[k % len(MOMENTS)] for k in range(SAVES)]
    drawn.shuffle(kinds)
    argv = [*flags, "--run_dir=killed"]
    for kind in kinds:
        if kind is None:
            status = kill_after(fork(argv), drawn.uniform(0.05, 0.25))
            name = "at a random moment"
        else:
            number = drawn.randint(1, 3)
            status = os.waitpid(fork(argv, lambda k=kind, n=number: k(n)), 0)[1]
            name = kind.__name__
        if status != signal.SIGKILL:
            raise SystemExit(f"{name}: the run was not killed, but ended with {status}")
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        if Path("killed/config.yaml").exists():
            argv = ["--resume=killed"]
    Path("killed/.metrics.jsonl.1").touch()  # as of a run killed while it went on with this one
    status = os.waitpid(fork(argv), 0)[1]
    assert status == 0, f"left alone it ended with {status}: {Path('err.log').read_text()}"


if __name__ == "__main__":
    main(*sys.argv[1:])
