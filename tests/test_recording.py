"""What is recorded of a network is what its layers did, and changes nothing of it."""

import pytest
import torch
from PIL import Image
from torch import nn

import neurospike as ns
from neurospike.coding.losses import rate_penalty
from neurospike.layers.recording import spiking_layers
from neurospike.training.diagnosis import firing
from neurospike.training.energy import count_operations
from neurospike.visualization.animation import _Film

SHAPE = (6, 3, 8)  # T, B, F


def network(**options):
    """A network whose linear layers make no rounding error: in which order they add is the same."""
    net = ns.Sequential(
        nn.Linear(8, 8),
        ns.LIF(0.9, **options),
        ns.Sequential(nn.Linear(8, 8), ns.Synaptic(0.5, 0.9)),
        ns.Recurrent(ns.ALIF(), 8),
        nn.Linear(8, 4),
        ns.LI(0.8),
    )
    with torch.no_grad():
        for layer in (net[0], net[2][0], net[4]):
            for parameter in layer.parameters():
                parameter.copy_((parameter * 16).round() / 16)
    return net


@pytest.fixture
def given():
    return torch.randint(0, 17, SHAPE) / 4


class Stepping(nn.Module):
    """A network as snnTorch's are written: a loop over time, one pair of neurons at two depths."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.lif = nn.Linear(8, 8), nn.Linear(8, 8), ns.LIF(0.9)

    def forward(self, x):
        first = second = None
        counts = 0.0
        for step in x:
            spikes, first = self.lif(self.one(step)[None], first)
            spikes, second = self.lif(self.two(spikes), second)
            counts = counts + spikes[0]
        return counts, (first, second)


def test_every_layer_is_there_with_its_spikes_and_states(given):
    net = network()
    seen = ns.record(net, given)
    assert list(seen.states) == ["1", "2.1", "3", "5"]
    assert list(seen.spikes) == ["1", "2.1", "3"]
    x, _, trace = net[1](net[0](given), return_trace=True)
    assert torch.equal(seen.spikes["1"], x)
    assert torch.equal(seen.states["1"]["mem"], trace)
    x, _, traces = net[2][1](net[2][0](x), return_trace=True)
    assert torch.equal(seen.spikes["2.1"], x)
    assert torch.equal(seen.states["2.1"]["syn"], traces[0])
    assert torch.equal(seen.states["2.1"]["mem"], traces[1])
    x, _, traces = net[3](x, return_trace=True)
    assert torch.equal(seen.spikes["3"], x)
    assert list(seen.states["3"]) == ["mem", "tired"]
    assert torch.equal(seen.states["3"]["tired"], traces[1])
    assert torch.equal(seen.states["5"]["mem"], net[5](net[4](x))[0])
    assert all(one.any() for one in seen.spikes.values())


def test_the_network_answers_and_learns_as_if_nobody_looked(given):
    net = network(learn_beta=True)
    out, states = net(given)
    out.square().sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with ns.recording(net) as seen:
        watched, kept = net(given)
    assert torch.equal(watched, out)
    assert torch.equal(seen.output, out)
    assert torch.equal(seen.current, given)
    assert torch.equal(kept[0], states[0])
    watched.square().sum().backward()
    assert all(torch.equal(p.grad, one) for p, one in zip(net.parameters(), wanted, strict=True))
    assert isinstance(net[1](given)[1], torch.Tensor)
    assert len(net[1](given)) == 2  # no hook is left


def test_recordings_within_one_another_see_the_same_and_other_hooks_what_they_would_without(given):
    net, seen = network(), []
    net[1].register_forward_hook(lambda layer, inputs, out: seen.append(len(out)))
    expected = net(given)[0]
    with ns.recording(net) as outer, ns.recording(net[2]) as inner, ns.recording(net) as innermost:
        assert torch.equal(net(given)[0], expected)
    assert seen == [2, 2]
    for name, spikes in outer.spikes.items():
        assert torch.equal(spikes, innermost.spikes[name])
    for name, states in outer.states.items():
        assert states.keys() == innermost.states[name].keys()
    assert torch.equal(inner.spikes["1"], outer.spikes["2.1"])


def test_a_caller_who_asks_for_the_trace_gets_it(given):
    layer = ns.LIF(0.9)
    with ns.recording(layer) as seen:
        _, _, trace = layer(given, return_trace=True)
    assert torch.equal(seen.states["LIF"]["mem"], trace)


def test_a_rate_penalty_reaches_the_weights(given):
    net = network()
    with ns.recording(net, states=False) as seen:
        net(given)
    assert list(seen.states) == ["5"]
    rate_penalty(seen.spikes, low=0.9, high=1.0).backward()
    assert all(net[k].weight.grad.any() for k in (0, 3))


def test_chunks_are_joined(given):
    net = network()
    whole = ns.record(net, given)
    with ns.recording(net) as seen:
        states = None
        for chunk in given.split(2):
            _, states = net(chunk, states)
    assert list(seen.spikes) == list(whole.spikes)
    for name, states in whole.states.items():
        for state, trace in states.items():
            assert torch.equal(seen.states[name][state], trace)
    assert torch.equal(seen.output, whole.output)
    assert torch.equal(seen.votes, whole.votes)
    assert torch.equal(seen.current, given)


def test_a_loop_over_time_with_neurons_at_two_depths(given):
    net = Stepping()
    seen = ns.record(net, given)
    assert list(seen.spikes) == ["lif", "lif (2)"]
    first, _ = net.lif(net.one(given))
    second, _ = net.lif(net.two(first))
    assert torch.equal(seen.spikes["lif"], first)
    assert torch.equal(seen.spikes["lif (2)"], second)
    assert torch.equal(seen.output, second.sum(0))


def test_neurons_that_stand_twice_have_both_names(given):
    neurons = ns.LIF(0.9)
    net = ns.Sequential(nn.Linear(8, 8), neurons, nn.Linear(8, 8), neurons)
    out, states = net(given)
    seen = ns.record(net, given)
    assert list(seen.spikes) == ["1", "3"]
    assert torch.equal(seen.spikes["3"], out)
    assert torch.equal(seen.spikes["1"], neurons(net[0](given))[0])
    again = ns.record(net, given, states)  # each goes on from its own state
    assert [len(one) for one in again.spikes.values()] == [6, 6]
    assert torch.equal(again.spikes["3"], net(given, states)[0])


def test_a_recurrent_layer_is_recorded_and_not_the_neurons_in_it(given):
    layer = ns.Recurrent(ns.LIF(0.9), 8)
    seen = ns.record(layer, given)
    assert list(seen.spikes) == ["Recurrent"]
    assert torch.equal(seen.spikes["Recurrent"], layer(given)[0])
    assert list(spiking_layers(nn.Sequential(layer))) == [layer]


def test_a_second_batch_is_kept_apart(given):
    layer = ns.LIF(0.9)
    with ns.recording(layer) as seen:
        layer(given)
        layer(given[:, :2])
    assert {name: len(one[0]) for name, one in seen.spikes.items()} == {"LIF": 3, "LIF (2)": 2}


def test_a_constant_input_and_lengths():
    net, x, lengths = network(), torch.rand(3, 8) * 4, [5, 0, 2]
    seen = ns.record(net, x, num_steps=5, lengths=lengths)
    assert seen.current.shape == (5, 3, 8)
    assert seen.lengths.tolist() == lengths
    rates = ns.spike_rates(seen)
    assert torch.equal(rates["1"], seen.spikes["1"].sum((0, 1)) / 7)
    some = ns.spike_rates(seen.spikes, lengths=[2, 1, 0])["1"]
    assert torch.equal(some, (seen.spikes["1"][:2, 0].sum(0) + seen.spikes["1"][0, 1]) / 3)
    assert torch.equal(seen.votes[4, 2], seen.votes[1, 2])
    with ns.recording(net) as parts:
        _, states = net(x, num_steps=3, lengths=[3, 0, 2])
        net(x, states, num_steps=2, lengths=[2, 0, 0])
    assert parts.lengths.tolist() == lengths
    assert torch.equal(parts.spikes["3"], seen.spikes["3"])


def test_layers_fused_with_the_linear_before_them_are_seen(monkeypatch):
    from neurospike.layers import break_even, spike_layer

    rows, choose = [], spike_layer._row

    def noted(*given):
        rows.append(choose(*given))
        return rows[-1]

    monkeypatch.setattr(spike_layer, "_row", noted)
    net = ns.Sequential(ns.SpikeLinear(64, 512), ns.LIF(0.9))
    x = (torch.rand(6, 4, 64) < 0.05).float()
    with break_even.use_policy(break_even.Policy(least_products=1)):
        out, _ = net(x)
        seen = ns.record(net, x)
    assert rows[0] is not None
    assert rows[1] is None
    assert torch.equal(seen.spikes["1"], out)


def test_rates_and_dead_neurons(given):
    net = ns.Sequential(nn.Linear(8, 4), ns.LIF(0.9))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    seen = ns.record(net, given)
    assert ns.spike_rates(seen)["1"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert ns.spike_rates(seen.spikes)["1"].requires_grad
    assert firing(seen)["1"].dead == 0.75
    assert firing(seen)["1"].saturated == 0.25
    with pytest.raises(TypeError, match=r"needs what ns.record returned.* got Tensor"):
        ns.spike_rates(given)


def test_ready_networks_are_recorded_by_their_modules():
    model = ns.SNNModel(16, [9, 6], 3, num_steps=5)
    images = torch.rand(2, 1, 4, 4)
    seen, own = ns.record(model, images), model.record(images)
    assert torch.equal(seen.spikes["neurons.0"], own.spikes["hidden1"])
    assert torch.equal(seen.spikes["neurons.1"], own.spikes["hidden2"])
    assert torch.equal(seen.states["output"]["mem"], own.output)
    assert torch.equal(seen.output, own.scores)
    assert ns.spike_rates(own)["hidden1"].shape == (9,)


class Own(nn.Module):
    """A network of one's own, whose sums are exact in whatever order they are taken."""

    def __init__(self, batch_first=False):
        super().__init__()
        self.batch_first = batch_first
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 5)
        self.lif = ns.LIF(0.9, 0.3, batch_first=batch_first)
        self.li = ns.LI(0.9, batch_first=batch_first)
        with torch.no_grad():
            for one in (*self.one.parameters(), *self.two.parameters()):
                one.copy_((one * 16).round() / 16)

    def forward(self, x, lengths=None):
        spikes, _ = self.lif(self.one(x), lengths=lengths)
        return self.li(self.two(spikes), lengths=lengths)


