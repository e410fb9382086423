"""The tests of training in `on_cuda.py`, where a recorder on the CPU stands in for the device.

So they are known to hold before a GPU runs them; what a device does in its own way they show there.
"""

import pytest

pytest.importorskip("triton")

import on_cuda
from on_cuda import (  # noqa: F401 (pytest finds them here)
    test_a_loop_of_ones_own_is_graphed,
    test_nan_in_a_replay_is_told_and_the_weights_stay,
    test_replayed_steps_are_the_steps_bit_for_bit,
    test_replayed_steps_are_told_the_lengths_of_their_own_sequences,
    test_the_mean_of_the_weights_is_recorded_with_the_step,
)
from test_graph import Recorder

from neurospike.training import graph, stepping


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(on_cuda, "DEVICE", "cpu")
    for module in (graph, stepping):
        monkeypatch.setattr(module, "cuda_of", lambda _: Recorder())
    for module in ("models.network", "coding.intensities", "training.trainer"):
        # As in a recording, where no encoder looks at the pictures.
        monkeypatch.setattr(f"neurospike.{module}.can_look", lambda _: False)
