"""What the READMEs say of speed is what is stored, and what is not stored is not said."""

import json
from pathlib import Path

import pytest

from benchmarks import events_report, gpu_report, pictures, report, rivals, timing

ROOT = Path(__file__).parents[1]


def times(**milliseconds):
    return {
        name.replace("_", " "): {"ms_p20": v, "ms_median": v, "ms_p80": v, "rounds": 5}
        for name, v in milliseconds.items()
    }


def cpu():
    """Results as `python -m benchmarks.cpu` leaves them."""
    layer = {
        "case": "layer 25x32x256",
        "times": {**times(), "numba, training": times(x=2.0)["x"]},
        "ratios": {"numba / floor, training": 1.5, "numba / floor, inference": 1.2},
    }
    layer["times"]["numba, inference"] = times(x=0.5)["x"]
    for number, rival in enumerate(rivals.RIVALS, start=2):
        layer["ratios"][f"{rival.name} / numba, training"] = float(number)
        layer["ratios"][f"{rival.name} / numba, inference"] = 10.0 * number
    rows = [
        {"case": f"time against T: {t}x32x256", "times": times(numba=t, snntorch=9 * t, copy=t / 2)}
        for t in (1, 5, 25)
    ]
    return {
        "machine": timing.machine(),
        "layer": [layer],
        "saved": [{"case": "saved", "bytes_a_neuron_step": {"numba": 4.0, "snntorch": 21.5}}],
        "workload": [
            {
                "case": "Linear(512, 512) + LIF, batch 16, T=500",
                "times": times(numba=1250.0),
                "ratios": {"numba / products alone": 1.25, "norse / numba": 3.0},
            }
        ],
        "network": [
            {
                "case": "network 784-1000-10, batch 128, T=25",
                "times": times(numba=15.0),
                "ratios": {"snntorch / numba": 7.0, "peak memory of a step, snntorch / numba": 5.0},
            }
        ],
        "sweep": [{"case": "time against T", "rows": rows}],
    }


def test_the_readmes_say_what_is_stored():
    stored = report.load(report.RESULTS)
    for file, name, section in report.SECTIONS:
        text = (ROOT / file).read_text(encoding="utf-8")
        start, stop = report.between(text, name, file)
        found = text[start:stop].strip()
        assert found == section(stored).strip(), "run python -m benchmarks.report --write"
    for name, needed, _ in report.PICTURES:
        if needed in stored.get("cpu", ()):
            size = (ROOT / report.IMAGES / name).stat().st_size
            assert 0 < size <= 100_000


def test_without_results_nothing_is_claimed(tmp_path, capsys):
    assert report.load(tmp_path) == {}
    assert report.how_fast({}).startswith("Not measured: `python -m benchmarks.cpu`")
    assert report.step_table({}).startswith("Not measured: `python -m benchmarks.step`")
    assert report.main(["--results", str(tmp_path)]) == 0
    assert "measure with python -m benchmarks.cpu" in capsys.readouterr().out


def test_every_figure_stands_with_its_machine():
    stored = {"cpu": cpu()}
    section = report.how_fast(stored)
    assert "| layer 25x32x256, training step | 2 ms | 2.0x | 3.0x |" in section
    assert "| layer 25x32x256, inference | 0.5 ms | 20.0x | 30.0x |" in section
    assert "| Linear(512, 512) + LIF, batch 16, T=500 | 1.25 s |" in section
    assert "| 1.25 of its products |" in section
    assert "peak memory" not in section
    assert "On a GPU: not measured." in section
    machine = stored["cpu"]["machine"]
    line = report.machine_line(machine)
    assert line in section
    for part in ("device", "threads", "allocator", "commit", "python"):
        assert str(machine[part]) in line
    both = report.how_fast({"cpu": cpu(), "cpu-kept": cpu(), "gpu": gpu()})
    assert both.count(line) == 3
    assert "| 25x32x256 float32 | 0.1 ms |" in both


def test_the_readme_has_both_devices_at_a_glance():
    text = report.at_a_glance({"cpu": cpu(), "gpu": gpu()})
    on_cpu, on_gpu = "CPU | snntorch | spikingjelly | norse", "GPU | snntorch | spikingjelly"
    assert text.startswith(f"| a training step | {on_cpu} | {on_gpu} |")
    assert "| layer 25x32x256 | 2 ms | 2.0x | 5.0x | 7.0x | 0.1 ms | 40.0x |  |" in text
    assert "| 784-1000-10 | 15 ms | 7.0x |  |  | 1.5 ms | 27.0x |  |" in text
    assert "| 784-1000-10 as one CUDA graph |  |  |  |  | 0.19 ms | 210.0x |  |" in text
    assert text.count(report.machine_line(timing.machine())) == 2
    alone = report.at_a_glance({"cpu": cpu()})
    assert "| layer 25x32x256 | 2 ms | 2.0x | 5.0x | 7.0x |  |  |  |" in alone
    assert "GPU: not measured." in alone and report.at_a_glance({}).startswith("Not measured")


