"""What users hand to the layers: errors that say what was got and wanted, and what is kept."""

import gc
import math
import random
import subprocess
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike import ops
from neurospike.backend import binding, dispatch
from neurospike.errors import BackendError, MissingDependencyError
from neurospike.formulas import cast, where
from neurospike.neurons import zoo
from neurospike.neurons.record import record

ROOT = Path(__file__).resolve().parents[1]
CURRENT = torch.zeros(3, 2, 4)
ELSEWHERE = torch.device("meta")  # stands for a second device on machines without one


@pytest.mark.parametrize(
    ("current", "num_steps", "error", "message"),
    [
        ([[0.5]], None, TypeError, r"must be a tensor \[T, B, \*F\], got list"),
        (CURRENT.long(), None, TypeError, r"got torch.int64; convert it with .float\(\)"),
        (CURRENT.bool(), None, TypeError, "got torch.bool"),
        (CURRENT.cfloat(), None, TypeError, "got torch.complex64"),
        (CURRENT.to(torch.float8_e5m2), None, TypeError, "got torch.float8_e5m2"),
        (CURRENT.to_sparse(), None, TypeError, r"must be dense, got .*to_dense\(\)"),
        (torch.zeros(()), None, ValueError, r"got shape \(\).*pass num_steps="),
        (torch.zeros(3), None, ValueError, r"got shape \(3,\), which has no time"),
        (torch.zeros(()), 5, ValueError, r"constant current must be \[B, \*F\]"),
        (CURRENT, 5.0, TypeError, "num_steps must be an integer, got 5.0"),
        (CURRENT, True, TypeError, "num_steps must be an integer, got True"),
        (CURRENT, "5", TypeError, "num_steps must be an integer, got '5'"),
        (CURRENT, -1, ValueError, "num_steps must be 0 or more, got -1"),
    ],
    ids=lambda value: str(value).replace("\n", "")[:30],
)
def test_wrong_currents(current, num_steps, error, message):
    for layer in (ns.LIF(0.9), ns.LI(0.9)):
        with pytest.raises(error, match=message):
            layer(current, num_steps=num_steps)
    with pytest.raises(error, match=message):
        ns.lif(current, beta=0.9, num_steps=num_steps)


@pytest.mark.parametrize(
    ("current", "mem", "error", "message"),
    [
        (CURRENT, 0.0, TypeError, r"mem must be a tensor \[B, \*F\], got float"),
        (CURRENT, CURRENT, ValueError, r"one step, \(2, 4\), got \(3, 2, 4\)"),
        (CURRENT, torch.zeros(4), ValueError, r"\(2, 4\), got \(4,\)"),
        (CURRENT, torch.zeros(1, 4), ValueError, r"\(2, 4\), got \(1, 4\)"),
        (CURRENT, torch.zeros(2, 4).double(), TypeError, r"got torch.float64; .*torch.float32"),
        (CURRENT, torch.zeros(2, 4).long(), TypeError, "must be torch.float32 .*got torch.int64"),
        (CURRENT.half(), torch.zeros(2, 4).half(), TypeError, "must be torch.float32"),
        (CURRENT.double(), torch.zeros(2, 4), TypeError, "must be torch.float64"),
        (
            CURRENT,
            torch.zeros(2, 4, device=ELSEWHERE),
            ValueError,
            "mem is on meta",
        ),
    ],
    ids=lambda value: str(value).replace("\n", "")[:30],
)
def test_a_wrong_state_is_an_error_and_never_zeros(current, mem, error, message, backend):
    for layer in (ns.LIF(0.9, backend=backend), ns.LI(0.9, backend=backend)):
        with pytest.raises(error, match=message):
            layer(current, mem)


def test_the_state_of_a_constant_current_has_its_shape():
    with pytest.raises(ValueError, match=r"one step, \(3, 2, 4\), got \(2, 4\)"):
        ns.LIF(0.9)(CURRENT, torch.zeros(2, 4), num_steps=7)


