"""Config files that would run code, crash the parser or grow without end, and options that are left out."""

import os

import pytest
from hostile_files import bounded_memory

from lightning_unlearn import cli
from lightning_unlearn.configuration import expand, find_config, shipped_configs
from lightning_unlearn.fit import FitCLI

LAUGHS = "\n".join([f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)])
FILES = {
    "nested deeply": ("[" * 100_000, "nested more than"),
    "aliases that multiply": (f"a: &a [x]\n{LAUGHS}", "alias"),
    "nothing": ("", "no options"),
    "only a comment": ("# nothing", "no options"),
    "no YAML": ("a: [1\n", "cannot be read"),
    "no text": (b"\x00\x01\xff", "cannot be read"),
    "two megabytes": (" " * (2 << 20), "larger than"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with bounded_memory(), pytest.raises(ValueError, match=rf"x\.yaml.*{message}"):
        find_config(str(path))


def test_shipped_configs_are_read():
    for path in shipped_configs().rglob("*.yaml"):
        assert find_config(str(path)) == path


TAGS = {
    "!!python/object/apply:os.system ['touch ran']": "could not determine a constructor",
    "{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}": "not correspond to a subclass",
}


@pytest.mark.parametrize(("value", "message"), TAGS.items(), ids=["a Python tag", "a foreign class"])
def test_a_config_names_no_code_but_methods(tmp_path, monkeypatch, capsys, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(f"model: {value}\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "-c", "base.yaml", "-c", "x.yaml"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_no_options_at_all_are_none():
    assert expand([]) == []


def test_the_base_config_comes_first_unless_it_is_named(store):
    base, method = (str(shipped_configs() / name) for name in ("base.yaml", "method/concept.yaml"))
    assert expand(["-c", "method/concept.yaml"]) == ["--config", base, "-c", method]
    for own in ("base.yaml", os.path.relpath(base)):
        assert expand(["-c", own, "-c", "method/concept.yaml"])[0::2] == ["-c", "-c"]
    assert FitCLI(["-c", "method/concept.yaml"]).config.trainer.accelerator == "cpu"


@pytest.mark.parametrize("last", [[], ["-c", "method/repedit.yaml"], ["--model", "RepEdit"]])
def test_a_published_option_is_left_out_where_the_method_has_no_use_for_it(capsys, last):
    args = expand(["-c", "method/concept.yaml", *last, "--lr=1e-3", "--ppo_epochs", "5", "--seed", "1"])
    assert args[-2:] == ["--seed_everything", "1"]
    assert ("--model.lr" in args) == (not last)
    assert ("--lr, --ppo_epochs: without effect on the method RepEdit" in capsys.readouterr().out) == bool(last)


OLD = """
model:
  class_path: lightning_unlearn.methods.repedit.RepEdit
  init_args: {lr: 0.1, batch_size: 3, repedit_alpha: 2.5}
"""


def test_options_that_were_removed_are_ignored_in_stored_configs(store, tmp_path):
    (tmp_path / "old.yaml").write_text(OLD)
    options = FitCLI(["-c", str(tmp_path / "old.yaml"), "--env", "ToyLine-v0"]).config.model.init_args
    assert options.repedit_alpha == 2.5
    assert "lr" not in options
