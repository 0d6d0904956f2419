import json

import mlflow
import numpy as np
import pandas as pd
import pytest

from lightning_unlearn import cli
from lightning_unlearn.audits import policy_suite
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.envs.toy import ToySimulator
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"

PUBLISHED = [
    "Model", "Family", "Update", "Path", "Reward", "RewardStd", "Cost_Sum", "CostStd", "C_forget_Sum", "C_forget_Rate",
    "Episode_Length", "KL_vs_Unsafe", "KL_Near_vs_Unsafe", "KL_Far_vs_Unsafe", "KL_Locality_Ratio_vs_Unsafe",
    "KL_vs_OracleRef", "OracleRef",
]  # fmt: skip
PUBLISHED_EPISODE = ["reward", "cost_sum", "cforget_sum", "cforget_rate", "episode_length", "episode_idx"]
PUBLISHED_EPISODE += ["Model", "Family", "Update"]
FILES = ["metadata.json", "per_episode.csv", "summary.csv", "summary.json"]


def evaluate(*args, episodes=3):
    cli.main(["evaluate", "--env", TOY, "--episodes", str(episodes), "--kl_states", "60", *args])


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def models(register):
    return {
        "unsafe": register("unsafe", 10, 2.0),
        "oracle_300": register("oracle", 300, -2.0),
        "oracle_450": register("oracle", 450, -1.0),
        "concept_50": register("concept", 50, 0.0),
    }


def test_all_models_of_a_seed_are_found_and_compared(models, register, tmp_path, capsys):
    register("concept", 50, 0.1, seed=1)
    evaluate("--eval_id", "first")
    folder = tmp_path / "artifacts/eval/policy_suite_eval/first"
    assert sorted(p.name for p in folder.iterdir()) == FILES
    table = pd.read_csv(folder / "summary.csv", index_col=False)
    assert table.columns.tolist()[:17] == PUBLISHED
    assert dict(zip(table["Model"], table["Path"], strict=True)) == models
    table = table.set_index("Model")
    assert table.loc["unsafe", "KL_Locality_Ratio_vs_Unsafe"] == 1.0
    assert table.loc["unsafe", "KL_vs_Unsafe"] == pytest.approx(0.0, abs=1e-7)
    assert set(table["OracleRef"]) == {"oracle_450"}
    assert table.loc["oracle_450", "KL_vs_OracleRef"] == pytest.approx(0.0, abs=1e-7)
    assert table.loc["oracle_300", "KL_vs_OracleRef"] > 0
    assert table.loc["unsafe", "Cost_Sum"] > 20 > table.loc["oracle_450", "Cost_Sum"] == 0
    assert set(table["Near_By"]) == {"steps until the next C_forget of the episode"}
    assert table[["Reward_Seeds_Low", "Cost_Seeds_High"]].isna().all(axis=None)
    assert strict_json(folder / "summary.json")["notes"][-1].startswith("One training seed: there is no interval")
    assert "no interval over seeds" in capsys.readouterr().out


def test_an_edit_without_effect_is_said_to_have_none(register, tmp_path, capsys):
    register("unsafe", 10, 2.0)
    register("repedit", 50, 2.0)
    evaluate("--out", "DIR")
    assert "Without effect (KL from the unsafe expert below 1e-06): repedit_50." in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "DIR/summary.csv").set_index("Model")
    assert table.loc["repedit_50", "KL_Locality_Ratio_vs_Unsafe"] == 1.0


def test_summary_says_what_the_episodes_say(models, tmp_path):
    evaluate("--out", "DIR")
    episodes = pd.read_csv(tmp_path / "DIR/per_episode.csv")
    assert episodes.columns.tolist()[:9] == PUBLISHED_EPISODE
    table = pd.read_csv(tmp_path / "DIR/summary.csv").set_index("Model")
    by_model = episodes.groupby("Model")
    pairs = {"Reward": "reward", "Cost_Sum": "cost_sum", "C_forget_Rate": "cforget_rate"}
    for column, source in pairs.items():
        pd.testing.assert_series_equal(by_model[source].mean(), table[column].sort_index(), check_names=False)
    std = by_model["cost_sum"].std(ddof=0)
    pd.testing.assert_series_equal(std, table["CostStd"].sort_index(), check_names=False)
    assert episodes["layout_seed"].tolist() == [10000, 10001, 10002] * 4


