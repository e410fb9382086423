"""Recurrent layers on the Triton backend without a GPU: machine code, and results interpreted."""

import json
import os
import re

import pytest
import torch

pytest.importorskip("triton")

from test_triton import passed_interpreted
from triton_variants import covering

from benchmarks import gpu_recurrent
from benchmarks.gpu_recurrent import Geometry, Kernel, build, using
from benchmarks.triton_code import compiling, loops_of, parsing, usage_of
from neurospike.kernels.cuda import recurrent as kernels

KINDS = ("forward", "backward")
BOTH = (False, True)


@pytest.mark.thorough
def test_in_the_interpreter_it_is_the_neurons_step_in_torch():
    assert passed_interpreted(["recurrent_interpreted"]) >= 16
    assert "TRITON_INTERPRET" not in os.environ


def compiled(kernel, geometry=None):
    with compiling(90) as made:
        if geometry is None:
            kernel.prepared("cpu")()
        else:
            build(kernel, geometry, "cpu")
    return made[-1]


# As machine code


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["2x64x128", "2x64x256", "2x64x512"])
def test_the_layers_that_are_timed_spill_nothing(kind, case):
    """Nothing in the loop over rows; around it, once a step, a few values of 512 neurons."""
    for dtype, bias in ((torch.float32, False), (torch.float64, False), (torch.float32, True)):
        made = compiled(Kernel(kind, case, dtype, bias=bias, wanted=bias))
        assert usage_of(made)[1] <= 48  # bytes: 32 by Triton 3.8, 48 by 3.6
        rows = min(loops_of(made), key=len)
        assert any("LDG" in instruction for instruction in rows)
        assert not [one for one in rows if re.search(r"\b(LDL|STL)\b", one)]


