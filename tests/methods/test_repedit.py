import copy
import re

import pytest
import torch

from lightning_unlearn import keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.losses import latent_directions as directions
from lightning_unlearn.losses.latent_directions import near_far
from lightning_unlearn.methods.repedit import (
    RepEdit,
    calibrate,
    edit_effect,
    effect_message,
    effect_metrics,
    idle_message,
)
from lightning_unlearn.policies.latent_editor import AffineEditor, Direction, GatedEditor, save_direction
from lightning_unlearn.tracking import registry

EXPERT = "zoo:unsafe.ToyLine-v0"
SMALL = {"calibration_steps": 400, "buffer_steps": 800, "near_window": 1}


def toy(seed=0):
    return RolloutData("ToyLine-v0", 4, seed=seed).env


def built(**options):
    method = RepEdit(**({"source": EXPERT} | SMALL | options))
    method.build(RolloutData("ToyLine-v0", 4))
    return method


@pytest.fixture(scope="module")
def expert():
    return registry.load_policy(EXPERT).policy


@pytest.fixture
def artifact(tmp_path, expert):
    """A direction file with τ, as `probe export` writes it."""
    vector = directions.random_direction(expert.config.latent_size, torch.Generator().manual_seed(7))
    save_direction(tmp_path / "hazard_direction.pt", Direction(vector, 0.25))
    return tmp_path / "hazard_direction.pt"


@pytest.mark.parametrize("options", [{}, {"mode": "trained"}, {"direction": "leace"}], ids=str)
def test_the_experts_weights_stay_bit_equal_and_nothing_can_be_trained(expert, options):
    method = built(**options)
    weights = method.policy.state_dict()
    for name, weight in expert.state_dict().items():
        assert torch.equal(weights[name], weight)
    assert not any(parameter.requires_grad for parameter in method.policy.parameters())
    assert method.configure_optimizers() == []


def test_tau_is_the_quantile_of_the_positive_calibration_scores(expert):
    method = built(repedit_tau_quantile=0.6)
    calibration = calibrate(toy(), expert, 400, 0)
    probe = directions.probe_direction(calibration.latents, calibration.labels)
    torch.testing.assert_close(method.policy.editor.direction, probe.vector)
    scores = (calibration.latents @ probe.vector)[calibration.labels]
    assert len(scores) >= 32
    assert method.policy.editor.tau.item() == pytest.approx(scores.quantile(0.6).item(), rel=1e-5)
    assert f"{len(scores)} of them C_forget" in method.note
    assert "quantile 0.6" in method.note


def test_tau_comes_from_the_option_then_from_the_artifact_then_from_the_quantile(artifact):
    named = {"repedit_artifact": str(artifact)}
    both = built(**named, repedit_tau=0.5, repedit_use_artifact_tau=True)
    own = built(**named, repedit_use_artifact_tau=True)
    quantile = built(**named)
    assert both.policy.editor.tau.item() == 0.5
    assert own.policy.editor.tau.item() == pytest.approx(0.25)
    assert quantile.policy.editor.tau.item() not in (0.5, 0.25)
    assert str(artifact) in own.note
    assert torch.equal(own.policy.editor.direction, quantile.policy.editor.direction)


def test_an_artifact_may_be_a_file_of_a_run(store, artifact):
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_artifact(str(artifact), "probes")
    method = built(
        repedit_artifact=f"runs:/{run.info.run_id}/probes/hazard_direction.pt", repedit_use_artifact_tau=True
    )
    assert method.policy.editor.tau.item() == pytest.approx(0.25)


def test_controls_differ_in_direction_alone(artifact):
    named = {"repedit_artifact": str(artifact), "repedit_alpha": 2.0, "repedit_beta": 7.0}
    edits = {d: built(direction=d, **named).policy.editor for d in ("probe", "random", "flipped", "mean_difference")}
    for editor in edits.values():
        assert isinstance(editor, GatedEditor)
        assert (editor.alpha.item(), editor.beta.item()) == (2.0, 7.0)
        assert editor.direction.norm().item() == pytest.approx(1.0)
    assert torch.equal(edits["flipped"].direction, -edits["probe"].direction)
    other = [edits[name].direction @ edits["probe"].direction for name in ("random", "mean_difference")]
    assert all(abs(cosine) < 0.99 for cosine in other)


