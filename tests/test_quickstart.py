"""The five-minute path, shortened, on the real environment and with the shipped expert."""

import imageio.v3 as iio
import mlflow
import pandas as pd
import pytest

from lightning_unlearn import cli, fit, quickstart

SHORT = ["--model.critic_steps", "20", "--model.steps", "4", "--horizon", "256", "--model.warm_up", "0"]


@pytest.fixture
def printed(store, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "OPTIONS", [*quickstart.OPTIONS, *SHORT])
    cli.main(["quickstart", "--updates", "1", "--episodes", "2"])
    return capsys.readouterr().out


def test_it_repairs_evaluates_and_reports(printed, tmp_path):
    out = tmp_path / "quickstart"
    table = pd.read_csv(out / "summary.csv")
    assert table["Model"].tolist() == ["unsafe", "concept_1", "off_policy_concept_1"]
    assert table["Path"].tolist() == [
        quickstart.SOURCE,
        *(f"models:/{method}.{quickstart.ENV_ID}/1" for method in (quickstart.PUBLISHED, quickstart.REPAIR)),
    ]
    drawn = sorted(path.name for path in (out / "videos").iterdir())
    assert drawn == [
        f"{name}.{ending}" for name in ("concept_1", "off_policy_concept_1") for ending in ("gif", "png")
    ] + ["unsafe.gif"]
    assert iio.imread(out / "videos/off_policy_concept_1.png").ndim == 3
    assert len(iio.imread(out / "videos/unsafe.gif")) == 200
    html = (out / "report/report.html").read_text()
    first = html[html.index('<section id="results">') : html.index("</section>")]
    for name in ("unsafe 300", "concept 1", "off_policy_concept 1"):
        assert f'<th scope="row">{name}</th>' in first
    assert "beside its expert" in first
    last = printed.strip().splitlines()[-1]
    assert last.startswith(("Repaired: return ", "NOT repaired ("))
    assert f"{table['Reward'].iloc[2]:.1f} (" in last
    assert "over 2 episodes" in last
    assert str(out / "report/report.html") in printed
    assert f"sqlite:///{tmp_path}/mlruns/mlflow.db" in printed
    assert "no interval over seeds" in printed
    cli.main(["report", "--map_episodes", "0", "--out", "R"])  # what a user may do next
    assert "No evaluation" not in (tmp_path / "R/report.html").read_text()


def test_files_of_the_working_directory_are_not_taken_for_shipped_ones(store, tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 0.001\nhidden: 64\n")
    options = quickstart.training_options(quickstart.REPAIR, 1, 0, None, quickstart.OPTIONS)
    chain = fit.FitCLI(options)
    assert chain.config.pid is not None
    assert chain.config.tracking_uri is None


@pytest.mark.parametrize(
    ("given", "message"), [(["--episodes", "0"], "episodes=0"), (["--updates", "0"], "max_epochs=0")]
)
def test_impossible_numbers_are_refused(store, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quickstart", *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert mlflow.MlflowClient().search_registered_models() == []
