"""Save points and the mean of late weights, on a training that is only described."""

import copy
from types import SimpleNamespace

import pytest
import torch

from lightning_unlearn.callbacks import save_points
from lightning_unlearn.callbacks.save_points import SavePoints
from lightning_unlearn.callbacks.weight_average import WeightAverage, averaged_policy


@pytest.fixture
def registered(monkeypatch):
    """Every (update, weight of the action mean's bias) that is registered from here on."""
    seen = []

    def register(policy, card, run_id):
        seen.append((card.update, policy.action_mean.bias.item()))
        return len(seen)

    monkeypatch.setattr(save_points.registry, "register_policy", register)
    return seen


def training(policy, updates, callbacks):
    data = SimpleNamespace(env_id="ToyLine-v0", env=SimpleNamespace(concept="auto"))
    module = SimpleNamespace(policy=policy, method="oracle", seed=0, note="", env_steps=7, data=data)
    return SimpleNamespace(max_epochs=updates, current_epoch=0, callbacks=callbacks), module


def run(trainer, module, first=1, last=None):
    """Updates that set the action mean's bias to their number."""
    for callback in trainer.callbacks:
        callback.on_fit_start(trainer, module)
    for update in range(first, (last or trainer.max_epochs) + 1):
        trainer.current_epoch = update - 1
        module.policy.action_mean.bias.data.fill_(float(update))
        for hook in ("on_train_batch_end", "on_train_epoch_end"):
            for callback in trainer.callbacks:
                getattr(callback, hook)(trainer, module)
        trainer.current_epoch = update
    for callback in trainer.callbacks:
        callback.on_train_end(trainer, module)


def points(updates=None):
    return SavePoints(SimpleNamespace(run_id="r"), updates)


@pytest.mark.parametrize(
    ("updates", "ended_after", "expected"),
    [(None, 4, [4]), ([2, 4], 4, [2, 4]), ([2], 4, [2]), ([2, 4], 3, [2, 3]), (None, 1, [1])],
)
def test_chosen_updates_are_registered_and_the_last_one_of_an_early_end(
    registered, policy, updates, ended_after, expected
):
    saving = points(updates)
    run(*training(policy, 4, [saving]), last=ended_after)
    assert registered == [(update, float(update)) for update in expected]
    assert saving.saved == {u: f"models:/oracle.ToyLine-v0/{i}" for i, u in enumerate(expected, start=1)}


def test_a_run_that_was_killed_before_registering_does_so_when_it_is_resumed(registered, policy):
    saving, (trainer, module) = points([1, 2]), training(policy, 2, [])
    saving.on_train_batch_end(trainer, module)  # then the checkpoint is written, and the process killed
    resumed = points([1, 2])
    resumed.load_state_dict(copy.deepcopy(saving.state_dict()))
    resumed.on_fit_start(trainer, module)
    assert [update for update, _ in registered] == [1]
    assert resumed.state_dict()["due"] is None


def test_impossible_save_points_are_refused():
    for updates in ([], [0], [2, -1]):
        with pytest.raises(ValueError, match="name updates from 1 on"):
            points(updates)
    with pytest.raises(ValueError, match=r"save_points=\[5, 9\] lie beyond trainer.max_epochs=4"):
        points([2, 5, 9]).require_within(4)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 3.5), (1.5, 5.25), (0.5, 1.75)])
def test_save_points_hold_the_mean_of_the_updates_that_count(registered, policy, alpha, expected):
    # Of four updates the last two count: θ̄ = 3.5, and θ₀ = 0; before that, the update's own weights.
    policy.action_mean.bias.data.zero_()
    average, saving = WeightAverage(0.5, alpha), points([1, 2, 4])
    trainer, module = training(policy, 4, [average, saving])
    run(trainer, module)
    assert registered == [(1, 1.0), (2, 2.0), (4, pytest.approx(expected))]
    beyond = "" if alpha == 1.0 else f", on the line from the start's at {alpha}"
    assert average.note == f"mean of the weights of 2 updates{beyond}"
    assert averaged_policy(trainer, module).action_mean.bias.item() == pytest.approx(expected)
    assert module.policy.action_mean.bias.item() == 4.0  # training itself goes on from the last ones


def test_a_resumed_mean_is_that_of_a_run_that_was_not_interrupted(registered, policy):
    policy.action_mean.bias.data.zero_()
    average = WeightAverage(1.0, 2.0)
    trainer, module = training(policy, 4, [average])
    run(trainer, module, last=2)
    resumed, saving = WeightAverage(1.0, 2.0), points()
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    run(*training(policy, 4, [resumed, saving]), first=3)
    assert registered == [(4, 2.0 * torch.tensor([1.0, 2.0, 3.0, 4.0]).mean().item())]


@pytest.mark.parametrize(
    ("share", "alpha", "message"),
    [
        (0.0, 1.0, "share=0.0"),
        (1.5, 1.0, "share=1.5"),
        (float("nan"), 1.0, "share=nan"),
        (0.5, 0.0, "alpha=0.0"),
        (0.5, float("inf"), "alpha=inf"),
        (0.5, float("nan"), "alpha=nan"),
    ],
)
def test_an_impossible_average_is_refused(share, alpha, message):
    with pytest.raises(ValueError, match=f"average.{message} is not possible"):
        WeightAverage(share, alpha)
