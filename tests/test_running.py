"""Calls that are like one before are run by what that one left, and give the same bits."""

import contextlib
import functools
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import device_of
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import neurospike as ns
from neurospike import ops
from neurospike.backend import dispatch
from neurospike.formulas import fire
from neurospike.ops import running

STEPS, BATCH, SIZE = 11, 3, 10
LAYERS = {
    "LIF": lambda **o: ns.LIF(0.9, **o),
    "LIF that learns": lambda **o: ns.LIF(0.9, learn_beta=True, learn_threshold=True, **o),
    "LIF of values by neuron": lambda **o: ns.LIF(torch.linspace(0.5, 0.9, SIZE), **o),
    "LI": lambda **o: ns.LI(0.9, **o),
    "Synaptic that learns": lambda **o: ns.Synaptic(0.5, 0.9, learn=("alpha", "beta"), **o),
}
CURRENTS = {
    "steps in blocks": lambda draw: draw(STEPS, BATCH, SIZE),
    "by sample": lambda draw: draw(BATCH, STEPS, SIZE).transpose(0, 1),
    "with gaps": lambda draw: draw(STEPS, BATCH, SIZE, 2)[..., 0],
    "the same at every step": lambda draw: draw(1, BATCH, SIZE).expand(STEPS, BATCH, SIZE),
    "one step": lambda draw: draw(1, BATCH, SIZE),
}
GRADIENTS = {
    "dense": lambda out, draw: draw(*out.shape),
    "the same at every step": lambda out, draw: draw(1, *out.shape[1:]).expand(out.shape),
    "of one number": lambda out, draw: draw(1)[0].expand(out.shape),
    "turned": lambda out, draw: draw(*reversed(out.shape)).permute(*reversed(range(out.dim()))),
}


def lif(backend):
    return ns.LIF(0.9, backend=backend).to(device_of(backend))


def drawn(backend, *shape):
    return torch.randn(*shape, device=device_of(backend))


def flat(found):
    return (
        [found]
        if isinstance(found, torch.Tensor)
        else [one for part in found for one in flat(part)]
    )


