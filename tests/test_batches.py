"""Splits, and batches of them that stay on the device."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neurospike import ConvSNN, SNNModel, train
from neurospike.config import Config
from neurospike.data import Batches, DigitData, Split
from neurospike.errors import ConfigError
from neurospike.training.setup import check_batch


def digits(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (count,), generator=generator))


@pytest.mark.parametrize("fraction", [0, 0.1, 1 / 3, 0.999])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_split(fraction, count):
    # The number of the sample is written into its picture, so that parts can be traced.
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(count)
    whole = Split(images, torch.arange(count) % 10)
    rest, held_out = whole.split(fraction, seed=4)
    assert len(held_out) == round(fraction * count)
    numbers = [part.images[:, 0, 0].tolist() for part in (rest, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(count))
    for part, part_numbers in zip((rest, held_out), numbers, strict=True):
        assert part.labels.tolist() == [number % 10 for number in part_numbers]
    again = whole.split(fraction, seed=4)[1]
    assert torch.equal(again.images, held_out.images)
    assert torch.equal(again.labels, held_out.labels)


def test_split_depends_on_the_seed():
    whole = digits(100)
    one, other = (whole.split(0.5, seed)[1] for seed in (0, 1))
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        digits(10).split(fraction, seed=0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 28, 28), torch.zeros(2).long(), "uint8"),
        (torch.zeros(2, 28, 27).byte(), torch.zeros(2).long(), r"\[2, 28, 27\]"),
        (torch.zeros(2, 28, 28).byte(), torch.zeros(2), "int64"),
        (torch.zeros(2, 28, 28).byte(), torch.zeros(3).long(), "2 images but 3 labels"),
        (torch.zeros(2, 28, 28).byte(), torch.tensor([0, -1]), "got -1 to 0"),
    ],
)
def test_split_refuses_other_tensors(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("count", "size", "drop_last", "sizes"),
    [
        (9, 4, True, [4, 4]),
        (1, 4, False, [1]),
        (3, 1, False, [1, 1, 1]),
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (8, 4, True, [4, 4]),
        (3, 4, False, [3]),
        (3, 4, True, []),
        (0, 4, False, []),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_batch_sizes(count, size, drop_last, sizes, shuffle):
    batches = Batches(digits(count), size, drop_last=drop_last, shuffle=shuffle)
    assert len(batches) == len(sizes)
    assert [len(labels) for _, labels in batches] == sizes


@pytest.mark.parametrize(
    ("count", "size", "world", "options", "sizes"),
    [
        (9, 4, 1, {"shuffle": True}, [4, 5]),
        (9, 4, 1, {}, [4, 4, 1]),
        (9, 4, 1, {"shuffle": True, "smallest": 1}, [4, 4, 1]),
        (11, 4, 1, {"smallest": 4}, [4, 7]),
        (11, 4, 2, {"shuffle": True}, [4, 7]),
        (12, 4, 2, {"shuffle": True}, [4, 4, 4]),
        (15, 12, 2, {"shuffle": True}, [15]),
        (16, 12, 2, {"shuffle": True}, [12, 4]),
    ],
)
def test_no_process_is_left_with_a_lone_last_sample(count, size, world, options, sizes):
    parts = [
        Batches(digits(count), size, rank=rank, world=world, **options) for rank in range(world)
    ]
    assert [len(part) for part in parts] == [len(sizes)] * world
    shares = list(zip(*([len(labels) for _, labels in part] for part in parts), strict=True))
    assert [sum(share) for share in shares] == sizes
    if options.get("smallest", 2) == 2 and "shuffle" in options:
        assert min(map(min, shares)) >= 2


def test_an_epoch_whose_last_batch_is_joined_goes_on_where_it_was():
    def batches():
        return Batches(digits(9), 2, shuffle=True, generator=torch.Generator().manual_seed(0))

    whole, again = [labels.tolist() for _, labels in batches()], batches()
    assert [len(labels) for labels in whole] == [2, 2, 2, 3]
    again.load_state_dict(batches().state_dict(done=3))
    assert [labels.tolist() for _, labels in again] == whole[3:]


def test_a_state_is_where_the_epoch_stands_also_before_it_goes_on():
    def batches():
        return Batches(digits(9), 2, shuffle=True, generator=torch.Generator().manual_seed(0))

    def order_of(one):
        return [labels.tolist() for _, labels in one]

    whole = batches()
    epochs = [order_of(whole), order_of(whole)]
    stopped, again, last = batches(), batches(), batches()
    for _ in zip(range(2), stopped):
        pass
    again.load_state_dict(stopped.state_dict())
    last.load_state_dict(again.state_dict())  # as a run that is stopped before its next step does
    for one in (again, last):
        assert order_of(one) == epochs[0][2:]
        assert order_of(one) == epochs[1]
    between = batches()
    between.load_state_dict(again.state_dict())
    assert order_of(between) == order_of(whole)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_process_that_is_none_of_them_is_refused(rank, world):
    with pytest.raises(ValueError, match=f"got rank {rank} of world {world}"):
        Batches(digits(4), 2, rank=rank, world=world)


def test_batches_hold_every_sample_in_order():
    split = digits(50)
    images, labels = (torch.cat(parts) for parts in zip(*Batches(split, 16), strict=True))
    assert images.dtype == torch.float32
    assert images.shape == (50, 1, 28, 28)
    assert torch.equal(images, split.images.unsqueeze(1) / 255)
    assert (images.min(), images.max()) == (0, 1)
    assert torch.equal(labels, split.labels)


def test_shuffled_batches():
    split = digits(50)

    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        batches = Batches(split, 16, shuffle=True, generator=generator)
        return [torch.cat([images for images, _ in batches]) for _ in range(2)]

    first, second = epochs(0)
    assert not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(epochs(0), (first, second), strict=True))
    order = torch.cdist(first.flatten(1), split.images.flatten(1) / 255).argmin(1)
    assert sorted(order.tolist()) == list(range(50))
    batches = Batches(split, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels[order])


class Counted(TorchDispatchMode):
    """Counts the calls of torch's operators."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_a_batch_of_many_pictures_takes_no_more_calls_than_one_of_few():
    found = []
    for size in (2, 2048):
        with Counted() as counted:
            assert len(list(Batches(digits(4 * size), size, shuffle=True))) == 4
        found.append(counted.calls)
    assert found[0] == found[1] < 60


