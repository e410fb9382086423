"""Sequences of different lengths in one batch: each sample as if it were run on its own."""

import re

import numpy as np
import pytest
import torch
from conftest import fused_backends
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import neurospike as ns
from neurospike.backend import dispatch
from neurospike.coding import decoding, losses
from neurospike.ops.arguments import check_lengths

# At the door

SEQUENCE = torch.zeros(7, 3, 5)


@pytest.mark.parametrize(
    "given", [[7, 0, 2], (7, 0, 2), [np.int64(7), 0, 2]], ids=["list", "tuple", "numbers of NumPy"]
)
def test_lengths_may_be_a_list(given):
    found = check_lengths(given, SEQUENCE, -1)
    assert torch.equal(found, torch.tensor([7, 0, 2]))
    assert found.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_may_be_integers_of_any_format(dtype):
    wide = torch.tensor([[7, 9], [0, 9], [2, 9]], dtype=dtype)
    found = check_lengths(wide[:, 0], SEQUENCE, -1)
    assert torch.equal(found, torch.tensor([7, 0, 2]))
    assert found.is_contiguous()


def test_lengths_of_a_constant_current_count_its_samples_and_steps():
    assert torch.equal(check_lengths([9, 0], torch.zeros(2, 5), 9), torch.tensor([9, 0]))
    assert len(check_lengths([], torch.zeros(4, 0, 5), -1)) == 0


FLAWED = [
    (7, TypeError, "must be a tensor of integers [B] or a list of them, got 7"),
    ("7", TypeError, "must be a tensor of integers [B] or a list of them, got '7'"),
    ([7.0, 0, 2], TypeError, "or a list of them, got [7.0, 0, 2]"),
    ([True, 0, 2], TypeError, "or a list of them, got [True, 0, 2]"),
    (torch.ones(3), TypeError, "got torch.float32; convert them with .to(torch.int64)"),
    (torch.ones(3, dtype=torch.bool), TypeError, "must be integers [B], got torch.bool"),
    ([7, 0], ValueError, "one for each of the 3 samples of the current, got the shape (2,)"),
    (torch.tensor(7), ValueError, "must be [B], one for each of the 3 samples"),
    (torch.ones(3, 1, dtype=torch.int64), ValueError, "got the shape (3, 1)"),
    ([7, -1, 2], ValueError, "between 0 and the 7 steps of the current, got -1 for sample 1"),
    ([7, 0, 8], ValueError, "between 0 and the 7 steps of the current, got 8 for sample 2"),
    (
        torch.zeros(3, dtype=torch.int64, device="meta"),
        ValueError,
        "are on meta, current on cpu; move them with .to('cpu'), or leave them on the CPU",
    ),
]


@pytest.mark.parametrize(("lengths", "error", "said"), FLAWED, ids=lambda one: str(one)[-24:])
def test_other_lengths_are_refused(lengths, error, said):
    with pytest.raises(error, match=re.escape(said)):
        check_lengths(lengths, SEQUENCE, -1)


def test_lengths_elsewhere_are_not_looked_at():
    """Nothing waits for a GPU; a kernel takes them as 0 to T."""
    current = torch.zeros(7, 3, 5, device="meta")
    on_device = torch.zeros(3, dtype=torch.int32, device="meta")
    assert check_lengths(on_device, current, -1).dtype == torch.int64
    assert check_lengths([7, 0, 2], current, -1).device.type == "meta"
    with pytest.raises(ValueError, match="got 8 for sample 2"):
        check_lengths([7, 0, 8], current, -1)


# Neurons

STEPS = 9
LENGTHS = [9, 0, 4, 1]
LIFS = [("subtract", True), ("zero", True), ("none", True), ("subtract", False), ("zero", False)]
NEURONS = {
    **{
        f"lif {reset}{'' if delayed else ' immediate'}": lambda beta, r=reset, d=delayed: ns.LIF(
            beta, 0.4, reset=r, reset_delay=d, learn_beta=True, learn_threshold=True
        )
        for reset, delayed in LIFS
    },
    "li": lambda beta: ns.LI(beta, learn_beta=True),
    "two states": lambda beta: ns.SEAdLIF(beta, threshold=0.4, learn=("d_u", "a", "threshold")),
    "three states": lambda beta: ns.Alpha(beta, 0.4, 0.3, learn=("alpha", "threshold")),
}


def made(name, features, backend, dtype=torch.float32):
    """Neurons with decays of their own and one threshold for all, to be learned."""
    layer = NEURONS[name](0.5 + 0.4 * torch.rand(features)).to(dtype)
    layer.backend = backend
    return layer


