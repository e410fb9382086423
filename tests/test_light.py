"""The layers run on torch, numba and numpy alone; what else is missing is named where it is wanted.

In a virtual environment that holds these three and what they require themselves, by links to the
installed packages, so that nothing is fetched.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("torch", "numba", "numpy")  # triton comes with a torch that has CUDA

LAYERS = """
import torch
import neurospike as ns
from neurospike import *
from neurospike.formulas import exp

def own(current, mem, beta):
    mem = beta * mem + current
    return fire(mem - 1.0), mem * (1.0 - detach(heaviside(mem - 1.0)))

assert set(ns.__all__) <= set(dir(ns)) & set(globals())
net = ns.Sequential(
    ns.Delay(4, max_delay=3),
    torch.nn.Linear(4, 8),
    ns.LIF(0.9, surrogate=lambda u: exp(-u * u), learn_beta=True),
    ns.SpikeLinear(8, 8),
    ns.Recurrent(ns.ALIF(), 8),
    ns.Spiking(own, beta=0.9),
    torch.nn.Linear(8, 3),
    ns.LI(0.9),
)
trace, states = net(torch.rand(5, 2, 4), lengths=[5, 3])
trace.mean(0).sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
spikes = ns.encoding.rate(torch.rand(2, 4), num_steps=5)
assert net(spikes)[0].shape == (5, 2, 3)
for network in (ns.SNNModel(64, 5, 3, num_steps=4), ns.ConvSNN(64, channels=[2], hidden_size=4)):
    network(torch.rand(2, 1, 8, 8)).sum().backward()
optimizer = torch.optim.SGD(network.parameters(), 0.1)
trainer = ns.SNNTrainer(network, optimizer, torch.nn.CrossEntropyLoss())
trainer.fit([(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))], None, epochs=1)
"""

# Modules of the recogniser that are loaded when it runs, by the commands' own words for it.
LATER = {
    *(f"neurospike.config.{name}" for name in ("loading", "messages", "schema", "sections")),
    *(f"neurospike.config.{name}" for name in ("steps", "values")),
    *(f"neurospike.live.{name}" for name in ("curves", "origins", "page", "parts")),
    "neurospike.pictures.finding",
    "neurospike.training.board",
    "neurospike.training.tiles",
}

EVERY_MODULE = """
import importlib, pkgutil
import neurospike

refused = set()
for module in pkgutil.walk_packages(neurospike.__path__, "neurospike."):
    if module.name.startswith("neurospike.kernels."):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError:
        refused.add(module.name)
print(*sorted(refused))
"""

NAMED = """
import contextlib, io, pathlib, sys
import torch
import neurospike as ns
from neurospike import evaluate, export, predict, train
from neurospike.__main__ import main
from neurospike.config.devices import choose_device
from neurospike.data import load
from neurospike.errors import MissingDependencyError
from neurospike.live import __main__ as live
from neurospike.pictures import read_picture
from neurospike.training import Run
from neurospike.training.progress import progress_bar
from neurospike.training.scale import make_fabric

def reference():
    ns.lif(torch.ones(2, 1, 1), beta=0.9, backend="reference")

for what, call in (
    ("a configuration needs pydantic and pyyaml", lambda: ns.load_model("x.pth")),
    ("preprocessing needs pydantic and pyyaml", lambda: ns.SNNModel(preprocessing=["deskew"])),
    ("a run folder needs pyyaml", lambda: Run("x", config={})),
    ("reading a picture needs scipy and pillow", lambda: read_picture("x.png")),
    ("16-mixed needs lightning-fabric", lambda: make_fabric(torch.device("cpu"), "32-true", 2, 1)),
    ("package 'snntorch' is not installed", reference),
    ("need matplotlib", lambda: ns.SpikeVisualizer().plot_spike_train(torch.ones(3, 2))),
    ("scikit-learn is needed", lambda: load("digits", ".")),
):
    try:
        call()
    except (MissingDependencyError, ns.backend.dispatch.BackendError) as error:
        assert "pip install" in str(error) and what in str(error), str(error)
    else:
        raise AssertionError(what)

words = (["train"], ["predict", "x.png"], ["evaluate"], ["export", "--out", "x.pt2"])
for command in words:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert main(command) == 2, command
    assert told.getvalue().startswith("error: a configuration needs pydantic and pyyaml (No module")
    assert told.getvalue().endswith("): pip install pydantic pyyaml\\n"), told.getvalue()
told = io.StringIO()
with contextlib.redirect_stderr(told):
    assert main(["live"]) == 2
assert "the live page needs nicegui" in told.getvalue()

class Terminal(io.StringIO):
    def isatty(self):
        return True

with contextlib.redirect_stderr(Terminal()), progress_bar("training goes on without", 3) as bar:
    assert bar is None
"""


def required(names: tuple[str, ...]) -> list[importlib.metadata.Distribution]:
    """Return the packages of these names, and all that they require, as far as installed."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system or Python
        lines = [line for line in found[name].requires or () if "extra ==" not in line]
        left += [re.match(r"[\w.-]+", line)[0] for line in lines]
    return list(found.values())


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Run a program in such an environment, outside of the checkout; what it printed."""
    home = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    site = home / "venv" / fresh.SITE
    for package in required(NEEDED):
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return lambda program: fresh.run([str(home / "venv/bin/python"), "-c", program], home, env)


@pytest.mark.parametrize("package", ["pydantic", "yaml", "scipy", "tqdm", "matplotlib", "PIL"])
def test_the_environment_is_light(python, package):
    assert python(f"import importlib.util as u; print(u.find_spec({package!r}))").strip() == "None"


def test_layers_and_networks_run_on_torch_numba_and_numpy(python):
    python(LAYERS)


def test_every_module_that_needs_more_is_one_that_is_loaded_later(python):
    assert set(python(EVERY_MODULE).split()) == LATER


def test_what_is_missing_is_named_with_what_to_install(python):
    python(NAMED)


def test_the_configuration_shows_names_that_are_not_loaded_yet():
    from neurospike import config

    assert set(config.__all__) <= set(dir(config))
    with pytest.raises(AttributeError, match="has no attribute 'xyz'"):
        config.xyz  # noqa: B018
