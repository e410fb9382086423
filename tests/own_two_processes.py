"""Two processes that train a network of one's own, stopped and gone on with; for own training.

`torchrun --nproc_per_node 2 tests/own_two_processes.py FOLDER`. FOLDER/whole is disturbed
by nobody; of the one in FOLDER/again only the second process was interrupted, and it went on.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import neurospike as ns
from neurospike.training.scale import launch, leave, make_fabric


class Net(nn.Module):
    """Drops inputs at random, so that each process draws numbers of its own."""

    def __init__(self):
        super().__init__()
        self.net = ns.Sequential(nn.Linear(6, 8), ns.LIF(0.8), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.2, self.training), num_steps=4)


def run(fabric, folder, stop_at=None, *, resume=False):
    torch.manual_seed(0)
    net = Net()
    x = torch.rand(48, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x[:, :3].argmax(1))
    torch.manual_seed(fabric.global_rank + 10 * resume)

    def batches(shuffle):
        sampler = DistributedSampler(data, fabric.world_size, fabric.global_rank, shuffle=shuffle)
        return DataLoader(data, 2, sampler=sampler)

    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    trainer = ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss(), fabric=fabric)
    if stop_at is not None and fabric.global_rank == 1:
        optimizer.register_step_post_hook(
            lambda *_: trainer.interrupt() if trainer.step == stop_at else None
        )
    try:
        trainer.fit(batches(True), batches(False), 2, folder, resume=resume)
    except KeyboardInterrupt:
        assert trainer.step == 16  # all stop after one step: the next of which 8 is a divisor
        return
    assert stop_at is None


def threads():
    return len([*Path("/proc/self/task").glob("*")])  # 0 where the system has no such folder


def main(folder):
    before = threads()
    fabric = make_fabric("cpu", devices=2)
    launch(fabric)
    run(fabric, folder / "whole")
    run(fabric, folder / "again", stop_at=13)
    run(fabric, folder / "again", resume=True)
    leave(fabric)
    assert threads() <= before  # else the process is aborted now and then as it ends


if __name__ == "__main__":
    main(Path(sys.argv[1]))
