"""Code kept on disk: used again while it fits, never once a formula has changed."""

import ctypes
import dataclasses
import errno
import importlib
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.layers.break_even import Policy, use_policy

types = pytest.importorskip("numba").types
c_function = dispatch.load(".kernels.cpu._cache").c_function
_rows = dispatch.load(".kernels.cpu._rows")

ROOT = Path(__file__).parents[1]
# An immediate reset: there the reference steps the very formulas that are changed below.
PROGRAM = """
import sys
import torch
import neurospike as ns

def run(backend):
    torch.manual_seed(0)
    current = torch.randn(5, 2, 70, requires_grad=True)
    if len(sys.argv) > 1:
        with torch.no_grad():
            return ns.lif(current, beta=0.9, reset_delay=False, backend=backend)
    spikes, mem = ns.lif(current, beta=0.9, reset_delay=False, backend=backend)
    (mem.sum() + spikes.sum()).backward()
    return mem.detach(), current.grad

(mem, grad), (true_mem, true_grad) = run("numba"), run("reference")
assert torch.equal(mem, true_mem)
assert torch.allclose(grad, true_grad, rtol=1e-5, atol=1e-6), (grad - true_grad).abs().max()
print("RESULT", mem.double().sum().item(), grad.double().sum().item())
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package, to be changed."""
    for name in ("neurospike", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(package: Path, *flags: str, **environment: str) -> tuple[list[float], str]:
    """The two sums that the copy computes, and numba's log of its cache."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flags],
        capture_output=True,
        text=True,
        cwd=package,
        env={**os.environ, "NUMBA_DEBUG_CACHE": "1", **environment},
        timeout=3000,  # a process that hangs, not a slow machine
    )
    assert done.returncode == 0, done.stderr
    log, result = done.stdout.split("RESULT")
    return [float(number) for number in result.split()], log


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} no longer holds {old!r}: change another formula here"
    stamp = file.stat()
    file.write_text(text.replace(old, new), encoding="utf-8")
    # As old as before: the time of a file must not be what tells.
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


@pytest.mark.thorough
def test_kept_code_is_used_until_the_loop_changes_and_formulas_count_at_once(package, tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    cold, log = run(package, **cache)
    assert "data saved to" in log
    assert "data loaded from" not in log
    warm, log = run(package, **cache)
    assert warm == cold
    assert "data loaded from" in log
    assert "data saved to" not in log

    formulas, zoo = (package / "neurospike" / name for name in ("formulas.py", "neurons/zoo.py"))
    begin = 'at once; the gradient flows through the spike."""\n    v = beta * mem + current'
    begin = "takes the threshold away " + begin
    change(zoo, begin, begin + " + 0.25")
    change(formulas, "return 0.5 * alpha / (1.0 + z * z)", "return 5.0 * alpha / (1.0 + z * z)")
    changed, log = run(package, **cache)  # and equal to the reference, as PROGRAM asserts
    assert changed[0] != cold[0]
    assert changed[1] != cold[1]
    assert "data saved to" not in log  # what is kept is the loop over time, any neuron's

    start = "out[i] = values[low + i] if values.size > 0 else "
    change(package / "kernels" / "cpu" / "scan.py", start + "0.0", start + "1.0")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=package,
        env={**os.environ, **cache},
        timeout=3000,  # a process that hangs, not a slow machine
    )
    assert done.returncode == 1 and "AssertionError" in done.stderr


