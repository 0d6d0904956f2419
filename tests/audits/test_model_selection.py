import json

import mlflow
import pandas as pd
import pytest

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits.model_selection import Validated, choices_of_seeds, choose, in_words
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.seeding import EVALUATION_BANK, TRAINING_SEED_FLOOR, VALIDATION_BANK, validation_layouts
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.registry import RegisteredModel

TOY = "ToyLine-v0"
NAME = f"concept.{TOY}"


def validated(update, reward, cost, seed=0):
    """A save point of two episodes with these means, and of one that the simulator failed."""
    episodes = pd.DataFrame(
        {
            "reward": [reward - 1, reward + 1, 1000.0],
            "cost_sum": [0.0, 0.0, 0.0],
            "cforget_sum": [0.0, 2 * cost, 0.0],
            "simulator_failed": [False, False, True],
            "cut_at_max_steps": [False, False, False],
        }
    )
    return Validated(RegisteredModel(f"models:/{NAME}/{update}", "concept", seed, update, "r"), episodes)


def select(*args, method="concept", episodes=4):
    cli.main(["select", "--env", TOY, "--method", method, "--episodes", str(episodes), *args])


def version_at(alias):
    return mlflow.MlflowClient().get_model_version_by_alias(NAME, alias)


def chosen_tags(version):
    tags = mlflow.MlflowClient().get_model_version(NAME, version).tags
    return {key.removeprefix("selected."): value for key, value in tags.items() if key.startswith("selected.")}


def test_the_cost_limit_comes_first_and_then_the_return():
    a, b, c = validated(50, 9.0, 26.0), validated(100, 7.0, 25.0), validated(150, 6.0, 3.0)
    assert choose([a, b, c], 25.0) is b  # 9 is the highest return, but costs 26
    assert choose([a, b, c], 26.0) is a
    assert choose([a, b, c], 10.0) is c


def test_if_none_is_within_the_limit_the_cheapest_is_chosen_and_it_is_said():
    found = [validated(50, 9.0, 40.0), validated(100, 1.0, 30.0)]
    assert choose(found, 25.0) is found[1]
    assert "NONE of 2 is within the cost limit 25; it costs least" in in_words(found[1], found, 25.0)
    assert "the highest return of 1 within the cost limit 35" in in_words(found[1], found, 35.0)


def test_equals_are_told_apart_by_cost_then_by_the_earliest():
    found = [validated(150, 5.0, 4.0), validated(100, 5.0, 3.0), validated(50, 5.0, 3.0)]
    assert choose(found, 25.0) is found[2]
    assert choose(found[::-1], 1.0) is found[2]


def test_a_save_point_whose_every_episode_failed_is_chosen_last():
    broken, costly = validated(50, 9.0, 0.0), validated(100, 1.0, 99.0)
    broken.episodes["simulator_failed"] = True
    assert choose([broken, costly], 25.0) is costly
    assert broken.row(25.0)["Failed_Episodes"] == 3
    assert not broken.row(25.0)["Within_Limit"]


def test_each_seed_chooses_among_its_own():
    found = [validated(50, 5.0, 4.0, seed=1), validated(50, 9.0, 4.0), validated(100, 6.0, 4.0, seed=1)]
    assert choices_of_seeds(found, 25.0) == {0: found[1], 1: found[2]}


def test_validation_layouts_are_never_reported_on_nor_trained_in():
    assert validation_layouts(3) == [20000, 20001, 20002]
    assert validation_layouts(10, EVALUATION_BANK - 10)[-1] == EVALUATION_BANK - 1
    for episodes, first in ((1, EVALUATION_BANK), (11, EVALUATION_BANK - 10), (50, VALIDATION_BANK - 1)):
        with pytest.raises(ValueError, match="layouts that results are reported on: begin at 20000"):
            validation_layouts(episodes, first)
    for episodes, first in ((1001, VALIDATION_BANK), (1, 21_000), (500, 21_099)):
        with pytest.raises(ValueError, match="21000 to 21099, the layouts that verdicts are given on"):
            validation_layouts(episodes, first)
    assert validation_layouts(1000)[-1] == 20_999
    assert validation_layouts(1, 21_100) == [21_100]
    for episodes, first in ((1, -1), (2, TRAINING_SEED_FLOOR - 1)):
        with pytest.raises(ValueError, match="use layouts from 0 to 2147483647"):
            validation_layouts(episodes, first)


def test_the_limit_is_on_the_concept_that_is_named(models, tmp_path, capsys):
    left = ["--concept", "ObservationRange", "--concept.part", "position", "--concept.below", "-0.5"]
    select("--out", "S", "--cost_limit", "1", *left)
    found = json.loads((tmp_path / "S/selection.json").read_text())
    chosen = found["selected_of_seed"]["0"]
    assert (chosen["Update"], chosen["Cost_Sum"] > 20, chosen["C_forget_Sum"]) == (50, True, 0.0)  # far from the left
    assert json.loads(found["concept"])["init_args"]["below"] == -0.5
    assert "C_forget 0.00 an episode): the highest return of" in capsys.readouterr().out
    select("--out", "T", "--cost_limit", "1")
    assert json.loads((tmp_path / "T/selection.json").read_text())["selected_of_seed"]["0"]["Update"] != 50