class Scores(Own):
    """Of 5 classes, after 5 steps."""

    def forward(self, x):
        return super().forward(x)[0].mean(1)


class Silent(nn.Module):
    """Does not say that the batch comes first."""

    def __init__(self):
        super().__init__()
        self.net = Own(batch_first=True)

    def forward(self, x):
        return self.net(x)


def twins(make=Own):
    first, last = make(), make(batch_first=True)
    last.load_state_dict(first.state_dict())
    return first, last


@pytest.mark.parametrize("shape", [(6, 4, 8), (4, 4, 8)])
def test_a_network_of_ones_own_with_the_batch_first_is_recorded_time_first(shape):
    time_first, batch_first = twins()
    x, chunk = torch.randint(0, 17, shape) / 4, torch.rand(2, 4, 8)
    wanted = ns.record(time_first, x)
    seen = ns.record(batch_first, x.transpose(0, 1))
    for name in ("current", "output", "votes"):
        one, other = getattr(seen, name), getattr(wanted, name)
        torch.testing.assert_close(one, other)
        assert one.shape[:2] == shape[:2]
    with ns.recording(batch_first) as seen:
        for part in (x, chunk):
            batch_first(part.transpose(0, 1))
    assert torch.equal(seen.current, torch.cat([x, chunk]))