def once(layer, current, gradient, seed, dtype, options, *, anew):
    """Outputs and gradients of one call, of numbers that follow from the seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device_of(layer.backend))

    if anew:
        ops.forget()
    x = CURRENTS[current](draw)
    x = x.clone(memory_format=torch.preserve_format) if x.stride(0) else x.detach()
    x.requires_grad_()
    found = [one for one in flat(layer(x, **options)) if one.requires_grad]
    given = [GRADIENTS[gradient](one, draw).to(one.dtype) for one in found]
    learned = [*layer.parameters()]
    grads = torch.autograd.grad(found, [x, *learned], given)
    return [*found, *grads]


def check(layer, current, gradient, dtype, options):
    wanted = [once(layer, current, gradient, seed, dtype, options, anew=True) for seed in range(3)]
    ops.forget()
    for seed in (5, *range(3)):
        found = once(layer, current, gradient, seed, dtype, options, anew=False)
        if seed < 3:
            assert all(map(torch.equal, found, wanted[seed]))


def known(backend):
    """What of the calls so far, and of their backward passes, can be run again."""
    (runner,) = [one for one in running._every if one.row.name == backend and one.known]
    every = runner.known.values()
    return [one.again is not None for one in every], [len(one.backward) for one in every]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("current", CURRENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_what_a_first_call_gives(name, current, gradient, fused):
    check(LAYERS[name](backend=fused).to(device_of(fused)), current, gradient, torch.float32, {})


def test_one_kind_of_call_is_not_taken_for_another(fused):
    layers = [make(backend=fused) for make in LAYERS.values()]
    layers += [
        ns.LIF(torch.full(shape, 0.8), learn_beta=True, backend=fused) for shape in ((1,), (SIZE,))
    ]
    layers = [layer.to(device_of(fused)) for layer in layers]
    float32, lengths = torch.float32, {"lengths": torch.tensor([STEPS, 0, 4])}
    kinds = [
        (layer, current, gradient, 7, float32, {})
        for layer in layers
        for current in CURRENTS
        for gradient in GRADIENTS
    ]
    kinds += [
        (layer, "steps in blocks", gradient, 7, dtype, options)
        for layer in layers
        for gradient in GRADIENTS
        for dtype, options in ((torch.float16, {}), (torch.bfloat16, {}), (float32, lengths))
    ]
    wanted = [once(*kind, anew=True) for kind in kinds]
    ops.forget()
    for _ in range(2):
        for kind, each in zip(kinds, wanted):
            assert all(map(torch.equal, once(*kind, anew=False), each))


def test_one_that_nobody_learns_from_leaves_nothing_for_one_that_is_learned_from(fused):
    layer, x = lif(fused), drawn(fused, STEPS, BATCH, SIZE)
    results = []
    for before in (False, True):
        ops.forget()
        for _ in range(2 if before else 0):
            layer(x)
        leaf = x.clone().requires_grad_()
        layer(leaf)[0].sum().backward()
        results.append(leaf.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["LIF", "LIF that learns"])
def test_in_every_format(name, dtype, fused):
    layer = LAYERS[name](backend=fused).to(device_of(fused))
    layer = layer.double() if dtype == torch.float64 else layer
    check(layer, "steps in blocks", "the same at every step", dtype, {})


@pytest.mark.parametrize("options", ["lengths", "num_steps", "trace", "batch_first"])
@pytest.mark.parametrize("name", LAYERS)
def test_whatever_is_asked_for(name, options, fused):
    layer, given = LAYERS[name](backend=fused, batch_first=options == "batch_first"), {}
    layer = layer.to(device_of(fused))
    if options == "lengths":
        given["lengths"] = torch.tensor([STEPS, 0, 4])
    elif options == "trace" and name != "LI":
        given["return_trace"] = True
    elif options == "num_steps":
        given["num_steps"] = 5
    check(
        layer,
        "by sample" if options == "batch_first" else "steps in blocks",
        "dense",
        torch.float32,
        given,
    )


def test_states_are_those_of_the_call(fused):
    layer, x = lif(fused), drawn(fused, STEPS, BATCH, SIZE)
    for mem in drawn(fused, 3, BATCH, SIZE):
        found = layer(x, mem)
        ops.forget()
        assert all(map(torch.equal, found, layer(x, mem)))


def test_a_call_like_one_before_is_known(fused):
    layer, x = lif(fused), drawn(fused, STEPS, BATCH, SIZE).requires_grad_()
    ops.forget()
    for _ in range(3):
        layer(x)[0].sum(0).backward(drawn(fused, BATCH, SIZE))
    assert known(fused) == ([True], [1])
    for _ in range(3):
        layer(x)[0].sum().backward()  # of one number at all places
    assert known(fused) == ([True], [2])


def test_what_has_to_be_copied_is_known_too(fused):
    layer = lif(fused)
    ops.forget()
    for x in drawn(fused, 3, STEPS, BATCH, SIZE, 2):
        grad = drawn(fused, SIZE, BATCH, STEPS).permute(2, 1, 0)
        layer(x[..., 0].requires_grad_())[0].backward(grad)
    assert known(fused) == ([True], [1])


def test_hooks_of_saved_tensors_may_hand_back_other_strides(fused):
    layer = ns.LIF(torch.linspace(0.5, 0.9, SIZE), backend=fused).to(device_of(fused))
    x, grad = drawn(fused, 2, STEPS, BATCH, SIZE)
    results = []
    for unpack in (torch.clone, lambda one: one.clone(), lambda one: one.mT.contiguous().mT):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: one, lambda one, unpack=unpack: unpack(one) if one.dim() > 1 else one
        ):
            spikes, _ = layer(leaf)
        spikes.backward(grad)
        results.append(leaf.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", LAYERS)
def test_hooks_of_saved_tensors_may_hand_back_another_format(name, fused):
    layer = LAYERS[name](backend=fused).to(device_of(fused))
    grad, x = drawn(fused, 2, STEPS, BATCH, SIZE)
    x = x.to(torch.bfloat16).float()
    results = []
    for pack in (torch.clone, lambda one: one.to(torch.bfloat16)):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, pack=pack: pack(one) if one.dim() == 3 else one,
            lambda one: one,
        ):
            out, _ = layer(leaf)
        out.backward(grad)
        results.append(leaf.grad)
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)  # the last is rounded to 16 bits


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("again", [False, True])
def test_hooks_of_saved_tensors_may_lay_out_lengths_anew(again, dtype, fused):
    layer, x = lif(fused), drawn(fused, STEPS, 4, SIZE)
    lengths, grad = torch.tensor([STEPS, 0, 4, 7]), drawn(fused, STEPS, 4, SIZE)
    results = []
    for unpack in (torch.clone, lambda one: one.repeat_interleave(2).to(dtype)[::2]):
        for _ in range(1 + again):
            leaf = x.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(
                lambda one: one,
                lambda one, unpack=unpack: one if one.is_floating_point() else unpack(one),
            ):
                spikes, _ = layer(leaf, lengths=lengths)
            spikes.backward(grad)
        results.append(leaf.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_hooks_of_saved_tensors_may_change_what_else_was_saved(name, fused):
    """Parameters, and states before some of the steps."""
    layer, x = LAYERS[name](backend=fused).to(device_of(fused)), drawn(fused, STEPS, 4, SIZE)
    results = []
    for unpack in (torch.clone, lambda one: one.repeat_interleave(2)[::2], torch.Tensor.double):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: one, lambda one, unpack=unpack: unpack(one) if one.dim() == 1 else one
        ):
            out, _ = layer(leaf)
        results.append(torch.autograd.grad(out, [leaf, *layer.parameters()], x))
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_sparse_gradient_is_that_of_its_numbers(name, again, fused):
    layer, x = LAYERS[name](backend=fused), drawn(fused, STEPS, BATCH, SIZE)
    places = torch.zeros(STEPS, BATCH, 2, dtype=torch.int64, device=x.device)
    layer, results = layer.to(device_of(fused)), []
    for sparse in (False, True):
        for _ in range(1 + again):
            leaf = x.clone().requires_grad_()
            out, state = layer(leaf)
            last = state[-1] if isinstance(state, tuple) else state
            picked = (
                torch.gather(out, 2, places, sparse_grad=sparse),
                torch.gather(last, 1, places[0], sparse_grad=sparse),
            )
            grads = torch.autograd.grad(sum(map(torch.sum, picked)), [leaf, *layer.parameters()])
        results.append(grads)
    assert all(map(torch.equal, *results))


def test_another_number_of_threads_is_another_call():
    if "numba" not in dispatch.TABLE:
        pytest.skip("numba does not run here")
    before, x = torch.get_num_threads(), torch.randn(400, 8, 64)
    ops.forget()
    try:
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            ns.lif(x, beta=0.9, backend="numba")
        assert known("numba")[0] == [True, True]
    finally:
        torch.set_num_threads(before)


def test_threads_share_what_is_known():
    if "numba" not in dispatch.TABLE:
        pytest.skip("numba does not run here")
    layer = ns.LIF(0.9, backend="numba")
    ops.forget()

    def work(seed):
        x = torch.randn(STEPS, BATCH, SIZE, generator=torch.Generator().manual_seed(seed))
        first = layer(x)
        return all(all(map(torch.equal, layer(x), first)) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_other_numbers_are_other_numbers(fused):
    """Also where a kernel was compiled for those of before."""
    results = []
    for anew in (True, False):
        ops.forget()
        for beta, slope in ((0.5, 2.0), (0.7, 2.5), (0.5, 2.0), (0.25, 3.0), (0.5, 2.1)):
            if anew:
                ops.forget()
            x = torch.linspace(-1, 3, STEPS * 4, device=device_of(fused))
            x = x.view(STEPS, 1, 4).requires_grad_()
            found = ns.lif(x, beta=beta, surrogate=ns.surrogate.atan(slope), backend=fused)
            found[0].sum().backward()
            results.append((*found, x.grad))
    half = len(results) // 2
    for one, other in zip(results[:half], results[half:]):
        assert all(map(torch.equal, one, other))


def test_only_so_many_kinds_of_calls_are_kept(fused, monkeypatch):
    monkeypatch.setattr(running, "KEPT", 3)
    ops.forget()
    for steps in range(1, 9):
        ns.lif(drawn(fused, steps, 1, 4), beta=0.9, backend=fused)
    assert len(known(fused)[0]) <= 3


def test_constants_that_are_changed_in_place_are_read_anew(fused):
    layer, x = lif(fused), drawn(fused, STEPS, BATCH, SIZE)
    layer(x)
    layer.beta.data.fill_(0.5)
    layer.threshold.mul_(0.7)
    assert all(map(torch.equal, layer(x), ns.lif(x, beta=0.5, threshold=0.7, backend=fused)))


def test_a_parameter_that_fits_one_current_is_looked_at_beside_another(fused):
    layer = ns.LIF(torch.full((SIZE,), 0.9), learn_beta=True, backend=fused)
    layer = layer.to(device_of(fused))
    for _ in range(2):
        layer(drawn(fused, STEPS, BATCH, SIZE))
        layer(drawn(fused, STEPS, BATCH, 4, SIZE))
        wide, _ = layer(drawn(fused, STEPS, BATCH, SIZE).double())
        assert wide.dtype == torch.float64
        with pytest.raises(ValueError, match="does not broadcast"):
            layer(drawn(fused, STEPS, BATCH, SIZE + 1))
        with pytest.raises(ValueError, match="may mean the first axis or the last"):
            layer(drawn(fused, STEPS, BATCH, SIZE, SIZE))


WATCHING = {"profiler": torch.profiler.profile, "mode": lambda: FlopCounterMode(display=False)}


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("watching", WATCHING)
@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_pass_is_repeated_as_it_was_whoever_watches_one_of_them(
    name, watching, forward, fused
):
    layer = LAYERS[name](backend=fused).to(device_of(fused))
    x, results = drawn(fused, STEPS, BATCH, SIZE), []
    for watch in (contextlib.nullcontext, WATCHING[watching]):
        leaf = x.clone().requires_grad_()
        with watch() if forward else contextlib.nullcontext():
            out, _ = checkpoint(layer, leaf, use_reentrant=False)
        with contextlib.nullcontext() if forward else watch():
            out.sum().backward()
        results.append(leaf.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_known_keeps_no_tensor_of_the_call(fused, grad):
    """Of whatever class: the next call like it may be one of plain tensors."""
    ops.forget()
    kept = []
    for make in (lambda x: torch.nn.Parameter(x, grad), torch.randn_like):
        layer = ns.LIF(0.9, learn_beta=True, backend=fused).to(device_of(fused))
        x = make(drawn(fused, STEPS, 2, SIZE))
        found = layer(x)
        if grad:
            found[0].sum().backward()
        kept += map(weakref.ref, (x, *found, *layer.parameters()))
        del layer, x, found
    for _ in range(100):
        gc.collect()
        if not any(one() is not None for one in kept):
            break
        time.sleep(0.05)  # of a GPU autograd has a thread of its own, which lets go a little later
    assert [one() for one in kept] == [None] * len(kept)


def divided(current, mem, tau):
    mem = mem + current / tau
    return fire(mem), mem


def divided_by(tau):
    def neuron(current, mem, beta, threshold):
        mem = mem + current / tau
        return fire(mem), mem

    return neuron


def divided_by_a_literal(zero):
    if zero.hex().startswith("-"):
        return ns.Neuron(lambda current, mem, beta, threshold: (fire(current), current / -0.0))
    return ns.Neuron(lambda current, mem, beta, threshold: (fire(current), current / 0.0))


def divided_by_the_threshold(current, mem, beta, threshold):
    mem = mem + current / threshold
    return fire(mem), mem


def slope(zero):
    return lambda u: u / zero


# A layer in which a number is a divisor: -0.0 and 0.0 give infinities of opposite signs.
DIVISORS = {
    "parameter": lambda zero, **options: ns.Spiking(divided, tau=zero, **options),
    "from outside": lambda zero, **options: ns.LIF(
        0.5, neuron=ns.Neuron(divided_by(zero)), **options
    ),
    "number of a call": lambda zero, **options: functools.partial(
        ns.lif, beta=0.5, threshold=zero, neuron=ns.Neuron(divided_by_the_threshold), **options
    ),
    "literal": lambda zero, **options: ns.LIF(0.5, neuron=divided_by_a_literal(zero), **options),
    "recurrent": lambda zero, **options: ns.Recurrent(
        ns.LIF(0.5, neuron=ns.Neuron(divided_by(zero)), **options), 3
    ),
}


@pytest.mark.parametrize("first", [0.0, -0.0])
@pytest.mark.parametrize("name", DIVISORS)
def test_a_constant_keeps_the_sign_of_its_zero(backend, name, first):
    ops.forget()
    device, ends = device_of(backend), []
    x = torch.ones(1, 1, 3, device=device)
    for zero in (first, -first):
        layer = DIVISORS[name](zero, backend=backend)
        layer = layer.to(device) if isinstance(layer, torch.nn.Module) else layer
        ends.append(flat(layer(x))[-1])
    assert ends[0].isinf().all()
    assert torch.equal(ends[0], -ends[1])


def test_a_number_of_a_surrogate_keeps_the_sign_of_its_zero(backend):
    grads = []
    for surrogate in (slope(0.0), slope(-0.0), ns.surrogate.Surrogate(lambda u, n: u / n, (-0.0,))):
        x = torch.full((1, 1, 3), 2.0, device=device_of(backend), requires_grad=True)
        ns.lif(x, beta=0.5, surrogate=surrogate, backend=backend)[0].sum().backward()
        grads.append(x.grad)
    assert grads[0].isinf().all()
    assert torch.equal(grads[0], -grads[1])
    assert torch.equal(grads[1], grads[2])