def test_files_are_strict_json_and_lie_in_mlflow_too(models, tmp_path):
    evaluate("--out", "DIR", "--models", models["concept_50"])
    metadata = strict_json(tmp_path / "DIR/metadata.json")
    assert list(metadata["models"]) == ["unsafe", "concept_50"]
    assert metadata["video"]["renderer"].startswith("top view")
    (row,) = [r for r in strict_json(tmp_path / "DIR/summary.json")["models"] if r["Model"] == "unsafe"]
    assert row["Cost_Per_Goal"] is None
    (run,) = mlflow.search_runs(experiment_names=[TOY], filter_string="tags.audit='policy-suite'", output_format="list")
    stored = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "eval/policy_suite_eval/DIR")}
    assert stored == {f"eval/policy_suite_eval/DIR/{name}" for name in [*FILES, "summary_table.json"]}
    assert run.data.metrics["unsafe/Cost_Sum"] == row["Cost_Sum"]
    place = "eval/policy_suite_eval/DIR/summary_table.json"
    shown = mlflow.MlflowClient().load_table(run.info.experiment_id, place, [run.info.run_id])
    assert shown["Model"].tolist() == ["unsafe", "concept_50"]


def test_several_seeds_give_intervals_and_a_verdict(register, tmp_path, capsys):
    for seed in range(3):
        register("unsafe", 10, 2.0, seed)
        register("concept", 50, -1.0, seed)
    evaluate("--out", "DIR", "--seed", "0", "1", "2")
    table = pd.read_csv(tmp_path / "DIR/summary.csv").set_index("Model")
    assert table.index.tolist() == [f"{m}_seed{s}" for m in ("unsafe", "concept_50") for s in range(3)]
    row = table.loc["unsafe_seed0"]
    assert row["Cost_Seeds_Low"] <= table["Cost_Sum"][:3].mean() <= row["Cost_Seeds_High"]
    assert table["Seeds"].tolist() == [3] * 6
    unsafe, concept = sorted(strict_json(tmp_path / "DIR/summary.json")["over_seeds"], key=lambda r: -r["Update"])[::-1]
    assert concept["return_kept"]["superior"] is True
    assert concept["return_kept"]["both"] is False
    assert concept["probability_that_a_seed_costs_less"] == 1.0
    assert concept["return_kept"]["p_value_holm"] == concept["return_kept"]["p_value"] > 0.05
    assert "return_kept" not in unsafe


def test_fewer_episodes_than_published_and_failures_of_the_simulator_are_said(models, tmp_path, monkeypatch):
    step, failing = ToySimulator.step, []

    def failed_once(self, actions):
        result = step(self, actions)
        if not failing:
            failing.append(True)
            result.failed[1] = result.truncated[1] = True
        return result

    monkeypatch.setattr(ToySimulator, "step", failed_once)
    evaluate("--out", "DIR", "--models", "concept")
    notes = strict_json(tmp_path / "DIR/summary.json")["notes"]
    assert "unsafe: the simulator cut 1 of 3 episodes short." in notes
    assert "3 episodes of a model: fewer than the 50 of published evaluations." in notes
    assert pd.read_csv(tmp_path / "DIR/summary.csv")["Failed_Episodes"].tolist() == [1, 0]


def test_an_evaluation_that_max_steps_cut_says_so(models, tmp_path, capsys):
    evaluate("--out", "cut", "--models", "concept", "--max_steps", "10")
    printed = capsys.readouterr().out
    evaluate("--out", "whole", "--models", "concept", "--max_steps", "32")
    note = "concept_50: --max_steps cut 3 of 3 episodes before their end"
    assert note in printed
    assert "Cut_Episodes" in printed
    assert "Cut_Episodes" not in capsys.readouterr().out
    assert any(note in said for said in strict_json(tmp_path / "cut/summary.json")["notes"])
    cut, whole = (pd.read_csv(tmp_path / name / "summary.csv") for name in ("cut", "whole"))
    assert (cut["Cut_Episodes"].tolist(), whole["Cut_Episodes"].tolist()) == ([3, 3], [0, 0])
    assert pd.read_csv(tmp_path / "cut/per_episode.csv")["cut_at_max_steps"].all()


