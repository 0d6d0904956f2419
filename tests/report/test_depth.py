"""The section "How deep": relearning, patching and the way to the expert, side by side over training seeds."""

import math

import pandas as pd
import pytest
from scipy.stats import t as student

from lightning_unlearn import cli
from lightning_unlearn.report.context import Measure, number
from lightning_unlearn.report.depth import trust
from lightning_unlearn.report.findings import ModelOrigin

TOY = "ToyLine-v0"
CONCEPT, RANDOM = ModelOrigin("concept", 50), ModelOrigin("random")


def report(tmp_path):
    cli.main(["report", "--env", TOY, "--map_episodes", "0", "--out", "R"])
    text = (tmp_path / "R/report.md").read_text().replace("\\", "")
    part = text.partition("## How deep\n")[2].partition("\n## ")[0]
    return part, [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line]


def test_a_measure_is_summed_up_over_seeds_as_worked_out_by_hand():
    measure = Measure("t", "r", lambda value: number(value, 2), {CONCEPT: [1.0, 2.0, 6.0], RANDOM: [4.0]})
    reach = student.ppf(0.975, 2) * math.sqrt(7.0) / math.sqrt(3)  # variance (4 + 1 + 9) / 2
    assert measure.middle(CONCEPT) == 3.0
    assert measure.interval(CONCEPT) == pytest.approx((3.0 - reach, 3.0 + reach))
    assert measure.cell(CONCEPT) == f"3.00 [\N{MINUS SIGN}{reach - 3:.2f}, {3 + reach:.2f}]"
    assert (measure.interval(RANDOM), measure.cell(RANDOM)) == (None, "4.00")
    assert measure.cell(ModelOrigin("oracle", 450)) == "\N{EN DASH}"


def test_times_are_summed_up_by_kaplan_and_meier():
    times = {CONCEPT: [5, 9, 100], RANDOM: [9, 9]}
    measure = Measure("t", "r", str, times, {CONCEPT: [False, True, False], RANDOM: [True, True]})
    assert measure.middle(CONCEPT) == 100.0  # two thirds after 5; of those left, none outlasts 100
    assert measure.interval(CONCEPT) is None
    assert [measure.cell(model) for model in (CONCEPT, RANDOM)] == ["100.0 (2 of 3)", "> 9 (0 of 2)"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_section_shows_what_the_store_holds(register, tmp_path):
    short = ["--horizon", "32", "--max_updates", "1", "--eval_every", "1", "--eval_episodes", "2"]
    repaired = []
    for seed in (0, 1):
        register("unsafe", 10, 2.0 + seed, seed)
        repaired.append(register("concept", 50, -1.0, seed))
    assert report(tmp_path) == ("", [])
    cli.main(["relearn", "--env", TOY, "--models", repaired[0], *short])
    assert report(tmp_path) == ("", [])  # one curve is in the section on relearning
    for command in ("patch", "weight-path"):
        cli.main([command, "--env", TOY, "--models", "concept", "random", "--seed", "0", "1", "--episodes", "3",
                  "--workers", "1", "--out", command])  # fmt: skip
    cli.main(["elicit", "--env", TOY, "--models", "concept", "--seed", "0", "1", "--episodes", "3", "--candidates", "1",
              "--epsilons", "0.05", "0.1", "--workers", "1", "--out", "elicit"])  # fmt: skip
    text, (header, _, *rows) = report(tmp_path)
    assert "figures/how_deep.svg" in text
    assert (tmp_path / "R/figures/how_deep.svg").read_bytes().count(b"<svg") == 1
    assert header == [
        "model", "steps to relearn (ppo)", "cost that returns, sensors off by 0.1 SD (gradient)",
        "cost that returns, sensors off by 0.1 SD (random)", "cost that returns with the expert's trunk 1",
        "cost that returns with the expert's trunk 2", "distance from the expert's weights",
        "cost barrier on the line to the expert", "return barrier on the line to the expert",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["concept 50", "random", "trust (AUC)"]
    concept, random, trusted = rows
    audits = ["relearn_ppo", "elicit_gradient", "elicit_random", "patch_trunk_1", "patch_trunk_2", "l2_distance",
              "cost_barrier", "return_barrier"]  # fmt: skip
    assert trusted[1:] == list(map(trust, audits))
    patched = pd.read_csv(tmp_path / "patch/patching.csv")
    own = patched[(patched["method"] == "concept") & (patched["direction"] == "expert into repaired")]
    for place, layer in ((4, "trunk 1"), (5, "trunk 2")):
        share = own.loc[own["layer"] == layer, "returned"].mean()
        assert concept[place].startswith(f"{100 * share:.0f} % [")
    elicited = pd.read_csv(tmp_path / "elicit/elicitation.csv")
    for place, attack in ((2, "gradient"), (3, "random")):
        same = (elicited["method"] == "concept") & (elicited["attack"] == attack) & (elicited["epsilon"] == 0.1)
        assert concept[place].startswith(f"{100 * elicited.loc[same, 'returned'].mean():.0f} % [")
    path = pd.read_csv(tmp_path / "weight-path/weight_path.csv")
    distances = path.loc[path["method"] == "concept", "l2_distance"]
    assert concept[6].startswith(f"{distances.mean():.2f} [")
    assert concept[1] == "> 32 (0 of 1)"
    assert random[1] == "\N{EN DASH}"
    assert "[" not in random[6]  # one network
    assert f"{path.loc[path['method'] == 'random', 'cost_barrier'].item():.2f}" == random[7]
    page = (tmp_path / "R/report.html").read_text()
    assert page.index('id="how-deep"') < page.index('id="relearning"')
    assert "patch: run" in page
