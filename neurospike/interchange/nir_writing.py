"""`to_nir`: write a network as a NIR file, with time constants that are right for every reader.

What NIR cannot express, such as a delayed reset, is kept in the metadata, which `from_nir` reads
and other readers ignore; how many spikes then differ for them is measured on the sample and
reported in a warning.
"""

import contextlib
import copy
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurospike.errors import InterchangeError
from neurospike.layers.conversion import snntorch as converted
from neurospike.layers.lif import LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.sequential import Sequential
from neurospike.layers.spiking import Spiking
from neurospike.layers.zoo import Synaptic
from neurospike.ops.arguments import check_module

from .nir import outputs, package
from .nir_nodes import is_of_nir, kind_of, maker_of
from .nir_reading import network_of, read

# Layers that do nothing in evaluation.
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Layers that ns.convert makes of neurons whose states are returned, too: the layers without that.
_TRACED = {
    converted.TracedLIF: LIF,
    converted.TracedSynaptic: Synaptic,
    converted.TracedRecurrent: Recurrent,
}
Row = list[tuple[str, nn.Module]]


def to_nir(net: nn.Module, path: str | Path | None, sample: Tensor, dt: float = 1e-4) -> Any:
    """Write a network as a NIR file (Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9).

        ns.to_nir(net, "net.nir", frames)           # frames [T, B, *F], as net is called with
        net = ns.from_nir("net.nir")

    A decay per step becomes a time constant by Euler's forward method, `tau = dt / (1 - beta)`,
    with `r = tau / dt`, so that the current is added unscaled; neurons with a beta of 1 become an
    `IF` or `I`. The file's metadata hold `dt` and, for `from_nir` alone, what NIR cannot express.

    The network may have, in a row, `LIF`, `LI`, `Synaptic`, `PLIF`, `Spiking` with the functions of
    these, `Recurrent` of these, `Delay`, `Linear`, `SpikeLinear`, `Conv1d`, `Conv2d`, `Flatten`,
    `AvgPool2d` (with `divisor_override=1` it is written as `SumPool2d`) and `Scale`; `Sequential`
    may be nested. Dropout is left out.

    Before the file is written, the graph is read back and run on the sample: the output of every
    layer has to be equal.

    Args:
        net: an `ns.Sequential` or `nn.Sequential`, or one layer. It is not changed.
        path: file to write; None writes none.
        sample: an input `[T, B, *F]`, floating point, which gives the shapes, and on which
            differences are measured.
        dt: length of a step in seconds, above 0. snnTorch and SpikingJelly assume 1e-4 when they
            read a file.

    Returns:
        The `nir.NIRGraph`.

    Warns:
        UserWarning: NIR resets neurons to zero (or to a value) at the spike, and these neurons do
            not; the warning says how many spikes differ for a reader that ignores the metadata. Or
            nir's own check of shapes refuses the file because it miscounts, as for convolutions
            with groups or an oblong kernel.

    Raises:
        InterchangeError: a layer or option that NIR has no node for, with what to write instead; a
            file that cannot be written; a graph that computes something else when read back.
        MissingDependencyError: the package nir is not installed.
        TypeError, ValueError: a network, sample or dt of the wrong kind.
    """
    nir = package()
    check_module("net", net)
    _check(sample, dt)
    net, sample = copy.deepcopy(net).cpu().eval(), sample.detach().cpu()
    with torch.no_grad():
        row = _row_of(net, "")
        found = outputs(_known(row), sample)
        graph, names = _graph(nir, row, found, dt)
        _prove(graph, names, found)
        lossy = [name for name, layer in row if not is_of_nir(layer)]
        if lossy:
            _tell_loss(graph, names, lossy, found)
    if path is not None:
        _write(nir, graph, Path(path))
    return graph


def _check(sample: Tensor, dt: float) -> None:
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        what = str(sample.dtype) if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(f"sample must be a tensor [T, B, *F] of floating point, got {what}")
    if sample.dim() < 3 or sample.numel() == 0:
        raise ValueError(
            f"sample must be [T, B, *F] with at least one step, sample and feature, got shape "
            f"{tuple(sample.shape)}; make of a batch [B, *F] a step with .unsqueeze(0)"
        )
    if isinstance(dt, bool) or not isinstance(dt, (int, float)) or not 0 < dt < math.inf:
        raise ValueError(f"dt must be the length of a step in seconds, above 0, got {dt!r}")


def _row_of(net: nn.Module, path: str) -> Row:
    """Return the layers of nested sequentials in a row, by their dotted names."""
    if isinstance(net, nn.Sequential):
        if type(net).forward not in (nn.Sequential.forward, Sequential.forward):
            raise InterchangeError(
                f"{path or 'the network'} is a {type(net).__name__} with a forward of its own; "
                "to_nir writes layers in a row: build it as an ns.Sequential"
            )
        children = [(n, one) for n, one in net._modules.items() if one is not None]
        rows = [_row_of(one, f"{path}.{n}" if path else n) for n, one in children]
        return [pair for row in rows for pair in row if not isinstance(pair[1], NOTHING)]
    traced = _TRACED.get(type(net))
    if traced is not None:
        net.__class__ = traced  # `net` is part of a copy, see to_nir
    return [(path, net)]