def ran(layer, current, state, **options):
    """Return (what there is at every step, the states at last), a list each."""
    if isinstance(layer, ns.LI):
        trace, mem = layer(current, *state, **options)
        return [trace], [mem]
    if isinstance(layer, ns.LIF):
        spikes, mem, trace = layer(current, *state, return_trace=True, **options)
        return [spikes, trace], [mem]
    spikes, finals, traces = layer(current, state or None, return_trace=True, **options)
    return [spikes, *traces], [*finals]


def states_of(layer, *shape, dtype=torch.float32):
    many = len(layer.states) if isinstance(layer, ns.Spiking) else 1
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for _ in range(many)]


def check_alone(layer, current, state, lengths, dtype, num_steps=None):
    """Compare a batch, and all of its gradients, with its samples run one by one."""
    held = num_steps is not None
    inputs = [current, *state, *layer.parameters()]
    options = {"num_steps": num_steps} if held else {}
    sequences, finals = ran(
        layer, current, state, lengths=torch.tensor(lengths, dtype=torch.int64), **options
    )
    weights = [torch.randn_like(one) for one in (*sequences, *finals)]
    total = sum((one * w).sum() for one, w in zip((*sequences, *finals), weights))
    found = torch.autograd.grad(total, inputs)
    total = 0.0 * sum(one.sum() for one in layer.parameters())
    for b, length in enumerate(lengths):
        one = slice(b, b + 1)
        own = current[one] if held else current[:length, one]
        options = {"num_steps": length} if held else {}
        alone, ends = ran(layer, own, [mem[one] for mem in state], **options)
        for whole, mine, w in zip(sequences, alone, weights):
            assert torch.equal(whole[:length, one], mine)
            total = total + (mine * w[:length, one]).sum()
        for whole, mine, w in zip(finals, ends, weights[len(sequences) :]):
            assert torch.equal(whole[one], mine)
            total = total + (mine * w[one]).sum()
        spikes = [] if isinstance(layer, ns.LI) else sequences[:1]
        assert not any(whole[length:, b].any() for whole in spikes)
        for whole, end in zip(sequences[len(spikes) :], finals):
            assert torch.equal(whole[length:, b], end[b].expand_as(whole[length:, b]))
        if not held:
            assert not found[0][length:, b].any()
    budget = 1e-12 if dtype == torch.float64 else 1e-5
    for grad, want in zip(found, torch.autograd.grad(total, inputs, materialize_grads=True)):
        assert (grad - want).norm() <= budget * want.norm()


def padded(lengths, features, dtype=torch.float32, steps=STEPS):
    """A current with NaN where no sample is, which nobody may read."""
    current = torch.randn(steps, len(lengths), features, dtype=dtype)
    for b, length in enumerate(lengths):
        current[length:, b] = torch.nan
    return current.requires_grad_()


CASES = [(name, torch.float32) for name in NEURONS]
CASES += [(name, torch.float64) for name in ("lif subtract", "li", "three states")]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_a_batch_equals_its_samples_run_one_by_one(name, dtype, backend):
    layer = made(name, 10, backend, dtype)
    state = states_of(layer, 4, 10, dtype=dtype)
    check_alone(layer, padded(LENGTHS, 10, dtype), state, LENGTHS, dtype)


@pytest.mark.parametrize("name", ["lif subtract", "two states"])
@pytest.mark.parametrize(
    ("lengths", "features"),
    [([7], 100), ([0], 3), ([2, 9], 600), ([9, 9, 9], 1), ([0, 0], 5), ([], 5), ([3, 1], 0)],
    ids=str,
)
def test_any_batch(name, lengths, features, backend):
    """Of one sample, of more neurons than a block has, and of nothing."""
    layer = made(name, features, backend)
    state = states_of(layer, len(lengths), features)
    check_alone(layer, padded(lengths, features), state, lengths, torch.float32)


@pytest.mark.parametrize("name", ["lif zero", "li", "three states"])
def test_a_constant_current(name, backend):
    layer = made(name, 10, backend)
    current = torch.rand(4, 10).requires_grad_()
    check_alone(layer, current, states_of(layer, 4, 10), LENGTHS, torch.float32, num_steps=STEPS)


