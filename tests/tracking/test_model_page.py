"""The descriptions of registered models and versions: a short model card with before and after."""

import re

import mlflow
import numpy as np
import pytest

from lightning_unlearn import fit
from lightning_unlearn.audits.verdict import as_table
from lightning_unlearn.tracking import model_page, runs

NAME = "off_policy_concept.ToyLine-v0"
SMALL = [
    *("-c", "method/off_policy_concept.yaml", "-c", "smoke.yaml", "--cost_limit", "1000", "--lr", "1e-9"),
    *("--model.critic_steps", "20", "--model.steps", "10", "--model.mean_scale", "0.3", "--save_points", "[2,4]"),
]


def rows(text):
    """Rows of the tables of a description: first cell → the others."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in cells}


def test_versions_say_what_they_are_and_the_chosen_one_what_came_of_it(store):
    run, client = fit.train([*SMALL, "--keep_best", "true"]), mlflow.MlflowClient()
    chosen = run.chosen.rpartition("/")[2]
    (other,) = {"1", "2"} - {chosen}
    texts = {version: client.get_model_version(NAME, version).description for version in (chosen, other)}
    for version, text in texts.items():
        facts = rows(text)
        assert facts["method"] == ["`off_policy_concept`"]
        assert facts["training seed"] == ["0"]
        assert facts["run"] == [
            f"[off_policy_concept-seed0](#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning)"
        ]
        assert f"mlflow models serve --env-manager local -m models:/{NAME}/{version}" in text
        assert len(text) < 5000  # room in a database
    assert "with the noise of exploration" in texts[other]
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "rollout/episode_return")
    before, _ = rows(texts[other])["episode return"]
    assert float(before) == pytest.approx(min(points, key=lambda point: point.step).value, rel=0.01)
    assert run.verdict.in_words() in texts[chosen]
    assert rows(texts[chosen])["return"][1].startswith(f"{run.verdict.mean_return:.1f} [")
    assert f"[version {chosen}](#/models/{NAME}/versions/{chosen})" in client.get_registered_model(NAME).description
    path = re.search(r"get-artifact\?path=([^&]*)&run_uuid=(\w+)", texts[chosen])
    assert path[2] == run.run_id
    assert runs.read_artifact(run.run_id, path[1].replace("%2F", "/"))[:4] == b"\x89PNG"


def test_a_section_is_written_anew_and_what_others_wrote_stays():
    text = "My own words.\n\n## Before and after\n\nold\n\n## Use\n\nlike this"
    assert model_page.with_before_and_after(text, "new") == text.replace("old", "new")
    assert model_page.with_before_and_after("", "new") == "## Before and after\n\nnew"
    assert model_page.with_before_and_after("Of before.", "new") == "Of before.\n\n## Before and after\n\nnew"


def test_the_table_of_before_and_after_by_hand():
    before = {"reward": [10.0, 12.0], "cforget_sum": [60.0, 60.0], "cost_sum": [1.0, 1.0], "episode_length": [9, 9]}
    after = before | {"reward": np.array([9.0, 9.0]), "cforget_sum": [0.0, 2.0]}
    found = rows(as_table({"before": before, "after": after}))
    reach = 12.706  # Student's t with one degree of freedom, times the standard error, 1
    assert found["return"] == [f"11.0 [{11 - reach:.3g}, {11 + reach:.3g}]", "9.0 [9, 9]"]
    assert found["C_forget"] == ["60.0 [60, 60]", f"1.0 [{1 - reach:.3g}, {1 + reach:.3g}]"]
