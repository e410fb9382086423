"""Refusals of the recogniser that no other file reaches."""

from pathlib import Path

import pytest

from neurospike import train
from neurospike.backend import dispatch
from neurospike.config import load_config
from neurospike.errors import ConfigError, NeuroSpikeError
from neurospike.training import Run


def test_a_backend_that_this_version_lacks(monkeypatch):
    config = load_config(None, {"backend": "numba"})
    rest = {name: row for name, row in dispatch.TABLE.items() if name != "numba"}
    monkeypatch.setattr(dispatch, "TABLE", rest)
    with pytest.raises(ConfigError, match="unknown backend 'numba'; choose one of auto, "):
        train.train(config)


def test_a_second_with_too_many_runs(monkeypatch, tmp_path):
    def mkdir(path, *args, **kwargs):
        if path.parent.name == "runs":
            raise FileExistsError(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(NeuroSpikeError, match=r"runs holds 999 runs of this second.*--run_dir"):
        Run(None, config={}, record={})
