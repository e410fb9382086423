"""Training of the networks of `benchmarks.coded` on MNIST: time, accuracy and memory."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import neurospike as ns

from . import coded
from .saved import at_rest, peak_above

BATCH = 128
GOAL = 0.97
LOOKS = 100  # steps between two looks at the test pictures on the way to the goal
Row = dict[str, Any]


def run(rival: str, coding: str, options: argparse.Namespace) -> Row:
    """Train a rival in this process: seconds an epoch, seconds to 97%, peak memory above rest.

    The test pictures are looked at every `LOOKS` steps, and that time is left out.
    """
    images, labels = coded.mnist(options.data_path, train=True)
    test = coded.mnist(options.data_path, train=False)
    images, labels = images[: options.pictures], labels[: options.pictures]
    net, optimizer = coded.network(rival, coding)
    warm_up = coded.training_step(*coded.network(rival, coding), images[:BATCH], labels[:BATCH])
    warm_up()  # compiling and measuring the machine are no part of an epoch
    del warm_up
    before = at_rest()
    spent, epochs, goal, accuracy, steps = 0.0, [], None, 0.0, 0
    for _ in range(options.epochs):
        start = spent
        for chosen in _batches(len(images)):
            begun = time.perf_counter()
            coded.training_step(net, optimizer, images[chosen], labels[chosen])()
            spent += time.perf_counter() - begun
            steps += 1
            if goal is None and steps % LOOKS == 0:
                accuracy = evaluate(net, *test)
                goal = spent if accuracy >= GOAL else None
        epochs.append(spent - start)
        if goal is not None:
            break
    return {
        "case": f"784-1000-10, {coding}-coded MNIST, {rival}",
        "seconds_an_epoch": epochs,
        "seconds_to_97": goal,
        "test_accuracy": evaluate(net, *test),
        "steps": steps,
        "peak_mb": peak_above(before),
    }


def windowed(width: float | None, options: argparse.Namespace) -> Row:
    """Train an epoch with rate coding and a window; tell the share of gradients that are 0."""
    images, labels = coded.mnist(options.data_path, train=True)
    test = coded.mnist(options.data_path, train=False)
    images, labels = images[: options.pictures], labels[: options.pictures]
    net, optimizer = coded.network("ours, events", "rate")
    for name in ("lif1", "lif2"):
        setattr(net, name, ns.LIF(beta=coded.BETA, grad_window=width))
    zeros: list[float] = []

    def look(_module: object, _inputs: object, current: Tensor) -> None:
        if current.requires_grad and len(zeros) < 20:
            current.register_hook(lambda grad: zeros.append(float((grad == 0).float().mean())))

    handle = net.fc1.register_forward_hook(look)
    coded.training_step(net, optimizer, images[:BATCH], labels[:BATCH])()
    spent = 0.0
    for chosen in _batches(len(images)):
        begun = time.perf_counter()
        coded.training_step(net, optimizer, images[chosen], labels[chosen])()
        spent += time.perf_counter() - begun
    handle.remove()
    row = {
        "case": f"784-1000-10, rate-coded MNIST, grad_window={width}",
        "seconds_an_epoch": spent,
        "test_accuracy": evaluate(net, *test),
        "gradients_of_currents_that_are_0": sum(zeros) / len(zeros),
    }
    print(row, flush=True)
    return row


@torch.no_grad()
def evaluate(net: Any, images: Tensor, labels: Tensor) -> float:
    """Return the share of pictures whose class has the highest membrane, averaged over time."""
    state = torch.get_rng_state()
    torch.manual_seed(1)
    right = 0
    for chosen in torch.arange(len(images)).split(BATCH):
        mems = net(net.encode(images[chosen]))
        right += int((mems.mean(0).argmax(1) == labels[chosen]).sum())
    torch.set_rng_state(state)
    return right / len(images)


def _batches(count: int) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return iter(order[: count - count % BATCH].split(BATCH))