def test_scores_of_a_network_with_the_batch_first_stay_as_they_are():
    seen = ns.record(Scores(batch_first=True), torch.rand(3, 5, 8))
    assert (seen.output.shape, seen.votes.shape) == ((3, 5), (5, 3, 5))
    assert seen.current.shape == (5, 3, 8)


@pytest.mark.parametrize("steps", [6, 3])
def test_a_network_that_does_not_say_where_its_batch_is_is_asked(steps):
    net, x = Silent(), torch.rand(3, steps, 8)
    seen = ns.record(net, x)
    assert seen.spikes["net.lif"].shape == (steps, 3, 8)
    wanted = (
        rf"Silent has no batch_first, while its LIF has batch_first=True, .*\[3, {steps}, 8\], "
        r"which may be \[B, T, \*F\]: set batch_first = True on the Silent"
    )
    with pytest.raises(ValueError, match=wanted):
        _ = seen.current
    for name in ("output", "votes"):
        with pytest.raises(ValueError, match=rf"returned \[3, {steps}, 5\]"):
            getattr(seen, name)
    net.batch_first = True
    assert ns.record(net, x).votes.shape == (steps, 3, 5)


def test_operations_of_a_network_of_ones_own():
    net = ns.Sequential(nn.Linear(8, 4), ns.LIF(0.9), nn.Linear(4, 2), ns.LI(0.9))
    x = torch.rand(5, 3, 8) * 4
    fired = float(ns.record(net, x).spikes["1"].detach().sum())
    assert fired > 0
    counted = count_operations(net, x)
    assert counted.macs == 5 * 8 * 4
    assert counted.acs == pytest.approx(fired * 2 / 3)
    assert counted.dense_macs == 5 * (8 * 4 + 4 * 2)
    held = count_operations(net, x[0], num_steps=5)
    assert held.macs == 8 * 4
    assert held.dense_macs == 8 * 4 + 4 * 2
    lengths = torch.tensor([5, 1, 0])
    some = count_operations(net, x, lengths)
    assert some.macs == 6 / 3 * 8 * 4
    assert some.acs == pytest.approx(
        float(ns.record(net, x, lengths=lengths).spikes["1"].sum()) * 2 / 3
    )