@pytest.mark.parametrize("name", ["beta", "threshold"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "must be a number or a floating-point tensor, got None"),
        ("0.9", TypeError, "got '0.9'"),
        (True, TypeError, "got True"),
        (1j, TypeError, "got 1j"),
        ([0.9], TypeError, r"got \[0.9\]"),
        (torch.tensor(1), TypeError, "floating-point number or tensor, got torch.int64"),
        (torch.tensor(1j), TypeError, "got torch.complex64"),
        (torch.full((3,), 0.5), ValueError, r"shape \(3,\) does not broadcast .* features \(4,\)"),
        (torch.full((2, 4), 0.5), ValueError, r"shape \(2, 4\) does not broadcast"),
        (torch.rand(0), ValueError, r"shape \(0,\) does not broadcast"),
        (torch.rand(4, device=ELSEWHERE), ValueError, r"is on meta, current on cpu; .*\.to\(\)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_parameters(name, value, error, message):
    with pytest.raises(error, match=f"^{name} .*{message}"):
        ns.lif(CURRENT, **{"beta": 0.9, name: value})


@pytest.mark.parametrize("axes", range(5))
def test_a_parameter_of_one_number_may_have_any_number_of_axes(axes, backend):
    shape, found = (1,) * axes, []
    for beta, threshold in ((0.7, 0.8), (torch.full(shape, 0.7), torch.full(shape, 0.8))):
        layer = ns.LIF(beta, threshold, learn_beta=True, backend=backend)
        spikes, mem = layer(CURRENT)
        (spikes.sum() + mem.sum()).backward()
        found.append((spikes, mem, layer.beta.grad.sum()))
    assert layer.beta.grad.shape == shape
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("value", [None, "0.9", 1j, torch.tensor(1j), True, [[0.1], []]], ids=str)
@pytest.mark.parametrize("name", ["beta", "threshold"])
def test_a_layer_refuses_them_when_it_is_made(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number or a tensor of numbers, got "):
        ns.LIF(**{"beta": 0.9, name: value})


def test_what_a_layer_takes_for_a_number():
    current = torch.randn(5, 2, 4)
    wanted = ns.lif(current, beta=0.5, threshold=1.0)
    half = np.float64(0.5), np.float32(0.5), torch.tensor([0.5]), torch.full((4,), 0.5)
    for beta in half:
        assert all(torch.equal(a, b) for a, b in zip(ns.lif(current, beta=beta), wanted))
    for beta in (*half, np.full(4, 0.5, np.float32), [0.5] * 4):
        layer = ns.LIF(beta, threshold=1)
        assert layer.threshold.dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(layer(current), wanted))
    constant = ns.lif(current[0], beta=0.5, num_steps=np.int64(3))
    assert constant[0].shape == (3, 2, 4)


def test_the_layers_own_copy_of_a_parameter():
    given = torch.full((4,), 0.5)
    layer = ns.LIF(given, learn_threshold=True)
    given.zero_()
    assert layer.beta.tolist() == [0.5] * 4
    assert [name for name, _ in layer.named_parameters()] == ["threshold"]
    assert [name for name, _ in layer.named_buffers()] == ["beta"]


def test_a_parameter_is_kept_shared_and_learned(backend):
    beta, threshold = (torch.nn.Parameter(torch.tensor(value)) for value in (0.9, 0.7))
    frozen = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)
    layers = torch.nn.ModuleList(
        [
            ns.LIF(beta, threshold, backend=backend),
            ns.LIF(beta, frozen, learn_threshold=True, backend=backend),
            ns.LI(beta, learn_beta=True, backend=backend),
        ]
    )
    assert all(layer.beta is beta for layer in layers)
    assert layers[0].threshold is threshold and layers[1].threshold is frozen
    assert {id(p) for p in layers.parameters()} == {id(beta), id(threshold), id(frozen)}
    current = torch.rand(5, 2, 4)
    sum(layer(current)[0].sum() + layer(current)[1].sum() for layer in layers).backward()
    assert beta.grad is not None and threshold.grad is not None and frozen.grad is None
    # Values that learn may lie anywhere: nobody knows where training has taken them.
    assert ns.LIF(torch.nn.Parameter(torch.tensor([-0.1, 1.2]))).beta.tolist() == pytest.approx(
        [-0.1, 1.2]
    )
    network = ns.SNNModel(64, [8, 8], 3, num_steps=2, beta=beta)
    assert sum(p is beta for p in network.parameters()) == 1
    encoder = ns.ConvEncoder(2, 3, beta=beta)
    assert encoder.neurons.beta is beta


@pytest.mark.parametrize("name", ["beta", "threshold"])
def test_a_tensor_whose_gradient_would_be_lost_is_refused(name):
    leaf = torch.tensor(0.9, requires_grad=True)
    for value in (leaf, leaf.sigmoid()):
        told = f"{name} is a tensor that requires a gradient.* nn.Parameter.* learn_{name}=True"
        for learn in (False, True):
            with pytest.raises(ValueError, match=told):
                ns.LIF(**{"beta": 0.9, name: value, f"learn_{name}": learn})
    with pytest.raises(ValueError, match="beta is a tensor that requires a gradient"):
        ns.LI(leaf)
    integers = torch.nn.Parameter(torch.tensor(1), requires_grad=False)
    with pytest.raises(TypeError, match="beta must be a number or a tensor of numbers"):
        ns.LIF(integers)


OUT_OF_RANGE = [  # name, value, what is told
    ("beta", 20, r"between 0 and 1, got 20.* 1 - 1/tau = 0.95, or exp\(-1/tau\) = 0.9512"),
    ("beta", 1.01, "between 0 and 1, got 1.01"),
    ("beta", -0.5, "between 0 and 1, got -0.5"),
    ("beta", math.nan, "between 0 and 1, got nan"),
    ("beta", math.inf, "between 0 and 1, got inf"),
    ("beta", np.float32(2), "between 0 and 1, got 2"),
    ("beta", torch.tensor([0.5, 0.5, 0.5, -0.1]), "between 0 and 1, got -0.1"),
    ("beta", torch.tensor([0.5, math.nan, 0.5, 0.5]), "between 0 and 1, got nan"),
    ("threshold", 0, "must be above 0, got 0"),
    ("threshold", -1.0, "must be above 0, got -1"),
    ("threshold", math.nan, "must be above 0, got nan"),
    ("threshold", torch.tensor([1.0, 1.0, 0.0, 1.0]), "must be above 0, got 0"),
    ("threshold", math.inf, r"0 \* inf, which is not a number; .* ns.LI\(beta\), or reset='none'"),
    ("threshold", torch.tensor([1.0, math.inf, 1, 1]), "0 .* inf, which is not a number"),
]


@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_RANGE, ids=str)
def test_constants_out_of_range_are_refused(name, value, message, backend):
    options = {"beta": 0.9, name: value}
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        ns.LIF(**options)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        ns.lif(CURRENT, **options, backend=backend)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        ns.LIF(**options, learn_beta=True, learn_threshold=True)
    if not isinstance(value, torch.Tensor):
        for make in (lambda **o: ns.SNNModel(64, 8, 3, **o), lambda **o: ns.ConvEncoder(2, 3, **o)):
            with pytest.raises(ValueError, match=f"{name}.*{message}"):
                make(**options)
    if name == "beta":
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            ns.LI(value)


