"""Test a trained network on a data set: `python -m neurospike.evaluate`."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neurospike.backend.dispatch import use_backend
from neurospike.config.cli import Parser, add_backend, add_device, guarded
from neurospike.config.devices import choose_device
from neurospike.config.kinds import RECORDED
from neurospike.data import NAMES, Batches, DigitData, EventData, load, load_folder, load_recordings
from neurospike.data.datasets import check_name
from neurospike.errors import ConfigError, MissingDependencyError
from neurospike.training import Metrics, draw_network
from neurospike.training.calibration import BINS, calibration
from neurospike.training.diagnosis import many_dead
from neurospike.training.energy import count_operations
from neurospike.training.evaluation import Evaluation
from neurospike.training.loading import MODEL, Trained, load_trained
from neurospike.training.trainer import BatchSource

BATCH = 500  # pictures; the result does not depend on it
COLUMN = 8  # cells of a terminal for a class's name above a column
COUNTED = 500  # pictures on which operations are counted


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.evaluate") -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""

    def job() -> int:
        flags = _parser(prog).read(argv)
        if flags.dataset is not None:
            check_name(flags.dataset, (*NAMES, *RECORDED))
        with use_backend(flags.backend):
            device = choose_device(flags.device, flags.backend)
            folder = Path(flags.pictures or Path(flags.model_path).parent / "evaluation")
            result, metrics = evaluate(
                flags.model_path,
                flags.dataset,
                flags.data_path,
                device,
                None if flags.no_pictures else folder,
            )
        print(json.dumps(result) if flags.json else _text(result, metrics))
        return 0

    return guarded(job)


def evaluate(
    model_path: str,
    dataset: str | None,
    data_path: str | None,
    device: torch.device,
    pictures: Path | None = None,
) -> tuple[dict[str, Any], Metrics]:
    """Test a checkpoint; return what `--json` prints, and the metrics.

    dataset, data_path: None takes those that the model was trained with. pictures: the folder for
    the pictures of `draw_network`; None draws none.
    """
    trained = load_trained(model_path, device)
    data = _load(trained, dataset or trained.dataset, data_path or trained.config.data_path)
    recorded = isinstance(data, EventData)  # whose frames take much more memory than pictures
    size = trained.config.training.batch_size if recorded else BATCH
    torch.manual_seed(trained.config.seed)
    evaluation, answers, truth = Evaluation("test", device), [], []
    with torch.inference_mode():
        for images, *lengths, labels in Batches(data.test, size, device=device):
            own = {"lengths": lengths[0]} if lengths else {}
            scores, activity = trained.model(images, return_activity=True, **own)
            loss = torch.nn.functional.cross_entropy(scores, labels)
            evaluation.add(loss, scores, labels, activity, own.get("lengths"))
            answers.append(scores)
            truth.append(labels)
        first = next(iter(Batches(data.test, size if recorded else COUNTED, device=device)))
        operations = count_operations(trained.model, *first[:-1])
    metrics = evaluation.read()
    energy = {
        "macs": operations.macs,
        "acs": operations.acs,
        "nanojoules": operations.nanojoules,
        "dense_nanojoules": operations.dense_nanojoules,
    }
    result = {
        "model": model_path,
        "data": data.note,
        "classes": list(trained.classes),
        **metrics,
        "calibration": {
            "fitted": "temperature" in trained.checkpoint,
            **calibration(torch.cat(answers), torch.cat(truth), trained.temperature),
        },
        "a_picture": energy,
    }
    if pictures is not None:
        result["pictures"] = _draw(pictures, trained, [first], metrics)
    return result, metrics


def _load(trained: Trained, name: str, data_path: str) -> DigitData | EventData:
    """Read the data set. Raises ConfigError for one that the network cannot take."""
    recorded = trained.model.encoding == "none"
    if (name in RECORDED) != recorded:
        learnt, these = ("recordings", "pictures") if recorded else ("pictures", "recordings")
        raise ConfigError(
            f"--dataset: {name} has {these}, and the network was trained on {learnt} "
            f"({trained.dataset})"
        )
    if recorded:
        return load_recordings(name, data_path, **trained.config.events.model_dump())
    own = name == "folder"
    options = trained.config.folder_options()
    data = load_folder(data_path, **options) if own else load(name, data_path)
    seen, wanted = data.test.shape, trained.config.picture
    if seen != wanted:
        raise ConfigError(
            f"--dataset: the pictures of {name} are {_by(seen)}, and the network learnt from "
            f"{_by(wanted)} ({trained.dataset})"
        )
    if own and trained.dataset == "folder" and data.classes != trained.classes:
        raise ConfigError(
            f"--data_path: the classes in {data_path} are {', '.join(data.classes)}, and those of "
            f"the network {', '.join(trained.classes)}: give a folder with these"
        )
    return data


def _by(shape: tuple[int, int, int]) -> str:
    """Return channels, height and width in words."""
    channels, height, width = shape
    return f"{height} x {width} with {channels} channels" if channels > 1 else f"{height} x {width}"


def _draw(folder: Path, trained: Trained, batches: BatchSource, metrics: Metrics) -> list[str]:
    """Draw the pictures and return their paths: none if that fails, which costs no result."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_network(folder, trained.model, batches, metrics.confusion, trained.classes)
        return [str(path) for path in drawn]
    except MissingDependencyError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    except OSError as error:
        taken = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "it is not a folder" if taken else error.strerror or error
        print(
            f"no pictures: cannot write them into {folder}: {reason}; give another --pictures",
            file=sys.stderr,
        )
    return []


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Test a trained network on the test pictures of a data set: accuracy by class with the "
        "confusion matrix, how its neurons fire, operations and estimated energy per picture.",
        usage=f"{prog} [--model_path FILE] [--KEY VALUE ...]",
    )
    parser.add_argument(
        "--model_path", metavar="FILE", default=MODEL, help="trained model (default: %(default)s)"
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="mnist, fashion_mnist, kmnist, digits, cifar10 or folder, of a network of recordings "
        "shd, nmnist or dvs_gesture (default: the one it was trained on)",
    )
    parser.add_argument(
        "--data_path",
        metavar="DIR",
        help="folder of the data sets, or of the pictures of dataset folder (default: the one it "
        "was trained from)",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="folder of the pictures it draws (default: evaluation, beside the model)",
    )
    parser.add_argument("--no_pictures", action="store_true", help="draw none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_backend(parser)
    add_device(parser)
    return parser


def _text(result: dict[str, Any], metrics: Metrics) -> str:
    # A note begins with the name of the data set.
    kind = "recording" if result["data"].startswith(RECORDED) else "picture"
    lines = [result["data"], *_table(result["classes"], metrics, kind)]
    for name, layer in metrics.activity.items():
        lines.append(
            f"{name}: {layer.rate:.4f} spikes per neuron and time step, {layer.dead:.1%} of the "
            f"neurons dead, {layer.saturated:.1%} saturated"
        )
    dead = many_dead(metrics.activity, f"any test {kind}")
    if dead is not None:
        lines.append(dead)
    energy = result["a_picture"]
    lines.append(
        f"per {kind} {energy['macs']:,.0f} multiplications and {energy['acs']:,.0f} additions, "
        f"estimated at {energy['nanojoules']:,.0f} nJ on a chip of 45 nm; a network of the same "
        f"layers without spikes, run once: {energy['dense_nanojoules']:,.0f} nJ"
    )
    found = result["calibration"]
    fitted = (
        f"with the temperature {found['temperature']:.3g} of the validation; by "
        f"{found['uncalibrated_ece']:.2%} without"
        if found["fitted"]
        else "without a temperature: none was fitted to a validation"
    )
    lines.append(
        f"confidence and share of right answers differ by {found['ece']:.2%} on average (ECE, "
        f"{BINS} bins), {fitted}"
    )
    if result.get("pictures"):
        lines.append(f"pictures in {Path(result['pictures'][0]).parent}")
    lines.append(f"loss {metrics.loss:.4f}, {metrics.samples_per_second:,.0f} samples/s")
    lines.append(f"test accuracy: {metrics.accuracy:.2%}")
    return "\n".join(lines)


def _table(classes: Sequence[str], metrics: Metrics, kind: str) -> list[str]:
    """Return the confusion matrix as lines; classes with long names are numbered in its columns."""
    heads, labels, by = list(classes), list(classes), "by what was answered (column)"
    if max(map(_cells, classes)) > COLUMN:
        by = "by the number of what was answered (column)"
        heads = [str(number) for number in range(len(classes))]
        labels = [f"{number:>{len(heads[-1])}} {name}" for number, name in enumerate(classes)]
    wide = max(len("label"), *map(_cells, labels))
    counts = [str(n) for row in metrics.confusion for n in row]
    width = max(map(_cells, (*heads, *counts)))
    lines = [f"{kind}s that show a label (row), {by}:"]
    lines.append(f"{'label':{wide}}  accuracy  " + " ".join(_padded(one, width) for one in heads))
    rows = zip(labels, metrics.confusion, metrics.class_accuracy, strict=True)
    for label, row, share in rows:
        shown = "      -" if share is None else f"{share:7.2%}"
        # Numbered labels are aligned on the left, by their numbers, and names on the right.
        name = _padded(label, wide, left=labels != heads)
        lines.append(f"{name}  {shown:>8}  " + " ".join(f"{n:{width}}" for n in row))
    return lines


def _padded(text: str, width: int, *, left: bool = False) -> str:
    """Pad a text with spaces to `width` cells; left: align it on the left."""
    space = " " * (width - _cells(text))
    return text + space if left else space + text


def _cells(text: str) -> int:
    """Return the cells of a terminal that a text takes: two per wide sign, none for accents."""
    marks = sum(bool(unicodedata.combining(sign)) for sign in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)


if __name__ == "__main__":
    raise SystemExit(main())
