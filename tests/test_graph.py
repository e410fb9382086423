"""Steps replayed as one CUDA graph, without a GPU: a recorder stands in for the device.

Its recording runs nothing and keeps the step; its replay runs that on the static inputs, as a graph
does. What torch does on a device is `on_cuda.py`'s to show.
"""

import copy
import random

import pytest
import torch
import yaml
from test_training import Data, Network, scaled
from torch import nn
from torch.utils._pytree import tree_map

import neurospike as ns
from neurospike import train
from neurospike.config import Config
from neurospike.data import Batches, Split
from neurospike.errors import ConfigError, GraphError, NeuroSpikeError
from neurospike.training import Run, SNNTrainer, graph, load_checkpoint, stepping
from neurospike.training.checks import check_run
from neurospike.training.schedule import Schedule


class Recorder:
    """A device whose graph is the step itself. before: called in place of recording."""

    def __init__(self, before=None):
        self.before = before
        self.aside = self.captures = self.replays = 0

    def on_another_stream(self, run):
        self.aside += 1
        return run()

    def capture(self, step):
        self.captures += 1
        if self.before is not None:
            self.before(step)

        kept = []

        def replay():
            self.replays += 1
            found = step()
            if not kept:
                kept.append(found)
            return tree_map(lambda static, new: static.copy_(new), kept[0], found)

        return replay


@pytest.fixture
def recorder(monkeypatch):
    """The device of every trainer made from now on."""
    found = Recorder()
    for module in (graph, stepping):
        monkeypatch.setattr(module, "cuda_of", lambda _: found)
    return found


def digits(count):
    images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=seeded(1))
    return Split(images, torch.arange(count) % 10)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batches(count=76, seed=2):
    """Four whole batches and one of 12."""
    return Batches(digits(count), 16, shuffle=True, generator=seeded(seed))


def make(cuda_graph, **options):
    """A trainer with all that draws, schedules and cuts: 5 steps per epoch."""
    torch.manual_seed(0)
    model = ns.SNNModel(784, 24, num_steps=4, encoding="rate", dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    schedule = Schedule(optimizer, "cosine", total_steps=15, warmup=4)
    given = {"scheduler": schedule, "clip": 0.5, "cuda_graph": cuda_graph, **options}
    return SNNTrainer(model, optimizer, nn.CrossEntropyLoss(), **given)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def rows(history):
    timed = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in history]


def penalty(activity):
    return 0.1 * activity["hidden1"].mean()


def both(monkeypatch, run, device=None):
    """What `run` makes of a mode: without a graph, and with one on this device; and the device."""
    device = device or Recorder()
    monkeypatch.setattr(stepping, "cuda_of", lambda _: Recorder())
    plain = run("off")
    monkeypatch.setattr(stepping, "cuda_of", lambda _: device)
    return plain, run("auto"), device


@pytest.mark.parametrize("options", [{}, {"penalty": penalty, "check_every": 3}, {"ema": 0.9}])
def test_replayed_steps_train_as_the_steps_do(options, monkeypatch):
    """Three epochs of random spikes and dropout, a last smaller batch, evaluation between."""

    def run(cuda_graph):
        given = {name: one for name, one in options.items() if name != "check_every"}
        trainer = make(cuda_graph, **given)
        trainer.fit(batches(), batches(32, 3), 3, check_every=options.get("check_every"))
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    # 15 steps: 3 to warm up, 3 of the size of an epoch's last batch.
    assert (device.aside, device.captures, device.replays) == (3, 1, 15 - 3 - 3)
    assert (plain.replayed, replayed.replayed) == (0, 9)
    same(weights(plain), weights(replayed))
    assert rows(plain.history) == rows(replayed.history)


def test_replayed_steps_are_told_the_lengths_of_their_own_sequences(monkeypatch):
    def sequences(seed):
        """As a GPU gets them: padded to one number of steps."""
        lengths = torch.randint(1, 9, (16,), generator=seeded(seed))
        return torch.rand(8, 16, 20, generator=seeded(seed)), lengths, torch.arange(16) % 3

    def run(cuda_graph):
        torch.manual_seed(0)
        model = ns.SNNModel(20, 24, 3, encoding="none")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        trainer = SNNTrainer(model, optimizer, nn.CrossEntropyLoss(), cuda_graph=cuda_graph)
        trainer.fit([sequences(seed) for seed in range(7)], None, 2)
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    assert (device.captures, plain.replayed, replayed.replayed) == (1, 0, 11)
    same(weights(plain), weights(replayed))


def interrupt_after(trainer, step):
    move_on = trainer.scheduler.step

    def count():
        move_on()
        if trainer.step + 1 == step:
            trainer.interrupt()

    trainer.scheduler.step = count