@pytest.fixture
def models(register):
    """A toy policy costs what it pushes into the hazard: update 50 much, 100 nothing, 150 nothing but far away."""
    return {update: register("concept", update, push) for update, push in ((50, 2.0), (100, -0.05), (150, -2.0))}


def test_a_save_point_is_chosen_named_and_recorded(models, tmp_path, capsys):
    select("--out", "DIR", "--cost_limit", "5")
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "DIR/validation.csv")
    assert table["Path"].tolist() == list(models.values())
    within = table[table["Cost_Sum"] <= 5]
    best = within.loc[within["Reward"].idxmax()]
    assert table["Within_Limit"].tolist() == (table["Cost_Sum"] <= 5).tolist() == [False, True, True]
    assert table.loc[table["Selected"], "Update"].tolist() == [best["Update"]]
    for alias in ("selected", "seed-0-selected"):
        assert f"models:/{NAME}/{version_at(alias).version}" == best["Path"]
        assert f"models:/{NAME}@{alias}" in printed
    assert "the highest return of 2 within the cost limit 5" in printed
    episodes = pd.read_csv(tmp_path / "DIR/per_episode.csv")
    assert episodes["layout_seed"].tolist() == [20000, 20001, 20002, 20003] * 3
    means = episodes.groupby("Update")["cost_sum"].mean()
    assert means.tolist() == table["Cost_Sum"].tolist()


def test_what_it_was_chosen_by_is_in_the_tags_the_run_and_the_file(models, tmp_path):
    select("--out", "DIR", "--cost_limit", "5")
    tags = chosen_tags(version_at("selected").version)
    run = mlflow.MlflowClient().get_run(tags["run"])
    assert (run.data.tags["audit"], run.info.status, run.data.params["cost_limit"]) == ("select", "FINISHED", "5.0")
    stored = {file.path for file in mlflow.MlflowClient().list_artifacts(tags["run"], "eval/save_point_selection/DIR")}
    files = ("per_episode.csv", "selection.json", "validation.csv")
    assert stored == {f"eval/save_point_selection/DIR/{name}" for name in files}
    content = json.loads((tmp_path / "DIR/selection.json").read_text())
    assert content["rule"] == tags["rule"]
    assert content["layouts"] == tags["layouts"] == "20000 to 20003"
    assert (tags["cost_limit"], tags["within_limit"]) == ("5.0", "true")
    row = content["selected_of_seed"]["0"]
    assert float(tags["mean_return"]) == pytest.approx(row["Reward"], rel=1e-5)
    assert run.data.metrics[f"seed_0/update_{row['Update']}/Cost_Sum"] == row["Cost_Sum"] == 0


def test_another_choice_moves_the_alias_and_takes_the_tags_along(models):
    select("--cost_limit", "5")
    first = version_at("selected").version
    select("--cost_limit", "1000")
    second = version_at("selected").version
    assert models[50] == f"models:/{NAME}/{second}"
    assert first != second
    assert chosen_tags(second)["cost_limit"] == "1000.0"
    assert chosen_tags(first) == {}
    assert version_at("seed-0-selected").version == second
    assert set(mlflow.MlflowClient().get_model_version(NAME, first).tags) >= {"method", "env", "seed", "update"}


def test_several_seeds_have_a_choice_each_and_the_best_of_them_is_the_selected(models, register, tmp_path, capsys):
    register("concept", 50, 2.0, seed=1)
    register("concept", 100, -2.0, seed=1)
    select("--seed", "0", "1", "--cost_limit", "5", "--out", "DIR")
    table = pd.read_csv(tmp_path / "DIR/validation.csv").set_index(["Seed", "Update"])
    updates = [int(version_at(f"seed-{seed}-selected").tags["update"]) for seed in (0, 1)]
    assert [table.loc[(seed, update), "Selected"] for seed, update in enumerate(updates)] == [True, True]
    assert table["Selected"].sum() == 2
    rewards = [table.loc[(seed, update), "Reward"] for seed, update in enumerate(updates)]
    best = rewards.index(max(rewards))
    assert version_at("selected").version == version_at(f"seed-{best}-selected").version
    assert f"@selected is that of seed {best}" in capsys.readouterr().out


def test_what_was_selected_is_taken_wherever_a_model_is(models, register, tmp_path):
    register("unsafe", 10, 2.0)
    select("--cost_limit", "5")
    chosen = version_at("selected")
    uri = f"models:/{NAME}@selected"
    policy = lu.load_policy(uri)
    stored = registry.load_policy(f"models:/{NAME}/{chosen.version}").policy
    assert weights_digest(policy) == weights_digest(stored)
    names = {uri: f"concept_{chosen.tags['update']}", "concept@selected": "concept_selected"}
    for number, (asked, label) in enumerate(names.items()):
        options = f"evaluate --env {TOY} --models {asked} --episodes 2 --kl_states 20 --out {number}"
        cli.main(options.split())
        assert label in pd.read_csv(tmp_path / f"{number}/summary.csv")["Model"].tolist()