def test_no_steps_and_no_states_given(backend):
    layer = made("lif subtract", 5, backend)
    spikes, mem = layer(torch.zeros(0, 2, 5), lengths=[0, 0])
    assert spikes.shape == (0, 2, 5)
    assert torch.equal(mem, torch.zeros(2, 5))
    current = padded(LENGTHS, 5)
    for found, wanted in zip(
        layer(current, lengths=LENGTHS), layer(current, torch.zeros(4, 5), lengths=LENGTHS)
    ):
        assert torch.equal(found, wanted)
    rested = ns.Izhikevich(backend=backend)
    _, (v, _) = rested(torch.rand(STEPS, 4, 5), lengths=LENGTHS)
    assert v[1].unique().tolist() == [-65.0]
    assert v[0].unique().numel() > 1


@pytest.mark.parametrize("segment", [2, 4, 5])
def test_segments(segment, backend):
    """A sample that ends in an earlier segment has the gradient that it has on its own."""
    layer = made("two states", 10, backend)
    layer.segment = segment
    check_alone(layer, padded(LENGTHS, 10), states_of(layer, 4, 10), LENGTHS, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits(dtype, backend):
    layer = made("lif subtract", 10, backend)
    narrow = padded(LENGTHS, 10, dtype)
    wide = narrow.detach().float().requires_grad_()
    (spikes, mem), (same, other) = (layer(x, lengths=LENGTHS) for x in (narrow, wide))
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), same)
    assert torch.equal(mem, other)
    for x, out in ((narrow, spikes), (wide, same)):
        out.sum().backward()
        assert x.grad.isfinite().all()
    assert torch.equal(narrow.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("name", ["lif subtract", "three states"])
def test_lengths_of_all_steps_change_no_bit(name, fused):
    layer = made(name, 600, fused)
    current, state = torch.randn(STEPS, 3, 600).requires_grad_(), states_of(layer, 3, 600)
    results = []
    for options in ({}, {"lengths": [STEPS] * 3}):
        sequences, finals = ran(layer, current, state, **options)
        total = sum(one.square().sum() for one in (*sequences, *finals))
        grads = torch.autograd.grad(total, [current, *state])
        results.append([*sequences, *finals, *grads])
    assert all(map(torch.equal, *results))


@pytest.mark.skipif("numba" not in fused_backends(), reason="numba does not run here")
@pytest.mark.parametrize("size", [640, 600, 604, 601])  # rows begin at 64, 32, 16 and 4 bytes
def test_large_outputs_are_streamed_past_the_caches(size, monkeypatch):
    module = dispatch.scan_of(dispatch.TABLE["numba"])
    monkeypatch.setattr(module, "STREAMED", 0)
    layer = made("lif subtract", size, "numba")
    check_alone(layer, padded(LENGTHS, size), states_of(layer, 4, size), LENGTHS, torch.float32)


def test_a_kernel_takes_any_number_for_a_length(fused):
    """Those of a GPU, and under torch.compile, are not looked at before."""
    call = (torch.randn(STEPS, 3, 10), [], [torch.full((1,), 0.9), torch.ones(1)])
    rest = (ns.LIF(0.9).rule.program, [*ns.LIF(0.9).rule.numbers], -1, 1)
    operator = getattr(torch.ops.neurospike, f"{fused}_scan")
    found = operator(*call, *rest, torch.tensor([-5, 1 << 40, 4]))
    wanted = operator(*call, *rest, torch.tensor([0, STEPS, 4]))
    assert all(map(torch.equal, found, wanted))
    assert not found[0][:, 0].any()


# Under torch's transforms


def test_compiled_and_exported(fused):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = made("lif subtract", 10, fused)

        def forward(self, x, lengths):
            return self.lif(x, lengths=lengths)

    layer, x, lengths = Layer(), padded(LENGTHS, 10), torch.tensor(LENGTHS)
    wanted = layer(x, lengths)
    (wanted_grad,) = torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = compiled(x, lengths)
    (grad,) = torch.autograd.grad(found[0].sum() + found[1].sum(), x)
    assert all(map(torch.equal, found, wanted))
    assert torch.equal(grad, wanted_grad)
    program = torch.export.export(layer, (x, lengths)).module()
    other = torch.tensor([3, 9, 0, 1])
    assert all(map(torch.equal, program(x.nan_to_num(), other), layer(x.nan_to_num(), other)))


def test_vmap_leaves_the_samples_their_lengths(fused):
    layer = made("lif subtract", 10, fused)
    x, lengths = torch.randn(3, STEPS, 4, 10), torch.tensor(LENGTHS)
    found = torch.vmap(lambda one: layer(one, lengths=lengths))(x)
    for k, one in enumerate(x):
        for whole, wanted in zip(found, layer(one, lengths=lengths)):
            assert torch.equal(whole[k], wanted)
    with pytest.raises(ValueError, match="vmap over lengths: every part must have the same"):
        torch.vmap(lambda one, own: layer(one, lengths=own))(x, lengths.expand(3, 4))
    loss = torch.func.grad(lambda one: layer(one, lengths=lengths)[0].sum())
    grads = torch.vmap(loss)(x)
    assert torch.equal(grads[1], loss(x[1]))
    assert not grads[:, :, 1].any()


# Networks


class Mine(nn.Module):
    """Counts what came, up to a sample's end."""

    carries_state = True

    def forward(self, x, state=None, lengths=None):
        steps = torch.arange(len(x)).view(-1, 1, 1)
        going = steps < (len(x) if lengths is None else lengths.view(-1, 1))
        total = (0.0 if state is None else state) + (x * going).cumsum(0)
        return total, total[-1]


class Forgetful(Mine):
    def forward(self, x, state=None):
        return super().forward(x, state)


def network(backend, last=None):
    return ns.Sequential(
        nn.Linear(6, 12),
        ns.LIF(0.9, 0.3, backend=backend),
        ns.Sequential(ns.SpikeLinear(12, 8), ns.LIF(0.8, 0.1, backend=backend)),
        nn.Linear(8, 5),
        last or ns.LI(0.9, backend=backend),
    ).double()


@pytest.mark.parametrize("last", [None, Mine(), ns.Synaptic(0.9, 0.8)], ids=["LI", "own", "zoo"])
@pytest.mark.parametrize("held", [False, True], ids=["sequence", "constant"])
def test_a_network_hands_lengths_to_its_neurons(last, held, backend):
    net = network(backend, last)
    lengths = [9, 2, 4, 1]
    x = torch.rand(*(() if held else (STEPS,)), 4, 6, dtype=torch.float64)
    out, states = net(x, num_steps=STEPS if held else None, lengths=lengths)
    total = sum(out[:n, b].sum() for b, n in enumerate(lengths))
    found = torch.autograd.grad(total, list(net.parameters()))
    total = 0.0
    for b, n in enumerate(lengths):
        one = slice(b, b + 1)
        given = (x[one], None, n) if held else (x[:n, one], None, None)
        alone, ends = net(given[0], num_steps=given[2])
        torch.testing.assert_close(alone, out[:n, one], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ends[0], states[0][one], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ends[1][0], states[1][0][one], rtol=1e-12, atol=1e-12)
        total = total + alone.sum()
    for grad, want in zip(found, torch.autograd.grad(total, list(net.parameters()))):
        torch.testing.assert_close(grad, want, rtol=1e-10, atol=1e-12)


def test_a_layer_that_takes_no_lengths_is_refused():
    net = ns.Sequential(nn.Linear(5, 5), Forgetful())
    net(SEQUENCE)
    with pytest.raises(TypeError, match=r"layer 1 \(Forgetful\) carries .* takes no lengths: give"):
        net(SEQUENCE, lengths=[7, 0, 2])
    for refused in (net, ns.Sequential(nn.Identity())):
        with pytest.raises(ValueError, match="got 8 for sample 0"):
            refused(SEQUENCE, lengths=[8, 0, 2])


def test_a_compiled_network(fused):
    net = network(fused)
    x, lengths = torch.rand(STEPS, 4, 6, dtype=torch.float64), torch.tensor(LENGTHS)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, lengths=lengths), net(x, lengths=lengths))


