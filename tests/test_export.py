"""Exported networks answer as the networks do."""

import json
import sys
from pathlib import Path

import pytest
import torch

import neurospike as ns
from neurospike import export
from neurospike.config import Config
from neurospike.errors import CheckpointError, ConfigError, MissingDependencyError, NeuroSpikeError
from neurospike.models import MODELS
from neurospike.training import save_checkpoint
from neurospike.training.loading import build_model

SMALL = {
    "mlp": {"hidden_size": [24, 16]},
    "conv": {"channels": [3, 4], "kernel_size": 3, "hidden_size": 16},
    "resnet": {"channels": [3, 4], "blocks": [1, 1]},
}


def make(kind, **options):
    torch.manual_seed(0)
    return MODELS[kind](num_steps=2, threshold=0.3, **{**SMALL[kind], **options}).eval()


def targets(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_torch_export_keeps_the_fused_operators(fused, kind, tmp_path):
    model, pictures = make(kind, readout="spikes"), torch.rand(5, 1, 28, 28)
    with ns.use_backend(fused):
        program = export.export_program(model, pictures)
        assert f"neurospike.{fused}_scan.default" in targets(program)
        with torch.no_grad():
            for count in (1, 5):  # any number of pictures
                answer = program.module()(pictures[:count])
                assert torch.equal(answer, model(pictures[:count]))
        checked = export.export_model(model, tmp_path / "model.pt2", "pt2")
    assert (checked.alike, checked.backend) == (checked.pictures, fused)
    assert checked.largest_difference == 0


@pytest.mark.parametrize("encoding", ["constant", "latency", "rate"])
def test_torch_export_through_the_reference_is_all_torchs_own(tmp_path, encoding):
    model = make("mlp", encoding=encoding)
    with ns.use_backend("reference"):
        program = export.export_program(model, torch.rand(2, 1, 28, 28))
        assert all(name.startswith(("aten.", "<built-in")) for name in targets(program))
        checked = export.export_model(model, tmp_path / "model.pt2", "pt2")
    assert (checked.alike, checked.backend) == (360, "reference")


@pytest.mark.parametrize(
    ("kind", "encoding", "readout"),
    [
        ("mlp", "constant", "membrane"),
        ("conv", "latency", "membrane"),
        ("mlp", "burst", "first_spike"),
    ],
)
def test_onnxruntime_gives_the_same_classes(tmp_path, kind, encoding, readout):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} comes with the extra [onnx]")
    model = make(kind, encoding=encoding, readout=readout)
    checked = export.export_model(model, tmp_path / "model.onnx")
    assert (checked.alike, checked.pictures, checked.backend) == (360, 360, "onnx")
    assert checked.largest_difference < 1e-4 or kind != "mlp"  # a convolution may tip a spike
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pictures", ["batch", 1, 28, 28])
    assert (answer.name, answer.shape) == ("scores", ["batch", 10])
    one = torch.rand(1, 1, 28, 28)
    (scores,) = session.run(["scores"], {"pictures": one.numpy()})
    with torch.no_grad():
        assert scores.argmax() == model(one).argmax()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = Config(model={"hidden_size": 16, "num_steps": 3}, dataset="digits")
    path = tmp_path_factory.mktemp("trained") / "model.pth"
    state = {"model": build_model(config).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint(state, path)
    return str(path)


def test_the_command_writes_a_checked_file(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--model-path={trained}", "--out=a.pt2", "--backend=reference"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("a.pt2: pt2 with the reference backend, ")
    assert said[1].startswith("checked: the same class for 360 of 360 pictures, scores differ by")
    assert export.main([f"--model_path={trained}", "--out=b", "--format=pt2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["path"], result["alike"], result["format"]) == ("b", 360, "pt2")
    assert Path("b").stat().st_size == result["bytes"]


def test_what_a_user_gets_wrong_is_one_line(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    for argv, expected in (
        (["--out=model.bin"], "--out: model.bin ends with neither .pt2 nor .onnx; give --format"),
        ([], "the following arguments are required: --out"),
        (["--out=m.pt2", "--format=jit"], "--format: invalid choice: 'jit'"),
        (["--out=m.pt2", "--backend=x"], "unknown backend 'x'; choose one of auto"),
        (["--out=m.pt2", "--model_path=no.pth"], "no.pth: cannot read the checkpoint"),
        (
            ["--out=m.pt2", "--device=gpu"],
            "device: got 'gpu', allowed: auto, cpu, cuda or cuda:N; a",
        ),
        (["--out=m.pt2", "--device=mps"], "Apple's GPUs lack float64"),
        (["--out="], "--out: got '', wanted a value\n"),
        (["--out=m.pt2", "--format="], "--format: "),
        (["--out=.", "--format=pt2"], "--out: . is a folder; name a file"),
        (["--out=x.pt2/"], "--out: x.pt2/ is a folder; name a file"),
        (["--out=m.pt2", "--jsonn"], "no such flag --jsonn; did you mean --json?"),
        (["--out=/proc/none/m.pt2"], "/proc/none/m.pt2: cannot write the file: "),
    ):
        assert export.main([f"--model_path={trained}", *argv]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert expected in said
        assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_random_codes_and_missing_packages_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"rate draws its spikes at random.* export it as \.pt2"):
        export.export_model(make("mlp", encoding="rate"), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="pip install onnx onnxscript onnxruntime"):
        export.export_model(make("mlp"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_good_file_stays_where_its_successor_answers_otherwise(tmp_path):
    class Fickle(ns.SNNModel):
        """Answers otherwise once it is exported, as a fault of an exporter would have it."""

        def forward(self, images):
            scores = super().forward(images)
            return -scores if torch.compiler.is_exporting() else scores

    good = tmp_path / "m.pt2"
    export.export_model(make("mlp"), good, "pt2")
    content = good.read_bytes()
    with pytest.raises(NeuroSpikeError, match=r"not written, .* for \d+ of 360 pictures"):
        export.export_model(Fickle(784, 24, num_steps=2, threshold=0.3), good, "pt2")
    assert good.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder: cannot write the file"):
        export.export_model(make("mlp"), tmp_path / "folder", "pt2")
