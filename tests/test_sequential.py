"""`ns.Sequential` against a loop over time, and its refusals."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import neurospike as ns


def test_neurons_in_a_row_of_torch_hint_at_ours():
    x = torch.rand(3, 2, 4)
    for second in (ns.LIF(0.9), ns.SpikeLinear(4, 4)):
        with pytest.raises(TypeError, match=r"got tuple; .* ns.Sequential in place of nn.Sequent"):
            nn.Sequential(ns.LIF(0.9), second)(x)


def network(backend):
    return ns.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.MaxPool2d(2),
        ns.LIF(torch.full((3, 1, 1), 0.8), learn_beta=True, backend=backend),
        nn.Flatten(),
        nn.Linear(27, 5),
        ns.LIF(0.9, reset="zero", backend=backend),
        nn.Linear(5, 4),
        ns.LI(0.7, backend=backend),
    ).double()


@pytest.fixture
def net(backend):
    return network(backend)


@pytest.fixture
def frames():
    return torch.randn(6, 3, 2, 8, 8, dtype=torch.float64)


def by_steps(net, frames):
    """The same network stepped over time, each layer on [B, *F]."""
    states = [None] * len(net)
    outputs = []
    for x in frames:
        for k, layer in enumerate(net):
            if hasattr(layer, "beta"):
                x, states[k] = layer(x[None], states[k])
                x = x[0]
            else:
                x = layer(x)
        outputs.append(x)
    return torch.stack(outputs), [state for state in states if state is not None]


def test_it_is_the_network_stepped_over_time(net, frames):
    out, states = net(frames)
    wanted, last = by_steps(net, frames)
    assert out.shape == (6, 3, 4)
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-12)
    assert [state.shape for state in states] == [(3, 3, 3, 3), (3, 5), (3, 4)]
    for got, want in zip(states, last):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    got = torch.autograd.grad(out.pow(2).sum(), parameters)
    want = torch.autograd.grad(wanted.pow(2).sum(), parameters)
    for g, w in zip(got, want):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)


def test_segments_equal_the_whole(net, frames):
    whole, last = net(frames)
    states, parts = None, []
    for part in frames.split([1, 0, 3, 2]):
        out, states = net(part, states)
        parts.append(out)
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    for got, want in zip(states, last):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_constant_input_is_run_once_up_to_the_first_neurons(net, frames):
    runs = []
    net[0].register_forward_hook(lambda *call: runs.append(call[1][0].shape[0]))
    held, states = net(frames[0], num_steps=7)
    assert runs == [3]
    repeated, wanted = net(frames[:1].expand(7, *frames.shape[1:]))
    assert runs == [3, 21]
    assert torch.allclose(held, repeated, rtol=1e-12, atol=1e-12)
    more, _ = net(frames[0], states, num_steps=2)
    whole, _ = net(frames[0], num_steps=9)
    assert torch.allclose(more, whole[7:], rtol=1e-12, atol=1e-12)
    assert all(torch.allclose(a, b) for a, b in zip(states, wanted))


def test_without_neurons_a_constant_input_gives_a_constant_output():
    linear = nn.Linear(4, 3)
    out, states = ns.Sequential(linear)(torch.ones(2, 4), num_steps=5)
    assert torch.equal(out, linear(torch.ones(2, 4)).expand(5, 2, 3))
    assert states == ()


def test_nested_networks_and_layers_of_the_users(backend):
    class Sum(nn.Module):
        """Output: the sum so far; its state: the last one."""

        carries_state = True

        def forward(self, x, state=None):
            total = x.cumsum(0) + (0 if state is None else state)
            return total, total[-1]

    net = ns.Sequential(Sum(), ns.Sequential(nn.Identity(), ns.LIF(0.9, backend=backend)), Sum())
    x = torch.randn(6, 2, 3)
    out, states = net(x)
    assert [type(state) for state in states] == [torch.Tensor, tuple, torch.Tensor]
    first, carried = net(x[:4])
    second, last = net(x[4:], carried)
    assert torch.allclose(torch.cat([first, second]), out)
    assert torch.allclose(last[1][0], states[1][0])
    held, _ = net(x[0], num_steps=3)
    assert torch.allclose(held, net(x[:1].expand(3, 2, 3))[0])


def test_another_number_of_states_than_of_layers_that_carry_one():
    one, none = ns.Sequential(nn.ReLU(), ns.LIF(0.9)), ns.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match=r"must hold one state, that of layer 1 \(LIF\); got 2"):
        one(torch.zeros(2, 3, 4), (None, None))
    with pytest.raises(ValueError, match=r"must be empty or left out, as no layer carries .*got 1"):
        none(torch.zeros(2, 3, 4), (None,))


# Modules that stand in a network twice


def test_a_module_that_stands_twice_runs_twice(backend, frames):
    conv, pool, act = nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2), nn.Hardtanh()
    lif = ns.LIF(0.9, threshold=0.3, learn_beta=True, backend=backend)
    net = ns.Sequential(conv, act, pool, lif, conv, act, pool, lif, nn.Flatten()).double()
    out, states = net(frames)
    wanted, last = by_steps(net, frames)
    assert out.sum() > 0
    assert torch.equal(out, wanted)
    assert [state.shape for state in states] == [(3, 2, 4, 4), (3, 2, 2, 2)]  # one at each place
    assert all(torch.allclose(got, want) for got, want in zip(states, last))
    first, carried = net(frames[:2])
    second, _ = net(frames[2:], carried)
    assert torch.equal(torch.cat([first, second]), out)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert again[0] is again[4]
        assert torch.equal(again(frames)[0], out)
    plain = nn.Sequential(*net)
    assert list(plain.state_dict()) == list(net.state_dict())
    held, _ = net(frames[0], num_steps=3)
    assert torch.equal(held, net(frames[:1].expand(3, *frames.shape[1:]))[0])


def test_a_block_that_stands_twice_has_a_state_at_each_place():
    block = ns.Sequential(nn.Linear(4, 4), ns.LIF(0.9, threshold=0.1))
    twin = ns.Sequential(block, copy.deepcopy(block))
    x = torch.rand(6, 2, 4)
    out, states = ns.Sequential(block, block)(x)
    wanted, separate = twin(x)
    assert torch.equal(out, wanted)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(states, separate))


# What draws at random, before the first neurons


class Draws(nn.Module):
    """A rate encoder of one's own, which draws from one of several generators."""

    def __init__(self, source="torch"):
        super().__init__()
        self.source, self.batches = source, []
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x):
        self.batches.append(len(x))
        if self.source == "numpy":
            drawn = torch.from_numpy(np.random.rand(*x.shape)).float()  # noqa: NPY002
        elif self.source == "random":
            drawn = torch.tensor([random.random() for _ in range(x.numel())]).view(x.shape)
        elif self.source == "own":
            drawn = torch.rand(x.shape, generator=self.own)
        else:
            drawn = torch.rand_like(x) if self.source == "torch" else torch.full_like(x, 0.5)
        return (drawn < x).float()


