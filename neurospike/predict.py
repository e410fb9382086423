"""Recognise digits in picture files: `python -m neurospike.predict`.

Pictures are taken one by one, so that a result never depends on the pictures beside it, and a
folder of any size needs the memory of one.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurospike.backend.dispatch import use_backend
from neurospike.config.cli import Parser, add_backend, add_device, guarded
from neurospike.config.devices import choose_device
from neurospike.errors import ConfigError, PictureError
from neurospike.pictures import Ink, suffixes
from neurospike.training.loading import MODEL, Trained, check_sees_pictures, load_trained

SOME_FAILED = 1  # the exit code when an entry could not be read and the others were predicted


@dataclass(frozen=True)
class LayerSpikes:
    """A layer's spikes: their number, per neuron and step, and the first step with one."""

    count: int
    rate: float
    first_step: int | None


@dataclass(frozen=True)
class Prediction:
    """What the network answers to one picture.

    digit: the number of the class that was answered; label: the name of that class. confidence:
    softmax of the scores divided by `temperature`, one number per class, 1 in all. The temperature
    was fitted to the validation pictures, and is 1 where there were none: a confidence of 0.9 then
    does not mean that nine of ten such answers are right. In any case a picture of none of the
    classes can get 1.0. output_counts and output_first_steps: spikes per class and the step of the
    first (None: silent), if the output neurons fire, else empty. note: what was left out of the
    picture, or makes the answer doubtful.
    """

    path: str
    digit: int
    label: str
    confidence: list[float]
    temperature: float
    scores: list[float]
    spikes: dict[str, LayerSpikes]
    output_counts: list[int]
    output_first_steps: list[int | None]
    note: str | None = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.predict") -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""

    def job() -> int:
        flags = _parser(prog).read(argv)
        paths = [*flags.pictures, *(flags.image_path or [])]
        if not paths:
            raise ConfigError("no picture was named: give picture files, or folders of them")
        if not all(path.strip() for path in paths):  # which would be the working folder
            raise ConfigError("a picture's name is empty: give picture files, or folders of them")
        if flags.plot is not None:
            from neurospike.visualization.prediction import check_plot

            check_plot(flags.plot)
        with use_backend(flags.backend):
            device = choose_device(flags.device, flags.backend)
            trained = load_trained(flags.model_path, device)
            check_sees_pictures(trained, flags.model_path)
            return _predict_all(trained, device, paths, flags.ink, flags.json, flags.plot)

    return guarded(job)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        usage=f"{prog} [--model_path FILE] PICTURE [PICTURE ...] [--KEY VALUE ...]",
        description="Recognise the digit in each picture, photographs and scans included, or what "
        "else the network has learnt. The confidence is the softmax of the scores, with the "
        "temperature that the training fitted to its validation pictures: it can still be near "
        "100% for a wrong answer, and for a picture of none of the classes. What makes an answer "
        "doubtful is noted beside it. Exit code 0: all were predicted; 1: some could not be read, "
        "the others were predicted; 2: nothing could be done.",
    )
    parser.add_argument(
        "pictures", metavar="PICTURE", nargs="*", help="the same as --image_path PICTURE"
    )
    parser.add_argument(
        "--model_path", metavar="FILE", default=MODEL, help="trained model (default: %(default)s)"
    )
    parser.add_argument(
        "--image_path",
        metavar="PATH",
        nargs="+",
        help="picture files of any kind and size, or folders of them (not of their sub-folders)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw pictures, confidences and spikes (.png, .pdf, .svg)"
    )
    parser.add_argument(
        "--ink",
        choices=("auto", "light", "dark"),
        default="auto",
        help="is the digit lighter or darker than its background; auto finds out (default)",
    )
    add_backend(parser)
    add_device(parser)
    return parser


def _predict_all(
    trained: Trained,
    device: torch.device,
    paths: Sequence[str],
    ink: Ink,
    as_json: bool,
    plot: str | None,
) -> int:
    shown: list[tuple[Prediction, Tensor, dict[str, Tensor]]] = []
    done = failed = 0
    if plot is not None:
        from neurospike.visualization.prediction import MOST_ROWS, draw_predictions
    for path in _files(paths):
        try:
            if isinstance(path, PictureError):
                raise path
            picture, note = trained.read(path, ink)
        except PictureError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        prediction, activity = predict(trained, picture.to(device), str(path), note)
        said = json.dumps(asdict(prediction)) if as_json else _text(prediction, trained.classes)
        print(said, flush=True)
        if plot is not None and len(shown) < MOST_ROWS:
            shown.append((prediction, picture, activity))
        done += 1
    if shown and plot is not None:
        draw_predictions(shown, plot, trained.classes)
        if done > len(shown):
            print(f"{plot}: shows the first {len(shown)} of {done} pictures", file=sys.stderr)
    if failed and done:
        print(f"{failed} of {failed + done} pictures could not be predicted", file=sys.stderr)
        return SOME_FAILED
    return 2 if failed else 0


