"""Streaming: frames one at a time and in chunks: `python -m benchmarks.frames [--threads N]`.

Printed are, in one process and taking turns, how long `layer.step(frame, state)` takes over a call
with a sequence of one step, for each kind of layer; for a small network, how many frames per second
chunks of several sizes reach over frames one at a time; and what `batch_first` costs. The gate: a
step is the sequence of one step, bit for bit; the outputs of chunks those of one call. Times are
those that the processor spends on this process, so that others on the machine count little.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import neurospike as ns

from .timing import Timing, interleave, machine

N = 64
CHUNKS = (1, 4, 16, 64, 256)
FRAMES = 256
LAYERS: dict[str, Callable[[], Any]] = {
    "LIF": lambda: ns.LIF(0.9),
    "LI": lambda: ns.LI(0.9),
    "Synaptic": lambda: ns.Synaptic(0.5, 0.9),
    "ALIF": ns.ALIF,
    "Recurrent": lambda: ns.Recurrent(ns.LIF(0.9), N),
    "Delay": lambda: ns.Delay(N, 4),
    "Sequential": lambda: network(),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each comparison")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(json.dumps(machine(), indent=2))
    with torch.no_grad():
        for name, make in LAYERS.items():
            found = a_step(make(), options.batch, options.seconds)
            ratio = found["step"].over(found["call"])
            print(f"{name:10} step over a call of one step: {ratio:.2f}", flush=True)
        found = in_chunks(options.batch, options.seconds)
    for name, timing in found.items():
        rate, gain = FRAMES / timing.median, 1 / timing.over(found["step"])
        print(f"{name:20} {rate:10,.0f} frames/s, {gain:6.1f} times those of step")
    found = batch_first(options.seconds)
    ratio = found["batch first"].over(found["time first"])
    print(f"training step of a LIF, 100x32x256, batch first over time first: {ratio:.2f}")
    return 0


def network() -> ns.Sequential:
    """Return the network that streams: two layers of neurons and a readout."""
    return ns.Sequential(
        nn.Linear(N, N), ns.LIF(0.9), nn.Linear(N, N), ns.ALIF(), nn.Linear(N, 10), ns.LI(0.9)
    )


def a_step(layer: Any, batch: int, seconds: float) -> dict[str, Timing]:
    """Time one frame by `step` and as a sequence of one step; calls enough to be timed."""
    frame = torch.rand(batch, N)
    sequence = frame[None]
    _, state = layer(sequence)
    wanted, found = layer(sequence, state)[0][0], layer.step(frame, state)[0]
    assert torch.equal(wanted, found), "a step is not the sequence of one step"

    return interleave(
        {"call": lambda: layer(sequence, state), "step": lambda: layer.step(frame, state)},
        seconds=seconds,
        clock=time.process_time,
    )


def in_chunks(batch: int, seconds: float) -> dict[str, Timing]:
    """Time a stream of frames by `step`, and in chunks of several sizes."""
    net, frames = network(), torch.rand(FRAMES, batch, N)
    whole, _ = net(frames)

    def by_frame() -> Tensor:
        states, found = None, []
        for frame in frames:
            out, states = net.step(frame, states)
            found.append(out)
        return torch.stack(found)

    def by_chunk(size: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            states, found = None, []
            for chunk in frames.split(size):
                out, states = net(chunk, states)
                found.append(out)
            return torch.cat(found)

        return run

    runs = {"step": by_frame} | {f"chunks of {size}": by_chunk(size) for size in CHUNKS}
    for name, run in runs.items():
        close = torch.isclose(run(), whole, rtol=1e-4, atol=1e-5).float().mean()
        assert close > 0.99, f"{name}: {close:.2%} of the outputs are those of one call"
    return interleave(runs, seconds=seconds, clock=time.process_time)


def batch_first(seconds: float) -> dict[str, Timing]:
    """Time training steps of a layer with time first, and of one with the batch first."""
    current = torch.rand(100, 32, 256)
    batch = current.transpose(0, 1).contiguous()
    given = {False: current.requires_grad_(), True: batch.requires_grad_()}
    layers = {first: ns.LIF(0.9, batch_first=first) for first in given}
    found = {first: layers[first](given[first])[0] for first in given}
    assert torch.equal(found[False].transpose(0, 1), found[True])

    def train(first: bool) -> None:
        spikes, _ = layers[first](given[first])
        spikes.backward(torch.ones_like(given[first]))

    runs = {"time first": lambda: train(False), "batch first": lambda: train(True)}
    return interleave(runs, seconds=seconds, clock=time.process_time)


if __name__ == "__main__":
    raise SystemExit(main())
