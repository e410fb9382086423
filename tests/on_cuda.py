"""Tests that need a CUDA device; where there is one, `test_triton.py` runs them in new processes.

All other tests see no device (see `conftest.py`), and so do the same on every machine. These share
one device, with as many processes at once as there are cores, so each test may use only part of the
device's memory, and may measure no memory but its own.
"""

import json
import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import recurrent_cases
import torch
from PIL import Image
from test_batches import digits
from test_encoding import intensities
from torch import nn

import neurospike as ns
from benchmarks.device import Device
from benchmarks.equivalence import Skip, checks
from neurospike.backend import dispatch
from neurospike.coding import encoding
from neurospike.config import Config
from neurospike.data import Batches
from neurospike.errors import BackendError, GraphError, NeuroSpikeError
from neurospike.kernels.cuda import recurrent
from neurospike.training import Run, load_checkpoint
from neurospike.training.averaging import Average
from neurospike.training.loading import build_model
from neurospike.training.scale import make_fabric
from neurospike.training.setup import make_trainer

cublas = pytest.mark.unpoisoned(
    "cuBLAS has no deterministic algorithms without CUBLAS_WORKSPACE_CONFIG"
)


@pytest.mark.parametrize("check", list(checks(Device(), "triton")), ids=lambda check: check.name)
def test_equal_to_the_reference_and_the_oracle(check):
    try:
        assert check.run() <= 1e-5
    except Skip as reason:
        pytest.skip(str(reason))


def test_auto_takes_it():
    assert ns.backends()["triton"] is None
    assert dispatch.choose("auto", "cuda").name == "triton"
    spikes, mem = ns.LIF(0.9).cuda()(torch.rand(5, 2, 3, device="cuda"))
    assert spikes.is_cuda
    assert mem.is_cuda


def test_tensors_elsewhere_are_refused():
    layer = ns.LIF(torch.full((3,), 0.9), backend="triton")
    with pytest.raises(BackendError, match="runs on cuda tensors, these are on cpu"):
        layer(torch.rand(5, 2, 3))
    with pytest.raises(ValueError, match="beta"):
        layer(torch.rand(5, 2, 3, device="cuda"))


@pytest.mark.parametrize("flags", [[], ["--precision=bf16-mixed"]], ids=["float32", "bf16"])
def test_the_command_trains_and_predicts(flags, tmp_path):
    def last_line(module, *options):
        command = [sys.executable, "-m", f"neurospike.{module}", "--backend=triton", *options]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()[-1]

    accuracy = last_line("train", "--dataset=digits", "--epochs=3", "--run_dir=run", *flags)
    assert float(accuracy.removeprefix("test accuracy: ").removesuffix("%")) > 80
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert record["device"].startswith("cuda")
    stroke = Image.new("L", (28, 28))
    stroke.paste(255, (13, 4, 16, 24))
    stroke.save(tmp_path / "one.png")
    assert last_line("predict", "--image_path=one.png")


@pytest.mark.parametrize("fits", [True, False])
def test_batches(fits):
    split = digits(60_000)
    torch.cuda.empty_cache()
    # The memory that torch still holds after earlier tests, such as the workspace of cuBLAS, and
    # 20 MB: enough for batches but not for the data set.
    room = torch.cuda.memory_reserved() + 20e6
    share = 1.0 if fits else room / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        batches = Batches(split, 128, device="cuda")
        assert batches.resident == fits
        for number, (images, labels) in enumerate(batches):
            assert images.is_cuda
            assert labels.is_cuda
            part = slice(128 * number, 128 * (number + 1))
            assert torch.equal(images.cpu(), split.images[part].unsqueeze(1) / 255)
            assert torch.equal(labels.cpu(), split.labels[part])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    with pytest.raises(ValueError, match=r"generator on cuda.*torch.Generator\(\)"):
        Batches(split, 128, generator=torch.Generator(device="cuda"))


