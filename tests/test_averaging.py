"""The exponential moving average of the weights: what it is, and who sees it when."""

import copy

import pytest
import torch
from torch import nn

import neurospike as ns
from neurospike.config import Config
from neurospike.training.averaging import Average
from neurospike.training.checkpoint import load_checkpoint
from neurospike.training.scale import make_fabric
from neurospike.training.setup import make_trainer

DECAY = 0.9
BATCHES = [
    (torch.randn(6, 8, generator=torch.Generator().manual_seed(k)), torch.arange(6) % 3)
    for k in range(12)
]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trainer_of(net, ema=DECAY, **options):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    return ns.SNNTrainer(net, optimizer, nn.CrossEntropyLoss(), ema=ema, **options)


def averaged(states, decay=DECAY):
    """The mean after these states of a network, of which the first is that before any step."""
    mean = {name: value.double() for name, value in states[0].items()}
    for n, state in enumerate(states[1:]):
        share = max(1 - decay, 9 / (10 + n))
        for name, value in state.items():
            mean[name] += share * (value.double() - mean[name])
    return mean


def steps_of(model, batches, epochs):
    """The states of a network before, and after every step of, a training without a mean."""
    trainer = trainer_of(model, ema=0.0)
    states = [copy.deepcopy(model.state_dict())]
    for _ in range(epochs):
        trainer.train_epoch(
            batches, after_step=lambda: states.append(copy.deepcopy(model.state_dict()))
        )
    return states


def test_the_mean_is_that_of_the_weights_that_training_without_it_goes_through():
    states = steps_of(net(), BATCHES, 10)  # 120 steps, the share falls to 1 - decay at the 80th
    model = net()
    trainer = trainer_of(model)
    for _ in range(10):
        trainer.train_epoch(BATCHES)
    wanted, found = averaged(states), model.state_dict()
    assert set(wanted) == set(found)
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-6)
    trained = trainer.state_dict()["average"]["weights"]
    for name, value in states[-1].items():
        assert torch.equal(trained[name], value), name
    assert not torch.equal(found["0.weight"], states[-1]["0.weight"])
    assert found["1.num_batches_tracked"] == 120


def test_one_weight_under_two_names_is_averaged_once():
    def tied():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
        model[2].weight = model[0].weight
        return model

    wanted = averaged(steps_of(tied(), BATCHES, 1))
    model = tied()
    trainer = trainer_of(model)
    trainer.train_epoch(BATCHES)
    state = trainer.state_dict()["model"]
    assert model[2].weight is model[0].weight
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(state[name].double(), wanted[name], rtol=1e-4, atol=1e-6)