class Noisy(nn.Module):
    """Normalises, then silences: its buffers must be moved on once."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x):
        x = x.mul_(0.5)  # in place: what is tried must not be seen in the input
        return nn.functional.dropout(self.norm(x).clamp(0, 1), 0.5, self.training)


RANDOM = {
    "dropout": lambda: [nn.Dropout(0.5)],
    "alpha dropout": lambda: [nn.AlphaDropout(0.5)],
    "channels": lambda: [nn.Unflatten(1, (16, 4)), nn.Dropout1d(0.5), nn.Flatten()],
    "rrelu": lambda: [nn.Linear(64, 64), nn.RReLU()],
    "pooling": lambda: [
        nn.Unflatten(1, (1, 8, 8)),
        nn.FractionalMaxPool2d(2, output_size=5).eval(),
        nn.Flatten(),
    ],
    "nested": lambda: [nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Dropout(0.5)))],
    "a block": lambda: [Noisy()],
    **{source: lambda source=source: [Draws(source)] for source in ("torch", "numpy", "random")},
    "own": lambda: [nn.Identity(), Draws("own"), nn.ReLU(inplace=True)],
}


def seed(net):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    for module in net.modules():
        if isinstance(module, Draws):
            module.own.manual_seed(1)


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("last", [ns.LI(0.5), nn.Identity()], ids=type)
def test_with_num_steps_every_step_draws_anew_as_in_a_sequence(kind, last):
    net = ns.Sequential(*RANDOM[kind](), last)
    other = copy.deepcopy(net)
    x = torch.rand(4, 64)
    given = x.clone()
    seed(net)
    held, _ = net(x, num_steps=5)
    after = torch.rand(1)
    seed(other)
    wanted, _ = other(x.expand(5, 4, 64).contiguous())
    assert torch.equal(held, wanted)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(x, given)
    assert len({tuple(step.flatten().tolist()) for step in held}) == 5
    for one, two in zip(net.buffers(), other.buffers()):
        assert torch.equal(one, two)


def test_what_draws_nothing_runs_once_and_leaves_generators_alone():
    own = Draws("nothing")
    net = ns.Sequential(nn.Dropout(0.5).eval(), own, nn.Linear(64, 3), ns.LIF(0.9))
    x, before = torch.rand(4, 64), torch.get_rng_state()
    out, _ = net(x, num_steps=5)
    assert own.batches == [4]
    assert torch.equal(before, torch.get_rng_state())
    assert out.shape == (5, 4, 3)


def test_only_what_comes_after_a_draw_runs_at_every_step():
    first, then = Draws("nothing"), Draws("nothing")
    ns.Sequential(first, nn.Dropout(0.5), then, ns.LIF(0.9))(torch.rand(4, 64), num_steps=5)
    assert (first.batches, then.batches) == ([4], [20])


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), Draws("torch")], ids=["torch's", "own"])
def test_compiled_layers_draw_at_every_step(layer):
    torch._dynamo.reset()
    net = ns.Sequential(nn.Linear(64, 64), nn.Sigmoid(), layer, ns.LI(0.0))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    drawn, _ = compiled(torch.rand(4, 64), num_steps=5)
    steady, _ = torch.compile(net.eval()[:2], fullgraph=True, backend="aot_eager")(
        torch.rand(4, 64), num_steps=5
    )
    torch._dynamo.reset()
    assert len({tuple(step.flatten().tolist()) for step in drawn}) == 5
    assert steady.stride(0) == 0  # held, not computed five times


def test_batch_normalisation_of_a_constant_input_sees_its_samples_once():
    norm, once = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(4, 3) * 3 + 1
    held, _ = ns.Sequential(norm, ns.LIF(0.9))(x, num_steps=5)
    once(x)
    assert torch.equal(norm.running_mean, once.running_mean)
    assert torch.equal(norm.running_var, once.running_var)  # of 4 samples, not of 20
    assert norm.num_batches_tracked == 1
    repeated, _ = ns.Sequential(nn.BatchNorm1d(3), ns.LIF(0.9))(x.expand(5, 4, 3))
    assert torch.equal(held, repeated)


def test_batch_normalisation_and_dropout_see_every_step():
    normal = nn.BatchNorm1d(3)
    x = torch.randn(5, 4, 3) * 3 + 1
    out, _ = ns.Sequential(normal)(x)
    assert torch.allclose(out.mean((0, 1)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(normal.running_mean, 0.1 * x.mean((0, 1)))
    dropped, _ = ns.Sequential(nn.Dropout(0.5))(torch.ones(50, 4, 3))
    assert not torch.equal(dropped[0], dropped[1])


def test_it_is_a_torch_sequential_in_all_else(net, frames):
    out, _ = net(frames)
    plain = nn.Sequential(*copy.deepcopy(list(net)))
    assert list(plain.state_dict()) == list(net.state_dict())
    assert isinstance(net[2], ns.LIF)
    tail = net[3:]
    assert isinstance(tail, ns.Sequential)
    spikes, _ = net[:3](frames)
    assert torch.allclose(tail(spikes)[0], out)
    net.append(nn.ReLU())
    assert torch.equal(net(frames)[0], out.relu())
    assert torch.equal(copy.deepcopy(net)(frames)[0], out.relu())


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic, fused, frames):
    torch._dynamo.reset()
    net = network(fused)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, want in zip(compiled(frames), net(frames)):
        for a, b in zip(got, want):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, r"x must be a tensor \[T, B, \*F\], got list"),
        ((torch.zeros(4),), ValueError, r"got shape \(4,\), which has no time or no batch"),
        ((torch.zeros(2, 3, 4), torch.zeros(3, 4)), TypeError, "the tuple .* got Tensor"),
        ((torch.zeros(2, 3, 4), 5), TypeError, "the tuple that an earlier call returned, got int"),
        (
            (torch.zeros(2, 3, 4), (None,)),
            ValueError,
            r"states must hold 2 states, those of the layers 1 \(LIF\), 3 \(LI\); got 1",
        ),
        ((torch.zeros(2, 3, 4), (torch.zeros(3, 9), None)), ValueError, "mem must have the shape"),
    ],
    ids=str,
)
def test_wrong_calls(arguments, error, message):
    net = ns.Sequential(nn.Linear(4, 5), ns.LIF(0.9), nn.ReLU(), ns.LI(0.9))
    with pytest.raises(error, match=message):
        net(*arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_integrator_within_a_16_bit_network_hands_on_its_format(dtype):
    li = ns.LI(0.9)
    for inner in (li, ns.Sequential(nn.Linear(8, 8), li)):
        net = ns.Sequential(nn.Linear(6, 8), inner, nn.Linear(8, 3)).to(dtype)
        out, states = net(torch.rand(5, 4, 6, dtype=dtype))
        assert out.dtype == dtype
        mem = states[0][0] if isinstance(states[0], tuple) else states[0]
        assert mem.dtype == torch.float32
    last, _ = ns.Sequential(nn.Linear(6, 8), li, nn.Linear(8, 8), li).to(dtype)(
        torch.rand(5, 4, 6, dtype=dtype)
    )
    assert last.dtype == torch.float32  # a readout keeps its membranes
    net = ns.Sequential(nn.Linear(6, 8), li, nn.Identity()).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(5, 4, 6))[0].dtype == torch.float32


def test_errors_of_layers_name_them_and_how_x_was_read():
    net = ns.Sequential(nn.Linear(8, 4), ns.LIF(0.9))
    with pytest.raises(
        RuntimeError,
        match=r"layer 0 \(Linear\): .*shapes cannot be multiplied.*x \[3, 8\] was read as "
        r"\[T=3, B=8\]: for a constant input \[B, \*F\] pass num_steps=, for a batch .*batch_first",
    ) as caught:
        net(torch.randn(3, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(
        RuntimeError, match=r"\[B=5, \*F=\[3, 9\]\], the same at each of num_st.*=2"
    ):
        net(torch.randn(5, 3, 9), num_steps=2)
    with pytest.raises(
        RuntimeError, match=r"layer 0 \(Sequential\): layer 0 \(Linear\): .*T=3"
    ) as e:
        ns.Sequential(net)(torch.randn(3, 8))
    assert str(e.value).count("was read as") == 1
    with pytest.raises(ValueError, match=r"layer 1 \(LIF\): mem must have the shape.*\[T=2, B=3, "):
        net(torch.randn(2, 3, 8), (torch.zeros(2, 3, 4),))
    with pytest.raises(
        RuntimeError, match=r"given torch.uint8: convert spikes with .float\(\), or"
    ):
        net(torch.ones(2, 3, 8, dtype=torch.uint8))

    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory$"):  # as it was raised
        ns.Sequential(Full())(torch.ones(2, 3, 8))


def test_neurons_that_return_no_state_are_named():
    class Forgets(nn.Module):
        carries_state = True

        def forward(self, x, state=None):
            return x

    with pytest.raises(
        TypeError, match=r"layer 0 \(Forgets\) returned a Tensor, wanted \(output, s"
    ):
        ns.Sequential(Forgets())(torch.zeros(2, 3, 4))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_sequences_of_several_lengths_are_refused_with_what_to_do():
    sequences = [torch.rand(n, 4) for n in (5, 3)]
    packed = pack_sequence(sequences)
    layouts = (torch.strided, torch.jagged)
    ragged = [torch.nested.nested_tensor(sequences, layout=layout) for layout in layouts]
    for run in (ns.Sequential(ns.LIF(0.9)), ns.LIF(0.9), ns.LI(0.9), ns.decoding.counts):
        for x in ragged:
            with pytest.raises(TypeError, match=r"nested .*to_padded_tensor\(x, 0.0\).transpose"):
                run(x)
        with pytest.raises(TypeError, match=r"is a PackedSequence; .*pad_packed_sequence"):
            run(packed)
    padded = torch.nested.to_padded_tensor(ragged[1], 0.0).transpose(0, 1)
    assert torch.equal(padded, nn.utils.rnn.pad_sequence(sequences))


@pytest.mark.parametrize("steps", [2.0, True, "3"])
def test_steps_that_are_no_whole_number_are_refused(steps):
    for net in (ns.Sequential(nn.Identity()), ns.Sequential(ns.LIF(0.9))):
        with pytest.raises(TypeError, match="num_steps must be an integer"):
            net(torch.zeros(2, 3), num_steps=steps)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        ns.Sequential(nn.Identity())(torch.zeros(2, 3), num_steps=-1)
    assert len(ns.Sequential(nn.Identity())(torch.zeros(2, 3), num_steps=np.int64(4))[0]) == 4


def test_every_way_to_change_the_layers_checks_them():
    import snntorch

    class Mine(snntorch.Leaky):
        pass

    for leaky in (snntorch.Leaky(0.9), Mine(0.9)):
        net = ns.Sequential(nn.ReLU(), ns.LIF(0.9))
        with pytest.raises(TypeError, match=r"of snntorch, which steps through time on its own"):
            net.insert(1, leaky)
        with pytest.raises(TypeError, match="of snntorch"):
            net[1] = leaky
        with pytest.raises(TypeError, match="of snntorch"):
            net.extend([nn.ReLU(), leaky])
        with pytest.raises(TypeError, match="of snntorch"):
            net += nn.Sequential(leaky)
        with pytest.raises(TypeError, match="of snntorch"):
            net + nn.Sequential(leaky)
        with pytest.raises(TypeError, match="of snntorch"):
            nn.Sequential(leaky) + net
        with pytest.raises(TypeError, match="of snntorch"):
            net.readout = leaky


def test_what_is_made_of_networks_is_a_network():
    net = ns.Sequential(nn.Linear(4, 4), ns.LIF(0.9, threshold=0.1))
    x = torch.rand(6, 2, 4)
    wanted, _ = ns.Sequential(*net, *net)(x)
    assert wanted.sum() > 0
    doubled = copy.copy(net)
    doubled._modules = dict(net._modules)
    doubled *= 2
    plain = nn.Sequential(net[0])
    for made in (
        net + net,
        net * 2,
        2 * net,
        doubled,
        (net * 3)[1:-1],
        plain + ns.Sequential(net[1]),
    ):
        assert type(made) is ns.Sequential
    for made in (net + net, net * 2, 2 * net, doubled):
        assert torch.equal(made(x)[0], wanted)
    del doubled[2:]
    doubled.insert(1, nn.ReLU()).pop(1)
    doubled[0] = net[0]
    assert torch.equal(doubled(x)[0], net(x)[0])


def test_layers_that_lose_track_of_time_are_refused():
    import snntorch

    with pytest.raises(TypeError, match=r"layer 1 \(Sequential\) holds a LIF, .*ns.Sequential"):
        ns.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), ns.LIF(0.9)))
    with pytest.raises(TypeError, match=r"layer 0 \(Leaky\) holds a Leaky of snntorch, .*convert"):
        ns.Sequential(snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(TypeError, match="holds a Leaky of snntorch"):
        ns.Sequential().append(nn.Sequential(snntorch.Leaky(0.9)))
    with pytest.raises(TypeError, match=r"layer 0 \(LSTM\) returned a tuple.*carries_state = True"):
        ns.Sequential(nn.LSTM(4, 4))(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"layer 0 \(Flatten\) made \(24,\) of a batch of 6"):
        ns.Sequential(nn.Flatten(0))(torch.zeros(2, 3, 4))


def test_a_constant_current_may_be_one_number_per_sample():
    net, x = ns.Sequential(ns.LIF(0.9)), torch.rand(3)
    assert torch.equal(net(x, num_steps=4)[0], net(x.expand(4, 3))[0])


def test_a_layer_that_makes_one_number_of_a_batch_is_told():
    class Sum(nn.Module):
        def forward(self, x):
            return x.sum()

    with pytest.raises(ValueError, match=r"layer 0 \(Sum\) made \(\) of a batch of 6"):
        ns.Sequential(Sum())(torch.rand(2, 3, 4))
