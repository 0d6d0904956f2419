"""The expert's measures in training's first rollouts, and a limit an episode and a return floor that go by them."""

import mlflow
import pytest
import torch
from tensordict import TensorDict

import lightning_unlearn as lu
from lightning_unlearn import fit, keys
from lightning_unlearn.callbacks.expert import ExpertRecord

TOY = "ToyLine-v0"
CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/concept.yaml", "-c", "smoke.yaml"]
SOURCE = ["--model.source", f"zoo:unsafe.{TOY}", "--updates", "4", "--save_points", "null"]


def metrics(run_id, name):
    return [point.value for point in mlflow.MlflowClient().get_metric_history(run_id, f"lagrangian/{name}")]


def repaired(*options):
    policy = lu.load_policy(f"zoo:unsafe.{TOY}")
    return lu.repair(policy, TOY, "concept", 3, ["--n_envs", "4", "--horizon", "64", "--data.workers", "1", *options])


def test_a_limit_is_divided_by_the_length_of_the_experts_episodes(store):
    run = fit.train([*CHAIN, *SOURCE, "--cost_limit", "4", "--pid.return_floor", "0.5"])
    assert metrics(run.run_id, "target") == pytest.approx([0.85 * 4 / 32] * 4)
    assert metrics(run.run_id, "room") == [1.0] * 4  # three updates are too few to fall to the half
    assert metrics(run.run_id, "lambda")[-1] > 0.0


def test_below_the_floor_the_cost_counts_for_nothing():
    below, without = repaired("--pid.return_floor", "3.0", "--cost_limit", "1"), repaired("--lambda_max", "0")
    above = repaired("--pid.return_floor", "0.0", "--cost_limit", "1")
    pairs = list(zip(below.parameters(), without.parameters(), above.parameters(), strict=True))
    assert all(torch.equal(one, other) for one, other, _ in pairs)
    assert not all(torch.equal(one, other) for one, _, other in pairs)


def test_an_option_replaces_the_other_of_a_config_and_both_are_refused():
    with pytest.raises(ValueError, match=r"pid.cost_limit=1.0 and pid.target_cost=0.1 both say .*: set one to null"):
        repaired("--cost_limit", "1", "--target_cost", "0.1")


def test_where_no_episode_of_the_expert_ends_it_is_as_long_as_the_task_lets_it(store):
    run = fit.train([*CHAIN, *SOURCE, "--cost_limit", "4", "--horizon", "16", "--pid.return_floor", "0.9"])
    assert metrics(run.run_id, "target") == pytest.approx([0.85 * 4 / 32] * 4)


class Watched:
    """The attributes of a method that `ExpertRecord` uses."""

    source, expert_measures, measured_envs = "an expert", None, slice(-2, None)

    def __init__(self, rollouts):
        self.expert_rollouts = rollouts


class At:
    """A trainer in one of its epochs."""

    def __init__(self, epoch):
        self.current_epoch = epoch


def rollout(done):
    shape = (*done.shape, 1)
    following = {
        keys.DONE: done.unsqueeze(-1),
        keys.REWARD: -torch.ones(shape),
        keys.C_FORGET: torch.full(shape, 0.25),
        keys.EPISODE_RETURN: torch.full(shape, -7.0),
    }
    return TensorDict({keys.NEXT: following}, list(done.shape))


def test_episodes_count_in_the_rollout_they_end_in_whenever_they_began():
    # Of three environments the last two count; the first rollout, of five steps, does not, but its episodes go on.
    others = [1, 1, 1, 1, 1]
    ends = [[others, [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], [others, [0, 1, 0, 0, 0], [1, 0, 0, 1, 0]]]
    method, record = Watched(range(1, 2)), ExpertRecord()
    for epoch, done in enumerate(ends):
        record.on_train_batch_start(At(epoch), method, rollout(torch.tensor(done, dtype=torch.bool)), 0)
    # Of 2 + 2, 5 + 1 and 3 steps.
    assert method.expert_measures == (10, 1.0, 0.25, -7.0, pytest.approx(13 / 3))
    again = ExpertRecord()
    again.load_state_dict(record.state_dict())
    resumed = Watched(range(1, 2))
    again.on_train_start(At(2), resumed)
    assert resumed.expert_measures == method.expert_measures