def test_what_learns_or_cannot_be_read_is_not_looked_at():
    learned = torch.tensor([-0.1, 0.5, 1.2, 0.5], requires_grad=True)
    assert ns.lif(CURRENT, beta=learned, threshold=-learned.detach().requires_grad_())
    ns.LIF(torch.full((4,), 2.0, device=ELSEWHERE))
    spikes = torch.vmap(lambda beta: ns.lif(CURRENT, beta=beta, backend="reference")[0])
    assert spikes(torch.tensor([0.5, 1.5])).shape == (2, 3, 2, 4)


@pytest.mark.parametrize("reset", ["zero", "none"])
def test_an_infinite_threshold_without_subtraction_never_fires(reset, backend):
    for delay in (True, False):
        x = torch.rand(5, 2, 4, requires_grad=True)
        options = {"reset": reset, "reset_delay": delay, "backend": backend}
        spikes, mem = ns.LIF(0.9, math.inf, **options)(x)
        _, last = ns.LI(0.9, backend="reference")(x)
        assert not spikes.any()
        assert torch.equal(mem, last)
        (mine,) = torch.autograd.grad(spikes.sum() + mem.sum(), x)
        (wanted,) = torch.autograd.grad(last.sum(), x)
        assert torch.allclose(mine, wanted)


def own_neuron(**options):
    def leaky(current, mem, beta):
        mem = beta * mem + current
        return fire(mem - 1.0), mem  # noqa: F821

    return ns.Spiking(leaky, beta=0.9, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 2.0}, r"no argument tau=; give beta=1 - 1/tau = 0.5 instead, "),
        ({"beta": 0.9, "init_hidden": True}, r"leave it out: .* spikes, mem = layer\(current, mem"),
        ({"beta": 0.9, "step_mode": "m"}, "a call takes all time steps"),
        ({"beta": 0.9, "device": "cpu"}, r"move the layer with .to\(device\)"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(options, message):
    for make in (ns.LIF, ns.LI, lambda **o: ns.lif(CURRENT, **o)):
        with pytest.raises(TypeError, match=message):
            make(**options)
    for make in (ns.ConvEncoder, ns.SNNModel):
        with pytest.raises(TypeError, match="has no argument"):
            make(**options)
    with pytest.raises(TypeError, match=r"LIF has no argument betta=; did you mean beta=\?"):
        ns.LIF(0.9, betta=1)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ns.LIF, {"spike_grad": "atan"}, "LIF has no argument spike_grad=; give surrogate= instea"),
        (ns.LIF, {"surrogate_function": "atan"}, "give surrogate="),
        (ns.LIF, {"reset_mechanism": "zero"}, "give reset='zero' instead"),
        (ns.LIF, {"v_threshold": 1.0}, "give threshold="),
        (ns.LIF, {"v_reset": 0.0}, "give reset='zero'"),
        (ns.LIF, {"v_reset": None}, "give reset='subtract'"),
        (ns.LIF, {"decay_input": True}, "multiply the current by 1/tau"),
        (ns.LIF, {"graded_spikes_factor": 2.0}, "multiply the spikes by it"),
        (ns.LIF, {"tau_mem_inv": 100.0}, r"give beta= instead, 1 - dt \* tau_mem_inv"),
        (ns.LIF, {"tau_syn_inv": 200.0}, "ns.Synaptic has a synaptic current"),
        (ns.LIF, {"learnable_threshold": True}, "did you mean learn_threshold="),
        (ns.LIF, {"tau": "2"}, "give beta=1 - 1/tau instead"),
        (ns.LI, {"v_threshold": 1.0}, "LI has no argument v_threshold=; it is not in this layer"),
        (ns.LI, {"learn_threshold": True}, "it is not in this layer"),
        (ns.LI, {"nothing": 1}, "it takes beta, learn_beta, backend, beta_gradient, batch_first"),
        (ns.Synaptic, {"tau": 2.0}, "Synaptic has no argument tau=; give beta=1 - 1/tau = 0.5"),
        (ns.Synaptic, {"learn_beta": True}, r"give learn=\('beta',\) instead"),
        (ns.Synaptic, {"reset_mechanism": "zero"}, "give reset='zero' instead"),
        (ns.Synaptic, {"spike_grad": None}, "give surrogate="),
        (ns.ALIF, {"reset_mechanism": "zero"}, "ALIF has no argument .* it is not in this layer"),
        (ns.PLIF, {"init_tau": 2.0}, "give beta=1 - 1/tau = 0.5 instead"),
        (ns.PLIF, {"v_threshold": 1.0}, "give threshold="),
        (ns.Recurrent, {"reset_mechanism": "zero"}, "to them, as in ns.Recurrent"),
        (ns.Recurrent, {"linear_features": 5}, "connects all neurons to all"),
        (ns.Recurrent, {"learn_threshold": True}, "give what concerns its neurons to them"),
        (ns.Delay, {"device": "cpu"}, r"move the layer with .to\(device\)"),
        (ns.Sequential, {"init_hidden": True}, "the state is handed on"),
        (ns.Sequential, {"batchfirst": True}, "did you mean batch_first="),
        (own_neuron, {"tau": 2.0}, "leaky has no argument tau=; give beta=1 - 1/tau = 0.5"),
        (own_neuron, {"reset_mechanism": 1}, "it is not in this layer"),
    ],
)
def test_every_layer_answers_by_what_it_takes(make, options, message):
    with pytest.raises(TypeError, match=message):
        make(**options)


