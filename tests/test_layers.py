"""What users hand to the layers: errors that say what was got and wanted, and what is kept."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import neurospike as ns
from neurospike import binding, dispatch, ops, rule
from neurospike.errors import BackendError, MissingDependencyError

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


@pytest.mark.parametrize(
    ("surrogate", "message"),
    [
        (3, "a name, a Surrogate or a function of u, got 3"),
        (torch.sigmoid, "must be a plain Python function, got <built-in"),
        (with_torch, "'with_torch' uses 'torch', a module; it may use exp"),
        (with_attribute, "'with_attribute' uses 'cosh', which is no number or function"),
        (with_unknown, "'with_unknown' uses 'nothing'"),
        (with_two, r"takes \('u', 'slope'\); it must be callable with one argument"),
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
        "LIF(beta=0.9, threshold=1, surrogate=atan(4.0,), reset='subtract', reset_delay=True, "
        "backend='auto')"
    )
    assert repr(ns.LI(torch.rand(3), backend="reference")) == (
        "LI(beta=tensor(3,), backend='reference')"
    )


def test_a_rule_of_another_process_says_what_is_missing():
    with pytest.raises(LookupError, match=r"'bump-0123' is a function that this process has not"):
        rule.from_key("subtract delayed bump-0123")


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
    from neurospike import reference

    key = rule.key_of("subtract", True, False, ns.surrogate.atan().function)
    zero = torch.zeros(())
    with pytest.raises(MissingDependencyError, match="pip install snntorch"):
        reference.lif(CURRENT, CURRENT[0], zero, zero, rule.from_key(key), (2.0,))


def test_the_reference_leaves_no_layer_in_snntorchs_list():
    import snntorch

    before = len(snntorch.SpikingNeuron.instances)
    ns.lif(CURRENT, beta=0.9, backend="reference")
    assert len(snntorch.SpikingNeuron.instances) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "poisson"}, "unknown encoding 'poisson'; choose one of constant, rate"),
        (
            {"readout": "votes"},
            "unknown readout 'votes'; choose one of membrane, max_membrane, spikes",
        ),
        ({"hidden_size": []}, "there must be a hidden layer"),
        ({"hidden_size": [8, 0]}, r"at least 1 .* sizes \[784, 8, 0, 10\]"),
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
