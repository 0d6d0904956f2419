"""Policies with an editor, in files."""

import json

import pytest
import torch
from hostile_files import seal
from safetensors.torch import load_file, save_file

from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
EDITORS = {
    "gated": GatedEditor(UNIT, 1.5, -2.0, 10.0),
    "affine": AffineEditor(torch.diag(torch.arange(8.0)), torch.ones(8)),
}


@pytest.mark.parametrize("name", EDITORS)
def test_an_edited_policy_comes_back_the_same(policy, tmp_path, name):
    edited = policy.with_editor(EDITORS[name])
    save_policy(tmp_path, edited, ModelCard("repedit", note="how it was made"))
    stored = load_policy(tmp_path)
    assert stored.policy.config == edited.config
    assert stored.card.note == "how it was made"
    observation = torch.randn(6, 2)
    assert torch.equal(stored.policy.act(observation), edited.act(observation))
    assert not torch.equal(stored.policy.act(observation), policy.act(observation))


def test_a_description_from_before_editors_is_read(policy, tmp_path):
    save_policy(tmp_path, policy, ModelCard())
    description = json.loads((tmp_path / "policy.json").read_text())
    del description["policy"]["editor"], description["card"]["note"]
    (tmp_path / "policy.json").write_text(json.dumps(description))
    assert load_policy(tmp_path).policy.editor is None


def respoil(**changes):
    def spoil(folder):
        weights = load_file(folder / "policy.safetensors") | changes
        save_file({k: v for k, v in weights.items() if v is not None}, folder / "policy.safetensors")

    return spoil


def redescribe(editor):
    def spoil(folder):
        description = json.loads((folder / "policy.json").read_text())
        description["policy"]["editor"] = editor
        (folder / "policy.json").write_text(json.dumps(description))

    return spoil


SPOILED = {
    "no unit vector": (respoil(**{"editor.direction": torch.ones(8)}), "length 1"),
    "all zeros": (respoil(**{"editor.direction": torch.zeros(8)}), "length 1"),
    "another size": (respoil(**{"editor.direction": torch.ones(3)}), "shape"),
    "no tau": (respoil(**{"editor.tau": None}), "editor.tau"),
    "infinite": (respoil(**{"editor.alpha": torch.tensor(float("inf"))}), "infinite"),
    "described without": (redescribe("none"), "do not fit"),
    "another kind": (redescribe("affine"), "more weights"),
    "unknown kind": (redescribe("os.system"), "os.system"),
    "no name": (redescribe(["gated"]), "does not describe|is not one of"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_a_damaged_or_foreign_editor_is_refused(policy, tmp_path, spoil, message):
    save_policy(tmp_path, policy.with_editor(EDITORS["gated"]), ModelCard())
    spoil(tmp_path)
    seal(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)


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
