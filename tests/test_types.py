"""What a type checker knows of a program that uses the layers."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("mypy")

# Each line and what mypy says the type of its value is.
KNOWN = {
    "ns.LIF(0.9)(x)": "tuple[torch._tensor.Tensor, ...]",
    "ns.LI(0.9)(x)": "tuple[torch._tensor.Tensor, torch._tensor.Tensor]",
    "ns.Synaptic(0.5, 0.9)(x)": "tuple[Any, ...]",
    "ns.Recurrent(ns.LIF(0.9), 4)(x)": "tuple[Any, ...]",
    "ns.Delay(4, 3)(x)": "tuple[torch._tensor.Tensor, torch._tensor.Tensor]",
    "ns.SpikeLinear(4, 4)(x)": "torch._tensor.Tensor",
    "ns.Sequential(ns.LIF(0.9))(x)": "tuple[torch._tensor.Tensor, tuple[Any, ...]]",
    "ns.lif(x, beta=0.9)": "tuple[torch._tensor.Tensor, ...]",
    "ns.data.load_folder": "def (",
    "ns.training.SNNTrainer": "def (",
}


@pytest.mark.thorough
def test_what_layers_return_is_known(tmp_path):
    program = ["import torch", "import neurospike as ns", "x = torch.rand(5, 2, 4)"]
    program += [f"reveal_type({one})" for one in KNOWN]
    (tmp_path / "program.py").write_text("\n".join(program) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "program.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r'Revealed type is "(.*)"', done.stdout)
    for line, wanted, one in zip(KNOWN, KNOWN.values(), found, strict=True):
        plain = one.replace("builtins.", "")
        assert plain.startswith(wanted), f"{line}: {plain}"