FLAGS = [
    *((ns.LIF, {"beta": 0.9}, name) for name in ("reset_delay", "detach_reset", "batch_first")),
    *((ns.LIF, {"beta": 0.9}, name) for name in ("learn_beta", "learn_threshold")),
    *((ns.LI, {"beta": 0.9}, name) for name in ("learn_beta", "batch_first")),
    *((lambda **o: ns.lif(CURRENT, beta=0.9, **o), {}, n) for n in ("reset_delay", "detach_reset")),
    (ns.Synaptic, {"alpha": 0.8, "beta": 0.9}, "reset_delay"),
    (ns.ALIF, {}, "batch_first"),
    *((ns.Recurrent, {"neuron": ns.LIF(0.9), "size": 3}, n) for n in ("bias", "zero_diagonal")),
    (ns.Recurrent, {"neuron": ns.LIF(0.9), "size": 3}, "batch_first"),
    *((ns.Delay, {"size": 3, "max_delay": 2}, name) for name in ("learn", "batch_first")),
    (ns.Sequential, {}, "batch_first"),
    (ns.SpikeLinear, {"in_features": 3, "out_features": 2}, "bias"),
    (ns.SNNModel, {}, "recurrent"),
]


@pytest.mark.parametrize(("make", "needed", "name"), FLAGS)
def test_a_flag_is_true_or_false(make, needed, name):
    for value in ("False", None, 2.5, torch.tensor([0.5, 0.6])):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got ") as caught:
            make(**needed, **{name: value})
        assert repr(value) in str(caught.value)
    for value in (True, False, 0, 1, np.bool_(True)):
        make(**needed, **{name: value})


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (ns.Alpha, {"alpha": "x", "beta": 0.8}, TypeError, "alpha must be a number .*, got 'x'"),
        (ns.Alpha, {"alpha": 0.9, "beta": None}, TypeError, "beta must be a number .*, got None"),
        (ns.Alpha, {"alpha": 0.8, "beta": 0.9}, ValueError, "got alpha 0.8 and beta 0.9"),
        (ns.PLIF, {"beta": None}, TypeError, "beta must be a number .*, got None"),
        (ns.BRF, {"dt": 0}, ValueError, "dt must be a number above 0, .* got 0"),
        (ns.BRF, {"dt": "x"}, ValueError, "dt must be a number above 0, .* got 'x'"),
        (ns.Alpha, {"alpha": 0.9, "beta": 0.8, "reset": [1]}, ValueError, r"unknown reset \[1\]"),
        (ns.LIF, {"beta": 0.9, "backend": [1]}, ValueError, r"unknown backend \[1\]; choose one"),
        (
            ns.Recurrent,
            {"neuron": ns.LIF(0.9), "size": 3, "mask": "x"},
            TypeError,
            r"mask must be a tensor \[N, N\] of 0 and 1, got 'x'",
        ),
        (
            ns.SpikeLinear,
            {"in_features": 2.5, "out_features": 3},
            TypeError,
            "in_features must be a whole number, got 2.5",
        ),
        (
            ns.SpikeLinear,
            {"in_features": 2, "out_features": -1},
            ValueError,
            "out_features must be 0 or more, got -1",
        ),
    ],
)
def test_an_argument_that_is_none_is_named(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: ns.Synaptic(0.8, 0.9, **o),
        lambda **o: ns.Synaptic(0.8, 0.9, reset_delay=False, **o),
        lambda **o: ns.Alpha(0.9, 0.8, reset="subtract", **o),
        lambda **o: ns.PLIF(0.9, **o),
        lambda **o: ns.ALIF(**o),
        lambda **o: ns.OneToOne(0.9, **o),
        lambda **o: ns.OneToOne(0.9, alpha=0.8, **o),
    ],
)
def test_no_neuron_subtracts_an_infinite_threshold(make):
    for threshold in (math.inf, torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match="threshold=inf with reset='subtract'"):
            make(threshold=threshold)
    _, states = ns.Synaptic(0.8, 0.9, math.inf, reset="zero")(CURRENT)
    assert all(state.isfinite().all() for state in states)


def test_one_axis_of_values_is_never_taken_for_another():
    pictures = torch.zeros(2, 1, 3, 3, 5)
    with pytest.raises(ValueError, match=r"shape \(3, 1, 1\)"):
        ns.LIF(torch.full((3,), 0.5))(pictures)
    square = torch.zeros(2, 1, 3, 4, 3)
    told = r"first axis or the last; give it the shape \(3, 1, 1\) .*, or \(1, 1, 3\)"
    with pytest.raises(ValueError, match=told):
        ns.LIF(torch.full((3,), 0.5))(square)
    with pytest.raises(ValueError, match=told.replace("beta", "threshold")):
        ns.lif(square, beta=0.9, threshold=torch.full((3,), 0.5))
    for shape in ((3, 1, 1), (1, 1, 3), (1, 4, 1), (1,), ()):
        ns.LIF(torch.full(shape, 0.5))(square)
    ns.LIF(torch.full((4,), 0.5))(torch.zeros(2, 1, 3, 5, 4))


