import pytest
import torch

from lightning_unlearn import keys
from lightning_unlearn.collection.collector import RolloutCollector
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO


def built(**options):
    env = make_env("ToyLine-v0", 4)
    env.set_seed(0)
    method = DualHeadPPO("unsafe", **({"batch_size": 32, "hidden_sizes": [8, 8]} | options))
    method.build(env)
    return method, RolloutCollector(env, method.policy, 64, torch.Generator().manual_seed(0)).rollout()


def descend_plainly(method):
    """Stand in for the trainer's optimizer, so that `update` can be called on its own."""
    optimizer = torch.optim.SGD(method.policy.parameters(), lr=0.5)
    steps = []

    def descend(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append(loss.item())

    method._descend = descend
    return steps


def test_the_toys_truncations_are_bootstrapped_with_the_final_observation():
    method, batch = built()
    method.add_advantages(batch)
    values = method.policy(batch[keys.NEXT, keys.OBSERVATION][:, 31]).reward_value
    reward, value = batch[keys.NEXT, keys.REWARD][:, 31, 0], batch[keys.REWARD_VALUE][:, 31, 0]
    # an episode's last advantage is its δ: nothing of the next episode leaks in
    torch.testing.assert_close(batch[keys.REWARD_ADVANTAGE][:, 31, 0], reward + 0.99 * values - value)


def test_a_failed_simulator_is_not_bootstrapped():
    method, batch = built()
    batch[keys.NEXT, keys.FAILED][:, 31] = True
    method.add_advantages(batch)
    reward, value = batch[keys.NEXT, keys.REWARD][:, 31, 0], batch[keys.REWARD_VALUE][:, 31, 0]
    torch.testing.assert_close(batch[keys.REWARD_ADVANTAGE][:, 31, 0], reward - value)


def test_lambda_moves_the_advantage_by_the_normalised_cost_advantage():
    method, batch = built()
    method.add_advantages(batch)
    free = batch[keys.ADVANTAGE].clone()
    method.cost_weight = 2.0
    method.add_advantages(batch)
    cost = batch[keys.COST_ADVANTAGE]
    expected = free - 2.0 * (cost - cost.mean()) / cost.std(correction=0)
    torch.testing.assert_close(batch[keys.ADVANTAGE], expected)


def test_scaled_critics_errors_count_in_units_of_their_targets_deviation():
    losses = {}
    for scaled in (False, True):
        method, batch = built(scale_critics=scaled)
        batch[keys.NEXT, keys.C_FORGET] *= 20.0
        method.add_advantages(batch)
        losses[scaled] = method.loss(method.flat(batch))
    for name, key in (("reward_critic", keys.REWARD_TARGET), ("cost_critic", keys.COST_TARGET)):
        expected = getattr(losses[False], name) / batch[key].var(correction=0)
        torch.testing.assert_close(getattr(losses[True], name), expected)
    assert losses[True].policy == losses[False].policy


def test_every_transition_is_seen_once_an_epoch():
    method, batch = built(ppo_epochs=2)
    method.add_advantages(batch)
    seen = [m[keys.OBSERVATION] for m in method._minibatches(batch)]
    assert len(seen) == 2 * 256 // 32
    epoch = torch.cat(seen[:8])
    flat = batch[keys.OBSERVATION].flatten(0, 1)
    assert torch.equal(epoch.sort(0).values, flat.sort(0).values)
    assert not torch.equal(epoch, torch.cat(seen[8:]))


def test_the_update_stops_before_the_step_that_would_go_on_too_far():
    method, batch = built(ppo_epochs=6, target_kl=1e-4)
    steps = descend_plainly(method)
    method.add_advantages(batch)
    losses = method.update(batch)
    # the first minibatch is taken (log-ratio 0), the second one sees a moved policy and stops
    assert (len(losses), len(steps)) == (2, 1)


def test_without_early_stop_all_passes_are_made():
    method, batch = built(ppo_epochs=3, target_kl=1e9)
    steps = descend_plainly(method)
    method.add_advantages(batch)
    assert len(method.update(batch)) == len(steps) == 3 * 8


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("batch_size", 0), ("ppo_epochs", 0), ("gamma", 1.5), ("clip_epsilon", -0.1), ("unsafe_updates", -1)],
)
def test_impossible_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"model.{name}={value}"):
        DualHeadPPO("unsafe", **{name: value})
