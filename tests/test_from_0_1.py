"""What version 0.1 wrote is read, and means the same.

`tests/from_0_1/` was written by commit 9c161b5: `best_model.pth` by `python -m neurospike.train
--dataset digits --epochs 1 --hidden_size 4 --encoding.kind latency --num_steps 8`, and in
`layers.pkl` pickled layers, a current, what they made of it, the gradients of the sum of outputs
times current, and the network's scores of the first eight test digits.
"""

import pickle
from pathlib import Path

import pytest
import torch

import neurospike as ns
from neurospike.data import load

FOLDER = Path(__file__).parent / "from_0_1"


@pytest.fixture(scope="module")
def written():
    """The pickled dictionary."""
    return pickle.loads((FOLDER / "layers.pkl").read_bytes())


@pytest.mark.parametrize("k", range(4))
def test_a_pickled_layer(written, k):
    layer, current = written["layers"][k], written["current"].clone().requires_grad_()
    out = layer(current)[0]
    assert torch.equal(out, written["outputs"][k])
    (grad,) = torch.autograd.grad((out * current.detach()).sum(), current)
    wanted = written["gradients"][k]
    assert (grad - wanted).norm() <= 1e-6 * wanted.norm()
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(current)[0], out)
    assert "backend='auto'" in repr(again)


def test_a_checkpoint(written, tmp_path):
    network = ns.load_model(FOLDER / "best_model.pth").eval()
    images = load("digits", tmp_path).test.images[:8].float().div(255).unsqueeze(1)
    with torch.no_grad():
        scores = network(images)
    assert torch.allclose(scores, written["scores"], atol=1e-4)
