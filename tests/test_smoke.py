"""The commands from training to an answer, by each backend: a part of `python -m pytest -m smoke`.

The rest of it are tests of the layers that carry the same mark.
"""

import json
from pathlib import Path

import pytest
import torch

from neurospike import predict, train

PICTURE = Path(__file__).parents[1] / "examples" / "digit.png"


@pytest.mark.smoke
def test_a_network_is_trained_and_reads_a_digit(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    flags = ["--dataset=digits", "--hidden_size=64", "--num_steps=8", "--learning_rate=5e-3"]
    flags += ["--training.warmup=0", "--training.rate_penalty=0"]  # for a run as short as this
    try:
        assert train.main([*flags, "--epochs=6", f"--backend={backend}", "--run_dir=run"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert float(last.removeprefix("test accuracy: ").removesuffix("%")) > 85
        model = "--model_path=run/checkpoints/best_model.pth"
        asked = [model, f"--image_path={PICTURE}", f"--backend={backend}", "--json"]
        assert predict.main(asked) == 0
    finally:
        torch.set_num_threads(threads)
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["digit"] == 5
