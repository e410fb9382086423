"""The benchmark of depth: what it stores of each network, on small ones."""

import json

import pytest
import torch

from benchmarks import depth


@pytest.mark.parametrize("shortcut", depth.SHORTCUTS)
def test_rates_and_gradients_of_every_block_are_kept(shortcut):
    found = depth.train(shortcut, epochs=1, blocks=3, pictures=64)
    assert len(found["loss_by_epoch"]) == 1
    for when in ("before_training", "after_training"):
        assert len(found[when]["spike_rates"]) == len(found[when]["gradient_norms"]) == 3
        assert all(0 <= rate <= 1 for rate in found[when]["spike_rates"])
    assert found["before_training"] != found["after_training"]
    assert 0 <= found["test_accuracy"] <= 1


def test_without_a_shortcut_nothing_goes_round_a_block():
    torch.manual_seed(0)
    images, model = torch.rand(4, 1, depth.SIDE, depth.SIDE), depth.network("none", 3)
    model(images).sum().backward()
    with torch.no_grad():
        for parameter in model.blocks[1].block.second.parameters():
            parameter.zero_()  # the second block is silent: so is all behind it
        _, activity = model(images, return_activity=True)
    assert bool(activity["block1"].any())
    assert not bool(activity["block3"].any())


def test_stored_results_show_twenty_blocks_that_neither_fall_silent_nor_lose_their_gradient(
    tmp_path,
):
    stored = depth.stored()
    assert stored["settings"]["blocks"] == 20
    for shortcut in ("add", "membrane"):
        found = stored["networks"][shortcut]
        after = found["after_training"]
        assert len(after["spike_rates"]) == len(after["gradient_norms"]) == 20
        assert min(after["spike_rates"]) > 0.01
        assert min(after["gradient_norms"]) > 0.01 * max(after["gradient_norms"])
        assert found["test_accuracy"] > 0.8
    (tmp_path / "depth.json").write_text(json.dumps(stored), encoding="utf-8")
    assert depth.main(["--draw", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    panels = depth.draw(stored).axes
    for panel, (when, key) in zip(
        panels,
        [
            (when, key)
            for key in ("spike_rates", "gradient_norms")
            for when in ("before_training", "after_training")
        ],
    ):
        for line, found in zip(panel.lines, stored["networks"].values()):
            assert list(line.get_ydata()) == found[when][key]