def test_encodings():
    data = intensities(8, 100)
    for curve in ("linear", "logarithmic"):
        on_device = encoding.latency(data.cuda(), 30, curve=curve)
        assert on_device.is_cuda
        assert torch.equal(on_device.cpu(), encoding.latency(data, 30, curve=curve))
    for encode in (encoding.delta, encoding.phase, encoding.burst):
        assert torch.equal(encode(data.cuda(), 30).cpu(), encode(data, 30))
    generator = torch.Generator(device="cuda").manual_seed(0)
    spikes = encoding.rate(data.cuda(), 2000, generator=generator)
    assert spikes.is_cuda
    torch.testing.assert_close(spikes.mean(0).cpu(), data, rtol=0, atol=0.06)
    with pytest.raises(ValueError, match="generator on cpu for data on cuda"):
        encoding.rate(data.cuda(), 5, generator=torch.Generator())


def test_rates_are_drawn_in_one_kernel():
    data = torch.tensor([0.0, 0.3, 1.0], device="cuda").expand(400, 3)
    generator = torch.Generator(device="cuda")
    formats = (torch.float32, torch.uint8, torch.bool, torch.float16, torch.bfloat16)
    found = [
        encoding.rate(data, 50, generator=generator.manual_seed(1), dtype=dtype)
        for dtype in formats
    ]
    assert [one.dtype for one in found] == list(formats)
    assert all(torch.equal(one.float(), found[0]) for one in found)
    assert found[0].unique().tolist() == [0.0, 1.0]
    silent, some, always = found[0].mean((0, 1)).tolist()
    assert (silent, always) == (0.0, 1.0)
    assert abs(some - 0.3) < 0.02
    assert encoding.rate(data[:0], 50).shape == (50, 0, 3)
    mapped = torch.vmap(lambda x: encoding.rate(x, 50), out_dims=1, randomness="different")
    assert mapped(data).mean((0, 1))[::2].tolist() == [0.0, 1.0]
    drawn = ns.graphed(lambda x: encoding.rate(x, 50), data.contiguous())
    several = [drawn(data).clone() for _ in range(6)]
    assert drawn.replays == 3
    assert not any(map(torch.equal, several, several[1:]))
    assert all(one.mean((0, 1))[::2].tolist() == [0.0, 1.0] for one in several)


LAYERS = {
    "LIF": lambda: ns.LIF(0.9, learn_beta=True),
    "Synaptic": lambda: ns.Synaptic(0.5, 0.9, learn=("alpha", "beta")),
    "Recurrent": lambda: ns.Recurrent(ns.LIF(0.9), 6),
    "Delay": lambda: ns.Delay(6, 3),
}


