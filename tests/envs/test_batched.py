import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concept_config import as_concept
from lightning_unlearn.envs.concepts import InfoKey
from lightning_unlearn.seeding import TRAINING_SEED_FLOOR, SeedStreams, evaluation_layouts, training_seeds


@pytest.mark.parametrize("env_id", ["ToyLine-v0", "SafetyPointGoal1-v0"])
def test_torchrls_own_check_passes(env_id):
    env = make_env(env_id, 3)
    env.set_seed(0)
    check_env_specs(env)
    env.close()


def test_the_final_observation_is_kept_and_a_new_episode_follows():
    env = make_env("ToyLine-v0", 2)
    env.set_seed(0)
    rollout = env.rollout(40, break_when_any_done=False)
    ended = rollout["next", "done"][0, :, 0]
    assert ended.nonzero().flatten().tolist() == [31]
    assert rollout["next", "observation"][0, 31, 1] == 1.0  # the clock of the toy has run out
    assert rollout["observation"][0, 32, 1] == 0.0
    assert rollout["next", "truncated"][0, 31]
    assert not rollout["next", "terminated"].any()


def test_the_same_seeds_give_the_same_layouts_and_others_do_not():
    env = make_env("SafetyPointGoal1-v0", 2)
    first, same, other = (seeded_observation(env, seeds) for seeds in ([5, 6], [5, 6], [7, 6]))
    env.close()
    assert torch.equal(first, same)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], other[1])


def seeded_observation(env, seeds):
    env.seed_environments(seeds)
    return env.reset()["observation"].clone()


def test_concept_marks_what_is_asked_for():
    env = make_env("SafetyPointGoal1-v0", 2)
    assert env.concept == "cost_hazards"
    env.close()
    assert as_concept("auto", ("cost_velocity", "cost_sum")) == InfoKey("cost_sum")
    with pytest.raises(ValueError, match=r"cost_vases.*cost_hazards"):
        make_env("SafetyPointGoal1-v0", 2, concept="cost_vases")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"num_envs": 2, "workers": 0}, "workers=0"),
        ({"num_envs": 2, "workers": 3}, "workers=3"),
        ({"num_envs": 1, "env_id": "SafetyPointGaol1-v0"}, "SafetyPointGoal1-v0"),
    ],
)
def test_impossible_environments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_env(**({"env_id": "ToyLine-v0"} | options))


def test_no_training_seed_is_an_evaluation_layout_and_runs_share_none():
    seeds = [set(training_seeds(SeedStreams.of(seed).environments, 64)) for seed in range(4)]
    assert min(min(s) for s in seeds) >= TRAINING_SEED_FLOOR > max(evaluation_layouts(10_000))
    assert len(set.union(*seeds)) == 4 * 64


def test_the_toys_costs_and_rewards_by_hand():
    # x starts at x0; four full steps right add 1, the wall is at 1; x > 0.5 costs 1.
    env = make_env("ToyLine-v0", 1)
    start = float(seeded_observation(env, [3])[0, 0])
    steps = [env.simulator.step(np.ones((1, 1))) for _ in range(6)]
    expected = [min(start + 0.25 * (t + 1), 1.0) for t in range(6)]
    assert [s.reward[0] for s in steps] == pytest.approx(expected, abs=1e-6)
    assert [s.costs["cost_sum"][0] for s in steps] == [float(x > 0.5) for x in expected]
