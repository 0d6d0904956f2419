"""A model folder loads back, and its card says what was measured."""

import re
import sys

import huggingface_stub
import imageio.v3 as iio
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits.videos import DRAWN_BY, VideoRecorder
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.tracking import registry

TOY = "ToyLine-v0"


def export(model, *options):
    cli.main(["export", "folder", model, "--out", "out/m", "--episodes", "4", "--workers", "1", *options])


def card(folder):
    """Metadata and text of a folder's README."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_repair_is_measured_beside_its_expert_and_loads_back(register, tmp_path, capsys):
    register("unsafe", 10, 2.0)
    uri = register("concept", 50, -1.0)
    export(uri, "--cost_limit", "1", "--license", "mit")
    out = tmp_path / "out" / "m"
    observation = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lu.load_policy(str(out)).act(observation), lu.load_policy(uri).act(observation))
    episodes = pd.read_csv(out / "episodes.csv")
    alone = lu.evaluate(lu.load_policy(uri), TOY, episodes=4, workers=1)
    after = episodes[episodes["Policy"] == "after"]
    np.testing.assert_allclose(after["reward"], alone["reward"], rtol=1e-6)
    metadata, text = card(out)
    assert (metadata["license"], metadata["library_name"]) == ("mit", "lightning-unlearn")
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["type"] == TOY
    means = {metric["name"]: metric for metric in result["metrics"]}
    assert means["return, after"]["value"] == round(float(alone["reward"].mean()), 4)
    assert means["c_forget, before"]["value"] > means["c_forget, after"]["value"]
    spread = 3.182446 * alone["reward"].std(ddof=1) / 2  # Student's t with three degrees of freedom
    expected = [alone["reward"].mean() - spread, alone["reward"].mean() + spread]
    np.testing.assert_allclose(means["return, after"]["args"]["interval_95"], expected, atol=1e-3)
    assert "limit 1;" in text
    assert "| an episode, mean of 4 | before | after |" in text
    assert {*re.findall(r"\]\((\w+\.\w+)\)", text)} <= {file.name for file in out.iterdir()}
    assert iio.imread(out / "episode.gif", index=0).shape[1] == 2 * 400 + 4  # side by side
    printed = capsys.readouterr().out
    assert f"episode.gif: {DRAWN_BY} (MuJoCo does not simulate it)" in printed
    assert 'load_policy("out/m")' in printed
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["m"]


def test_the_config_is_that_of_the_training_without_addresses(register, tmp_path):
    register("unsafe", 10, 2.0)
    uri = register("concept", 50, -1.0)
    run_id = registry.registered_version(uri).run_id
    mlflow.MlflowClient().log_text(run_id, "model: {x: 1}\ntracking_uri: http://me:secret@host\n", "config.yaml")
    mlflow.MlflowClient().log_param(run_id, "pid.init_args.cost_limit", "7.5")
    export(uri)
    assert yaml.safe_load((tmp_path / "out/m/config.yaml").read_text()) == {"model": {"x": 1}}
    assert "limit 7.5" in card(tmp_path / "out/m")[1]
    without = register("concept", 60, -1.0)
    mlflow.MlflowClient().log_param(registry.registered_version(without).run_id, "pid.cost_limit", "None")
    export(without, "--out", "out/other")
    assert "limit 25" in card(tmp_path / "out/other")[1]


def test_an_expert_and_a_file_that_records_little(store, pushed, tmp_path, capsys):
    export(f"zoo:unsafe.{TOY}")
    text = card(tmp_path / "out/m")[1]
    assert "nothing was unlearned" in text
    assert "| an episode, mean of 4 | after |" in text
    assert iio.imread(tmp_path / "out/m/episode.gif", index=0).shape[1] == 400
    assert "there is no before" in capsys.readouterr().out
    note = "a | b\n# `heading`"
    save_policy(tmp_path / "mine", pushed(-1.0), ModelCard(note=note))
    cli.main(["export", "folder", str(tmp_path / "mine"), "--env", TOY, "--episodes", "1", "--out", "other"])
    metadata, text = card(tmp_path / "other")
    assert "| note | `a / b # 'heading'` |" in text
    assert "| exported from | `mine` |" in text
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["args"] == {"episodes": 1, "interval_95": None}
    assert yaml.safe_load((tmp_path / "other/config.yaml").read_text())["card"]["env"] == TOY


def test_without_renderer_and_map_there_is_no_video(store, monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise ValueError("it can be neither rendered nor drawn")

    monkeypatch.setattr(VideoRecorder, "__init__", refuse)
    export(f"zoo:unsafe.{TOY}")
    assert f"No video: MuJoCo cannot render here, and {TOY} has no map" in capsys.readouterr().out
    assert "episode.gif" not in card(tmp_path / "out/m")[1]


def test_what_is_not_possible_is_refused_and_leaves_nothing(store, pushed, refused, tmp_path):
    save_policy(tmp_path / "mine", pushed(-1.0), ModelCard())

    def message(*options):
        return refused("export", "folder", "mine", "--out", "m", "--workers", "1", *options)

    assert "--env is missing" in message()
    assert "--license a b" in message("--license", "a b")
    assert "--cost_limit -1" in message("--cost_limit", "-1")
    assert "episodes=0" in message("--episodes", "0")
    assert "takes 2 observations" in message("--env", "SafetyPointGoal1-v0", "--episodes", "1")
    assert "exists already" in refused("export", "folder", "mine", "--out", "mine")
    assert "was not found" in refused("export", "folder", "nowhere", "--out", "m")
    (tmp_path / "file").touch()
    save_policy(tmp_path / "toy", pushed(-1.0), ModelCard(env=TOY))
    short = ("--episodes", "1", "--workers", "1")
    assert "cannot be written" in refused("export", "folder", "toy", "--out", "file/m", *short)
    assert not (tmp_path / "m").exists()


def test_the_limit_is_the_one_that_fit_recorded(store, tmp_path):
    small = ["--updates", "1", "--n_envs", "2", "--horizon", "64", "--save_points", "[1]", "--data.workers", "1"]
    cli.main(["fit", "-c", "method/concept.yaml", "--env", TOY, *small, "--cost_limit", "3"])
    export(f"models:/concept.{TOY}/latest")
    assert "limit 3;" in card(tmp_path / "out/m")[1]
    assert yaml.safe_load((tmp_path / "out/m/config.yaml").read_text())["pid"]["init_args"]["cost_limit"] == 3.0


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine in place of the Hub; nothing leaves the machine."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hub` is not installed")
    with huggingface_stub.serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", huggingface_stub.TOKEN)
        yield server


def test_a_pushed_folder_arrives_whole_and_the_hub_reads_its_card(hub, store, tmp_path, capsys):
    from huggingface_hub import ModelCard as HubCard

    export(f"zoo:unsafe.{TOY}", "--push", "me/forgot")
    assert hub.repository == "me/forgot"
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "out/m").iterdir()}
    assert f"{hub.address}/me/forgot" in capsys.readouterr().out
    read = HubCard.load(tmp_path / "out/m/README.md").data
    assert read.license == "unknown"
    assert {result.metric_type for result in read.eval_results} == {"return", "c_forget", "cost", "steps"}
    assert 'snapshot_download("me/forgot")' in card(tmp_path / "out/m")[1]


def test_a_push_that_cannot_work_is_refused_before_anything_is_run(hub, refused, monkeypatch, tmp_path):
    def message(repository="me/forgot"):
        return refused("export", "folder", f"zoo:unsafe.{TOY}", "--out", "m", "--push", repository)

    assert "name the repository as OWNER/NAME" in message("forgot")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    wrong = message()
    assert "let nobody sign in" in wrong
    assert "hf_wrong" not in wrong
    hub.close()
    assert "check network and token" in message()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "set the variable HF_TOKEN" in message()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "with its extra `hub`" in message()
    assert not (tmp_path / "m").exists()


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(hub, store, capsys, tmp_path):
    hub.refuses = True
    with pytest.raises(SystemExit):
        export(f"zoo:unsafe.{TOY}", "--push", "me/forgot")
    assert "hf upload me/forgot out/m" in capsys.readouterr().err
    assert (tmp_path / "out/m/README.md").is_file()
