"""Kernels that were broken on purpose, each of which the equivalence check has to catch.

A mutant is a copy of the package with one piece of one file replaced. Torch and numba are loaded
once, then a process is forked for each copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

pytest.importorskip("numba")

ROOT = Path(__file__).parents[1]
FORMULAS, KERNEL = "neurospike/formulas.py", "kernels/lif_numba.py"

# name: file, what stands there, what is put in its place
MUTANTS = {
    "fires at the threshold": (
        FORMULAS,
        "spike = heaviside(v - threshold)\n    return spike, settle",
        "spike = cast(v >= threshold, v)\n    return spike, settle",
    ),
    "forgets the reset": (
        FORMULAS,
        "return beta * mem + current - heaviside(mem - threshold) * threshold",
        "return beta * mem + current",
    ),
    "drops the carry": (
        FORMULAS,
        "        return d, beta * d, d * mem, grad_threshold\n    spike",
        "        return d, 0.0 * d, d * mem, grad_threshold\n    spike",
    ),
    "fused multiply-add": (
        "kernels/numba_jit.py",
        "njit(pipeline_class=_NoAlias, ",
        'njit(pipeline_class=_NoAlias, fastmath={"contract"}, ',
    ),
    "a block short of its last neuron": (
        KERNEL,
        "n = min(block, size - low)",
        "n = min(block, size - low - 1)",
    ),
    "parameters of the first block in each": (KERNEL, "k = start % values.size", "k = 0"),
    "backward stops before the first step": (
        KERNEL,
        "for t in range(steps - 1, -1, -1):",
        "for t in range(steps - 1, 0, -1):",
    ),
}

RUNNER = """
import os, sys
import numba, snntorch, torch

def run(folder):
    sys.path.insert(0, folder)
    import neurospike
    assert neurospike.__file__.startswith(folder)
    from equivalence import check
    try:
        check("numba", {})
    except AssertionError:
        return "caught"
    return "passed"

sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
waiting = sys.argv[2:]
running = {}
while waiting or running:
    while waiting and len(running) < 2:
        folder = waiting.pop(0)
        child = os.fork()
        if child == 0:
            print(run(folder), folder, flush=True)
            os._exit(0)
        running[child] = folder
    running.pop(os.wait()[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_mutant_is_caught_and_the_package_itself_passes(tmp_path):
    copies = {}
    for number, (name, (file, old, new)) in enumerate({**MUTANTS, "sound": (None, "", "")}.items()):
        copy = tmp_path / str(number)
        for part in ("neurospike", "kernels"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        if file is not None:
            text = (copy / file).read_text(encoding="utf-8")
            assert old in text, f"{name}: {file} no longer holds {old!r}: break it elsewhere"
            (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        copies[str(copy)] = name
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / "tests"), *copies],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": ""},
        timeout=3000,  # a process that hangs, not a slow machine
    )
    assert done.returncode == 0, done.stderr
    found = dict(reversed(line.split(" ", 1)) for line in done.stdout.splitlines())
    verdicts = {name: found.get(place) for place, name in copies.items()}
    wanted = {name: "passed" if name == "sound" else "caught" for name in verdicts}
    assert verdicts == wanted, done.stderr
