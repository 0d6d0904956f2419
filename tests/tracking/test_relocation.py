"""A store that was copied or moved: it works where it lies, and has nothing to do with where it was."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from lightning_unlearn import processes
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.inventory import all_runs
from lightning_unlearn.tracking.store import experiment_id, open_store
from lightning_unlearn.tracking.verify import verify

TOY = "ToyLine-v0"
MODEL = f"models:/concept.{TOY}/1"


def open_in(folder):
    open_store(uri(folder))


def uri(folder):
    return f"sqlite:///{folder}/mlflow.db"


def content(folder):
    """Every file, but for the lock and the database's tag of its folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and "mlflow.db" not in path.name]
    return {path.relative_to(folder): path.read_bytes() for path in files} | {"mlflow.db": places(folder)}


def places(folder):
    """All places that the database names."""
    columns = "experiments.artifact_location runs.artifact_uri logged_models.artifact_location"
    columns += " model_versions.source model_versions.storage_location datasets.dataset_source"
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [
            place
            for table, column in (name.split(".") for name in columns.split())
            for (place,) in database.execute(f"select {column} from {table} order by rowid")
        ]


def execute(folder, statement, *values):
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute(statement, values)


def by_an_earlier_release(folder):
    execute(folder, "delete from experiment_tags where key = 'lightning_unlearn.folder'")


def save_point(update, policy):
    """Register another save point of the first run, in the present store."""
    run = all_runs()[0].run_id
    return registry.register_policy(policy, ModelCard("concept", TOY, "cost_hazards", 0, update, 1), run)


@pytest.fixture
def original(register, begin, files):
    """A store with a model, a run with a file and a dataset, and a checkpoint."""
    register("concept", 50)
    run = begin("probe-fit")
    mlflow.MlflowClient().log_text(run, "text", "note.txt")
    folder = files.checkpoints_of(run)
    folder.mkdir(parents=True)
    (folder / "update-1.ckpt").write_bytes(b"checkpoint")
    mlflow.MlflowClient().set_terminated(run)
    return files.root


@pytest.fixture
def works(policy_of):
    """Checks that the store of a folder reads and writes its own files."""

    def check(folder):
        open_in(folder)
        assert mlflow.artifacts.load_text(f"runs:/{all_runs()[1].run_id}/note.txt") == "text"
        assert verify(MODEL).is_sound
        before = len(list((folder / "artifacts" / "models").iterdir()))
        update = 51 + before
        save_point(update, policy_of(1))
        mlflow.MlflowClient().log_text(all_runs()[1].run_id, "more", "more.txt")
        assert len(list((folder / "artifacts" / "models").iterdir())) == before + 1
        assert len(list((folder / "artifacts").rglob("more.txt"))) == 1
        registry.load_policy(f"models:/concept.{TOY}@update-{update}")

    return check


@pytest.mark.parametrize(("name", "earlier"), [("b", True), ("mlräns 中 #+c", False), ("mlruns/inside", False)])
def test_a_copy_works_and_never_touches_the_original(original, works, tmp_path, capsys, name, earlier):
    if earlier:
        by_an_earlier_release(original)
    before = content(original)
    copy = tmp_path / name
    shutil.copytree(original, copy)
    capsys.readouterr()
    open_in(copy)
    assert f"This store was copied from {original}: 5 paths in its database now name {copy}." in capsys.readouterr().out
    works(copy)
    assert f"{original.as_uri()}/artifacts" not in str(places(copy))
    assert capsys.readouterr().out.count("This store was") == 0
    shutil.rmtree(tmp_path / "mlruns" / "inside", ignore_errors=True)
    assert content(original) == before
    works(original)


def test_a_moved_store_works_again_and_again(original, works, tmp_path, shown, refused):
    old = original
    for name in ("new place", "new", "new/inside", "ünder"):
        new = tmp_path / name
        shutil.move(old, tmp_path / "away")
        new.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / "away", new)
        assert "This store was moved from" in shown("models", "list", "--tracking_uri", uri(new))
        assert "1 versions" in shown("models", "list", "--tracking_uri", uri(new))
        assert "Verified" in shown("verify", MODEL, "--tracking_uri", uri(new))
        old = new
    works(old)
    assert not original.exists()


