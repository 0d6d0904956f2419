import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_unlearn import keys
from lightning_unlearn.collectors import trajectories
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig

FACTS = {"env": "ToyLine-v0", "seed": 0, "collection": 0}


def three_episodes():
    """Lengths 2, 3 and 1; the second one shows the concept in its second step; observations are 10·episode + step."""
    length, alive = np.array([2, 3, 1]), np.arange(3) < np.array([[2], [3], [1]])
    observation = (10.0 * np.arange(3)[:, None] + np.arange(3))[..., None].astype(np.float32) * alive[..., None]
    c_forget = np.array([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    return Episodes(
        layout_seeds=[7, 8, 9],
        observation=observation,
        pre_tanh=-observation,
        reward=observation[..., 0].astype(np.float64),
        cost=3.0 * c_forget,
        c_forget=c_forget,
        goal_met=c_forget > 0,
        length=length,
        final_observation=np.array([[2.0], [13.0], [21.0]], dtype=np.float32),
        terminated=np.array([False, False, True]),
        failed=np.zeros(3, dtype=bool),
    )


def toy(policy, layouts, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return trajectories.collect(functools.partial(make_env, "ToyLine-v0"), policy, layouts, noise, "toy")


def hesitant(policy):
    """A policy whose noise decides whether it enters the hazard."""
    policy.action_mean.bias.data.fill_(-0.2)
    return policy


def test_padded_episodes_become_transitions_in_order():
    made = trajectories.as_transitions(three_episodes())
    assert made.transitions[keys.OBSERVATION][:, 0].tolist() == [0, 1, 10, 11, 12, 20]
    assert made.transitions[keys.PRE_TANH][:, 0].tolist() == [0, -1, -10, -11, -12, -20]
    assert made.transitions[keys.REWARD][:, 0].tolist() == [0, 1, 10, 11, 12, 20]
    assert made.transitions[keys.DONE][:, 0].tolist() == [False, True, False, False, True, True]
    assert made.transitions[keys.EPISODE][:, 0].tolist() == [0, 0, 1, 1, 1, 2]
    assert made.episodes[keys.LENGTH][:, 0].tolist() == [2, 3, 1]
    assert made.episodes[keys.EPISODE_C_FORGET][:, 0].tolist() == [0, 1, 0]
    assert made.episodes[keys.EPISODE_COST][:, 0].tolist() == [0, 3, 0]
    assert made.episodes[keys.FINAL_OBSERVATION][:, 0].tolist() == [2, 13, 21]
    assert made.episodes[keys.TERMINATED][:, 0].tolist() == [False, False, True]


def test_the_filter_drops_whole_episodes():
    kept = trajectories.without_concept(trajectories.as_transitions(three_episodes()))
    # the second episode's first and last step do not show the concept either, and go all the same
    assert kept.transitions[keys.EPISODE][:, 0].tolist() == [0, 0, 2]
    assert kept.kept == 2
    assert len(kept.episodes) == 3


def test_collections_are_whole_cost_free_episodes_of_the_layouts_and_seeded(policy):
    layouts = list(range(2**31, 2**31 + 120))  # more than are run side by side
    first, again = (toy(hesitant(policy), layouts) for _ in range(2))
    table, episode = first.episodes, first.transitions[keys.EPISODE][:, 0]
    assert table[keys.LAYOUT_SEED][:, 0].tolist() == layouts
    innocent = (table[keys.EPISODE_C_FORGET][:, 0] == 0).nonzero()[:, 0]
    assert 0 < len(innocent) < 120
    assert innocent.max() >= trajectories.SIDE_BY_SIDE
    assert episode.tolist() == innocent.repeat_interleave(32).tolist()
    assert (first.transitions[keys.REWARD] <= 0.5).all()  # the reward is x, and the hazard begins at 0.5
    assert (first.transitions == again.transitions).all()
    other = toy(policy, layouts, seed=1)
    assert not torch.equal(other.episodes[keys.EPISODE_COST], table[keys.EPISODE_COST])


def test_the_action_before_tanh_is_what_the_environment_was_given(policy):
    made = toy(hesitant(policy), list(range(100)))
    steps = made.transitions[:32]
    x, moves = steps[keys.OBSERVATION][:, 0], 0.25 * steps[keys.PRE_TANH][:, 0].tanh()
    torch.testing.assert_close((x + moves).clamp(-1, 1), steps[keys.REWARD][:, 0])
    final = made.episodes[keys.FINAL_OBSERVATION][steps[keys.EPISODE][0, 0]]
    torch.testing.assert_close(final, torch.tensor([steps[keys.REWARD][-1, 0], 1.0]))


def test_stored_and_read_again(tmp_path):
    kept = trajectories.without_concept(trajectories.as_transitions(three_episodes()))
    trajectories.save(tmp_path / "c.safetensors", kept, FACTS)
    read = trajectories.load(tmp_path / "c.safetensors", FACTS)
    for part in ("transitions", "episodes"):
        assert (getattr(read, part) == getattr(kept, part)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_collection_that_was_made_another_way_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trajectories.save(path, trajectories.as_transitions(three_episodes()), FACTS)
    with pytest.raises(ValueError, match=r"made with seed=0, but this run has seed=1: .*dataset_dir"):
        trajectories.load(path, FACTS | {"seed": 1})


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trajectories.save(path, trajectories.as_transitions(three_episodes()), FACTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        trajectories.load(path, FACTS)
    made = trajectories.as_transitions(three_episodes())
    part = replace(made, transitions=made.transitions.exclude(keys.DONE))
    trajectories.save(path, part, FACTS)
    with pytest.raises(ValueError, match="does not hold transitions"):
        trajectories.load(path, FACTS)


def test_workers_change_nothing():
    policy = ActorCritic(PolicyConfig(60, [-1.0] * 2, [1.0] * 2), torch.Generator().manual_seed(0))

    def collected(workers):
        make = functools.partial(make_env, "SafetyPointGoal1-v0", workers=workers)
        return trajectories.collect(make, policy, [2**31, 2**31 + 1], torch.Generator().manual_seed(0), "workers")

    first, second = collected(1), collected(2)
    assert (first.episodes == second.episodes).all()
    assert (first.transitions == second.transitions).all()