def test_leace_makes_the_class_means_equal(expert):
    method = built(direction="leace")
    calibration = calibrate(toy(), expert, 400, 0)
    assert isinstance(method.policy.editor, AffineEditor)
    erased = method.policy.editor(calibration.latents)
    means = [erased[calibration.labels == label].mean(0) for label in (True, False)]
    torch.testing.assert_close(*means, atol=1e-4, rtol=0)


def test_trained_mode_solves_both_numbers_within_their_bounds():
    editor = built(mode="trained").policy.editor
    assert 0.0 <= editor.alpha.item() <= 50.0
    assert editor.alpha.item() != 1.5
    assert editor.beta.item() == 10.0
    torch.testing.assert_close(editor.tau, built(mode="trained").policy.editor.tau)
    assert "trained edit" in built(mode="trained").note


def test_trained_mode_opens_its_gate_near_the_concept_and_not_everywhere():
    method = built(mode="trained", buffer_steps=4000, near_window=4)
    batch = RolloutCollector(toy(), method.policy, 500, torch.Generator().manual_seed(0)).rollout()
    following = batch[keys.NEXT]
    near, far = near_far(following[keys.C_FORGET][..., 0] > 0, following[keys.DONE][..., 0], 4)
    effect = edit_effect(method.policy, batch[keys.OBSERVATION].flatten(0, 1), method.score_direction)
    metrics = effect_metrics(effect, {"near": near.flatten(), "far": far.flatten()})
    assert metrics["repedit/gate_open_near"] > 2 * metrics["repedit/gate_open_far"], effect_message(metrics)


def test_calibration_leaves_the_training_environments_as_they_were(expert):
    def rollout(env):
        return RolloutCollector(env, expert, 40, torch.Generator().manual_seed(0)).rollout()

    env = toy()
    first = calibrate(env, expert, 100, 0)
    assert (rollout(env) == rollout(toy())).all()
    assert torch.equal(first.latents, calibrate(toy(), expert, 100, 0).latents)
    assert not torch.equal(first.latents, calibrate(toy(1), expert, 100, 1).latents)
    assert first.c_forget.shape == (4, 25)


def test_lightning_builds_only_what_was_not_built():
    method = built()
    policy = method.policy
    method.configure_model()
    assert method.policy is policy


def test_the_effect_of_an_edit_by_hand(policy):
    # the identity as trunk and the sum as action: z = observation, mean = z₀ + z₁
    policy = copy.deepcopy(policy)
    policy.trunk = torch.nn.Identity()
    policy.action_mean = torch.nn.Linear(2, 1, bias=False)
    policy.action_mean.weight.data.fill_(1.0)
    policy.editor = GatedEditor(torch.tensor([1.0, 0.0]), 1.0, 0.0, 1e9)  # z' = (min(z₀, 0), z₁)
    effect = edit_effect(policy, torch.tensor([[0.5, 0.1], [-0.3, 0.1]]), torch.tensor([1.0, 0.0]))
    expected = {
        "score_before": [0.5, -0.3],
        "score_after": [0.0, -0.3],
        "latent_shift": [0.5, 0.0],
        "suppression": [0.5, 0.0],
        "gate_open": [1.0, 0.0],
        "action_move": [0.5370496 - 0.0996680, 0.0],  # tanh 0.6 − tanh 0.1
        "action_move_max": [0.5370496 - 0.0996680, 0.0],
    }
    assert set(effect) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(effect[name], torch.tensor(values))


def test_metrics_are_means_over_a_group_and_empty_groups_have_none():
    effect = {"score_before": torch.tensor([1.0, 3.0, 9.0]), "action_move_max": torch.tensor([0.1, 0.4, 0.2])}
    near = torch.tensor([True, True, False])
    metrics = effect_metrics(effect, {"near": near, "far": torch.zeros(3, dtype=torch.bool)})
    assert {name: round(float(value), 6) for name, value in metrics.items()} == {
        "repedit/share_near": 0.666667,
        "repedit/share_far": 0.0,
        "repedit/score_before_mean_near": 2.0,
        "repedit/score_before_std_near": 1.0,
        "repedit/score_before_p90_near": 2.8,
        "repedit/action_move_max_near": 0.4,
    }