def test_writing_into_a_batch_leaves_the_split_alone():
    split = digits(10)
    kept = split.labels.clone()
    for images, labels in Batches(split, 10):
        images.zero_()
        labels.fill_(77)
    assert torch.equal(split.labels, kept)
    assert split.images.max() == 255


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_batches_refuse_other_sizes(size):
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1"):
        Batches(digits(2), size)
    if size is not None:
        with pytest.raises(ValueError, match="smallest must be an int of at least 1"):
            Batches(digits(2), 2, smallest=size)


def test_the_order_is_drawn_on_the_cpu():
    elsewhere = SimpleNamespace(device=torch.device("cuda:1"))
    with pytest.raises(ValueError, match=r"got a generator on cuda:1: use torch.Generator\(\)"):
        Batches(digits(2), 1, shuffle=True, generator=elsewhere)


def test_batches_without_room_on_the_device(monkeypatch):
    split = digits(50)
    pinned = []
    real_to = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        if torch.device("cuda") not in args:
            return real_to(tensor, *args, **kwargs)
        if tensor is split.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert any(tensor is one for one in pinned)
        return tensor

    def pin_memory(tensor):
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batches = Batches(split, 16, device="cuda")
    assert not batches.resident
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(images, split.images.unsqueeze(1) / 255)
    assert torch.equal(labels, split.labels)
    assert {tensor.dtype for tensor in pinned} == {torch.uint8, torch.int64}