def test_the_mean_is_what_is_validated_and_saved(tmp_path):
    model = net()
    trainer = trainer_of(model)
    seen = []

    class Watched(list):
        def __iter__(self):
            seen.append(model[0].weight.detach().clone())
            return super().__iter__()

    trainer.fit(BATCHES, Watched(BATCHES[:2]), 1, tmp_path / "run", check_every=5)
    assert len(seen) == 3  # within the epoch after 5 and 10 steps, and after it
    states = steps_of(net(), BATCHES, 1)
    for count, weight in zip((5, 10, 12), seen):
        wanted = averaged(states[: count + 1])["0.weight"]
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-6)
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth")
    assert torch.equal(last["model"]["0.weight"], seen[-1])
    assert torch.equal(last["average"]["weights"]["0.weight"], states[-1]["0.weight"])
    other = net()
    again = trainer_of(other)
    again.init_from(tmp_path / "run" / "checkpoints" / "last.pth")
    assert torch.equal(other[0].weight, seen[-1])
    # It trains on with what was loaded.
    again.train_epoch(BATCHES[:1])
    plain = net()
    plain.load_state_dict(last["model"])
    after = steps_of(plain, BATCHES[:1], 1)[-1]
    assert torch.equal(again.state_dict()["average"]["weights"]["0.weight"], after["0.weight"])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = net()
    trainer_of(whole).fit(BATCHES, BATCHES[:2], 3, tmp_path / "whole")
    model = net()
    trainer = trainer_of(model)

    def stop(record):
        if record["step"] == 15:
            trainer.interrupt()

    with pytest.raises(KeyboardInterrupt):
        options = {"check_every": 5, "on_record": stop}
        trainer.fit(BATCHES, BATCHES[:2], 3, tmp_path / "run", **options)
    trainer.run.release()
    resumed = net()
    again = trainer_of(resumed)
    again.fit(BATCHES, BATCHES[:2], 3, tmp_path / "run", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # So does the trainer that was stopped.
    trainer.fit(BATCHES, BATCHES[:2], 3)
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_state_of_its_own_is_taken_back():
    model = net()
    trainer = trainer_of(model)
    trainer.train_epoch(BATCHES)
    state = trainer.state_dict()
    kept = copy.deepcopy(state)
    trainer.load_state_dict(state)
    for part, wanted in ((state["model"], kept["model"]), (state["average"], kept["average"])):
        flat, others = part.get("weights", part), wanted.get("weights", wanted)
        assert all(torch.equal(flat[name], others[name]) for name in others)
    assert torch.equal(state["average"]["steps"], kept["average"]["steps"])
    assert torch.equal(trainer.state_dict()["average"]["steps"], torch.tensor(12.0))


def test_a_run_begun_without_a_mean_goes_on_with_one(tmp_path):
    model = net()
    trainer_of(model, ema=0.0).fit(BATCHES, BATCHES[:2], 1, tmp_path / "run")
    start = copy.deepcopy(model.state_dict())
    resumed = net()
    trainer = trainer_of(resumed)
    trainer.fit(BATCHES, BATCHES[:2], 1, tmp_path / "run", resume=True)
    assert all(torch.equal(resumed.state_dict()[name], start[name]) for name in start)
    state = trainer.state_dict()
    del state["average"]  # as in files of 0.1
    other = net()
    trainer_of(other).load_state_dict(state)
    assert all(torch.equal(other.state_dict()[name], start[name]) for name in start)


@pytest.mark.parametrize("when", ["before", "between"])
def test_weights_that_are_loaded_are_trained_on(when):
    other = net()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    given = copy.deepcopy(other.state_dict())
    model = net()
    trainer = trainer_of(model)
    if when == "between":
        trainer.train_epoch(BATCHES)
    model.load_state_dict(given)
    optimizer = copy.deepcopy(trainer.optimizer.state_dict())
    trainer.train_epoch(BATCHES[:1])
    plain = trainer_of(other, ema=0.0)
    plain.optimizer.load_state_dict(optimizer)
    plain.train_epoch(BATCHES[:1])
    trained = trainer.state_dict()["average"]["weights"]
    assert torch.equal(trained["0.weight"], other[0].weight)
    wanted = averaged([given, other.state_dict()])["0.weight"]
    torch.testing.assert_close(model[0].weight.detach().double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("when", ["before", "between"])
def test_weights_that_are_loaded_are_saved(when):
    model = net()
    trainer = trainer_of(model)
    if when == "between":
        trainer.train_epoch(BATCHES)
    given = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(given)
    state = trainer.state_dict()
    for saved in (state["model"], state["average"]["weights"]):
        assert torch.equal(saved["0.weight"], given["0.weight"])
    assert state["average"]["steps"] == 0


def test_the_configuration_asks_for_it():
    def made(**training):
        config = Config(training=training)
        return make_trainer(config, net(), make_fabric("cpu"), steps=4, epochs=1)

    assert made().average is not None
    assert made(ema=0.0).average is None


def test_a_state_is_taken_back_in_the_middle_of_training():
    model = net()
    average = Average(model, DECAY)
    average.train()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.update()
    mean, trained = copy.deepcopy(average.state_dicts())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    model.load_state_dict(mean)
    average.load(trained)
    assert torch.equal(model[0].weight, trained["weights"]["0.weight"])
    average.rest()
    assert torch.equal(model[0].weight, mean["0.weight"])
    assert not torch.equal(mean["0.weight"], trained["weights"]["0.weight"])


def test_a_mean_that_is_no_number_is_refused():
    trainer = trainer_of(net())
    state = copy.deepcopy(trainer.state_dict())
    state["model"]["3.bias"][1] = torch.nan
    with pytest.raises(ValueError, match=r"not finite first: the parameter 3\.bias"):
        trainer.load_state_dict(state)


def test_statistics_that_change_at_rest_are_no_new_weights():
    model = net()
    trainer = trainer_of(model)
    trainer.train_epoch(BATCHES)
    trained = copy.deepcopy(trainer.state_dict()["average"]["weights"]["0.weight"])
    model.train()(BATCHES[0][0])  # moves the running means of the normalisation
    model[1].running_mean.add_(1.0)  # as buffers of ones own may be
    assert torch.equal(trainer.state_dict()["average"]["weights"]["0.weight"], trained)
    trainer.average.train()
    assert torch.equal(model[0].weight, trained)


def test_an_evaluation_leaves_the_network_with_the_mean():
    model = net()
    trainer = trainer_of(model)
    trainer.train_epoch(BATCHES)
    mean = model[0].weight.detach().clone()
    trainer.evaluate(BATCHES[:1])
    assert torch.equal(model[0].weight, mean)


def test_what_a_network_keeps_beside_tensors_is_saved_as_it_is():
    class Noted(nn.Linear):
        note = "as made"

        def get_extra_state(self):
            return self.note

        def set_extra_state(self, state):
            self.note = state

    model, other = Noted(8, 3), Noted(8, 3)
    trainer, again = trainer_of(model), trainer_of(other)
    model.note = "as trained"
    trainer.train_epoch(BATCHES)
    again.load_state_dict(trainer.state_dict())
    assert other.note == "as trained"
    assert torch.equal(other.weight, model.weight)


def test_after_an_error_the_network_holds_the_mean():
    model = net()
    trainer = trainer_of(model)

    def fail():
        if trainer.step == 3:
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        trainer.train_epoch(BATCHES, after_step=fail)
    wanted = averaged(steps_of(net(), BATCHES[:3], 1))["0.weight"]
    torch.testing.assert_close(model[0].weight.detach().double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("ema", "error", "told"),
    [
        (1.0, ValueError, "ema must be at least 0 .* below 1, such as 0.998, got 1.0"),
        (-0.1, ValueError, "got -0.1"),
        (float("nan"), ValueError, "got nan"),
        ("0.9", TypeError, "ema must be a number, got str"),
        (True, TypeError, "ema must be a number, got bool"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(ema, error, told):
    with pytest.raises(error, match=told):
        trainer_of(net(), ema=ema)


def test_away_from_the_cpu_no_number_is_read():
    """On the meta device there is none: a GPU would be waited for, and no CUDA graph recorded."""
    model = net().to("meta")
    average = Average(model, DECAY)
    average.train()
    average.update()
    with average.resting():
        pass
    average.rest()
    assert all(value.is_meta for value in average.state_dicts()[1]["weights"].values())