FACTORS = {
    "size": (1, 16, 100, 256, 500),
    "batch": (1, 64, 300),
    "dtype": (torch.float32, torch.bfloat16, torch.float64),
    "neuron": tuple(gpu_recurrent.NEURONS),
    **dict.fromkeys(("traces", "lengths", "given", "wanted", "bias"), BOTH),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_what_is_asked_for_becomes_machine_code(kind):
    variants = covering(FACTORS)
    for variant in variants:
        size, batch = variant.pop("size"), variant.pop("batch")
        made = compiled(Kernel(kind, f"2x{batch}x{size}", **variant))
        assert made.asm["cubin"].startswith(b"\x7fELF")
    assert len(variants) > 14


@pytest.mark.parametrize("kind", KINDS)
def test_threads_wait_before_they_read_what_others_stored(kind):
    """In the time loop, in this order: barrier, stores, barrier, loads of what was stored."""
    made = compiled(Kernel(kind, "2x64x128"))
    # A load that goes around the barrier, through the cache of what never changes.
    assert "ld.global.nc" not in made.asm["ptx"]
    text = made.asm["ttgir"]
    loop = text[text.index("scf.for") :]
    found = re.findall(r"(?:ttg|gpu)\.(barrier)|tt\.(store)|tt\.(load)", loop)
    order = "".join(next(filter(None, one))[0] for one in found)
    stores = 2 if kind == "forward" else 1
    assert re.match(f"l+b{'s' * stores}bl+s", order), order
    code = re.findall(r"(bar\.sync)|(st)\.global|(ld)\.global", made.asm["ptx"])
    letters = "".join(next(filter(None, one))[0] for one in code)
    # In the machine's own code too; there other barriers stand where registers change hands.
    assert re.search(f"b(sb*){{{stores - 1},}}sb+l", letters), letters


@pytest.mark.parametrize("kind", KINDS)
def test_each_thread_adds_up_its_own_neurons(kind):
    """A row of the weight is read as the neurons lie in the threads: no sums change hands."""
    text = compiled(Kernel(kind, "2x64x256")).asm["ttgir"]
    layout = re.search(r"tt\.load .*tensor<\d+x256x!tt\.ptr<f32>, (#\w+)>", text)[1]
    threads = re.search(rf"^{layout} = .*", text, re.MULTILINE)[0]
    assert "= [1, 2], threadsPerWarp = [1, 32], warpsPerCTA = [1, 4]" in threads
    assert not re.search(r"convert_layout.*tensor<\d+x256x", text)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_contracted(kind):
    text = compiled(Kernel(kind, "2x64x128")).asm["ptx"]
    assert "mul.rn.f32" in text
    assert "fma.rn.f32" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_steps_compiles_anew(kind):
    made = {id(compiled(Kernel(kind, f"{steps}x64x128"))) for steps in (1, 2, 16, 17)}
    assert len(made) == 1


def test_what_is_chosen():
    chosen = {
        size: [kernels.geometry(kind, size, torch.float32) for kind in KINDS]
        for size in (20, 128, 129, 512, 1024)
    }
    assert chosen == {
        20: [Geometry(8, 1, 8), Geometry(32, 1, 4)],
        128: [Geometry(8, 2, 8), Geometry(32, 2, 4)],
        129: [Geometry(16, 2, 4), Geometry(32, 2, 4)],
        512: [Geometry(32, 4, 4), Geometry(32, 4, 4)],
        1024: [Geometry(32, 4, 8), Geometry(32, 4, 8)],
    }
    assert kernels.geometry("forward", 128, torch.float64) == Geometry(4, 2, 8)
    assert kernels.fits("forward", 1024)
    assert not kernels.fits("forward", 1025)
    assert not kernels.fits("backward", 513)


# The benchmark


def test_each_kernel_takes_every_geometry_that_is_swept():
    work = gpu_recurrent.jobs(("2x256x128", "2x64x256"))
    chosen = {kernel: kernel.chosen() for kernel, _ in work}
    assert all((kernel, geometry) in work for kernel, geometry in chosen.items())
    with parsing(90) as made:
        for kernel, geometry in work[::13]:
            assert build(kernel, geometry, "cpu")["geometry"] == list(geometry)
    assert set(made) == {"_forward", "_backward"}


def test_a_layer_that_is_stepped_else_is_swept_too():
    kernel = Kernel("backward", "2x1x600")
    with parsing(90) as made:
        build(kernel, kernel.chosen(), "cpu")
    assert made == ["_backward"]


def test_the_geometry_asked_for_is_compiled_and_then_forgotten():
    before = kernels.geometry
    made = compiled(Kernel("backward", "2x64x128"), Geometry(8, 1, 8))
    assert made.metadata.num_warps == 8
    assert "8x128xf32" in made.asm["ttir"]
    assert kernels.geometry is before
    with pytest.raises(KeyError), using(Geometry(8, 1, 8)):
        raise KeyError
    assert kernels.geometry is before


def test_what_is_found_is_told_and_kept(tmp_path, capsys):
    report = gpu_recurrent.Report(tmp_path, 100.0, {})
    report.part("proofs", "one", lambda: {"proof": "one", "distance": 1e-7})
    report.part("sweep", "two", lambda: 1 / 0)
    row = {"kernel": "k", "chosen": [8, 1, 4], "found": [[2.0, 8, 1, 4], [3.0, 16, 2, 8]]}
    report.part("sweep", "three", lambda: row)
    times = {"ours": {"ms_median": 1.5}}
    ratios = {"ratios over ours": {"ours": 1.0}, "ratios over ours, graph": {"ours": 3.0}}
    alone = {"ours, forward": 0.25}
    timed = {"case": "c", "rate": 0.1, "times": times, "kernels_ms": alone, "failed": {}}
    report.part("times", "four", lambda: timed | ratios)
    report.end = 0.0
    report.part("sweep", "five", lambda: row)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [
        "equal one: gradients within 1.0e-07",
        "FAILED two: ZeroDivisionError: division by zero",
    ]
    assert shown[3:5] == ["         2.0  8/1/4  chosen", "         3.0  16/2/8"]
    assert "1.500 ms,     1.00 of ours,     3.00 of its graph" in shown[6]
    assert shown[-1] == "left out for lack of time: {'part': 'five'}"
    kept = json.loads((tmp_path / "gpu_recurrent.json").read_text())
    assert {"proofs", "failed", "sweep", "times", "left out"} <= kept.keys()


def test_without_a_device_it_ends_with_2(tmp_path, capsys):
    assert gpu_recurrent.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: nothing to measure: torch finds no CUDA device\n"
    assert list(tmp_path.iterdir()) == []
