"""Networks, data and trainers that the tests of `ns.SNNTrainer` share."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neurospike as ns
from neurospike.training import load_checkpoint

INPUTS, CLASSES, STEPS = 6, 3, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=48, seed=1):
    """Points of three classes: the largest pair of inputs."""
    x = torch.rand(count, INPUTS, generator=seeded(seed))
    return x, x.unflatten(1, (CLASSES, 2)).sum(2).argmax(1)


def batches(size=16, count=48, **options):
    return DataLoader(TensorDataset(*points(count)), size, **options)


class Logits(nn.Module):
    """Scores [B, C] of neurons that it reads out itself."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.first, self.lif = nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5)
        self.last = nn.Linear(12, outputs)

    def over_time(self, x):
        spikes, state = self.lif(self.first(x), num_steps=STEPS)
        return self.last(spikes), state

    def forward(self, x):
        return self.over_time(x)[0].mean(0)


class OverTime(Logits):
    def forward(self, x):
        return self.over_time(x)[0]


class WithState(Logits):
    def forward(self, x):
        return self.over_time(x)


class BatchFirst(Logits):
    batch_first = True

    def forward(self, x):
        return self.over_time(x)[0].transpose(0, 1)


class Shown(nn.Module):
    """An `ns.Sequential` that sees its input at every step."""

    def __init__(self):
        super().__init__()
        self.net = ns.Sequential(
            nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5), nn.Linear(12, CLASSES), ns.LI(0.9)
        )

    def forward(self, x):
        return self.net(x, num_steps=STEPS)


class Sequences(nn.Module):
    """Makes sequences, for a Sequential that is wanted with the batch first."""

    batch_first = True

    def __init__(self):
        super().__init__()
        layers = nn.Linear(INPUTS, 12), ns.LIF(0.8, threshold=0.5), nn.Linear(12, CLASSES)
        self.net = ns.Sequential(*layers, batch_first=True)

    def forward(self, x):
        return self.net(x[:, None].expand(-1, STEPS, -1))


def ready():
    return ns.SNNModel(INPUTS, 12, CLASSES, num_steps=STEPS)


def trainer_of(make, criterion=None, rate=0.02, **options):
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    return ns.SNNTrainer(net, optimizer, criterion or nn.CrossEntropyLoss(), **options)


def weights_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def by_hand(make, loss_of, loader, epochs=2):
    """What a plain loop makes of a network."""
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, fused=True)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_of(net, x, y).backward()
            optimizer.step()
    return weights_of(net)


def regression(count=48):
    x, _ = points(count)
    return DataLoader(TensorDataset(x, x[:, :2] - x[:, 2:4]), 16)


class Sums:
    """A measure as those of torchmetrics: the share of answers that are 0."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.zeros = self.seen = 0

    def update(self, scores, targets):
        self.zeros += int((scores.argmax(1) == 0).sum())
        self.seen += len(targets)

    def compute(self):
        return torch.tensor(self.zeros / self.seen)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    timed = ("seconds", "samples_per_second")
    epochs = [row for row in rows if row["kind"] in ("epoch", "step")]
    return [{k: v for k, v in row.items() if k not in timed} for row in epochs]


def same_end(folder, other):
    one, two = (load_checkpoint(each / "checkpoints/last.pth") for each in (folder, other))
    same(one["model"], two["model"])
    for state, wanted in zip(
        one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True
    ):
        same(state, wanted)
    assert torch.equal(one["random"][0]["cpu"], two["random"][0]["cpu"])
    assert rows_of(folder) == rows_of(other)
