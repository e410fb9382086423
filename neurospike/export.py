"""Export a trained network: `python -m neurospike.export --out model.onnx`.

Two formats. `.pt2` is what `torch.export` makes: with a fused backend it holds that backend's
operators, and loads where `neurospike` is imported; with `reference` nothing but torch's own.
`.onnx` runs wherever ONNX does. Either takes pictures in [0, 1], of digits `[B, 1, 28, 28]`, any
number of them, and gives scores `[B, C]`; each is run before it is written, and has to answer as
the network does. Networks of one's own have `ns.to_onnx` and `ns.to_pt2`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurospike.backend.dispatch import choose, use_backend
from neurospike.config.cli import Parser, add_backend, add_device, check_target, guarded
from neurospike.config.devices import choose_device
from neurospike.data import load
from neurospike.errors import ConfigError, NeuroSpikeError
from neurospike.interchange.graphs import (
    LEAST_ALIKE,
    PACKAGES,
    as_onnx,
    as_pt2,
    own_randomness,
    program_of,
    require,
)
from neurospike.models import SpikingNetwork
from neurospike.pictures import SIZE
from neurospike.training.checkpoint import replace_file
from neurospike.training.loading import MODEL, check_sees_pictures, load_trained

FORMATS = ("pt2", "onnx")
DIGIT = (1, SIZE, SIZE)  # channels, height and width
CHECKED = 360  # pictures that the exported network answers before it is called done


@dataclass(frozen=True)
class Checked:
    """An exported file, and how its answers compare with the network's.

    backend: whose operators are in the file; `"onnx"` for `.onnx`. pictures: how many it was
    checked with; alike: for how many it gave the same class; largest_difference: between scores.
    """

    path: str
    format: str
    backend: str
    bytes: int
    pictures: int
    alike: int
    largest_difference: float


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.export") -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""

    def job() -> int:
        flags = _parser(prog).read(argv)
        form = flags.format or Path(flags.out).suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise ConfigError(
                f"--out: {flags.out} ends with neither .pt2 nor .onnx; give --format pt2 or onnx"
            )
        check_target("--out", flags.out)
        if form == "onnx":
            for package in PACKAGES:
                require(package)
        with use_backend(flags.backend):
            device = choose_device(flags.device, flags.backend)
            trained = load_trained(flags.model_path, device)
            check_sees_pictures(trained, flags.model_path)
            shape = trained.config.picture
            # Pixels drawn at random, where the digits that are always at hand have another shape.
            drawn = torch.Generator().manual_seed(0)
            pictures = torch.rand(CHECKED, *shape, generator=drawn) if shape != DIGIT else None
            checked = export_model(trained.model, flags.out, form, pictures=pictures, device=device)
        print(json.dumps(asdict(checked)) if flags.json else _text(checked))
        return 0

    return guarded(job)


def export_model(
    model: SpikingNetwork,
    path: str | Path,
    form: str = "onnx",
    *,
    pictures: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Checked:
    """Export a network, check that the result answers as the network does, and write it to `path`.

    A file already there is replaced only once all of that has succeeded.

    form: `"onnx"` or `"pt2"`, made with the backend in force (`ns.use_backend`). pictures: to check
    it with, `[B, C, H, W]` in [0, 1]; default: scikit-learn's test digits.

    Raises ConfigError for rate coding, which draws its spikes, as ONNX, and for pictures read pixel
    by pixel with the backend `reference`; MissingDependencyError without onnx, onnxscript and
    onnxruntime; NeuroSpikeError if the classes differ; CheckpointError for a file
    that cannot be written.
    """
    if pictures is None:
        pictures = load("digits", ".").test.images[:CHECKED].unsqueeze(1).float() / 255
    pictures = pictures.to(device)
    model = model.to(device).eval()
    backend = choose("auto", pictures.device).name
    if backend == "reference" and model.encoding == "pixels":
        raise ConfigError(
            f"encoding.kind: pixels takes {model.num_steps} steps, and {form} of the backend "
            "'reference' would hold each of them by itself; use --backend numba or triton"
        )
    if form == "onnx" and model.encoding == "rate":
        raise ConfigError(
            "encoding.kind: rate draws its spikes at random, which ONNX does in another way; "
            "export it as .pt2, or train with another encoding"
        )
    example = (_example(pictures),)
    if form == "onnx":
        names = {"input_names": ["pictures"], "output_names": ["scores"]}
        content, run = as_onnx(model, example, {}, _AXES, **names)
    else:
        content, run = as_pt2(model, example, {}, _AXES)
    with torch.no_grad(), own_randomness():
        torch.manual_seed(0)
        expected = model(pictures)
        torch.manual_seed(0)
        (found,) = run(pictures)
    alike = int((found.argmax(1) == expected.argmax(1)).sum())
    if alike < LEAST_ALIKE * len(pictures):
        raise NeuroSpikeError(
            f"{path}: not written, because what was exported gives another class than the network "
            f"for {len(pictures) - alike} of {len(pictures)} pictures; please report the network's "
            "config"
        )
    replace_file(Path(path), content)
    return Checked(
        path=str(path),
        format=form,
        backend="onnx" if form == "onnx" else backend,
        bytes=len(content),
        pictures=len(pictures),
        alike=alike,
        largest_difference=float((found - expected).abs().max()),
    )


def export_program(model: SpikingNetwork, pictures: Tensor) -> torch.export.ExportedProgram:
    """Return a network in evaluation mode as `torch.export` sees it, for any number of pictures.

    With a fused backend in force its operators are in the graph, with `reference` torch's own.
    """
    return program_of(model.eval(), (_example(pictures),), {}, _AXES)


_AXES = ({0: "batch"},)


def _example(pictures: Tensor) -> Tensor:
    """Return two pictures; a batch of one would be taken for a constant."""
    return pictures[:2] if len(pictures) > 1 else pictures.expand(2, *pictures.shape[1:])


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        usage=f"{prog} [--model_path FILE] --out FILE [--KEY VALUE ...]",
        description="Write a trained network as a file that other programs run, and check that it "
        f"answers alike. It takes pictures in [0, 1], of digits [B, 1, {SIZE}, {SIZE}], and gives "
        "scores [B, C].",
    )
    parser.add_argument(
        "--model_path", metavar="FILE", default=MODEL, help="trained model (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="onnx, or pt2 of torch.export; default: as the file's name ends",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_backend(parser, "whose operators a .pt2 holds (of reference: torch's own only)")
    add_device(parser)
    return parser


def _text(checked: Checked) -> str:
    whose = "" if checked.format == "onnx" else f" with the {checked.backend} backend"
    return (
        f"{checked.path}: {checked.format}{whose}, {checked.bytes:,} bytes\n"
        f"checked: the same class for {checked.alike} of {checked.pictures} pictures, scores "
        f"differ by {checked.largest_difference:.1e} at most"
    )


if __name__ == "__main__":
    raise SystemExit(main())
