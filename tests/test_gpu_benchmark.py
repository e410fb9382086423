"""What `python -m benchmarks.gpu` does, as far as a machine without a GPU can do it."""

import json

import pytest
import torch

from benchmarks import equivalence, gpu
from benchmarks.gate import GateError
from neurospike import dispatch

CPU = [c for c in equivalence.checks("cpu", "numba") if c.name != "compiled"]
NAMES = ("rule subtract", "twice", "sixteen bits", "constant", "window", "of spikes")
FEW = [c for c in CPU if c.name in NAMES]


def test_without_a_device_it_ends_with_2_and_writes_nothing(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: nothing to measure: torch finds no CUDA device\n"
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("check", FEW, ids=lambda check: check.name)
def test_the_checks_pass_for_a_backend_that_is_right(check):
    assert check.run() <= 1e-5


def test_the_checks_fail_for_a_backend_that_is_wrong(monkeypatch):
    module = dispatch.load(dispatch.TABLE["numba"].module)
    forward, backward = module.forward, module.backward

    def one_spike_off(*arguments):
        forward(*arguments)
        spikes = arguments[-3]
        spikes.view(-1)[:1] = 1 - spikes.view(-1)[:1]

    def gradient_off(*arguments):
        backward(*arguments)
        arguments[-4].mul_(1.001)

    rule = CPU[0]
    monkeypatch.setattr(module, "forward", one_spike_off)
    with pytest.raises(GateError, match=r"spikes of .*: 1 of 105 numbers differ"):
        rule.run()
    monkeypatch.setattr(module, "forward", forward)
    monkeypatch.setattr(module, "backward", gradient_off)
    with pytest.raises(GateError, match=r"gradient differs by 1.0e-03, at most 1e-05"):
        rule.run()


@pytest.fixture
def short(monkeypatch):
    """A run on the CPU of what takes no more than seconds."""
    monkeypatch.setattr(gpu, "checks", lambda device, backend: CPU[:1])
    monkeypatch.setattr(gpu, "training_run", lambda session, path: None)
    monkeypatch.setattr(gpu, "network", lambda session: None)
    return gpu.Session(device="cpu", backend="numba", cases=("5x3x17",), seconds=0.01)


def test_a_run_leaves_figures_and_what_they_miss(short, tmp_path):
    gpu.measure(short)
    assert gpu.write(short, tmp_path) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert "failed" not in results
    assert [row["case"] for row in results["cases"]] == ["5x3x17 float32", "5x3x17 bfloat16"]
    for row in results["cases"]:
        assert row["times"]["ours, training"]["rounds"] >= 5
        assert row["ratios"]["share of copy, training"] > 0
        assert row["peak_mb"]["ours, training"] is None
    assert "snntorch loop / ours, training" in results["cases"][0]["ratios"]
    assert "ours for snntorch loop, training" not in results["cases"][0]["times"]
    text = (tmp_path / "gpu.txt").read_text()
    assert "equal  rule subtract" in text
    assert text.count("not measured, at least") == len(gpu.FLOORS)


def test_a_failure_is_kept_and_the_rest_goes_on(short, tmp_path, monkeypatch):
    def broken(name, *rest, **options):
        raise GateError(f"{name}: 7 spikes differ")

    monkeypatch.setattr(gpu, "gate", broken)
    gpu.measure(short)
    assert gpu.write(short, tmp_path) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["part"] for row in results["failed"]] == ["5x3x17 float32", "5x3x17 bfloat16"]
    assert "cases" not in results
    assert "FAILED 5x3x17 float32: GateError: 5x3x17: 7 spikes differ" in "\n".join(short.lines)


def test_no_case_begins_after_the_limit(short, tmp_path):
    short.limit = -1.0
    gpu.measure(short)
    assert gpu.write(short, tmp_path) == 1
    assert len(short.results["left out"]) == 5


def test_a_rival_that_is_another_neuron_is_refused():
    current = torch.randn(5, 3, 17)
    with pytest.raises(GateError, match="of the spikes differ from ours"):
        gpu._agree("rival", lambda x: 0 * x, lambda x: (x > 0).to(x.dtype), current)


def test_floors_are_reached_or_missed():
    session = gpu.Session()
    reached = {floor.ratio: floor.least for floor in gpu.FLOORS}
    session.results["cases"] = [{"case": f.case, "ratios": reached} for f in gpu.FLOORS]
    assert gpu._below(session) == []
    session.results["cases"] = [
        {"case": f.case, "ratios": {k: 0.99 * v for k, v in reached.items()}} for f in gpu.FLOORS
    ]
    assert gpu._below(session) == list(gpu.FLOORS)


def test_bytes_moved():
    assert gpu.bytes_moved("triton", torch.float32) == {"training": 21, "inference": 8}
    assert gpu.bytes_moved("triton", torch.bfloat16) == {"training": 11, "inference": 4}
    assert gpu.bytes_moved("numba", torch.float32) == {"training": 20, "inference": 8}