@cublas
@pytest.mark.parametrize("shape", [(0, 2, 6), (4, 0, 6), (0, 0, 6)], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_of_nothing_no_kernel_is_launched(kind, shape):
    """A device refuses an empty grid, so a launch without steps or neurons would fail."""
    layer = LAYERS[kind]().cuda()
    current = torch.rand(shape, device="cuda", requires_grad=True)
    lengths = torch.zeros(shape[1], dtype=torch.int64, device="cuda")
    for options in ({}, {"lengths": lengths}):
        spikes, state = layer(current, **options)
        assert spikes.shape == shape
        states = [state] if isinstance(state, torch.Tensor) else list(state)
        out = [one for one in (spikes, *states) if one.requires_grad]
        wanted = [current, *layer.parameters()]
        ones = [torch.ones_like(one) for one in out]
        found = torch.autograd.grad(out, wanted, ones, allow_unused=True)
        assert all(one is None or not one.any() for one in found)
    torch.cuda.synchronize()


def test_threads_with_streams_of_their_own_share_what_is_known():
    layer = ns.LIF(0.9, learn_beta=True).cuda()
    currents = torch.randn(4, 40, 8, 300, device="cuda")

    def run(current):
        leaf = current.clone().requires_grad_()
        spikes, mem = layer(leaf)
        (grad,) = torch.autograd.grad(spikes.sum() + (mem * mem).sum(), leaf)
        return spikes.detach(), mem.detach(), grad

    wanted = [run(current) for current in currents]
    torch.cuda.synchronize()

    def work(k):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = [run(currents[k]) for _ in range(20)]
            return all(all(map(torch.equal, one, wanted[k])) for one in found)

    with ThreadPoolExecutor(len(currents)) as pool:
        assert all(pool.map(work, range(len(currents))))


# Training steps replayed as one CUDA graph

DEVICE = "cuda"  # `test_on_cuda.py` lets the CPU stand in for it
MLP = {"hidden_size": 64, "num_steps": 8, "dropout": 0.2}
CONV = {"channels": [4, 8], "num_steps": 4, "normalization": "batch"}
RECURRENT = [(8, 1, 4), (8, 2, 8), (64, 4, 16)]  # rows, width, warps


def trainer_of(
    cuda_graph, model=None, encoding="rate", precision="32-true", spoil=None, **training
):
    """Return a trainer as the command makes it, for epochs of 3 batches of 32 and one of 12."""
    config = Config(
        model=model or MLP,
        encoding={"kind": encoding},
        training={"learning_rate": 0.01, "warmup": 4, "clip": 1.0, **training},
        precision=precision,
        cuda_graph=cuda_graph,
    )
    torch.manual_seed(0)
    network = build_model(config).to(DEVICE)
    if spoil is not None:
        spoil(network)
    return make_trainer(config, network, make_fabric(DEVICE, precision), 4, 3)


def some_batches(kind=Batches):
    generator = torch.Generator().manual_seed(1)
    return kind(digits(3 * 32 + 12), 32, shuffle=True, generator=generator, device=DEVICE)


def trained(trainer, epochs=3, **options):
    torch.manual_seed(5)
    trainer.fit(some_batches(), Batches(digits(40), 32, device=DEVICE), epochs, **options)
    return trainer


def weights_of(trainer):
    """Return the mean of the weights, which the network holds, and the weights being trained."""
    mean, on = trainer.average.state_dicts()
    trained_on = {f"{name}, trained on": value for name, value in on["weights"].items()}
    return {**mean, **trained_on, "steps of the mean": on["steps"]}


def same_weights(one, other):
    found, expected = weights_of(one), weights_of(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def losses(trainer):
    names = ("train_loss", "train_accuracy", "validation_loss", "gradient_norm", "learning_rate")
    return [[row[name] for name in names] for row in trainer.history]


@cublas
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"encoding": "latency", "schedule": "constant", "weight_decay": 1e-3},
        {"encoding": "constant", "model": {**MLP, "normalization": "batch", "learn_beta": True}},
        {"rate_penalty": 0.1, "clip": None, "model": {**MLP, "readout": "spikes"}},
        {"loss": "cross_entropy_first_spike", "model": {**MLP, "readout": "first_spike"}},
    ],
    ids=lambda options: "-".join(map(str, options)) or "rate",
)
def test_replayed_steps_are_the_steps_bit_for_bit(options):
    plain, replayed = trained(trainer_of("off", **options)), trained(trainer_of("on", **options))
    # Of 12 steps 3 warm up, and 3 have the smaller batch at an epoch's end: neither is replayed.
    assert (plain.replayed, replayed.replayed) == (0, 6)
    same_weights(plain, replayed)
    assert losses(plain) == losses(replayed)


@cublas
@pytest.mark.parametrize(
    ("model", "check_every", "ema"),
    [(MLP, None, Config().training.ema), ({**MLP, "normalization": "batch"}, 2, 0.5)],
    ids=["default", "checked within epochs"],
)
def test_the_mean_of_the_weights_is_recorded_with_the_step(model, check_every, ema):
    """The mean replaces the network's weights for each validation, at the graph's addresses."""
    assert 0 < ema < 1
    options = {"model": model, "ema": ema}
    plain, replayed = (
        trained(trainer_of(mode, **options), check_every=check_every) for mode in ("off", "on")
    )
    assert replayed.replayed == 6
    same_weights(plain, replayed)
    assert losses(plain) == losses(replayed)
    mean, on = replayed.average.state_dicts()
    assert on["steps"] == replayed.step == 12
    weights = [name for name, _ in replayed.model.named_parameters()]
    assert not any(torch.equal(mean[name], on["weights"][name]) for name in weights)
    # The weights being trained are the same without a mean.
    without = trained(trainer_of("on", model=model, ema=0.0), check_every=check_every)
    found = without.model.state_dict()
    assert all(torch.equal(found[name], on["weights"][name]) for name in weights)


@cublas
@pytest.mark.parametrize(
    "model",
    [
        {"kind": "mlp"},
        {"kind": "conv", "hidden_size": 16, **CONV},
        {"kind": "resnet", "blocks": [1, 1], **CONV},
    ],
    ids=lambda model: model["kind"],
)
@pytest.mark.parametrize("encoding", ["constant", "rate"])
def test_auto_replays_every_network(model, encoding, capsys):
    trainer = trained(trainer_of("auto", model=model, encoding=encoding))
    assert "graph" not in capsys.readouterr().out
    assert trainer.replayed == 6
    assert all(math.isfinite(row[0]) for row in losses(trainer))