def test_stochastic_episodes_are_another_question(models, tmp_path):
    for name, extra in (("a", []), ("b", ["--stochastic"]), ("c", ["--stochastic"])):
        evaluate("--out", name, *extra)
    a, b, c = (pd.read_csv(tmp_path / name / "summary.csv") for name in "abc")
    pd.testing.assert_frame_equal(b, c)
    assert not a["Reward"].equals(b["Reward"])
    assert a["KL_vs_Unsafe"].equals(b["KL_vs_Unsafe"])
    assert set(b["Policy"]) == {"stochastic"}


def test_videos_are_named_after_the_models(models, tmp_path):
    evaluate("--out", "DIR", "--record_videos", "--models", "concept")
    names = sorted(p.name for p in (tmp_path / "DIR/videos").iterdir())
    assert names == ["concept_50.gif", "concept_50.png", "unsafe.gif"]
    assert strict_json(tmp_path / "DIR/metadata.json")["video"]["layout_seed"] in (10000, 10001, 10002)


def test_an_interrupted_evaluation_goes_on_with_what_is_not_done(models, tmp_path, monkeypatch, capsys):
    evaluate("--eval_id", "whole")
    write, written = policy_suite.Suite.examine, []

    def interrupted(self, comparison):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(comparison.model.label)
        return write(self, comparison)

    monkeypatch.setattr(policy_suite.Suite, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate("--eval_id", "cut")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    evaluate("--eval_id", "cut")
    printed = capsys.readouterr().out
    assert printed.count("done before") == 2
    whole, cut = (tmp_path / "artifacts/eval/policy_suite_eval" / name / "summary.csv" for name in ("whole", "cut"))
    assert whole.read_text() == cut.read_text()
    assert not (cut.parent / "partial").exists()
    evaluate("--eval_id", "cut")
    assert "finished already" in capsys.readouterr().out


def test_an_evaluation_cut_while_writing_needs_no_new_episodes(models, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(policy_suite, "write_files", full)
    with pytest.raises(OSError, match="no space left"):
        evaluate("--eval_id", "cut")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy_suite.Suite, "examine", full)
    evaluate("--eval_id", "cut")
    folder = tmp_path / "artifacts/eval/policy_suite_eval/cut"
    assert sorted(p.name for p in folder.iterdir()) == FILES


def test_what_is_left_of_other_weights_is_not_taken_over(models, register, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(policy_suite, "write_files", full)
        with pytest.raises(OSError, match="no space left"):
            evaluate("--eval_id", "cut", "--models", "concept")
    register("concept", 50, 1.5)
    capsys.readouterr()
    evaluate("--eval_id", "cut", "--models", "concept")
    assert capsys.readouterr().out.count("done before") == 1  # the expert
    evaluate("--eval_id", "afresh", "--models", "concept")
    cut, afresh = (tmp_path / "artifacts/eval/policy_suite_eval" / name / "summary.csv" for name in ("cut", "afresh"))
    assert cut.read_text() == afresh.read_text()


def test_a_damaged_result_is_made_again(models, tmp_path, capsys):
    partial = tmp_path / "DIR/partial"
    partial.mkdir(parents=True)
    (partial / "unsafe.json").write_text("{damaged")
    evaluate("--out", "DIR")
    assert "done before" not in capsys.readouterr().out


def test_a_file_of_the_published_layout_is_a_model(models, tmp_path, capsys):
    cli.main(["export-artifacts", "--env", TOY, "--out", "tree"])
    path = f"tree/models/concept/safe_concept_{TOY}_50.pt"
    evaluate("--out", "a", "--models", path, "--unsafe_model", f"tree/models/unsafe/unsafe_expert_{TOY}.pt")
    evaluate("--out", "b", "--models", "concept")
    a, b = (pd.read_csv(tmp_path / name / "summary.csv").set_index("Model") for name in "ab")
    assert a.loc["concept_50", "Path"] == path
    for column in ("Reward", "Cost_Sum", "KL_vs_Unsafe", "Family", "Update"):
        assert a.loc["concept_50", column] == b.loc["concept_50", column]


def test_an_expert_that_is_named_by_its_uri_is_compared_with(models, register, tmp_path):
    newer = register("unsafe", 5, -2.0)
    uris = [models["unsafe"], models["concept_50"]]
    evaluate("--out", "named", "--models", *uris)
    evaluate("--out", "newest", "--models", uris[1])
    compared = {name: json.loads((tmp_path / name / "metadata.json").read_text()) for name in ("named", "newest")}
    experts = {name: about["models"]["concept_50"]["unsafe"] for name, about in compared.items()}
    assert experts == {"named": models["unsafe"], "newest": newer}


def test_an_evaluation_that_could_not_be_recorded_is_recorded_the_next_time(models, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise ValueError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "record_audit", fails)
        with pytest.raises(ValueError, match="the server is away"):
            evaluate("--eval_id", "e")
    evaluate("--eval_id", "e")
    assert "is finished already" in capsys.readouterr().out
    assert [run.params["eval_id"] for run in runs.stored_runs(TOY) if run.audit == "policy-suite"] == ["e"]


def test_a_finished_evaluation_is_recorded_in_a_store_that_has_it_not(models, capsys):
    def recorded():
        return [run.run_id for run in runs.stored_runs(TOY) if run.audit == "policy-suite"]

    evaluate("--eval_id", "e")
    (first,) = recorded()
    evaluate("--eval_id", "e")
    assert recorded() == [first]
    mlflow.MlflowClient().delete_run(first)
    evaluate("--eval_id", "e")
    (second,) = recorded()
    assert f"MLflow run: {second}" in capsys.readouterr().out
    assert runs.artifact_paths(second, "eval/policy_suite_eval/e")


def test_a_method_may_have_digits_in_its_name(models, register, tmp_path):
    register("concept_10", 50, 0.5)
    evaluate("--out", "a", "--models", "concept_10")
    assert pd.read_csv(tmp_path / "a/summary.csv")["Model"].tolist() == ["unsafe", "concept_10_50"]


def test_the_shipped_models_of_the_main_task_need_no_registry(store, tmp_path):
    short = "--episodes 2 --max_steps 40 --kl_states 50 --out DIR"
    cli.main(f"evaluate --env SafetyPointGoal1-v0 --models zoo {short}".split())
    assert sorted(p.name for p in (tmp_path / "DIR").iterdir()) == FILES
    rows = pd.read_csv(tmp_path / "DIR/summary.csv")
    assert rows["Model"].tolist() == ["unsafe", "concept_tuned_600"]
    assert set(zip(rows["Episode_Length"], rows["Near_By"], strict=True)) == {(40, "1 - max(hazards_lidar)")}


def test_what_cannot_be_evaluated_is_refused_before_work_starts(store, register, refused, tmp_path):
    assert "no model of ToyLine-v0 with --seed 0 was found" in refused("evaluate", "--env", TOY)
    assert "ships no model of Other-v0" in refused("evaluate", "--env", "Other-v0", "--models", "zoo")
    register("concept", 50, 0.0)
    uri = register("concept", 50, 0.0, env="Other-v0")
    assert "models of several environments cannot be mixed" in refused("evaluate", "--env", TOY, "--models", uri)
    assert "--expert is missing" in refused("evaluate", "--env", "Other-v0")
    assert "--models models:/nope/1" in refused("evaluate", "--env", TOY, "--models", "models:/nope/1")
    assert "concept is there" in refused("evaluate", "--env", TOY, "--models", "conceptt")
    assert "--oracle nowhere.pt" in refused("evaluate", "--env", TOY, "--oracle_ref_path", "nowhere.pt")
    for option in ("episodes", "kl_states", "max_steps", "workers"):
        assert f"{option}=0" in refused("evaluate", "--env", TOY, f"--{option}", "0")
    assert "Did you mean" in refused("evaluate", "--episode", "3")
    assert "--eval_id" in refused("evaluate", "--env", TOY, "--eval_id", "../x")
    assert not (tmp_path / "artifacts").exists()


def test_a_nameless_model_of_another_size_is_refused(store, refused, policy, tmp_path):
    save_policy(tmp_path / "stray", policy, ModelCard())
    message = refused("evaluate", "--models", "stray", "--episodes", "2", "--out", "DIR")
    assert "--models stray takes 2 observations" in message
    assert "SafetyPointGoal1-v0 has 60 and 2" in message


def test_videos_of_a_task_without_a_map_are_refused_before_episodes_run(models, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(ToySimulator, "top_view", lambda _: TopView())
    monkeypatch.setattr(policy_suite.Suite, "examine", lambda *_: pytest.fail("an episode was run"))
    message = refused("evaluate", "--env", TOY, "--episodes", "2", "--record_videos", "--out", "DIR")
    assert "--record_videos is not possible in ToyLine-v0" in message
    assert not (tmp_path / "DIR/videos").exists()


def test_a_finished_evaluation_is_not_overwritten_by_another(models, refused):
    evaluate("--eval_id", "mine")
    assert "name another" in refused("evaluate", "--env", TOY, "--eval_id", "mine", "--episodes", "2")


def test_help_shows_the_published_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    for option in ("env", "episodes", "max_steps", "kl_states", "record_videos", "oracle_ref_path"):
        assert f"--{option}" in printed


def test_an_infinite_number_is_null_and_said_to_be_infinite(register, tmp_path, capsys):
    register("unsafe", 10, 2.0)
    register("concept", 50, 1e30)  # its square, in the KL, is beyond float32
    evaluate("--out", "DIR", "--kl_states", "5000")
    printed = capsys.readouterr().out
    assert "concept_50: KL_vs_Unsafe is inf" in printed
    assert "concept_50: KL over 96 states, not 5000" in printed  # three episodes of 32 steps
    found = strict_json(tmp_path / "DIR/summary.json")
    assert any("KL_vs_Unsafe is inf" in note for note in found["notes"])
    assert found["models"][1]["KL_vs_Unsafe"] is None
    assert found["not_finite"]["models/1/KL_vs_Unsafe"] == "inf"


def test_a_policy_whose_actions_are_not_finite_is_refused(register, tmp_path, capsys):
    register("unsafe", 10, 2.0)
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4], activation="relu"))
    for parameter in policy.parameters():
        parameter.data.fill_(3e38)
    save_policy(tmp_path / "huge", policy, ModelCard("concept", TOY))
    with pytest.raises(SystemExit):
        evaluate("--models", str(tmp_path / "huge"))
    assert "actions that are not finite" in capsys.readouterr().err


