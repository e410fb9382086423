"""From a picture file to the digit: every kind of page shows the network what a plain page does."""

import io
import sys

import numpy as np
import pytest
import torch
from mnist import mnist_root
from PIL import Image, ImageDraw, ImageOps

from benchmarks import pages
from neurospike.data import load
from neurospike.errors import PictureError
from neurospike.pictures import read_picture, suffixes
from neurospike.pictures.framing import framed


def file_of(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(image, kind="PNG", ink="auto", **options):
    """The intensities and the note of a picture of this name."""
    return read_picture("p", ink, content=file_of(image, kind, **options))


def seven(paper=255, ink=0, size=(280, 280), shift=(0, 0), scale=1.0):
    """A 7 about a third of the page wide."""
    image = Image.new("L", size, paper)
    corners = [(95, 75), (185, 75), (120, 215)]
    middle = (140, 145)
    line = [
        tuple(m + scale * (c - m) + d for c, m, d in zip(corner, middle, shift))
        for corner in corners
    ]
    ImageDraw.Draw(image).line(line, fill=ink, width=max(1, round(20 * scale)), joint="curve")
    return image


PLAIN = read(seven())[0]


def alike(picture, wanted=PLAIN):
    """The correlation of two pictures, 1 for the same shape at the same place."""
    return float(torch.corrcoef(torch.stack([picture.flatten(), wanted.flatten()]))[0, 1])


def is_framed(picture):
    inked = picture > 0.2
    longest = max(int(inked.any(side).sum()) for side in (0, 1))
    return 18 <= longest <= 20 and picture.max() == 1 and picture.min() == 0


# Pages


@pytest.mark.parametrize("kind", [kind for kind in pages.KINDS if "original" not in kind])
def test_every_kind_of_page_of_the_benchmark(kind):
    digit = load("digits", "unused").test.images[2].numpy().reshape(28, 28).astype(np.float32) / 255
    wanted = read_picture("p", content=pages.plain(digit, np.random.default_rng(0)))[0]
    picture, _ = read_picture("p", content=pages.KINDS[kind](digit, np.random.default_rng(2)))
    # Turned, thinned or blurred digits are less alike; a wrong shape is below 0.3.
    assert alike(picture, wanted) > 0.6


@pytest.mark.parametrize("sides", range(1, 16))
@pytest.mark.parametrize("wide", [1, 12])
def test_a_dark_edge_on_any_sides_is_no_ink(sides, wide):
    left, top, right, bottom = (wide * (sides >> side & 1) for side in range(4))
    image = ImageOps.expand(seven(), (left, top, right, bottom), fill=20)
    picture, note = read(image, ink="dark" if sides == 15 else "auto")
    assert alike(picture) > 0.99 and note is None


def test_a_single_dark_pixel_does_not_move_the_frame():
    for at in ((3, 3), (276, 3), (10, 140), (270, 275)):
        image = seven()
        image.putpixel(at, 0)
        assert alike(read(image)[0]) > 0.99


@pytest.mark.parametrize("level", [0.9, 0.75, 0.6, 0.45])
@pytest.mark.parametrize("side", [28, 29, 56])
def test_a_photograph_made_small_is_stretched_whatever_its_size(level, side):
    image = seven(round(255 * level), 60).resize((side, side), Image.Resampling.BICUBIC)
    picture, _ = read(image)
    assert is_framed(picture)
    assert picture[0].max() == 0
    assert alike(picture) > 0.9


@pytest.mark.parametrize("edge", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("faint", [False, True])
@pytest.mark.parametrize("turn", [0, 1])
def test_light_that_falls_to_two_thirds(edge, faint, turn):
    along = np.linspace(0, 1, 280)
    light = 0.65 + 0.35 * ((along - 0.45) / edge + 0.5).clip(0, 1)
    page = np.rot90(np.asarray(seven(ink=200 if faint else 30)) * light, turn)
    picture, _ = read(np.rot90(page, -turn).round().astype(np.uint8))
    assert alike(picture) > 0.97
    picture, _ = read(page.round().astype(np.uint8))
    assert alike(picture.rot90(-turn)) > 0.9  # centred anew after a turn


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_paper_goes_on_where_a_card_ends_in_nothing(colour):
    card = seven()
    margin = Image.new("LA", (340, 360), (colour, 0))
    margin.paste(Image.merge("LA", (card, Image.new("L", card.size, 255))), (30, 50))
    corners = Image.new("L", card.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle([0, 0, 279, 279], 40, fill=255)
    for image in (margin, Image.merge("LA", (card, corners))):
        assert alike(read(image)[0]) > 0.99
    chalk = seven(40, 230)
    assert alike(read(Image.merge("LA", (chalk, corners)))[0]) > 0.99


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16, 24, 31])
def test_more_than_8_bits_are_read_by_what_is_used(bits):
    page = np.asarray(seven()).astype(np.int64) * (2**bits - 1) // 255
    small = np.asarray(Image.fromarray((PLAIN.numpy() * 255).astype(np.uint8))).astype(np.int64)
    small = small * (2**bits - 1) // 255
    for kind, name in ((np.uint16, "PNG"), (np.int32, "TIFF")):
        if bits > 16 and kind is np.uint16:
            continue
        assert alike(read(page.astype(kind), name)[0]) > 0.999
        torch.testing.assert_close(read(small.astype(kind), name)[0], PLAIN, rtol=0, atol=0.01)
    pages_of_floats = page.astype(np.float32) / 3 - 2**bits / 5
    assert alike(read(pages_of_floats, "TIFF")[0]) > 0.999


def test_small_and_in_a_corner():
    for shift in ((-90, -100), (100, -100), (-90, 80), (100, 80)):
        picture, note = read(seven(size=(280, 280), shift=shift, scale=0.2))
        assert is_framed(picture) and alike(picture) > 0.85 and note is None


def test_lines_of_the_paper_are_left_out():
    image = seven(ink=20)
    lined = Image.new("L", image.size, 255)
    pen = ImageDraw.Draw(lined)
    for k in range(0, 280, 16):
        pen.line([(0, k + 4), (280, k)], fill=190)
        pen.line([(k, 0), (k + 4, 280)], fill=190)
    image = Image.fromarray(np.minimum(np.asarray(image), np.asarray(lined)))
    assert alike(read(image)[0]) > 0.97


def test_mnists_own_files_get_the_bits_of_training():
    root = mnist_root()
    if root is None:
        pytest.skip("MNIST is not here; tests/mnist.py says where it is looked for")
    images = load("mnist", root, download=False).test.images[:200].reshape(-1, 28, 28)
    for image in images:
        assert torch.equal(read(image.numpy())[0], image.float() / 255)
        assert torch.equal(read(image.numpy(), ink="light")[0], image.float() / 255)
        negative = read(255 - image.numpy())[0]
        torch.testing.assert_close(negative, image.float() / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dataset", ["digits", "kmnist", "fashion_mnist"])
def test_pictures_of_other_data_sets_are_taken_as_they_are(dataset):
    picture = np.zeros((28, 28), np.uint8)
    picture[1:27, 6:22] = np.arange(26 * 16).reshape(26, 16) % 200 + 50
    read_ = read_picture("p", "auto", dataset, content=file_of(picture))[0]
    assert torch.equal(read_, torch.from_numpy(picture).float() / 255)
    page = Image.new("L", (200, 220), 240)
    page.paste(90, (60, 20, 130, 200))  # a thing wider than any stroke
    framed = read_picture("p", "auto", "fashion_mnist", content=file_of(page))[0]
    assert int((framed[:, 14] > 0.5).sum()) == 28


def test_whatever_is_shown_it_is_read_or_refused_in_words():
    draws = np.random.default_rng(0)
    for _ in range(80):
        shape = tuple(draws.integers(1, 90, 2))
        levels = draws.normal(128, draws.choice([0, 3, 60]), shape)
        for _ in range(draws.integers(0, 12)):
            top, left = (draws.integers(-5, side) for side in shape)
            down, across = draws.integers(1, 50, 2)
            levels[max(top, 0) : top + down, max(left, 0) : left + across] = draws.uniform(0, 255)
        ink = str(draws.choice(["auto", "light", "dark"]))
        dataset = str(draws.choice(["mnist", "digits", "fashion_mnist"]))
        content = file_of(levels.clip(0, 255).astype(np.uint8))
        try:
            picture, _ = read_picture("p", ink, dataset, content=content)
        except PictureError as error:
            assert str(error).startswith("p: ")
            continue
        assert picture.shape == (28, 28) and picture.dtype == torch.float32
        assert picture.min() >= 0 and 0 < picture.max() <= 1


# What is said


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (seven(ink=255), "blank: a digit on a background"),
        (ImageOps.expand(seven(ink=255), 8, fill=0), "only its edges differ"),
        (ImageOps.expand(seven(ink=255), (8, 0, 0, 0), fill=0), "only its edges differ"),
    ],
)
def test_what_cannot_be_read_says_why(image, said):
    with pytest.raises(PictureError, match=f"^p: {said}"):
        read(image)


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "kmnist"])
@pytest.mark.parametrize("ink", ["auto", "light", "dark"])
def test_a_blank_picture_of_the_training_pictures_size_is_told_as_any_other(dataset, ink):
    for shade in (0, 3, 252, 255):
        content = file_of(Image.new("L", (28, 28), shade))
        with pytest.raises(PictureError, match=r"^p: blank: "):
            read_picture("p", ink, dataset, content=content)