def test_a_run_resumed_in_mid_epoch_ends_as_one_that_was_not(monkeypatch, tmp_path):
    def resumed(cuda_graph):
        first, data, run = make(cuda_graph), batches(), Run(tmp_path / cuda_graph, config={})
        interrupt_after(first, 9)
        with pytest.raises(KeyboardInterrupt):
            first.fit(data, None, 3, run)
        state = load_checkpoint(run.interrupted)
        again = make(cuda_graph)
        again.load_state_dict(state, data)
        assert again.epoch_step == 4
        again.fit(data, None, 3)
        return again

    plain, replayed, device = both(monkeypatch, resumed)
    same(weights(plain), weights(replayed))
    assert device.captures == 2
    whole = make("auto")
    whole.fit(batches(), None, 3)
    same(weights(whole), weights(replayed))
    assert rows(whole.history) == rows(replayed.history)


def test_a_state_loaded_into_a_trainer_that_replays_is_recorded_anew(monkeypatch):
    def run(cuda_graph):
        trainer, data = make(cuda_graph), batches()
        trainer.fit(data, None, 1)
        state = trainer.state_dict(data)
        trainer.fit(data, None, 2)
        trainer.load_state_dict(state, data)
        trainer.fit(data, None, 3)
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    same(weights(plain), weights(replayed))
    assert device.captures == 2


def test_nothing_is_replayed_into_weights_that_were_loaded_in_mid_epoch(recorder):
    trainer, replays = small("on"), []
    trainer.fit(Data(), None, 1)
    state = trainer.state_dict()

    def load():
        replays.append(recorder.replays)
        if len(replays) == 2:
            trainer.load_state_dict(state)

    trainer.train_epoch(Data(), after_step=load)
    assert replays == [2, 3, 3, 3]


def test_a_checkpoint_holds_plain_rates_and_loads_without_a_graph(recorder, monkeypatch):
    trainer, data = make("on", scheduler=None), batches()  # which would write plain rates itself
    trainer.fit(data, None, 2)
    state = trainer.state_dict(data)
    group = state["optimizer"]["param_groups"][0]
    assert type(group["lr"]) is float
    assert group["capturable"] is False
    assert type(trainer.history[-1]["learning_rate"]) is float
    monkeypatch.undo()
    on_cpu = make("auto", scheduler=None)
    on_cpu.load_state_dict(state, data)
    on_cpu.fit(data, None, 3)
    assert on_cpu.replayed == 0


def drop_more(trainer):
    trainer.model.dropout.p = 0.6


def cut(trainer):
    trainer.clip = 0.01


def decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.1


def load_optimizer(trainer):
    trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))


def freeze(trainer):
    trainer.model.linears[0].weight.requires_grad_(False)


def nothing(trainer):
    pass


@pytest.mark.parametrize("change", [drop_more, cut, decay, load_optimizer, freeze, nothing])
def test_what_changes_between_epochs_is_recorded_anew_and_nothing_else(change, monkeypatch):
    def run(cuda_graph):
        trainer, data = make(cuda_graph), batches()
        trainer.fit(data, batches(32, 3), 2)
        change(trainer)
        trainer.fit(data, None, 3)
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    same(weights(plain), weights(replayed))
    assert device.captures == (1 if change is nothing else 2)


def test_a_rate_set_by_hand_reaches_the_next_replay(monkeypatch):
    def run(cuda_graph):
        trainer, data = make(cuda_graph, scheduler=None), batches()
        trainer.fit(data, None, 1)
        trainer.optimizer.param_groups[0]["lr"] = 0.1
        trainer.fit(data, None, 2)
        return trainer

    plain, replayed, device = both(monkeypatch, run)
    same(weights(plain), weights(replayed))
    assert device.captures == 1


def small(cuda_graph, model=None, **options):
    torch.manual_seed(0)
    model = Network() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    return SNNTrainer(model, optimizer, nn.CrossEntropyLoss(), cuda_graph=cuda_graph, **options)


@pytest.fixture
def read_at_the_end(monkeypatch):
    """Metrics are read after an epoch, however long it takes."""
    monkeypatch.setattr("neurospike.training.trainer.READ_INTERVAL", 1e9)


@pytest.mark.parametrize("step", [2, 4])
def test_nan_is_told_with_its_step_and_the_weights_stay(step, monkeypatch, read_at_the_end):
    def run(cuda_graph):
        trainer = small(cuda_graph)
        trainer.fit(Data(), None, 1)
        with pytest.raises(NeuroSpikeError) as caught:
            trainer.fit(Data(poison_step=step), None, 2)
        return trainer, str(caught.value)

    (plain, said), (replayed, told), device = both(monkeypatch, run)
    assert device.replays == 1 + 4
    assert f"epoch 2: the loss became nan at step {step}" in told
    assert "the inputs of that batch" in told
    assert told == said
    same(weights(plain), weights(replayed))
    assert all(value.isfinite().all() for value in replayed.model.state_dict().values())