@pytest.mark.parametrize("make", [ns.LIF, ns.LI, lambda beta, **o: ns.lif(CURRENT, beta=beta, **o)])
def test_unknown_backends_are_refused_by_name(make):
    names = ", ".join(["auto", *dispatch.TABLE])
    with pytest.raises(ValueError, match=f"unknown backend 'cuda'; choose one of {names}"):
        make(0.9, backend="cuda")


def test_unknown_resets_and_surrogates_are_refused_by_name():
    with pytest.raises(ValueError, match="'soft'; choose one of subtract, zero, none"):
        ns.LIF(0.9, reset="soft")
    with pytest.raises(ValueError, match=r"unknown reset \['zero'\]"):
        ns.lif(CURRENT, beta=0.9, reset=["zero"])
    known = ", ".join(ns.surrogate.BUILT_IN)
    with pytest.raises(ValueError, match=f"unknown surrogate 'arctan'; choose one of {known}"):
        ns.LIF(0.9, surrogate="arctan")


def with_torch(u):
    return torch.sigmoid(u)


def with_attribute(u):
    return u.cosh()


def with_unknown(u):
    return nothing(u)  # noqa: F821


def with_two(u, slope):
    return slope * u


def with_choice(u):
    return 1.0 if u > 0 else 0.0


def with_loop(u):
    z = abs(u)
    while z > 0.1:
        z = 0.5 * z
    return z


def with_itself(u):
    return with_itself(u - 1.0)


@pytest.mark.parametrize(
    ("surrogate", "message"),
    [
        (3, "a name, a Surrogate or a function of u, got 3"),
        (torch.sigmoid, "must be a plain Python function, got <built-in"),
        (with_torch, r"'with_torch', line .* uses torch.sigmoid, .*; write sigmoid\(u\)"),
        (with_attribute, r"'with_attribute', line \d+ \(return u.cosh\(\)\) uses .cosh of a value"),
        (lambda u: u.abs(), r"uses .abs of a value.* write abs\(u\)"),
        (with_choice, r"1.0 if u > 0 else 0.0\) asks whether .* use where\(condition, a, b\)"),
        (lambda u: u * (u > 0 and u < 1), r"\(if, while, and, or, not, .* & and \| between"),
        (lambda u: cast(not u > 0, u), "asks if, and, or, not"),
        (lambda u: cast(0 < u < 1, u), "asks if, and, or, not"),
        (lambda u: max(u, 0.0), "asks if, and, or, not, min, max"),
        (with_loop, r"\(while z > 0.1:\) asks whether a value is true"),
        (lambda u: sum(v for v in u), "asks if, and, .*or a loop"),
        (lambda u: float(u), "asks for the value of what differs from neuron to neuron"),
        (lambda u: u > 0, r"a condition as with a number, .*; use where\(condition, 1.0, 0.0\)"),
        (lambda u: 2.0 * (u > 0), r"a condition as with a number, .*; use where\(cond"),
        (lambda u: (u > 0).float(), r"uses .float of a condition.* use where\("),
        (lambda u: (u > 0) & 1.0, "joins a comparison and a number with &"),
        (lambda u: where(u, 1.0, 0.0), "gives where a number for a condition"),
        (lambda u: cast(u, u), "casts a number; compare it"),
        (lambda u: u**0.5, "takes a power other than 2 or 3"),
        (lambda u: u % 2, "may use arithmetic, .* got unsupported operand .* %"),
        (lambda u: round(u), "uses 'round', which is no number or function"),
        (lambda u: with_itself(u), "calls itself"),
        (lambda u: (u, u), "returns 2 results, wanted one"),
        (lambda u: None, "computes with None, a NoneType"),
        (lambda u, *, slope=2.0: u, "arguments by name only; name each argument"),
        (with_unknown, r"'with_unknown', line \d+ .* uses 'nothing'"),
        (with_two, r"takes \(u, slope\); it must be callable with u; give its other"),
        (ns.surrogate.atan, r"makes one; call it, as in surrogate=atan\(\)"),
    ],
)
def test_functions_that_are_no_surrogates(surrogate, message):
    with pytest.raises(TypeError, match=message):
        ns.LIF(0.9, surrogate=surrogate)


@pytest.mark.parametrize("maker", ["atan", "fast_sigmoid", "triangular", "gaussian"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "2", None])
def test_surrogates_refuse_impossible_parameters(maker, value):
    with pytest.raises(ValueError, match=f"must be a positive finite number, got {value!r}"):
        ns.surrogate.BUILT_IN[maker](value)


def test_a_surrogate_is_its_derivative_and_shows_its_name():
    u = torch.linspace(-1, 1, 5)
    half = ns.surrogate.atan(alpha=4.0)
    assert torch.allclose(half(u), 2 / (1 + (2 * math.pi * u) ** 2))
    assert repr(ns.LIF(0.9, surrogate=half)) == (
        "LIF(beta=0.9, threshold=1, surrogate=atan(4), reset='subtract', reset_delay=True, "
        "backend='auto')"
    )
    assert repr(ns.LI(torch.rand(3), backend="reference")) == (
        "LI(beta=tensor(3,), backend='reference')"
    )


