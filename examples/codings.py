"""Every coding of one picture: how bright pixels become spikes, as rasters and as numbers.

`python examples/codings.py [FOLDER]` draws a picture a coding into the folder.
"""

import sys
from pathlib import Path

import torch

import neurospike as ns
from neurospike.data import load

NUM_STEPS = 25
CODINGS = ("constant", "rate", "latency", "delta", "phase", "burst", "rows", "pixels")


def encode(image, coding):
    """A picture `[H, W]` as its coding over time, `[T, H*W]`; of one that is read, `[T, part]`."""
    torch.manual_seed(0)  # rate coding draws
    if coding == "rows":
        return ns.encoding.rows(image[None])[:, 0]
    if coding == "pixels":
        return ns.encoding.pixels(image[None], permute=1)[:, 0]
    return getattr(ns.encoding, coding)(image.flatten()[None], NUM_STEPS)[:, 0]


def digit():
    """A real eight of the bundled digits, `[28, 28]` in 0 to 1."""
    test = load("digits", "data").test
    return test.images[int((test.labels == 8).nonzero()[0])].float() / 255


def main(folder=None):
    """Draw each coding into `folder`; return what the coding puts out, by name."""
    image = digit()
    codes = {coding: encode(image, coding) for coding in CODINGS}
    for coding, code in codes.items():
        if folder is not None:
            figure, _ = ns.SpikeVisualizer(dpi=90).plot_input_encoding(image, code, title=coding)
            figure.savefig(Path(folder) / f"{coding}.png")
    return codes


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "codings")
    folder.mkdir(parents=True, exist_ok=True)
    for coding, code in main(folder).items():
        a_pixel = code.sum(0)
        print(f"{coding:9}{int(code.sum()):6} in {len(code)} steps, {a_pixel.max():5.1f} at most")
    print(f"pictures in {folder}")
