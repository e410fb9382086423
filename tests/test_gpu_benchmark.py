"""What `python -m benchmarks.gpu` does, run whole where the CPU stands in for the GPU."""

import json
import logging
import os
import subprocess
import sys
import time
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_layers, gpu_networks, gpu_session, rivals
from benchmarks.device import Device
from benchmarks.equivalence import Launches, Skip, checks
from benchmarks.gate import GateError
from benchmarks.gpu_checks import every, outcomes
from benchmarks.gpu_session import Session, finish
from neurospike.backend import dispatch

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parents[1]


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

    def kernel_seconds(self, prepare):
        step = prepare()
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    def copy_seconds(self, copy):
        return self.kernel_seconds(lambda: copy)

    def peak_mb(self, step):
        step()
        return 0.0


def _flat(tensors):
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


CPU = list(checks(Standin(), "numba"))

MEASURED = {"share of copy, training", *map(gpu_session.share_of_copy, gpu_session.USES)}
PARTS = 7  # of a whole run after its checks: host, two formats, network, training, two of compiling
if rivals.installed("spikingjelly"):
    MEASURED.add("spikingjelly / ours, training")


def session(out, **options):
    """A whole run in seconds: everything is small, nothing is left out."""
    small = {
        "cases": ("4x3x17",),
        "host": "4x2x16",
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


@pytest.mark.parametrize("path", ["triton", "cuda"])
def test_the_command_hands_on_what_it_was_told(path, tmp_path, monkeypatch):
    monkeypatch.setenv(gpu.SPIKINGJELLY, "torch")
    monkeypatch.setattr(gpu, "unsupported_reasons", lambda *_: [])
    asked = []

    def measure(session, data_path):
        told = gpu.settings(session)["spikingjelly"]
        asked.append((session.limit, session.checks, data_path, told))

    monkeypatch.setattr(gpu, "measure", measure)
    options = ["--spikingjelly", path, "--no_checks", "--limit", "9", "--data_path", "digits"]
    assert gpu.main(["--out", str(tmp_path), *options]) == 1  # no floor was measured
    assert asked == [(9.0, False, Path("digits"), f"its {path} path, float32 state")]
    assert os.environ[gpu.SPIKINGJELLY] == path


@pytest.mark.parametrize("path", ["triton", "cuda"])
def test_spikingjelly_takes_the_path_that_is_asked_for(path):
    """It reads which as it is imported, and not before: `main` says so once it has its options."""
    pytest.importorskip("spikingjelly")
    program = f"""
import os, sys
from benchmarks import gpu
assert "spikingjelly" not in sys.modules
os.environ[gpu.SPIKINGJELLY] = {path!r}
from benchmarks import rivals
rivals.spikingjelly_multi_step()
from spikingjelly._ops import lif
print(lif._selection._requested)
"""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split()[-1:] == [path], found.stderr


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
        run = session(folder / "out", processes=2, limit=36_000.0, checks_limit=36_000.0)
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
    last = ["64-30-10", "two layers 64-30-10", "4x3x17 float32, compiled rival"]
    assert names == ["host 4x2x16", *layers, *last]
    host, first, second, network, two, rival = results["cases"]
    assert set(host["microseconds"]) >= {"torch.relu", "forward and backward"}
    assert host["ratios"]["forward and backward / torch.relu"] > 0
    for row in (first, second):
        assert row["times"]["ours, training"]["rounds"] >= 5
        assert row["ratios"]["share of copy, training"] > 0
        assert set(row["ratios"]) >= MEASURED
        assert row["ratios"].get("spikingjelly / ours, training", 1) > 0
        assert row["peak_mb"]["ours, training"] == 0.0
        for use in gpu_session.USES:
            share = row["kernels_ms"][f"copy, {use}"] / row["kernels_ms"][use]
            assert row["ratios"][gpu_session.share_of_copy(use)] == pytest.approx(share)
    assert "snntorch loop / ours, training" in first["ratios"]
    assert "ours for snntorch loop, training" not in first["times"]
    assert network["ratios"]["snntorch / ours"] > 0
    assert set(two["ratios"]) == {f"ours / {mode}" for mode in gpu_networks.MODES}
    assert all(seconds > 0 for seconds in two["compile_seconds"].values())
    assert all(isinstance(said, list) for said in two["warnings"].values())
    assert rival["ratios"]["snntorch compiled / ours, training"] > 0
    assert results["settings"]["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert results["settings"]["proofs"] == "run"
    training = results["training run"][0]
    assert training["accuracy"].startswith("test accuracy: ")
    assert training["figures"]["seconds per epoch"] == min(training["epoch_seconds"]) > 0
    text = (folder / "out/gpu.txt").read_text()
    assert "equal  rule subtract float32" in text
    assert text.count("not measured, at ") == len(gpu_session.FLOORS)


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


def test_checks_have_a_limit_of_their_own(short):
    short.checks_limit = -1.0
    gpu.prove(short)
    assert len(short.results["left out"]) == 3
    assert short.left() > 200


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
    monkeypatch.setattr(gpu, "training_runs", lambda session, path: None)
    monkeypatch.setattr(gpu, "compiled_network", lambda session: None)
    monkeypatch.setattr(gpu, "network", lambda session: None)
    monkeypatch.setattr(gpu, "compiled_rival", lambda session, case: None)
    return session(tmp_path)


def test_a_failure_is_kept_and_the_rest_goes_on(short, tmp_path, monkeypatch):
    def broken(backend, case, current, grad):
        raise GateError(f"{case}: 7 spikes differ")

    monkeypatch.setattr(gpu_layers, "prove_layer", broken)
    gpu.measure(short)
    assert finish(short) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["part"] for row in results["failed"]] == ["4x3x17 float32", "4x3x17 bfloat16"]
    assert [row["case"] for row in results["cases"]] == ["host 4x2x16"]
    failed = "FAILED 4x3x17 float32: benchmarks.gate.GateError: 4x3x17: 7 spikes differ"
    assert failed in "\n".join(short.lines)


def test_a_broken_rival_costs_nothing_but_itself(short, monkeypatch):
    def broken():
        raise RuntimeError("Tensor on device cuda:0 is not on the expected device cpu!")

    monkeypatch.setattr(rivals, "snntorch_loop", lambda: lambda current: broken())
    gpu.measure(short)
    assert [row["part"] for row in short.results["failed"]] == ["4x3x17 float32: snntorch loop"]
    ratios = [row["ratios"] for row in short.results["cases"][1:]]
    assert len(ratios) == 2
    assert all(set(row) >= MEASURED for row in ratios)
    assert "snntorch loop / ours, training" not in ratios[0]


def test_a_layer_is_timed_without_rivals(short, monkeypatch):
    monkeypatch.setattr(rivals, "installed", lambda package: False)
    monkeypatch.delattr(rivals, "snntorch_loop")
    gpu.measure(short)
    assert "failed" not in short.results
    names = [name for row in short.results["cases"][1:] for name in row["times"]]
    assert names == 2 * ["ours, training", "ours, inference", "copy, training", "copy, inference"]


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
    assert len(short.results["left out"]) == 3 + PARTS


def test_the_compiled_rival_needs_a_minute(short):
    short.limit = 0.9 * gpu.COMPILED_SECONDS
    gpu.measure(short)
    assert short.results["left out"] == [{"part": "4x3x17 float32, compiled rival"}]


def test_proofs_can_be_left_out_and_that_is_said(short):
    short.checks = False
    gpu.measure(short)
    assert "equivalence" not in short.results
    assert short.results["settings"]["proofs"].startswith("left out")
    assert "4x3x17 float32" in [row["case"] for row in short.results["cases"]]


def test_a_rival_that_is_another_neuron_is_refused():
    current = torch.randn(5, 3, 17)
    with pytest.raises(GateError, match="of the spikes differ from ours"):
        gpu_layers._agree("rival", lambda x: 0 * x, lambda x: (x > 0).to(x.dtype), current)


def test_floors_are_reached_or_missed():
    def cases(factor):
        """Rows at the floors, or off them by a factor: below, or above where less is better."""
        found = {}
        for floor in gpu_session.FLOORS:
            value = floor.bound / factor if floor.at_most else floor.bound * factor
            found.setdefault(floor.case, {})[floor.figure] = value
        return [{"case": case, "ratios": ratios} for case, ratios in found.items()]

    run = Session()
    run.results["cases"] = cases(1.0)
    assert gpu_session._below(run) == []
    run.results["cases"] = cases(0.99)
    assert gpu_session._below(run) == list(gpu_session.FLOORS)


def test_a_figure_that_is_no_ratio_has_its_floor_too():
    floor = next(one for one in gpu_session.FLOORS if one.figure == "seconds per epoch")
    run = Session()
    for value in (0.1, 0.2):
        row = {"case": floor.case, "ratios": {}, "figures": {floor.figure: value}}
        run.results["training run"] = [row]
        assert (floor in gpu_session._below(run)) == (value > 0.15)


def test_bytes_moved():
    def of(backend, dtype):
        return tuple(
            gpu_layers.bytes_moved(backend, dtype)[use] for use in (*gpu_session.USES, "training")
        )

    assert of("triton", torch.float32) == (8.5, 12.5, 8, 21)
    assert of("triton", torch.bfloat16) == (4.5, 6.5, 4, 11)
    assert of("numba", torch.float32) == (8, 12, 8, 20)


def test_kernels_alone_are_what_the_layer_computes():
    found = {}

    class Keeping(Standin):
        def kernel_seconds(self, prepare):
            found[len(found)] = prepare()()
            return 0.004

        def copy_seconds(self, copy):
            found[len(found)] = copy()
            return 0.003

    current, grad = torch.randn(4, 3, 17).requires_grad_(), torch.randn(4, 3, 17)
    run = Session(device=Keeping(), backend="numba")
    times, shares = gpu_layers.kernels_alone(run, rivals.ours("numba"), current, grad)
    assert times["backward"] == 4.0
    assert times["copy, backward"] == 3.0
    assert list(shares.values()) == [0.75] * 3
    spikes = rivals.ours("reference")(current)
    assert torch.equal(found[0], spikes)
    assert found[0].requires_grad
    (gradient,) = torch.autograd.grad(spikes, current, grad)
    torch.testing.assert_close(found[2][0], gradient)
    assert current.grad is None


def test_warnings_of_python_and_of_torch_are_kept():
    with gpu_networks.warned() as told:
        warnings.warn("slow", UserWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.getLogger("torch._inductor").warning("no graph of %s", "this")
        logging.getLogger("torch._inductor").info("fine")
    assert sorted(told) == ["no graph of this", "slow"]


def test_whether_the_configuration_has_a_key():
    assert gpu_networks.has_key("epochs")
    assert not gpu_networks.has_key("no_such_key")