@torch.inference_mode()
def predict(
    trained: Trained, picture: Tensor, path: str = "", note: str | None = None
) -> tuple[Prediction, dict[str, Tensor]]:
    """Run the network on one picture; return its prediction and the spikes `[T, N]` by layer.

    picture: `[C, H, W]` in [0, 1], or `[H, W]` of one channel. A network with random encoding draws
    the same spikes for the same picture every time.
    """
    with torch.random.fork_rng(devices=[picture.device] if picture.is_cuda else []):
        torch.manual_seed(trained.config.seed)
        images = picture[None, None] if picture.ndim == 2 else picture[None]
        scores, activity = trained.model(images, return_activity=True)
    scores = scores[0].float()
    spikes = {name: layer[:, 0].flatten(1) for name, layer in activity.items()}
    output = spikes.get("output")
    answer = int(scores.argmax())
    prediction = Prediction(
        path=path,
        digit=answer,
        label=trained.classes[answer],
        confidence=(scores / trained.temperature).softmax(0).tolist(),
        temperature=trained.temperature,
        scores=scores.tolist(),
        spikes={name: _layer_spikes(layer) for name, layer in spikes.items()},
        output_counts=[] if output is None else output.sum(0).int().tolist(),
        output_first_steps=[] if output is None else [_first_step(n) for n in output.T],
        note=note,
    )
    return prediction, spikes


def _layer_spikes(spikes: Tensor) -> LayerSpikes:
    return LayerSpikes(
        count=int(spikes.sum()),
        rate=float(spikes.float().mean()),
        first_step=_first_step(spikes.any(1)),
    )


def _first_step(fired: Tensor) -> int | None:
    """Return the first step, from 0, at which a spike train `[T]` has a spike; None if silent."""
    return int(fired.int().argmax()) if bool(fired.any()) else None


def _files(paths: Sequence[str]) -> Iterator[Path | PictureError]:
    """Yield the files named and the pictures in folders named, or an error in place of one."""
    for name in paths:
        path = Path(name)
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:  # no right to look into it, or a name that is too long
            yield PictureError(f"{name}: cannot be read: {error.strerror}")
            continue
        if inside is None:
            yield path
        else:
            yield from _pictures(path, [p for p in inside if not p.name.startswith(".")])


def _pictures(folder: Path, inside: list[Path]) -> Iterator[Path | PictureError]:
    """Yield the pictures among what is in a folder; what is skipped is named on stderr."""
    known = suffixes()
    folders = [path for path in inside if path.is_dir()]
    files = [path for path in inside if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in known]
    deeper = ""
    if folders:
        what = f"{len(folders)} sub-folders" if len(folders) > 1 else "a sub-folder"
        deeper = f"{what} not looked into, such as {folders[0]}: name each that is wanted"
    if not pictures:
        said = f"({deeper})" if deeper else "; give files, or another one"
        yield PictureError(f"{folder}: a folder without pictures{' ' if deeper else ''}{said}")
        return
    others = len(files) - len(pictures)
    if others:
        print(
            f"{folder}: {others} of {len(files)} files passed over, no pictures by name",
            file=sys.stderr,
        )
    if deeper:
        print(f"{folder}: {deeper}", file=sys.stderr)
    yield from pictures


def _text(prediction: Prediction, classes: Sequence[str]) -> str:
    confidence = prediction.confidence
    note = f" ({prediction.note})" if prediction.note else ""
    shares = zip(classes, confidence, strict=True)
    lines = [
        f"{prediction.path}: {prediction.label}, confidence {max(confidence):.1%}{note}",
        "  confidence " + "  ".join(f"{name} {share:.1%}" for name, share in shares),
    ]
    for name, layer in prediction.spikes.items():
        first = "silent" if layer.first_step is None else f"first at step {layer.first_step}"
        lines.append(
            f"  {name} {layer.count} spikes, {layer.rate:.4f} per neuron and time step, {first}"
        )
    if prediction.output_counts:
        counts = "  ".join(map("{} {}".format, classes, prediction.output_counts))
        firsts = "  ".join(
            f"{name} {'-' if step is None else step}"
            for name, step in zip(classes, prediction.output_first_steps, strict=True)
        )
        lines += [f"  output spikes {counts}", f"  first spike at step {firsts}"]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
