"""Sizes of files, and that nothing outside the store's own folders is ever deleted."""

import os

import pytest

from lightning_unlearn.tracking.inventory import is_settled, megabytes, size

RUN, MODEL = "0" * 32, "m-" + "0" * 32


def test_a_size_is_that_of_the_files_each_counted_once_and_no_link_followed(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"x" * 700)
    (tmp_path / "a" / "b" / "y").write_bytes(b"x" * 300)
    os.link(tmp_path / "a" / "x", tmp_path / "a" / "again")
    (tmp_path / "large").write_bytes(b"x" * 10**6)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "large")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    (tmp_path / "to_a").symlink_to(tmp_path / "a")
    assert size(tmp_path / "a") == 1000
    assert size(tmp_path / "large") == 10**6
    assert size(tmp_path / "to_a") == size(tmp_path / "nothing") == size(None) == 0
    assert (megabytes(1_234_567), megabytes(None)) == ("1.23", "-")


def test_something_is_settled_when_nothing_in_it_was_changed_for_a_while(put, tmp_path):
    folder = put(tmp_path / "a" / "b").parent
    os.utime(folder, (0, 0))
    assert is_settled(folder)
    (folder / "b" / "file").touch()
    assert not is_settled(folder)


def test_folders_are_found_by_ids_and_by_nothing_else(files):
    assert files.of_run(RUN) == files.artifacts / RUN
    assert files.of_model(MODEL) == files.models / MODEL
    for name in ("", "..", f"../{RUN}", f"{RUN}/..", RUN + "\n", RUN.upper() + "A", "models"):
        assert files.of_run(name) is files.of_model(name) is files.checkpoints_of(name) is None


def test_what_is_in_the_store_is_deleted_and_links_in_it_are_not_followed(files, put, tmp_path):
    outside = put(tmp_path / "outside")
    folder = put(files.artifacts / RUN)
    (folder / "link").symlink_to(outside)
    (folder / "file_link").symlink_to(outside / "file")
    files.delete(folder)
    assert not folder.exists()
    assert (outside / "file").read_bytes() == b"x" * 1000


def test_nothing_outside_is_deleted_however_it_is_called(files, put, tmp_path):
    outside = put(tmp_path / "outside" / RUN)
    inside = put(files.artifacts / RUN)
    (files.artifacts / ("1" * 32)).symlink_to(outside)
    (files.artifacts / "through").symlink_to(outside.parent)
    places = [outside, files.artifacts / "1" / ".." / RUN, files.artifacts / ".." / ".." / "outside" / RUN]
    places += [files.artifacts / ("1" * 32), files.artifacts / "through" / RUN, files.root, files.root.parent]
    places += [files.root / "nothing"]
    for path in places:
        with pytest.raises(ValueError, match="is not deleted"):
            files.delete(path)
    assert (outside / "file").exists()
    assert (inside / "file").exists()


def test_links_are_no_folders_of_runs_or_models(files, put, tmp_path):
    outside = put(tmp_path / "outside")
    for parent in (files.artifacts, files.models, files.checkpoints):
        parent.mkdir(parents=True, exist_ok=True)
        for name in (RUN, MODEL):
            (parent / name).symlink_to(outside)
    assert not [*files.run_folders(), *files.model_folders(), *files.checkpoint_folders()]


def test_nothing_is_behind_a_link_to_another_folder(files, put, tmp_path):
    put(tmp_path / "elsewhere" / RUN)
    put(tmp_path / "elsewhere" / "models" / MODEL)
    files.artifacts.symlink_to(tmp_path / "elsewhere")
    files.checkpoints.symlink_to(tmp_path / "elsewhere")
    assert not [*files.run_folders(), *files.model_folders(), *files.checkpoint_folders()]