def _known(row: Row) -> Row:
    """Check a row and return it; raise InterchangeError for a layer that NIR has no node for."""
    if not row:
        raise InterchangeError("the network has no layers to write")
    for name, layer in row:
        with _named(name, layer):
            maker_of(layer)
            if isinstance(layer, Recurrent):
                kind_of(layer.neuron)
            elif isinstance(layer, (LIF, Spiking)):
                kind_of(layer)
    return row


@contextlib.contextmanager
def _named(name: str, layer: nn.Module) -> Iterator[None]:
    """Add the layer's name and class to an InterchangeError raised inside."""
    try:
        yield
    except InterchangeError as error:
        what = f"layer {name} ({type(layer).__name__})" if name else type(layer).__name__
        raise InterchangeError(f"{what}: {error}") from None


def _graph(
    nir: Any, row: Row, found: list[tuple[str, Tensor, Tensor]], dt: float
) -> tuple[Any, dict[str, str]]:
    """Return the graph, and the name of each layer's first node by the name of the layer."""
    from neurospike import __version__

    nodes = {"input": nir.Input(np.array(found[0][1].shape[2:]))}
    names = {}
    for (name, layer), (_, x, y) in zip(row, found):
        with _named(name, layer):
            made = maker_of(layer)(nir, layer, x.shape[2:], y.shape[2:], dt)
        names[name] = _free(name, layer, nodes)
        for number, node in enumerate(made):
            nodes[names[name] + ("_threshold" if number else "")] = node
    nodes["output"] = nir.Output(np.array(found[-1][2].shape[2:]))
    keys = list(nodes)
    graph = nir.NIRGraph(
        nodes=nodes,
        edges=list(zip(keys[:-1], keys[1:])),
        metadata={"dt": dt, "written_by": f"neurospike {__version__}"},
        type_check=False,
    )
    return graph, names


def _free(name: str, layer: nn.Module, taken: dict[str, Any]) -> str:
    """Return a name for a node that is not taken: the layer's, made a valid identifier."""
    text = re.sub(r"\W", "_", name)
    if not text or text[0].isdigit():
        text = f"{type(layer).__name__.lower()}_{text}".rstrip("_")
    while text in taken or f"{text}_threshold" in taken or text in ("input", "output"):
        text += "_"
    return text


def _prove(graph: Any, names: dict[str, str], wanted: list[tuple[str, Tensor, Tensor]]) -> None:
    """Raise InterchangeError if the graph, read back, gives other outputs for the sample."""
    again = dict(_outputs_of(network_of(graph), wanted[0][1]))
    for name, _, y in wanted:
        if not torch.equal(again[names[name]], y):
            raise InterchangeError(
                f"layer {name or 'of the network'}: read back it gives other outputs for the "
                "sample; a subclass, a hook or a function of your own does what its class does not"
            )


def _outputs_of(net: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    return [(name, y) for name, _, y in outputs(list(net.named_children()), x)]


def _tell_loss(
    graph: Any, names: dict[str, str], lossy: list[str], wanted: list[tuple[str, Tensor, Tensor]]
) -> None:
    """Warn how many spikes differ for a reader that ignores the metadata of `to_nir`."""
    others = dict(_outputs_of(network_of(graph, own=False), wanted[0][1]))
    told = []
    for name, _, spikes in wanted:
        if name in lossy:
            wrong = int((others[names[name]] != spikes).sum())
            count = int(spikes.sum())
            share = f" ({100 * wrong / count:.1f}%)" if count else ""
            told.append(f"{names[name]} {wrong} of {count}{share}")
    warnings.warn(
        "NIR resets neurons to zero at the spike; what these do instead the file tells "
        "ns.from_nir alone, and for other readers spikes differ, on this sample: "
        f"{', '.join(told)}. Train with reset='zero', reset_delay=False to lose none",
        stacklevel=3,
    )


def _write(nir: Any, graph: Any, path: Path) -> None:
    """Write a temporary file, read it back, and move it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        nir.write(str(temporary), graph)
        network_of(read(temporary))
        try:
            nir.read(str(temporary))
        except (ValueError, NotImplementedError) as error:
            warnings.warn(
                f"nir's own check of shapes refuses this file ({error}); others have to read it "
                "by nir.read(path, type_check=False)",
                stacklevel=3,
            )
        temporary.replace(path)
    except OSError as error:
        # An error of h5py has the system's errno, but a text of its own.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InterchangeError(f"{path}: cannot write the file: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)
