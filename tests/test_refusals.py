"""Refusals that no other file reaches."""

from pathlib import Path

import pytest
import torch

import neurospike as ns
from neurospike import train
from neurospike.backend import dispatch
from neurospike.coding import losses
from neurospike.config import load_config
from neurospike.errors import ConfigError, NeuroSpikeError
from neurospike.training import Run

DATA = torch.rand(2, 3)


def trainer(**options):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return ns.SNNTrainer(net, optimizer, torch.nn.CrossEntropyLoss(), **options)


def fit(**options):
    return trainer().fit([(DATA, torch.tensor([0, 1]))], epochs=1, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ns.encoding.rate(DATA, 5, gain="x"), "rate got gain='x'; it must be a number"),
        (lambda: ns.encoding.rate(DATA, 5, offset=None), "rate got offset=None; it must be a num"),
        (lambda: ns.encoding.rate(DATA, 5, generator=3), "rate got generator=3; it must be a tor"),
        (lambda: ns.encoding.delta(DATA, 5, threshold="x"), "delta got threshold='x'; it must be"),
        (lambda: ns.encoding.latency(DATA, 5, threshold="x"), "latency got threshold='x'; it mu"),
        (
            lambda: ns.encoding.latency(DATA, 5, curve="logarithmic", tau="x"),
            "latency got tau='x'; it must be a number",
        ),
        (lambda: ns.encoding.pixel_order("x"), "count must be a whole number of pixels, got 'x'"),
        (lambda: ns.Neuron(3), r"Neuron takes a function \(current, mem, .*, got 3"),
        (lambda: ns.Spiking(3), r"neuron must be a function \(current, \*states, .*, got 3"),
        (lambda: ns.record(3), "net must be a torch.nn.Module, got int"),
        (lambda: ns.spike_layer(3, ns.LIF(0.9), DATA), "linear must be a layer, got 3"),
        (lambda: ns.spike_layer(ns.SpikeLinear(3, 2), 4, DATA), "neurons must be a layer, got 4"),
        (lambda: ns.load_model(3), "path must be that of a checkpoint's file, got 3"),
        (lambda: ns.to_onnx(3, "a.onnx", DATA), "net must be a torch.nn.Module, got int"),
        (lambda: ns.to_pt2(3, "a.pt2", DATA), "net must be a torch.nn.Module, got int"),
        (lambda: ns.data.load_folder(".", size="x"), "size must be a whole number, got 'x'"),
        (lambda: ns.data.load_folder(".", colour="x"), "colour must be True or False, got 'x'"),
        (lambda: ns.data.Split(3, DATA), "images must be a tensor, got int"),
        (lambda: ns.data.Batches(3, 4), "split must be a Split or Recordings, got int"),
        (lambda: ns.data.collate(3), r"collate takes a list of pairs \(sequence, label\), got int"),
        (
            lambda: ns.SpikeVisualizer().plot_training_history(3),
            "history must be the records that fit returns, or values by name, got int",
        ),
        (lambda: trainer(penalty=3), "penalty must be a function of the spikes by .*, got int"),
        (lambda: trainer(on_output="x"), "on_output must be True or False, got 'x'"),
        (lambda: trainer().evaluate(3), "evaluate's batches must be batches .*, got int"),
        (lambda: fit(run=3), "run must be the path of a folder, a Run, or None, got 3"),
        (lambda: fit(resume="x"), "resume must be True or False, got 'x'"),
        (lambda: fit(on_record=3), "on_record must be a function of a record, .*, got int"),
    ],
)
def test_what_a_function_cannot_take_is_refused_by_the_name_of_the_argument(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("value", ["x", -0.5, 2, True])
def test_a_share_or_a_rate_out_of_range_is_refused_by_its_name(value):
    spikes, labels = torch.zeros(3, 2, 4), torch.tensor([0, 1])
    for name in ("right", "wrong"):
        with pytest.raises(ValueError, match=f"{name} must be a rate in spikes .*, got {value!r}"):
            losses.mse_count(spikes, labels, **{name: value})
    with pytest.raises(ValueError, match=f"test must be a share .*, got {value!r}"):
        ns.data.load_folder(".", test=value)
    with pytest.raises(ValueError, match=r"sensor_size must be \(width, height, polarities\)"):
        ns.data.Binning(3)


def test_a_network_for_nir_is_a_module():
    pytest.importorskip("nir")
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got int"):
        ns.to_nir(3, None, DATA)


def test_a_backend_that_this_version_lacks(monkeypatch):
    config = load_config(None, {"backend": "numba"})
    rest = {name: row for name, row in dispatch.TABLE.items() if name != "numba"}
    monkeypatch.setattr(dispatch, "TABLE", rest)
    with pytest.raises(ConfigError, match="unknown backend 'numba'; choose one of auto, "):
        train.train(config)


def test_a_second_with_too_many_runs(monkeypatch, tmp_path):
    def mkdir(path, *args, **kwargs):
        if path.parent.name == "runs":
            raise FileExistsError(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(NeuroSpikeError, match=r"runs holds 999 runs of this second.*--run_dir"):
        Run(None, config={}, record={})
