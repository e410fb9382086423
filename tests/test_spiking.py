"""`ns.Spiking` and the neurons of the library: equal on every backend, refused at the door."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from torch import nn

import neurospike as ns
from neurospike.formulas import fire, heaviside
from neurospike.layers import zoo

# Neurons with the scale and the mean of currents at which they fire now and then.
ZOO = {
    "synaptic": (lambda: ns.Synaptic(0.7, 0.8), 0.4, 0.1),
    "synaptic zero": (lambda: ns.Synaptic(0.7, 0.8, reset="zero"), 0.5, 0.2),
    "synaptic none": (lambda: ns.Synaptic(0.7, 0.8, reset="none"), 0.4, 0.0),
    "synaptic subtract at once": (lambda: ns.Synaptic(0.7, 0.8, reset_delay=False), 0.4, 0.1),
    "synaptic zero at once": (
        lambda: ns.Synaptic(0.7, 0.8, reset="zero", reset_delay=False),
        0.5,
        0.2,
    ),
    "alpha": (lambda: ns.Alpha(0.9, 0.8), 0.5, 0.2),
    "alpha subtract": (lambda: ns.Alpha(0.9, 0.8, reset="subtract"), 0.5, 0.2),
    "alpha none": (lambda: ns.Alpha(0.9, 0.8, reset="none"), 0.5, 0.2),
    "plif": (lambda: ns.PLIF(0.8), 0.5, 0.3),
    "alif": (lambda: ns.ALIF(), 0.5, 0.2),
    "se_adlif": (lambda: ns.SEAdLIF(), 5.0, 4.0),
    "izhikevich": (lambda: ns.Izhikevich(), 6.0, 8.0),
    "qif": (lambda: ns.QIF(), 2.0, 1.5),
    "eif": (lambda: ns.EIF(), 2.0, 1.5),
    "brf": (lambda: ns.BRF(), 60.0, 60.0),
    "one_to_one": (lambda: ns.OneToOne(0.8, -0.3), 0.5, 0.4),
}


def cuba_lif(current, syn, mem, alpha, beta, threshold):
    syn = alpha * syn + current
    mem = beta * mem + syn - heaviside(mem - threshold) * threshold
    return fire(mem - threshold), syn, mem


def three_states(current, syn, mem, tired, alpha, beta, rho):
    syn = alpha * syn + current
    mem = beta * mem + syn
    spike = fire(mem - 1.0 - tired)
    return spike, syn, mem * (1.0 - spike), rho * tired + spike


def own(**options):
    return ns.Spiking(cuba_lif, alpha=0.7, beta=0.8, threshold=1.0, **options)


def outcome(layer, current, state=None, **options):
    """Spikes, states and traces, and the gradients of all that can have one, of a mixed loss."""
    leaves = [current, *(state or ()), *layer.parameters()]
    leaves = [one for one in leaves if one.requires_grad]
    spikes, states, traces = layer(current, state, return_trace=True, **options)
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for one in (spikes, *states, *traces):
        total = total + (one * torch.randn(one.shape, generator=generator)).sum()
    return (spikes, *states, *traces), torch.autograd.grad(total, leaves)


def learned(name, neurons, dtype=torch.float32):
    """A layer of the zoo whose parameters are all learned, one value per neuron, and a current."""
    make, scale, mean = ZOO[name]
    layer = make()
    generator = torch.Generator().manual_seed(3)
    for key, value in list(layer.named_parameters()) + list(layer.named_buffers()):
        layer._buffers.pop(key, None)
        spread = 1.0 + 0.02 * torch.rand(neurons, generator=generator)
        layer.register_parameter(key, nn.Parameter((value.detach() * spread).to(dtype)))
    current = torch.randn(31, 2, neurons, generator=generator, dtype=dtype) * scale + mean
    return layer, current.requires_grad_()


@pytest.mark.parametrize("name", ZOO)
def test_spikes_and_states_are_the_references_bit_for_bit(name, fused):
    layer, current = learned(name, 37)
    found = {}
    for layer.backend in ("reference", fused):
        found[layer.backend] = outcome(layer, current)
    (want, want_grads), (got, got_grads) = found["reference"], found[fused]
    assert 0.0 < want[0].mean() < 1.0
    for one, other in zip(got, want):
        assert torch.equal(one, other)
    for one, other in zip(got_grads, want_grads):
        assert (one - other).norm() <= 1e-5 * max(1e-3, float(other.norm()))


@pytest.mark.parametrize("name", ["synaptic", "se_adlif", "eif"])
def test_in_float64(name, fused):
    layer, current = learned(name, 5, torch.float64)
    found = {}
    for layer.backend in ("reference", fused):
        found[layer.backend] = outcome(layer, current)
    for one, other in zip(found[fused][1], found["reference"][1]):
        assert (one - other).norm() <= 1e-12 * max(1e-3, float(other.norm()))


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_synaptic_is_snntorchs(reset, backend):
    theirs = snntorch.Synaptic(alpha=0.7, beta=0.8, reset_mechanism=reset)
    current = torch.randn(40, 3, 11) * 0.5
    syn, mem, spikes = torch.zeros(3, 11), torch.zeros(3, 11), []
    for one in current:
        spike, syn, mem = theirs(one, syn, mem)
        spikes.append(spike)
    layer = ns.Synaptic(0.7, 0.8, reset=reset, backend=backend)
    got, (own_syn, own_mem) = layer(current)
    assert got.sum() > 10
    assert torch.equal(got, torch.stack(spikes))
    assert torch.equal(own_syn, syn) and torch.equal(own_mem, mem)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_alpha_is_snntorchs(reset, backend):
    theirs = snntorch.Alpha(alpha=0.9, beta=0.8, reset_mechanism=reset)
    current = torch.randn(40, 3, 11)
    exc, inh, mem, spikes = *torch.zeros(3, 3, 11), []
    for one in current:
        spike, exc, inh, mem = theirs(one, exc, inh, mem)
        spikes.append(spike)
    got, state = ns.Alpha(0.9, 0.8, reset=reset, backend=backend)(current)
    assert got.sum() > 10
    assert torch.equal(got, torch.stack(spikes))
    for one, other in zip(state, (exc, inh, mem)):
        assert torch.equal(one, other)


def test_one_to_one_is_snntorchs(backend):
    theirs = snntorch.RLeaky(beta=0.8, V=-0.3, all_to_all=False)
    current = torch.randn(40, 3, 11) + 0.3
    spike, mem, spikes = torch.zeros(3, 11), torch.zeros(3, 11), []
    for one in current:
        spike, mem = theirs(one, spike, mem)
        spikes.append(spike)
    got, (_, own_mem) = ns.OneToOne(0.8, -0.3, backend=backend)(current)
    assert got.sum() > 10
    assert torch.equal(got, torch.stack(spikes)) and torch.equal(own_mem, mem)


def test_a_function_of_ones_own_is_the_built_in_one(backend):
    current = torch.randn(20, 2, 9, requires_grad=True)
    mine, built = own(backend=backend), ns.Synaptic(0.7, 0.8, backend=backend)
    for one, other in zip(outcome(mine, current), outcome(built, current)):
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert mine.rule.program == built.rule.program


def test_three_states_of_ones_own(backend):
    layer = ns.Spiking(three_states, alpha=0.6, beta=0.7, rho=0.9, backend=backend)
    assert layer.states == ("syn", "mem", "tired")
    current = torch.randn(20, 2, 9)
    spikes, state = layer(current)
    assert spikes.sum() > 0 and len(state) == 3
    first, between = layer(current[:8])
    second, after = layer(current[8:], between)
    assert torch.equal(torch.cat([first, second]), spikes)
    assert all(torch.equal(a, b) for a, b in zip(after, state))


def test_gradients_flow_to_the_state_that_was_handed_in(backend):
    found = {}
    layer = own()
    current = torch.randn(9, 2, 5, requires_grad=True)
    state = tuple(torch.rand(2, 5, requires_grad=True) for _ in range(2))
    for layer.backend in ("reference", backend):
        found[layer.backend] = outcome(layer, current, state)
    for one, other in zip(found[backend][1], found["reference"][1]):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_a_constant_current_is_that_current_at_every_step(backend):
    layer = own(learn=("alpha", "beta", "threshold"), backend=backend)
    current = (torch.rand(2, 5) * 0.6).requires_grad_()
    held, held_grads = outcome(layer, current, num_steps=12)
    laid, laid_grads = outcome(layer, current.expand(12, 2, 5).contiguous())
    assert all(torch.equal(one, other) for one, other in zip(held, laid))
    assert (held_grads[0] - laid_grads[0].sum(0)).norm() <= 1e-5 * held_grads[0].norm()
    for one, other in zip(held_grads[1:], laid_grads[1:]):
        assert (one - other).norm() <= 1e-5 * max(1e-3, float(other.norm()))


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 2, 3), (5, 0, 3), (4, 1, 1), (3, 2, 4, 5)])
def test_odd_shapes(shape, backend):
    layer = own(learn=("alpha",), backend=backend)
    current = torch.randn(shape, requires_grad=True)
    everything, grads = outcome(layer, current)
    assert [one.shape for one in everything[1:3]] == [torch.Size(shape[1:])] * 2
    assert everything[0].shape == torch.Size(shape) and grads[0].shape == torch.Size(shape)
    assert all(one.isfinite().all() for one in (*everything, *grads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, fused):
    current = (torch.randn(12, 2, 6) * 0.6).to(dtype)
    layer = own(backend=fused)
    spikes, (syn, mem) = layer(current)
    wide, _ = layer(current.float())
    assert spikes.dtype == dtype and syn.dtype == mem.dtype == torch.float32
    assert torch.equal(spikes.float(), wide)


def test_truncation_cuts_the_gradient_and_no_value(backend):
    layer = own(backend=backend)
    current = torch.randn(12, 2, 6, requires_grad=True)
    whole, state, traces = layer(current, return_trace=True)
    layer.segment = 5
    parts, last, pieces = layer(current, return_trace=True)
    assert torch.equal(whole, parts)
    assert all(torch.equal(a, b) for a, b in zip((*state, *traces), (*last, *pieces)))
    (grad,) = torch.autograd.grad(last[1].sum(), current)
    assert not grad[:10].any() and grad[10:].any()


def test_a_window_narrows_the_gradient(backend):
    current = torch.randn(12, 2, 6, requires_grad=True)
    grads = {}
    for window in (None, 1e9, 1e-9):
        layer = own(backend=backend, grad_window=window)
        (grads[window],) = torch.autograd.grad(layer(current)[0].sum(), current)
    assert torch.equal(grads[None], grads[1e9])
    assert grads[None].any() and not grads[1e-9].any()


def test_learned_parameters_train_and_stay_within_bounds():
    layer = ns.Synaptic(torch.full((6,), 0.5), 0.8, learn=("alpha", "beta"))
    assert sorted(dict(layer.named_parameters())) == ["alpha", "beta"]
    assert layer.alpha.shape == (6,) and not layer.threshold.requires_grad
    with torch.no_grad():
        layer.alpha.fill_(1.5)
    current = torch.rand(9, 2, 6)
    other = ns.Synaptic(torch.ones(6), 0.8)
    assert torch.equal(layer(current)[0], other(current)[0])


@pytest.mark.parametrize("gradient", ["inward", "clamp"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_parameter_beyond_its_bound_has_the_gradient_that_was_chosen(gradient, sign):
    def leaky(current, mem, beta):
        mem = beta * mem + current
        return fire(mem - 100.0), mem

    layer = ns.Spiking(
        leaky, beta=0.5, learn=("beta",), bounds={"beta": (0, 1)}, bound_gradient=gradient
    )
    with torch.no_grad():
        layer.beta.fill_(1.2)
    (sign * layer(torch.ones(4, 1, 2))[1][0].sum()).backward()
    assert (layer.beta.grad != 0) == (gradient == "inward" and sign > 0)
    with pytest.raises(ValueError, match="unknown bound_gradient 'none'; choose one of inward, c"):
        ns.Spiking(leaky, beta=0.5, bound_gradient="none")


@pytest.mark.parametrize("shape", [(1, 3), (2,), (3, 1)])
def test_parameters_that_do_not_fit_the_features_are_refused(shape):
    told = re.escape(f"alpha of shape {shape} does not broadcast against the features (3,)")
    with pytest.raises(ValueError, match=told):
        ns.Synaptic(torch.full(shape, 0.5), 0.8)(torch.rand(4, 2, 3))


def test_plif_begins_at_its_decay_and_learns_it():
    layer = ns.PLIF(0.9)
    assert layer.beta.item() == pytest.approx(0.9)
    layer(torch.rand(9, 2, 6) * 0.3)[1][0].sum().backward()
    assert layer.logit.grad.abs() > 0


def test_copies_are_the_same_layer():
    layer = own(learn=("alpha",))
    current = torch.randn(9, 2, 6)
    want = layer(current)[0]
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), own()]
    copies[2].load_state_dict(layer.state_dict())
    for one in copies:
        assert torch.equal(one(current)[0], want)
    assert own().double()(current.double())[0].dtype == torch.float64


def test_a_parameter_of_torch_is_kept_and_learned():
    alpha = nn.Parameter(torch.tensor(0.7))
    layer = ns.Spiking(cuba_lif, alpha=alpha, beta=0.8, threshold=1.0)
    assert layer.alpha is alpha
    layer(torch.rand(5, 2, 3))[1][1].sum().backward()
    assert alpha.grad is not None


def test_the_operators_are_what_torch_asks_for(fused):
    layer = own(backend=fused)
    current = torch.randn(6, 2, 4, requires_grad=True)
    parameters = [torch.tensor([value], requires_grad=True) for value in (0.7, 0.8, 1.0)]
    operator = getattr(torch.ops.neurospike, f"{fused}_scan").default
    given = (current, [], parameters, layer.rule.program, list(layer.rule.numbers), -1, 7)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, given, test_utils=tests)


def test_compiled_whole_for_every_number_of_steps(fused):
    layer = own(learn=("alpha",), backend=fused)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, 7, 9):
        current = torch.randn(steps, 2, 5, requires_grad=True)
        want, got = layer(current)[0], compiled(current)[0]
        assert torch.equal(want, got)
        (one,) = torch.autograd.grad(got.sum(), current)
        (other,) = torch.autograd.grad(layer(current)[0].sum(), current)
        assert torch.equal(one, other)


def test_an_exported_layer_needs_no_function_of_the_user(tmp_path, fused):
    current = torch.randn(6, 2, 4)
    layer = own(backend=fused).eval()
    torch.export.save(torch.export.export(layer, (current,)), str(tmp_path / "layer.pt2"))
    torch.save((current, layer(current)[0]), tmp_path / "wanted.pt")
    script = (
        "import torch, neurospike\n"
        "current, want = torch.load('wanted.pt')\n"
        "spikes, _ = torch.export.load('layer.pt2').module()(current)\n"
        "assert torch.equal(spikes, want)\n"
    )
    root = str(Path(ns.__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


def test_a_second_derivative_is_refused(fused):
    current = torch.randn(5, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(own(backend=fused)(current)[0].sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def test_in_a_sequential():
    net = ns.Sequential(nn.Linear(4, 6), own(), nn.Linear(6, 3), ns.LI(0.9))
    frames = torch.randn(8, 2, 4)
    whole, states = net(frames)
    first, between = net(frames[:3])
    second, _ = net(frames[3:], between)
    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-6)
    assert len(states[0]) == 2
    held, _ = net(frames[0], num_steps=5)
    assert held.shape == (5, 2, 3)


def test_annealing_compiles_nothing_anew():
    from neurospike.kernels.cpu import _code

    made = set()
    current = torch.randn(5, 2, 3, requires_grad=True)
    gradients = []
    for slope in (1.0, 2.0, 3.0):
        layer = own(surrogate=lambda u, slope=slope: slope / (1.0 + abs(u)), backend="numba")

        def annealed(u):
            return slope / (1.0 + abs(u))  # noqa: B023

        layer = own(surrogate=annealed, backend="numba")
        (grad,) = torch.autograd.grad(layer(current)[0].sum(), current)
        gradients.append(grad)
        made.add(_code.count())
    assert len(made) == 1  # the first slope's loops are the others' too
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[1], gradients[2])


COLLIDING = """
import sys, torch, neurospike as ns
torch.set_num_threads(1)
for make in (lambda: ns.Synaptic(0.7, 0.8), lambda: ns.PLIF(0.8)):
    if sys.argv[1] in (make().name, "both"):
        found = []
        for backend in ("numba", "reference"):
            layer = make()
            layer.backend = backend
            current = torch.linspace(-1, 1, 600).view(20, 3, 10).requires_grad_()
            layer(current)[0].sum().backward()
            found.append(current.grad)
        assert torch.allclose(*found, atol=1e-5)
