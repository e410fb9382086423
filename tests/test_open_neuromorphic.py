"""The benchmark of Open Neuromorphic with our entry, in a small clone of the same form."""

import json
import sys

import pytest
import torch
from snntorch import Leaky
from torch import nn

from benchmarks import open_neuromorphic as benchmark

SCRIPT = """
import torch

def still():
    torch.cuda.set_per_process_memory_fraction(0.7, device=None)
    from torch import nn

    def prepare(batch_size, n_steps, n_neurons, n_layers, device):
        return dict(model=nn.Identity(), input=torch.rand(n_steps, batch_size, n_neurons))

    def forward(bench):
        bench["output"] = (bench["input"] - 2).requires_grad_()
        return bench

    def backward(bench):
        bench["output"].sum().backward()

    return prepare, forward, backward, "Still<br>v1"

def lacking():
    import no_such_package

def failing():
    def prepare(**sizes):
        raise RuntimeError("no room for it")
    return prepare, None, None, "Failing"

benchmarks = {"still": still, "lacking": lacking, "failing": failing}
"""

TOOLS = """
import warnings
from time import time

def timeit(call):
    start = time()
    call()
    return [time() - start]

def benchmark_framework(prepare_fn, forward_fn, backward_fn, benchmark_desc, **sizes):
    try:
        bench = prepare_fn(**sizes)
        forward = [timeit(lambda: forward_fn(bench))]
        return forward, [timeit(lambda: backward_fn(bench))]
    except Exception as e:
        warnings.warn(f"Benchmark {benchmark_desc} failed with error {e}.")
        return [[]], [[]]
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "docker").mkdir()
    (folder / "docker" / "run_benchmark.py").write_text(SCRIPT)
    (folder / "docker" / "utils.py").write_text(TOOLS)
    yield folder
    for name in ("utils", "run_benchmark"):
        sys.modules.pop(name, None)


def test_our_entry_spikes_as_snntorch_does_with_the_same_weights():
    prepare, forward, backward, title = benchmark.neurospike()
    bench = prepare(batch_size=2, n_steps=30, n_neurons=16, n_layers=1, device="cpu")
    spikes = forward(bench)["output"]
    linear, leaky = bench["model"][0], Leaky(beta=0.95)
    mem, wanted = leaky.init_leaky(), []
    for current in linear(bench["input"]):
        spike, mem = leaky(current, mem)
        wanted.append(spike)
    assert torch.equal(spikes, torch.stack(wanted)) and spikes.any()
    backward(bench)
    backward(bench)  # that benchmark goes back over one graph again and again
    assert isinstance(linear, nn.Linear) and linear.weight.grad.abs().sum() > 0
    assert title.startswith("NeuroSpike v")


def test_every_contender_is_timed_or_says_why_not(clone, monkeypatch):
    name = "set_per_process_memory_fraction"
    monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))  # put back afterwards
    still, lacking, failing = (
        benchmark.measure(clone, name, 8, 2, "cpu") for name in ("still", "lacking", "failing")
    )
    assert still["title"] == "Still v1" and still["fires"] == 0.0 and still["forward_ms"] > 0
    assert lacking["failed"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert failing["failed"] == "Benchmark Failing failed with error no room for it."
    twice = benchmark.together([still, {**still, "forward_ms": still["forward_ms"] + 2.0}])
    assert twice["forward_ms"] == pytest.approx(still["forward_ms"] + 1.0) and twice["rounds"] == 2
    assert benchmark.together([still, failing]) == failing
    told = benchmark.table({"8": {"neurospike": still, "other": twice, "failing": failing}})
    assert "| 8 | Still v1 |" in told and "| 1.00 | 0.0% |" in told
    assert "| 8 | Failing | fails: Benchmark Failing failed with error no room for it. |" in told


def test_the_command_times_each_in_a_process_and_writes_what_it_found(clone, tmp_path, capsys):
    arguments = ["--checkout", str(clone), "--neurons", "8", "--rounds", "1", "--device", "cpu"]
    assert benchmark.main([*arguments, "--out", str(tmp_path), "--others", "lacking"]) == 0
    rows = json.loads((tmp_path / "open_neuromorphic.json").read_text())["cases"]["8"]
    ours = rows["neurospike"]
    assert ours["forward_ms"] > 0 and ours["backward_ms"] > 0 and 0 < ours["fires"] < 0.5
    assert "No module named 'no_such_package'" in rows["lacking"]["failed"]
    assert "| 8 | NeuroSpike v" in capsys.readouterr().out


def test_a_process_that_takes_too_long_is_told(clone, tmp_path):
    arguments = ["--checkout", str(clone), "--neurons", "8", "--rounds", "1", "--device", "cpu"]
    arguments += ["--out", str(tmp_path), "--others", "still", "--limit", "0.1"]
    assert benchmark.main(arguments) == 0
    rows = json.loads((tmp_path / "open_neuromorphic.json").read_text())["cases"]["8"]
    assert all(row == {"failed": "not done within 0.1 s"} for row in rows.values())


def test_its_clock_waits_for_the_device(clone, monkeypatch):
    waited = []
    monkeypatch.setattr(benchmark, "synchronize", lambda: waited.append(1))
    _, tools = benchmark.load(clone)
    tools.timeit(lambda: None)
    assert len(waited) == 2


def test_a_folder_that_is_no_clone_is_told(tmp_path):
    with pytest.raises(SystemExit, match=r"clone github\.com/open-neuromorphic"):
        benchmark.main(["--checkout", str(tmp_path)])
