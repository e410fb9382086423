"""Any network as a file that runs without its Python code: ONNX, or a program of `torch.export`.

`torch.onnx.export` and `torch.export.export` accept the same networks. Here, in addition, the
export is run and compared with the network before it is written, its open axes have names, and an
existing file is replaced only after that.
"""

import importlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurospike.errors import MissingDependencyError, NeuroSpikeError
from neurospike.ops.arguments import check_module
from neurospike.training.checkpoint import check_replaceable, replace_file

from .axes import Axes, axes_of, name_axes

LEAST_ALIKE = 0.99  # a sum rounded differently may change a spike, and all that follows from it
CLOSE = 1e-4  # allowed difference, relative to the largest number of an output
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Written:
    """A file that was written, and how its outputs for the sample compare with the network's.

    Attributes:
        path: of the file.
        bytes: its size in bytes.
        numbers: how many numbers the network returned.
        alike: how many of them the file reproduces, up to 1e-4 of the largest number of an output
            (or of 1, if that is larger).
        largest_difference: the largest between a number of the network's and the file's.
    """

    path: str
    bytes: int
    numbers: int
    alike: int
    largest_difference: float


class Exported(NamedTuple):
    """A file's content, and a function that runs it on the network's arguments."""

    content: bytes
    run: Callable[..., list[Tensor]]


Sample = Tensor | tuple[Any, ...]


def to_onnx(
    net: nn.Module, path: str | Path, sample: Sample, *, axes: Axes = None, **options: Any
) -> Written:
    """Write a network as ONNX, after checking that the export computes what the network does.

        ns.to_onnx(net, "net.onnx", x)                          # [T, B, *F], any number B
        ns.to_onnx(net, "net.onnx", x, axes={0: "time", 1: "batch"})
        ns.to_onnx(net, "net.onnx", image, num_steps=25)        # net(image, num_steps=25)
        ns.to_onnx(net, "net.onnx", (x, states), axes=({1: "batch"}, ({0: "batch"},)))

    A time loop becomes an ONNX `Scan`, whose step is in the file once. The network is exported in
    evaluation mode, whatever its backend.

    Args:
        net: any module, with layers of this library or without.
        path: file to write.
        sample: what the network is called with, a tensor or a tuple of arguments; its size must be
            2 or more along every axis that is left open.
        axes: names of the axes whose length the file leaves open, `{axis: name}` for the first
            argument, or, like torch's `dynamic_shapes`, a tuple with an entry for each argument,
            in which None leaves no axis open. Negative axes count from the last one. Default: the
            axis `"batch"`, which is axis 1 of `[T, B, *F]`, and axis 0 for pictures, with
            `num_steps`, or if the network has `batch_first = True`. If your own network has layers
            with the batch first, set that attribute on it, or give axes.
        options: keyword arguments of the call. Numbers are fixed in the file.

    Returns:
        A `Written`: the file's size, and how closely it reproduces the network's outputs.

    Raises:
        TypeError: `net` is not a module.
        ValueError: several arguments without axes; axes that the sample does not have; size 1 along
            an open axis; a bfloat16 sample for ONNX.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        NeuroSpikeError: the export computes something else, as for a network that draws at random.
        CheckpointError: the file cannot be written, for example because its path is a folder.
    """
    return _written(as_onnx, net, path, sample, axes, options)


def to_pt2(
    net: nn.Module, path: str | Path, sample: Sample, *, axes: Axes = None, **options: Any
) -> Written:
    """Write a network by `torch.export.save`, after checking that it computes the same.

        ns.to_pt2(net, "net.pt2", x)
        spikes, states = torch.export.load("net.pt2").module()(x)

    The file holds the operators of the current backend, and loads in a program that has imported
    `neurospike`. Exported under `ns.use_backend("reference")`, from layers that name no other
    backend, it holds torch's own operators, repeated for every step, and loads with torch alone.
    Arguments, result and errors are those of `to_onnx`.
    """
    return _written(as_pt2, net, path, sample, axes, options)


