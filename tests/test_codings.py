"""Delta, phase and burst coding, and every decoder, against plain Python loops."""

import math

import pytest
import torch
from snntorch import spikegen

import neurospike as ns
from neurospike.coding import decoding, encoding

GREYS = torch.arange(256) / 255
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def intensities(dtype=torch.float32):
    """Every grey level, and values that sit on the edges of the codes."""
    edges = torch.tensor([0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.75, 0.9])
    return torch.cat([GREYS, edges]).view(5, -1).to(dtype)


# Delta


def events_of_pixel(x, num_steps, threshold):
    """An event camera's pixel while x fades in: one event at most a step."""
    spikes, level = [], 0
    for t in range(num_steps):
        now = int(x * (t + 1) / num_steps / (threshold * (1 - 1e-6)))
        spikes.append(min(1, now - level))
        level = now
    return spikes


@pytest.mark.parametrize("num_steps", [1, 7, 25])
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_delta_of_a_still_picture_is_that_of_a_camera_as_it_fades_in(num_steps, threshold, dtype):
    data = intensities(dtype)
    spikes = encoding.delta(data, num_steps, threshold=threshold)
    for pixel, x in enumerate(data.flatten().tolist()):
        wanted = events_of_pixel(x, num_steps, threshold)
        assert spikes.flatten(1)[:, pixel].tolist() == wanted


def test_delta_fires_as_often_as_thresholds_fit_into_the_intensity():
    spikes = encoding.delta(intensities(), 40, threshold=0.1)
    assert torch.equal(spikes.sum(0), (intensities() / 0.1 + 1e-5).floor())


def test_delta_of_negative_values_fires_negative_spikes():
    data = torch.tensor([0.5, -0.5])
    assert encoding.delta(data, 5, threshold=0.1).tolist() == [[1, -1]] * 5
    assert encoding.delta(data, 5, threshold=0.1, off_spikes=False).tolist() == [[1, 0]] * 5


@pytest.mark.parametrize("off_spikes", [True, False])
def test_delta_of_a_sequence_is_snntorchs(off_spikes):
    data = torch.rand(30, 4, 6)
    mine = encoding.delta(data, threshold=0.3, off_spikes=off_spikes)
    assert torch.equal(mine, spikegen.delta(data, 0.3, off_spike=off_spikes))
    assert {-1.0, 0.0, 1.0} >= set(mine.unique().tolist()) >= {0.0, 1.0}


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.inf, math.nan])
def test_delta_refuses_thresholds_nothing_can_cross(threshold):
    with pytest.raises(ValueError, match=r"positive and finite: 0.1"):
        encoding.delta(torch.rand(2, 3), 5, threshold=threshold)


# Phase


