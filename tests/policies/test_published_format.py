import pytest
import torch

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import load_policy
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor
from lightning_unlearn.policies.published_format import file_name, origin, save_published


@pytest.mark.parametrize(
    ("method", "update", "name"),
    [
        ("unsafe", -1, "unsafe_expert_SafetyPointGoal1-v0.pt"),
        ("oracle", 450, "oracle_SafetyPointGoal1-v0_450.pt"),
        ("concept", 50, "safe_concept_SafetyPointGoal1-v0_50.pt"),
        ("trajectory_decremental", 150, "safe_trajectory_decremental_SafetyPointGoal1-v0_150.pt"),
        ("repedit", 100, "safe_repedit_SafetyPointGoal1-v0_100.pt"),
        ("concept_10", 50, "safe_concept_10_SafetyPointGoal1-v0_50.pt"),
    ],
)
def test_names_are_the_published_ones_and_read_back(method, update, name):
    assert file_name(method, "SafetyPointGoal1-v0", update) == name
    assert origin(name) == (method, "SafetyPointGoal1-v0", update)


@pytest.mark.parametrize("name", ["model.pt", "safe_.pt", "oracle_450.pt", "safe_concept_SafetyPointGoal1-v0_50.pkl"])
def test_other_names_tell_nothing(name):
    assert origin(name) is None


@pytest.mark.parametrize("edited", [False, True])
def test_a_policy_reads_back_with_equal_actions(policy, generator, tmp_path, edited):
    if edited:
        direction = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
        policy = policy.with_editor(GatedEditor(direction, 1.5, -0.2, 10.0))
    save_published(tmp_path / "p.pt", policy)
    content = torch.load(tmp_path / "p.pt", weights_only=True)
    heads = [f"{layer}.{part}" for layer in ("shared.0", "shared.2", "mu", "vr", "vc") for part in ("weight", "bias")]
    assert sorted(content["state_dict"]) == sorted([*heads, "logstd"])
    assert sorted(content.get("editor", {})) == (["alpha", "beta", "direction", "tau"] if edited else [])
    observation = torch.randn(64, 2, generator=generator)
    read = load_policy(tmp_path / "p.pt").policy
    torch.testing.assert_close(read.act(observation), policy.act(observation), rtol=0, atol=1e-6 if edited else 0)
    assert torch.equal(read.std, policy.std)


def test_what_the_layout_cannot_hold_is_refused(policy, tmp_path):
    odd = ActorCritic(PolicyConfig(2, [-2.0], [2.0], hidden_sizes=[8], critics="separate"), torch.Generator())
    with pytest.raises(ValueError, match=r"hidden_sizes=\[8\], critics=separate, action_low=\[-2"):
        save_published(tmp_path / "p.pt", odd)
    with pytest.raises(ValueError, match="editor=affine"):
        save_published(tmp_path / "p.pt", policy.with_editor(AffineEditor(torch.eye(8), torch.zeros(8))))
    assert not (tmp_path / "p.pt").exists()


UNIT = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)


def published(path, editor):
    sizes = {"shared.0": (8, 3), "shared.2": (8, 8), "mu": (2, 8), "vr": (1, 8), "vc": (1, 8)}
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(*size, generator=generator) for name, size in sizes.items()}
    weights |= {f"{name}.bias": torch.randn(size[0], generator=generator) for name, size in sizes.items()}
    torch.save({"state_dict": weights | {"logstd": torch.zeros(2)}, "editor": editor}, path)
    return path


def test_the_published_layouts_editor_is_read(tmp_path):
    editor = {"direction": 4.0 * UNIT, "alpha": 1.5, "tau": torch.tensor([0.25]), "beta": 10}
    policy = load_policy(published(tmp_path / "repedit.pt", editor)).policy
    plain = load_policy(published(tmp_path / "unsafe.pt", None)).policy
    assert plain.editor is None
    # τ is compared with the score along the normalised direction, so it stays as it is
    expected = plain.with_editor(GatedEditor(UNIT, 1.5, 0.25, 10.0))
    observation = torch.randn(5, 3)
    torch.testing.assert_close(policy.mean(observation), expected.mean(observation))


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        ({"direction": UNIT, "alpha": 1.5, "beta": 10.0}, "must hold direction, alpha, tau, beta"),
        ({"direction": torch.zeros(8), "alpha": 1.5, "tau": 0.0, "beta": 10.0}, "not a number"),
        ({"direction": torch.ones(3), "alpha": 1.5, "tau": 0.0, "beta": 10.0}, "shape"),
        ({"direction": UNIT, "alpha": None, "tau": 0.0, "beta": 10.0}, "no number"),
        ([1.0], "must hold"),
    ],
)
def test_a_published_editor_that_is_none_is_refused(tmp_path, editor, message):
    with pytest.raises(ValueError, match=message):
        load_policy(published(tmp_path / "repedit.pt", editor))
