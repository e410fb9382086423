"""Several threads at once, after a fork, and the number of threads that torch was told."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import neurospike as ns

LARGE = (40, 32, 300)  # worth more than one thread


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def work(seed: int, backend: str, rule: dict) -> list[torch.Tensor]:
    current = torch.randn(LARGE, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    beta = torch.full((300,), 0.9, requires_grad=True)
    spikes, mem = ns.lif(current, beta=beta, backend=backend, **rule)
    grads = torch.autograd.grad(spikes.sum() + mem.sum(), (current, beta))
    return [spikes.detach(), mem.detach(), *grads]


def test_calls_from_several_threads_at_once(fused, threads):
    """The first call of a rule, which compiles it, among them."""
    threads(2)
    rules = [{"reset": "zero"}, {"reset": "zero", "reset_delay": False}]
    jobs = [(seed, fused, rules[seed % 2]) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: work(*job), jobs))
    for job, tensors in zip(jobs, found):
        assert all(torch.equal(a, b) for a, b in zip(tensors, work(*job)))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_number_of_threads_changes_no_bit(count, fused, threads):
    threads(4)
    wanted = work(0, fused, {})
    threads(count)
    assert all(torch.equal(a, b) for a, b in zip(work(0, fused, {}), wanted))


THREADS_OF_A_CALL = """
import os
import torch
import neurospike as ns

torch.set_num_threads(1)
layer, current = ns.LIF(0.9, backend="numba"), torch.randn(200, 32, 300)
layer(current)  # whatever is started once
alone = len(os.listdir("/proc/self/task"))
for count in (1, 2, 3):
    torch.set_num_threads(count)
    layer(current)
    print(len(os.listdir("/proc/self/task")) - alone)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_the_number_of_threads_is_obeyed():
    """Counted in a process of its own, whose threads none but a call of ours starts."""
    started = subprocess.run(
        [sys.executable, "-c", THREADS_OF_A_CALL], capture_output=True, text=True, check=True
    )
    assert started.stdout.split() == ["0", "1", "2"]


class Encoded(Dataset):
    """Spikes made in the worker; numbers, so that a worker's tensors need no shared memory."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        current = torch.randn(LARGE, generator=torch.Generator().manual_seed(index))
        return ns.lif(current, beta=0.9, backend="numba")[0].sum().item()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_of_a_data_loader(threads):
    threads(2)
    data = Encoded()
    here = [data[index] for index in range(len(data))]  # threads exist before the fork
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=600
    )
    assert list(loader) == here


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.unpoisoned("torch fills with NaN by its own threads, which may hang in the child")
def test_a_fork_while_other_threads_compute(threads):
    """The child makes threads of its own. (Torch's own operators may hang in it: GNU OpenMP.)"""
    threads(2)
    layer, current = ns.LIF(0.9, backend="numba"), torch.randn(LARGE)
    wanted = layer(current)[0].numpy()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(lambda: [layer(current) for _ in range(100)])
        child = os.fork()
        if child == 0:
            os._exit(0 if (layer(current)[0].numpy() == wanted).all() else 3)
        deadline = time.monotonic() + 300  # no measure of speed: a child that hangs never ends
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                pytest.fail("the forked process hangs")
            time.sleep(0.01)
        busy.result()
    assert os.waitstatus_to_exitcode(ended[1]) == 0
