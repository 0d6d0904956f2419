import copy
from dataclasses import replace

import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import fit, keys
from lightning_unlearn.audits.policy_comparison import evaluate_in
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.collectors.replay import macro_transitions
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.losses.td3 import actor_loss
from lightning_unlearn.methods.off_policy_concept import MOST_BYTES, SIZE, OffPolicyConcept
from lightning_unlearn.policies.mean_scale import MEAN_SIZE
from lightning_unlearn.tracking import checkpoints

TOY = "ToyLine-v0"
EXPERT = f"zoo:unsafe.{TOY}"
SMALL = [
    *("--n_envs", "4", "--horizon", "64", "--data.workers", "1", "--model.action_repeat", "2"),
    *("--model.warm_up", "0.17", "--model.critic_steps", "200", "--model.steps", "60", "--model.batch_size", "64"),
    *("--model.critic_sizes", "[32,32]", "--lr", "1e-3", "--model.mean_scale", "0.3"),
    *("--cost_limit", "1", "--pid.return_floor", "null"),
]


def built(**options):
    data = RolloutData(TOY, num_envs=4, horizon=64)
    data.env.set_seed(0)
    method = OffPolicyConcept("off_policy_concept", EXPERT, **options)
    method.build(data)
    return method, RolloutCollector(
        data.env, method.policy, 64, torch.Generator().manual_seed(0), action_repeat=2
    ).rollout()


def minibatch_of(method, batch):
    method.replay.add(macro_transitions(batch, 2, method.gamma))
    return method.replay.draw(50, torch.Generator().manual_seed(1))


def test_the_experts_means_are_scaled_and_its_standard_deviation_is_set():
    method, batch = built(mean_scale=0.25, exploration_std=0.4)
    expert, observation = lu.load_policy(EXPERT), batch[keys.OBSERVATION].flatten(0, 1)
    torch.testing.assert_close(method.policy.mean(observation), 0.25 * expert.mean(observation))
    torch.testing.assert_close(method.policy.std, torch.tensor([0.4]))


def test_the_critics_targets_are_those_of_the_target_critics_and_the_policys_own_action():
    method, batch = built(target_noise=0.0)
    method._units = (2.0, 0.5)
    method.target_values.biases[-1].data += torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    rows = minibatch_of(method, batch)
    following = method.target_values(
        rows[keys.NEXT_OBSERVATION], method.policy.act(rows[keys.NEXT_OBSERVATION])
    ).detach()
    reward = 2.0 * rows[keys.REWARD] + rows[keys.DISCOUNT] * following[:2].min(0).values
    cost = 0.5 * rows[keys.C_FORGET] + rows[keys.DISCOUNT] * following[2:].max(0).values
    torch.testing.assert_close(method.targets(rows), torch.stack([reward, reward, cost, cost]))


def test_a_step_of_the_critics_goes_down_their_loss_and_the_targets_follow():
    method, batch = built()
    method.configure_optimizers()
    rows, before = minibatch_of(method, batch), copy.deepcopy(method.target_values)
    losses = [method._fit_critics(rows) for _ in range(20)]
    assert losses[-1].total < 0.7 * losses[0].total
    for follows, old, leads in zip(
        method.target_values.parameters(), before.parameters(), method.values.parameters(), strict=True
    ):
        assert 0 < (follows - old).abs().max() < (leads - old).abs().max()


@pytest.mark.parametrize("squash", ["tanh", "scale"])
def test_a_step_of_the_policy_is_that_of_autograd(squash):
    method, batch = built()
    method.policy.config = replace(method.policy.config, squash=squash)
    method.cost_weight = 0.5
    rows = minibatch_of(method, batch)
    observation = rows[keys.OBSERVATION]
    assert method.policy.mean(observation).abs().max() < 1.0 or squash == "tanh"
    loss = actor_loss(method.values(observation, method.policy.act(observation)), 0.5).policy
    by_autograd = torch.autograd.grad(loss, method._actor_parameters)
    method.configure_optimizers()
    method._improve(rows)
    found = [weight.grad for weight in method._actor_parameters]
    torch.testing.assert_close(found, list(by_autograd), atol=1e-6, rtol=1e-4)


def test_a_clipped_action_moves_inward_and_not_outward():
    method, _ = built()
    method.policy.config = replace(method.policy.config, squash="none")
    action, by_action = torch.tensor([[1.0], [1.0], [-1.0], [-1.0], [0.5]]), torch.tensor([[1.0], [-1.0]] * 2 + [[1.0]])
    assert method._slope(action, by_action).tolist() == [[1.0], [0.0], [0.0], [1.0], [1.0]]