def test_numbers_a_surrogate_reads_are_those_when_the_layer_was_made(backend):
    """A compiled backend fixes them, so every backend does."""
    scale = 2.0

    def scaled(u):
        return scale / (1.0 + abs(u))

    def gradient(run):
        current = torch.full((2, 1, 3), 0.4, requires_grad=True)
        run(current)[0].sum().backward()
        return current.grad

    layer = ns.LIF(0.9, surrogate=scaled, backend=backend)
    before = gradient(layer)
    scale = 6.0
    assert torch.equal(gradient(layer), before)
    anew = gradient(lambda x: ns.lif(x, beta=0.9, surrogate=scaled, backend=backend))
    assert torch.allclose(anew, 3 * before, rtol=1e-6)


def test_a_surrogate_that_is_annealed_compiles_once_and_leaves_nothing_behind():
    """Another number in a closure is another parameter, not another kernel."""
    pytest.importorskip("numba")
    code = dispatch.load(".kernels.cpu._code")

    def annealed(slope):
        def derivative(u):
            return slope / (1.0 + slope * abs(u))

        return derivative

    def gradient(slope):
        x = torch.full((2, 1, 3), 0.4, requires_grad=True)
        ns.lif(x, beta=0.9, surrogate=annealed(slope), backend="numba")[0].sum().backward()
        return x.grad[1, 0, 0]

    def functions():
        gc.collect()
        return sum(type(one) is FunctionType for one in gc.get_objects())

    # Numbers that nothing before has compiled.
    slopes = [1.0 + random.SystemRandom().random() for _ in range(51)]
    gradient(slopes[0])
    before, compiled = functions(), code.count()
    for slope in slopes[1:]:
        u = 0.4 * 1.9 - 1.0
        assert gradient(slope).item() == pytest.approx(slope / (1 - slope * u), rel=1e-5)
    assert compiled and code.count() == compiled
    assert functions() <= before + 5


def test_a_name_with_a_space_and_other_signs(backend):
    def own(u):
        return 1.0 / (1.0 + abs(u))

    own.__name__ = "my own: surrogate"
    x = torch.full((2, 1, 3), 0.4, requires_grad=True)
    ns.lif(x, beta=0.9, surrogate=own, backend=backend)[0].sum().backward()
    assert x.grad.any()


def test_parameters_of_a_surrogate_are_numbers():
    for value in (torch.tensor(25.0), torch.nn.Parameter(torch.tensor(25.0)), "25", True):
        with pytest.raises(TypeError, match="must be plain numbers, which are not learned, got"):
            ns.surrogate.Surrogate(with_two, (value,))
    assert ns.surrogate.atan(np.float32(2)) == ns.surrogate.atan(2)
    with pytest.raises(ValueError, match="slope must be a positive finite number, got True"):
        ns.surrogate.sigmoid(True)


def test_a_function_bound_anew_runs_torch_wherever_it_is_called_first():
    """Torch reads the builtins of the first frame that compares; the package compares on import."""
    program = (
        "import runpy, torch\n"
        "bind = runpy.run_path('neurospike/backend/binding.py')['bind']\n"
        "def positive(v): return v > 0.0\n"
        "assert bind(positive, {})(torch.ones(2)).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_digest_tells_which_function_a_name_stands_for():
    def one(u):
        return u + 1.0

    def two(u):
        return u + 2.0

    def three_calls(u):
        return first(second(third(u)))  # noqa: F821

    calls = [
        {"first": one, "second": two, "third": one},
        {"first": one, "second": two, "third": two},
        {"first": two, "second": one, "third": one},
    ]
    assert len({binding.digest(three_calls, names) for names in calls}) == 3


def test_backends_lists_every_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    table = ns.backends()
    assert list(table) == list(dispatch.TABLE)
    for name, row in dispatch.TABLE.items():
        for requirement in row.packages:
            assert f"pip install {requirement.partition('>=')[0]}" in table[name]
    reasons = dispatch.unsupported_reasons("numba", "meta")
    assert len(reasons) == 2
    with pytest.raises(BackendError, match=r"(?s)not installed.*; it runs on cpu tensors.*Use --b"):
        ns.lif(CURRENT.to(ELSEWHERE), beta=0.9, backend="numba")
    with (
        pytest.raises(BackendError, match=r"'reference' cannot run here: .*pip install snntorch"),
        ns.use_backend("reference"),
    ):
        pass
    with pytest.raises(BackendError) as raised:
        ns.lif(CURRENT, beta=0.9)
    message = str(raised.value)
    assert message.startswith("no backend can run on cpu tensors here: ")
    for name in dispatch.TABLE:
        assert f"{name}: " in message


def test_a_package_that_cannot_even_be_looked_for_is_not_installed(monkeypatch):
    def find_spec(name):
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(dispatch, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", find_spec)
    assert "not installed" in ns.backends()["numba"]


@pytest.mark.parametrize(
    ("found", "is_old"),
    [("3.4.0", True), ("2.10.0", True), ("3.5.0", False), ("3.10.0a1+git", False), ("4.0", False)],
)
def test_a_package_that_is_too_old_is_named_with_its_version(monkeypatch, found, is_old):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=found))
    for versions in ({"triton": found}, {}):  # {}: installed under another name than "triton"
        dispatch._version.cache_clear()
        monkeypatch.setattr(dispatch.importlib.metadata, "version", _raising(versions))
        reasons = dispatch.unsupported_reasons("triton")
        told = f"triton 3.5 or later is needed, found {found} (pip install -U torch triton)"
        assert (told in reasons) is is_old
    dispatch._version.cache_clear()


def _raising(versions):
    def version(package):
        if package not in versions:
            raise dispatch.importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    return version


def test_setup_asks_for_what_the_table_does():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    for row in dispatch.TABLE.values():
        for requirement in row.packages:
            assert f'"{requirement}' in text


