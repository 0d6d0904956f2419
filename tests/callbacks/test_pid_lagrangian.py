"""The controller's callback on a method that is only described; `pid_step` itself is tested in tests/losses."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.callbacks.expert import NothingToForgetError
from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
from lightning_unlearn.losses.pid import ExpertMeasures

EXPERT = ExpertMeasures(steps=8192, reward_size=1.0, c_forget=0.05, episode_return=20.0, episode_length=100.0)


class Method:
    """The attributes of a method that the callback uses."""

    def __init__(self, measures=EXPERT, rollouts=range(1), unit=1.0, envs=slice(None)):
        self.expert_measures, self.expert_rollouts, self.cost_unit, self.measured_envs = measures, rollouts, unit, envs
        self.cost_weight, self.logged = 0.0, {}

    def log_dict(self, metrics, batch_size):
        self.logged = metrics


def rollout(*rates, episode_return=20.0):
    """An environment for each rate of C_forget, and an episode that ends in each."""
    c_forget = torch.tensor(rates).repeat(10, 1).T.unsqueeze(-1)  # (E, 10, 1)
    done = torch.zeros_like(c_forget, dtype=torch.bool)
    done[:, -1] = True
    returns = torch.full_like(c_forget, episode_return)
    following = {keys.C_FORGET: c_forget, keys.DONE: done, keys.EPISODE_RETURN: returns}
    return TensorDict({keys.NEXT: following}, list(c_forget.shape[:2]))


def moved(pid, method, *batches, epoch=0):
    """λ after each rollout."""
    weights = []
    for batch in batches:
        pid.on_train_batch_start(SimpleNamespace(current_epoch=epoch), method, batch, 0)
        weights.append(method.cost_weight)
    return weights


def test_lambda_moves_with_the_rate_and_is_logged_with_its_terms():
    # Kp 2, target 0.1: e = 0.2 and λ = 0.4; then e = −0.05 and λ = 0.3.
    method = Method()
    assert moved(PIDLagrangian(2.0, 0.0, 0.0, 0.1), method, rollout(0.3), rollout(0.05)) == pytest.approx([0.4, 0.3])
    assert method.logged["lagrangian/lambda"] == pytest.approx(0.3)
    assert method.logged["lagrangian/violation"] == pytest.approx(-0.05)
    assert method.logged["lagrangian/proportional"] == pytest.approx(-0.1)
    assert (method.logged["lagrangian/target"], method.logged["lagrangian/room"]) == (0.1, 1.0)


def test_it_goes_by_the_measured_environments_in_the_methods_unit():
    # Of three environments the last two count: rate 0.3; both it and the target 0.1 are divided by 0.05.
    method = Method(unit=0.05, envs=slice(-2, None))
    assert moved(PIDLagrangian(1.0, 0.0, 0.0, 0.1), method, rollout(9.0, 0.2, 0.4)) == pytest.approx([6.0 - 2.0])


def test_lambda_stands_still_while_the_expert_is_measured():
    pid, method = PIDLagrangian(1.0, 0.0, 0.0, 0.1), Method(rollouts=range(1, 3))
    assert [moved(pid, method, rollout(0.3), epoch=epoch)[0] for epoch in (0, 1, 2)] == pytest.approx([0, 0, 0.2])


def test_the_aim_below_a_limit_is_divided_by_the_length_of_the_experts_episodes():
    pid, method = PIDLagrangian(1.0, 0.0, 0.0, cost_limit=4.0, limit_share=0.5), Method()
    moved(pid, method, rollout(0.3))
    assert method.logged["lagrangian/target"] == pytest.approx(0.5 * 4.0 / 100)
    assert pid.episode_limit(method) == 4.0
    assert PIDLagrangian(1.0, 0.0, 0.0, 0.02).episode_limit(method) == pytest.approx(2.0)


def test_near_the_floor_the_cost_weighs_less_and_lambda_rises_less():
    # Floor 18, margin 1.4. The running mean of returns, 0.15 of each rollout's: 20 → 20 + 0.15·(11.333 − 20) = 18.7,
    # half the margin above the floor: λ rises by half of 0.2, and half of that counts.
    pid, method = PIDLagrangian(1.0, 0.0, 0.0, 0.1, return_floor=0.9, return_margin=0.07), Method()
    (weight,) = moved(pid, method, rollout(0.3, episode_return=20 - 1.3 / 0.15))
    assert weight == pytest.approx(0.05, rel=1e-4)
    assert pid.state.cost_weight == pytest.approx(0.1, rel=1e-4)
    again = PIDLagrangian(1.0, 0.0, 0.0, 0.1, return_floor=0.9, return_margin=0.07)
    again.load_state_dict(pid.state_dict())
    assert moved(again, method, rollout(0.3)) == moved(pid, method, rollout(0.3))


def test_an_expert_that_keeps_the_limit_is_not_repaired():
    pid = PIDLagrangian(1.0, 0.0, 0.0, cost_limit=6.0)
    with pytest.raises(NothingToForgetError, match=r"cost_limit=6: the expert costs 5.0 an episode in its first 8192"):
        moved(pid, Method(), rollout(0.05))
    moved(pid, Method(EXPERT._replace(steps=4000)), rollout(0.05))  # too few steps to tell


def test_a_limit_or_a_floor_needs_an_expert():
    for pid in (PIDLagrangian(1.0, 0.0, 0.0, cost_limit=1.0), PIDLagrangian(1.0, 0.0, 0.0, return_floor=0.9)):
        with pytest.raises(ValueError, match=r"pid.cost_limit and pid.return_floor are measured against an expert"):
            moved(pid, Method(None), rollout(0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kp": -1.0}, "pid.kp=-1.0 is not possible: use a number of at least 0"),
        ({"cost_limit": -1.0}, "pid.cost_limit=-1.0"),
        ({"target_cost": float("nan")}, "pid.target_cost=nan"),
        ({"integral_max": -0.1}, "pid.integral_max=-0.1"),
        ({"return_margin": 0.0}, "pid.return_margin=0.0 is not possible: use a number above 0"),
        ({"smoothing": 1.0, "form": "positional"}, "pid.smoothing=1.0"),
        ({"smoothing": 0.5}, "pid.smoothing=0.5 has no effect on the form incremental"),
        ({"lambda_init": 1.0, "form": "positional"}, "pid.lambda_init=1.0 has no effect on the form positional"),
        ({"lambda_init": 300.0}, "pid.lambda_init=300.0 must lie from 0 to pid.lambda_max=200.0"),
        ({"cost_limit": 1.0, "target_cost": 0.1}, "pid.cost_limit=1.0 and pid.target_cost=0.1 both say .*: set one"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        PIDLagrangian(**({"kp": 1.0, "ki": 0.0, "kd": 0.0} | options))


def test_a_controller_from_before_the_floor_goes_on():
    pid = PIDLagrangian(1.0, 0.0, 0.0, return_floor=0.9)
    pid.load_state_dict({"cost_weight": 0.5, "integral": 0.1, "previous_error": 0.2})
    assert pid.state_dict() == {"cost_weight": 0.5, "integral": 0.1, "previous_error": 0.2, "recent_return": None}
