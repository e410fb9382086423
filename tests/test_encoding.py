"""Constant, rate and latency coding against plain Python, and what every encoder does and refuses.

Delta, phase and burst coding have their own loops in test_codings.py.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neurospike.coding import encoding
from neurospike.coding.intensities import same_device

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1,), (3,), (0,), (2, 5), (2, 0), (3, 1, 4, 7)]
ENCODERS = [
    encoding.constant,
    encoding.rate,
    encoding.latency,
    encoding.delta,
    encoding.phase,
    encoding.burst,
]
every_encoder = pytest.mark.parametrize("encode", ENCODERS, ids=lambda encode: encode.__name__)


def intensities(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def latency_of_pixel(x, num_steps, curve, threshold, subthreshold, tau):
    """The step at which one pixel fires, or None: the docstring's formulas as they stand."""
    last = num_steps - 1
    if x <= threshold:
        return last if subthreshold == "last" else None
    if curve == "linear":
        time = last * (1 - x) / (1 - threshold)
    else:
        window = last if tau is None else tau
        time = window * (math.log(x / (x - threshold)) - math.log(1 / (1 - threshold)))
    return min(math.ceil(time - 0.5), last)


# What every encoder does


@every_encoder
@pytest.mark.filterwarnings("error")
def test_shapes_formats_and_layouts(encode):
    """Any shape comes out with T in front and in its own format, a view as its copy."""
    for shape in SHAPES:
        for num_steps in (1, 2, 25):
            for dtype in DTYPES:
                encoded = encode(intensities(*shape).to(dtype), num_steps)
                assert encoded.shape == (num_steps, *shape)
                assert encoded.dtype == dtype
    view = intensities(4, 6, 5).transpose(0, 2)
    torch.manual_seed(3)
    from_view = encode(view, 7)
    torch.manual_seed(3)
    assert torch.equal(from_view, encode(view.contiguous(), 7))


@every_encoder
def test_gradients_flow_through_the_constant_code_alone(encode):
    data = intensities(2, 3).requires_grad_()
    assert encode(data, 4).requires_grad == (encode is encoding.constant)


class Formats(TorchDispatchMode):
    """Notes the format of every tensor of more than `size` numbers that an operator returns."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.size:
                self.seen.add(tensor.dtype)
        return out


@every_encoder
def test_nothing_is_computed_in_float64(encode):
    """Which some devices, such as mps, do not have, and which takes twice the memory."""
    data = intensities(7, 9)
    with Formats(data.numel()) as formats:
        encode(data, 5)
    assert formats.seen
    assert torch.float64 not in formats.seen


@every_encoder
def test_whole_numbers_may_be_numpys(encode):
    data = intensities(2, 3)
    options = {
        encoding.phase: {"period": 3},
        encoding.burst: {"max_spikes": 3, "min_interval": 1, "max_interval": 4},
    }.get(encode, {})
    torch.manual_seed(3)
    wanted = encode(data, 5, **options)
    torch.manual_seed(3)
    found = encode(data, np.int64(5), **{key: np.int32(n) for key, n in options.items()})
    assert torch.equal(found, wanted)


@every_encoder
def test_errors_at_the_door_of_every_encoder(encode):
    data = intensities(2, 3)
    with pytest.raises(TypeError, match="divide by 255"):
        encode((data * 255).to(torch.uint8), 5)
    with pytest.raises(TypeError, match="floating-point"):
        encode(data > 0.5, 5)
    with pytest.raises(TypeError, match="floating-point"):
        encode(torch.complex(data, data), 5)
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        encode([0.5], 5)
    with pytest.raises(TypeError, match=r"nested tensor; pad it, as in torch.nested.to_padded"):
        encode(torch.nested.nested_tensor([data[0], data[1, :2]], layout=torch.jagged), 5)
    with pytest.raises(ValueError, match=r"\[B, \*F\]"):
        encode(torch.tensor(0.5), 5)
    # For delta no number of steps means a sequence.
    for steps in (True, 5.0, "5", *([] if encode is encoding.delta else [None])):
        with pytest.raises(TypeError, match="num_steps must be an int"):
            encode(data, steps)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
            encode(data, steps)


@every_encoder
def test_what_is_no_finite_number_is_refused(encode):
    for wrong in (math.nan, math.inf, -math.inf):
        for dtype in DTYPES:
            data = torch.tensor([[0.5, 0.25], [wrong, 0.1]], dtype=dtype)
            with pytest.raises(ValueError, match=rf"{encode.__name__} got"):
                encode(data, 5)
        if encode is encoding.delta:
            with pytest.raises(ValueError, match="NaN or infinity in 1 of 4 values; neurons wo"):
                encode(data)


@pytest.mark.parametrize("encode", [encoding.latency, encoding.phase, encoding.burst])
def test_intensities_out_of_range_are_refused(encode):
    for wrong in (-0.01, 1.01, 255.0):
        with pytest.raises(ValueError, match=rf"{encode.__name__} got .* lie in \[0, 1\].*clamp"):
            encode(torch.tensor([0.5, wrong]), 5)


def test_standardised_pictures_are_currents_and_probabilities():
    data = torch.tensor([-0.42, 0.5, 2.82, 30.0])
    assert torch.equal(encoding.constant(data, 2), data.expand(2, 4))
    assert encoding.rate(data, 2)[:, [0, 2, 3]].tolist() == [[0, 1, 1]] * 2
    assert encoding.delta(data, 2, threshold=0.2).shape == (2, 4)


@every_encoder
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_where_nothing_can_be_looked_at_nothing_is_refused(encode):
    """On the meta device and under vmap, where a check of the data would itself be an error."""
    assert encode(torch.empty(2, 3, device="meta"), 4).shape == (4, 2, 3)
    data = intensities(2, 5, 3)
    run = torch.func.vmap(lambda x: encode(x, 4), in_dims=1, out_dims=2, randomness="different")
    found = run(data)
    assert found.shape == (4, 2, 5, 3)
    if encode is not encoding.rate:
        assert torch.equal(found, encode(data, 4))


def test_the_module_needs_torch_only():
    # In a package without an __init__, so that this is about encoding.py and what it imports.
    program = """
