"""The command `python -m benchmarks.events`: its gate, its results, its refusals."""

import json

import pytest
import torch

pytest.importorskip("numba")
from benchmarks import events
from benchmarks.gate import GateError

SMALL = ["sweep", "--widths", "64", "--densities", "0.1", "--seconds", "0.01", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_parts_are_merged_into_one_file(tmp_path, capsys):
    (tmp_path / "events.json").write_text('{"step": {"kept": true}}')
    assert events.main([*SMALL, "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "events.json").read_text())
    assert stored["step"] == {"kept": True}
    (case,) = stored["sweep"]["cases"]
    assert case["ratios"]["spike_linear / nn.Linear"] > 0
    assert stored["sweep"]["machine"]["threads"] == 1
    assert "worst ratio to nn.Linear" in capsys.readouterr().out


def test_nothing_is_timed_that_is_wrong(tmp_path, monkeypatch):
    def wrong(layer, spikes):
        return 1.01 * torch.nn.functional.linear(spikes, layer.weight, layer.bias)

    monkeypatch.setattr(events.ns.SpikeLinear, "forward", wrong)
    with pytest.raises(GateError, match="64: gradient differs"):
        events.main([*SMALL, "--out", str(tmp_path)])
    assert not (tmp_path / "events.json").exists()


def test_a_part_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        events.main(["everything"])
    assert "unknown part 'everything'; choose of sweep, step, conv" in capsys.readouterr().err