def test_a_cuda_backend_says_why_there_is_no_cuda(monkeypatch):
    row = dispatch.Backend("gpu", ".gpu", device_types=("cuda",))
    monkeypatch.setitem(dispatch.TABLE, "gpu", row)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert dispatch.unsupported_reasons("gpu") == ["this torch was built without CUDA"]
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.unsupported_reasons("gpu") == ["torch finds no CUDA device"]


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendError, match="'numba' cannot run on meta tensors: it runs on cpu"):
        ns.lif(CURRENT.to(ELSEWHERE), beta=0.9, backend="numba")
    with (
        ns.use_backend("numba"),
        pytest.raises(BackendError, match=r"use_backend|backend='reference'"),
    ):
        ns.lif(CURRENT.to(ELSEWHERE), beta=0.9)


def test_use_backend_is_scoped_and_the_argument_wins(monkeypatch):
    ran = []
    choose = dispatch.choose

    def recording(name, device_type):
        row = choose(name, device_type)
        ran.append(row.name)
        return row

    monkeypatch.setattr(dispatch, "choose", recording)
    with ns.use_backend("reference"):
        ns.lif(CURRENT, beta=0.9)
        with ns.use_backend("auto"):
            ns.lif(CURRENT, beta=0.9)
        ns.lif(CURRENT, beta=0.9, backend="numba")
    ns.lif(CURRENT, beta=0.9)
    assert ran == ["reference", "numba", "numba", "numba"]
    with pytest.raises(ValueError, match="unknown backend 'cpu'"), ns.use_backend("cpu"):
        pass


def test_the_reference_without_snntorch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "snntorch", None)
    from neurospike.backend import reference

    program = f"{record(zoo.lif_subtract).text}|{ns.surrogate.atan().text}"
    zero = torch.zeros(())
    with pytest.raises(MissingDependencyError, match="pip install snntorch"):
        reference.scan(CURRENT, [CURRENT[0]], [zero, zero], program, (2.0,))


def test_the_reference_leaves_no_layer_in_snntorchs_list():
    import snntorch

    def made():
        classes = (snntorch.SpikingNeuron, snntorch.LIF, snntorch.Leaky)
        return [len(kind.instances) for kind in classes]

    before = made()
    ns.lif(CURRENT, beta=0.9, backend="reference")
    assert made() == before


