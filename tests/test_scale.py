"""One process without Lightning Fabric: when, and that it computes what Fabric computes."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import neurospike as ns
from neurospike.coding import losses
from neurospike.data import Batches, Split
from neurospike.errors import ConfigError
from neurospike.training import SNNTrainer, load_checkpoint, save_checkpoint, scale
from neurospike.training.adam import Adam
from neurospike.training.scale import OneProcess, make_fabric

FORMATS = ["32-true", "bf16-mixed"]


def by_fabric(precision):
    return Fabric(accelerator="cpu", devices=1, precision=precision)


def alone(precision):
    return OneProcess("cpu", precision)


class Training:
    """A small network on digits of noise, with dropout, penalty and clipping."""

    def __init__(self, fabric, *, on_output=False):
        torch.manual_seed(0)
        drawn = torch.Generator().manual_seed(1)
        images = torch.randint(256, (48, 28, 28), dtype=torch.uint8, generator=drawn)
        split = Split(images, torch.arange(48) % 10)
        order = torch.Generator().manual_seed(2)
        self.train = Batches(split, 16, shuffle=True, generator=order)
        self.held_out = Batches(split, 20)
        model = ns.SNNModel(784, 12, 10, num_steps=4, dropout=0.2)
        self.formats = set()
        model.register_forward_pre_hook(lambda _, given: self.formats.add(given[0].dtype))
        self.trainer = SNNTrainer(
            model,
            torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
            losses.LOSSES["mse_count"] if on_output else nn.CrossEntropyLoss(),
            fabric=fabric,
            on_output=on_output,
            penalty=lambda activity: activity["hidden1"].mean(),
            clip=0.5,
        )

    def fit(self, epochs):
        self.trainer.fit(self.train, self.held_out, epochs)
        return self

    @property
    def end(self):
        """All that a run ends with, but for the time that it took."""
        state = copy.deepcopy(self.trainer.state_dict(self.train))
        for row in (*state["history"], *state["epoch_sums"]):
            for key in ("seconds", "samples_per_second"):
                row.pop(key, None)
        return state


def same(one, other):
    """Compare states bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            same(*pair)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("on_output", [False, True])
@pytest.mark.parametrize("precision", FORMATS)
def test_a_run_without_fabric_is_the_run_with_it_bit_for_bit(precision, on_output):
    one = Training(alone(precision), on_output=on_output).fit(2)
    other = Training(by_fabric(precision), on_output=on_output).fit(2)
    same(one.end, other.end)
    assert one.formats == other.formats
    assert one.formats == {torch.float32 if precision == "32-true" else torch.bfloat16}


def test_bfloat16_multiplies_in_16_bits_and_answers_in_32():
    trainer = Training(alone("bf16-mixed")).trainer
    trainer.model.eval()
    images = torch.rand(3, 1, 28, 28)
    scores, activity = trainer._forward(images, return_activity=True)
    assert scores.dtype == activity["hidden1"].dtype == torch.float32
    assert not torch.equal(scores, trainer.model(images))
    with trainer.fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with alone("32-true").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("begin", [alone, by_fabric])
def test_a_run_begun_with_one_goes_on_with_the_other(tmp_path, precision, begin):
    go_on = by_fabric if begin is alone else alone
    whole = Training(begin(precision)).fit(3)
    begun = Training(begin(precision)).fit(1)
    save_checkpoint(begun.trainer.state_dict(begun.train), tmp_path / "state.pth")
    resumed = Training(go_on(precision))
    resumed.trainer.load_state_dict(load_checkpoint(tmp_path / "state.pth"), resumed.train)
    same(resumed.fit(3).end, whole.end)


@pytest.fixture
def asked(monkeypatch):
    """The options of each Fabric that is asked for; none is made."""
    options = []
    monkeypatch.setattr(scale, "_lightning", lambda **given: options.append(given))
    return options


def test_one_process_takes_no_fabric(asked):
    assert isinstance(make_fabric(), OneProcess)
    assert isinstance(make_fabric("cpu", "bf16-mixed"), OneProcess)
    assert asked == []


@pytest.mark.parametrize("options", [{"devices": 2}, {"num_nodes": 3}])
def test_several_processes_take_a_fabric(asked, options):
    make_fabric("cpu", **options)
    wanted = {"devices": 1, "num_nodes": 1, **options}
    (given,) = asked
    assert {key: given[key] for key in wanted} == wanted
    assert given["strategy"] == "ddp"


def test_torchrun_takes_a_fabric_of_its_processes(asked, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    make_fabric()
    assert [(given["devices"], given["num_nodes"]) for given in asked] == [(2, 3)]


def test_fabric_run_takes_a_fabric_of_its_flags(asked, monkeypatch):
    monkeypatch.setenv("LT_CLI_USED", "1")
    make_fabric()
    assert asked == [{}]


def test_a_scaled_loss_takes_a_fabric(asked, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    make_fabric("cuda:1", "16-mixed")
    assert [(given["devices"], given["strategy"]) for given in asked] == [([1], "auto")]


def test_the_first_gpu_is_meant_where_none_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert make_fabric("cuda").device == torch.device("cuda", 0)
    assert make_fabric("cuda:1").device == torch.device("cuda", 1)
    assert make_fabric("cpu").device == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    told = "device: got 'cuda', but torch finds 0 CUDA devices here; use cpu$"
    with pytest.raises(ConfigError, match=told):
        make_fabric("cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    told = "device: got 'cuda:2', but torch finds 2 CUDA devices here; use cpu or cuda$"
    with pytest.raises(ConfigError, match=told):
        make_fabric("cuda:2")
    with pytest.raises(ConfigError, match="devices: got 3, but torch finds 2 CUDA devices here"):
        make_fabric("cuda", devices=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: got 'gpu', allowed: cpu, cuda or cuda:N; a GPU of torch's is"),
        ({"device": None}, "device: got None, allowed: cpu, cuda or cuda:N"),
        ({"precision": "fp16"}, "precision: got 'fp16', allowed: 32-true, bf16-mixed, 16-mixed"),
        ({"precision": 16}, "precision: got 16, allowed: 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_a_device_or_precision_there_is_not_is_told(options, message):
    net = nn.Linear(2, 2)
    with pytest.raises(ConfigError) as caught:
        SNNTrainer(net, torch.optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss(), **options)
    assert message in str(caught.value)


# Adam


def test_adam_is_torchs_bit_for_bit_and_their_states_are_exchanged():
    def train(kind, other):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}]
        steps, stepped = [], kind(groups, lr=0.03, betas=(0.8, 0.99), fused=True)
        for count in range(6):
            if count == 3:  # go on with the other's state
                before, stepped = stepped, other(groups, lr=1.0, fused=True)
                stepped.load_state_dict(before.state_dict())
                stepped.register_step_post_hook(lambda *_: steps.append(1))
            loss = model(torch.rand(4, 5)).square().sum()
            loss.backward()
            stepped.step()
            stepped.zero_grad()
            assert model.weight.grad is None
        assert len(steps) == 3
        return {"weight": model.weight, "bias": model.bias, "state": stepped.state_dict()}

    same(train(Adam, torch.optim.Adam), train(torch.optim.Adam, Adam))
    same(train(Adam, Adam), train(torch.optim.Adam, torch.optim.Adam))


def test_adam_computes_the_loss_of_a_closure_with_its_graph():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = Adam([weight], lr=0.5)

    def loss():
        optimizer.zero_grad()
        value = weight.square().sum()
        value.backward()
        return value

    assert optimizer.step(loss).item() == 4.0
    assert weight.item() == pytest.approx(1.5)
    assert torch.is_grad_enabled()
