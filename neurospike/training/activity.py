"""The spikes of a network's layers, seen by hooks while it is called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neurospike.layers.lif import LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.spiking import Spiking


@contextmanager
def recorded_spikes(model: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Give a function that returns the spikes `[T, B, *F]` so far by the layer's name."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def look(_layer: nn.Module, _given: Any, found: Any) -> None:
            seen[name] = found[0]

        return look

    handles = [
        layer.register_forward_hook(note(name))
        for name, layer in model.named_modules()
        if isinstance(layer, (LIF, Spiking, Recurrent))
    ]
    try:
        yield lambda: seen
    finally:
        for handle in handles:
            handle.remove()