@cublas
def test_a_resumed_run_replays_to_the_same_bits(tmp_path):
    whole = trained(trainer_of("on"))
    for mode in ("on", "off"):
        first, data, run = trainer_of(mode), some_batches(), Run(tmp_path / mode, config={})
        torch.manual_seed(5)
        with pytest.raises(KeyboardInterrupt):
            first.fit(Stopping(data, first, 6), Batches(digits(40), 32, device=DEVICE), 3, run)
        again, data, state = trainer_of("on"), some_batches(), load_checkpoint(run.interrupted)
        state["unpromising"] = [{"linears.0": 9}]  # saved by runs on a CPU, not used on a GPU
        again.load_state_dict(state, data)
        again.fit(data, Batches(digits(40), 32, device=DEVICE), 3)
        assert again.replayed
        same_weights(whole, again)
        again.load_state_dict(load_checkpoint(run.interrupted), data)  # into a live graph
        again.fit(data, Batches(digits(40), 32, device=DEVICE), 3)
        same_weights(whole, again)
    state = load_checkpoint(run.interrupted)["optimizer"]["param_groups"][0]
    assert type(state["lr"]) is float
    assert not state["capturable"]


@cublas
def test_replayed_steps_are_told_the_lengths_of_their_own_sequences():
    def sequences(seed):
        drawn = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 9, (16,), generator=drawn)
        return torch.rand(8, 16, 20, generator=drawn), lengths, torch.arange(16) % 3

    def run(cuda_graph):
        torch.manual_seed(0)
        model = ns.SNNModel(20, 24, 3, encoding="none").to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        options = {"device": DEVICE, "cuda_graph": cuda_graph, "ema": 0.9}
        trainer = ns.SNNTrainer(model, optimizer, nn.CrossEntropyLoss(), **options)
        trainer.fit([sequences(seed) for seed in range(7)], None, 2)
        return trainer

    plain, replayed = run("off"), run("on")
    assert (plain.replayed, replayed.replayed) == (0, 11)
    same_weights(plain, replayed)


class Stopping:
    """Batches that interrupt their trainer at a step."""

    def __init__(self, batches, trainer, step):
        self.batches, self.trainer, self.step = batches, trainer, step

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.trainer.step + 1 == self.step:
                self.trainer.interrupt()
            yield batch


class Poisoned(Batches):
    """Pictures that are NaN in the third batch."""

    def __iter__(self):
        for number, (images, labels) in enumerate(super().__iter__()):
            yield images * (torch.nan if number == 2 else 1), labels


@cublas
@pytest.mark.parametrize("encoding", ["constant", "rate"])
def test_nan_in_a_replay_is_told_and_the_weights_stay(encoding):
    trainer, kept = trained(trainer_of("on", encoding=encoding), 1), {}

    def keep():
        if trainer.epoch_step == 2:
            kept.update({name: v.clone() for name, v in trainer.model.named_parameters()})

    with pytest.raises(NeuroSpikeError, match=r"nan at step 3; .* the inputs of that batch"):
        trainer.train_epoch(some_batches(Poisoned), after_step=keep)
    assert trainer.replayed == 3
    mean, on = trainer.average.state_dicts()
    assert all(torch.equal(on["weights"][name], value) for name, value in kept.items())
    assert all(value.isfinite().all() for value in (*kept.values(), *mean.values()))


class Looking(torch.nn.Identity):
    """A layer that makes the host wait for the device, which a graph's recording does not allow."""

    def forward(self, x):
        assert x.sum().item() >= 0
        return x


def look(model):
    model.dropout = torch.nn.Sequential(model.dropout, Looking())


@cublas
def test_a_network_that_makes_the_host_wait_is_trained_without_a_graph(capsys):
    plain, other = trained(trainer_of("off", spoil=look)), trained(trainer_of("auto", spoil=look))
    assert other.replayed == 0
    assert capsys.readouterr().out.count("steps are not replayed as one CUDA graph: ") == 1
    same_weights(plain, other)
    assert losses(plain) == losses(other)
    with pytest.raises(GraphError, match="cuda_graph: got on, but"):
        trained(trainer_of("on", spoil=look))
    # Torch's state is as before: memory can be freed, and the next trainer's steps are recorded.
    torch.cuda.empty_cache()
    again = trained(trainer_of("on"))
    same_weights(again, trained(trainer_of("off")))
    assert again.replayed == 6


