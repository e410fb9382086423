"""The sweep of geometries: its table, and that each kernel takes what it is given."""

import json

import pytest
import torch

from benchmarks import gpu_sweep, triton_code
from benchmarks.report import RESULTS
from neurospike.kernels.cuda import scan

CHOSEN = [8, 256, 2, 4]


def results(chosen=CHOSEN):
    kernel = "LIF float32 forward"
    made = {"registers": 64, "spills": 2, "shared_bytes": 0}
    return {
        "machine": {"device": "a card"},
        "kernels": [
            {"kernel": kernel, "geometry": CHOSEN, **made},
            {"kernel": kernel, "geometry": [8, 64, 1, 4], "error": "Traceback\nOSError: no room"},
        ],
        "cases": [
            {
                "case": "100x128x8192",
                "kernel": kernel,
                "copy_us": 90.0,
                "chosen": chosen,
                "found": [[100.0 + 5 * k, 8, 512, 4, k] for k in range(4)] + [[120.0, *CHOSEN]],
            }
        ],
    }


def test_the_table_tells_the_best_and_what_is_chosen():
    assert list(gpu_sweep.lines({**results(), "left out": ["25x32x256 LIF"]})) == [
        "a card: us (share of a copy's speed; registers, spills): steps/neurons/warps/stages",
        "100x128x8192 LIF float32 forward",
        "    100.00 (0.90; ?, ?): 8/512/4/0",
        "    105.00 (0.86; ?, ?): 8/512/4/1",
        "    110.00 (0.82; ?, ?): 8/512/4/2",
        "  chosen, +20.0%: 120.00 (0.75; 64, 2): 8/256/2/4",
        "FAILED LIF float32 forward 8/64/1/4: OSError: no room",
        "left out for lack of time: 25x32x256 LIF",
    ]
    other = list(gpu_sweep.lines(results(chosen=[8, 1, 1, 1])))
    assert "  chosen, not timed: 8/1/1/1" in other


def test_what_is_kept_is_read_again(tmp_path):
    gpu_sweep.save(results(), tmp_path)
    assert json.loads((tmp_path / "gpu_sweep.json").read_text()) == results()
    assert "+20.0%" in (tmp_path / "gpu_sweep.txt").read_text()


def test_the_stored_table_is_that_of_the_stored_results():
    stored = json.loads((RESULTS / "gpu_sweep.json").read_text())
    table = (RESULTS / "gpu_sweep.txt").read_text()
    assert table.splitlines() == list(gpu_sweep.lines(stored))
    names = {kernel.label for kernel in gpu_sweep.kernels()}
    assert {row["kernel"] for row in stored["cases"]} == names


def test_what_is_chosen_is_tried_always():
    for kernel in gpu_sweep.kernels():
        tried = gpu_sweep.geometries(kernel)
        assert len(set(tried)) == len(tried)
        for case in gpu_sweep.CASES:
            assert kernel.chosen(gpu_sweep.sizes(case)[1]) in tried


@pytest.mark.parametrize("kernel", list(gpu_sweep.kernels()), ids=lambda kernel: kernel.label)
def test_each_kernel_takes_its_arguments(kernel):
    with triton_code.parsing(90) as made:
        row = gpu_sweep.build(kernel, gpu_sweep.GEOMETRIES[0], "cpu")
    assert "error" not in row, row["error"]
    assert made == [f"_{kernel.kind}"]


@pytest.mark.parametrize("use", gpu_sweep.USES)
def test_what_is_timed_is_the_launch_of_the_kernel(use):
    kernel, geometry = gpu_sweep.Kernel("LIF", torch.float32, use), gpu_sweep.GEOMETRIES[0]
    with triton_code.parsing(90) as made:
        gpu_sweep.launched(kernel, geometry, "16x2x32", "cpu")()
    assert made == [f"_{kernel.kind}"]


def test_a_kernel_is_compiled_in_the_geometry_asked_for():
    kernel = gpu_sweep.Kernel("LIF", torch.float32, "inference")
    with triton_code.compiling(90) as made:
        assert "error" not in gpu_sweep.build(kernel, (8, 512, 4, 1), "cpu")
    assert made[-1].metadata.num_warps == 4
    assert "512xf32" in made[-1].asm["ttir"]


@pytest.mark.parametrize("use", gpu_sweep.USES)
def test_what_is_swept_is_what_a_layer_launches(use, monkeypatch):
    asked = []
    compiled = scan.compiled

    def spied(kind, key, **flags):
        asked.append((kind, key, {"EVERY": gpu_sweep.EVERY, **flags}))
        return compiled(kind, key, **flags)

    scan.forget()
    monkeypatch.setattr(scan, "compiled", spied)
    name = {"forward": "training forward"}.get(use, use)
    with triton_code.parsing(90):
        triton_code.build(triton_code.Kernel(name, torch.bfloat16), 90)
    kernel = gpu_sweep.Kernel("LIF", torch.bfloat16, use)
    kernel.jitted(kernel.chosen(triton_code.NEURONS))
    of_a_layer, of_the_sweep = asked
    assert of_the_sweep == of_a_layer
    monkeypatch.undo()
    scan.forget()


def test_without_a_device_it_ends_with_2(tmp_path, capsys):
    assert gpu_sweep.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: nothing to measure: torch finds no CUDA device\n"
    assert list(tmp_path.iterdir()) == []
