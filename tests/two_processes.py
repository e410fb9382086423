"""Two processes that train together, one of them stopped, for test_resume.py.

`python tests/two_processes.py FOLDER FLAGS...`. A run that nobody disturbs is in FOLDER/whole. Of
the one in FOLDER/stopped only the second process got Ctrl-C, in the third step; it was resumed, and
its copy FOLDER/alone by one process alone. In FOLDER/gone the second process was killed. Each
process is a fork of this one, as torchrun would have started it.
"""

import faulthandler
import os
import shutil
import signal
import socket
import sys
import traceback

import lightning_fabric  # noqa: F401 (before the forks, which then need not)
from killing import after_steps

from neurospike import train


def start(rank, port, argv, prepare):
    pid = os.fork()
    if pid:
        return pid
    code = 9
    try:
        for number, name in ((1, "out.log"), (2, "err.log")):
            os.dup2(os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GROUP_RANK="0",
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="two",
        )
        prepare(rank)
        code = train.main(argv)
    finally:
        if code == 9:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def run(*argv, prepare=lambda rank: None):
    """Train in two processes; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [start(rank, port, argv, prepare) for rank in range(2)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def ctrl_c(rank):
    if rank == 1:
        after_steps(3, lambda: os.kill(os.getpid(), signal.SIGINT))


def killed(rank):
    if rank == 1:
        after_steps(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def main(folder, *flags):
    faulthandler.enable()
    os.chdir(folder)
    found = [
        run(*flags, "--run_dir=whole"),
        run(*flags, "--run_dir=stopped", prepare=ctrl_c),
    ]
    shutil.copytree("stopped", "alone")
    found.append(run("--resume=stopped"))
    found.append([train.main(["--resume=alone"])])
    found.append(run(*flags, "--run_dir=gone", prepare=killed))
    assert found == [[0, 0], [130, 130], [0, 0], [0], [2, -signal.SIGKILL]], found


if __name__ == "__main__":
    main(*sys.argv[1:])