def test_pictures_that_no_encoder_looks_at_are_told_of_all_the_same(monkeypatch, read_at_the_end):
    """A neuron hides NaN: it does not fire, and where rates are drawn no gradient tells either."""

    class Poisoned(Batches):
        def __iter__(self):
            for k, (images, labels) in enumerate(super().__iter__()):
                images[0, 0, 0, 0] = torch.nan if k == 2 else images[0, 0, 0, 0]
                yield images, labels

    for module in ("models.network", "coding.intensities", "training.trainer"):
        monkeypatch.setattr(f"neurospike.{module}.can_look", lambda _: False)
    trainer = make("off", clip=None)
    before = weights(trainer)
    found = []
    with pytest.raises(NeuroSpikeError) as caught:
        trainer.train_epoch(
            Poisoned(digits(64), 16), after_step=lambda: found.append(weights(trainer))
        )
    assert "the gradient's norm became nan at step 3; not finite first: the inpu" in str(
        caught.value
    )
    same(found[1], found[3])
    assert not torch.equal(before["linears.0.weight"], found[1]["linears.0.weight"])


def test_batches_kept_for_a_diagnosis_are_few(monkeypatch, read_at_the_end):
    monkeypatch.setattr("neurospike.training.trainer.KEPT_BATCHES", 2)
    trainer, kept = small("off"), []
    trainer.train_epoch(Data(), after_step=lambda: kept.append(len(trainer._batches)))
    assert kept == [1, 0, 1, 0]
    with pytest.raises(NeuroSpikeError, match="epoch 2: the loss became nan at step 3"):
        trainer.train_epoch(Data(poison_step=3))


# Where there is no graph


