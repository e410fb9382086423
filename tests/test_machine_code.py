"""Machine code kept on disk: used again while it fits, never once a formula has changed."""

import ctypes
import dataclasses
import errno
import importlib
import io
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.errors import BackendError
from neurospike.layers.break_even import Policy, use_policy

pytest.importorskip("numba")
_code = dispatch.load(".kernels.cpu._code")
compiled = dispatch.load(".kernels.cpu._compile").compiled

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
print(mem.double().sum().item(), grad.double().sum().item(), "numba" in sys.modules)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package, to be changed."""
    for name in ("neurospike", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(package: Path, *flags: str, **environment: str) -> tuple[list[float], bool]:
    """The two sums that the copy computes, and whether it needed Numba."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flags],
        capture_output=True,
        text=True,
        cwd=package,
        env={**os.environ, **environment},
        timeout=3000,  # a process that hangs, not a slow machine
    )
    assert done.returncode == 0, done.stderr
    *sums, loaded = done.stdout.split()
    return [float(one) for one in sums], loaded == "True"


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

    def files():
        return {file.name for file in (tmp_path / "cache" / "neurospike").iterdir()}

    cold, loaded = run(package, **cache)
    assert loaded
    before = files()
    assert before
    warm, loaded = run(package, **cache)
    assert warm == cold
    assert not loaded
    assert files() == before

    formulas, zoo = (package / "neurospike" / name for name in ("formulas.py", "neurons/zoo.py"))
    begin = 'at once; the gradient flows through the spike."""\n    v = beta * mem + current'
    begin = "subtracts the threshold " + begin
    change(zoo, begin, begin + " + 0.25")
    change(formulas, "return 0.5 * alpha / (1.0 + z * z)", "return 5.0 * alpha / (1.0 + z * z)")
    changed, loaded = run(package, **cache)  # and equal to the reference, as PROGRAM asserts
    assert changed[0] != cold[0]
    assert changed[1] != cold[1]
    assert not loaded  # the loop over time is any neuron's
    assert files() > before

    # A loop, what writes the neuron's operations, and an intrinsic.
    start = "out[i] = values[low + i] if values.size > 0 else "
    for name, old, new in (
        ("_scan_loop.py", start + "0.0", start + "1.0"),
        ("_scribe.py", 'fcmp_ordered(">", given[0]', 'fcmp_ordered("<", given[0]'),
        ("_memory.py", "builder.gep(data, [index])", "builder.gep(data, [index.type(0)])"),
    ):
        file = package / "kernels" / "cpu" / name
        change(file, old, new)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            cwd=package,
            env={**os.environ, **cache},
            timeout=3000,  # a process that hangs, not a slow machine
        )
        assert done.returncode == 1 and "AssertionError" in done.stderr, name
        change(file, new, old)
    assert run(package, **cache) == (changed, False)


