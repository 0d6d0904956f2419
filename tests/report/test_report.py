import re
from html.parser import HTMLParser
from itertools import combinations

import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lightning_unlearn import cli, fit
from lightning_unlearn.audits.policy_comparison import evaluate
from lightning_unlearn.report.charts import keep_apart
from lightning_unlearn.report.context import Folded, Gallery, Missing, Paragraph, Picture, Section, Table
from lightning_unlearn.report.maps import CELLS, REACH, Places, heat_maps, occupancy, places
from lightning_unlearn.report.report_command import render_html, render_markdown
from lightning_unlearn.tracking import registry

TOY = "ToyLine-v0"
VOID = {"meta", "img"}
SECTIONS = [
    "Results", "Is the return kept, and is the cost lower?", "Return against cost", "Learning", "Relearning", "Probes",
    "Latent shift", "Where the policies drive", "Before and after", "Configs and versions",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would find; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(path):
    return Page(path.read_text())


def report(*args):
    cli.main(["report", "--env", TOY, "--map_episodes", "2", "--out", "R", *args])


def evaluate_models(*args):
    cli.main(["evaluate", "--env", TOY, "--episodes", "2", "--kl_states", "20", *args])


@pytest.fixture
def models(register):
    """Experts and repaired models of two seeds, with curves."""
    found = {}
    for seed in (0, 1):
        for method, update, push in (("unsafe", 10, 2.0), ("concept", 100, -1.0)):
            found[method, update, seed] = register(method, update, push + 0.1 * seed, seed)
            run_id = registry.registered_models(TOY, seed)[-1].run_id
            for step in (256, 512, 768):
                mlflow.MlflowClient().log_metric(run_id, "rollout/episode_return", 3.0 + step / 256 + seed, step=step)
            mlflow.MlflowClient().log_text(run_id, f"seed_everything: {seed}", "config.yaml")
    return found


def audit_everything(models, dataset):
    concept, of = models["concept", 100, 0], ["--dataset", dataset]
    evaluate_models("--seed", "0", "1", "--record_videos", "--eval_id", "both")
    quick = ["--horizon", "64", "--max_updates", "2", "--eval_every", "1", "--eval_episodes", "2"]
    cli.main(["relearn", "--env", TOY, "--model_path", concept, "random", *quick, "--fractions", "0.5"])
    fit = ["--env", TOY, *of, "--model_path", models["unsafe", 10, 0], "--out", "p.npz", "--metrics_out", "fit.json"]
    cli.main(["probe", "fit", *fit])
    cli.main(["probe", "eval", "--probe_path", "p.npz", *of, "--model_path", concept, "--metrics_out", "eval.json"])
    cli.main(
        ["latent-shift", "--env", TOY, *of, "--ref_model_path", models["unsafe", 10, 0], "--cmp_model_path", concept]
    )
    cli.main(["action-control", "--env", TOY, *of, "--model_path", concept, "--metrics_out", "ac.json"])


def test_a_whole_report_carries_everything_with_it(models, dataset, tmp_path, capsys):
    audit_everything(models, dataset)
    report()
    html, markdown = page(tmp_path / "R/report.html"), (tmp_path / "R/report.md").read_text()
    assert re.findall(r"^## (.+)$", markdown, re.MULTILINE) == SECTIONS
    assert all(title in html.text for title in SECTIONS)
    assert all(link.startswith(("data:image/", "#")) for link in html.links)
    assert not {"script", "link", "iframe"} & set(html.tags)
    assert "Make it with" not in html.text
    for said in (
        "concept 100",
        "the expert, and concept 100",
        "Each model against the unsafe expert of its own seed",
        "seed_everything: 1",
    ):
        assert said in html.text
    assert "> 128" in html.text  # what never had the behaviour is censored
    assert "concept 100, seed 0: stored" in html.text
    pictures = {p.name for p in (tmp_path / "R/figures").iterdir()}
    assert set(re.findall(r"\(figures/(.+?)\)", markdown)) == pictures
    assert pictures >= {"return_against_cost.svg", "rollout_episode_return.svg", "relearning.svg", "probes.svg"}
    assert pictures >= {"shift_latent.svg", "places_unsafe_10.png", "places_concept_100.png", "concept_100.gif"}
    (stored,) = mlflow.search_runs(experiment_names=[TOY], filter_string="tags.audit='report'", output_format="list")
    names = {f.path for f in mlflow.MlflowClient().list_artifacts(stored.info.run_id, "report")}
    assert names == {"report/report.html", "report/report.md", "report/figures"}
    assert "report.html" in capsys.readouterr().out


def test_the_first_table_says_what_a_repair_came_to(models, tmp_path):
    cli.main(["evaluate", "--env", TOY, "--episodes", "20", "--seed", "0", "--record_videos", "--out", "E"])
    report("--seed", "0", "--map_episodes", "0")
    text = (tmp_path / "R/report.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    first = rows[: rows.index(next(row for row in rows[1:] if row[0] == "model"))]
    episodes = pd.read_csv(tmp_path / "E/per_episode.csv")
    unsafe, concept = (episodes[episodes["Family"] == name] for name in ("unsafe", "concept"))
    share = concept["reward"].mean() / unsafe["reward"].mean()
    still = (concept["reward"] < 0.4 * unsafe["reward"].mean()).mean()
    assert [row[0] for row in first] == ["model", "---", "unsafe 10", "concept 100"]
    assert first[2][2] == "100 %"
    assert first[3][1:] == [
        f"{concept['reward'].mean():.1f}".replace("-", "\N{MINUS SIGN}"),
        f"{100 * share:.0f} %",
        f"{concept['cost_sum'].mean():.1f}",
        f"{100 * (concept['cost_sum'] > 25).mean():.0f} %",
        f"{100 * still:.0f} %",
        f"{concept['longest_stay'].mean():.1f}",
        "0.0",  # the toy has no goals
        "\N{EN DASH}",
        f"{concept['cost_sum'].nlargest(2).mean():.1f}",
    ]
    assert "(figures/before_after.png)" in text
    assert text.index("before_after.png") < text.index("near / far")


def test_episodes_are_counted_above_the_limit_that_a_repair_was_trained_for(register, tmp_path):
    models = {name: register(name, 100, push) for name, push in (("unsafe", 2.0), ("concept", 1.0), ("continued", 2.0))}
    cli.main(["evaluate", "--env", TOY, "--episodes", "20", "--kl_states", "20", "--seed", "0", "--out", "E"])
    episodes = pd.read_csv(tmp_path / "E/per_episode.csv")

    def column(column="cost_sum", limit=25, shown=""):
        own = [episodes[episodes["Family"] == name] for name in models]
        return [f"{100 * (table[column] > limit).mean():.0f} %{shown}" for table in own]

    def reported(**params):
        for name, value in params.items():
            run_id = registry.registered_version(models[name]).run_id
            mlflow.MlflowClient().log_batch(run_id, params=[mlflow.entities.Param(*pair) for pair in value.items()])
        report("--map_episodes", "0")
        text = (tmp_path / "R/report.md").read_text()
        header, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][:5]
        return header[4], [row[4] for row in rows], text

    above, cells, text = reported()
    assert (above, cells) == ("episodes above 25", column())
    assert "; 25 is the field's usual limit." in text
    above, cells, text = reported(concept={"pid.cost_limit": "1.5"})
    assert (above, cells) == ("episodes above 1.5", column("cforget_sum", 1.5))
    assert "; 1.5 is the limit on C\\_forget of an episode that concept was trained for." in text
    above, cells, text = reported(continued={"pid.init_args.cost_limit": "3"})
    limits = column(shown=" (25)")[0], column("cforget_sum", 1.5, " (1.5)")[1], column("cforget_sum", 3, " (3)")[2]
    assert (above, cells) == ("episodes above limit", [*limits])
    assert "; 3 is the limit on C\\_forget of an episode that continued was trained for; 25 is the field's" in text


def test_the_limit_of_the_first_table_is_the_one_that_fit_trained_for(store, tmp_path):
    fit.train(["-c", "method/concept.yaml", "-c", "smoke.yaml", "--cost_limit", "1.5", "--save_points", "4"])
    evaluate_models("--out", "E")
    report("--map_episodes", "0")
    episodes = pd.read_csv(tmp_path / "E/per_episode.csv")
    above = 100 * (episodes.loc[episodes["Family"] == "concept", "cforget_sum"] > 1.5).mean()
    text = (tmp_path / "R/report.md").read_text()
    header, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert header[4] == "episodes above 1.5"
    assert next(row[4] for row in rows if row[0].startswith("concept")) == f"{above:.0f} %"


def test_what_is_missing_is_named_with_the_command_that_makes_it(models, tmp_path):
    report()
    text = page(tmp_path / "R/report.html").text
    for command in ("evaluate", "relearn", "probe collect", "probe fit", "latent-shift", "action-control"):
        assert f"lightning-unlearn {command} --env {TOY}" in text
    assert f"lightning-unlearn evaluate --env {TOY} --seed 0 1" in text
    assert "No curve:" not in text


def test_a_run_that_was_cut_hides_no_finished_one(models, tmp_path):
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name(TOY).experiment_id
    for method in ("unsafe", "continued"):
        cut = client.create_run(experiment, tags={"method": method, "seed": "0", "env": TOY}).info.run_id
        client.set_terminated(cut, "KILLED")
    report("--map_episodes", "0")
    text = page(tmp_path / "R/report.html").text
    assert f"unsafe, seed 0: run {registry.registered_models(TOY, 0)[-1].run_id}, FINISHED" in text
    assert "Not finished: continued, seed 0, is KILLED." in text


def test_a_kind_of_one_seed_is_compared_with_the_expert_of_that_seed(register, tmp_path):
    for seed, push in ((0, 2.0), (1, -1.0)):
        register("unsafe", 10, push, seed)
    register("concept", 50, -1.0, seed=1)
    evaluate_models("--seed", "0", "1", "--eval_id", "both")
    report("--map_episodes", "0")
    rows = (tmp_path / "R/report.md").read_text().splitlines()
    (tested,) = (row for row in rows if row.startswith("| concept 50 |") and "cannot be told" in row)
    assert tested.split("|")[2].strip() == "1.00"  # the same weights as its own expert


def test_one_seed_has_no_interval_and_no_verdict(models, tmp_path):
    evaluate_models("--seed", "0")
    report("--map_episodes", "0")
    text = page(tmp_path / "R/report.html").text
    assert "One training seed: there is no interval over seeds" in text
    assert "neither claim can be made" in text
    assert text.count("cannot be told") == 4


def test_a_seed_a_method_and_an_evaluation_can_be_chosen(models, refused, tmp_path):
    evaluate_models("--seed", "0", "--eval_id", "first")
    evaluate_models("--seed", "0", "1", "--eval_id", "both")
    evaluate_models("--seed", "0", "1", "--stochastic", "--eval_id", "noisy")
    for options, chosen in (([], "both"), (["--seed", "0"], "first"), (["--eval_id", "noisy"], "noisy")):
        report("--map_episodes", "0", *options)
        assert f"Evaluation {chosen}:" in page(tmp_path / "R/report.html").text
    report("--map_episodes", "0", "--seed", "0", "--models", "concept")
    text = page(tmp_path / "R/report.html").text
    assert "concept, seed 0: run" in text
    assert "concept, seed 1: run" not in text
    report("--map_episodes", "0", "--seed", "1")
    assert "No evaluation of these seeds" in page(tmp_path / "R/report.html").text
    assert "--eval_id other" in refused("report", "--env", TOY, "--eval_id", "other")
    assert "--models continued" in refused("report", "--env", TOY, "--models", "continued")


def test_what_cannot_be_reported_is_refused(store, refused, tmp_path):
    assert "--env ToyLine-v0: the store" in refused("report", "--env", TOY)
    assert "--seed [-1]" in refused("report", "--env", TOY, "--seed=-1")
    assert "map_episodes=-1 is not possible: use at least 0" in refused("report", "--env", TOY, "--map_episodes=-1")
    assert "Did you mean" in refused("report", "--map_episode", "3")
    assert not (tmp_path / "artifacts").exists()


HOSTILE = '<script>alert(1)</script> & "q" | `x` [a](b) *s* $1'


BLOCKS = [
    Paragraph(HOSTILE),
    Table(("model", HOSTILE), [(HOSTILE, "1")], HOSTILE),
    Gallery([Picture("p.png", b"\x89PNG", HOSTILE)]),
    Folded(HOSTILE, f"```\n{HOSTILE}"),
    Missing(HOSTILE, HOSTILE),
]


def test_html_shows_hostile_words_as_words():
    html = render_html(HOSTILE, HOSTILE, [Section(HOSTILE, BLOCKS)])
    read = Page(html)
    assert "script" not in read.tags
    assert read.text.count("<script>alert(1)</script>") == 14
    assert "<script" not in html


def test_markdown_shows_hostile_words_as_words():
    text = render_markdown(HOSTILE, HOSTILE, [Section(HOSTILE, BLOCKS)])
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside.replace("\\<script\\>", "")
    (row,) = [line for line in text.splitlines() if line.endswith("| 1 |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "````\n```\n" in text  # a fence longer than the one inside


def test_a_video_is_carried_along_and_played():
    sections = [
        Section("Videos", [Gallery([Picture("pair.mp4", b"film", "both"), Picture("x.gif", b"", "one")], pairs=True)])
    ]
    html, markdown = (render("T", "", sections) for render in (render_html, render_markdown))
    assert Page(html).links[-2:] == ["data:video/mp4;base64,ZmlsbQ==", "data:image/gif;base64,"]
    assert '<video src="data:video' in html
    assert "gallery pairs" in html
    assert "\n[both](figures/pair.mp4)\n" in markdown
    assert "\n![one](figures/x.gif)\n" in markdown


def test_occupancy_is_a_share_of_all_time():
    """Four positions in a square of side 2: one in the lowest left cell, two in the highest right one, one outside."""
    xy = np.array([[-0.99, -0.99], [0.99, 0.99], [0.99, 0.99], [5.0, 0.0]])
    share = occupancy(xy, 1.0)
    assert share.shape == (CELLS, CELLS)
    assert (share[0, 0], share[-1, -1], share.sum()) == (25.0, 50.0, 75.0)


def test_places_are_seen_from_the_nearest_hazard(policy):
    policy.action_mean.bias.data.fill_(3.0)
    episodes = evaluate(policy, TOY, [1, 2], keep_scenes=True).episodes
    where = places(episodes)
    hazard = episodes.scenes[0].positions["hazards"][0, 0]
    assert len(where.arena) == episodes.length.sum()
    np.testing.assert_allclose(where.from_hazard, where.arena - hazard)


def test_a_map_is_drawn_of_every_policy():
    rng = np.random.default_rng(0)
    driven = {name: Places(rng.normal(size=(500, 2)), rng.uniform(-REACH, REACH, (500, 2)), 0.2) for name in "ab"}
    maps = heat_maps(driven, "a")
    assert [png[:4] for png in maps.values()] == [b"\x89PNG"] * 2
    assert maps == heat_maps(driven, "a")


def test_names_of_points_that_crowd_do_not_cover_each_other():
    figure = Figure(figsize=(4, 3))
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    crowd = [(0.5, 0.5), (0.51, 0.5), (0.5, 0.51), (0.52, 0.52)]
    ax.plot(*zip(*crowd, strict=True), "o")
    names = [ax.annotate("600", point, xytext=(5, 4), textcoords="offset points", fontsize=7) for point in crowd]
    assert shared_area(names) > 0
    keep_apart(figure, ax, names)
    assert shared_area(names) == 0


def shared_area(names):
    boxes = [name.get_window_extent() for name in names]
    shared = [Bbox.intersection(one, other) for one, other in combinations(boxes, 2)]
    return sum(box.width * box.height for box in shared if box is not None)