def test_the_seeds_choices_are_one_family_with_an_interval_over_seeds(models, register, tmp_path):
    register("unsafe", 10, 2.0)
    register("unsafe", 10, 1.5, seed=1)
    register("concept", 150, -2.0, seed=1)  # another update than seed 0's: it has none of 150 within the limit
    select("--seed", "0", "1", "--cost_limit", "0")
    asked = f"evaluate --env {TOY} --models concept@selected unsafe --seed 0 1 --episodes 2 --kl_states 20 --out o"
    cli.main(asked.split())
    chosen = pd.read_csv(tmp_path / "o/summary.csv").set_index("Family").loc["concept_selected"]
    assert chosen["Path"].tolist() == [f"models:/{NAME}@seed-{seed}-selected" for seed in (0, 1)]
    assert len({version_at(f"seed-{seed}-selected").tags["update"] for seed in (0, 1)}) == 2
    assert chosen["Seeds"].tolist() == [2, 2]
    assert chosen["Update"].isna().all()


def test_a_seed_without_a_choice_is_named_with_the_command_that_makes_one(models, refused):
    message = refused("evaluate", "--env", TOY, "--models", "concept@selected", "--seed", "3")
    assert "no save point of concept with seed 3 is selected in ToyLine-v0" in message
    assert "`lightning-unlearn select --env ToyLine-v0 --method concept --seed 3`" in message


def test_a_run_of_no_use_and_two_of_one_seed_are_refused(models, register, refused):
    newer = mlflow.MlflowClient().get_model_version(NAME, register("concept", 100, 2.0).rpartition("/")[2]).run_id
    older = version_at("seed-0-update-50").run_id
    asked = ("select", "--env", TOY, "--method", "concept", "--episodes", "4", "--run")
    assert f"--run {' '.join(sorted((newer, older)))} are all of seed 0" in refused(*asked, newer, older)
    assert "--run other has no save point of concept with these seeds" in refused(*asked, newer, "other")


def test_only_save_points_of_the_named_run_are_looked_at(models, register, tmp_path, capsys):
    newer = register("concept", 100, 2.0)
    select("--out", "all")
    assert "seed 0: the newest save point of each update, from 3 runs" in capsys.readouterr().out
    assert newer in pd.read_csv(tmp_path / "all/validation.csv")["Path"].tolist()
    run = mlflow.MlflowClient().get_model_version(NAME, models[100].rpartition("/")[2]).run_id
    select("--out", "one", "--run", run)
    assert pd.read_csv(tmp_path / "one/validation.csv")["Path"].tolist() == [models[100]]


def test_nothing_within_the_limit_is_said_and_tagged(register, capsys):
    register("concept", 50, 2.0)
    select("--cost_limit", "0")
    assert "NONE of 1 is within the cost limit 0; it costs least" in capsys.readouterr().out
    assert chosen_tags("1")["within_limit"] == "false"


def test_episodes_that_max_steps_cut_are_said(models, tmp_path, capsys):
    select("--out", "cut", "--max_steps", "10")
    save_points = len(pd.read_csv(tmp_path / "cut/validation.csv"))
    assert f"--max_steps cut {4 * save_points} episodes before their end" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "cut/validation.csv")["Cut_Episodes"].tolist() == [4] * save_points


def test_what_cannot_be_selected_is_refused_before_work_starts(models, refused, policy, tmp_path):
    def message(*args, method="concept"):
        return refused("select", "--env", TOY, "--method", method, *args)

    assert "reaches into 10000 to 19999" in message("--first_layout", "10000")
    assert "reaches into 10000 to 19999" in message("--first_layout", "9990", "--episodes", "11")
    assert "episodes=0" in message("--episodes", "0")
    assert "--cost_limit -1.0" in message("--cost_limit", "-1")
    assert "--cost_limit inf" in message("--cost_limit", "1e999")
    assert "workers=0" in message("--workers", "0")
    assert "--seed [-1]" in message("--seed", "-1")
    assert "with --seed 7 (nothing is there)" in message("--seed", "0", "7")
    assert "--method oracle: there is no save point of it" in message(method="oracle")
    assert "in --run 0123 (nothing is there)" in message("--run", "0123")
    assert "Did you mean cost_limit" in message("--cost_limits", "3")
    assert not (tmp_path / "artifacts").exists()
    assert chosen_tags("1") == {}


def test_help_names_the_rule_and_the_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["select", "--help"])
    printed = capsys.readouterr().out
    assert "cost limit comes first" in printed
    assert "--cost_limit" in printed
