"""Large outputs live in memory that is used again: never while somebody still looks at it."""

import ctypes
import gc
import math
import os
import sys
import types

import pytest
import torch

import neurospike as ns
from neurospike.backend import buffers, parallel
from neurospike.ops import running

LARGE = (buffers.LEAST_BYTES,)  # float32: four times the least size


@pytest.fixture(autouse=True)
def _nothing_idle():
    buffers.release()
    yield
    buffers.release()


def idle_bytes() -> int:
    buffers._pool.collect()
    return sum(block.size for _, block in buffers._pool.idle)


def test_freed_memory_is_lent_again():
    first = buffers.empty(LARGE, torch.float32)
    place = first.data_ptr()
    del first
    assert buffers.empty(LARGE, torch.float32).data_ptr() == place


@pytest.mark.parametrize("keep", [lambda t: t[5:9], lambda t: t.detach(), lambda t: t.numpy()])
def test_memory_is_not_lent_while_a_view_of_it_lives(keep):
    first = buffers.empty(LARGE, torch.float32)
    view, place = keep(first), first.data_ptr()
    del first
    gc.collect()
    assert buffers.empty(LARGE, torch.float32).data_ptr() != place
    del view


def test_no_code_of_pythons_runs_where_a_buffer_ends():
    """In a weak reference's callback Ctrl-C is lost, and would leave the block lent for good."""
    first, called = buffers.empty(LARGE, torch.float32), []
    place = first.data_ptr()

    def seen(frame, event, _):
        if event == "call":
            called.append(frame.f_code)

    sys.setprofile(seen)
    try:
        del first
    finally:
        sys.setprofile(None)
    assert not called
    assert buffers.empty(LARGE, torch.float32).data_ptr() == place


def test_a_buffer_begins_at_a_cache_line_and_has_the_shape_asked_for():
    found = buffers.empty((3, 123_457, 2), torch.float64)
    assert found.shape == (3, 123_457, 2)
    assert found.dtype == torch.float64
    assert found.is_contiguous()
    assert found.data_ptr() % buffers.ALIGNMENT == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_buffer_is_no_view_of_another_tensor(dtype):
    """What a layer returns may be changed in place, as `nn.ReLU(inplace=True)` does."""
    found = buffers.empty(LARGE, dtype)
    assert found.dtype == dtype
    assert found.shape == LARGE
    assert not found._is_view()


def test_idle_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(buffers, "IDLE_BYTES", 10 << 20)
    held = [buffers.empty(LARGE, torch.float32) for _ in range(5)]
    held.clear()
    assert 0 < idle_bytes() <= 10 << 20


def test_memory_that_nobody_wants_any_more_is_given_back():
    del_me = buffers.empty((4 * LARGE[0],), torch.float32)
    del del_me
    assert idle_bytes() > 0
    for _ in range(buffers.PATIENCE + 2):
        buffers.empty(LARGE, torch.float32)
    assert idle_bytes() < 4 * 4 * LARGE[0]


def test_release_gives_everything_back():
    del_me = buffers.empty(LARGE, torch.float32)
    del del_me
    buffers.release()
    assert idle_bytes() == 0


def test_results_of_one_call_survive_the_next_ones():
    current = torch.randn(4, 3, 100_000, requires_grad=True)
    spikes, _ = ns.lif(current, beta=0.9, backend="numba")
    kept = spikes.detach().clone()
    for _ in range(3):
        other = torch.randn_like(current).requires_grad_()
        ns.lif(other, beta=0.5, backend="numba")[0].sum().backward()
    assert torch.equal(spikes, kept)
    weight = torch.randn_like(spikes)
    (first,) = torch.autograd.grad(spikes, current, weight, retain_graph=True)
    (second,) = torch.autograd.grad(spikes, current, weight)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)