def test_the_message_tells_scores_before_and_after_of_each_group():
    numbers = {"score_before_mean_near": 1.234, "score_after_mean_near": 0.5, "gate_open_near": 0.75}
    metrics = {f"repedit/{name}": torch.tensor(number) for name, number in numbers.items()}
    told = "Mean score of states, before → after the edit: near 1.234 → 0.5 (gate open in 75%)"
    assert effect_message(metrics) == f"{told}."
    metrics |= {
        f"repedit/score_{when}_mean_far": torch.tensor(0.25) for when in ("before", "after")
    }  # of LEACE: no gate
    assert effect_message(metrics) == f"{told}, far 0.25 → 0.25."


def effect_of(method):
    batch = RolloutCollector(toy(), method.policy, 64, torch.Generator().manual_seed(0)).rollout()
    return edit_effect(method.policy, batch[keys.OBSERVATION].flatten(0, 1), method.score_direction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repedit_tau": 1e3}, r"gate is open in 0.00% .* tau=1000, alpha=1.5: lower model.repedit_tau"),
        ({"repedit_alpha": 0.0}, r"no action moves by more than 0.0e\+00.*raise model.repedit_alpha"),
    ],
)
def test_an_edit_that_does_nothing_says_so(options, message):
    method = built(**options)
    assert re.search(message, idle_message(method.policy, effect_of(method), "static"))
    assert "tau=" in (solved := idle_message(method.policy, effect_of(method), "trained"))
    assert "repedit_tau" not in solved  # which that mode solves itself


@pytest.mark.parametrize("direction", ["probe", "leace"])
def test_an_edit_that_does_something_is_silent(direction):
    method = built(direction=direction)
    assert idle_message(method.policy, effect_of(method), "static") == ""


def write(path, content):
    torch.save(content, path)
    return {"repedit_artifact": str(path)}


BAD = {
    "no such artifact": (lambda d: {"repedit_artifact": str(d / "none.pt")}, "none.pt was not found.*probe export"),
    "another latent size": (lambda d: write(d / "d.pt", {"direction": torch.ones(3)}), "size 3, but .* latent has"),
    "all zeros": (lambda d: write(d / "d.pt", {"direction": torch.zeros(64)}), "all zeros"),
    "artifact without tau": (
        lambda d: write(d / "d.pt", {"direction": torch.ones(64)}) | {"repedit_use_artifact_tau": True},
        "holds no tau: export it with `probe export --include_tau`",
    ),
    "tau of no artifact": (lambda d: {"repedit_use_artifact_tau": True}, "needs the artifact"),
    "tau of another direction": (
        lambda d: (
            write(d / "d.pt", {"direction": torch.ones(64)})
            | {"repedit_use_artifact_tau": True, "direction": "flipped"}
        ),
        "keep model.direction=probe",
    ),
    "trained with a given tau": (lambda d: {"mode": "trained", "repedit_tau": 0.5}, "leave out model.repedit_tau"),
    "trained without near states": (
        lambda d: {"mode": "trained", "buffer_steps": 4, "direction": "random"},
        "of 4 expert steps 0 are near and 4 far: raise model.buffer_steps",
    ),
    "negative alpha": (lambda d: {"repedit_alpha": -1.0}, "model.repedit_alpha=-1.0"),
    "no steepness": (lambda d: {"repedit_beta": 0.0}, "model.repedit_beta=0.0"),
    "no fraction": (lambda d: {"repedit_tau_quantile": 1.1}, "model.repedit_tau_quantile=1.1"),
    "no calibration": (lambda d: {"calibration_steps": 0}, "model.calibration_steps=0"),
    "one class": (
        lambda d: {"calibration_steps": 4, "direction": "mean_difference"},
        "0 of 4 .* Raise model.calibration_steps=4",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_the_remedy(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        built(**options(tmp_path))


def test_an_edited_source_is_refused(tmp_path):
    from lightning_unlearn.policies.files import ModelCard, save_policy

    save_policy(tmp_path / "edited", built().policy, ModelCard())
    with pytest.raises(ValueError, match="has an editor already"):
        built(source=str(tmp_path / "edited"))
