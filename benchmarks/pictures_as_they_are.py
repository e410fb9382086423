"""Digits on pictures as people have them: `python -m benchmarks.pictures_as_they_are`.

Draws the same hundred test digits of MNIST into each kind of picture in `pages.py`, reads the files
as `python -m neurospike.predict` does, and counts how many the network recognises. Each kind must
get at least 95% of what plain pictures get, and those at least 95% of all; exit code 1 if not.
`--out` writes `pictures.json`, from which the table in docs/prediction.md is made; `--sheets` draws
pages with what the network sees of each, those not recognised first, in a white frame.

Without `--model_path` a network is trained first, by the default configuration: minutes.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from neurospike.data import load
from neurospike.errors import PictureError
from neurospike.pictures import SIZE, read_picture
from neurospike.training.loading import Trained, load_trained

from .pages import KINDS
from .timing import machine

LEAST = 0.95
COLUMNS, CELL = 12, 100  # of a sheet; its pixels


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code, 1 if a kind falls short."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures_as_they_are",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_path", help="a network trained on MNIST")
    parser.add_argument("--data_path", default="data", help="torchvision root that holds MNIST")
    parser.add_argument("--digits", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for pictures.json")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="folder for a sheet per kind")
    options = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        model = options.model_path
        if model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = train(folder, options.data_path)
        trained = load_trained(model)
    test = load("mnist", options.data_path, download=False).test
    which = np.random.default_rng(options.seed).choice(len(test), options.digits, replace=False)
    digits = test.images[torch.from_numpy(which)].float().div(255).reshape(-1, SIZE, SIZE).numpy()
    labels = test.labels[torch.from_numpy(which)]
    kinds: dict[str, dict[str, Any]] = {}
    for name in options.kinds:
        files = list(drawn(name, digits, options.seed))
        kinds[name] = row(trained, files, labels, name, options.sheets)
        print(f"{name:18} {kinds[name]['right']:4} of {len(files)}", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stored = {
            "machine": machine(),
            "readers": {name: metadata.version(name) for name in ("pillow", "scipy")},
            "seed": options.seed,
            "digits": len(digits),
            "model": model_line(trained),
            "kinds": kinds,
        }
        path = options.out / "pictures.json"
        path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    short = fallen_short(kinds, len(digits))
    print(f"fall short: {', '.join(short)}" if short else "no kind falls short")
    return int(bool(short))


def train(folder: str, data_path: str) -> str:
    """Train by the default configuration on MNIST; the path of the best model."""
    command = [sys.executable, "-m", "neurospike.train", "--dataset", "mnist"]
    command += ["--data_path", str(Path(data_path).resolve()), "--run_dir", f"{folder}/run"]
    subprocess.run(command, check=True, cwd=folder)
    return f"{folder}/checkpoints/best_model.pth"


def drawn(name: str, digits: np.ndarray, seed: int) -> Iterator[bytes]:
    """Draw a picture file of this kind for each digit `[28, 28]`; the same for the same seed."""
    draws = np.random.default_rng([seed, *name.encode()])
    for digit in digits:
        yield KINDS[name](digit, draws)


def row(
    trained: Trained, files: list[bytes], labels: Tensor, name: str, sheets: Path | None
) -> dict[str, Any]:
    """Return what was read of the files of a kind: how many right, refused and with a note."""
    seen, refused, noted = [], 0, 0
    for content in files:
        try:
            picture, note = read_picture(name, dataset=trained.dataset, content=content)
        except PictureError:
            picture, note = torch.zeros(SIZE, SIZE), None
            refused += 1
        seen.append(picture)
        noted += note is not None
    with torch.inference_mode():
        answers = trained.model(torch.stack(seen)[:, None]).argmax(1)
    right = answers == labels
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        sheet(files, seen, right.tolist()).save(sheets / f"{name}.png")
    return {
        "about": " ".join((KINDS[name].__doc__ or "").split()),
        "right": int(right.sum()),
        "refused": refused,
        "noted": noted,
    }


def fallen_short(kinds: dict[str, dict[str, Any]], digits: int) -> list[str]:
    """Return the kinds that get less than they must."""
    plain = kinds["plain"]["right"] if "plain" in kinds else digits
    short = [name for name, one in kinds.items() if one["right"] < LEAST * plain]
    return (["plain"] if plain < LEAST * digits else []) + short


def model_line(trained: Trained) -> str:
    """Return what network answered, in words."""
    config = trained.config
    return f"{config.model.kind}, {trained.dataset}, seed {config.seed}"


def sheet(files: list[bytes], seen: list[Tensor], right: list[bool]) -> Image.Image:
    """Draw pages above what the network sees of them, the wrong ones first and framed."""
    order = sorted(range(len(files)), key=right.__getitem__)[: 4 * COLUMNS]
    canvas = Image.new("L", (COLUMNS * CELL, 8 * CELL), 128)
    for place, k in enumerate(order):
        left, top = place % COLUMNS * CELL, place // COLUMNS * 2 * CELL
        page = shown(Image.open(io.BytesIO(files[k])))
        page.thumbnail((CELL - 2, CELL - 2))
        canvas.paste(page, (left, top))
        levels = (seen[k].numpy() * 255).round().astype(np.uint8)
        small = Image.fromarray(levels).resize((3 * SIZE, 3 * SIZE), Image.Resampling.NEAREST)
        canvas.paste(small if right[k] else ImageOps.expand(small, 4, 255), (left, top + CELL))
    return canvas


def shown(image: Image.Image) -> Image.Image:
    """Return the picture in 8 bits of grey, a darker grey where it is transparent."""
    if image.mode[0] in "IF":
        values = np.asarray(image).astype(float)
        levels = (values - values.min()) / max(np.ptp(values), 1e-9)
        return Image.fromarray((levels * 255).astype(np.uint8))
    if "A" in image.mode:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "slategrey"), image)
    return image.convert("L")


if __name__ == "__main__":
    raise SystemExit(main())