def test_a_folder_that_cannot_be_written_costs_only_the_compilation(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    nowhere = {
        "NUMBA_CACHE_DIR": str(blocked),
        "HOME": str(blocked),
        "XDG_CACHE_HOME": str(blocked / "cache"),
    }
    assert run(package, "forward only", **nowhere)[1]
    assert run(package, "forward only", **nowhere)[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where code is kept; and a process that has loaded none."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_code, "_loaded", {})
    return tmp_path / "cache" / "neurospike"


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A loop that was never compiled."""
    text = (
        "from neurospike.kernels.cpu._intrinsics import array_at\n"
        "def _forward(job_at):\n    array_at(job_at, 1, 0)[0] += 1\n"
    )
    (tmp_path / "adding.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("adding")._forward
    del sys.modules["adding"]


def said_by_compiling(loop, stream, monkeypatch):
    """What stands on stderr after a kernel was needed, as by a process that has not run it yet."""
    _code._loaded.clear()
    with monkeypatch.context() as context:
        context.setattr(sys, "stderr", stream)
        compiled(loop, {}, np.float32)
    return stream.getvalue()


def test_a_terminal_is_told_what_the_first_call_waits_for_and_no_later_one(
    folder, loop, monkeypatch
):
    told = "neurospike: compiling adding.forward (once: the code is kept on disk)\n"
    assert said_by_compiling(loop, Terminal(), monkeypatch) == told
    assert said_by_compiling(loop, Terminal(), monkeypatch) == ""


def test_what_is_no_terminal_is_told_nothing(folder, loop, monkeypatch):
    assert said_by_compiling(loop, io.StringIO(), monkeypatch) == ""


def test_a_terminal_is_told_where_the_code_cannot_be_kept(folder, loop, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    told = (
        "neurospike: compiling adding.forward "
        "(in each process: there is no folder to keep the code in)\n"
    )
    assert said_by_compiling(loop, Terminal(), monkeypatch) == told
    assert said_by_compiling(loop, Terminal(), monkeypatch) == told


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A bit in the middle: of a key in an index, of machine code in what it points to."""
    return (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 16])
        + content[len(content) // 2 + 1 :]
    )


def made_anew(loop, monkeypatch):
    """Run a loop as a new process does; whether it was compiled for that."""
    seen = []
    write = _code._made
    monkeypatch.setattr(_code, "_made", lambda *given: seen.append(1) or write(*given))
    _code._loaded.clear()
    row = (ctypes.c_int64 * 1)(41)
    place = compiled(loop, {}, np.float32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(place)(ctypes.addressof(row))
    monkeypatch.setattr(_code, "_made", write)
    assert row[0] == 42
    return bool(seen)


@pytest.mark.parametrize("damage", [cut_off, flipped, lambda _: b""])
def test_damaged_code_is_compiled_anew_and_kept_again(folder, loop, monkeypatch, damage):
    assert made_anew(loop, monkeypatch)
    assert not made_anew(loop, monkeypatch)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert made_anew(loop, monkeypatch)
    assert not made_anew(loop, monkeypatch)


def test_what_nobody_loaded_for_long_is_taken_away_and_nothing_else(folder, loop, monkeypatch):
    made_anew(loop, monkeypatch)
    (used,) = folder.glob("neurospike_*")
    old, lately, foreign = (folder / name for name in ("neurospike_0", "neurospike_1", "other"))
    for file in (old, lately, foreign):
        file.write_bytes(b"code")
    age = {old: _code.UNUSED + 9, used: _code.UNUSED + 9, foreign: 1e9, lately: _code.SEEN}
    for file, seconds in age.items():
        os.utime(file, (time.time() - seconds,) * 2)
    assert not made_anew(loop, monkeypatch)  # which says that it is used
    assert old.exists()
    monkeypatch.setattr(_code, "_here", lambda: "another version")
    _code._tidy.cache_clear()
    assert made_anew(loop, monkeypatch)
    assert not old.exists()
    assert used.exists()
    assert lately.exists()
    assert foreign.exists()


def test_a_disk_that_became_full_costs_only_the_compilation(folder, loop, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    assert made_anew(loop, monkeypatch)
    assert made_anew(loop, monkeypatch)
    assert not list(folder.iterdir())


def test_where_the_folder_of_the_loops_cannot_be_written_the_users_is_taken(
    folder, loop, tmp_path, monkeypatch
):
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_code, "OWN", tmp_path / "a file")
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(_code, "_here", lambda: "")
    assert made_anew(loop, monkeypatch)
    assert not made_anew(loop, monkeypatch)
    assert len(list((tmp_path / "home" / "neurospike").iterdir())) == 1


def test_another_loop_of_the_same_name_is_another_function(folder, loop, tmp_path, monkeypatch):
    assert made_anew(loop, monkeypatch)
    text = (tmp_path / "adding.py").read_text().replace("+= 1", "-= -1")
    names = {"__name__": loop.__module__}
    exec(compile(text, "adding.py", "exec"), names)
    assert made_anew(names["_forward"], monkeypatch)
    assert len(list(folder.iterdir())) == 2


def test_what_would_need_numba_later_is_not_kept(folder, monkeypatch):
    def _forward(job_at):
        if job_at == 0:
            raise ValueError("which Numba would tell Python")
        np.zeros(job_at)

    with pytest.raises(RuntimeError, match=r"_forward calls .*NRT_"):
        compiled(_forward, {"np": np, "ValueError": ValueError}, np.float32)
    assert not list(folder.iterdir())


def test_numba_that_may_compile_nothing_is_told_and_what_is_kept_runs(folder, loop, monkeypatch):
    dispatch.load(".kernels.cpu._numba")  # which jits at import
    monkeypatch.setattr(_code, "_here", _code._here.__wrapped__)
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    with pytest.raises(BackendError, match=r"NUMBA_DISABLE_JIT .*backend='reference'"):
        compiled(loop, {}, np.float32)
    monkeypatch.setattr("numba.config.DISABLE_JIT", 0)
    assert made_anew(loop, monkeypatch)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert not made_anew(loop, monkeypatch)
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert made_anew(loop, monkeypatch)


def test_every_name_that_a_loop_may_use_is_written_for_numba():
    declared = dispatch.load(".kernels.cpu._intrinsics")
    text = Path(declared.__file__).read_text(encoding="utf-8")
    without_body = re.findall(r'^def (\w+)\([^:]*\):\n    """[^"]*"""\n(?!    )', text, re.M)
    assert len(without_body) > 10
    memory, vectors = (dispatch.load(f".kernels.cpu.{name}") for name in ("_memory", "_vectors"))
    assert sorted(without_body) == sorted(memory.INTRINSICS | vectors.INTRINSICS)


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
    functions = _code.count()
    assert all(before) and functions
    for shape in ((6, 2, 40, 200), (1, 9, 70, 129), (40, 3, 130, 300)):
        run(*shape)
    assert [kernel._compiled.cache_info().misses for kernel in kernels] == before
    assert _code.count() == functions