def half_a_step(step):
    """What a failed recording leaves: gradients that were never computed, and moved generators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_, **__: None)
        patch.setattr(torch.optim.Adam, "zero_grad", lambda *_, **__: None)
        step()
    random.random()
    raise RuntimeError("operation not permitted when stream is capturing.\nMore of it")


def test_a_recording_that_fails_is_told_in_a_line_and_training_goes_on(monkeypatch, capsys):
    def run(cuda_graph):
        random.seed(0)
        trainer = make(cuda_graph)
        trainer.fit(batches(), None, 2)
        return trainer, random.random()

    (plain, drawn), (other, found), device = both(monkeypatch, run, Recorder(half_a_step))
    same(weights(plain), weights(other))
    assert drawn == found
    assert (device.captures, other.replayed) == (1, 0)
    said = [line for line in capsys.readouterr().out.splitlines() if "graph" in line]
    assert said == [
        "steps are not replayed as one CUDA graph: operation not permitted when stream is capturing"
    ]
    monkeypatch.setattr(stepping, "cuda_of", lambda _: Recorder(half_a_step))
    with pytest.raises(GraphError, match=r"cuda_graph: got on, but .* is capturing\. Use auto or"):
        make("on").fit(batches(), None, 2)


class Counting(Network):
    """Gives out less at every call."""

    calls = 0

    def forward(self, images, return_activity=False):
        self.calls += 1
        return super().forward(images) / self.calls


def test_a_model_that_counts_in_python_is_found_out(monkeypatch, capsys):
    class Once(Recorder):
        """Replays what Python computed when it was recorded."""

        def capture(self, step):
            calls = models[-1].calls + 1

            def replay():
                models[-1].calls = calls - 1
                return step()

            return replay

    models = []

    def run(cuda_graph):
        models.append(Counting())
        trainer = small(cuda_graph, models[-1])
        trainer.fit(Data(), None, 3)
        return trainer

    plain, other, _ = both(monkeypatch, run, Once())
    same(weights(plain), weights(other))
    assert other.replayed == 1
    assert "one CUDA graph: calls changes from step to step" in capsys.readouterr().out


def hooked(trainer):
    trainer.model.hidden.register_forward_hook(lambda *_: None)


def hooked_optimizer(trainer):
    trainer.optimizer.register_step_post_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("hook", "where"), [(hooked, "hidden has a hook"), (hooked_optimizer, "the optimiser has a")]
)
def test_hooks_are_called_at_every_step(hook, where, recorder, capsys):
    trainer = small("auto")
    hook(trainer)
    trainer.fit(Data(), None, 2)
    assert recorder.captures == 0
    assert capsys.readouterr().out.count(f"one CUDA graph: {where}") == 1


def test_what_can_never_be_a_graph_is_told_once_or_refused(recorder, capsys):
    def unfit(cuda_graph):
        model = Network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return SNNTrainer(model, optimizer, nn.CrossEntropyLoss(), cuda_graph=cuda_graph)

    unfit("auto").fit(Data(), None, 2)
    unfit("off").fit(Data(), None, 2)
    said = [line for line in capsys.readouterr().out.splitlines() if "graph" in line]
    told = "SGD was not made with fused=True or capturable=True"
    assert said == [f"steps are not replayed as one CUDA graph: {told}"]
    with pytest.raises(GraphError, match=f"cuda_graph: got on, but .*{told}. Use auto or off"):
        unfit("on")
    scaler = scaled(256.0, cuda_graph="auto")
    scaler.fit(Data(), None, 2)
    assert scaler.replayed == recorder.captures == 0
    assert "with 16-mixed the host waits" in capsys.readouterr().out


def test_modes_on_a_cpu(capsys):
    for mode in ("auto", "off"):
        trainer = small(mode)
        trainer.fit(Data(), None, 2)
        assert trainer.replayed == 0
    assert "graph" not in capsys.readouterr().out
    with pytest.raises(GraphError, match="the device is cpu, and only a CUDA device replays"):
        small("on")
    with pytest.raises(ValueError, match="cuda_graph must be one of auto, on, off, got 'yes'"):
        small("yes")


def test_the_flag(tmp_path, monkeypatch, capsys):
    assert Config(**yaml.safe_load("cuda_graph: off")).cuda_graph == "off"
    assert Config(**yaml.safe_load("cuda_graph: on")).cuda_graph == "on"
    monkeypatch.chdir(tmp_path)
    assert train.main(["--device=cpu", "--dataset=digits", "--cuda-graph=on"]) == 2
    assert capsys.readouterr().err == (
        "error: cuda_graph: got on, but the device is cpu, and only a CUDA device replays graphs; "
        "use auto or off\n"
    )
    assert not list(tmp_path.iterdir())
    assert train.main(["--cuda_graph=yes"]) == 2
    assert "cuda_graph: got 'yes', allowed: auto, on, off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"), [({"devices": 2}, "several"), ({"precision": "16-mixed"}, "16-mixed")]
)
def test_on_is_refused_before_anything_is_made(options, why):
    config = Config(cuda_graph="on", dataset="digits", **options)
    with pytest.raises(ConfigError, match=f"cuda_graph: got on, but .*{why}"):
        check_run(config, torch.device("cuda"), resumed=True)


# ns.graphed


def test_a_loop_of_ones_own(recorder):
    weight = torch.zeros(3)
    seen = []

    def step(x, y):
        weight.add_(x * y)
        seen.append((x, y))
        return {"sum": weight.sum()}

    inputs = [(torch.full((3,), float(k)), torch.tensor(2.0)) for k in range(6)]
    fast = ns.graphed(step, torch.empty(3), torch.empty(()))
    assert not seen
    for k, (x, y) in enumerate(inputs[:5]):
        assert fast(x, y)["sum"] == 6 * sum(range(k + 1))
    assert (recorder.aside, recorder.captures, recorder.replays, fast.replays) == (3, 1, 2, 2)
    assert seen[3][0] is seen[4][0]
    assert seen[3][0] is not inputs[3][0]
    assert fast(torch.ones(1), torch.tensor(1.0))["sum"] == 6 * 10 + 3  # as it is
    assert recorder.replays == 2


def test_arguments_need_no_gradient(recorder):
    fast = ns.graphed(lambda x: x * 2, torch.empty(2))
    found = [fast(torch.ones(2, requires_grad=True)) for _ in range(4)]
    assert [one.requires_grad for one in found] == [True, True, True, False]


def test_a_step_that_draws_on_the_cpu_is_refused(recorder):
    recorder.before = lambda step: step()
    fast = ns.graphed(lambda x: x + torch.rand(2), torch.empty(2))
    for _ in range(3):
        fast(torch.zeros(2))
    before = torch.get_rng_state()
    with pytest.raises(GraphError, match="draws random numbers on the CPU, which no replay"):
        fast(torch.zeros(2))
    assert torch.equal(before, torch.get_rng_state())


def test_graphed_says_what_it_needs():
    with pytest.raises(GraphError, match="the examples are on cpu, and a graph is replayed by one"):
        ns.graphed(print, torch.zeros(2))
    with pytest.raises(GraphError, match="the examples are on cpu and meta"):
        ns.graphed(print, torch.zeros(2), torch.zeros(2, device="meta"))
    for examples, got in (((), "none"), ((3, "x"), "int, str")):
        with pytest.raises(TypeError, match=f"which are tensors; got {got}: use graphed"):
            ns.graphed(print, *examples)
