"""How sure a network may be: confidences that are right as often as they say.

A network trained on cross-entropy is surer, or less sure, than it is right. One number that all
scores are divided by before the softmax, the temperature, mends most of that and changes no answer
(Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017).
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0


@torch.inference_mode()
def temperature_of(model: nn.Module, batches: Iterable[Sequence[Tensor]], seed: int) -> float:
    """Return `fit_temperature` of what a model, put into evaluation, answers to batches.

    batches: `(images, labels)` or `(sequences, lengths, labels)`, on the model's device. seed: of
    spikes that an encoding draws; the state of the random numbers stays what it was.
    """
    model.eval()
    scores, labels = [], []
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for images, *lengths, wanted in batches:
            options = {"lengths": lengths[0]} if lengths else {}
            scores.append(model(images, **options))
            labels.append(wanted)
    return fit_temperature(torch.cat(scores), torch.cat(labels))


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature with which the softmax fits the labels best.

    scores: `[N, C]` of pictures that were not trained on, C at least 2; labels: int64 `[N]`. It is
    the one of highest likelihood, from 0.01 to 100. As Platt (1999) has it, each label is taken for
    right with a probability of (N + 1) / (N + 2) only: else a network that made no mistake on few
    pictures would be told to be sure of everything. 1 where there are no pictures.
    """
    if not len(labels):
        return 1.0
    scores = scores.double()
    count, classes = scores.shape
    wrong = 1 / (count + 2)
    targets = torch.full_like(scores, wrong / (classes - 1))
    targets.scatter_(1, labels[:, None], 1 - wrong)
    # The loss is convex in 1 / temperature: its slope goes up, and is 0 once.
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(50):
        middle = (low + high) / 2
        answers = (scores * math.exp(middle)).softmax(1)
        if float(((answers - targets) * scores).sum()) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def expected_calibration_error(
    scores: Tensor, labels: Tensor, temperature: float = 1.0, bins: int = BINS
) -> float:
    """Return by how much confidence and share of right answers differ on average, 0 to 1.

    scores `[N, C]`, labels int64 `[N]`. Answers are sorted into `bins` of equal width by their
    confidence, and the differences in them weighed by how many answers they hold (Naeini, Cooper
    and Hauskrecht, AAAI 2015). NaN where there are no pictures.
    """
    confidence, answers = (scores.double() / temperature).softmax(1).max(1)
    right = (answers == labels).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    apart = torch.zeros(bins, dtype=torch.float64, device=scores.device)
    apart.index_add_(0, number, confidence - right)
    return float(apart.abs().sum() / len(labels)) if len(labels) else math.nan


def calibration(scores: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """What is said of a network's confidences, on test pictures: temperature and errors.

    scores `[N, C]`, labels int64 `[N]`. `uncalibrated`: the error without the temperature.
    """
    return {
        "temperature": temperature,
        "ece": expected_calibration_error(scores, labels, temperature),
        "uncalibrated_ece": expected_calibration_error(scores, labels),
    }