def as_onnx(
    net: nn.Module,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    axes: Sequence[Any],
    **names: Any,
) -> Exported:
    """Export a network as ONNX; `axes` has an entry for each argument and option."""
    for package in PACKAGES:
        require(package)
    runtime = require("onnxruntime")
    if any(one.dtype == torch.bfloat16 for one in tensors_of((arguments, options))):
        raise ValueError(
            "the sample is bfloat16, which onnxruntime does not compute with on a CPU; export the "
            "network in float32, or by to_pt2"
        )
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _quiet():
        program = torch.onnx.export(
            net,
            arguments,
            kwargs=dict(options),
            dynamic_shapes=tuple(axes),
            dynamo=True,
            verbose=False,
            **names,
        )
    assert program is not None
    proto = program.model_proto
    name_axes(proto.graph, (*arguments, *options.values()), axes)
    content = proto.SerializeToString()

    def run(*arguments: Any, **options: Any) -> list[Tensor]:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        leaves = pytree.tree_leaves((arguments, options))
        given = [one for one in leaves if isinstance(one, Tensor)]
        feed = {
            one.name: value.detach().cpu().numpy()
            for one, value in zip(session.get_inputs(), given, strict=True)
        }
        return [torch.from_numpy(one).to(given[0].device) for one in session.run(None, feed)]

    return Exported(content, run)


def as_pt2(
    net: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any], axes: Sequence[Any]
) -> Exported:
    """Export a network by `torch.export`; `axes` has an entry for each argument and option."""
    program = program_of(net, arguments, options, axes)
    file = io.BytesIO()
    torch.export.save(program, file)
    content = file.getvalue()

    def run(*arguments: Any, **options: Any) -> list[Tensor]:
        found = torch.export.load(io.BytesIO(content)).module()(*arguments, **options)
        return tensors_of(found)

    return Exported(content, run)


def program_of(
    net: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any], axes: Sequence[Any]
) -> torch.export.ExportedProgram:
    """Return a network as an `ExportedProgram`."""
    shapes = pytree.tree_map(
        lambda one: torch.export.Dim.DYNAMIC if isinstance(one, str) else one, tuple(axes)
    )
    with _quiet():
        return torch.export.export(net, arguments, dict(options), dynamic_shapes=shapes)


def tensors_of(found: Any) -> list[Tensor]:
    """Return all tensors in a nested structure, in order."""
    return [one for one in pytree.tree_leaves(found) if isinstance(one, Tensor)]


def _written(
    form: Callable[..., Exported],
    net: nn.Module,
    path: str | Path,
    sample: Sample,
    axes: Axes,
    options: dict[str, Any],
) -> Written:
    check_module("net", net)
    arguments = sample if isinstance(sample, tuple) else (sample,)
    shapes = axes_of(net, arguments, options, axes)
    check_replaceable(Path(path))
    with torch.no_grad(), _evaluating(net), own_randomness():
        torch.manual_seed(0)
        # Called first, because errors of a plain call are clearer than those of an export.
        wanted = tensors_of(net(*arguments, **options))
        exported = form(net, arguments, options, shapes)
        torch.manual_seed(0)
        found = exported.run(*arguments, **options)
    result = _compared(str(path), len(exported.content), wanted, found)
    if result.alike < LEAST_ALIKE * result.numbers:
        raise NeuroSpikeError(
            f"{path}: not written, because of {result.numbers} numbers that the network returns "
            f"what was exported gives {result.alike}; a network that draws at random draws "
            "otherwise there, and for any other one please report it"
        )
    replace_file(Path(path), exported.content)
    return result


def _compared(path: str, size: int, wanted: list[Tensor], found: list[Tensor]) -> Written:
    alike, largest = 0, 0.0
    for one, other in zip(wanted, found, strict=True):
        difference = _difference(one.double(), other.double())
        if difference.numel():
            finite = one.double().nan_to_num(0, 0, 0)
            near = CLOSE * max(1.0, float(finite.abs().max()))
            alike += int((difference <= near).sum())
            largest = max(largest, float(difference.max()))
    return Written(path, size, sum(one.numel() for one in wanted), alike, largest)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Return absolute differences; 0 for two equal infinities and for two NaN."""
    same = (one == other) | (one.isnan() & other.isnan())
    return (one - other).abs().nan_to_num(math.inf, math.inf).masked_fill(same, 0)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Restore torch's random state afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own warnings
        yield


def require(package: str) -> Any:
    """Import a package that ONNX needs. Raises MissingDependencyError."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs {package}, which does not import ({error}): "
            "pip install onnx onnxscript onnxruntime"
        ) from error
