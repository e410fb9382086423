"""Encoders against a per-pixel loop in plain Python, their statistics, and their errors."""

import math
import subprocess
import sys

import pytest
import torch

from neurospike import encoding

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


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_shape_and_dtype(encode, dtype, shape, num_steps):
    encoded = encode(intensities(*shape).to(dtype), num_steps)
    assert encoded.shape == (num_steps, *shape)
    assert encoded.dtype == dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("encode", ENCODERS)
def test_layout_of_the_data_does_not_matter(encode):
    data = intensities(4, 6, 5).transpose(0, 2)
    torch.manual_seed(3)
    from_view = encode(data, 7)
    torch.manual_seed(3)
    assert torch.equal(from_view, encode(data.contiguous(), 7))


def test_constant_copies_nothing_and_passes_gradients():
    data = intensities(2, 3).requires_grad_()
    current = encoding.constant(data, 5)
    assert current.data_ptr() == data.data_ptr()
    assert current.stride(0) == 0
    assert all(torch.equal(step, data) for step in current)
    current.sum().backward()
    assert torch.equal(data.grad, torch.full_like(data, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rate_at_probability_zero_and_one(dtype):
    data = torch.tensor([0.0, 1.0], dtype=dtype).expand(5000, 2)
    spikes = encoding.rate(data, 20)
    assert spikes[..., 0].sum() == 0
    assert bool((spikes[..., 1] == 1).all())


def test_rate_at_the_extreme_draws(monkeypatch):
    data = torch.tensor([0.0, 2.0**-24, 1.0])
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.zeros(size))
    assert encoding.rate(data, 1).tolist() == [[0, 1, 1]]
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.full(size, 1 - 2.0**-24))
    assert encoding.rate(data, 1).tolist() == [[0, 0, 1]]


def test_rate_is_the_probability():
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


def test_rate_clamps_what_gain_and_offset_drive_out_of_range():
    data = torch.tensor([0.2, 0.8]).expand(100, 2)
    spikes = encoding.rate(data, 10, gain=10, offset=-4)
    assert spikes[..., 0].sum() == 0
    assert bool((spikes[..., 1] == 1).all())


def test_rate_repeats_with_the_generator_in_every_dtype():
    data = intensities(4, 50).round(decimals=1).half()

    def spikes(dtype, seed):
        generator = torch.Generator().manual_seed(seed)
        return encoding.rate(data.to(dtype), 10, generator=generator)

    first = spikes(torch.float32, 0)
    assert torch.equal(first, spikes(torch.float32, 0))
    assert torch.equal(first, spikes(torch.float16, 0).float())
    assert not torch.equal(first, spikes(torch.float32, 1))


def test_rate_leaves_the_global_generator_alone_when_given_its_own():
    before = torch.get_rng_state()
    encoding.rate(intensities(2, 3), 4, generator=torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("curve", "tau"), [("linear", None), ("logarithmic", None), ("logarithmic", 300.0)]
)
@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize("subthreshold", ["silent", "last"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_latency_against_a_loop_over_pixels(curve, tau, threshold, subthreshold, num_steps, dtype):
    data = torch.cat([intensities(400), intensities(100) * 2 * threshold, torch.tensor([0.0, 1.0])])
    data = data.view(2, -1).to(dtype)
    spikes = encoding.latency(
        data, num_steps, curve=curve, threshold=threshold, subthreshold=subthreshold, tau=tau
    )
    wanted = torch.zeros(num_steps, data.numel(), dtype=dtype)
    for pixel, x in enumerate(data.flatten().tolist()):
        step = latency_of_pixel(x, num_steps, curve, threshold, subthreshold, tau)
        if step is not None:
            wanted[step, pixel] = 1
    assert torch.equal(spikes.flatten(1), wanted)


@pytest.mark.parametrize("curve", ["linear", "logarithmic"])
def test_latency_runs_from_the_first_step_to_the_last(curve):
    data = torch.tensor([1.0, 0.6, 0.35, 0.32, 0.3001, 0.3, 0.0])
    times = encoding.latency(data, 50, curve=curve, threshold=0.3).argmax(0).tolist()
    assert times[0] == 0
    assert times[:5] == sorted(times[:5])
    assert times[4] == 49
    assert (
        encoding.latency(data, 50, curve=curve, threshold=0.3).sum(0).tolist() == [1] * 5 + [0] * 2
    )


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


def test_spikes_carry_no_gradient():
    data = intensities(2, 3).requires_grad_()
    for encode in ENCODERS:
        if encode is not encoding.constant:
            assert not encode(data, 4).requires_grad


@pytest.mark.parametrize("encode", ENCODERS)
def test_errors_at_the_door_of_every_encoder(encode):
    data = intensities(2, 3)
    with pytest.raises(TypeError, match="divide by 255"):
        encode((data * 255).to(torch.uint8), 5)
    with pytest.raises(TypeError, match="floating-point"):
        encode(torch.complex(data, data), 5)
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        encode([0.5], 5)
    with pytest.raises(ValueError, match=r"\[B, \*F\]"):
        encode(torch.tensor(0.5), 5)
    # For delta no number of steps means a sequence.
    for steps in (True, 5.0, "5", *([] if encode is encoding.delta else [None])):
        with pytest.raises(TypeError, match="num_steps must be an int"):
            encode(data, steps)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
            encode(data, steps)


def test_errors_of_rate():
    data = intensities(2, 3)
    with pytest.raises(ValueError, match="NaN"):
        encoding.rate(torch.tensor([0.5, math.nan]), 5)
    with pytest.raises(ValueError, match="gain=nan"):
        encoding.rate(data, 5, gain=math.nan)
    # The meta device stands for another device on machines with one.
    with pytest.raises(ValueError, match=r"generator on cpu for data on meta.*device='meta'"):
        encoding.rate(data.to("meta"), 5, generator=torch.Generator())


@pytest.mark.parametrize("wrong", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("encode", [encoding.latency, encoding.phase, encoding.burst])
def test_intensities_out_of_range_are_refused(encode, wrong):
    with pytest.raises(ValueError, match=rf"{encode.__name__} got .* lie in \[0, 1\].*clamp"):
        encode(torch.tensor([0.5, wrong]), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
    ],
)
def test_latency_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        encoding.latency(intensities(2, 3), 5, **options)


def test_the_module_needs_torch_only():
    # Loaded by its path, so that this is about encoding.py and not about the package around it.
    program = """
import importlib.util, sys
import torch
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("encoding", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(sorted(set(sys.modules) - before - set(sys.stdlib_module_names)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, encoding.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
@pytest.mark.parametrize("encode", [encoding.rate, encoding.latency])
@pytest.mark.parametrize("shape", [(0,), (3,), (7, 5), (128, 784)])  # the last draws in a kernel
def test_spikes_are_the_same_in_every_format(encode, dtype, shape):
    data = intensities(*shape)
    torch.manual_seed(3)
    wanted = encode(data, 25)
    torch.manual_seed(3)
    found = encode(data, 25, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found.float(), wanted)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    encode(data, 25)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("encode", [encoding.rate, encoding.latency])
def test_formats_that_spikes_cannot_have(encode):
    for dtype in (torch.int64, torch.complex64, "uint8"):
        with pytest.raises(TypeError, match=r"got dtype=.*torch.bool, torch.uint8 or floating"):
            encode(intensities(2, 3), 4, dtype=dtype)
