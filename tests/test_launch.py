"""The launch of Triton kernels: what a call of a layer asks of Triton and of torch.

On CPU tensors with launches that do nothing (`benchmarks.stubbed`): what kernels compute is tested
elsewhere.
"""

import pytest
import torch
import triton
from torch.utils._pytree import tree_leaves

import neurospike as ns
from benchmarks.stubbed import Compiled, Driver, stubbed
from neurospike.backend import dispatch
from neurospike.kernels.cuda import _launch
from neurospike.ops.stepped_recurrence import SteppedRecurrence


@pytest.fixture
def launches():
    with stubbed() as found:
        yield found


def step(current=None, **options):
    if current is None:
        current = torch.zeros(9, 2, 32)
    current = current.detach().requires_grad_()
    given = {"beta": 0.9, "backend": "triton", **options}
    ns.lif(current, **given)[0].sum().backward()


def test_the_jit_is_left_out_once_a_kernel_is_known(launches):
    step()
    assert (launches.looked, launches.direct) == (2, 0)
    for _ in range(3):
        step()
    assert (launches.looked, launches.direct) == (2, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"current": torch.zeros(9, 2, 48)},
        {"current": torch.zeros(9, 2, 32, dtype=torch.bfloat16)},
        {"current": torch.zeros(1, 2, 32).expand(9, 2, 32)},
        {"reset": "zero"},
        {"surrogate": "sigmoid"},
        {"grad_window": 0.5},
        {"beta": 0.8},
        {"threshold": torch.ones(32)},
        {"mem": torch.zeros(2, 32, requires_grad=True)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_kernel_is_looked_for(launches, change):
    step()
    step(**change)
    assert (launches.looked, launches.direct) == (4, 0)
    step(**change)
    assert (launches.looked, launches.direct) == (4, 2)


def test_the_number_of_steps_needs_no_other_kernel(launches):
    for steps in (9, 1, 100):
        step(torch.zeros(steps, 2, 32))
    assert (launches.looked, launches.direct) == (2, 4)
    assert {one.last[-2] for one in launches.compiled} == {100}  # the last are the lengths


def test_tensors_at_odd_addresses_go_through_the_jit(launches):
    """Triton compiles another kernel for them, which makes no wide loads."""
    odd = torch.zeros(9 * 2 * 32 + 1)[1:].view(9, 2, 32)
    assert odd.data_ptr() % 16
    step()
    for _ in range(2):
        step(odd)
    assert (launches.looked, launches.direct) == (6, 0)
    step()
    assert (launches.looked, launches.direct) == (6, 2)


def test_saved_states_that_hooks_lay_at_odd_addresses_go_through_the_jit(launches):
    """As slices of one buffer are, in which somebody keeps whatever is saved."""

    def moved(saved):
        return torch.cat((saved.new_zeros(1), saved.flatten()))[1:].view(saved.shape)

    step()
    step()
    assert (launches.looked, launches.direct) == (2, 2)
    # Those alone that have one axis: the states before every chunk.
    unpack = lambda saved: moved(saved) if saved.dim() == 1 else saved  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
        step()
    assert (launches.looked, launches.direct) == (3, 3)


def test_rows_of_sequences_at_odd_addresses_go_through_the_jit(launches, monkeypatch):
    """A recurrent layer that is run step by step goes back on rows of what it saved."""
    odd = []

    def look(_, *arguments):
        tensors = [one for one in tree_leaves(arguments) if isinstance(one, torch.Tensor)]
        odd.extend(one.data_ptr() % 16 for one in tensors if one.data_ptr() % 16)
        ran.append(len(tensors))

    ran = []
    monkeypatch.setattr(Compiled, "run", look)
    loop = SteppedRecurrence(dispatch.TABLE["triton"])
    rule, size = ns.LIF(0.9).rule, 17
    for steps in (1, 9):
        sequence = [torch.zeros(steps, 1, size) for _ in range(4)]
        loop.backward(
            grad_spikes=sequence[0],
            grad_finals=(None, None),
            grad_traces=(),
            currents=sequence[1],
            traces=(sequence[2],),
            weight=torch.zeros(size, size),
            states=(),
            parameters=[torch.full((1,), 0.9) for _ in rule.parameters],
            neuron=rule.program,
            numbers=rule.numbers,
            out=sequence[3],
            out_states=(),
            out_parameters=[None for _ in rule.parameters],
            lengths=None,
        )
    assert len(ran) >= 1
    assert odd == []


def test_a_first_call_at_an_odd_address_is_not_kept(launches):
    odd = torch.zeros(9 * 2 * 32 + 1)[1:].view(9, 2, 32)
    step(odd)
    step()
    assert (launches.looked, launches.direct) == (4, 0)


def test_a_direct_launch_is_given_what_the_first_was(launches):
    current = torch.zeros(9, 2, 32)
    for _ in range(2):
        ns.lif(current, beta=0.75, threshold=0.5, backend="triton")
    (compiled,) = launches.compiled
    *rest, finals, size, counts, steps, lengths = compiled.last
    *how, x, _, parameters, bits, spikes, traces, saved = rest
    assert lengths is None
    assert how == [1, 1, 1, 0, None, None, None, None, None]
    assert x.data_ptr() == current.data_ptr()
    numbers = torch.tensor(bits).view(torch.float64).tolist()
    assert numbers == [0.75, 0.5, 2.0]  # beta, threshold, and alpha of the surrogate
    assert (parameters, counts, traces, saved) == ((), (), (None,), (None,))
    assert spikes.shape == current.shape
    assert [one.shape for one in finals] == [(2, 32)]
    assert (size, steps) == (64, 9)


def test_numbers_are_no_tensors(launches, monkeypatch):
    def filled(*_, **__):
        raise AssertionError("a GPU would have to fill it")

    monkeypatch.setattr(torch, "full", filled)
    step(threshold=0.5)


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_who_asks_to_be_told_of_launches_is_told(launches, hook):
    step()
    with triton.knobs.runtime.scope():
        getattr(triton.knobs.runtime, hook).add(told := lambda *_: None)
        try:
            step()
        finally:
            getattr(triton.knobs.runtime, hook).remove(told)
    assert (launches.looked, launches.direct) == (4, 0)


def test_another_current_device_is_made_current(launches, monkeypatch):
    step()
    monkeypatch.setattr(Driver, "get_current_device", lambda _: 3)
    step()
    assert (launches.looked, launches.direct) == (4, 0)


@pytest.mark.parametrize(("version", "direct"), [("3.4.1", 0), ("3.5.0", 2), ("3.9.0", 0)])
def test_a_version_that_is_not_known_goes_through_the_jit(launches, monkeypatch, version, direct):
    monkeypatch.setattr(triton, "__version__", version)
    _launch.runs_direct.cache_clear()
    try:
        step()
        step()
    finally:
        _launch.runs_direct.cache_clear()
    assert (launches.looked, launches.direct) == (4 - direct, direct)