class Flat(Own):
    """Takes a layer over time and batch as one axis, and then it again, once per sample."""

    def forward(self, x, lengths=None):
        spikes, _ = self.lif(self.one(x))
        over_time = self.two(spikes.flatten(0, 1)).unflatten(0, x.shape[:2])
        return over_time + self.two(spikes.sum(1 if self.batch_first else 0)).mean()


class Turned(Own):
    """Takes the batch first and has an `ns.Sequential` with time first in it."""

    def __init__(self, batch_first=False):
        super().__init__(batch_first)
        self.net = ns.Sequential(self.one, ns.LIF(0.9, 0.3), self.two, ns.LI(0.9))

    def forward(self, x, lengths=None):
        if not self.batch_first:
            return self.net(x, lengths=lengths)[0]
        return self.net(x.transpose(0, 1), lengths=lengths)[0].transpose(0, 1)


@pytest.mark.parametrize("make", [Own, Flat, Turned])
@pytest.mark.parametrize("steps", [6, 4])
def test_operations_are_the_same_with_the_batch_first(make, steps):
    lengths = torch.tensor([steps, 3, 1, 0])
    time_first, batch_first = twins(make)
    x = torch.randint(0, 17, (steps, 4, 8)) / 4
    batch = x.transpose(0, 1)
    assert count_operations(batch_first, batch) == count_operations(time_first, x)
    some = count_operations(batch_first, batch, lengths)
    assert some == count_operations(time_first, x, lengths)
    own = int(lengths.sum())
    assert some.macs >= own / 4 * 8 * 8
    if make is Own:
        spikes = ns.record(batch_first, batch, lengths=lengths).spikes["lif"]
        assert some.macs == own / 4 * 8 * 8
        assert some.acs == pytest.approx(float(spikes.detach().sum()) * 5 / 4)
        assert some.dense_macs == own / 4 * (8 * 8 + 8 * 5)


class Halved(Own):
    """Takes its second layer over every second step."""

    def forward(self, x, lengths=None):
        return self.two(super().forward(x, lengths)[0][::2].repeat(1, 1, 2)[..., :8])


def test_operations_of_steps_that_lengths_do_not_tell_are_refused():
    x, lengths = torch.rand(6, 4, 8), torch.tensor([6, 3, 1, 0])
    wanted = r"a Linear was given \[3, 4\] before its features, and lengths are of \[T=6, B=4\]"
    with pytest.raises(ValueError, match=wanted):
        count_operations(Halved(), x, lengths)
    assert count_operations(Halved(), x).macs > 0
    with pytest.raises(ValueError, match=r"Silent has no batch_first, .* set batch_first = True"):
        count_operations(Silent(), x.transpose(0, 1), lengths)


class Pooled(nn.Module):
    """Takes a convolution once per sample, of what its neurons fired in all steps."""

    batch_first = False

    def __init__(self):
        super().__init__()
        self.lif, self.conv = ns.LIF(0.9), nn.Conv1d(1, 2, 3)

    def forward(self, x, lengths=None):
        return self.conv(self.lif(x, lengths=lengths)[0].sum(0).unsqueeze(1))


def test_a_convolution_of_each_sample_once_is_counted_once_with_lengths():
    found = count_operations(Pooled(), torch.full((6, 4, 8), 5.0), torch.tensor([6, 3, 1, 0]))
    assert (found.macs, found.acs) == (6 * 2 * 3, 0)