@pytest.mark.parametrize("neurons", [700_001, 699_999, 1_048_576])
def test_outputs_streamed_past_the_caches_are_complete(neurons):
    torch.manual_seed(1)
    current = torch.randn(3, 1, neurons)
    grad = torch.randn_like(current)
    found = []
    for backend in ("reference", "numba"):
        leaf = current.clone().requires_grad_()
        spikes, _ = ns.lif(leaf, beta=0.9, backend=backend)
        spikes.backward(grad)
        found.append((spikes, leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


GUARD = 999.0
LAYERS = {
    "LIF": lambda **o: ns.LIF(0.9, **o),
    "LI": lambda **o: ns.LI(0.9, **o),
    "ALIF": lambda **o: ns.ALIF(learn=("rise", "rho"), **o),
    "Recurrent": lambda **o: ns.Recurrent(ns.LIF(0.9), 33, **o),
    "Delay": lambda **o: ns.Delay(33, 3, **o),
}


@pytest.fixture
def guarded(monkeypatch):
    """Put numbers behind all that is allocated, and look afterwards that they are still there."""
    made = []

    def make(*shape, dtype):
        count = math.prod(shape)
        whole = torch.full((2 * count + 64,), GUARD, dtype=dtype)
        made.append((whole[count:], shape, dtype))
        return whole[:count].fill_(0.0).view(shape)

    monkeypatch.setattr(running, "_on_cpu", lambda _: make)
    yield made
    guard = {dtype: torch.tensor(GUARD, dtype=dtype) for _, _, dtype in made}
    assert not [(shape, dtype) for rest, shape, dtype in made if (rest != guard[dtype]).any()]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_written_behind_an_output(name, batch_first, dtype, guarded):
    layer = LAYERS[name](batch_first=batch_first)
    layer = layer.to(dtype) if dtype == torch.float64 else layer
    for steps in (1, 2, 9):
        x = torch.randn((3, steps, 33) if batch_first else (steps, 3, 33), requires_grad=True)
        for lengths in (None, torch.tensor([steps, 0, 1])):
            layer(x.to(dtype), lengths=lengths)[0].sum().backward()
    x = torch.randn(3, 33, requires_grad=True)
    if name != "Delay":
        layer(x.to(dtype), num_steps=1)[0].sum().backward()
    assert len(guarded) > 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_without_torchs_threads():
    current = torch.randn(10, 4, 40_000)
    wanted = ns.lif(current, beta=0.9, backend="numba")[0].sum().item()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        result = ns.lif(current, beta=0.9, backend="numba")[0].numpy().sum()
        os.write(writer, f"{result} {parallel._pool.forked}".encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    total, forked = os.read(reader, 100).decode().split()
    assert float(total) == wanted
    assert forked == "True"


def test_a_runtime_without_gnu_openmp_uses_plain_threads(monkeypatch):
    current = torch.randn(10, 4, 40_000)
    wanted = ns.lif(current, beta=0.9, backend="numba")[0]
    monkeypatch.setattr(parallel, "_team", lambda: None)
    assert torch.equal(ns.lif(current, beta=0.9, backend="numba")[0], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_large_memory_is_poisoned_as_torchs_own_is(poisoned, dtype):
    wanted = torch.empty(3, dtype=dtype)
    used = buffers.empty(LARGE, dtype).zero_()
    del used
    found = buffers.empty(LARGE, dtype)  # the same block, with zeros in it
    assert torch.equal(found.isnan(), wanted[0].isnan().expand(LARGE))
    assert found.isnan().all() or torch.equal(found, wanted[:1].expand(LARGE))


def test_a_system_without_a_library_of_no_name_keeps_its_allocator(monkeypatch):
    class Windows:
        """The part of `nt` that `ctypes` asks for a library's place."""

        name, fspath = "nt", os.fspath

    # CPython's own branch for Windows, run here by telling ctypes that this is one.
    monkeypatch.setattr(ctypes, "_os", Windows)
    monkeypatch.setitem(sys.modules, "nt", types.ModuleType("nt"))
    sys.modules["nt"]._LOAD_LIBRARY_SEARCH_DEFAULT_DIRS = 0
    sys.modules["nt"]._LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR = 0
    sys.modules["nt"]._getfullpathname = str
    with pytest.raises(TypeError):
        ctypes.CDLL(None)
    buffers.keep_freed_memory()