def test_a_folder_that_cannot_be_written_costs_only_the_compilation(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    nowhere = {
        "NUMBA_CACHE_DIR": str(blocked),
        "HOME": str(blocked),
        "XDG_CACHE_HOME": str(blocked / "cache"),
    }
    _, log = run(package, "forward only", **nowhere)
    assert "[cache]" not in log


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A loop that was never compiled, in a folder of its own, where its code is kept."""
    (tmp_path / "doubling.py").write_text("def _forward(job_at):\n    job_at * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("doubling")._forward
    del sys.modules["doubling"]


def said_by_compiling(loop, stream, monkeypatch):
    """What stands on stderr after a kernel was needed, as by a process that has not run it yet."""
    with monkeypatch.context() as context:
        context.setattr(sys, "stderr", stream)
        dispatch.load(".kernels.cpu._compile").compiled(loop, {}, np.float32)
    return stream.getvalue()


def test_a_terminal_is_told_what_the_first_call_waits_for_and_no_later_one(loop, monkeypatch):
    told = "neurospike: compiling doubling.forward (once: the code is kept on disk)\n"
    assert said_by_compiling(loop, Terminal(), monkeypatch) == told
    assert said_by_compiling(loop, Terminal(), monkeypatch) == ""


def test_what_is_no_terminal_is_told_nothing(loop, monkeypatch):
    assert said_by_compiling(loop, io.StringIO(), monkeypatch) == ""


def test_a_terminal_is_told_where_the_code_cannot_be_kept(loop, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    (tmp_path / "__pycache__").write_text("")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "__pycache__" / "in a file"))
    assert said_by_compiling(loop, Terminal(), monkeypatch) == (
        "neurospike: compiling doubling.forward "
        "(in each process: there is no folder to keep the code in)\n"
    )


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A bit in the middle: of a key in an index, of machine code in what it points to."""
    return (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 16])
        + content[len(content) // 2 + 1 :]
    )


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [cut_off, flipped, lambda _: b""])
def test_damaged_code_is_compiled_anew_and_kept_again(tmp_path, ending, damage):
    def load():
        """Compile, or take what is kept; the result, and whether it was taken."""
        compiled = c_function(loop, types.void(types.intp), error_model="numpy")
        row = (ctypes.c_int64 * 1)(41)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)(ctypes.addressof(row))
        return row[0], compiled.cache_hits

    loop = add_one_in(tmp_path)
    assert load() == (42, 0)
    assert load() == (42, 1)
    files = list((tmp_path / "__pycache__").glob(f"*.{ending}"))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert load() == (42, 0)
    assert load() == (42, 1)


def test_a_disk_that_became_full_costs_only_the_compilation(tmp_path, monkeypatch):
    loop = add_one_in(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert c_function(loop, types.void(types.intp)).address
    assert not list((tmp_path / "__pycache__").glob("*.nb*"))


def add_one_in(folder: Path):
    """A compiled loop's function, from a file of its own, beside which Numba keeps its code."""
    text = (
        "from neurospike.kernels.cpu._memory import array_at\n"
        "def loop(job_at):\n    array_at(job_at, 1, 0)[0] += 1\n"
    )
    (folder / "loops.py").write_text(text, encoding="utf-8")
    # With a module's name: of a function without one all that it could see is kept, builtins too,
    # among which other libraries may have put what cannot be pickled.
    names: dict = {"__name__": "loops"}
    exec(compile(text, str(folder / "loops.py"), "exec"), names)
    return names["loop"]


def test_no_size_compiles_anything_anew(monkeypatch):
    """Steps, batch and neurons are numbers of a job, not part of what is compiled."""
    names = ("scan", "events", "linear", "linear_scan")
    kernels = [dispatch.load(f".kernels.cpu.{name}") for name in names]
    events = Policy(least_products=1, margin=math.inf)
    together = dataclasses.replace(events, trained_events=1 << 30)
    monkeypatch.setattr(kernels[1], "TABLE", 1 << 40)  # with sums of four it is another kernel

    def run(steps, batch, inputs, outputs):
        layer, lif = ns.SpikeLinear(inputs, outputs), ns.LIF(0.9)
        spikes = (torch.rand(steps, batch, inputs) < 0.1).to(torch.uint8)
        with use_policy(events):
            lif(layer(spikes))[0].sum().backward()
        with use_policy(together):
            ns.spike_layer(layer, lif, spikes)[0].sum().backward()

    run(5, 2, 40, 200)
    before = [kernel._compiled.cache_info().misses for kernel in kernels]
    loops = len(_rows.kept)
    assert all(before) and loops
    for shape in ((6, 2, 40, 200), (1, 9, 70, 129), (40, 3, 130, 300)):
        run(*shape)
    assert [kernel._compiled.cache_info().misses for kernel in kernels] == before
    assert len(_rows.kept) == loops