def test_lengths_of_a_single_step_are_counted():
    net, x = ns.Sequential(nn.Linear(8, 4), ns.LIF(0.9)), torch.rand(1, 4, 8)
    assert count_operations(net, x, torch.tensor([1, 0, 0, 1])).macs == 2 / 4 * 8 * 4


def test_a_film_of_a_network_of_ones_own(tmp_path):
    net = ns.Sequential(nn.Conv2d(1, 2, 3), ns.LIF(0.9), nn.Flatten(), nn.Linear(72, 3), ns.LI(0.9))
    image = torch.rand(8, 8)
    seen = ns.record(net, image[None, None], num_steps=4)
    visualizer = ns.SpikeVisualizer()
    film = _Film(visualizer, seen, image.numpy(), None, None)
    film.show(3)
    assert film.bars[1].get_width() == pytest.approx(float(seen.output[:, 0, 1].mean()))
    assert list(film.layers) == ["1"]
    path = visualizer.animate(seen, None, tmp_path / "own.gif", hold=0)
    with Image.open(path) as gif:
        assert gif.n_frames == 4


def test_a_film_of_a_network_that_returns_scores():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ns.Sequential(nn.Linear(8, 8), ns.LIF(0.9), nn.Linear(8, 3), ns.LI(0.9))

        def forward(self, x):
            return self.net(x)[0].mean(0)

    seen = ns.record(Scores(), torch.rand(SHAPE))
    assert list(seen.spikes) == ["net.1"]
    film = _Film(ns.SpikeVisualizer(), seen, None, None, None)
    assert film.votes.shape == (6, 3)
    assert film.output[0].tolist() == film.output[5].tolist() == seen.output[0].tolist()


def test_refusals(given, tmp_path):
    visualizer = ns.SpikeVisualizer()
    with pytest.raises(ValueError, match=r"Linear has no layer to record: it needs one of ns.LIF"):
        ns.record(nn.Linear(8, 8), given)
    with pytest.raises(TypeError, match=r"Sequential has no record.* animate\(ns.record\(net, x\)"):
        visualizer.animate(network(), torch.rand(8, 8), tmp_path / "a.gif")
    with pytest.raises(ValueError, match="a network is shown answering an image, got None"):
        visualizer.animate(ns.SNNModel(16, 8, 3), None, tmp_path / "a.gif")
    with pytest.raises(ValueError, match="does not know its input over time"):
        visualizer.animate(ns.record(Loop(), given[0]), None, tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"reached none of its spiking layers: .*layer\(x\)"):
        ns.record(Past(), given)
    with pytest.raises(TypeError, match="the network returned dict, wanted a tensor"):
        _ = ns.record(Named(), given).votes


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.lif = ns.LIF(0.9)

    def forward(self, x):
        return self.lif(x, num_steps=3)


class Past(Loop):
    def forward(self, x):
        return self.lif.forward(x)


class Named(Loop):
    def forward(self, x):
        return {"spikes": self.lif(x)[0]}


def test_calls_of_other_threads_are_not_seen(given):
    import threading

    layer = ns.LIF(0.9)
    results = []
    with ns.recording(layer) as seen:
        thread = threading.Thread(target=lambda: results.append(layer(given)))
        thread.start()
        thread.join()
        layer(given[:2])
    assert len(results[0]) == 2
    assert [len(one) for one in seen.spikes.values()] == [2]


def test_a_compiled_network_is_recorded_as_it_was(given):
    net = ns.Sequential(nn.Linear(8, 8), ns.LIF(0.9))
    seen = ns.record(torch.compile(net, backend="eager"), given)
    assert torch.equal(seen.output, net(given)[0])
    with (
        ns.recording(net),
        pytest.raises(RuntimeError, match="cannot be compiled; record the network"),
    ):
        torch.compile(net, backend="eager", fullgraph=True)(given)


class ByName(nn.Module):
    """A network that names what it gives to its layer with weights."""

    def __init__(self):
        super().__init__()
        self.linear, self.neurons = nn.Linear(4, 3), ns.LIF(0.9)

    def forward(self, x):
        return self.neurons(self.linear(input=x))[0]


def test_operations_of_an_input_given_by_name_are_counted():
    x, net = torch.rand(5, 2, 4), ByName()
    assert count_operations(net, x) == count_operations(ns.Sequential(net.linear, net.neurons), x)
