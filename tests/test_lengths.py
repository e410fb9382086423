"""Sequences of different lengths in one batch: each sample as if it were run on its own."""

import re

import numpy as np
import pytest
import torch

from neurospike.ops.arguments import check_lengths

# At the door

SEQUENCE = torch.zeros(7, 3, 5)


@pytest.mark.parametrize(
    "given", [[7, 0, 2], (7, 0, 2), [np.int64(7), 0, 2]], ids=["list", "tuple", "numbers of NumPy"]
)
def test_lengths_may_be_a_list(given):
    found = check_lengths(given, SEQUENCE, -1)
    assert torch.equal(found, torch.tensor([7, 0, 2]))
    assert found.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_may_be_integers_of_any_format(dtype):
    wide = torch.tensor([[7, 9], [0, 9], [2, 9]], dtype=dtype)
    found = check_lengths(wide[:, 0], SEQUENCE, -1)
    assert torch.equal(found, torch.tensor([7, 0, 2]))
    assert found.is_contiguous()


def test_lengths_of_a_constant_current_count_its_samples_and_steps():
    assert torch.equal(check_lengths([9, 0], torch.zeros(2, 5), 9), torch.tensor([9, 0]))
    assert len(check_lengths([], torch.zeros(4, 0, 5), -1)) == 0


FLAWED = [
    (7, TypeError, "must be a tensor of integers [B] or a list of them, got 7"),
    ("7", TypeError, "must be a tensor of integers [B] or a list of them, got '7'"),
    ([7.0, 0, 2], TypeError, "or a list of them, got [7.0, 0, 2]"),
    ([True, 0, 2], TypeError, "or a list of them, got [True, 0, 2]"),
    (torch.ones(3), TypeError, "got torch.float32; convert them with .to(torch.int64)"),
    (torch.ones(3, dtype=torch.bool), TypeError, "must be integers [B], got torch.bool"),
    ([7, 0], ValueError, "one for each of the 3 samples of the current, got the shape (2,)"),
    (torch.tensor(7), ValueError, "must be [B], one for each of the 3 samples"),
    (torch.ones(3, 1, dtype=torch.int64), ValueError, "got the shape (3, 1)"),
    ([7, -1, 2], ValueError, "between 0 and the 7 steps of the current, got -1 for sample 1"),
    ([7, 0, 8], ValueError, "between 0 and the 7 steps of the current, got 8 for sample 2"),
    (
        torch.zeros(3, dtype=torch.int64, device="meta"),
        ValueError,
        "are on meta, current on cpu; move them with .to('cpu'), or leave them on the CPU",
    ),
]


@pytest.mark.parametrize(("lengths", "error", "said"), FLAWED, ids=lambda one: str(one)[-24:])
def test_other_lengths_are_refused(lengths, error, said):
    with pytest.raises(error, match=re.escape(said)):
        check_lengths(lengths, SEQUENCE, -1)


def test_lengths_elsewhere_are_not_looked_at():
    """Nothing waits for a GPU; a kernel takes them as 0 to T."""
    current = torch.zeros(7, 3, 5, device="meta")
    on_device = torch.zeros(3, dtype=torch.int32, device="meta")
    assert check_lengths(on_device, current, -1).dtype == torch.int64
    assert check_lengths([7, 0, 2], current, -1).device.type == "meta"
    with pytest.raises(ValueError, match="got 8 for sample 2"):
        check_lengths([7, 0, 8], current, -1)
