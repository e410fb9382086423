"""Temperatures and the errors of confidences: known networks have known ones."""

import contextlib
import json
import math

import pytest
import torch

from neurospike import evaluate, train
from neurospike.training import load_checkpoint, records, save_checkpoint
from neurospike.training.calibration import (
    expected_calibration_error,
    fit_temperature,
    temperature_of,
)
from neurospike.training.loading import load_trained


def drawn(count, scale):
    """Scores, `scale` times those by which the labels were drawn."""
    scores = torch.randn(count, 10) * 2
    labels = torch.multinomial(scores.softmax(1), 1)[:, 0]
    return scale * scores, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_is_the_factor_that_scores_are_too_large_by(scale):
    scores, labels = drawn(20_000, scale)
    temperature = fit_temperature(scores, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    assert expected_calibration_error(scores, labels, temperature) < 0.015
    if scale != 1:
        assert expected_calibration_error(scores, labels) > 0.1


def test_no_other_temperature_has_a_smaller_loss():
    scores, labels = drawn(500, 3.0)
    best = fit_temperature(scores, labels)
    targets = torch.full((500, 10), 1 / 502 / 9).scatter_(1, labels[:, None], 501 / 502)

    def loss(temperature):
        return -float((targets * (scores / temperature).log_softmax(1)).sum())

    assert loss(best) <= min(loss(0.97 * best), loss(1.03 * best))


def test_few_pictures_without_a_mistake_make_no_network_certain():
    labels = torch.arange(10)
    scores = 3.0 * torch.eye(10)
    for shift in (0.0, 10.0):  # of all scores, which changes no answer
        temperature = fit_temperature(scores + shift, labels)
        sure = (scores / temperature).softmax(1).max(1).values
        assert torch.allclose(sure, torch.full((10,), 11 / 12), atol=1e-3)
    assert fit_temperature(scores[:0], labels[:0]) == 1.0


def test_the_error_is_the_mean_difference_by_bin():
    # Four answers of 0.9 with three right, one of 0.6 that is right: 0.15 * 4 / 5 + 0.4 / 5.
    scores = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]]).log()
    labels = torch.tensor([0, 0, 0, 1, 0])
    assert expected_calibration_error(scores, labels) == pytest.approx(0.2)
    sure = torch.tensor([[100.0, 0.0]])
    assert expected_calibration_error(sure, torch.tensor([0])) == pytest.approx(0, abs=1e-9)
    assert math.isnan(expected_calibration_error(sure[:0], labels[:0]))


def test_random_numbers_are_left_alone_and_drawn_spikes_are_the_same():
    class Noisy(torch.nn.Linear):
        def forward(self, images):
            return super().forward(images) + torch.randn(len(images), self.out_features)

    model, batches = Noisy(4, 3), [(torch.rand(30, 4), torch.arange(30) % 3)] * 2
    before = torch.get_rng_state()
    first = temperature_of(model, batches, 5)
    assert torch.equal(before, torch.get_rng_state())
    assert first == temperature_of(model, batches, 5) != temperature_of(model, batches, 6)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_run_killed_while_it_keeps_its_temperature_leaves_no_model_without(
    tmp_path, monkeypatch, writes
):
    def run(resumed):
        published = tmp_path / "published.pth"
        return records.Run(tmp_path / "run", config={}, published=published, resumed=resumed)

    left = iter(range(writes))

    def until_killed(write):
        def one(*given):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*given)

        return one

    first = run(resumed=False)
    first.save_epoch({"model": {}, "waited": 0}, is_best=True)
    first.save_epoch({"model": {}, "waited": 1}, is_best=False)
    with monkeypatch.context() as killed, contextlib.suppress(KeyboardInterrupt):
        for name in ("save_checkpoint", "copy_checkpoint"):
            killed.setattr(records, name, until_killed(getattr(records, name)))
        first.calibrate(2.0)
    first.release()
    again = run(resumed=True)
    again.go_on([], 2)
    again.calibrate(2.0)
    for path in (again.best, again.published):
        assert load_checkpoint(path)["temperature"] == 2


def test_training_keeps_the_temperature_of_its_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset=digits", "--epochs=2", "--model.hidden_size=32", "--run_dir=out"]
    assert train.main([*argv, "--training.validation=0.2"]) == 0
    kept = load_checkpoint("checkpoints/best_model.pth")
    assert kept["temperature"] == load_checkpoint("out/checkpoints/best_model.pth")["temperature"]
    said = f"confidences have the temperature {kept['temperature']:.3g}, fitted to the validation"
    assert said in capsys.readouterr().out
    rows = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[-1])["temperature"] == kept["temperature"] != 1
    assert evaluate.main(["--json", "--no_pictures"]) == 0
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found["temperature"] == kept["temperature"]
    assert 0 < found["ece"] < found["uncalibrated_ece"] and found["fitted"]
    assert evaluate.main(["--no_pictures"]) == 0
    assert f", with the temperature {kept['temperature']:.3g} of the" in capsys.readouterr().out

    save_checkpoint({k: v for k, v in kept.items() if k != "temperature"}, "of_0_1.pth")
    assert load_trained("of_0_1.pth").temperature == 1.0
    assert evaluate.main(["--json", "--no_pictures", "--model_path=of_0_1.pth"]) == 0
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found["ece"] == found["uncalibrated_ece"] and not found["fitted"]
    assert evaluate.main(["--no_pictures", "--model_path=of_0_1.pth"]) == 0
    told = capsys.readouterr().out
    assert ", without a temperature: none was fitted to a validation\n" in told
    assert "of the validation" not in told
