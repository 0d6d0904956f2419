import pytest
import torch

from lightning_unlearn import fit, keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.methods.localized_concept import LocalizedConcept
from lightning_unlearn.tracking import registry

CHAIN = ["-c", "configs/base.yaml", "-c", "configs/env/point_goal1.yaml"]
SMOKE = ["-c", "configs/smoke.yaml", "--updates", "2", "--save_points", "2"]
EXPERT = "zoo:unsafe.ToyLine-v0"


def built(cls=LocalizedConcept, **options):
    data = RolloutData("ToyLine-v0", 4)
    data.env.set_seed(0)
    method = cls("localized_concept", EXPERT, **options)
    method.build(data)
    batch = RolloutCollector(data.env, method.policy, 64, torch.Generator().manual_seed(0)).rollout()
    return method, batch


def moved(method):
    """As after some training: means off by 0.3, log-std down by 0.1."""
    method.policy.action_mean.bias.data += 0.3
    method.policy.log_std.data -= 0.1
    return method


def test_the_penalty_is_beta_times_the_kl_over_transitions_that_do_not_show_the_concept():
    method, batch = built(beta=0.5)
    moved(method).add_advantages(batch)
    flat = method.flat(batch)
    output = method.policy(flat[keys.OBSERVATION])
    localized, plain = method.loss(output, flat), DualHeadPPO.loss(method, output, flat)
    p, q = (
        torch.distributions.Normal(policy.mean(flat[keys.OBSERVATION]), policy.std)
        for policy in (method.policy, method.expert)
    )
    kept = flat[keys.C_FORGET] == 0
    assert 0 < kept.sum() < len(kept)
    kl = torch.distributions.kl_divergence(p, q).sum(-1)[kept].mean()
    torch.testing.assert_close(localized.locality_kl, kl)
    torch.testing.assert_close(localized.total, plain.total + 0.5 * kl)


def test_a_minibatch_by_hand():
    # Expert mean 0 and std σ, policy mean 2σ and the same std: KL = (2σ)²/(2σ²) = 2 wherever C_forget is 0.
    method, batch = built(beta=1.0)
    method.add_advantages(batch)
    flat = {key: value[:3] for key, value in method.flat(batch).items()}
    flat[keys.C_FORGET] = torch.tensor([0.0, 1.0, 0.0])
    output = method.policy(flat[keys.OBSERVATION])
    away = torch.tensor([[2.0], [1e3], [2.0]]) * method.expert.std
    assert method.loss(output, flat | {keys.EXPERT_MEAN: output.mean - away}).locality_kl.item() == pytest.approx(2.0)


def test_the_expert_stays_as_it_was_and_starts_at_kl_zero():
    method, batch = built()
    method.add_advantages(batch)
    flat = method.flat(batch)
    loss = method.loss(method.policy(flat[keys.OBSERVATION]), flat)
    assert loss.locality_kl.item() == pytest.approx(0.0, abs=1e-6)
    assert not any(p.requires_grad for p in method.expert.parameters())
    before = method.expert.action_mean.bias.clone()
    moved(method)
    assert torch.equal(method.expert.action_mean.bias, before)
    optimised = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in method.expert.parameters()}


def test_the_experts_mean_is_made_once_a_rollout(monkeypatch):
    method, batch = built(batch_size=32)
    method.add_advantages(batch)
    calls = []
    original = method.expert.mean
    monkeypatch.setattr(method.expert, "mean", lambda observation: calls.append(1) or original(observation))
    assert len(list(method._shuffled(method.flat(batch), 6))) == 6 * 8
    assert len(calls) == 1


def test_beta_zero_is_concept_unlearning_bit_for_bit(store):
    def weights(name, *more):
        run = fit.train([*CHAIN, "-c", f"configs/method/{name}.yaml", *SMOKE, *more])
        return registry.load_policy(run.saved[2]).policy.state_dict()

    concept = weights("concept")
    localized, held = (weights("localized_concept", "--model.beta", beta) for beta in ("0.0", "5.0"))
    assert all(torch.equal(concept[name], localized[name]) for name in concept)
    assert not torch.equal(concept["action_mean.weight"], held["action_mean.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "model.beta=-0.1"),
        ({"source": None}, "model.source=null.*name a model"),
        ({"lr": 0}, "model.lr"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LocalizedConcept("localized_concept", **options)
