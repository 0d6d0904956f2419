import pytest
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors.replay import ReplayBuffer, macro_transitions

E, T = 2, 6


def rollout(first=0, ends=()):
    """Transitions numbered from `first`, environment by environment; `ends` are (environment, step, flag)."""
    number = torch.arange(first, first + E * T, dtype=torch.float32).reshape(E, T, 1)
    flags = {key: torch.zeros(E, T, 1, dtype=torch.bool) for key in (keys.TERMINATED, keys.FAILED, keys.DONE)}
    for env, step, key in ends:
        flags[keys.DONE][env, step] = True
        if key != keys.TRUNCATED:
            flags[key][env, step] = True
    following = {keys.OBSERVATION: number + 100, keys.REWARD: 2 * number, keys.C_FORGET: 3 * number, **flags}
    return TensorDict({keys.OBSERVATION: number, keys.ACTION: -number, keys.NEXT: following}, [E, T])


def test_macro_transitions_of_one_step_are_transitions():
    rows = macro_transitions(rollout(), 1, 0.5)
    number = torch.arange(E * T, dtype=torch.float32)
    assert torch.equal(rows[keys.OBSERVATION][:, 0], number)
    assert torch.equal(rows[keys.ACTION][:, 0], -number)
    assert torch.equal(rows[keys.NEXT_OBSERVATION][:, 0], number + 100)
    assert torch.equal(rows[keys.REWARD], 2 * number)
    assert torch.equal(rows[keys.C_FORGET], 3 * number)
    assert torch.equal(rows[keys.DISCOUNT], torch.full((E * T,), 0.5))


def test_macro_transitions_of_three_steps_by_hand():
    # γ = 0.5. Environment 0 is left alone; in 1, an episode is cut after its step 1 and another ends in step 4.
    rows = macro_transitions(rollout(ends=[(1, 1, keys.TRUNCATED), (1, 4, keys.TERMINATED)]), 3, 0.5)
    assert rows[keys.OBSERVATION][:, 0].tolist() == [0, 3, 6, 8, 9, 11]
    assert rows[keys.NEXT_OBSERVATION][:, 0].tolist() == [102, 105, 107, 108, 110, 111]
    sums = [0 + 1 / 2 + 2 / 4, 3 + 4 / 2 + 5 / 4, 6 + 7 / 2, 8, 9 + 10 / 2, 11]
    assert rows[keys.REWARD].tolist() == pytest.approx([2 * s for s in sums])
    assert rows[keys.C_FORGET].tolist() == pytest.approx([3 * s for s in sums])
    assert rows[keys.DISCOUNT].tolist() == pytest.approx([0.125, 0.125, 0.25, 0.5, 0.0, 0.5])


def everything(replay):
    return replay.draw(500, torch.Generator().manual_seed(0))


def test_what_is_drawn_was_added_and_stays_together():
    replay = ReplayBuffer(100)
    replay.add(macro_transitions(rollout(), 1, 0.9))
    drawn = everything(replay)
    number = drawn[keys.OBSERVATION][:, 0]
    assert sorted(set(number.tolist())) == list(range(12))
    assert torch.equal(drawn[keys.NEXT_OBSERVATION][:, 0], number + 100)
    assert torch.equal(drawn[keys.ACTION][:, 0], -number)
    assert torch.equal(drawn[keys.REWARD], 2 * number)
    assert torch.equal(drawn[keys.C_FORGET], 3 * number)


def test_the_newest_take_the_place_of_the_oldest():
    replay = ReplayBuffer(16)
    replay.add(macro_transitions(rollout(0), 1, 0.9))
    assert len(replay) == 12
    replay.add(macro_transitions(rollout(12), 1, 0.9))
    assert len(replay) == 16
    assert sorted(set(everything(replay)[keys.OBSERVATION][:, 0].tolist())) == list(range(8, 24))


def test_the_state_is_all_that_draws_depend_on_and_no_more():
    replay, restored = ReplayBuffer(16), ReplayBuffer(16)
    replay.add(macro_transitions(rollout(0), 1, 0.9))
    state = replay.state_dict()
    assert sum(row.untyped_storage().nbytes() for row in state["rows"].values()) == 12 * 6 * 4
    replay.add(macro_transitions(rollout(12), 1, 0.9))
    restored.load_state_dict(state)
    restored.add(macro_transitions(rollout(12), 1, 0.9))
    for key, row in everything(replay).items():
        assert torch.equal(row, everything(restored)[key])


def test_a_full_ring_goes_on_where_it_was():
    replay, restored = ReplayBuffer(16), ReplayBuffer(16)
    for first in (0, 12):
        replay.add(macro_transitions(rollout(first), 1, 0.9))
    restored.load_state_dict(replay.state_dict())
    for ring in (replay, restored):
        ring.add(macro_transitions(rollout(24), 1, 0.9))
    for key, row in everything(replay).items():
        assert torch.equal(row, everything(restored)[key])