def test_open_neuromorphic_as_its_script_found_it():
    one = {"title": "Ours", "forward_ms": 1.0, "backward_ms": 3.0, "fires": 0.05}
    other = {**one, "title": "Other", "forward_ms": 5.0}
    found = {
        "machine": timing.machine(),
        "batch": 16,
        "cases": {"512": {"neurospike": one, "o": other}},
    }
    text = report.open_table({"open_neuromorphic": found})
    assert (
        "| 512 | Other | 5.0 ms | 3.0 ms | 2.00 | 5.0% |" in text and "Batch 16. Measured" in text
    )
    none = report.open_table({})
    assert none.startswith("Not measured: `python -m benchmarks.open_neuromorphic")
    assert "--device cpu`" in none and "--device cuda`" in none
    on_gpu = {**found, "machine": {**found["machine"], "device": "a GPU"}}
    text = text.split("\n\nNot measured")[0]
    both = report.open_table({"open_neuromorphic": found, "gpu_open_neuromorphic": on_gpu})
    assert both.count("| 512 | Other |") == 2 and both.index(text) < both.index("on a GPU")


def gpu():
    """Results as `python -m benchmarks.gpu` leaves them, of a few cases."""
    shares = {"forward": 0.9, "backward": 0.91, "inference": 0.92}
    layers = [
        {
            "case": f"25x32x256 {dtype}",
            "times": {"ours, training": times(x=0.1)["x"]},
            "ratios": {
                "share of copy, training": 0.85,
                **{f"share of copy, kernels, {use}": share for use, share in shares.items()},
                f"{rival} / ours, training": 40.0,
            },
            "peak_mb": {"ours, training": 12.4},
        }
        for dtype, rival in (("float32", "snntorch loop"), ("bfloat16", "spikingjelly"))
    ]
    network = {
        "case": "784-1000-10",
        "times": times(snntorch=40.0, ours=1.5) | {"ours, CUDA graph": times(x=0.19)["x"]},
        "ratios": {"snntorch / ours": 210.0, "snntorch / ours without a graph": 27.0},
        "peak_mb": {"ours": 30.0, "ours, CUDA graph": 0.0},
    }
    host = {
        "case": "host 25x32x256",
        "times": {},
        "ratios": {"forward and backward / torch.relu": 2.4, "inference / torch.relu": 1.1},
    }
    two = {
        "case": "two layers 784-1000-10",
        "times": times(ours=1.0, compiled=0.8),
        "ratios": {"ours / compiled": 1.25},
        "compile_seconds": {"compiled": 12.3, "reduce-overhead": 5.0},
        "warnings": {"compiled": ["slow"], "reduce-overhead": []},
    }
    rival = {
        "case": "25x32x256 float32, compiled rival",
        "times": times(x=0.1),
        "ratios": {"snntorch compiled / ours, training": 3.0},
    }
    run = {
        "case": "training on mnist",
        "accuracy": "test accuracy: 98.00%",
        "ratios": {},
        "figures": {"seconds per epoch": 0.141},
    }
    settings = {
        "torch.backends.cuda.matmul.allow_tf32": "False",
        "spikingjelly": "its triton path, float32 state",
    }
    return {
        "machine": timing.machine(),
        "settings": settings,
        "equivalence": [{"check": "rule subtract float32", "gradient_distance": 0.0}],
        "cases": [host, *layers, network, two, rival],
        "training run": [run],
    }


def test_a_gpu_stands_beside_the_cpu():
    assert gpu_report.section(None) == "On a GPU: not measured."
    text = gpu_report.section(gpu())
    for line in (
        "| 25x32x256 float32 | 0.1 ms | 0.90, 0.91, 0.92 "
        "| snntorch loop 40.0x, snntorch compiled 3.0x | 12 MB |",
        "| 25x32x256 bfloat16 | 0.1 ms | 0.90, 0.91, 0.92 | spikingjelly 40.0x | 12 MB |",
        "| whole step 784-1000-10 | 1.5 ms |  | snntorch 27.0x | 30 MB |",
        "| whole step 784-1000-10 as one CUDA graph | 0.19 ms |  | snntorch 210.0x |  |",
        "- What the host needs for a layer of 25x32x256: forward and backward 2.4 times as long as "
        "`torch.relu`'s, inference 1.1 times.",
        "- An `ns.Sequential` of two layers 784-1000-10: 1.25 times as fast under `torch.compile` "
        "(12 s to compile, warnings: 1).",
        "- Training on mnist: 0.141 s per epoch, test accuracy: 98.00%.",
        "- TF32 in products of matrices: off, which is torch's default; SpikingJelly in its triton "
        "path, float32 state.",
    ):
        assert line in text.splitlines()
    assert "reduce-overhead" not in text  # which failed
    assert gpu_report.against_cpu(cpu(), gpu()) == {
        "layer 25x32x256": {"CPU, float32": 2.0, "GPU, float32": 0.1, "GPU, bfloat16": 0.1},
        "network 784-1000-10": {
            "CPU, float32": 15.0,
            "GPU, float32": 1.5,
            "GPU, float32 as one CUDA graph": 0.19,
        },
    }
    assert gpu_report.against_cpu(cpu(), {"cases": []}) == {}


