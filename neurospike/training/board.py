"""What TensorBoard shows of a run: curves, and pictures of what the network does with one sample.

Training steps are not involved. When a record is written, the network is run once on the sample,
and a thread of its own draws and writes. Where records come so fast that pictures would take more
than 2% of a processor's time, some are left out; numbers never are.
"""

import queue
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import MissingDependencyError
from neurospike.layers.lif import LI, LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spiking import Spiking

from .answering import NetworkCaller
from .tiles import draw_membranes, draw_raster, draw_weights

TRACES = 10  # neurons of a layer whose membranes are drawn: those with a rate nearest to 1/2
SHARE = 0.02  # of a processor's time that pictures may take
GROUPS = ("spike_rates", "dead_neurons", "saturated_neurons")
NAMES = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "samples_per_second": "samples_per_second",
}


class Board:
    """The folder `tensorboard` of a run: `tensorboard --logdir runs`.

    If a file cannot be written, a line on stderr says so; the recording ends, and the run goes on.

    Args:
        folder: of the run.
        model: any network.
        picture: the sample that it is run on, a batch of one, such as `[1, 1, H, W]`.
        step: from which a run is resumed; what was recorded after it is hidden.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(
        self, folder: str | Path, model: nn.Module, picture: Tensor, step: int = 0
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                f"--tensorboard needs tensorboard, which does not import ({error}): "
                "pip install tensorboard"
            ) from error
        self.folder = Path(folder) / "tensorboard"
        self._model, self._picture = model, picture
        self._open = lambda: SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        self._todo: queue.SimpleQueue[tuple[dict[str, Any], dict[str, Any], int] | None]
        self._todo = queue.SimpleQueue()
        self._pictures_from = 0.0  # when the next pictures may be drawn, by time.perf_counter
        self._thread = threading.Thread(target=self._work, name="tensorboard", daemon=True)
        self._thread.start()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record of `metrics.jsonl`, and what the network does with the picture now."""
        idle = self._todo.empty() and time.perf_counter() >= self._pictures_from
        seen = _look(self._model, self._picture) if idle else {}
        self._todo.put((dict(record), seen, int(record["step"])))

    def close(self) -> None:
        """Wait until all is written."""
        self._todo.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            writer = self._open()
            while (item := self._todo.get()) is not None:
                record, seen, step = item
                for tag, value in _scalars(record).items():
                    writer.add_scalar(tag, value, step)
                if seen:
                    start = time.thread_time()
                    for tag, image in _images(seen).items():
                        writer.add_image(tag, image, step, dataformats="HWC")
                    took = time.thread_time() - start
                    self._pictures_from = time.perf_counter() + took / SHARE
                writer.flush()
            writer.close()
        except Exception as error:  # noqa: BLE001 (a thread's error would else go unnoticed)
            print(  # noqa: T201 (a warning)
                f"tensorboard: {self.folder}: cannot be written: {error}; the run goes on without",
                file=sys.stderr,
            )


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    found = {tag: record[key] for key, tag in NAMES.items() if record.get(key) is not None}
    found.update(_numbers("metrics", record.get("metrics", {})))
    for group in GROUPS:
        found.update({f"{group}/{name}": x for name, x in record.get(group, {}).items()})
    return found


def _numbers(name: str, value: Any) -> dict[str, float]:
    """Return the numbers in the value of your own measure, which may be a dict or list, by tag."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {name: float(value)} if isinstance(value, (int, float)) else {}
    parts = [_numbers(f"{name}/{key}", part) for key, part in value.items()]
    return {tag: number for part in parts for tag, number in part.items()}


@torch.no_grad()
def _look(model: nn.Module, picture: Tensor) -> dict[str, Any]:
    """Return spikes and membranes of each layer, and the weights of the first one.

    The model's mode and the random state stay as they were. Membranes have the name under which the
    network returns the layer's spikes, else that of the module.
    """
    calls: dict[str, _Call] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, (LIF, LI, Spiking, Recurrent)):

            def note(
                layer: nn.Module, given: Any, options: Any, found: Any, name: str = name
            ) -> None:
                calls[name] = _Call(layer, given, options, found[0])

            handles.append(layer.register_forward_hook(note, with_kwargs=True))
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[picture.device] if picture.is_cuda else []):
        try:
            _, spikes = NetworkCaller(model).run(model, picture, {}, True)
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
    names = {fired.data_ptr(): name for name, fired in spikes.items()}
    membranes = {
        names.get(call.output.data_ptr(), name): _membranes(call) for name, call in calls.items()
    }
    rasters = {name: _host(layer[:, 0].flatten(1)) for name, layer in spikes.items()}
    weighted = (one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d)))
    first = next(weighted, None)
    weights = {} if first is None else {"weights": _host(first.weight, copy=True)}
    return {"spikes": rasters, "membranes": membranes, **weights}


class _Call(NamedTuple):
    """A call of a layer of neurons, with its first output: spikes, or the membranes of an `LI`."""

    layer: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Tensor


def _membranes(call: _Call) -> tuple[np.ndarray, np.ndarray, float | None, list[int]]:
    """Call the layer again; return what `draw_membranes` takes, of up to `TRACES` neurons.

    These are their membranes and spikes `[T, N]`, the threshold, and their numbers.
    """
    layer, threshold = call.layer, None
    if isinstance(layer, LI):
        trace = call.output
        fired = torch.zeros_like(trace)
    else:
        fired, _, trace = layer(*call.arguments, **{**call.options, "return_trace": True})
        neuron: Any = layer.neuron if isinstance(layer, Recurrent) else layer
        if isinstance(trace, tuple):
            states = neuron.rule.states
            trace = trace[states.index("mem") if "mem" in states else 0]
        threshold = float(neuron.threshold.mean()) if hasattr(neuron, "threshold") else None
    if getattr(layer, "batch_first", False):
        fired, trace = fired.transpose(0, 1), trace.transpose(0, 1)
    fired, trace = fired[:, 0].flatten(1), trace[:, 0].flatten(1)
    rate = fired.float().mean(0)
    chosen = (rate * (1 - rate)).topk(min(TRACES, len(rate))).indices.sort().values
    return _host(trace[:, chosen]), _host(fired[:, chosen]), threshold, chosen.tolist()


def _host(tensor: Tensor, *, copy: bool = False) -> np.ndarray:
    found: np.ndarray = tensor.detach().float().cpu().numpy()
    return found.copy() if copy else found


def _images(seen: Mapping[str, Any]) -> dict[str, np.ndarray]:
    images = {f"spikes/{name}": draw_raster(layer) for name, layer in seen["spikes"].items()}
    for name, drawn in seen["membranes"].items():
        images[f"membranes/{name}"] = draw_membranes(*drawn)
    if "weights" in seen:
        images["weights/first"] = draw_weights(seen["weights"])
    return images
