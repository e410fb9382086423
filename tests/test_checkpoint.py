"""Checkpoint files: whole or refused, on any system, and back to the network they are of."""

import collections
import errno
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike import evaluate, export, predict
from neurospike.config import KINDS, Config
from neurospike.errors import CheckpointError, ConfigError
from neurospike.models import MODELS
from neurospike.training import checkpoint, load_checkpoint, save_checkpoint
from neurospike.training.loading import build_model

DAMAGED = "damaged, or not a NeuroSpike checkpoint: "


def state(**model):
    config = Config(model={"hidden_size": 8, "num_steps": 2, **model}, dataset="digits")
    return {"model": build_model(config).state_dict(), "config": config.model_dump(mode="json")}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(state(), tmp_path / "m.pth")
    return tmp_path / "m.pth"


def test_the_sum_is_a_comment_that_others_read_past(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"neurospike crc32 ")
    assert torch.load(path, weights_only=True).keys() == load_checkpoint(path).keys()


@pytest.mark.parametrize("room", [0, 100, 20_000])
def test_a_disk_that_is_full_is_told_by_its_own_name(path, monkeypatch, room):
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, mode))
    with pytest.raises(CheckpointError, match=r"m\.pth: cannot write .*: No space left"):
        save_checkpoint(state(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def places(content):
    """Bytes of every kind: the pickle, weights, the directory of the archive, its end, the sum."""
    drawn = torch.randint(len(content), (150,)).tolist()
    directory = content.rindex(b"PK\x01\x02")
    return {*range(0, 600, 7), *drawn, *range(directory, len(content))}


def test_a_flipped_bit_anywhere_is_refused(path):
    content = path.read_bytes()
    for at in places(content):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=DAMAGED + "its checksum does not fit"):
            load_checkpoint(path)
    path.write_bytes(content)
    assert torch.equal(load_checkpoint(path)["model"]["linears.0.weight"], weights_of(content))


def weights_of(content):
    return torch.load(io.BytesIO(content))["model"]["linears.0.weight"]


def test_a_file_of_a_version_that_wrote_no_sum_gives_its_own_weights_or_none(path):
    torch.save(state(), path)
    content = path.read_bytes()
    wanted = weights_of(content)
    assert torch.equal(load_checkpoint(path)["model"]["linears.0.weight"], wanted)
    refused = 0
    for at in places(content):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)["model"]["linears.0.weight"]
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(found, wanted), at
    assert refused > 100


def of_an_export():
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.rand(1, 2),)), file)
    return file.getvalue()