def test_cpu_against_gpu_is_drawn_where_there_are_both(tmp_path):
    (file,) = pictures.draw(cpu(), tmp_path, gpu())[3:]
    assert file.name == report.AGAINST[0]
    assert 5_000 < file.stat().st_size <= 100_000
    assert len(pictures.draw(cpu(), tmp_path)) == 3
    figure = pictures.against_gpu(cpu(), gpu())
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches if bar.get_width()]
    assert widths == [2.0, 0.1, 0.1, 15.0, 1.5, 0.19]
    assert report.AGAINST[0] in report.how_fast({"cpu": cpu(), "gpu": gpu()})
    assert report.AGAINST[0] not in report.how_fast({"cpu": cpu()})


def test_where_the_time_of_a_step_goes():
    part = dict.fromkeys([*report.PARTS, report.REST], 2.0)
    networks = {"snntorch": {**part, "loss": 5.0}, "numba": part}
    text = report.step_table({"step": {"machine": timing.machine(), "networks": networks}})
    assert "| loss | 5.00 ms | 2.00 ms |" in text
    assert f"| **{5 + 2.0 * (len(part) - 1):.2f} ms** | **{2.0 * len(part):.2f} ms** |" in text


def test_event_driven_layers_with_what_there_is_of_them():
    def row(case, **more):
        return {"case": case, **more}

    times = dict(zip(("snntorch", "ours, dense", "ours, events"), (30.0, 8.0, 4.0)))
    step = row(
        "training step 784-1000-10, latency-coded MNIST, T=25, batch 128",
        times={name: {"ms_median": value} for name, value in times.items()},
        ratios={"snntorch / ours, events": 7.5, "ours, dense / ours, events": 2.0},
        active_inputs=0.0123,
    )
    epochs = [
        row(
            f"784-1000-10, latency-coded MNIST, {name}",
            seconds_an_epoch=[value, value + 1],
            seconds_to_97=None if name == "snntorch" else 3 * value,
            test_accuracy=0.9512,
            peak_mb=10 * value,
        )
        for name, value in times.items()
    ]
    machine = timing.machine()
    events = {"step": {"machine": machine, "cases": [step]}}
    assert (
        "1.2% of inputs active), a training step | 30.0 ms (7.5x) | 8.0 ms (2.0x) | 4.0 ms |"
        in (events_report.networks(events))
    )
    events["epoch"] = {"machine": machine, "cases": epochs}
    text = events_report.networks(events)
    assert "an epoch | 30.5 s | 8.5 s | 4.5 s |" in text
    assert "| not in 2 epochs (95.12%) | 24 s | 12 s |" in text
    assert "| 300 MB | 80 MB | 40 MB |" in text
    assert "Not measured" in events_report.networks({}) and "Not" in events_report.layers(events)
    events["sweep"] = {
        "machine": machine,
        "cases": [
            row(
                f"25x32 spikes, {width} to {width}, {density} active",
                ratios={"nn.Linear / spike_linear": ratio},
            )
            for width, density, ratio in (
                (64, "0.1%", 1.0),
                (64, "100.0%", 0.5),
                (128, "0.1%", 2.0),
                (128, "100.0%", 3.0),
            )
        ],
    }
    text = events_report.layers(events)
    assert "| width | 0.1% | 100% |" in text
    assert "| 64 | 1.00 | 0.50 |" in text and "| 128 | 2.00 | 3.00 |" in text


def test_every_stored_result_is_of_a_commit():
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        assert "-dirty" not in path.read_text(encoding="utf-8"), path.name


def test_sections_are_written_between_their_marks_and_pictures_are_the_same_again(tmp_path):
    for file in {file for file, _, _ in report.SECTIONS}:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    stored = {"cpu": cpu()}
    first = []
    for _ in range(2):
        report.write(stored, tmp_path)
        files = [tmp_path / "README.md", *sorted((tmp_path / report.IMAGES).glob("*.png"))]
        first.append([file.read_bytes() for file in files])
    assert len(first[0]) == 4
    assert first[0] == first[1]
    figures = tmp_path / "benchmarks" / "README.md"
    assert "| layer 25x32x256, training step | 2 ms |" in figures.read_text()
    assert "| layer 25x32x256 | 2 ms |" in (tmp_path / "README.md").read_text()
    report.write({}, tmp_path)
    assert "Not measured" in figures.read_text()
    assert "Not measured" in (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"README.md lacks the lines '<!-- How fast: .* put them"):
        report.between("no marks", "How fast", "README.md")


def test_every_rival_has_a_colour_of_its_own():
    assert len(pictures.COLOR) == len({*pictures.COLOR.values()}) == 1 + len(rivals.RIVALS)


def test_tables_of_all_that_is_stored(tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps(cpu()))
    (tmp_path / "gpu.json").write_text(json.dumps(gpu()))
    assert report.main(["--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| **norse / numba** | **3.00** | |" in text
    assert "| **snntorch loop / ours, training** | **40.00** | |" in text
    assert "| time against T: 25x32x256 | median | 20% to 80% |" in text