@pytest.mark.parametrize("flags", [[], ["--deterministic"]], ids=["", "deterministic"])
def test_the_command_replays(flags, tmp_path):
    command = [sys.executable, "-m", "neurospike.train", "--dataset=digits", "--epochs=3"]
    command += ["--run_dir=run", "--cuda_graph=on", "--encoding.kind=rate", *flags]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1].removeprefix("test accuracy: ")[:-1]) > 80


@cublas
def test_a_loop_of_ones_own_is_graphed():
    def run(graph):
        torch.manual_seed(0)
        model = ns.Sequential(torch.nn.Linear(20, 30), ns.LIF(0.9), torch.nn.Linear(30, 4)).to(
            DEVICE
        )
        rate = torch.tensor(0.01, device=DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), rate, fused=True, capturable=True)

        def step(x, labels):
            spikes = encoding.rate(x, 6)
            loss = torch.nn.functional.cross_entropy(model(spikes)[0].mean(0), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach(), spikes

        x, labels = torch.rand(8, 20, device=DEVICE), torch.arange(8, device=DEVICE) % 4
        take = ns.graphed(step, x, labels) if graph else step
        found = []
        for size in (8, 8, 8, 8, 5, 8, 8):
            loss, spikes = take(x[:size], labels[:size])
            found += [loss.clone(), spikes.clone()]
            rate.mul_(0.9)
        return found, list(model.parameters()), getattr(take, "replays", 0)

    (plain, expected, _), (found, weights, replays) = run(False), run(True)
    assert replays == 3
    assert all(map(torch.equal, plain, found))
    assert all(map(torch.equal, expected, weights))
    assert not torch.equal(found[-1], found[-3])  # spikes are drawn anew


@cublas
def test_after_a_recording_that_failed_torch_draws_and_records_as_before():
    def step(x):
        y = torch.rand_like(x)
        return y * y.sum().item()

    x = torch.zeros(5, device="cuda")
    fast = ns.graphed(step, x)
    for _ in range(3):
        fast(x)
    before = torch.cuda.get_rng_state()
    with pytest.raises(GraphError, match="cannot be recorded as a CUDA graph"):
        fast(x)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.manual_seed(3)
    expected = [torch.rand_like(x) for _ in range(5)]
    torch.manual_seed(3)
    again = ns.graphed(torch.rand_like, x)
    assert all(torch.equal(one, again(x)) for one in expected)
    assert again.replays == 2
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.synchronize()


def test_one_device_is_asked_for():
    with pytest.raises(GraphError, match="the examples are on cpu and cuda:0"):
        ns.graphed(print, torch.zeros(1), torch.zeros(1, device="cuda"))


@cublas
def test_reduce_overhead_compiles_without_a_warning():
    torch.manual_seed(0)
    neurons = (ns.LIF(0.9, threshold=0.3), ns.LIF(0.8, threshold=0.1, learn_beta=True))
    net = ns.Sequential(nn.Linear(20, 40), neurons[0], nn.Linear(40, 10), neurons[1]).cuda()
    x = torch.rand(12, 4, 20, device="cuda")

    def step(called):
        net.zero_grad(set_to_none=True)
        spikes = called(x)[0]
        (spikes * torch.arange(10, device="cuda")).sum().backward()
        return spikes.clone(), [p.grad.clone() for p in net.parameters()]

    wanted, gradients = step(net)
    assert wanted.sum() > 0
    compiled = torch.compile(net, mode="reduce-overhead")
    # Recorded and not raised: torch itself records an empty graph, and suppresses its warning.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):  # one call to warm up, one to record, and two replays
            torch.compiler.cudagraph_mark_step_begin()
            spikes, found = step(compiled)
            assert torch.equal(spikes, wanted)
            for got, want in zip(found, gradients):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    # Warnings of torch's own are left out: on TF32 products, and on how its compiler reads a
    # Function.
    others = [one for one in said if "TensorFloat32 tensor cores" not in str(one.message)]
    assert not [one.message for one in others if one.category is not DeprecationWarning]


def test_a_call_waits_for_nothing():
    current = torch.rand(5, 2, 30, device="cuda", requires_grad=True)
    layers = [ns.LIF(0.9), ns.LIF(0.9, learn_beta=True), ns.Synaptic(0.9, 0.8), ns.LI(0.9)]

    def step():
        for layer in layers:
            layer.cuda()(current)[0].sum().backward()
        ns.lif(current, beta=0.9, threshold=0.5)[0].sum().backward()

    step()  # compiles kernels and fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(current.grad).all()


def test_the_mean_of_the_weights_waits_for_nothing():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).cuda()
    average = Average(model, 0.998)
    before = model[0].weight.detach().clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.train()
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update()
        with average.resting():
            resting = model[0].weight.detach().clone()
        average.rest()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The first step has a share of 0.9 in the mean.
    torch.testing.assert_close(resting, before + 0.9)
    assert torch.equal(model[0].weight, resting)