"""


@pytest.mark.thorough
def test_code_that_two_processes_compiled_is_not_confused_in_a_third(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = str(Path(ns.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    for which in ("synaptic", "lif", "both"):
        ran = subprocess.run([sys.executable, "-c", COLLIDING, which], env=environment)
        assert ran.returncode == 0


def importing(current, mem):
    import math

    return fire(mem - 1.0), mem * math.pi


def before_its_value():
    def neuron(current, mem):
        return fire(mem - late), mem

    if neuron is None:
        late = 1.0
    return neuron


CALLS = {
    "an if on a state": (
        lambda current, mem: (fire(mem), mem if mem > 0.0 else current),
        r"line \d+ .*asks whether a value is true.*where\(condition, a, b\)",
    ),
    "an integer": (lambda current, mem: (fire(1 * mem), mem), r"integer 1.*write 1\.0"),
    "an unknown name": (lambda current, mem: (fire(unknown(mem)), mem), "'unknown'"),  # noqa: F821
    "a builtin": (lambda current, mem: (fire(max(mem, 0.0)), mem), r"maximum\(a, b\)"),
    "print": (lambda current, mem: (fire(mem), print(mem)), "leave it out"),  # noqa: T201
    "a method": (lambda current, mem: (fire(mem.abs()), mem), r"write abs\(u\)"),
    "torch": (lambda current, mem: (fire(torch.exp(mem)), mem), r"write exp\(u\)"),
    "a power": (lambda current, mem: (fire(mem**2.5), mem), "multiply"),
    "an equality": (lambda current, mem: (fire(mem == 0.0), mem), "== or !="),
    "a condition as number": (lambda current, mem: (fire(mem + (mem > 0.0)), mem), "condition"),
    "one result": (lambda current, mem: fire(mem), r"must return \(spike, \*new_states\)"),
    "too many results": (lambda current, mem: (mem, mem, mem, mem), "returns 4 results"),
    "no arguments": (lambda: None, "takes nothing"),
    "keywords": (lambda current, *, mem: (mem, mem), "name each argument"),
    "an import": (importing, r"imports math, .* import outside of the function"),
    "no value yet": (before_its_value(), r"uses 'late', which is not known where it is written"),
    "arguments of a free name": (lambda current, mem: (fire(mem, 1.0), mem), "fire takes 1"),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_a_backend_cannot_run_is_refused_where_it_is_made(what):
    function, message = CALLS[what]
    with pytest.raises(TypeError, match=message):
        ns.Spiking(function)


def recursive(current, mem):
    return recursive(current, mem)


def test_recursion_is_refused():
    with pytest.raises(TypeError, match="calls itself"):
        ns.Spiking(recursive)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ns.Spiking(cuba_lif, alpha=0.7, beta=0.8), TypeError, "threshold=..."),
        (lambda: own(gamma=1.0), TypeError, "gamma, which cuba_lif does not take"),
        (lambda: own(learn=("gamma",)), TypeError, "learn names gamma"),
        (lambda: own(rest={"v": 1.0}), TypeError, "its states are syn, mem"),
        (lambda: ns.Synaptic(1.2, 0.8), ValueError, r"alpha must lie in \[0, 1\], got 1.2"),
        (lambda: ns.Synaptic(0.7, float("nan")), ValueError, "beta must lie in"),
        (lambda: ns.Synaptic("0.7", 0.8), TypeError, "must be a number"),
        (lambda: ns.Synaptic(0.7, 0.8, reset="soft"), ValueError, "unknown reset 'soft'"),
        (lambda: ns.Alpha(0.7, 0.8), ValueError, "alpha must be greater than beta"),
        (lambda: ns.PLIF(1.0), ValueError, r"must lie in \(0, 1\)"),
        (lambda: own(surrogate=lambda u: (u, u)), TypeError, "returns 2 results, wanted one"),
        (lambda: own(surrogate=lambda: 1.0), TypeError, "callable with"),
        (lambda: own(backend="cuda"), ValueError, "unknown backend"),
        (lambda: ns.Spiking(abs), TypeError, "plain Python function"),
    ],
)
def test_wrong_arguments_are_told_when_the_layer_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, r"a tuple \(syn, mem\) of 2, got Tensor"),
        ((torch.zeros(2, 3),), TypeError, "of 2, got tuple of 1"),
        ((torch.zeros(2, 4), torch.zeros(2, 3)), ValueError, r"syn must have the shape"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).double()), TypeError, "mem must be torch.float32"),
        ((torch.zeros(2, 3), 0.0), TypeError, "mem must be a tensor"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, device="meta")), ValueError, "mem is on meta"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(state, error, message):
    with pytest.raises(error, match=message):
        own()(torch.zeros(4, 2, 3), state)


def test_a_parameter_that_does_not_fit_the_features_is_an_error():
    layer = ns.Synaptic(torch.full((4,), 0.5), 0.8)
    with pytest.raises(ValueError, match="does not broadcast"):
        layer(torch.zeros(5, 2, 3))


def test_the_library_has_the_zoo():
    assert {type(make()).__name__ for make, _, _ in ZOO.values()} == {
        one.__name__
        for one in vars(zoo).values()
        if isinstance(one, type) and issubclass(one, ns.Spiking) and one is not ns.Spiking
    }


@pytest.mark.parametrize("name", ["decay", "tau", "gain", "rest_level", "leak", "bias", "scale"])
def test_common_names_are_free_for_parameters(name):
    made = {}
    exec(
        f"def leaky(current, mem, {name}):\n"
        f"    v = {name} * mem + current\n"
        "    return fire(v - 1.0), v\n",
        made,
    )
    layer = ns.Spiking(made["leaky"], **{name: 0.5})
    assert layer.parameter_names == (name,)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_synaptic_neurons_reset_at_once(reset, backend):
    layer = ns.Synaptic(0.7, 0.8, 1.2, reset=reset, reset_delay=False, backend=backend)
    x = torch.rand(20, 2, 30, dtype=torch.float64)
    spikes, _, (_, trace) = layer.double()(x, return_trace=True)
    alpha, beta, threshold = layer.parameter_values()
    syn = mem = torch.zeros(2, 30, dtype=torch.float64)
    for current, fired, seen in zip(x, spikes, trace):
        syn = alpha * syn + current
        mem = beta * mem + syn
        spike = (mem > threshold).double()
        mem = mem - spike * threshold if reset == "subtract" else mem * (1 - spike)
        assert torch.equal(fired, spike)
        assert torch.equal(seen, mem)
    assert spikes.sum() > 0


@pytest.mark.parametrize("state", [0, 1])
@pytest.mark.parametrize("recurrent", [False, True], ids=["", "recurrent"])
def test_a_gradient_that_comes_to_one_trace_alone(fused, recurrent, state):
    x = torch.randn(6, 3, 20)
    found = []
    for backend in (fused, "reference"):
        torch.manual_seed(1)
        layer = ns.Synaptic(0.7, 0.8, backend=backend)
        layer = ns.Recurrent(layer, 20) if recurrent else layer
        current = x.clone().requires_grad_()
        _, _, traces = layer(current, return_trace=True)
        found.append(torch.autograd.grad(traces[state].sum(), current)[0])
    assert found[1].abs().sum() > 1
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", [0, 1])
@pytest.mark.parametrize("recurrent", [False, True], ids=["", "recurrent"])
def test_a_gradient_of_one_trace_that_is_the_same_at_every_step(fused, recurrent, state):
    x, weight = torch.randn(6, 3, 20), torch.randn(6, 3, 20)
    found = []
    for backend in (fused, "reference"):
        torch.manual_seed(1)
        layer = ns.Synaptic(0.7, 0.8, backend=backend)
        layer = ns.Recurrent(layer, 20) if recurrent else layer
        current = x.clone().requires_grad_()
        _, _, traces = layer(current, return_trace=True)
        loss = traces[state].sum() + (traces[1 - state] * weight).sum()
        found.append(torch.autograd.grad(loss, current)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
