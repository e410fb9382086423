"""Torch citizenship: which kernel ran, graphs made of it, and derivatives it does not have."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from conftest import device_of
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import neurospike as ns
from neurospike import ops
from neurospike.backend import dispatch

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Calls(TorchDispatchMode):
    """Records every operator that reaches a kernel, with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def ours(self) -> list[str]:
        names = [func.name() for func, *_ in self.calls]
        return [name.split("::")[1] for name in names if name.startswith("neurospike::")]


MODES = {
    "training": lambda device: contextlib.nullcontext(),
    "no_grad": lambda device: torch.no_grad(),
    "inference": lambda device: torch.inference_mode(),
    "autocast": lambda device: torch.autocast(device, torch.bfloat16),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trained", [True, False], ids=["train", "eval"])
def test_the_fused_operator_runs_and_nothing_loops_over_time(dtype, mode, trained, fused):
    device = device_of(fused)
    layer = ns.LIF(0.9, learn_beta=True, backend=fused).to(device).train(trained)

    def calls(num_steps):
        x = torch.randn(num_steps, 2, 9).to(device, dtype).requires_grad_()
        layer.zero_grad()
        with Calls() as recorded:
            with MODES[mode](device):
                spikes, mem = layer(x)
            if spikes.requires_grad:
                (spikes.sum() + mem.sum()).backward()
        assert spikes.dtype == dtype
        return recorded

    short, long = calls(3), calls(40)
    backward = [f"{fused}_scan_backward"] if mode in ("training", "autocast") else []
    assert long.ours() == [f"{fused}_scan", *backward]
    assert len(long.calls) == len(short.calls)


def test_autocast_between_layers_keeps_the_state_in_float32(fused):
    device = device_of(fused)
    net = ns.LIF(0.9, backend=fused).to(device)
    linear = nn.Linear(6, 9).to(device)
    x = torch.randn(5, 2, 6, device=device)
    with torch.autocast(device, torch.bfloat16), Calls() as recorded:
        current = linear(x)
        spikes, mem = net(current)
    assert current.dtype == spikes.dtype == torch.bfloat16
    assert mem.dtype == torch.float32
    assert f"{fused}_scan" in recorded.ours()
    assert torch.equal(spikes, net(current)[0])


def test_auto_takes_a_fused_backend_where_one_runs(fused):
    device = device_of(fused)
    with Calls() as recorded:
        ns.lif(torch.randn(3, 2, 4, device=device), beta=0.9)
    assert len(recorded.ours()) == 1


@pytest.mark.parametrize("held", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("lengths", [None, [1, 4]], ids=["", "lengths"])
def test_the_operators_keep_torchs_rules(held, lengths, fused):
    """opcheck: schema, fake tensors and tracing of the calls that a layer really makes."""
    device = device_of(fused)
    current = torch.randn(*(() if held else (4,)), 2, 9, device=device, requires_grad=True)
    mem = torch.randn(2, 9, device=device, requires_grad=True)
    beta = torch.rand(9, device=device, requires_grad=True)
    threshold = torch.ones((), device=device, requires_grad=True)
    with Calls() as recorded:
        out = ns.lif(
            current,
            mem,
            beta=beta,
            threshold=threshold,
            return_trace=True,
            backend=fused,
            num_steps=4 if held else None,
            lengths=lengths,
        )
        sum(o.sum() for o in out).backward()
        with torch.no_grad():
            ns.lif(current, beta=beta, num_steps=4 if held else None, backend=fused)
    checked = set()
    for func, args, kwargs in recorded.calls:
        if func.name().startswith("neurospike::"):
            args = tree_map_only(torch.Tensor, torch.Tensor.detach, tuple(args))
            torch.library.opcheck(func, args, kwargs)
            checked.add(func.name())
    assert checked == {f"neurospike::{fused}_scan", f"neurospike::{fused}_scan_backward"}


class Network(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.linear = nn.Linear(6, 9)
        self.lif = ns.LIF(torch.full((9,), 0.9), learn_beta=True, backend=backend)
        self.readout = ns.LI(0.8, backend=backend)

    def forward(self, x, mem=None):
        spikes, mem = self.lif(self.linear(x), mem)
        trace, _ = self.readout(spikes)
        return trace, mem


def step(function, net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    trace, mem = function(x)
    (trace.pow(2).sum() + mem.sum()).backward()
    return [trace.detach(), mem.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_it_follows_use_backend(monkeypatch):
    module = dispatch.load(dispatch.TABLE["numba"].module)
    forward, ran = module.forward, []
    monkeypatch.setattr(module, "forward", lambda **given: ran.append("numba") or forward(**given))
    layer = ns.LIF(0.9)
    compiled = torch.compile(lambda x: layer(x)[0], backend="aot_eager")
    x = torch.rand(5, 2, 9)
    for name, wanted in (("auto", ["numba"]), ("reference", []), ("auto", ["numba"])):
        ran.clear()
        ops.forget()  # so that the backend is asked
        with ns.use_backend(name):
            compiled(x)
        assert ran == wanted


def test_a_trace_holds_also_for_a_decay_that_leaves_its_bounds(backend):
    """What is done to a decay is not decided by the value that it had when it was traced."""
    device = device_of(backend)
    layer, x = ns.LIF(0.9, backend=backend).to(device), torch.rand(5, 2, 3, device=device)
    traced = make_fx(lambda x: layer(x)[0])(x)
    for beta in (1.5, 0.25, -1.0):
        layer.beta.fill_(beta)
        assert torch.equal(traced(x), layer(x)[0])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_whole_it_gives_the_same(dynamic, fused):
    """`aot_eager` runs everything of torch.compile but the code generator of other operators."""
    device = device_of(fused)
    net = Network(fused).to(device)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    shapes = [(5, 2, 6), (11, 2, 6), (7, 3, 6), (13, 4, 6)]
    for number, shape in enumerate(shapes if dynamic else shapes[:1]):
        x = torch.randn(shape, device=device)
        stance = "fail_on_recompile" if number >= 1 else "default"
        with torch.compiler.set_stance(stance):
            found = step(compiled, net, x)
        for got, want in zip(found, step(net, net, x)):
            assert torch.equal(got, want)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_functional_form_and_constant_current(fused):
    device = device_of(fused)
    current, mem = torch.randn(3, 8, device=device), torch.randn(3, 8, device=device)

    def run(x, state, decay):
        return ns.lif(x, state, beta=decay, surrogate="fast_sigmoid", num_steps=6, backend=fused)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for decay in (0.9, 0.5, 0.25):
        for got, want in zip(compiled(current, mem, decay), run(current, mem, decay)):
            assert torch.equal(got, want)


def test_exported_programs_run_and_hold_the_operator(fused):
    device = device_of(fused)
    net = Network(fused).to(device).eval()
    example = torch.randn(5, 2, 6, device=device)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (example,), dynamic_shapes={"x": {0: steps, 1: batch}})
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum(f"{fused}_scan" in target for target in targets) == 2
    for shape in ((5, 2, 6), (9, 4, 6)):
        x = torch.randn(shape, device=device)
        for got, want in zip(program.module()(x), net(x)):
            assert torch.equal(got, want)


def test_a_second_derivative_is_refused_or_right(backend):
    device = device_of(backend)
    x = torch.randn(4, 2, 5, device=device, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, device=device, dtype=torch.float64, requires_grad=True)

    def first(w):
        spikes, _ = ns.lif(x.detach() * w, beta=0.9, reset="none", backend=backend)
        return torch.autograd.grad(spikes.sum(), w, create_graph=True)[0]

    plain = torch.autograd.grad(
        ns.lif(x.detach() * weight, beta=0.9, reset="none", backend=backend)[0].sum(), weight
    )[0]
    assert torch.equal(first(weight), plain)
    if dispatch.TABLE[backend].fused:
        with pytest.raises(RuntimeError, match=r"first derivatives only.*backend='reference'"):
            first(weight).sum().backward()
    else:
        second = torch.autograd.grad(first(weight).sum(), weight)[0]
        epsilon = 1e-6
        with torch.no_grad():
            moved = weight + epsilon, weight - epsilon
        up, down = (first(w.requires_grad_()) for w in moved)
        # Each weight reaches its own neurons only, so the sum's derivative is that of its part.
        assert torch.allclose(second, (up - down) / (2 * epsilon), rtol=1e-4, atol=1e-6)


SEVERAL = {
    "LIF": lambda backend: ns.LIF(0.9, learn_beta=True, learn_threshold=True, backend=backend),
    "Synaptic": lambda backend: ns.Synaptic(0.8, 0.9, backend=backend),
    "Recurrent": lambda backend: ns.Recurrent(ns.LIF(0.9, backend=backend), 5),
    "Delay": lambda backend: ns.Delay(5, 3, backend=backend),
    "Sequential": lambda backend: ns.Sequential(
        ns.SpikeLinear(5, 6, backend=backend),
        ns.LIF(0.9, backend=backend),
        nn.Linear(6, 2),
        ns.LI(0.9, backend=backend),
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_gradients_at_once_are_those_of_each(kind, fused):
    layer = SEVERAL[kind](fused).to(device_of(fused))
    x = torch.rand(6, 3, 5, device=device_of(fused)).mul_(2).requires_grad_()
    wanted = [x, *(one for one in layer.parameters() if one.requires_grad)]
    out = layer(x)[0]
    several = torch.randn(4, *out.shape, device=out.device)
    each = [torch.autograd.grad(out, wanted, one, retain_graph=True) for one in several]
    expected = tuple(map(torch.stack, zip(*each)))
    kept = {"is_grads_batched": True, "retain_graph": True}
    for _ in range(2):
        found = torch.autograd.grad(out, wanted, several, **kept)
        torch.testing.assert_close(found, expected)
    found = torch.autograd.grad(layer(x)[0], wanted, several, is_grads_batched=True)
    torch.testing.assert_close(found, expected)

    def last(x):
        return layer(x)[0][-1, 0]

    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(last, x.detach())
    torch.testing.assert_close(jacobian(last, x.detach(), vectorize=True), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
def test_forward_mode_is_refused_and_not_zero(backend):
    x = torch.randn(4, 2, 5, device=device_of(backend))

    def mem(x):
        return ns.lif(x, beta=0.9, backend=backend)[1]

    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(mem, (x,), (torch.ones_like(x),))


@pytest.mark.filterwarnings("error")
def test_function_transforms(backend):
    device = device_of(backend)
    batches = torch.randn(3, 4, 2, 5, device=device)

    def total(x):
        return ns.lif(x, beta=0.9, backend=backend)[0].sum()

    for x in batches:
        leaf = x.clone().requires_grad_()
        total(leaf).backward()
        assert torch.equal(torch.func.grad(total)(x), leaf.grad)
    spikes = torch.vmap(lambda x: ns.lif(x, beta=0.9, backend=backend)[0])(batches)
    each = torch.stack([ns.lif(x, beta=0.9, backend=backend)[0] for x in batches])
    assert torch.equal(spikes, each)


# Of the current, the state, beta and the threshold: their shapes, and the axis that is mapped over.
MAPPED = [
    (((3, 4, 2, 5), 0), ((2, 5), None), ((), None), ((), None)),
    (((4, 2, 3, 5), 2), ((3, 2, 5), 0), ((3,), 0), ((5, 3), 1)),
    (((4, 2, 5), None), ((2, 3, 5), 1), ((5,), None), ((3,), 0)),
    (((4, 2, 5), None), ((2, 5), None), ((3, 5), 0), ((5,), None)),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("held", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("mapped", MAPPED, ids=str)
def test_mapped_it_is_one_call_and_gives_what_each_call_gives(mapped, held, fused):
    shapes, dims = zip(*mapped)
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.rand(shape, generator=drawn) for shape in shapes]
    if held:
        inputs[0] = inputs[0].select(inputs[0].dim() - 3 - (dims[0] == 2), 0)
        dims = (None if dims[0] is None else inputs[0].shape.index(3), *dims[1:])
    inputs = [value.to(device_of(fused)) for value in inputs]

    def run(current, mem, beta, threshold):
        options = {"return_trace": True, "backend": fused, "num_steps": 4 if held else None}
        return ns.lif(current, mem, beta=beta, threshold=threshold, **options)

    def loss(*inputs):
        spikes, mem, trace = run(*inputs)
        return (spikes * torch.linspace(0, 1, 5).to(spikes)).sum() + (mem**2).sum() + trace.sum()

    gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    parts = [
        [value if dim is None else value.select(dim, k) for value, dim in zip(inputs, dims)]
        for k in range(3)
    ]
    with Calls() as recorded:
        found = torch.vmap(run, in_dims=dims)(*inputs)
    assert recorded.ours() == [f"{fused}_scan"]
    for got, *each in zip(found, *(run(*part) for part in parts)):
        assert torch.equal(got, torch.stack(each))
    found = torch.vmap(gradients, in_dims=dims)(*inputs)
    for got, *each in zip(found, *(gradients(*part) for part in parts)):
        torch.testing.assert_close(got, torch.stack(each), rtol=1e-5, atol=1e-5)


class Held(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.linear, self.lif = nn.Linear(6, 9), ns.LIF(0.9, backend=backend)

    def forward(self, x, num_steps):
        return self.lif(self.linear(x), num_steps=num_steps)[0]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_new_number_of_steps_of_a_constant_current_compiles_nothing_anew(fused):
    net = Held(fused).to(device_of(fused))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    x = torch.randn(2, 6, device=device_of(fused))
    for num_steps in range(2, 12):
        spikes = compiled(x, num_steps)
        assert torch.equal(spikes, net(x, num_steps))
        spikes.sum().backward()
    assert counter.frame_count <= 2


def test_exported_with_any_number_of_steps_of_a_constant_current(fused):
    net = Held(fused).to(device_of(fused)).eval()
    x = torch.randn(2, 6, device=device_of(fused))
    shapes = {"x": None, "num_steps": torch.export.Dim.DYNAMIC}
    program = torch.export.export(net, (x, 5), dynamic_shapes=shapes)
    for num_steps in (3, 5, 40):
        assert torch.equal(program.module()(x, num_steps), net(x, num_steps))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")
def test_the_reference_compiles_without_a_warning():
    layer = ns.LIF(0.9, learn_beta=True, backend="reference")
    x = torch.rand(4, 2, 3)
    assert torch.equal(torch.compile(layer, backend="aot_eager")(x)[0], layer(x)[0])


def nested_functions(tree):
    """The functions that are made while another one runs."""
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef):
            yield from (n for n in ast.walk(outer) if isinstance(n, ast.FunctionDef) and n != outer)


@pytest.mark.parametrize("file", ["ops/time_loop.py", "ops/recurrent_loop.py"])
def test_nothing_that_is_traced_evaluates_a_union_of_types(file):
    """Dynamo of torch 2.9 cannot: annotations of functions within functions stand in quotes."""
    text = (Path(ns.__file__).parent / file).read_text(encoding="utf-8")
    found = list(nested_functions(ast.parse(text)))
    assert found
    for function in found:
        arguments = [*function.args.args, *function.args.kwonlyargs]
        kinds = [one.annotation for one in arguments] + [function.returns]
        parts = [part for kind in kinds if kind is not None for part in ast.walk(kind)]
        assert not any(isinstance(part, ast.BinOp) for part in parts), function.name
