"""Layers on a GPU: what a call takes, what its kernels alone take, and what rivals take."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from neurospike.backend.dispatch import TABLE

from . import host, rivals
from .gate import GateError
from .gpu_checks import name_of, on, prove_layer
from .gpu_session import USES, Row, Session, share_of_copy
from .timing import Timing, copy_bandwidth, interleave

DIFFERENT = 1e-3  # share of a rival's spikes


def host_time(session: Session) -> Row:
    """Microseconds that a small layer's calls take, which is what the host needs for them."""
    shape = tuple(map(int, session.host.split("x")))
    found = host.measure(session.backend, 2 * session.seconds, session.device.type, shape)
    ratios = {
        f"{name} / {rival.removeprefix('over ')}": ratio
        for rival in ("over torch.relu", "over an empty Function")
        for name, ratio in found[rival].items()
    }
    label = f"host {session.host}"
    return session.tell(label, {}, ratios, microseconds=found["microseconds"])


def layer(session: Session, case: str, dtype: torch.dtype) -> Row:
    """Training step and inference of one layer beside its rivals and a copy of as many bytes."""
    current, grad = on(session.device, dtype, case)
    distance = prove_layer(session.backend, case, current, grad)
    ours = rivals.ours(session.backend)
    steps = {
        "ours, training": rivals.layer_step(ours, current, grad),
        "ours, inference": rivals.inference(ours, current),
    }
    moved = bytes_moved(session.backend, dtype)
    wall = ("training", "inference")
    for use in wall:
        size = round(moved[use] * current.numel())
        steps[f"copy, {use}"] = copy_bandwidth(size, session.device.type)
    label = f"{case} {name_of(dtype)}"
    others = _rivals(session, ours, dtype)
    differ, against = _beside(session, label, ours, others, current, grad, steps)
    peaks = {name: session.device.peak_mb(step) for name, step in steps.items()}
    found = interleave(steps, seconds=session.seconds, least=5, finest=5e-3)
    ratios = {
        f"share of copy, {use}": found[f"copy, {use}"].over(found[f"ours, {use}"]) for use in wall
    }
    alone, shares = kernels_alone(session, ours, current, grad)
    more = {"peak_mb": peaks, "gradient_distance": distance, "rivals' other spikes": differ}
    ratios |= shares | _over(found, against)
    return session.tell(label, found, ratios, kernels_ms=alone, **more)


def kernels_alone(
    session: Session, ours: rivals.Layer, current: Tensor, grad: Tensor
) -> tuple[dict[str, float], dict[str, float]]:
    """Return milliseconds of a layer's kernels and of copies, and the shares of a copy's speed."""

    def forward() -> Callable[[], object]:
        leaf = current.detach().requires_grad_()
        return lambda: ours(leaf)

    def backward() -> Callable[[], object]:
        leaf = current.detach().requires_grad_()
        spikes = ours(leaf)
        return lambda: torch.autograd.grad(spikes, leaf, grad, retain_graph=True)

    def inference() -> Callable[[], object]:
        return rivals.inference(ours, current)

    device, milliseconds, shares = session.device, {}, {}
    moved = bytes_moved(session.backend, current.dtype)
    for use, prepare in zip(USES, (forward, backward, inference)):
        size = round(moved[use] * current.numel())
        mine = device.kernel_seconds(prepare)
        copy = device.copy_seconds(copy_bandwidth(size, device.type))
        milliseconds |= {use: 1e3 * mine, f"copy, {use}": 1e3 * copy}
        shares[share_of_copy(use)] = copy / mine
    return milliseconds, shares


def compiled_rival(session: Session, case: str) -> Row:
    """Training step beside snnTorch under torch.compile, which takes its time to compile."""
    current, grad = on(session.device, torch.float32, case)
    ours, loop = rivals.ours(session.backend), rivals.snntorch_loop()
    loop(current)  # takes the loop's module to the device, which is no part of the graph
    others = [("snntorch compiled", rivals.compiled(loop), ours)]
    steps = {"ours, training": rivals.layer_step(ours, current, grad)}
    label = f"{case} float32, compiled rival"
    differ, against = _beside(session, label, ours, others, current, grad, steps)
    found = interleave(steps, seconds=session.seconds, least=5, finest=5e-3)
    return session.tell(label, found, _over(found, against), differ=differ)


Other = tuple[str, rivals.Layer, rivals.Layer]  # a rival's name, it, and ours of the same reset


def _beside(
    session: Session,
    label: str,
    ours: rivals.Layer,
    others: Iterable[Other],
    current: Tensor,
    grad: Tensor,
    steps: dict[str, Callable[[], object]],
) -> tuple[dict[str, float], dict[str, str]]:
    """Add the steps of rivals that run and compute what we do.

    Returns by their names the share of spikes in which they differ, and the step that each is to be
    compared with. What goes wrong with one costs neither ours nor the others.
    """
    differ, against = {}, {}
    for name, rival, mine in others:
        step = rivals.layer_step(rival, current, grad)
        try:
            differ[name] = _agree(name, rival, mine, current)
            step()
        except Exception:  # noqa: BLE001
            session.fail(f"{label}: {name}", traceback.format_exc())
            continue
        steps[f"{name}, training"] = step
        against[name] = "ours, training"
        if mine is not ours:
            against[name] = f"ours for {name}, training"
            steps[against[name]] = rivals.layer_step(mine, current, grad)
    return differ, against


def _over(found: Mapping[str, Timing], against: Mapping[str, str]) -> dict[str, float]:
    return {
        f"{name} / ours, training": found[f"{name}, training"].over(found[own])
        for name, own in against.items()
    }


def _rivals(session: Session, ours: rivals.Layer, dtype: torch.dtype) -> Iterator[Other]:
    if dtype == torch.float32 and rivals.installed("snntorch"):
        # In 16 bits snnTorch keeps a 16-bit membrane, which is another neuron.
        yield "snntorch loop", rivals.snntorch_loop(), ours
    if rivals.installed("spikingjelly"):
        immediate = rivals.ours(session.backend, reset_delay=False)
        yield "spikingjelly", rivals.spikingjelly_multi_step(), immediate


def _agree(name: str, rival: rivals.Layer, mine: rivals.Layer, current: Tensor) -> float:
    """Return the share of spikes in which a rival differs from us.

    A rival that rounds in another order, or stores its state in 16 bits, fires otherwise where a
    membrane comes within rounding of the threshold. More than `DIFFERENT` is another neuron.
    """
    with torch.no_grad():
        share = float((rival(current) != mine(current)).double().mean())
    if not share <= DIFFERENT:
        raise GateError(f"{name}: {share:.1%} of the spikes differ from ours")
    return share


def bytes_moved(backend: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the bytes of global memory that a neuron-step takes in each use of a backend.

    Forward reads the current and writes spikes; backward reads the current and the spikes' gradient
    and writes the current's gradient. For training a backend with checkpoints also writes, and
    reads, one of the state's every K-th step.
    """
    every = TABLE[backend].checkpoint_every
    checkpoint = 4 / every if every else 0.0
    size = dtype.itemsize
    forward, backward = 2 * size + checkpoint, 3 * size + checkpoint
    return {
        "forward": forward,
        "backward": backward,
        "training": forward + backward,
        "inference": 2 * size,
    }