@pytest.mark.parametrize("kind", ["SpikingNeuron", "LIF", "Leaky"])
def test_nor_after_snntorch_emptied_its_list(kind, monkeypatch):
    import snntorch

    every = snntorch.SpikingNeuron.instances
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", every)  # to be put back
    owner = getattr(snntorch, kind)
    owner.init()
    try:
        before = len(snntorch.SpikingNeuron.instances)
        ns.lif(CURRENT, beta=0.9, backend="reference")
        assert owner.instances == []
        assert len(snntorch.SpikingNeuron.instances) == before
    finally:
        if kind != "SpikingNeuron":
            del owner.instances


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "poisson"}, "unknown encoding 'poisson'; choose one of constant, rate"),
        (
            {"readout": "votes"},
            "unknown readout 'votes'; choose one of membrane, max_membrane, spikes",
        ),
        ({"hidden_size": []}, "there must be a hidden layer"),
        ({"hidden_size": [8, 0]}, r"at least 1, .* sizes \[784, 8, 0, 10\]"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_models_refuse_impossible_sizes_and_names(options, message):
    with pytest.raises(ValueError, match=message):
        ns.SNNModel(**options)


def test_models_refuse_pictures_of_another_size():
    with pytest.raises(ValueError, match=r"input_size = 784 .* shape \(2, 1, 8, 8\) with 64 each"):
        ns.SNNModel()(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("encoding", ["constant", "rate", "latency"])
@pytest.mark.parametrize("readout", ["membrane", "spikes"])
def test_models_run_every_encoding_and_readout(encoding, readout):
    model = ns.SNNModel(64, [9, 7], 3, num_steps=5, encoding=encoding, readout=readout)
    scores, activity = model(torch.rand(2, 1, 8, 8), return_activity=True)
    assert scores.shape == (2, 3)
    wanted = {"hidden1": (5, 2, 9), "hidden2": (5, 2, 7)}
    if readout == "spikes":
        wanted["output"] = (5, 2, 3)
        assert torch.equal(scores, activity["output"].sum(0))
    assert {name: spikes.shape for name, spikes in activity.items()} == wanted


def test_state_dtype_is_float64_only_for_float64():
    formats = {torch.float16, torch.bfloat16, torch.float32}
    assert {ops.state_dtype(dtype) for dtype in formats} == {torch.float32}
    assert ops.state_dtype(torch.float64) == torch.float64


def test_a_loop_over_time_is_told_that_the_batch_was_taken_for_time():
    layer, current = ns.LIF(0.9), torch.rand(3, 5)
    with pytest.raises(ValueError, match=r"\(3, 5\) was read as \[T, B, \*F\].*one step by"):
        layer(current, torch.zeros(3, 5))
    spikes, mem = layer(current[None], torch.zeros(3, 5))
    assert spikes.shape == (1, 3, 5) and mem.shape == (3, 5)
    with pytest.raises(ValueError, match=r"of one step, \(3, 5\), got \(4, 5\)$"):
        layer(current, torch.zeros(4, 5), num_steps=2)


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (ns.LIF(0.9), "beta", 1.5),
        (ns.LIF(torch.full((3,), 0.9)), "threshold", -1.0),
        (ns.LI(0.9), "beta", float("nan")),
        (ns.Synaptic(0.9, 0.8), "alpha", 1.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_constant_out_of_range_is_not_loaded(layer, name, value):
    state = layer.state_dict()
    state[name] = torch.full_like(state[name], value)
    with pytest.raises(RuntimeError, match=f"{name} must"):
        torch.nn.Sequential(layer).load_state_dict({f"0.{key}": one for key, one in state.items()})


def test_what_learns_is_loaded_out_of_range_and_clamped_where_it_is_used():
    layer = ns.LIF(0.9, learn_beta=True, learn_threshold=True)
    layer.load_state_dict({"beta": torch.tensor(1.5), "threshold": torch.tensor(-1.0)})
    assert layer.beta.item() == 1.5
    current = torch.zeros(2, 1, 1)
    _, mem = layer(current, torch.full((1, 1), -2.0))
    assert mem.item() == -2.0  # nothing of it is lost, nothing is gained


LEARNED = {
    "LIF": lambda **o: ns.LIF(0.9, threshold=100.0, learn_beta=True, **o),
    "LI": lambda **o: ns.LI(0.9, learn_beta=True, **o),
    "ALIF": lambda **o: ns.ALIF(learn="beta", **o),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_stands_for_a_learned_decay_is_clamped_as_it_is(name):
    """Plain tensors: of `functional_call`, of a parametrization, of a data-parallel replica."""
    layer, current = LEARNED[name](), torch.full((6, 1, 1), 0.05)
    with torch.no_grad():
        layer.beta.fill_(1.2)
    wanted = layer(current)
    given = {"beta": layer.beta.detach().clone()}
    called = torch.func.functional_call(layer, given, (current,))
    replica = layer._replicate_for_data_parallel()
    replica._parameters.pop("beta", None)
    replica.beta = given["beta"]
    torch.nn.utils.parametrize.register_parametrization(layer, "beta", torch.nn.Identity())
    for found in (called, replica(current), layer(current)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (ns.LIF(0.9), "reset", "zero"),
        (ns.LIF(0.9), "surrogate", "sigmoid"),
        (ns.LIF(0.9), "detach_reset", True),
        (ns.ALIF(), "surrogate", "sigmoid"),
        (ns.ALIF(), "grad_window", 1.0),
    ],
)
def test_what_a_layer_was_made_of_is_not_changed_behind_it(layer, name, value):
    before = getattr(layer, name)
    with pytest.raises(AttributeError, match=f"{name} is part of what the .* was made of"):
        setattr(layer, name, value)
    assert getattr(layer, name) is before


@pytest.mark.parametrize(
    "make",
    [
        lambda: ns.LIF(0.9),
        lambda: ns.LIF(0.9, backend="reference"),
        lambda: ns.Recurrent(ns.LIF(0.9), 512),
        lambda: ns.Delay(512, 3),
        lambda: ns.SpikeLinear(512, 512),
        lambda: ns.Sequential(ns.SpikeLinear(512, 512), ns.LIF(0.9)),
    ],
    ids=["LIF", "reference", "Recurrent", "Delay", "SpikeLinear", "Sequential"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_another_default_device_is_not_that_of_a_call(make, trained):
    layer = make()
    spikes = (torch.rand(25, 64, 512) < 0.02).float().requires_grad_(trained)
    with torch.set_grad_enabled(trained):
        wanted = layer(spikes)
        with torch.device("meta"):
            found = layer(spikes)
            if not isinstance(layer, ns.SpikeLinear):
                layer(spikes, lengths=[25] * 64)
    wanted, found = ((one if isinstance(one, tuple) else (one,))[0] for one in (wanted, found))
    assert torch.equal(found, wanted)
    if trained:
        leaves = [spikes, *layer.parameters()]
        slopes = torch.autograd.grad(wanted.sum(), leaves)
        with torch.device("meta"):
            others = torch.autograd.grad(found.sum(), leaves)
        assert all(map(torch.equal, others, slopes))


ON_META = {
    "LI": lambda: ns.LI(0.9),
    "LIF": lambda: ns.LIF(torch.full((4,), 0.9), learn_beta=True),
    "Alpha": lambda: ns.Alpha(0.9, 0.5),
    "PLIF": lambda: ns.PLIF(0.9),
    "SEAdLIF": ns.SEAdLIF,
    "OneToOne": lambda: ns.OneToOne(0.9),
    "Recurrent": lambda: ns.Recurrent(ns.LIF(0.9), 4),
    "masked": lambda: ns.Recurrent(ns.LIF(0.9), 4, zero_diagonal=True),
    "Delay": lambda: ns.Delay(4, 3),
    "SpikeLinear": lambda: ns.SpikeLinear(4, 4),
}


@pytest.mark.parametrize("name", ON_META)
def test_layers_are_made_and_called_where_tensors_have_no_numbers(name):
    with torch.device("meta"):
        layer, current = ON_META[name](), torch.empty(5, 2, 4)
    assert type(layer).__name__ in repr(layer)
    found = layer(current)
    out = found[0] if isinstance(found, tuple) else found
    assert (out.shape, out.device.type) == ((5, 2, 4), "meta")
    layer.to_empty(device="cpu")
    layer.load_state_dict(ON_META[name]().state_dict())
    found = layer(torch.rand(5, 2, 4))
    assert (found[0] if isinstance(found, tuple) else found).isfinite().all()