@pytest.mark.parametrize("num_steps", [1, 8, 19])
@pytest.mark.parametrize("period", [1, 3, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_phase_is_the_binary_number(num_steps, period, dtype):
    data = intensities(dtype)
    spikes = encoding.phase(data, num_steps, period=period)
    for pixel, x in enumerate(data.flatten().tolist()):
        number = min(int(x * 2**period), 2**period - 1)
        digits = f"{number:0{period}b}"
        wanted = [int(digits[t % period]) for t in range(num_steps)]
        assert spikes.flatten(1)[:, pixel].tolist() == wanted


def test_weighted_phases_sum_to_the_intensity():
    data = intensities()
    total = encoding.phase(data, 24, period=8, weighted=True).sum(0) / 3
    wanted = (data * 256).floor().clamp(max=255) / 256
    assert torch.equal(total, wanted)


@pytest.mark.parametrize("period", [0, 17, 2.0, True])
def test_phase_refuses_impossible_periods(period):
    with pytest.raises(ValueError, match="whole number of steps from 1 to 16"):
        encoding.phase(torch.rand(2, 3), 5, period=period)


# Burst


def burst_of_pixel(x, num_steps, max_spikes, shortest, longest):
    count = math.ceil(max_spikes * x - 1e-6)
    interval = math.ceil(longest - (longest - shortest) * x - 1e-6)
    times = {k * interval for k in range(count)}
    return [float(t in times) for t in range(num_steps)]


@pytest.mark.parametrize(
    ("num_steps", "options", "longest"),
    [
        (25, {}, 6),
        (1, {}, 1),
        (4, {}, 1),
        (25, {"max_spikes": 1}, 24),
        (30, {"max_spikes": 8, "min_interval": 2}, 4),
        (10, {"max_spikes": 9, "min_interval": 3, "max_interval": 5}, 5),
        (7, {"max_spikes": 300, "max_interval": 40}, 40),  # more than T in both
        (5, {"max_spikes": 2, "min_interval": 9, "max_interval": 9}, 9),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_burst_against_a_loop_over_pixels(num_steps, options, longest, dtype):
    data = intensities(dtype)
    spikes = encoding.burst(data, num_steps, **options)
    max_spikes, shortest = options.get("max_spikes", 5), options.get("min_interval", 1)
    for pixel, x in enumerate(data.flatten().tolist()):
        wanted = burst_of_pixel(x, num_steps, max_spikes, shortest, longest)
        assert spikes.flatten(1)[:, pixel].tolist() == wanted


def test_brighter_bursts_have_more_spikes_and_end_as_they_fit():
    spikes = encoding.burst(torch.tensor([0.0, 0.2, 0.21, 0.5, 1.0]), 25)
    assert spikes.sum(0).tolist() == [0, 1, 2, 3, 5]
    assert spikes[:, 4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_spikes": 0}, "max_spikes=0; it must be a whole number"),
        ({"min_interval": 1.5}, "min_interval=1.5; it must be"),
        ({"max_interval": 0}, "max_interval=0; it must be"),
        ({"min_interval": 3, "max_interval": 2}, "max_interval=2 below min_interval=3: swap"),
        ({"max_spikes": True}, "max_spikes=True; it must be a whole number"),
    ],
)
def test_burst_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        encoding.burst(torch.rand(2, 3), 5, **options)


# Learnt


def test_learnt_code_is_the_convolution_held_for_every_step_and_learns():
    encode = ns.ConvEncoder(3, 6, beta=0.8, threshold=0.2)
    images = torch.rand(4, 1, 7, 9)
    spikes = encode(images)
    assert spikes.shape == (6, 4, 3, 7, 9)
    mem = torch.zeros(4, 3, 7, 9)
    current = encode.norm(encode.conv(images))
    for step in spikes:
        mem = 0.8 * mem + current - (mem > 0.2) * 0.2
        assert torch.equal(step, (mem > 0.2).float())
    spikes.sum().backward()
    assert bool(encode.conv.weight.grad.any())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels": 0}, "channels must be 1 or more, got 0"),
        ({"num_steps": 0}, "num_steps must be 1 or more, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd, to have a middle, got 4"),
    ],
)
def test_learnt_code_refuses_impossible_sizes(options, expected):
    with pytest.raises(ValueError, match=expected):
        ns.ConvEncoder(**options)


# Decoding


def random_spikes(*shape):
    return (torch.rand(shape) < 0.15).float()


def test_counts_and_population_count_as_loops_do():
    spikes = random_spikes(12, 4, 6)
    totals = decoding.counts(spikes)
    votes = decoding.population(spikes, 3)
    for b in range(4):
        for c in range(6):
            assert totals[b, c] == sum(spikes[t, b, c].item() for t in range(12))
        for c in range(3):
            assert votes[b, c] == (totals[b, 2 * c] + totals[b, 2 * c + 1]) / 2


def test_first_spike_is_the_steps_left_at_it():
    spikes = random_spikes(12, 5, 9)
    scores = decoding.first_spike(spikes)
    for b in range(5):
        for c in range(9):
            times = [t for t in range(12) if spikes[t, b, c]]
            assert scores[b, c] == (12 - times[0] if times else 0)
    assert 0 in scores  # some were silent, so both cases were seen


def test_first_spike_passes_gradient_until_it():
    spikes = torch.tensor([0.0, 0, 1, 0, 1]).view(5, 1, 1).requires_grad_()
    decoding.first_spike(spikes).sum().backward()
    assert spikes.grad.flatten().tolist() == [5, 4, 3, 0, 0]


def test_latency_code_is_decoded_by_its_first_spike():
    data = GREYS[3:].view(1, -1)
    decoded = decoding.first_spike(encoding.latency(data, 16, threshold=0.0))
    order = decoded.diff()
    assert bool((order >= 0).all())
    assert decoded[0, -1] == 16


def test_membranes():
    trace = torch.randn(7, 2, 3, requires_grad=True)
    assert torch.equal(decoding.membrane(trace), trace.mean(0))
    assert torch.equal(decoding.membrane(trace, "last"), trace[6])
    assert torch.equal(decoding.membrane(trace, "max"), trace.max(0).values)
    with pytest.raises(ValueError, match="use 'mean', 'max' or 'last'"):
        decoding.membrane(trace, "first")


@pytest.mark.parametrize(
    "decode",
    [
        decoding.counts,
        decoding.first_spike,
        decoding.membrane,
        lambda x: decoding.population(x, 1),
    ],
)
def test_errors_of_every_decoder(decode):
    with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch.int64"):
        decode(torch.ones(2, 3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="got list"):
        decode([1.0])
    for shape in ((3, 4), (0, 3, 4)):
        with pytest.raises(ValueError, match=r"must be \[T, B, C\] with at least one step"):
            decode(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_16_bit_spikes_tell_more_than_256_steps_apart(dtype):
    """bfloat16 holds no whole number between 256 and 258, float16 none from 2048 to 2050."""
    steps = 3000
    early = torch.zeros(steps, 1, 3, dtype=dtype)
    early[0, 0, 0] = early[1, 0, 1] = early[2, 0, 2] = 1
    assert decoding.first_spike(early).tolist() == [[steps, steps - 1, steps - 2]]
    often = torch.ones(steps, 1, 2, dtype=dtype, requires_grad=True)
    fewer = often.clone()
    fewer[0, 0, 1] = 0
    assert decoding.counts(fewer).tolist() == [[steps, steps - 1]]
    assert decoding.population(fewer, 2).tolist() == [[steps, steps - 1]]
    mean = decoding.membrane(fewer)
    assert mean[0].tolist() == pytest.approx([1, 1 - 1 / steps], abs=1e-7)
    for scores in (mean, decoding.membrane(fewer, "max"), decoding.membrane(fewer, "last")):
        assert scores.dtype == torch.float32
    mean.sum().backward()
    assert often.grad.dtype == dtype
    assert decoding.counts(often.double()).dtype == torch.float64


@pytest.mark.parametrize("classes", [0, 4])
def test_population_refuses_uneven_shares(classes):
    with pytest.raises(ValueError, match="multiple of the classes"):
        decoding.population(torch.ones(2, 3, 6), classes)
