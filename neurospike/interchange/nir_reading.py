"""`from_nir`: read a NIR file, written by any library, as an `ns.Sequential`."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from neurospike.errors import InterchangeError
from neurospike.layers.sequential import Sequential
from neurospike.neurons import zoo

from .nir import package
from .nir_layers import Reading
from .nir_neurons import WRITERS
from .nir_row import Place, row_of


def from_nir(
    source: Any,
    *,
    dt: float | None = None,
    written_by: str | None = None,
    reset: str | None = None,
    reset_delay: bool | None = None,
    surrogate: Any = None,
    backend: str = "auto",
) -> Sequential:
    """Read a NIR file as a network of fused layers, `ns.Sequential`.

        net = ns.from_nir("net.nir")
        spikes, states = net(frames)                # [T, B, *F]
        net = ns.from_nir("theirs.nir", written_by="spyx")

    NIR (Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9) describes neurons in continuous time.
    They become `LIF`, `LI` and `Synaptic` by Euler's forward method, `beta = 1 - dt / tau`, with a
    `Scale` before them where `r dt / tau` is not 1. Membranes start at `v_leak` and are measured
    from there. A neuron and an `Affine` or `Linear` that lead to each other become a `Recurrent`,
    whose feedback takes one step. Layers have the names of the nodes. A file written by `to_nir` is
    read back as the same layers, bit for bit.

    Args:
        source: path of the file, or a `nir.NIRGraph`.
        dt: length of a step in seconds. Default: the file's own, which `to_nir` writes, else that
            of the writer, 1e-4 for most.
        written_by: `"snntorch"`, `"norse"`, `"spikingjelly"` or `"spyx"`, whose exporters deviate
            from NIR (docs/nir.md says how): the network then spikes like the one that was written.
            `"nir"` takes the file as NIR specifies. Default: `"nir"`, with what `to_nir` added to
            the file.
        reset: `"subtract"`, `"zero"` or `"none"`; replaces that of the writer or the file.
        reset_delay: whether neurons are reset at the step after the spike; replaces it likewise.
        surrogate: of every layer, see `ns.lif`. Default: the file's own if `to_nir` wrote it, else
            `"atan"`.
        backend: of every layer, see `ns.backends`.

    Returns:
        The network, which is called with `[T, B, *F]`; its weights are copies of the file's.

    Raises:
        InterchangeError: a missing or damaged file, a node that no layer computes, a graph that is
            not a row of nodes, a step longer than a time constant.
        MissingDependencyError: the package nir is not installed.
        ValueError: an unknown writer or reset, a dt not above 0.
    """
    package()
    if written_by is not None and written_by not in WRITERS:
        raise ValueError(f"unknown written_by {written_by!r}; choose one of {', '.join(WRITERS)}")
    if dt is not None and not 0 < dt < math.inf:
        raise ValueError(f"dt must be the length of a step in seconds, above 0, got {dt!r}")
    if reset not in (None, *zoo.RESETS):
        raise ValueError(f"unknown reset {reset!r}; choose one of {', '.join(zoo.RESETS)}")
    is_path = isinstance(source, (str, Path))
    graph = read(Path(source)) if is_path else source
    if type(graph).__name__ != "NIRGraph":
        raise InterchangeError(
            f"from_nir takes a path or a nir.NIRGraph, got {type(graph).__name__}"
        )
    options = {"reset": reset, "delayed": reset_delay, "surrogate": surrogate, "backend": backend}
    try:
        return network_of(graph, dt, written_by, **options)
    except InterchangeError as error:
        raise InterchangeError(f"{source}: {error}" if is_path else str(error)) from None


def read(path: Path) -> Any:
    """Return the graph of a file; raise InterchangeError if it is missing or damaged."""
    if not path.is_file():
        what = "it is a folder, wanted a file" if path.is_dir() else "there is no such file"
        raise InterchangeError(f"{path}: {what}")
    try:
        return package().read(str(path), type_check=False)
    except Exception as error:  # noqa: BLE001 (whatever nir and h5py make of a damaged file)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InterchangeError(f"{path}: cannot be read as NIR: {reason}") from None


def network_of(
    graph: Any,
    dt: float | None = None,
    written_by: str | None = None,
    own: bool = True,
    **options: Any,
) -> Sequential:
    """Return the network of a graph; see `from_nir`. own: use the metadata that `to_nir` wrote."""
    metadata = graph.metadata if isinstance(graph.metadata, dict) else {}
    ours = own and str(metadata.get("written_by", "")).startswith("neurospike")
    writer = WRITERS[written_by or "nir"]
    step = dt or (float(metadata["dt"]) if "dt" in metadata else writer.dt)
    reading = Reading(writer, step, ours and written_by is None, **options)
    row = row_of(graph, writer.through_weights)
    _check_sizes(row)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place in row:
        for suffix, layer in reading.layers_of(place):
            layers[place.title + suffix] = layer
    return Sequential(layers)


def _check_sizes(row: list[Place]) -> None:
    """Raise InterchangeError if a node's number of outputs is not what the next node takes."""
    before, made = "", None
    for place in row:
        node = place.node
        takes, makes = None, None
        if place.kind in ("Affine", "Linear"):
            takes, makes = (node.weight.shape[-1],), (node.weight.shape[-2],)
        elif (
            values := getattr(node, "r", getattr(node, "scale", getattr(node, "delay", None)))
        ) is not None:
            takes = makes = np.shape(values) or made
        if made is not None and takes is not None and math.prod(takes) != math.prod(made):
            raise InterchangeError(
                f"the node {before} makes {made[0] if len(made) == 1 else made} features, "
                f"{place.name} takes {takes[0] if len(takes) == 1 else takes}"
            )
        before, made = place.name, makes
