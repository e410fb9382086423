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

pytest.importorskip("numba")

ROOT = Path(__file__).parents[1]
KERNEL, ROWS = "kernels/cpu/_scan_loop.py", "kernels/cpu/_rows.py"
SCRIBE, DERIVE = "kernels/cpu/_scribe.py", "neurospike/neurons/derive.py"

# name: file, what stands there, what is put in its place
MUTANTS = {
    "fires at the threshold": (
        SCRIBE,
        'above = build.fcmp_ordered(">", given[0]',
        'above = build.fcmp_ordered(">=", given[0]',
    ),
    "forgets the reset": (
        "neurospike/neurons/zoo.py",
        "v = beta * mem + current - heaviside(mem - threshold) * threshold",
        "v = beta * mem + current",
    ),
    "drops the carry": (
        ROWS,
        "given, wants = (spikes, *[True] * count)",
        "given, wants = (spikes, *[False] * count)",
    ),
    "fused multiply-add": (
        SCRIBE,
        'return getattr(build, f"f{name}")(*given)',
        'return getattr(build, f"f{name}")(*given, flags=("contract",))',
    ),
    "a block short of its last neuron": (
        KERNEL,
        "return sample, first, min(block, job[FEATURES] - first), steps",
        "return sample, first, min(block, job[FEATURES] - first) - 1, steps",
    ),
    "parameters of the first block in each": (KERNEL, "k = start % values.size", "k = 0"),
    "backward stops before the first step": (
        KERNEL,
        "while t > 0:",
        "while t > TOGETHER:",
    ),
    "the gradient of a minimum goes to the greater": (
        DERIVE,
        'less, more = ("lt", "gt") if name == "minimum"',
        'less, more = ("gt", "lt") if name == "minimum"',
    ),
    "a gradient flows through detach": (
        DERIVE,
        'name not in ("heaviside", "detach") and',
        'name == "detach":\n            self.add(a, g)\n        elif name != "heaviside" and',
    ),
    "the gradient of a chosen value goes to both": (
        DERIVE,
        'self.add(c, self.do("where", a, "0.0", g))',
        "self.add(c, g)",
    ),
    "only the first state has a trace": (
        KERNEL,
        "if trace.size > 0:",
        "if trace.size > 0 and s == 0:",
    ),
    "a parameter has the gradient of one step": (
        ROWS,
        '_Result(carried=f"sum{k}", added=True)',
        '_Result(carried=f"sum{k}")',
    ),
    "neurons that fill no vector are left out": (
        ROWS,
        "for lanes in (VECTOR // self.size, 1):",
        "for lanes in (VECTOR // self.size,):",
    ),
    "states are carried over a step only": (
        ROWS,
        "phi.add_incoming(onward, step)",
        "phi.add_incoming(phi, step)",
    ),
    "back through time from the first step on": (ROWS, "if self.back:", "if False:"),
    "rows of successive steps lie too far apart": (
        ROWS,
        "place.add_incoming(build.add(place, self.strides[name]), step)",
        "place.add_incoming(build.add(place, build.mul(self.strides[name], t)), step)",
    ),
    "the greater of two numbers for the lesser": (
        SCRIBE,
        'self.lesser("<" if name == "minimum" else ">", *given)',
        'self.lesser(">" if name == "minimum" else "<", *given)',
    ),
}

RUNNER = """
import os, sys
import numba, snntorch, torch

def run(folder):
    sys.path.insert(0, folder)
    import neurospike
    assert neurospike.__file__.startswith(folder)
    from equivalence import check, check_neuron
    try:
        check("numba", {})
        check_neuron("numba")
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


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_still_stands_once_in_its_file(name):
    file, old, new = MUTANTS[name]
    assert (ROOT / file).read_text(encoding="utf-8").count(old) == 1 and old != new


@pytest.mark.thorough
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