def test_units_are_those_of_the_experts_own_rollouts(monkeypatch):
    seen = {}
    begin = OffPolicyConcept._begin

    def look(method):
        begin(method)
        size = method.policy.mean(method.replay.observations).square().mean().sqrt().item()
        seen.update(size=size, units=method._units, measured=method.expert_measures, weight=method.cost_weight)

    monkeypatch.setattr(OffPolicyConcept, "_begin", look)
    more = ["--model.mean_scale", "null", "--model.gamma", "0.98"]
    expert = lu.load_policy(EXPERT)
    with torch.no_grad():
        expert.action_mean.weight.mul_(50.0)
    lu.repair(expert, TOY, "off_policy_concept", 4, [*SMALL, *more])
    assert seen["size"] == pytest.approx(MEAN_SIZE, rel=0.1)  # of the first rollout, exactly; here of two
    measured = seen["measured"]
    assert measured.episode_length == 32  # every episode of the toy
    expected = (SIZE * 0.02 / measured.reward_size, SIZE * 0.02 / measured.c_forget)
    assert seen["units"] == pytest.approx(expected)
    assert seen["weight"] > 0.0


def test_noisy_actions_stay_inside_the_bounds():
    method, _ = built(target_noise=0.5)
    noisy = method._noisy(torch.zeros(1000, 1))
    assert noisy.abs().max() <= 1.0
    assert 0.4 < noisy.std() < 0.6


def test_only_the_weights_that_act_are_trained():
    method, _ = built()
    acting = {id(w) for name, w in method.policy.named_parameters() if name.startswith(("trunk", "action_mean"))}
    assert {id(weight) for weight in method._actor_parameters} == acting


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
    scaled = built(mean_scale=0.3)[0].policy.state_dict()
    assert all(torch.equal(weight, scaled[name]) for name, weight in weights.items())


def test_critics_do_not_pass_over_few_decisions_for_ever(monkeypatch):
    steps = []
    monkeypatch.setattr(OffPolicyConcept, "_fit_critics", lambda method, minibatch: steps.append(1))
    method, batch = built(batch_size=256)
    method.replay.add(macro_transitions(batch, 2, method.gamma))  # 4 environments of 32
    method._begin()
    assert len(steps) == 160 * 128 // 256


def test_a_wrapped_network_is_trained_as_it_is():
    network = torch.nn.Linear(2, 1)
    for squash in ("tanh", "none"):
        policy = lu.wrap(network, TOY, std=1.0, squash=squash)
        repaired = lu.repair(policy, TOY, "off_policy_concept", 4, [*SMALL, "--model.mean_scale", "1"])
        assert not torch.equal(repaired.trunk.weight, network.weight)
    with pytest.raises(ValueError, match=r"model.mean_scale=0.3 cannot scale a wrapped network: use 1"):
        lu.repair(lu.wrap(network, TOY, std=1.0, squash="tanh"), TOY, "off_policy_concept", 4, SMALL)


@pytest.mark.parametrize("noiseless", [0.0, 0.3, 0.5, 1.0])
def test_the_environments_that_are_judged_are_those_that_act_without_noise(noiseless):
    method, _ = built(noiseless=noiseless)
    batch = method.experience().gather()
    acts_by_mean = batch[keys.PRE_TANH].isclose(method.policy.mean(batch[keys.OBSERVATION]))[:, 0, 0]
    judged = torch.arange(4)[method.measured_envs]
    assert judged.tolist() == (acts_by_mean.nonzero().flatten().tolist() or [0, 1, 2, 3])
    assert int(acts_by_mean.sum()) == round(4 * noiseless)


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
        (["--model.source", "null"], "model.source=null"),
        (["--model.mean_scale", "0"], "model.mean_scale=0"),
        (["--model.target_rate", "2"], "model.target_rate=2"),
        (["--model.gamma", "1"], "model.gamma=1.0 is not possible: use a number from 0 up to, not including, 1"),
    ],
)
def test_what_is_impossible_is_refused_by_name(store, options, message):
    chain = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/off_policy_concept.yaml", "--env", TOY]
    with pytest.raises(ValueError, match=message):
        fit.train([*chain, *SMALL, "--model.source", EXPERT, *options])
