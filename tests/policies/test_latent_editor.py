import pickle

import pytest
import torch

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.latent_editor import (
    AffineEditor,
    Direction,
    GatedEditor,
    load_direction,
    save_direction,
)


def gated(**changes):
    numbers = {"direction": torch.tensor([0.6, 0.8]), "alpha": 1.5, "tau": 0.2, "beta": 1.0}
    return GatedEditor(**(numbers | changes))


def test_the_edit_worked_out_by_hand():
    editor, latent = gated(), torch.tensor([[1.0, 2.0]])
    # s = 0.6 + 1.6 = 2.2, s − τ = 2, g = 1/(1 + e⁻²) = 0.8807971, suppression = 1.5·0.8807971·2 = 2.6423912
    torch.testing.assert_close(editor.score(latent), torch.tensor([2.2]))
    torch.testing.assert_close(editor.gate(latent), torch.tensor([0.8807971]))
    torch.testing.assert_close(editor.suppression(latent), torch.tensor([2.6423912]))
    # z' = (1 − 0.6·2.6423912, 2 − 0.8·2.6423912)
    torch.testing.assert_close(editor(latent), torch.tensor([[-0.5854347, -0.1139130]]))


def test_below_tau_nothing_changes():
    latent = torch.tensor([[0.1, 0.1], [-3.0, 1.0]])  # scores 0.14 and −1.0, τ 0.2
    assert torch.equal(gated()(latent), latent)
    assert (gated().gate(latent) < 0.5).all()


def test_batch_shapes_are_kept():
    latent = torch.ones(3, 4, 2)
    assert gated()(latent).shape == (3, 4, 2)
    assert gated().suppression(latent).shape == (3, 4)


def test_an_affine_edit_by_hand():
    editor = AffineEditor(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]))
    assert editor(torch.tensor([[1.0, 1.0]])).tolist() == [[3.5, -1.0]]


def test_a_blank_editor_changes_nothing():
    latent = torch.randn(5, 8)
    for editor in (GatedEditor.blank(8), AffineEditor.blank(8)):
        assert torch.equal(editor(latent), latent)


def test_nothing_of_an_editor_is_found_by_an_optimizer():
    assert list(gated().parameters()) == []


@pytest.mark.parametrize("direction", [[0.0, 0.0], [3.0, 4.0], [float("nan"), 0.0], [[1.0, 0.0]]])
def test_a_direction_that_is_not_one_unit_vector_is_refused(direction):
    with pytest.raises(ValueError, match="one vector of length 1"):
        gated(direction=torch.tensor(direction))


def make(generator, **options):
    return ActorCritic(PolicyConfig(3, [-1.0], [1.0], hidden_sizes=[8, 2], **options), generator)


def test_every_head_reads_the_edited_latent(generator):
    policy = make(generator)
    edited, observation = policy.with_editor(gated(tau=-9.0)), torch.randn(7, 3, generator=generator)
    latent = gated(tau=-9.0)(policy.latent(observation))
    assert torch.equal(edited.latent(observation), policy.latent(observation))
    assert torch.equal(edited.operative_latent(observation), latent)
    output = edited(observation)
    assert torch.equal(output.mean, policy.action_mean(latent))
    assert torch.equal(output.reward_value, policy.reward_value(latent).squeeze(-1))
    assert torch.equal(output.cost_value, policy.cost_value(latent).squeeze(-1))


def test_separate_critics_are_not_edited(generator):
    policy = make(generator, critics="separate")
    observation = torch.randn(7, 3, generator=generator)
    raw, edited = policy(observation), policy.with_editor(gated(tau=-9.0))(observation)
    assert torch.equal(edited.cost_value, raw.cost_value)
    assert torch.equal(edited.reward_value, raw.reward_value)
    assert not torch.equal(edited.mean, raw.mean)


def test_an_editor_can_be_taken_out_again_and_the_original_is_never_touched(generator):
    policy = make(generator)
    edited = policy.with_editor(gated(tau=-9.0))
    assert (policy.config.editor, edited.config.editor) == ("none", "gated")
    assert policy.with_editor(AffineEditor.blank(2)).config.editor == "affine"
    again = edited.without_editor()
    assert again.config == policy.config
    observation = torch.randn(4, 3, generator=generator)
    assert torch.equal(again.act(observation), policy.act(observation))
    again.action_mean.bias.data.fill_(5.0)
    assert edited.action_mean.bias.item() != 5.0 != policy.action_mean.bias.item()


def test_an_editor_of_another_latent_size_is_refused(generator):
    with pytest.raises(ValueError, match="latents of size 8, but the policy's latent has 2"):
        make(generator).with_editor(AffineEditor.blank(8))


def written(path, **content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("tau", [None, -0.75])
def test_a_direction_comes_back_the_same(tmp_path, tau):
    save_direction(tmp_path / "probes" / "d.pt", Direction(torch.tensor([0.6, 0.8]), tau))
    loaded = load_direction(tmp_path / "probes" / "d.pt", 2)
    assert loaded.vector.tolist() == pytest.approx([0.6, 0.8])
    assert loaded.tau == (None if tau is None else pytest.approx(tau))


@pytest.mark.parametrize("tau", [10.0, 10, torch.tensor(10.0), torch.tensor([10.0])])
def test_a_stored_tau_is_divided_by_the_length_of_its_vector(tmp_path, tau):
    loaded = load_direction(written(tmp_path / "d.pt", direction=torch.tensor([[3.0, 4.0]]), tau=tau), 2)
    assert loaded.vector.tolist() == pytest.approx([0.6, 0.8])
    assert loaded.tau == pytest.approx(2.0)  # z·(3, 4) > 10 exactly where z·(0.6, 0.8) > 2


BAD_DIRECTIONS = {
    "another size": ({"direction": torch.ones(3)}, "size 3, but the policy's latent has 2"),
    "no direction": ({"tau": 1.0}, "size none"),
    "all zeros": ({"direction": torch.zeros(2)}, "all zeros"),
    "not finite": ({"direction": torch.tensor([1.0, float("nan")])}, "not finite"),
    "tau that is no number": ({"direction": torch.ones(2), "tau": "0.5"}, "tau is no finite number"),
    "several taus": ({"direction": torch.ones(2), "tau": torch.ones(2)}, "tau is no finite number"),
    "infinite tau": ({"direction": torch.ones(2), "tau": float("inf")}, "tau is no finite number"),
}


@pytest.mark.parametrize(("content", "message"), BAD_DIRECTIONS.values(), ids=BAD_DIRECTIONS)
def test_a_foreign_or_damaged_direction_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_direction(written(tmp_path / "d.pt", **content), 2)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="probe export"):
        load_direction(tmp_path / "nowhere.pt", 2)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Direction(torch.ones(2))))
    with pytest.raises(ValueError, match="safely"):
        load_direction(tmp_path / "d.pt", 2)
