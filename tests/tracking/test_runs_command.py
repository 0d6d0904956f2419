"""`runs list`: every run with what it takes on the disk."""

import mlflow
import pytest

from lightning_unlearn import cli

TOY = "ToyLine-v0"


def rows(printed):
    return [line.split() for line in printed.split("\n\n")[0].splitlines()[1:]]


def test_every_run_is_listed_with_its_megabytes(begin, register, files, put, shown):
    run_id = begin("oracle-seed0")
    put(files.of_run(run_id), 1_500_000)
    put(files.checkpoints_of(run_id), 2_250_000)
    register("concept", 50)
    mlflow.MlflowClient().delete_run(run_id)
    printed = shown("runs", "list")
    first, second = rows(printed)
    assert (first[0], first[1], first[2], first[3]) == (run_id, "oracle-seed0", TOY, "deleted")
    assert first[-4:] == ["1.50", "2.25", "0", "0.00"]
    assert (second[1], second[3], second[-2]) == ("concept-seed0", "FINISHED", "1")
    assert "2 runs: Artifacts 1.50 MB, Checkpoints 2.25 MB, Models 0." in printed


def test_only_runs_of_an_environment_are_listed_if_it_is_named(begin, shown, refused):
    begin("here"), begin("there", env="Other-v0")
    assert [row[1] for row in rows(shown("runs", "list", "--env", "Other-v0"))] == ["there"]
    message = refused("runs", "list", "--env", "Othr-v0")
    assert "--env Othr-v0: there is no run" in message
    assert f"Environments in it: Other-v0, {TOY}." in message


def test_an_empty_store_is_said_to_be_empty(store, refused):
    assert "there is no run in sqlite:///" in refused("runs", "list")


def test_trainings_are_listed_compared_cleared_up_and_deleted(store, tmp_path, shown, capsys):
    """A lineage made by the real commands, with checkpoints, configs and evaluations."""
    for method in ("unsafe", "concept"):
        cli.main(
            ["fit", "-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", f"method/{method}.yaml", "-c", "smoke.yaml"]
        )
    names = [row[1] for row in rows(shown("runs", "list"))]
    assert names == ["unsafe-seed0", "concept-seed0"]
    a, b = f"models:/unsafe.{TOY}@update-4", f"models:/concept.{TOY}@update-4"
    cli.main(["evaluate", "--env", TOY, "--models", b, "--unsafe_model", a, "--episodes", "2", "--kl_states", "20"])
    printed = " ".join(shown("models", "compare", a, b).split())
    assert f"source random | models:/unsafe.{TOY}/2" in printed
    assert "model.init_args.method unsafe | concept" in printed
    assert "Layouts 10000 to 10001 = 10000 to 10001" in printed
    with pytest.raises(SystemExit):
        cli.main(["models", "delete", a, "--yes"])
    assert "is what other runs started from: concept-seed0" in capsys.readouterr().err
    assert "checkpoints of finished runs: 2" in shown("gc", "--yes")
    assert list((tmp_path / "mlruns" / "checkpoints").iterdir()) == []
    for uri in (b, a):
        assert "Deleted" in shown("models", "delete", uri, "--yes", "--force")
    assert "Nothing in" in shown("gc")
    assert "update-2" not in shown("models", "list", "--method", "unsafe")