# Recurrent layers


@cublas
@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("dtype", recurrent_cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(12, 5, 100), (12, 130, 256)], ids=str)
def test_a_recurrent_layer_is_the_neurons_step_in_torch(shape, dtype, lengths):
    for neuron in ("subtract", "seadlif"):
        found = recurrent_cases.check(neuron, shape, dtype, "cuda", lengths=lengths)
        assert found <= (1e-12 if dtype == torch.float64 else 1e-5)


@cublas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [513, 1025])
def test_a_larger_recurrent_layer_is_run_after_a_short_sequence(size, dtype):
    """Their backward pass is run step by step; rows of an odd number of neurons are not aligned."""
    for steps in (1, 9):
        found = recurrent_cases.check("subtract", (steps, 1, size), dtype, "cuda")
        assert found <= 1e-5


@cublas
@pytest.mark.parametrize("geometry", RECURRENT, ids=str)
def test_a_recurrent_layer_divided_in_other_ways(geometry, monkeypatch):
    monkeypatch.setattr(recurrent, "geometry", lambda *_: recurrent.Geometry(*geometry))
    recurrent.forget()
    try:
        for shape in ((9, 3, 128), (9, 6, 113)):
            assert recurrent_cases.check("three", shape, torch.float32, "cuda") <= 1e-5
    finally:
        recurrent.forget()


@cublas
def test_a_recurrent_layer_replays_and_repeats_to_the_last_bit():
    layer = recurrent_cases.layer_of("subtract", 256, torch.float32, "cuda", 1.0)
    current = recurrent_cases.sequence((50, 64, 256), torch.float32, "cuda").requires_grad_()

    def step(x):
        spikes = layer(x)[0]
        gradients = torch.autograd.grad(spikes.sum(), (current, *layer.parameters()))
        return spikes.detach(), *gradients

    fast = ns.graphed(lambda x: step(current), current.detach())
    wanted = [one.clone() for one in step(current)]
    for _ in range(5):
        assert all(map(torch.equal, fast(current.detach()), wanted))
    assert fast.replays == 2


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(20, 3, 7, 5), (150, 5, 300, 16)], ids=str)
def test_a_delay_is_that_of_the_reference(shape, dtype, kernel):
    steps, batch, features, longest = shape
    state = torch.float64 if dtype == torch.float64 else torch.float32
    delays = longest * torch.rand(features, dtype=state)
    current = torch.randn(steps, batch, features).to("cuda", dtype)
    past = torch.randn(longest, batch, features).to("cuda", dtype)
    ends = torch.randint(0, steps + 1, (batch,))
    found = {}
    for backend in ("triton", "reference"):
        layer = ns.Delay(features, longest, delays, True, kernel, 2.0, backend=backend).cuda()
        inputs = [current.clone().requires_grad_(), past.clone().requires_grad_(), layer.delay]
        late, after = layer(*inputs[:2], lengths=ends)
        grads = [torch.cos(torch.arange(one.numel())).view(one.shape) for one in (late, after)]
        total = [grad.to("cuda", dtype) for grad in grads]
        gradients = torch.autograd.grad((late, after), inputs, total)
        found[backend] = (late.detach(), after.detach(), *gradients)
    budget = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for one, other in zip(found["triton"], found["reference"]):
        assert torch.linalg.norm((one - other).double()) <= budget * torch.linalg.norm(
            other.double()
        )