import importlib, sys, types
from pathlib import Path
import torch
before = set(sys.modules)
package = types.ModuleType("neurospike")
package.__path__ = [str(Path(sys.argv[1]).parents[1])]
sys.modules["neurospike"] = package
importlib.import_module("neurospike.coding.encoding")
print(sorted(set(sys.modules) - before - set(sys.stdlib_module_names)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, encoding.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    names = ["", ".coding", ".coding.encoding", ".coding.intensities", ".coding.reading"]
    assert result.stdout.strip() == str([f"neurospike{name}" for name in names])


# Constant


def test_constant_copies_nothing_and_passes_gradients():
    data = intensities(2, 3).requires_grad_()
    current = encoding.constant(data, 5)
    assert current.data_ptr() == data.data_ptr()
    assert current.stride(0) == 0
    assert all(torch.equal(step, data) for step in current)
    current.sum().backward()
    assert torch.equal(data.grad, torch.full_like(data, 5))


# Rate


def test_rate_at_probability_zero_and_one(passes):
    for dtype in DTYPES:
        data = torch.tensor([0.0, 1.0], dtype=dtype).expand(5000, 2)
        spikes = encoding.rate(data, 20)
        assert spikes[..., 0].sum() == 0
        assert bool((spikes[..., 1] == 1).all())


@pytest.fixture(params=["two passes", "one"])
def passes(request, monkeypatch):
    """As on the CPU, and as on a GPU, where torch draws and compares in one kernel."""
    if request.param == "one":
        monkeypatch.setattr(encoding, "ONE_KERNEL", {"cpu"})
        monkeypatch.setattr(encoding, "_coder", lambda *_: None)
    return request.param


@pytest.mark.unpoisoned("filling what is to be written is one more pass")
def test_rate_in_one_pass_writes_nothing_else_as_long(monkeypatch):
    monkeypatch.setattr(encoding, "ONE_KERNEL", {"cpu"})
    data = torch.rand(4, 50).bfloat16()
    with torch.profiler.profile(record_shapes=True) as seen:
        spikes = encoding.rate(data, 20)
    assert spikes.dtype == torch.bfloat16
    long = [one.name for one in seen.events() if [20, 4, 50] in one.input_shapes]
    assert long == ["aten::bernoulli_"]


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_rate_is_mapped_by_vmap(randomness, passes):
    """It maps neither our compiled loops, nor the kernel in which a GPU draws and compares."""
    data = torch.rand(6, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    mapped = torch.vmap(lambda one: encoding.rate(one, 3000), out_dims=1, randomness=randomness)
    spikes = mapped(data)
    assert spikes.shape == (3000, *data.shape)
    torch.testing.assert_close(spikes.mean(0), data, rtol=0, atol=0.06)
    alike = mapped(data[:1].expand(2, -1))
    assert torch.equal(alike[:, 0], alike[:, 1]) == (randomness == "same")


def test_rate_at_the_extreme_draws(monkeypatch):
    data = torch.tensor([0.0, 2.0**-24, 1.0])
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.zeros(size))
    assert encoding.rate(data, 1).tolist() == [[0, 1, 1]]
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.full(size, 1 - 2.0**-24))
    assert encoding.rate(data, 1).tolist() == [[0, 0, 1]]


def test_rate_is_the_probability(passes):
    data = torch.tensor([0.1, 0.5, 0.9])
    generator = torch.Generator().manual_seed(0)
    spikes = encoding.rate(data, 40_000, gain=0.5, offset=0.2, generator=generator)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    # Five standard errors of a mean of 40,000 draws.
    error = 5 * 0.5 / math.sqrt(40_000)
    torch.testing.assert_close(spikes.mean(0), 0.5 * data + 0.2, rtol=0, atol=error)
    # Steps and pixels are drawn independently: neighbours agree by chance only.
    both = (spikes[1:] * spikes[:-1]).mean(0)
    torch.testing.assert_close(both, (0.5 * data + 0.2) ** 2, rtol=0, atol=2 * error)
    pair = (spikes[:, 0] * spikes[:, 1]).mean()
    assert abs(float(pair) - 0.25 * 0.45) < error


def test_rate_clamps_what_gain_and_offset_drive_out_of_range(passes):
    data = torch.tensor([0.2, 0.8]).expand(100, 2)
    for gain, offset in ((10, -4), (1000, -500)):
        spikes = encoding.rate(data, 10, gain=gain, offset=offset)
        assert spikes[..., 0].sum() == 0
        assert bool((spikes[..., 1] == 1).all())


def test_rate_repeats_with_the_generator_in_every_dtype(passes):
    data = intensities(4, 50).round(decimals=1).half()

    def spikes(dtype, seed):
        generator = torch.Generator().manual_seed(seed)
        return encoding.rate(data.to(dtype), 10, generator=generator)

    first = spikes(torch.float32, 0)
    assert torch.equal(first, spikes(torch.float32, 0))
    assert torch.equal(first, spikes(torch.float16, 0).float())
    assert not torch.equal(first, spikes(torch.float32, 1))
    before = torch.get_rng_state()
    spikes(torch.float32, 0)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone


def test_pictures_of_0_to_255_are_refused_unless_gain_scales_them():
    data = intensities(4, 50)
    for gain in (1.0, 2.0):
        with pytest.raises(ValueError, match=r"rate got intensities from .*divide by 255, as in"):
            encoding.rate(data * 255, 5, gain=gain)
    torch.manual_seed(3)
    scaled = encoding.rate(data * 256, 5, gain=1 / 256)
    torch.manual_seed(3)
    assert torch.equal(scaled, encoding.rate(data, 5))


def test_errors_of_rate():
    data = intensities(2, 3)
    with pytest.raises(ValueError, match="gain=nan"):
        encoding.rate(data, 5, gain=math.nan)
    # The meta device stands for another device on machines with one.
    with pytest.raises(ValueError, match=r"generator on cpu for data on meta.*device='meta'"):
        encoding.rate(data.to("meta"), 5, generator=torch.Generator())
    with pytest.raises(TypeError, match=r"generator=3; it must be a torch.Generator, or None"):
        encoding.rate(data, 5, generator=3)


# Latency


@pytest.mark.parametrize(
    ("curve", "tau"), [("linear", None), ("logarithmic", None), ("logarithmic", 300.0)]
)
def test_latency_against_a_loop_over_pixels(curve, tau):
    """For both thresholds, what lies below them, four lengths and all formats."""
    for threshold in (0.01, 0.3):
        drawn = [intensities(100), intensities(30) * 2 * threshold, torch.tensor([0.0, 1.0])]
        for dtype in DTYPES:
            data = torch.cat(drawn).view(2, -1).to(dtype)
            for num_steps in (1, 2, 7, 100):
                for rest in ("silent", "last"):
                    spikes = encoding.latency(
                        data,
                        num_steps,
                        curve=curve,
                        threshold=threshold,
                        subthreshold=rest,
                        tau=tau,
                    )
                    wanted = torch.zeros(num_steps, data.numel(), dtype=dtype)
                    for pixel, x in enumerate(data.flatten().tolist()):
                        step = latency_of_pixel(x, num_steps, curve, threshold, rest, tau)
                        if step is not None:
                            wanted[step, pixel] = 1
                    assert torch.equal(spikes.flatten(1), wanted)


@pytest.mark.parametrize("curve", ["linear", "logarithmic"])
def test_latency_runs_from_the_first_step_to_the_last(curve):
    data = torch.tensor([1.0, 0.6, 0.35, 0.32, 0.3001, 0.3, 0.0])
    spikes = encoding.latency(data, 50, curve=curve, threshold=0.3)
    times = spikes.argmax(0).tolist()
    assert times[0] == 0
    assert times[:5] == sorted(times[:5])
    assert times[4] == 49
    assert spikes.sum(0).tolist() == [1] * 5 + [0] * 2


@pytest.mark.parametrize("count", [1, 4000])  # the latter by a kernel
def test_an_intensity_at_the_threshold_lies_below_it_however_short_the_time_constant(count):
    """The first edges of the code are then the threshold itself."""
    data = torch.full((count,), 0.25)
    options = {"curve": "logarithmic", "threshold": 0.25, "tau": 0.5}
    spikes = encoding.latency(data, 50, subthreshold="last", **options)
    assert spikes[49].all()
    assert spikes.sum() == count
    assert not encoding.latency(data, 50, **options).any()


@pytest.mark.parametrize("curve", ["linear", "logarithmic"])
def test_latency_of_a_sample_is_the_same_alone_and_in_any_batch(curve):
    data = intensities(9, 31) * torch.linspace(0.1, 1, 9)[:, None]
    whole = encoding.latency(data, 40, curve=curve)
    for index, sample in enumerate(data):
        assert torch.equal(encoding.latency(sample[None], 40, curve=curve)[:, 0], whole[:, index])


def test_latency_tells_256_grey_levels_apart_in_float16():
    # In float16 arithmetic (T - 1) * (1 - x) cannot name every step beyond 2048.
    grey = torch.arange(256, dtype=torch.float64) / 255
    spikes = encoding.latency(grey.half(), 4096, threshold=0.0, subthreshold="last")
    steps = spikes.float().argmax(0)
    wanted = [latency_of_pixel(x, 4096, "linear", 0.0, "last", None) for x in grey.half().tolist()]
    assert steps.tolist() == wanted


def test_latency_refuses_impossible_options():
    for options, message in (
        ({"curve": "log"}, "use 'linear' or 'logarithmic'"),
        ({"subthreshold": "first"}, "use 'silent' or 'last'"),
        ({"threshold": 1.0}, r"\[0, 1\)"),
        ({"threshold": -0.1}, r"\[0, 1\)"),
        ({"threshold": math.nan}, r"\[0, 1\)"),
        ({"threshold": 0.0, "curve": "logarithmic"}, r"\(0, 1\)"),
        ({"tau": 5.0}, "no time constant"),
        ({"tau": 0.0, "curve": "logarithmic"}, "positive and finite"),
        ({"tau": math.inf, "curve": "logarithmic"}, "positive and finite"),
        ({"tau": math.nan, "curve": "logarithmic"}, "positive and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            encoding.latency(intensities(2, 3), 5, **options)


def test_latency_tells_float64_intensities_apart_that_float32_cannot():
    data = torch.tensor([0.25, 0.25 + 1e-12], dtype=torch.float64)
    assert encoding.latency(data, 5, threshold=0.25).sum(0).tolist() == [0, 1]


@pytest.mark.parametrize("value", ["x", True, None])
@pytest.mark.parametrize(
    ("encode", "option"),
    [("rate", "gain"), ("rate", "offset"), ("latency", "threshold"), ("delta", "threshold")],
)
def test_options_that_are_no_numbers_are_refused_by_their_names(encode, option, value):
    with pytest.raises(TypeError, match=f"{encode} got {option}={value!r}; it must be a number"):
        getattr(encoding, encode)(intensities(2, 3), 5, **{option: value})
    with pytest.raises(TypeError, match="latency got tau='x'; it must be a number"):
        encoding.latency(intensities(2, 3), 5, curve="logarithmic", tau="x")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cuda:0", "cuda:1", False),
        ("cuda:1", "cuda:1", True),
        ("cuda", "cuda:1", True),
        ("cuda:1", "cuda", True),
        ("cpu", "cuda", False),
    ],
)
def test_a_device_is_the_same_whether_its_index_is_written_or_not(one, other, same):
    assert same_device(torch.device(one), torch.device(other)) is same


# Spikes in other formats


@pytest.mark.parametrize("encode", [encoding.rate, encoding.latency])
def test_spikes_are_the_same_in_every_format(encode):
    for shape in ((0,), (3,), (7, 5), (128, 784)):  # the last is drawn in a kernel
        data = intensities(*shape)
        torch.manual_seed(3)
        wanted = encode(data, 25)
        after = torch.get_rng_state()
        for dtype in (torch.bool, torch.uint8, torch.float16, torch.float64):
            torch.manual_seed(3)
            found = encode(data, 25, dtype=dtype)
            assert found.dtype == dtype
            assert torch.equal(found.float(), wanted)
            assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("encode", [encoding.rate, encoding.latency])
def test_formats_that_spikes_cannot_have(encode):
    for dtype in (torch.int64, torch.complex64, "uint8"):
        with pytest.raises(TypeError, match=r"got dtype=.*torch.bool, torch.uint8 or floating"):
            encode(intensities(2, 3), 4, dtype=dtype)


# Read part by part


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_read_from_top_to_bottom(dtype):
    data = intensities(3, 5, 4).to(dtype)
    read = encoding.rows(data)
    assert read.shape == (5, 3, 4)
    assert read.dtype == dtype
    for step in range(5):
        for sample in range(3):
            assert torch.equal(read[step, sample], data[sample, step])
    assert torch.equal(encoding.rows(data[:, None]), read)
    coloured = intensities(3, 2, 5, 4, seed=1).to(dtype)
    wide = encoding.rows(coloured)
    assert wide.shape == (5, 3, 8)
    assert torch.equal(wide[2, 1], torch.cat([coloured[1, 0, 2], coloured[1, 1, 2]]))
    assert encoding.rows(data[:0]).shape == (5, 0, 4)


@pytest.mark.parametrize("permute", [None, 0, 7])
def test_pixels_are_read_in_their_order_and_put_back_by_its_inverse(permute):
    data = intensities(2, 3, 4)
    read = encoding.pixels(data, permute=permute)
    order = encoding.pixel_order(12, permute)
    assert read.shape == (12, 2, 1)
    for step, pixel in enumerate(order.tolist()):
        assert torch.equal(read[step, :, 0], data.flatten(1)[:, pixel])
    back = read[order.argsort(), :, 0].T.unflatten(1, (3, 4))
    assert torch.equal(back, data)
    assert (order.tolist() == list(range(12))) == (permute is None)


def test_an_order_is_that_of_its_seed_in_every_process():
    assert encoding.pixel_order(10, 3).tolist() == [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]
    orders = {tuple(encoding.pixel_order(784, seed).tolist()) for seed in range(20)}
    assert len(orders) == 20
    torch.manual_seed(1)
    first = torch.rand(3)
    torch.manual_seed(1)
    encoding.pixel_order(784, 5)
    assert torch.equal(torch.rand(3), first)  # nobody else's numbers are drawn


@pytest.mark.parametrize("encode", [encoding.rows, encoding.pixels])
def test_what_is_read_hands_gradients_back(encode):
    data = intensities(2, 3, 4).requires_grad_()
    read = encode(data)
    weights = torch.arange(1.0, 1 + read.numel()).view_as(read)
    (read * weights).sum().backward()
    (wanted,) = torch.autograd.grad((encode(data) * weights).sum(), data)
    assert torch.equal(data.grad, wanted)
    assert sorted(data.grad.flatten().tolist()) == sorted(weights.flatten().tolist())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encoding.rows(torch.rand(2, 784)), ValueError, r"data.unflatten\(1, \(28, 28\)\)"),
        (lambda: encoding.rows(torch.rand(2, 0, 3)), ValueError, "with at least one row"),
        (lambda: encoding.rows(torch.ones(2, 3, 3, dtype=torch.uint8)), TypeError, "divide by 255"),
        (lambda: encoding.rows(torch.full((1, 2, 2), math.nan)), ValueError, "rows got NaN"),
        (lambda: encoding.pixels(torch.rand(5)), ValueError, "has no pixels: give"),
        (lambda: encoding.pixels(torch.rand(5, 0)), ValueError, "has no pixels: give"),
        (
            lambda: encoding.pixels(torch.full((1, 2), math.inf)),
            ValueError,
            "pixels got NaN or inf",
        ),
        (lambda: encoding.pixels(torch.rand(2, 3), permute=1.5), TypeError, "a seed, a whole numb"),
        (lambda: encoding.pixels(torch.rand(2, 3), permute=True), TypeError, "got True"),
        (lambda: encoding.pixels(torch.rand(2, 3), permute=-1), ValueError, "got -1"),
        (lambda: encoding.pixel_order(4, 2**32), ValueError, r"from 0 to 2\*\*32 - 1, got 42949"),
    ],
)
def test_what_cannot_be_read_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
