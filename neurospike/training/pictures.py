"""The pictures a finished run keeps of its network, beside the curves of its training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from neurospike.models import SpikingNetwork
from neurospike.models.network import READING
from neurospike.visualization import SpikeVisualizer
from neurospike.visualization.canvas import save

from .trainer import BatchSource


@torch.no_grad()
def draw_network(
    folder: str | Path,
    model: SpikingNetwork,
    batches: BatchSource,
    confusion: Sequence[Sequence[int]] | None = None,
    classes: Sequence[str] | None = None,
) -> list[Path]:
    """Draw what a network makes of some batches into a folder; the paths.

    `confusion_matrix.png` of all of them, or of the counts in `confusion`, if these are known
    already; `firing_rates.png` of every layer, over the first batch; `input_encoding.png` of its
    first picture; `weights.png`, the first layer's receptive fields. Of sequences neither of the
    last two, which are of pictures. Without batches, nothing. classes: their names, by label.
    Raises MissingDependencyError without matplotlib, OSError for a file that cannot be written.
    """
    model.eval()
    answers, truth, first = [], [], None
    for images, *lengths, labels in batches:
        first = (images, *lengths) if first is None else first
        if confusion is not None:
            break
        options = {"lengths": lengths[0]} if lengths else {}
        answers.append(model(images, **options).argmax(1))
        truth.append(labels)
    if first is None:
        return []
    matrix = (torch.cat(truth), torch.cat(answers)) if confusion is None else (confusion,)
    visualizer = SpikeVisualizer()
    recorded = model.record(*first)
    figures = {
        "confusion_matrix": visualizer.plot_confusion_matrix(*matrix, classes=classes),
        "firing_rates": visualizer.plot_firing_rates(recorded.spikes),
    }
    if model.encoding != "none":
        prepared = model.preprocessing(first[0])
        layer = next(one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d)))
        shape = (prepared.shape[-2], prepared.shape[-1])
        if model.encoding in READING:  # a step's inputs are a part of the picture
            shape = (1, recorded.current.shape[-1])
        figures["input_encoding"] = visualizer.plot_input_encoding(prepared, recorded.current)
        weights, channels = layer.weight, prepared.shape[1]
        if weights.ndim == 2 and channels > 1:  # a field for the pixels, without their colour
            weights = weights.unflatten(1, (channels, -1)).mean(1)
        figures["weights"] = visualizer.plot_weights(weights, shape=shape)
    paths = []
    for name, (figure, _) in figures.items():
        paths.append(Path(folder) / f"{name}.png")
        save(figure, paths[-1])
    return paths
