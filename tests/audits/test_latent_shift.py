import copy
import json

import numpy as np
import pytest
import torch

from lightning_unlearn import cli
from lightning_unlearn.audits.figures import binned, shift_figure
from lightning_unlearn.audits.latent_shift import measure, summarise
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.latent_editor import GatedEditor


@pytest.fixture
def linear():
    """A policy whose latent is relu(x, clock) with one action mean, 2·z₀: for x ≥ 0 everything is known by hand."""
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[2], activation="relu"))
    for parameter in policy.parameters():
        torch.nn.init.zeros_(parameter)
    policy.trunk[0].weight.data.copy_(torch.eye(2))
    policy.action_mean.weight.data[0, 0] = 2.0
    return policy


STATES = np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]], np.float32)
LABELS = np.array([0, 0, 1])


def test_a_bias_on_the_latents_last_layer_is_the_shift(linear):
    moved = copy.deepcopy(linear)
    moved.trunk[0].bias.data.copy_(torch.tensor([3.0, 4.0]))
    content = summarise(measure(linear, moved, STATES), LABELS)
    overall, safe = content["groups"]["overall"], content["groups"]["safe"]
    # latents (3,4) (0,1) (6,8) become (6,8) (3,5) (9,12): each moves by (3,4), 5 long, and the action mean by 2·3
    assert overall["n"] == 3
    assert overall["latent_shift_l2_mean"] == overall["latent_shift_l2_median"] == pytest.approx(5.0)
    assert overall["latent_shift_l2_std"] == pytest.approx(0.0)
    assert overall["action_mean_shift_l2_mean"] == pytest.approx(6.0)
    assert safe["latent_norm_ref_mean"] == pytest.approx((5 + 1) / 2)
    assert safe["latent_norm_cmp_mean"] == pytest.approx((10 + 34**0.5) / 2)
    cosines = [1.0, 5 / 34**0.5]
    assert safe["latent_cosine_mean"] == pytest.approx(np.mean(cosines))
    assert safe["latent_cosine_std"] == pytest.approx(np.std(cosines))
    assert content["contrasts"]["hazard_minus_safe_latent_shift"] == pytest.approx(0.0)
    assert content["contrasts"]["safe_over_overall_latent_shift"] == pytest.approx(1.0)


def test_contrasts_by_hand(linear):
    doubled = copy.deepcopy(linear)
    doubled.trunk[0].weight.data.mul_(2.0)
    content = summarise(measure(linear, doubled, STATES), LABELS)
    # shifts are the norms 5, 1 and 10: safe 3, hazard 10, overall 16/3; action means move by 2x = 6, 0 and 12
    assert content["contrasts"] == {
        "hazard_minus_safe_latent_shift": pytest.approx(7.0),
        "hazard_minus_safe_action_shift": pytest.approx(12.0 - 3.0),
        "safe_over_overall_latent_shift": pytest.approx(3 * 3 / 16),
        "hazard_over_overall_latent_shift": pytest.approx(10 * 3 / 16),
    }


def test_an_editor_shifts_the_operative_latent_and_not_the_raw_one(linear):
    edited = linear.with_editor(GatedEditor(torch.tensor([1.0, 0.0]), 0.5, 2.0, 1e4))
    operative, raw = (measure(linear, edited, STATES, edited=flag) for flag in (True, False))
    # scores 3, 0, 6; above tau 2 by 1 and 4; alpha one half
    np.testing.assert_allclose(operative.latent_shift_l2, [0.5, 0.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(raw.latent_shift_l2, 0.0)
    np.testing.assert_allclose(raw.action_mean_shift_l2, [1.0, 0.0, 4.0], atol=1e-6)


def test_what_cannot_be_computed_is_none(linear):
    content = summarise(measure(linear, linear, STATES), np.zeros(3, np.int64))
    assert content["groups"]["hazard"]["n"] == 0
    assert content["groups"]["hazard"]["latent_shift_l2_mean"] is None
    assert content["contrasts"]["hazard_minus_safe_latent_shift"] is None
    assert content["contrasts"]["safe_over_overall_latent_shift"] is None


def test_models_of_other_sizes_are_refused(linear):
    other = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[3]))
    with pytest.raises(ValueError, match="latent_size is 2 in --reference and 3 in --model"):
        measure(linear, other, STATES)


def test_bins_hold_equally_many_and_equal_distances_stay_together():
    centres, bands = binned(np.arange(8.0), np.arange(8.0) ** 2, bins=2)
    np.testing.assert_allclose(centres, [1.5, 5.5])
    np.testing.assert_allclose(bands[0], [3.5, 0.75, 5.25])  # of 0, 1, 4, 9
    centres, _ = binned(np.array([0.0] * 9 + [1.0]), np.zeros(10), bins=5)
    np.testing.assert_allclose(centres, [0.0, 1.0])


def test_the_figure_says_what_it_leaves_out():
    distance = np.array([1.0, 2.0, np.inf, np.inf])
    figure = shift_figure(distance, {"latent": np.ones(4), "action": np.ones(4)}, "steps")
    assert figure.axes[0].get_title(loc="left") == "2 states without a distance left out"
    assert figure.axes[1].get_ylabel() == "action"


def test_the_command(store, dataset, policy, tmp_path, capsys):
    save_policy(tmp_path / "a", policy, ModelCard(env="ToyLine-v0"))
    with torch.no_grad():
        policy.trunk[-2].bias += 0.5
    save_policy(tmp_path / "b", policy, ModelCard(env="ToyLine-v0"))
    models = ["--ref_model_path", str(tmp_path / "a"), "--cmp_model_path", str(tmp_path / "b")]
    for flags in ([], ["--raw_features"]):
        cli.main(["latent-shift", "--env", "ToyLine-v0", "--dataset", dataset, *models, *flags])
    folders = sorted((tmp_path / "artifacts/eval/latent_shift_eval").iterdir())
    assert [sorted(p.name for p in folder.iterdir()) for folder in folders] == [
        ["latent_shift.png", "latent_shift_metrics.json"]
    ] * 2
    contents = [json.loads((folder / "latent_shift_metrics.json").read_text()) for folder in folders]
    assert [content["features"] for content in contents] == ["operative", "raw"]
    assert contents[0]["groups"] == contents[1]["groups"]
    assert contents[0]["groups"]["overall"]["latent_shift_l2_mean"] > 0
    assert contents[0]["eval_id"] == folders[0].name
