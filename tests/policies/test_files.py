import contextlib
import json

import pytest
import torch
from hostile_files import seal
from safetensors.torch import load_file, save_file

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor

CARD = ModelCard("concept", "ToyLine-v0", "cost_hazards", 3, 50, 1000)


@pytest.fixture
def folder(policy, tmp_path):
    save_policy(tmp_path / "p", policy, CARD)
    return tmp_path / "p"


def test_a_stored_policy_comes_back_the_same(policy, folder):
    stored = load_policy(folder)
    assert stored.card == CARD
    assert stored.policy.config == policy.config
    for name, weight in policy.state_dict().items():
        assert torch.equal(stored.policy.state_dict()[name], weight)


NEWER = (
    "critic_hidden_sizes",
    "normaliser_epsilon",
    "normaliser_clip",
    "normaliser_dtype",
    "observation_dtype",
    "log_std_range",
)


def test_a_description_from_before_a_field_existed_is_read(policy, folder):
    edit(lambda d: [d["policy"].pop(name) for name in NEWER])(folder)
    assert load_policy(folder).policy.config == policy.config


def test_the_weights_file_is_enough_of_a_path(policy, folder):
    stored = load_policy(folder / "policy.safetensors")
    observation = torch.ones(1, 2)
    assert torch.equal(stored.policy.act(observation), policy.act(observation))


def test_nan_is_never_written(policy, tmp_path):
    policy.log_std.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="log_std"):
        save_policy(tmp_path / "p", policy, CARD)
    assert not (tmp_path / "p").exists()


def published(observations=60, actions=2):
    sizes = {"shared.0": (64, observations), "shared.2": (64, 64), "mu": (actions, 64), "vr": (1, 64), "vc": (1, 64)}
    weights = {f"{name}.weight": torch.randn(*size) for name, size in sizes.items()}
    weights |= {f"{name}.bias": torch.randn(size[0]) for name, size in sizes.items()}
    return weights | {"logstd": torch.zeros(actions)}


def test_the_published_layout_is_read(tmp_path):
    weights = published()
    torch.save({"state_dict": weights}, tmp_path / "unsafe.pt")
    policy = load_policy(tmp_path / "unsafe.pt").policy
    x = torch.randn(5, 60)
    h = torch.tanh(x @ weights["shared.0.weight"].T + weights["shared.0.bias"])
    h = torch.tanh(h @ weights["shared.2.weight"].T + weights["shared.2.bias"])
    torch.testing.assert_close(policy.mean(x), h @ weights["mu.weight"].T + weights["mu.bias"])
    torch.testing.assert_close(policy(x).cost_value, (h @ weights["vc.weight"].T + weights["vc.bias"]).squeeze(-1))


def truncate(folder):
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def swap_weights(folder):
    other = ActorCritic(PolicyConfig(5, [-1.0], [1.0], hidden_sizes=[16, 8]))
    save_file(other.state_dict(), folder / "policy.safetensors")


def drop_a_weight(folder):
    weights = load_file(folder / "policy.safetensors")
    weights.pop("log_std")
    save_file(weights, folder / "policy.safetensors")


def poison(folder):
    weights = load_file(folder / "policy.safetensors")
    weights["log_std"].fill_(float("inf"))
    save_file(weights, folder / "policy.safetensors")


def other_dtype(folder):
    weights = load_file(folder / "policy.safetensors")
    weights["log_std"] = weights["log_std"].double()
    save_file(weights, folder / "policy.safetensors")


def edit(change):
    def spoil(folder):
        path = folder / "policy.json"
        description = json.loads(path.read_text())
        change(description)
        path.write_text(json.dumps(description))

    return spoil