@pytest.fixture
def second_cost(monkeypatch):
    """The toy with a cost of 1 for every step to x < 0, beside its own."""
    original = ToySimulator.step

    def step(self, actions):
        made = original(self, actions)
        left = (made.observation[:, 0] < 0).astype(float)
        made.costs |= {"cost_left": left, "cost_sum": np.maximum(made.costs["cost_hazards"], left)}
        return made

    monkeypatch.setattr(ToySimulator, "step", step)
    monkeypatch.setattr(ToySimulator, "cost_keys", ("cost_hazards", "cost_left", "cost_sum"))


def test_every_kind_of_cost_is_told_before_and_after(register, second_cost, tmp_path, capsys):
    register("unsafe", 10, 2.0)  # pushed right, into the hazard
    register("oracle", 300, -2.0)  # pushed left, away from it
    asked = ["--episodes", "3", "--kl_states", "60", "--out", "DIR", "--concept", "cost_left"]
    cli.main(["evaluate", "--env", TOY, *asked])
    episodes = pd.read_csv(tmp_path / "DIR/per_episode.csv")
    table = pd.read_csv(tmp_path / "DIR/summary.csv").set_index("Model")
    by_model = episodes.groupby("Model")
    for kind in ("cost_hazards", "cost_left"):
        pd.testing.assert_series_equal(by_model[kind].mean(), table[kind].sort_index(), check_names=False)
        change = table[kind] - table.loc["unsafe", kind]
        pd.testing.assert_series_equal(change, table[f"{kind}_Change_vs_Unsafe"], check_names=False)
    assert table.loc["unsafe", "cost_hazards"] > 20 > table.loc["unsafe", "cost_left"]
    assert table.loc["oracle_300", "cost_left"] > 20 > table.loc["oracle_300", "cost_hazards"] == 0
    np.testing.assert_allclose(table["cost_hazards"] + table["cost_left"], table["Cost_Sum"])  # never both in a step
    np.testing.assert_allclose(table["cost_left"], table["C_forget_Sum"])
    printed = capsys.readouterr().out
    assert "Every kind of cost, mean of an episode" in printed
    assert f"{table.loc['oracle_300', 'cost_left']:.2f} (+" in printed
    cli.main(["report", "--env", TOY, "--map_episodes", "2", "--out", "R"])
    shown = (tmp_path / "R/report.md").read_text()
    row = next(line for line in shown.splitlines() if line.startswith("| oracle") and "(+" in line)
    assert f"{table.loc['oracle_300', 'cost_left']:.1f} (+" in row
    columns = json.loads((tmp_path / "DIR/metadata.json").read_text())["columns"]
    assert columns["cost_left"] == "this kind of cost in an episode, mean over episodes"
    assert list(columns) == pd.read_csv(tmp_path / "DIR/summary.csv").columns.tolist()
