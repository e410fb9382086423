"""Truncated backpropagation through time, against a loop that detaches its states by hand."""

import oracle
import pytest
import torch
from torch.nn import functional as F

import neurospike as ns
from neurospike.models import MODELS

STEPS, BETA, THRESHOLD = 7, 0.875, 0.25  # exact in float32 too
SMALL = {
    "mlp": {"hidden_size": [12, 9]},
    "conv": {"channels": [3, 4], "kernel_size": 3, "hidden_size": 12},
    "resnet": {"channels": [3, 4], "blocks": [1, 1]},
}


def loop(model, images, segment):
    """The fully connected network one step after the other; states are detached by hand."""
    mems = [torch.zeros((), dtype=images.dtype)] * 3
    trace = []
    for step in range(STEPS):
        if step % segment == 0:
            mems = [mem.detach() for mem in mems]
        flow = images.flatten(1)
        for k in range(2):
            fired = (mems[k] > THRESHOLD).to(images.dtype)
            mems[k] = BETA * mems[k] + model.linears[k](flow) - fired * THRESHOLD
            flow = oracle.spike(mems[k] - THRESHOLD, "atan")
        mems[2] = BETA * mems[2] + model.linears[2](flow)
        trace.append(mems[2])
    return torch.stack(trace)


def gradients(model, scores, labels):
    model.zero_grad()
    F.cross_entropy(scores, labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def make(kind, **options):
    torch.manual_seed(0)
    options = {"input_size": 64, "output_size": 4, "num_steps": STEPS, "beta": BETA, **options}
    return MODELS[kind](threshold=THRESHOLD, **SMALL[kind], **options)


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("segment", [1, 2, 3, 6])
def test_gradients_are_those_of_a_loop_that_detaches_its_states(backend, images, segment):
    model = make("mlp").double()
    model.truncate(segment)
    with ns.use_backend(backend):
        scores = model(images)
        found = gradients(model, scores, LABELS)
    expected = loop(model, images, segment).mean(0)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)
    wanted = gradients(model, expected, LABELS)
    whole = gradients(model, loop(model, images, STEPS).mean(0), LABELS)
    for name, gradient in found.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-12, name
    assert (whole["linears.0.weight"] - found["linears.0.weight"]).norm() > 1e-6


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("encoding", ["constant", "latency"])
@pytest.mark.parametrize("readout", ["membrane", "spikes"])
def test_answers_stay_and_a_long_segment_is_the_whole_bit_for_bit(kind, encoding, readout, images):
    model = make(kind, encoding=encoding, readout=readout, learn_beta=True, dropout=0.2)

    def run(segment):
        torch.manual_seed(1)
        model.truncate(segment)
        scores = model(images.float())
        return scores.detach(), gradients(model, scores, LABELS)

    answer, whole = run(None)
    for segment in (STEPS, STEPS + 4):
        again, found = run(segment)
        assert torch.equal(again, answer)
        assert all(torch.equal(found[name], gradient) for name, gradient in whole.items())
    again, found = run(3)
    assert torch.equal(again, answer)
    assert any(not torch.equal(found[name], gradient) for name, gradient in whole.items())


def test_nothing_flows_back_beyond_the_segment(backend):
    current = torch.rand(STEPS, 2, 3, requires_grad=True)
    mem = torch.rand(2, 3, requires_grad=True)
    lif = ns.LIF(beta=BETA, threshold=THRESHOLD, backend=backend)
    lif.segment = 3
    spikes, last, trace = lif(current, mem, return_trace=True)
    trace[5].sum().backward(retain_graph=True)
    reached = current.grad.abs().sum((1, 2)) > 0
    assert reached.tolist() == [False, False, False, True, True, True, False]
    assert not mem.grad.any()
    last.sum().backward()
    assert (current.grad[6] != 0).all()
    with torch.no_grad():
        plain = ns.lif(current, mem, beta=BETA, threshold=THRESHOLD, return_trace=True)
    assert all(map(torch.equal, (spikes, last, trace), plain))


@pytest.mark.parametrize("kind", [ns.LIF, lambda beta: ns.Synaptic(0.5, beta)])
def test_a_constant_current_of_no_steps_has_no_segment(kind):
    layer = kind(BETA)
    layer.segment = 2  # fewer than there are samples
    spikes, _ = layer(torch.rand(3, 4, requires_grad=True), num_steps=0)
    assert spikes.shape == (0, 3, 4)


def test_a_segment_without_steps_is_refused():
    with pytest.raises(ValueError, match="a segment must have at least 1 step, got 0; None: all"):
        make("mlp").truncate(0)


@pytest.mark.parametrize("segment", [None, 4, 40], ids=["none", "parts", "one"])
@pytest.mark.parametrize("kind", ["feedforward", "recurrent"])
def test_no_gradient_of_a_part_is_as_long_as_the_whole(backend, kind, segment):
    neuron = ns.LIF(BETA, backend=backend)
    layer = neuron if kind == "feedforward" else ns.Recurrent(neuron, 5)
    neuron.segment = segment
    current = torch.randn(40, 2, 5, requires_grad=True)
    spikes = layer(current)[0]
    with torch.profiler.profile() as seen:
        spikes.sum().backward()
    named = {event.name for event in seen.events()}
    assert any("Backward" in name for name in named)
    assert not {"aten::slice_backward", "aten::select_backward"} & named