def test_what_is_wrong_with_a_file_is_said_in_words(path):
    content = path.read_bytes()
    before, _, _ = content.rpartition(b"neurospike crc32 ")
    for damaged, reason in (
        (b"", "it is empty"),
        (content[:100], "it is cut off"),
        (content[: len(content) // 2], "it is cut off"),
        (content[:-1], "its checksum does not fit"),
        (before, "its checksum does not fit"),
        (content + b"\0", "its checksum does not fit"),
        (b"\x89PNG\r\n", "torch.save did not write it"),
        (b"hello", "torch.save did not write it"),
        (of_an_export(), "it is a zip archive that torch.save did not write, such as an exported"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert f"m.pth: {DAMAGED}{reason}" in str(caught.value), damaged[:9]
        assert "Error" not in str(caught.value)


def test_numbers_of_numpy_come_back_as_numbers_and_what_could_not_be_read_is_not_written(path):
    kept = {
        "model": torch.nn.BatchNorm1d(2).state_dict(),
        "optimizer": {"lr": np.float64(0.5), "betas": (np.float32(0.25), 0.9)},
        "milestones": collections.Counter({np.int64(3): 1}),
        "counts": collections.defaultdict(int, a=np.int64(2)),
        "shape": torch.Size([2, 3]),
    }
    save_checkpoint(kept, path)
    found = load_checkpoint(path)
    assert found["optimizer"] == {"lr": 0.5, "betas": (0.25, 0.9)}
    assert type(found["optimizer"]["lr"]) is float
    assert found["milestones"] == {3: 1} and found["counts"] == {"a": 2}
    assert found["model"]._metadata == kept["model"]._metadata
    assert found["shape"] == kept["shape"]
    reason = r"m.pth: cannot write the checkpoint: scheduler\.steps\.1 is of the type \w*Path"
    with pytest.raises(CheckpointError, match=reason):
        save_checkpoint({"model": {}, "scheduler": {"steps": [1, Path()]}}, path)
    assert load_checkpoint(path)["optimizer"] == found["optimizer"]


def test_every_command_refuses_a_flipped_bit(path, monkeypatch, capsys):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.chdir(path.parent)
    for main, argv in (
        (predict.main, ["--image_path=x.png"]),
        (evaluate.main, []),
        (export.main, ["--out=m.pt2"]),
    ):
        assert main([f"--model_path={path}", *argv]) == 2
        assert f"{DAMAGED}its checksum does not fit what it holds" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        ns.load_model(path)


@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda"), "gpu", "mps", "xpu"])
def test_a_device_that_is_not_there_is_no_damage(path, device):
    for load in (ns.load_model, load_checkpoint):
        with pytest.raises(
            ConfigError, match=r"device: got '.*', (but torch finds 0 CUDA|allowed)"
        ):
            load(path, device)
    for there in ("cpu", "cpu:0", torch.device("cpu"), "auto"):
        assert next(ns.load_model(path, there).parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"hidden_size": 2**45}, "its weights are not those of its config: "),
        ({"hidden_size": 2**62}, "its weights are not those of its config: "),
        ({"hidden_size": 9}, "its weights are not those of its config: "),
        ({"hidden_size": 2**63}, "its config: model.hidden_size: got 9223372036854775808"),
        ({"kind": "conv", "channels": [8] * 6}, "its config: model: each of the 6 stages"),
        ({"kind": "dense"}, "its network is of the kind 'dense', which is none of mlp, conv, "),
        ({"kind": ["mlp"]}, "its config: model.kind: got ['mlp'], allowed: mlp, conv"),
    ],
)
def test_a_config_that_is_not_the_weights(path, model, reason):
    changed = state()
    changed["config"]["model"] |= model
    save_checkpoint(changed, path)
    with pytest.raises(CheckpointError) as caught:
        ns.load_model(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_a_network_of_ones_own_loads_once_it_is_registered(path, monkeypatch):
    class Own(ns.SNNModel):
        def __init__(self, **options):
            super().__init__(**options)
            assert float(self.linears[0].weight.sum()) < 1e9  # looks at numbers

    changed = state()
    changed["config"]["model"]["kind"] = "own"
    save_checkpoint(changed, path)
    with pytest.raises(CheckpointError, match=r"'own', which is none of .* Import the module that"):
        ns.load_model(path)
    monkeypatch.setitem(MODELS, "own", Own)
    monkeypatch.setitem(KINDS, "own", ("hidden_size",))
    assert isinstance(ns.load_model(path), Own)


@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_every_kind_comes_back_as_it_was(path, kind, normalization):
    own = {"conv": {"channels": [2]}, "resnet": {"channels": [2], "blocks": [1]}}.get(kind, {})
    kept = state(kind=kind, normalization=normalization, learn_beta=True, **own)
    save_checkpoint(kept, path)
    before = torch.get_rng_state()
    model = ns.load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    for name, value in kept["model"].items():
        assert torch.equal(model.state_dict()[name], value)


def test_windows_waits_until_a_file_is_no_longer_read(path, monkeypatch):
    replace, refused = type(path).replace, []

    def busy(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(13, "The process cannot access the file")
        return replace(source, target)

    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    monkeypatch.setattr(type(path), "replace", busy)
    with pytest.raises(CheckpointError, match="cannot access the file"):
        save_checkpoint({"model": {}, "new": 1}, path)  # elsewhere it is for good
    assert "new" not in load_checkpoint(path)
    refused.clear()
    monkeypatch.setattr(checkpoint.sys, "platform", "win32")
    save_checkpoint({"model": {}, "new": 1}, path)
    monkeypatch.undo()
    assert len(refused) == 3
    assert load_checkpoint(path)["new"] == 1
