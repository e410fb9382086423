"""Spikes drawn by a compiled loop are those that torch's own stream gives, and it goes on."""

import threading

import pytest
import torch

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.coding import encoding

pytestmark = pytest.mark.skipif(
    dispatch.unsupported_reasons("numba") != [], reason="needs the numba backend"
)


@pytest.fixture
def module():
    return dispatch.load(".kernels.cpu.draws")


def generators(seed):
    return [torch.Generator().manual_seed(seed) for _ in range(2)]


@pytest.mark.parametrize("seed", [0, 2**32 + 5])
def test_the_stream_is_torchs_wherever_it_is_broken_off(seed, module):
    """Around the 624 numbers that the generator makes at a time, and among draws of other kinds."""
    ours, theirs = generators(seed)
    for size in (1, 2, 622, 623, 624, 625, 1249, 3001):
        probability = torch.linspace(0, 1, size)
        for steps in (1, 3):
            found = module.spikes(probability, steps, ours)
            wanted = torch.rand((steps, size), generator=theirs) < probability
            assert torch.equal(found, wanted.to(torch.uint8))
            assert torch.equal(ours.get_state(), theirs.get_state())
        for draw in (torch.randn, torch.rand):
            assert torch.equal(draw(3, generator=ours), draw(3, generator=theirs))
        assert torch.equal(torch.randperm(5, generator=ours), torch.randperm(5, generator=theirs))


def test_probabilities_at_and_beyond_the_ends(module):
    probability = torch.tensor([-1.0, 0.0, 2.0**-24, 1 - 2.0**-24, 1.0, 3.0, -torch.inf, torch.inf])
    ours, theirs = generators(1)
    found = module.spikes(probability, 70_000, ours)
    wanted = torch.rand((70_000, 8), generator=theirs) < probability
    assert torch.equal(found, wanted.to(torch.uint8))
    assert found[:, [0, 1, 6]].sum() == 0
    assert bool((found[:, [4, 5, 7]] == 1).all())


def test_every_backend_gives_the_same_spikes(module, monkeypatch):
    data = torch.rand(128, 784)
    assert module._known()
    calls = []
    drawn = module.spikes
    monkeypatch.setattr(module, "spikes", lambda *a: calls.append(1) or drawn(*a))
    found = []
    for name in ("numba", "reference"):
        if dispatch.unsupported_reasons(name) == []:
            torch.manual_seed(5)
            with ns.use_backend(name):
                found.append(encoding.rate(data, 25, dtype=torch.bool))
    assert len(calls) == 1  # by numba alone
    assert all(torch.equal(found[0], other) for other in found)


def test_a_torch_with_another_generator_draws_itself(module, monkeypatch):
    data = torch.rand(128, 784)
    torch.manual_seed(5)
    wanted = encoding.rate(data, 25)
    monkeypatch.setattr(module, "_known", lambda: False)
    monkeypatch.setattr(module, "spikes", lambda *_: pytest.fail("drew from an unknown stream"))
    torch.manual_seed(5)
    assert torch.equal(encoding.rate(data, 25), wanted)


def test_what_another_thread_draws_meanwhile_is_not_drawn_again(module, monkeypatch):
    """It draws while the spikes are being made; all numbers are those of one stream."""
    drawn, made = [], module.parallel.run

    def with_another_thread(*arguments):
        other = threading.Thread(target=lambda: drawn.append(torch.rand(3)))
        other.start()
        other.join()
        return made(*arguments)

    assert module._known()
    monkeypatch.setattr(module.parallel, "run", with_another_thread)
    probability = torch.full((128, 784), 0.5)
    torch.manual_seed(5)
    found = encoding.rate(probability, 25)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn[0], torch.rand(3))
    assert torch.equal(found, (torch.rand(25, 128, 784) < 0.5).float())
    assert torch.equal(after, torch.rand(3))


def test_another_stream_is_noticed(module, monkeypatch):
    module._known.cache_clear()
    monkeypatch.setattr(torch, "rand", lambda size, generator: torch.zeros(size))
    assert not module._known()
    module._known.cache_clear()


# Latency coding in one pass


def intensities(steps, curve, dtype):
    """Random ones, and those at which the time changes, with their neighbours."""
    edges = encoding._edges(steps, curve, 0.01, None)
    at = torch.tensor([*edges, 0.01, 0.0, 1.0, 0.5], dtype=dtype)
    near = torch.stack([at, at.nextafter(torch.tensor(0.0).to(dtype)), at.nextafter(at + 1)])
    drawn = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return torch.cat([near.flatten().clamp(0, 1), drawn])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("subthreshold", ["silent", "last"])
@pytest.mark.parametrize("curve", ["linear", "logarithmic"])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_latency_in_one_pass_is_torchs(steps, curve, subthreshold, dtype, monkeypatch):
    data = intensities(steps, curve, dtype)
    pictures = torch.stack([data, data.flip(0)])
    for spikes in (torch.bool, torch.uint8, torch.float32, torch.float64, torch.bfloat16):
        found = []
        for least in (0, 1 << 60):
            monkeypatch.setattr(encoding, "LEAST_COMPILED", least)
            options = {"curve": curve, "subthreshold": subthreshold, "dtype": spikes}
            found.append(ns.encoding.latency(pictures, steps, **options))
        assert found[0].dtype == spikes
        assert torch.equal(*found)


def test_latency_in_one_pass_refuses_as_torch_does(monkeypatch):
    made = []
    module = dispatch.load(".kernels.cpu.latency")
    spikes = module.spikes
    monkeypatch.setattr(module, "spikes", lambda *given: made.append(1) or spikes(*given))
    monkeypatch.setattr(encoding, "LEAST_COMPILED", 0)
    for wrong in (-0.1, 1.1, float("nan")):
        data = torch.rand(3, 50)
        data[1, 49] = wrong
        with pytest.raises(
            ValueError, match=r"latency got intensities from .* must lie in \[0, 1\]"
        ):
            ns.encoding.latency(data, 5)
    assert len(made) == 3
    with ns.use_backend("reference"):
        ns.encoding.latency(torch.rand(3, 50), 5)
    assert len(made) == 3