SPOILED = {
    "truncated weights": (truncate, "damaged"),
    "weights of another size": (swap_weights, "shape"),
    "a weight missing": (drop_a_weight, "do not fit"),
    "an infinite weight": (poison, "infinite"),
    "another dtype": (other_dtype, "float32"),
    "no weights": (lambda folder: (folder / "policy.safetensors").write_bytes(b""), "damaged"),
    "no json": (lambda folder: (folder / "policy.json").write_text("{"), "not JSON"),
    "deep json": (lambda folder: (folder / "policy.json").write_text("[" * 100_000), "nested too deeply"),
    "a number of ten thousand digits": (lambda folder: (folder / "policy.json").write_text("1" * 10**4), "not JSON"),
    "large json": (lambda folder: (folder / "policy.json").write_text(" " * (1 << 21)), "larger than"),
    "foreign json": (lambda folder: (folder / "policy.json").write_text('{"format": "other"}'), "format"),
    "an unknown field": (edit(lambda d: d["policy"].update(class_path="os.system")), "class_path"),
    "an unknown activation": (edit(lambda d: d["policy"].update(activation="softmax")), "softmax"),
    "a huge size": (edit(lambda d: d["policy"].update(hidden_sizes=[10**9, 10**9])), "65536"),
    "a size that is no number": (edit(lambda d: d["policy"].update(observation_size="60")), "does not describe"),
    "a bound that is no number": (edit(lambda d: d["policy"].update(action_low=[float("nan")])), "NaN is no number"),
    "a bound beyond every float": (edit(lambda d: d["policy"].update(action_high=[10**400])), "finite"),
    "bounds the wrong way round": (edit(lambda d: d["policy"].update(action_low=[2.0])), "below"),
    "critics too large for any file": (
        edit(lambda d: d["policy"].update(critics="separate", critic_hidden_sizes=[65536] * 2)),
        "more weights",
    ),
    "a clip that is no number": (edit(lambda d: d["policy"].update(normaliser_clip="ten")), "finite numbers"),
    "a negative epsilon": (edit(lambda d: d["policy"].update(normaliser_epsilon=-1.0)), "out of range"),
    "an epsilon beyond every float": (edit(lambda d: d["policy"].update(normaliser_epsilon=10**400)), "finite numbers"),
    "a log-std range of one number": (edit(lambda d: d["policy"].update(log_std_range=[0.0])), "does not describe"),
    "a network larger than its file": (edit(lambda d: d["policy"].update(hidden_sizes=[65536] * 2)), "more weights"),
    "an editor larger than the file": (
        edit(lambda d: d["policy"].update(hidden_sizes=[9999], editor="affine")),
        "more w",
    ),
    "very many layers": (edit(lambda d: d["policy"].update(hidden_sizes=[1] * 10**5)), "layers"),
    "a method that is a path": (edit(lambda d: d["card"].update(method="../../etc")), "no name"),
    "an environment that is a path": (edit(lambda d: d["card"].update(env="/tmp/x")), "no name"),
    "a digest of another kind": (edit(lambda d: d.update(weights_sha256=[])), "no SHA-256"),
    "a card of another type": (edit(lambda d: d["card"].update(seed="zero")), "card"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_a_damaged_or_foreign_file_is_refused(folder, spoil, message):
    spoil(folder)
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        seal(folder)
    with pytest.raises(ValueError, match=message):
        load_policy(folder)


def test_weights_of_another_description_are_refused(folder):
    swap_weights(folder)
    with pytest.raises(ValueError, match="not the file that its description was written with"):
        load_policy(folder)


def test_a_description_without_a_digest_is_read(folder):
    edit(lambda d: d.pop("weights_sha256"))(folder)
    assert load_policy(folder).card == CARD


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_policy(tmp_path / "nowhere.pt")


def test_a_missing_folder_is_named_itself_and_not_a_file_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing-600 does not exist"):
        load_policy(tmp_path / "missing-600")


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


SPOILED_EDITORS = {
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


@pytest.mark.parametrize(("spoil", "message"), SPOILED_EDITORS.values(), ids=SPOILED_EDITORS)
def test_a_damaged_or_foreign_editor_is_refused(policy, tmp_path, spoil, message):
    save_policy(tmp_path, policy.with_editor(EDITORS["gated"]), ModelCard())
    spoil(tmp_path)
    seal(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)