@pytest.mark.parametrize(("count", "world"), [(100, 2), (97, 3), (33, 4)])
def test_every_sample_is_seen_once_an_epoch_by_one_of_the_processes(count, world):
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(count)
    split = Split(images, torch.arange(count) % 10)
    parts = [
        Batches(
            split,
            32,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]
    alone = Batches(split, 32, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        seen = []
        for whole, *shares in zip(alone, *parts, strict=True):
            numbers = [round(float(x) * 255) for rank in shares for x in rank[0][:, 0, 0, 0]]
            assert sorted(numbers) == sorted(round(float(x) * 255) for x in whole[0][:, 0, 0, 0])
            seen += numbers
        assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--batch_size=1", "--model.normalization=batch"], True),
        (["--batch_size=1", "--model.normalization=threshold_batch"], True),
        (["--batch_size=1", "--model.normalization=layer"], False),
        (["--batch_size=1", "--model.normalization=batch", "--encoding.kind=rate"], False),
        (["--batch_size=4", "--model.normalization=batch"], False),  # 29 pictures
    ],
)
def test_batches_of_one_are_refused_where_the_network_cannot_train_on_them(
    flags, refused, tmp_path, monkeypatch, capsys
):
    def load(name, data_path):
        assert not refused, "loaded"
        return DigitData(name, digits(29), digits(10), "few")

    monkeypatch.setattr(train, "load", load)
    monkeypatch.setattr(train, "draw_network", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    argv = ["--model.hidden_size=8", "--model.num_steps=3", "--training.validation=0", "--epochs=1"]
    code = train.main([*argv, "--model.kind=mlp", "--run_dir=out", *flags])
    said = capsys.readouterr().err
    if not refused:
        assert (code, said) == (0, "")
        return
    assert code == 2
    assert said == (
        "error: training.batch_size: got 1 for 1 process, but batch normalisation cannot train on "
        "one picture; use a --batch_size of at least 2, or --model.normalization layer\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_share_of_each_of_several_processes_counts():
    model = SNNModel(784, 8, normalization="batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    three, four = (Config(training={"batch_size": size}) for size in (3, 4))
    with pytest.raises(ConfigError, match=r"got 3 for 2 processes, .* at least 4"):
        check_batch(three, model, 2)
    check_batch(three, model, 1)
    check_batch(four, model, 2)
    check_batch(three, SNNModel(784, 8), 2)
    check_batch(three, ConvSNN(784, channels=[2], normalization="batch"), 2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("count", [1, 2])
def test_data_that_leave_one_picture_are_refused_where_it_cannot_be_trained_on(
    count, tmp_path, monkeypatch, capsys
):
    data = DigitData("mnist", digits(2 * count), digits(10), "few")
    monkeypatch.setattr(train, "load", lambda name, data_path: data)
    monkeypatch.setattr(train, "draw_network", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    argv = ["--model.hidden_size=8", "--model.num_steps=3", "--epochs=1", "--run_dir=out"]
    argv += ["--training.validation=0.5", "--model.normalization=batch"]
    code, said = train.main(argv), capsys.readouterr().err
    if count == 2:
        assert code == 0
        return
    assert code == 2
    assert said == (
        "error: training.validation: got 0.5, which leaves 1 picture for 1 process, but batch "
        "normalisation cannot train on one picture; hold out less, add pictures until at least 2 "
        "are left, or --model.normalization layer\n"
    )
    assert list(tmp_path.iterdir()) == []


class _DividesAsCuda(TorchDispatchMode):
    """Multiplies by the reciprocal where the divisor is a number, as torch's kernels on CUDA do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div_.Tensor and not isinstance(args[1], torch.Tensor):
            return args[0].mul_(torch.tensor(1.0 / args[1]))
        return func(*args, **(kwargs or {}))


def test_a_gpu_gets_the_pictures_that_the_cpu_gets():
    split = digits(20)
    wanted = torch.cat([images for images, _ in Batches(split, 8)])
    with _DividesAsCuda():
        one = torch.arange(256.0).div_(255)
        found = torch.cat([images for images, _ in Batches(split, 8)])
    assert not torch.equal(one, torch.arange(256.0) / 255)
    assert torch.equal(found, wanted)
