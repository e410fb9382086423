"""What needs a CUDA device: `test_triton.py` runs it where there is one, in processes of its own.

All other tests see no device (see `conftest.py`), and so do the same on every machine. These share
one device, side by side in as many processes as there are cores, so that each leaves the others
their memory and looks at no more than its own.
"""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from test_batches import digits
from test_encoding import intensities

import neurospike as ns
from benchmarks.device import Device
from benchmarks.equivalence import Skip, checks
from neurospike.backend import dispatch
from neurospike.coding import encoding
from neurospike.data import Batches
from neurospike.errors import BackendError


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
    # What tests before left to torch, such as the workspace of cuBLAS, and 20 MB: room for batches
    # and not for the set.
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