def test_a_store_reached_by_two_ways_is_left_as_it_is(original, works, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.move(original, moved)
    original.symlink_to(moved)
    (tmp_path / "other").symlink_to(tmp_path)
    before = places(moved)
    for folder in (original, moved, tmp_path / "other" / "moved", tmp_path / "other" / "mlruns"):
        open_in(folder)
    assert places(moved) == before
    assert "This store was" not in capsys.readouterr().out
    works(moved)
    original.unlink()
    works(moved)


@pytest.mark.parametrize("earlier", [False, True], ids=["tagged", "of an earlier release"])
def test_foreign_places_stay(original, tmp_path, earlier):
    foreign = [
        (tmp_path / "mlruns2" / "artifacts").as_uri(),
        (tmp_path / "big" / "x").as_uri(),
        "s3://bucket/artifacts",
    ]
    foreign += [f"{original.as_uri()}/../big/artifacts", "mlflow-artifacts:/artifacts"]
    for number, place in enumerate(foreign):
        mlflow.MlflowClient().create_experiment(str(number), artifact_location=place)
    version = mlflow.MlflowClient().create_model_version(f"concept.{TOY}", (tmp_path / "big" / "model").as_uri())
    if earlier:
        by_an_earlier_release(original)
    shutil.copytree(original, tmp_path / "b")
    open_in(tmp_path / "b")
    named = [mlflow.MlflowClient().get_experiment_by_name(str(i)).artifact_location for i in range(len(foreign))]
    assert named == foreign
    assert mlflow.MlflowClient().get_model_version(f"concept.{TOY}", version.version).source == version.source
    assert (
        mlflow.MlflowClient().get_experiment_by_name(TOY).artifact_location == f"{(tmp_path / 'b').as_uri()}/artifacts"
    )


def test_every_spelling_of_a_place_is_rewritten(original, tmp_path):
    spelled = [f"{original}/0", f"file:{original}/0", f"file://localhost{original}/0", (original / "ü #%").as_uri()]
    for number, place in enumerate(spelled):
        mlflow.MlflowClient().create_experiment(str(number))
        execute(original, "update experiments set artifact_location = ? where name = ?", place, str(number))
    shutil.copytree(original, tmp_path / "b")
    open_in(tmp_path / "b")
    named = [mlflow.MlflowClient().get_experiment_by_name(str(i)).artifact_location for i in range(len(spelled))]
    new = (tmp_path / "b").as_uri()
    assert named == [f"{new}/0"] * 3 + [f"{new}/%C3%BC%20%23%25"]


def test_datasets_in_the_store_go_with_it(original, begin, tmp_path, policy):
    data = mlflow.data.from_numpy
    import numpy as np
    from mlflow.data.sources import LocalArtifactDatasetSource

    for number, folder in enumerate((original, tmp_path / "elsewhere")):
        source = LocalArtifactDatasetSource((folder / "states.npz").as_uri())
        with mlflow.start_run(experiment_id=experiment_id(TOY)):
            mlflow.log_input(data(np.full((2, 2), number), source=source))
    shutil.copytree(original, tmp_path / "b")
    open_in(tmp_path / "b")
    sources = "".join(place for place in places(tmp_path / "b") if place and "states.npz" in place)
    assert f'"{(tmp_path / "b").as_uri()}/states.npz"' in sources
    assert f'"{(tmp_path / "elsewhere").as_uri()}/states.npz"' in sources


@pytest.mark.parametrize("earlier", [False, True], ids=["tagged", "of an earlier release"])
def test_a_database_without_its_files_is_refused_with_the_command_that_mends_it(
    original, works, tmp_path, refused, earlier
):
    if earlier:
        by_an_earlier_release(original)
    copy = tmp_path / "b c"
    copy.mkdir()
    shutil.copy(original / "mlflow.db", copy)
    before = places(copy)
    message = refused("models", "list", "--tracking_uri", uri(copy))
    assert f"2 folders of its runs and models are in {original} only." in message
    assert places(copy) == before
    subprocess.run(message.rstrip().rpartition("\n")[2], shell=True, check=True)
    assert next((copy / "checkpoints").rglob("update-1.ckpt")).read_bytes() == b"checkpoint"
    works(copy)


def test_a_database_whose_files_are_nowhere_is_refused(original, tmp_path, refused):
    copy = tmp_path / "b"
    copy.mkdir()
    shutil.move(original / "mlflow.db", copy)
    shutil.move(original, tmp_path / "away")
    message = refused("models", "list", "--tracking_uri", uri(copy))
    assert f"its 1 models are neither there nor in {original}, where the store was before" in message


def test_models_that_a_copy_wrote_among_the_originals_files_are_fetched(original, works, tmp_path, policy_of, refused):
    """What an earlier release did in a copy."""
    by_an_earlier_release(original)
    copy = tmp_path / "b"
    shutil.copytree(original, copy)
    mlflow.set_tracking_uri(uri(copy))
    mlflow.set_registry_uri(uri(copy))
    model = registry._log_model(policy_of(3), ModelCard("concept", TOY, "", 0, 7, 1), all_runs()[0].run_id)
    mlflow.MlflowClient().create_experiment("Other-v0", artifact_location=f"{copy.as_uri()}/artifacts")
    assert (original / "artifacts" / "models" / model).is_dir()
    message = refused("models", "list", "--tracking_uri", uri(copy))
    assert f"1 folders of its runs and models are in {original} only." in message
    subprocess.run(message.rstrip().rpartition("\n")[2], shell=True, check=True)
    works(copy)


def test_a_copy_made_with_links_is_refused(original, works, tmp_path, refused):
    for name, link in (("hard", os.link), ("soft", os.symlink)):
        copy = tmp_path / name
        shutil.copytree(original, copy)
        linked = "mlflow.db" if name == "hard" else "artifacts"
        shutil.rmtree(copy / linked) if name == "soft" else (copy / linked).unlink()
        link(original / linked, copy / linked)
        message = refused("models", "list", "--tracking_uri", uri(copy))
        assert f"{copy / linked} and {original / linked} are one, by a link" in message
        subprocess.run(message.rstrip().rpartition("\n")[2], shell=True, check=True)
        copy = shutil.move(copy, tmp_path / f"{name}_mended")  # SQLAlchemy keeps the old database open
        works(copy)
    works(original)


def test_a_store_is_not_moved_from_under_a_run(original, begin, tmp_path, refused, works):
    """It is on another machine, or in a container, for which the store is in another folder."""
    here, away = begin(), begin(**{processes.HOST: "container"})
    mlflow.MlflowClient().set_terminated(here)
    moved = tmp_path / "moved"
    shutil.move(original, moved)
    before = places(moved)
    message = refused("models", "list", "--tracking_uri", uri(moved))
    assert f"was in {original} before, and runs that have not ended may still write there: {away}" in message
    assert places(moved) == before
    subprocess.run(message.rstrip().rpartition("\n")[2], shell=True, check=True)
    works(moved)
    assert mlflow.MlflowClient().get_run(away).info.status == "KILLED"


def test_a_copy_of_a_store_in_use_works(original, begin, tmp_path, works):
    begin()
    shutil.copytree(original, tmp_path / "b")
    works(tmp_path / "b")


def test_of_many_processes_one_rewrites_the_paths(original, tmp_path):
    copy = tmp_path / "b"
    shutil.copytree(original, copy)
    code = f"from lightning_unlearn.tracking.store import open_store; open_store({uri(copy)!r})"
    command = [sys.executable, "-c", code]
    opened = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path("/")) for _ in range(3)]
    printed = [process.communicate()[0] for process in opened]
    assert [process.returncode for process in opened] == [0, 0, 0]
    assert "".join(printed).count("This store was copied from") == 1
    assert f"{original.as_uri()}/" not in str(places(copy))