def test_specks_alone_and_grain_alone():
    page = np.full((300, 300), 250, np.uint8)
    page[40:44, 50:53] = page[200:203, 100:105] = 0
    with pytest.raises(PictureError, match=r"^p: only specks are on it"):
        read(page)
    grain = np.random.default_rng(0).normal(128, 20, (300, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(PictureError, match=r"nothing stands out from its grain|specks"):
        read(grain)


def test_what_makes_an_answer_doubtful_is_noted():
    assert read(seven())[1] is None
    two = Image.new("L", (560, 280), 255)
    two.paste(seven(), (0, 0))
    two.paste(seven(), (200, 0))
    assert read(two)[1] == "2 pieces of ink, of which the largest was read"
    joined = two.copy()
    ImageDraw.Draw(joined).line([(120, 215), (320, 215)], fill=0, width=20)
    assert "wider than a digit" in read(joined)[1]
    assert "touches the edge" in read(seven().crop((80, 65, 280, 205)))[1]
    assert "only" in read(seven().resize((16, 16)))[1]


def test_a_digit_lies_where_those_of_its_data_set_do():
    stroke = framed(np.ones((200, 1), np.float32), "mnist")  # scaled it would be of no width
    assert ((stroke > 0).any(0).sum(), (stroke > 0).any(1).sum()) == (1, 20)
    foot = np.full((20, 20), 0.01, np.float32)
    foot[19] = 1
    assert (
        framed(foot, "mnist").max(1).argmax() == 19
    )  # its mass would be the middle: it ends there
    flat = np.full((7, 28), 0.01, np.float32)
    flat[6] = 1
    assert framed(flat, "fashion").max(1).argmax() == 10 + 6  # its middle is, whatever its mass
    assert framed(flat[3:, ::4], "digits").max(1).argmax() == 22  # in the 7th row of 8


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_nothing_is_read_whether_it_is_black_or_white(ink):
    drawn = Image.new("LA", (280, 280), ink)
    drawn.putalpha(ImageOps.invert(seven()))
    picture, note = read(drawn)
    assert alike(picture) > 0.99
    assert note is None


def test_a_blank_first_frame_is_passed_over():
    blank = Image.new("L", (280, 280), 255)
    picture, note = read(blank, "GIF", save_all=True, append_images=[blank, seven()])
    # pillow writes equal frames of a GIF as one
    assert note in [f"frame {k} of {k}, the first on which there is a digit" for k in (2, 3)]
    assert alike(picture) > 0.99
    picture, note = read(blank, "TIFF", save_all=True, append_images=[seven(), blank])
    assert note == "frame 2 of 3, the first on which there is a digit"
    with pytest.raises(PictureError, match=r"^p: blank: .* \(so are the other 2 frames\)$"):
        read(blank, "TIFF", save_all=True, append_images=[blank, blank])


def test_heic_names_what_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(PictureError, match=r"^IMG_1\.HEIC: HEIC.* pip install pillow-heif"):
        read_picture("IMG_1.HEIC", content=content)
    assert ".heic" in suffixes()
