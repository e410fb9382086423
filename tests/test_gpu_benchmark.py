"""What `python -m benchmarks.gpu` does, run whole where the CPU stands in for the GPU."""

import json
import os
import time
import weakref
from dataclasses import dataclass

import pytest
import torch

from benchmarks import gpu, gpu_session, rivals
from benchmarks.device import Device
from benchmarks.equivalence import Launches, Skip, checks
from benchmarks.gate import GateError
from benchmarks.gpu_checks import every, outcomes
from benchmarks.gpu_session import Session, finish
from neurospike.backend import dispatch

pytestmark = pytest.mark.thorough


@dataclass(frozen=True)
class Standin(Device):
    """The CPU in place of a CUDA device: what it records runs in Python again, step by step."""

    type: str = "cpu"
    long: tuple[int, int] = (3, 1 << 12)
    free: int = 1 << 30

    def last(self):
        return "cpu"

    def free_bytes(self):
        return self.free

    def on_another_stream(self, run):
        return run()

    def capture(self, step):
        found = step()
        held = weakref.ref(step)  # as a graph: it knows addresses and keeps no tensor

        def replay():
            again = held()
            assert again is not None, "replayed on memory that was freed"
            for old, new in zip(_flat(found), _flat(again()), strict=True):
                old.copy_(new)

        return found, replay

    def peak_mb(self, step):
        step()
        return 0.0


def _flat(tensors):
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


CPU = list(checks(Standin(), "numba"))

MEASURED = {"share of copy, training"}
if rivals.installed("spikingjelly"):
    MEASURED.add("spikingjelly / ours, training")


def session(out, **options):
    """A whole run in seconds: everything is small, nothing is left out."""
    small = {
        "cases": ("4x3x17",),
        "network": (64, 30, 10),
        "steps": 5,
        "batch": 16,
        "epochs": 1,
        "processes": 1,
        "seconds": 0.01,
    }
    return Session(device=Standin(), backend="numba", out=out, **small | options)


def test_without_a_device_it_ends_with_2_and_writes_nothing(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: nothing to measure: torch finds no CUDA device\n"
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run's folder, its results and its exit code; a file says what its training loads."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "more").mkdir()
    (folder / "more/sitecustomize.py").write_text(
        f"open({str(folder / 'seen')!r}, 'w').close()", encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "more"), prepend=os.pathsep)
        run = session(folder / "out", processes=2, limit=36_000.0)
        gpu.measure(run)
        code = finish(run)
    return folder, json.loads((folder / "out/gpu.json").read_text()), code


def test_a_whole_run_fails_nowhere(whole):
    _, results, code = whole
    assert "failed" not in results
    assert "left out" not in results
    assert "skipped" not in results
    assert code == 1  # no floor was measured
    proved = {row["check"] for row in results["equivalence"]}
    assert proved == {check.name for check in every(Standin(), "numba", ("4x3x17",))}
    assert len(proved) == len(CPU) + 2


def test_a_whole_run_leaves_figures_and_what_they_miss(whole):
    folder, results, _ = whole
    names = [row["case"] for row in results["cases"]]
    layers = ["4x3x17 float32", "4x3x17 bfloat16"]
    assert names == [*layers, "64-30-10", "4x3x17 float32, compiled rival"]
    for row in results["cases"][:2]:
        assert row["times"]["ours, training"]["rounds"] >= 5
        assert row["ratios"]["share of copy, training"] > 0
        assert set(row["ratios"]) >= MEASURED
        assert row["ratios"].get("spikingjelly / ours, training", 1) > 0
        assert row["peak_mb"]["ours, training"] == 0.0
    assert "snntorch loop / ours, training" in results["cases"][0]["ratios"]
    assert "ours for snntorch loop, training" not in results["cases"][0]["times"]
    assert results["cases"][2]["ratios"]["snntorch / ours"] > 0
    assert results["cases"][3]["ratios"]["snntorch compiled / ours, training"] > 0
    assert results["training run"][0]["accuracy"].startswith("test accuracy: ")
    text = (folder / "out/gpu.txt").read_text()
    assert "equal  rule subtract float32" in text
    assert text.count("not measured, at least") == len(gpu_session.FLOORS)


def test_its_training_run_finds_what_this_process_finds(whole):
    folder, _, _ = whole
    assert (folder / "seen").exists()


def test_checks_that_take_too_long_leave_the_timings_their_time(tmp_path):
    run = session(tmp_path, limit=0.0)
    gpu.prove(run)
    left_out = {row["part"] for row in run.results["left out"]}
    assert left_out == {check.name for check in every(Standin(), "numba", run.cases)}
    begun = time.perf_counter()
    assert list(outcomes(Standin(), "numba", (), 2, 0.0)) == []
    assert time.perf_counter() - begun < 60


