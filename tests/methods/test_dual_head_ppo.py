import copy

import pytest
import torch

from lightning_unlearn import keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.losses.dual_ppo import dual_ppo_loss
from lightning_unlearn.losses.gaussian import gaussian_kl, kept_kl
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.methods.localized_concept import LocalizedConcept
from lightning_unlearn.seeding import SeedStreams, torch_generator


def built(cls=DualHeadPPO, **options):
    data = RolloutData("ToyLine-v0", 4)
    data.env.set_seed(0)
    method = cls("unsafe", **({"batch_size": 32} | ({"hidden_sizes": [8, 8]} if cls is DualHeadPPO else {}) | options))
    method.build(data)
    return method, RolloutCollector(data.env, method.policy, 64, torch.Generator().manual_seed(0)).rollout()


def reference_update(method, batch):
    """The update as textbooks have it: autograd, PyTorch's Adam and clipping, and GAE backwards step by step."""
    policy, following = method.policy, batch[keys.NEXT]
    optimizer = torch.optim.Adam(policy.parameters(), lr=method.lr)
    signal = torch.cat([following[keys.REWARD], following[keys.C_FORGET]], -1)
    with torch.no_grad():
        outputs = [policy(rows[keys.OBSERVATION]) for rows in (batch, following)]
    value, next_value = (torch.stack([out.reward_value, out.cost_value], -1) for out in outputs)
    advantage, running = torch.zeros_like(signal), torch.zeros_like(signal[:, 0])
    for t in reversed(range(signal.shape[1])):
        delta = signal[:, t] + method.gamma * next_value[:, t] * ~following[keys.TERMINATED][:, t] - value[:, t]
        running = delta + method.gamma * method.gae_lambda * ~following[keys.DONE][:, t] * running
        advantage[:, t] = running
    target = advantage + value
    units = target.flatten(0, 1).std(0, correction=0) if method.scale_critics else torch.ones(2)
    reward, cost = ((a - a.mean()) / a.std(correction=0) for a in advantage.unbind(-1))
    flat = {
        "advantage": reward - method.cost_weight * cost,
        **{key: batch[key] for key in (keys.OBSERVATION, keys.PRE_TANH, keys.LOG_PROB)},
        **{"target": target, "shows": following[keys.C_FORGET].squeeze(-1)},
    }
    flat = {key: value.flatten(0, 1) for key, value in flat.items()}
    order = torch_generator(SeedStreams.of(0).minibatches)
    for _ in range(method.ppo_epochs):
        for chosen in torch.randperm(len(flat["target"]), generator=order).split(method.batch_size):
            rows = {key: value[chosen] for key, value in flat.items()}
            out = policy(rows[keys.OBSERVATION])
            log_prob = policy.log_prob(out.mean, rows[keys.PRE_TANH])
            loss = dual_ppo_loss(
                log_prob,
                rows[keys.LOG_PROB].squeeze(-1),
                rows["advantage"],
                (out.reward_value / units[0], out.cost_value / units[1]),
                tuple((rows["target"] / units).unbind(-1)),
                policy.entropy(),
                clip_epsilon=method.clip_epsilon,
                value_coef=method.value_coef,
                entropy_coef=method.ent_coef,
            )
            total = loss.total
            if hasattr(method, "expert"):
                expert_mean = method.expert.mean(rows[keys.OBSERVATION])
                kl = gaussian_kl(out.mean, policy.std, expert_mean, method.expert.std)
                total = total + method.beta * kept_kl(kl, rows["shows"])
            if loss.approximate_kl > 1.5 * method.target_kl:
                return
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), method.max_grad_norm)
            optimizer.step()


def counted(method):
    """Stand in for the trainer, which asks for optimizers; returns the losses of the steps that are made."""
    method.configure_optimizers()
    steps, descend = [], method._descend

    def count(optimizer, loss, *rest):
        descend(optimizer, loss, *rest)
        steps.append(loss)

    method._descend = count
    return steps


@pytest.mark.parametrize(
    ("cls", "options", "written_out"),
    [
        (DualHeadPPO, {"scale_critics": True, "target_kl": 1e9}, True),
        (DualHeadPPO, {"target_kl": 1e-3}, True),
        (DualHeadPPO, {"critics": "separate", "target_kl": 1e9}, False),
        (LocalizedConcept, {"source": "zoo:unsafe.ToyLine-v0", "beta": 2.0, "target_kl": 1e9}, True),
    ],
)
def test_an_update_ends_with_the_weights_of_the_plain_loop(cls, options, written_out):
    method, batch = built(cls, ppo_epochs=3, lr=1e-3, **options)
    batch[keys.NEXT, keys.TERMINATED][:, 20] = batch[keys.NEXT, keys.DONE][:, 20] = True
    method.cost_weight = 0.7
    plain, start = copy.deepcopy(method), copy.deepcopy(method.policy)
    steps = counted(method)
    assert (method._network is not None) is written_out
    method.add_advantages(batch)
    method.update(batch)
    assert len(steps) == 3 * 8 if options["target_kl"] == 1e9 else 1 < len(steps) < 3 * 8
    reference_update(plain, batch)
    for (name, ours), theirs in zip(method.policy.named_parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert (method.policy.action_mean.weight - start.action_mean.weight).abs().max() > 1e-3


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
        flat = method.flat(batch)
        losses[scaled] = method.loss(method.policy(flat[keys.OBSERVATION]), flat)
    for name, key in (("reward_critic", keys.REWARD_TARGET), ("cost_critic", keys.COST_TARGET)):
        expected = getattr(losses[False], name) / batch[key].var(correction=0)
        torch.testing.assert_close(getattr(losses[True], name), expected)
    assert losses[True].policy == losses[False].policy


def test_every_transition_is_seen_once_an_epoch():
    method, batch = built(ppo_epochs=2)
    method.add_advantages(batch)
    seen = [m[keys.OBSERVATION].clone() for m in method._shuffled(method.flat(batch), 2)]
    assert len(seen) == 2 * 256 // 32
    epoch = torch.cat(seen[:8])
    flat = batch[keys.OBSERVATION].flatten(0, 1)
    assert torch.equal(epoch.sort(0).values, flat.sort(0).values)
    assert not torch.equal(epoch, torch.cat(seen[8:]))


def test_the_update_stops_before_the_step_that_would_go_on_too_far():
    method, batch = built(ppo_epochs=6, target_kl=1e-4, lr=0.05)
    steps = counted(method)
    method.add_advantages(batch)
    losses = method.update(batch)
    # the first minibatch is taken (log-ratio 0), the second one sees a moved policy and stops
    assert (len(losses), len(steps)) == (2, 1)


def test_without_early_stop_all_passes_are_made():
    method, batch = built(ppo_epochs=3, target_kl=1e9)
    steps = counted(method)
    method.add_advantages(batch)
    assert len(method.update(batch)) == len(steps) == 3 * 8


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("batch_size", 0), ("ppo_epochs", 0), ("gamma", 1.5), ("clip_epsilon", -0.1), ("unsafe_updates", -1)],
)
def test_impossible_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"model.{name}={value}"):
        DualHeadPPO("unsafe", **{name: value})
