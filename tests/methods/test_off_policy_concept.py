import copy

import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import checkpoints, keys, training
from lightning_unlearn.audits.policy_suite import evaluate_in
from lightning_unlearn.collection.collector import RolloutCollector
from lightning_unlearn.collection.replay import decisions
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.methods.off_policy_concept import MOST_BYTES, OffPolicyConcept

TOY = "ToyLine-v0"
EXPERT = f"zoo:unsafe.{TOY}"
SMALL = [
    *("--n_envs", "4", "--horizon", "64", "--data.workers", "1", "--model.action_repeat", "2"),
    *("--model.warm_up", "0.17", "--model.critic_steps", "200", "--model.steps", "60", "--model.batch_size", "64"),
    *("--model.critic_sizes", "[32,32]", "--lr", "1e-3"),
]


def built(**options):
    env = make_env(TOY, 4)
    env.set_seed(0)
    method = OffPolicyConcept("off_policy_concept", EXPERT, **options)
    method.build(env)
    return method, RolloutCollector(env, method.policy, 64, torch.Generator().manual_seed(0), hold=2).rollout()


def minibatch_of(method, batch):
    method.replay.add(decisions(batch, 2, method.gamma))
    return method.replay.draw(50, torch.Generator().manual_seed(1))


def test_the_expert_is_brought_in_from_the_ends_of_the_tanh():
    method, batch = built(mean_scale=0.25, exploration_std=0.4)
    expert, observation = lu.load_policy(EXPERT), batch[keys.OBSERVATION].flatten(0, 1)
    torch.testing.assert_close(method.policy.mean(observation), 0.25 * expert.mean(observation))
    torch.testing.assert_close(method.policy.std, torch.tensor([0.4]))


def test_the_critics_targets_are_those_of_the_target_critics_and_the_policys_own_action():
    method, batch = built(target_noise=0.0)
    method.target_values.biases[-1].data += torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    rows = minibatch_of(method, batch)
    following = method.target_values(
        rows[keys.NEXT_OBSERVATION], method.policy.act(rows[keys.NEXT_OBSERVATION])
    ).detach()
    reward = rows[keys.REWARD] + rows[keys.DISCOUNT] * following[:2].min(0).values
    cost = rows[keys.C_FORGET] + rows[keys.DISCOUNT] * following[2:].max(0).values
    found = method.values(rows[keys.OBSERVATION], rows[keys.ACTION])
    error = torch.cat([found[:2] - reward, found[2:] - cost])
    by_hand = torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5).mean(-1).sum()
    torch.testing.assert_close(method.critic_loss(rows).total, by_hand)


def test_noisy_actions_stay_inside_the_bounds():
    method, _ = built(target_noise=0.5)
    noisy = method._noisy(torch.zeros(1000, 1))
    assert noisy.abs().max() <= 1.0
    assert 0.4 < noisy.std() < 0.6


def test_the_policys_gradient_reaches_the_weights_that_are_trained():
    method, batch = built()
    method.cost_weight = 0.5
    method.actor_loss(minibatch_of(method, batch)).policy.backward()
    moved = {name for name, weight in method.policy.named_parameters() if weight.grad is not None}
    assert moved == {name for name, _ in method.policy.named_parameters() if name.startswith(("trunk", "action_mean"))}
    assert {id(weight) for weight in method._trained} == {
        id(weight) for name, weight in method.policy.named_parameters() if name in moved
    }


def test_it_forgets_the_hazard_and_keeps_what_the_expert_was_trained_for():
    expert = lu.load_policy(EXPERT)
    before = copy.deepcopy(expert.state_dict())
    more = ["--pid.kp", "0", "--pid.lambda_init", "1.0", "--average", "null"]
    repaired = lu.repair(expert, TOY, "off_policy_concept", updates=12, options=[*SMALL, *more])
    assert all(torch.equal(weight, before[name]) for name, weight in expert.state_dict().items())
    env = make_env(TOY, 20)
    old, new = (evaluate_in(env, policy, list(range(20))).episodes for policy in (expert, repaired))
    assert new.episode_cost.mean() < 0.3 * old.episode_cost.mean()
    assert new.episode_return.mean() > 0.6 * 16  # the best safe one sits at 0.5 for 32 steps


def test_while_the_expert_is_watched_nothing_is_learnt(monkeypatch):
    seen = []
    begin = OffPolicyConcept._begin

    def look(method):
        seen.append((method.trainer.current_epoch + 1, len(method.replay), copy.deepcopy(method.policy.state_dict())))
        begin(method)

    monkeypatch.setattr(OffPolicyConcept, "_begin", look)
    lu.repair(lu.load_policy(EXPERT), TOY, "off_policy_concept", 5, [*SMALL, "--model.warm_up", "0.6"])
    ((update, decided, weights),) = seen
    assert (update, decided) == (3, 3 * 4 * 32)
    scaled = built()[0].policy.state_dict()
    assert all(torch.equal(weight, scaled[name]) for name, weight in weights.items())


def test_a_wrapped_network_is_trained_as_it_is():
    network = torch.nn.Linear(2, 1)
    for squash in ("tanh", "none"):
        policy = lu.wrap(network, TOY, std=1.0, squash=squash)
        repaired = lu.repair(policy, TOY, "off_policy_concept", 4, [*SMALL, "--model.mean_scale", "1"])
        assert not torch.equal(repaired.trunk.weight, network.weight)
    with pytest.raises(ValueError, match=r"model.mean_scale=0.3 cannot scale a wrapped network: use 1"):
        lu.repair(lu.wrap(network, TOY, std=1.0, squash="tanh"), TOY, "off_policy_concept", 4, SMALL)


def test_a_checkpoint_has_room_for_the_networks_beside_the_largest_replay():
    networks = sum(weight.nbytes for weight in built()[0].state_dict().values())
    assert MOST_BYTES + 10 * networks < checkpoints.MAX_BYTES  # weights, and what Adam keeps of each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.capacity", "100"], "model.capacity=100"),
        (["--model.capacity", "90000000"], "model.capacity=90000000"),
        (["--model.steps", "1"], "model.steps=1"),
        (["--model.critic_sizes", "[0]"], "model.critic_sizes=0"),
        (["--model.exploration_std", "5"], "model.exploration_std=5"),
        (["--model.action_repeat", "3"], "data.horizon=64 is no multiple of model.action_repeat=3"),
        (["--data.collector", "stock"], "data.collector=stock cannot hold an action"),
        (["--model.source", "null"], "model.source=null"),
        (["--model.mean_scale", "0"], "model.mean_scale=0"),
        (["--model.target_rate", "2"], "model.target_rate=2"),
    ],
)
def test_what_is_impossible_is_refused_by_name(store, options, message):
    chain = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/off_policy_concept.yaml", "--env", TOY]
    with pytest.raises(ValueError, match=message):
        training.train([*chain, *SMALL, "--model.source", EXPERT, *options])