def test_converted_layers_take_lengths():
    import snntorch

    for neurons in (
        snntorch.Leaky(0.9, threshold=0.3),
        snntorch.Synaptic(0.9, 0.8),
        snntorch.RLeaky(0.9, all_to_all=False),
    ):
        net = ns.convert(nn.Sequential(nn.Linear(5, 6), neurons))
        x = torch.rand(STEPS, 4, 5)
        (spikes, *traces), _ = net(x, lengths=LENGTHS)
        (same, *others), _ = net(x)
        for b, length in enumerate(LENGTHS):
            assert torch.equal(spikes[:length, b], same[:length, b])
            assert not spikes[length:, b].any()
            for trace, other in zip(traces, others):
                assert torch.equal(trace[:length, b], other[:length, b])
                if length:
                    assert torch.equal(trace[-1, b], other[length - 1, b])


def test_a_layer_of_spikes_takes_the_pair(backend):
    linear, lif = ns.SpikeLinear(6, 12, backend=backend), ns.LIF(0.9, 0.3, backend=backend)
    spikes = (torch.rand(STEPS, 4, 6) < 0.3).to(torch.uint8)
    found = ns.spike_layer(linear, lif, spikes, lengths=LENGTHS)
    assert all(map(torch.equal, found, lif(linear(spikes), lengths=LENGTHS)))
    assert not found[0][:, 1].any()


