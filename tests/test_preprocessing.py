"""Preprocessing: each step against what it means, and how it refuses."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from neurospike import SNNModel
from neurospike.config import load_config
from neurospike.config.steps import NAMES, parse_steps, range_after
from neurospike.data import Preprocessing
from neurospike.errors import ConfigError, MissingDependencyError

ROOT = Path(__file__).parents[1]
RANDOM = ["affine", "elastic", "noise", {"kind": "crop", "size": 9}]


def pictures(count=4, height=12, width=12):
    return torch.rand(count, 1, height, width)


def blob(row, column, size=21):
    """A soft spot, so that where it is can be measured to a fraction of a pixel."""
    y, x = torch.arange(size)[:, None], torch.arange(size)
    return (-((y - row) ** 2 + (x - column) ** 2) / 8.0).exp().view(1, 1, size, size)


def centre(image):
    """Row and column of the centre of mass."""
    weight = image / image.sum()
    y, x = torch.arange(image.shape[0])[:, None], torch.arange(image.shape[1])
    return float((weight * y).sum()), float((weight * x).sum())


def slant(image):
    """Columns a row that the picture leans by."""
    row, column = centre(image)
    y, x = torch.arange(image.shape[0])[:, None] - row, torch.arange(image.shape[1]) - column
    return float((image * y * x).sum() / (image * y * y).sum())


def test_no_steps_change_nothing():
    images = pictures()
    assert Preprocessing()(images) is images


def test_fixed_steps_are_torchvisions_and_come_in_order():
    images = pictures()
    prepared = Preprocessing([{"kind": "resize", "size": [6, 8]}, "invert", "normalize"])(images)
    wanted = v2.functional.resize(images, [6, 8], antialias=True)
    wanted = v2.functional.normalize(1 - wanted, [0.1307], [0.3081])
    assert torch.allclose(prepared, wanted, atol=1e-6)


@pytest.mark.parametrize("step", RANDOM)
def test_random_steps_are_off_in_evaluation(step):
    images = pictures()
    prepared = Preprocessing([step]).eval()(images)
    wanted = images[..., 1:10, 1:10] if isinstance(step, dict) else images
    assert torch.equal(prepared, wanted)


@pytest.mark.parametrize("step", RANDOM)
def test_random_steps_follow_the_seed_and_differ_between_pictures(step):
    images, prepare = pictures(1).expand(6, 1, 12, 12), Preprocessing([step])
    torch.manual_seed(5)
    first = prepare(images)
    second = prepare(images)
    torch.manual_seed(5)
    assert torch.equal(first, prepare(images))
    assert not torch.equal(first, second)
    assert len({tuple(picture.flatten().tolist()) for picture in first}) > 1


@pytest.mark.parametrize("step", [*NAMES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_keep_format_range_and_empty_batches(step, dtype):
    options = {"size": 8} if step in ("resize", "crop") else {}
    prepare = Preprocessing([{"kind": step, **options}])
    prepared = prepare(pictures().to(dtype))
    assert prepared.dtype == dtype
    assert prepare.size(12, 12) == tuple(prepared.shape[2:])
    if step != "normalize":
        assert float(prepared.min()) >= 0
        assert float(prepared.max()) <= 1
    assert prepare(pictures(0).to(dtype)).shape == (0, *prepared.shape[1:])


def test_random_crops_are_windows_of_the_padded_picture():
    images = pictures(40, 5, 6)
    crops = Preprocessing([{"kind": "crop", "size": [4, 3], "padding": 1}])(images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    places = set()
    for picture, crop in zip(padded, crops):
        fits = [
            (top, left)
            for top in range(4)
            for left in range(6)
            if torch.equal(picture[:, top : top + 4, left : left + 3], crop)
        ]
        assert fits
        places.add(fits[0])
    assert len(places) > 10


def test_affine_draws_lie_within_its_limits():
    prepare = Preprocessing(
        [{"kind": "affine", "degrees": 0, "translate": 0.2, "scale": 0, "shear": 0}]
    )
    moved = [centre(image[0]) for image in prepare(blob(10, 10).expand(200, 1, 21, 21))]
    for axis in (0, 1):
        offsets = [place[axis] - 10 for place in moved]
        assert max(map(abs, offsets)) < 0.2 * 21 + 0.05
        assert min(offsets) < -3 < 3 < max(offsets)


def test_affine_turns_about_the_middle_by_an_angle_within_its_limit():
    prepare = Preprocessing(
        [{"kind": "affine", "degrees": 30, "translate": 0, "scale": 0, "shear": 0}]
    )
    for height, width in ((21, 21), (21, 33)):
        image = torch.zeros(1, 1, height, width)
        image[..., :21, 6:27] = blob(10, 15) if width == 33 else 0
        if width == 21:
            image = blob(10, 15)
        middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
        start_row, start_column = centre(image[0, 0])
        radius = math.hypot(start_row - middle_row, start_column - middle_column)
        angles = []
        for turned in prepare(image.expand(100, 1, height, width)):
            row, column = centre(turned[0])
            assert math.hypot(row - middle_row, column - middle_column) == pytest.approx(
                radius, abs=0.15
            )
            angles.append(math.degrees(math.atan2(row - middle_row, column - middle_column)))
        assert max(map(abs, angles)) < 31
        assert min(angles) < -20 < 20 < max(angles)


def test_affine_scales_and_shears():
    torch.manual_seed(0)
    square = torch.zeros(1, 1, 41, 41)
    square[..., 13:28, 13:28] = 1
    zoom = Preprocessing(
        [{"kind": "affine", "degrees": 0, "translate": 0, "scale": 0.2, "shear": 0}]
    )
    areas = zoom(square.expand(200, 1, 41, 41)).sum((1, 2, 3)) / square.sum()
    assert 0.8**2 - 0.02 < areas.min() < 0.7
    assert 1.35 < areas.max() < 1.2**2 + 0.02
    shear = Preprocessing(
        [{"kind": "affine", "degrees": 0, "translate": 0, "scale": 0, "shear": 20}]
    )
    slants = [slant(image[0]) for image in shear(square.expand(100, 1, 41, 41))]
    assert 0.25 < max(map(abs, slants)) < math.tan(math.radians(20)) + 0.01


def test_elastic_moves_each_place_by_about_alpha_pixels():
    torch.manual_seed(0)
    spots = blob(16, 16, 33).expand(300, 1, 33, 33)
    moved = Preprocessing([{"kind": "elastic", "alpha": 1.5, "sigma": 8}])(spots)
    offsets = torch.tensor([centre(image[0]) for image in moved]) - 16
    assert 0.9 < float(offsets.std()) < 2.0
    still = Preprocessing([{"kind": "elastic", "alpha": 0}])(spots[:2])
    assert torch.allclose(still, spots[:2], atol=1e-5)


def test_noise_has_its_deviation_and_is_clamped():
    grey = torch.full((10, 1, 50, 50), 0.5)
    noisy = Preprocessing([{"kind": "noise", "std": 0.1}])(grey)
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.05)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.005)
    loud = Preprocessing([{"kind": "noise", "std": 5.0}])(grey)
    assert (float(loud.min()), float(loud.max())) == (0.0, 1.0)


@pytest.mark.parametrize("lean", [-0.4, 0.0, 0.3])
def test_deskew_sets_a_leaning_stroke_upright(lean):
    y, x = torch.arange(28)[:, None], torch.arange(28)
    image = (-((x - 14 - lean * (y - 14)) ** 2) / 4.0).exp() * ((y > 5) & (y < 23))
    upright = Preprocessing(["deskew"])(image.view(1, 1, 28, 28))[0, 0]
    assert slant(image) == pytest.approx(lean, abs=0.02)
    assert slant(upright) == pytest.approx(0, abs=0.02)
    assert centre(upright) == pytest.approx(centre(image), abs=0.1)


def test_deskew_leaves_empty_and_flat_pictures_alone():
    images = torch.zeros(2, 1, 10, 10)
    images[1, 0, 5] = 1
    assert torch.allclose(Preprocessing(["deskew"])(images), images, atol=1e-5)


# Configuration


def test_steps_from_yaml_reach_the_network(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "preprocessing:\n  - deskew\n  - {kind: affine, degrees: 12}\n"
        "  - {kind: resize, size: 14}\nmodel: {input_size: 196}\n",
        encoding="utf-8",
    )
    config = load_config(path)
    model = SNNModel(**config.network_arguments())
    assert [step.kind for step in model.preprocessing.steps] == ["deskew", "affine", "resize"]
    assert model.preprocessing.steps[1].degrees == 12
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    answers, images = [], torch.rand(2, 1, 28, 28)
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        answers.append(model.train()(images))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert torch.equal(model.eval()(images), model(images))
    dumped = config.model_dump(mode="json")["preprocessing"]
    assert dumped[1] == {
        "kind": "affine",
        "degrees": 12.0,
        "translate": 0.08,
        "scale": 0.1,
        "shear": 5.0,
    }
    assert parse_steps(dumped) == config.preprocessing


def test_steps_from_the_command_line():
    config = load_config(
        ROOT / "config.yaml", {"preprocessing": "[deskew, {kind: noise, std: 0.2}]"}
    )
    assert [step.kind for step in config.preprocessing] == ["deskew", "noise"]
    assert (
        load_config(ROOT / "config.yaml", {"preprocessing": "deskew"}).preprocessing[0].kind
        == "deskew"
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[", "got '[', which is not YAML"),
        ("3", "got 3, wanted a list of steps: normalize"),
        ("[rotate]", "step 1: got 'rotate', wanted a kind of normalize"),
        ("[deskew, {degrees: 3}]", "step 2: got {'degrees': 3}, wanted a kind"),
        (
            "[{kind: affine, degrees: -1}]",
            "affine.degrees: got -1, allowed: a number >= 0 and <= 180",
        ),
        ("[{kind: affine, degrees: yes}]", "step 1, affine.degrees: got True, allowed: a number"),
        ("[{kind: affine, degree: 3}]", "affine.degree: no such option; did you mean degrees?"),
        ("[{kind: affine, angle: 3}]", "affine.angle: no such option; did you mean degrees?"),
        ("[{kind: noise, mean: 3}]", "noise.mean: no such option; its options are std"),
        ("[{kind: deskew, size: 3}]", "deskew.size: no such option; it has no options"),
        (
            "[{kind: resize}]",
            "resize.size is missing, wanted: 1 to 4096 pixels, or [height, width]",
        ),
        ("[{kind: resize, size: 5000}]", "resize.size: got 5000, allowed: 1 to 4096 pixels"),
        ("[{kind: normalize, std: 0}]", "step 1, normalize.std: got 0, allowed: a number > 0"),
        ("[{kind: normalize, std: 1.0e-300}]", "a number > 0, 1.2e-38 to 3.4e+38, as float32"),
        ("[{kind: normalize, mean: 1.0e+300}]", "a number, 1.2e-38 to 3.4e+38, as float32 holds"),
        ("[{kind: noise, std: .inf}]", "step 1, noise.std: got inf, allowed: a number >= 0"),
    ],
)
def test_wrong_steps_are_named(steps, message):
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "config.yaml", {"preprocessing": steps})
    assert str(caught.value).startswith("--preprocessing: ")
    assert message in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        Preprocessing(steps)


@pytest.mark.parametrize("sigma", [0.1, 5, 20])
@pytest.mark.parametrize("sides", [(1, 1), (5, 5), (28, 28), (4, 30), (30, 4)])
def test_elastic_takes_any_blur_on_any_picture(sides, sigma):
    bent = Preprocessing([{"kind": "elastic", "sigma": sigma}])(torch.rand(2, 1, *sides))
    assert bent.shape == (2, 1, *sides)
    assert bent.isfinite().all()


STEPS = {"resize": {"size": [9, 7]}, "crop": {"size": 8, "padding": 1}, "normalize": {"mean": 0.5}}


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_size_and_range_are_known_before_a_picture_is_seen(first, second):
    prepare = Preprocessing([{"kind": name, **STEPS.get(name, {})} for name in (first, second)])
    low, high = range_after(prepare.steps)
    images = pictures()
    images[0, 0, :2], images[1, 0, :2] = 0, 1
    for training in (True, False):
        prepared = prepare.train(training)(images)
        assert prepared.shape[2:] == prepare.size(12, 12)
        assert low - 1e-5 <= float(prepared.min()) <= float(prepared.max()) <= high + 1e-5
    # And no wider than need be: without noise, which is off in evaluation, some pixel is there.
    if "noise" not in (first, second):
        assert float(prepared.min()) == pytest.approx(low, abs=0.35 * (high - low))
        assert float(prepared.max()) == pytest.approx(high, abs=0.35 * (high - low))


@pytest.mark.parametrize("kind", ["latency", "phase", "burst"])
@pytest.mark.parametrize(
    ("steps", "fits"),
    [
        ("[normalize]", False),
        ("[normalize, noise]", False),
        ("[noise, normalize]", False),
        ("[{kind: normalize, mean: 0, std: 0.5}]", False),
        ("[{kind: normalize, mean: 0.5, std: 1}]", False),
        ("[{kind: normalize, mean: 0, std: 2}, invert, invert]", True),
        ("[invert, noise, elastic, affine, deskew]", True),
    ],
)
def test_what_leaves_0_to_1_is_refused_where_the_code_needs_it(kind, steps, fits):
    asked = {"preprocessing": steps, "encoding.kind": kind}
    if fits:
        model = SNNModel(**load_config(ROOT / "config.yaml", asked).network_arguments())
        for training in (True, False):
            assert model.train(training)(torch.rand(2, 1, 28, 28)).isfinite().all()
        return
    with pytest.raises(
        ConfigError, match=rf"encoding.kind {kind} takes pictures in \[0, 1\].*in \["
    ):
        load_config(ROOT / "config.yaml", asked)


@pytest.mark.parametrize("kind", ["constant", "rate", "delta"])
def test_other_codes_take_normalised_pictures(kind):
    config = load_config(
        ROOT / "config.yaml", {"preprocessing": "normalize", "encoding.kind": kind}
    )
    model = SNNModel(**config.network_arguments())
    assert model(torch.rand(2, 1, 28, 28)).isfinite().all()


def test_wrong_pictures_are_refused():
    with pytest.raises(ValueError, match=r"must be \[B, C, H, W\], got \(28, 28\): use"):
        Preprocessing(["deskew"])(torch.rand(28, 28))
    with pytest.raises(ValueError, match="cannot crop 30 x 30 out of 12 x 12 pixels"):
        Preprocessing([{"kind": "crop", "size": 30}])(pictures())


def test_without_torchvision_the_steps_that_need_it_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(MissingDependencyError, match="pip install torchvision"):
        Preprocessing(["normalize"])
    assert Preprocessing(["deskew"])(pictures()).shape == (4, 1, 12, 12)
