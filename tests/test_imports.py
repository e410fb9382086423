"""What `import neurospike` and a first step load, and what works where a package is missing.

One process loads torch, then forks for every package to be missing: each child imports neurospike
for the first time, and torch is not loaded again and again.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAZY = (
    "numba",
    "triton",
    "snntorch",
    "torchvision",
    "sklearn",
    "matplotlib",
    "lightning_fabric",
    "torchmetrics",
    "tensorboard",
    "nicegui",
)
# What a command loads when it is wanted, and no training step wants.
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "pandas",
    "PIL",
    "scipy.signal",
    "scipy.stats",
)

PREAMBLE = """
import importlib.abc, os, sys, traceback
import torch

class Missing(importlib.abc.MetaPathFinder):
    def __init__(self, *names):
        self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def child(job):
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, job

def error(of, call):
    try:
        call()
    except of as raised:
        return str(raised)
    raise AssertionError(f"no {of.__name__}")
"""

NOTHING_LOADED = f"""
def loads_nothing():
    import neurospike, neurospike.train
    neurospike.backends()
    loaded = [name for name in {LAZY} + {HEAVY} + ("pydantic",) if name in sys.modules]
    assert not loaded, loaded

def evaluates_without_reading_pictures():
    import neurospike.evaluate
    loaded = [name for name in {LAZY} + {HEAVY} + ("scipy",) if name in sys.modules]
    assert not loaded, loaded

before = [name for name in {LAZY} + {HEAVY} if name in sys.modules]
assert not before, before
child(loads_nothing)
child(evaluates_without_reading_pictures)
"""

FIRST_STEP = f"""
import math, pathlib, struct
from torch.optim.optimizer import register_optimizer_step_pre_hook

def write_mnist(raw):
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, sizes in (("images-idx3", (40, 28, 28)), ("labels-idx1", (40,))):
            start = struct.pack(f">4B{{len(sizes)}}I", 0, 0, 8, len(sizes), *sizes)
            content = start + bytes(math.prod(sizes))
            (raw / f"{{part}}-{{kind}}-ubyte").write_bytes(content)

LATER = {(*(name for name in LAZY if name != "numba"), *HEAVY)}
if torch.__version__ < (2, 10):
    LATER = [name for name in LATER if name != "sympy"]  # its own checks of a shape load that

def trains(dataset, precision):
    def at_first_step(*_):
        loaded = [name for name in LATER if name in sys.modules and name not in before]
        print(*loaded, file=sys.stderr)
        os._exit(1 if loaded else 0)

    def job():
        os.chdir(sys.argv[1])
        register_optimizer_step_pre_hook(at_first_step)
        from neurospike import train
        flags = ["--data_path=data", "--epochs=1", "--num_steps=2", "--hidden_size=8"]
        what = [f"--dataset={{dataset}}", f"--precision={{precision}}", "--device=cpu"]
        raise SystemExit(train.main([*what, *flags]))
    return job

before = set(sys.modules)
write_mnist(pathlib.Path(sys.argv[1]) / "data" / "MNIST" / "raw")
for dataset in ("digits", "mnist"):
    for precision in ("32-true", "bf16-mixed"):
        child(trains(dataset, precision))
"""

WORKS_WITHOUT = f"""
import pathlib, tempfile
empty = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))

def without(*names):
    def job():
        sys.meta_path.insert(0, Missing(*names))
        import neurospike as ns
        from neurospike import data, train
        from neurospike.errors import BackendError, MissingDependencyError
        from neurospike.training import draw_curves
        works = {{name for name, why_not in ns.backends().items() if why_not is None}}
        current = torch.randn(3, 2, 4, requires_grad=True)
        for package, backend in (("numba", "numba"), ("snntorch", "reference")):
            if package in names:
                assert backend not in works
                assert f"pip install {{package}}" in ns.backends()[backend]
                told = error(BackendError, lambda: ns.lif(current, beta=0.9, backend=backend))
                assert f"pip install {{package}}" in told, told
            else:
                ns.lif(current, beta=0.9, backend=backend)[0].sum().backward()
        if works:
            ns.lif(current, beta=0.9)[0].sum().backward()
            ns.SNNModel(64, 5, 3, num_steps=4)(torch.rand(2, 64)).sum().backward()
        missing = MissingDependencyError
        if "sklearn" in names:
            assert "pip install scikit-learn" in error(missing, lambda: data.load("digits", empty))
        if "torchvision" in names:
            assert "pip install torchvision" in error(missing, lambda: data.load("mnist", empty))
        if "matplotlib" in names:
            (empty / "metrics.jsonl").touch()
            assert "pip install matplotlib" in error(missing, lambda: draw_curves(empty))
    return job

for name in {LAZY}:
    child(without(name))
child(without(*{LAZY}))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "program",
    [NOTHING_LOADED, FIRST_STEP, WORKS_WITHOUT],
    ids=["loads nothing", "first step", "works without"],
)
def test_in_a_fresh_process(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=3000,  # a process that hangs, not a slow machine
    )
    assert done.returncode == 0, done.stderr