# Ragged sequences, by the lines that their refusals name


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_lines_that_a_refusal_names_work():
    sequences = [torch.rand(n, 4) for n in (2, 5, 3)]
    layer = ns.LIF(0.9, 0.3)
    layouts = (torch.strided, torch.jagged)
    ragged = [torch.nested.nested_tensor(sequences, layout=layout) for layout in layouts]
    for x in (pack_sequence(sequences, enforce_sorted=False), *ragged):
        with pytest.raises(TypeError) as caught:
            layer(x)
        said = str(caught.value)
        scope = {"torch": torch, "x": x}
        if "PackedSequence" in said:
            exec(said.split("lengths: ")[1].split(", then")[0], scope)
            given = scope["x"], scope["lengths"]
        else:
            given = [eval(said.split(a)[1].split(b)[0], scope) for a, b in NAMED]
        spikes, mem = layer(given[0], lengths=given[1])
        for b, sequence in enumerate(sequences):
            alone, end = layer(sequence.unsqueeze(1))
            assert torch.equal(spikes[: len(sequence), b : b + 1], alone)
            assert torch.equal(mem[b : b + 1], end)


NAMED = (("padded, as ", ", which"), ("lengths=", "\n"))  # before and after each expression


# Readouts and losses

LABELS = torch.tensor([2, 0, 1, 1])
SCORES = {
    **losses.READOUTS,
    "counts": decoding.counts,
    "decoded first spike": decoding.first_spike,
    **{
        f"membrane {how}": lambda x, how=how, **o: decoding.membrane(x, how, **o)
        for how in ("mean", "max", "last")
    },
    "population": lambda x, **o: decoding.population(x, 3, **o),
}


def an_output(name, dtype=torch.float64):
    """Spikes or membranes `[T, B, C]`, of which those beyond the end are not to be looked at."""
    x = torch.randn(STEPS, 4, 3, dtype=dtype)
    return (x if "membrane" in name else (x > 1).to(dtype)).requires_grad_()


def compared(whole, alone, x):
    """Compare values and gradients of a batch and of its samples."""
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(whole)
    found, wanted = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (whole, alone))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_a_samples_own_steps(name):
    x, lengths = an_output(name), [9, 2, 4, 1]
    each = [SCORES[name](x[:n, b : b + 1]) for b, n in enumerate(lengths)]
    compared(SCORES[name](x, lengths=lengths), torch.cat(each), x)
    assert not SCORES[name](x, lengths=LENGTHS)[1].any()
    with pytest.raises(ValueError, match="got 10 for sample 0"):
        SCORES[name](x, lengths=[10, 0, 0, 0])


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_16_bit_output_are_float32_with_lengths_too(name):
    found = SCORES[name](an_output(name, torch.bfloat16), lengths=LENGTHS)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_is_the_mean_of_that_of_each_sample(name):
    x, lengths, loss = an_output(name), [9, 2, 4, 1], losses.LOSSES[name]
    each = [loss(x[:n, b : b + 1], LABELS[b : b + 1]) for b, n in enumerate(lengths)]
    compared(loss(x, LABELS, lengths=lengths), torch.stack(each).mean(), x)


@pytest.mark.parametrize("name", [*SCORES, *losses.LOSSES])
def test_what_lies_beyond_the_end_may_be_anything(name):
    x, lengths = an_output(name), torch.tensor([STEPS, 2, 4, 0])
    given = (x, LABELS) if name in losses.LOSSES else (x,)
    with torch.no_grad():
        x.masked_fill_((torch.arange(STEPS)[:, None] >= lengths)[..., None], torch.nan)
    found = (SCORES | losses.LOSSES)[name](*given, lengths=lengths)
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_largest_membrane_at_the_last_step_has_all_of_the_gradient():
    x = torch.tensor([1.0, 2.0, 2.0, 2.0]).view(4, 1, 1).requires_grad_()
    losses.max_membrane(x, [2]).sum().backward()
    assert x.grad.flatten().tolist() == [0, 1, 0, 0]


def test_a_rate_is_that_of_the_steps_that_there_are():
    spikes = torch.ones(STEPS, 4, 3)
    for b, n in enumerate(LENGTHS):
        spikes[n:, b] = 0
    assert losses.rate_penalty({"a": spikes}, 0.0, 1.0, lengths=LENGTHS) == 0
    assert losses.rate_penalty({"a": spikes}, 1.0, 1.0, lengths=LENGTHS) == 0
    assert losses.rate_penalty({"a": spikes}, 1.0, 1.0) > 0.1