def test_a_check_without_room_is_skipped():
    (long,) = [check for check in checks(Standin(free=1 << 10), "numba") if check.name == "long"]
    with pytest.raises(Skip, match="GiB of the device's memory are not free"):
        long.run()


def test_the_checks_fail_for_a_backend_that_is_wrong(monkeypatch):
    module = dispatch.load(dispatch.TABLE["numba"].module)
    forward, backward = module.forward, module.backward

    def one_spike_off(**arguments):
        forward(**arguments)
        spikes = arguments["spikes"]
        spikes.view(-1)[:1] = 1 - spikes.view(-1)[:1]

    def gradient_off(**arguments):
        backward(**arguments)
        arguments["out"].mul_(1.001)

    rule = CPU[0]
    monkeypatch.setattr(module, "forward", one_spike_off)
    with pytest.raises(GateError, match=r"spikes of .*: 1 of 105 numbers differ"):
        rule.run()
    monkeypatch.setattr(module, "forward", forward)
    monkeypatch.setattr(module, "backward", gradient_off)
    with pytest.raises(GateError, match=r"gradient differs by 1.0e-03, at most 1e-05"):
        rule.run()


def test_a_recorded_step_keeps_the_tensors_that_it_reads():
    def stepping(weight):
        return lambda: weight.square().sum()

    recorded = Standin().record(stepping(torch.arange(4.0)))
    assert recorded() == recorded() == 14.0


def test_operators_are_counted_by_their_names():
    with Launches() as launches:
        rivals.ours("numba")(torch.rand(5, 2, 3, requires_grad=True)).sum().backward()
        rivals.ours("reference")(torch.rand(5, 2, 3))
    assert launches.names == ["numba_scan", "numba_scan_backward"]


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A run of one check and the timing of layers."""
    monkeypatch.setattr("benchmarks.gpu_checks.checks", lambda device, backend: iter(CPU[:1]))
    monkeypatch.setattr(gpu, "training_run", lambda session, path: None)
    monkeypatch.setattr(gpu, "network", lambda session: None)
    monkeypatch.setattr(gpu, "compiled_rival", lambda session, case: None)
    return session(tmp_path)


def test_a_failure_is_kept_and_the_rest_goes_on(short, tmp_path, monkeypatch):
    def broken(device, backend, case, dtype):
        raise GateError(f"{case}: 7 spikes differ")

    monkeypatch.setattr(gpu, "prove_case", broken)
    gpu.measure(short)
    assert finish(short) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["part"] for row in results["failed"]] == ["4x3x17 float32", "4x3x17 bfloat16"]
    assert "cases" not in results
    failed = "FAILED 4x3x17 float32: benchmarks.gate.GateError: 4x3x17: 7 spikes differ"
    assert failed in "\n".join(short.lines)


def test_a_broken_rival_costs_nothing_but_itself(short, monkeypatch):
    def broken():
        raise RuntimeError("Tensor on device cuda:0 is not on the expected device cpu!")

    monkeypatch.setattr(rivals, "snntorch_loop", lambda: lambda current: broken())
    gpu.measure(short)
    assert [row["part"] for row in short.results["failed"]] == ["4x3x17 float32: snntorch loop"]
    ratios = [row["ratios"] for row in short.results["cases"]]
    assert all(set(row) >= MEASURED for row in ratios)
    assert "snntorch loop / ours, training" not in ratios[0]


def test_what_was_found_is_on_disk_before_the_run_ends(short, tmp_path, monkeypatch):
    def killed(session, case, dtype):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "layer", killed)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(short)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["equivalence"][0]["check"] == CPU[0].name
    assert f"equal  {CPU[0].name}" in (tmp_path / "gpu.txt").read_text()


def test_no_case_begins_after_the_limit(short):
    short.limit = -1.0
    gpu.measure(short)
    assert finish(short) == 1
    assert len(short.results["left out"]) == 3 + 5  # checks, and what follows them


def test_a_rival_that_is_another_neuron_is_refused():
    current = torch.randn(5, 3, 17)
    with pytest.raises(GateError, match="of the spikes differ from ours"):
        gpu._agree("rival", lambda x: 0 * x, lambda x: (x > 0).to(x.dtype), current)


def test_floors_are_reached_or_missed():
    run = Session()
    floors = gpu_session.FLOORS
    reached = {floor.ratio: floor.least for floor in floors}
    run.results["cases"] = [{"case": f.case, "ratios": reached} for f in floors]
    assert gpu_session._below(run) == []
    run.results["cases"] = [
        {"case": f.case, "ratios": {k: 0.99 * v for k, v in reached.items()}} for f in floors
    ]
    assert gpu_session._below(run) == list(floors)


def test_bytes_moved():
    assert gpu.bytes_moved("triton", torch.float32) == {"training": 21, "inference": 8}
    assert gpu.bytes_moved("triton", torch.bfloat16) == {"training": 11, "inference": 4}
    assert gpu.bytes_moved("numba", torch.float32) == {"training": 20, "inference": 8}
