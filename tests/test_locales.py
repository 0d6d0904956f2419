"""Terminals, locales and folders that are not what a developer has: ASCII, closed pipes, odd characters in paths."""

import ast
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from sqlalchemy.engine import make_url

from lightning_unlearn import cli
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store

PACKAGE = Path(cli.__file__).parent
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TOY_FIT = "fit -c base.yaml -c env/point_goal1.yaml -c method/concept.yaml --env ToyLine-v0 --updates 1 --save_points 1"
TOY_FIT += " --unsafe_updates 0 --horizon 32 --n_envs 2 --data.workers 1 --model.source zoo:unsafe.ToyLine-v0"


def test_every_text_file_is_read_and_written_as_utf_8():
    unclear = []
    for file in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _opens_text(call) and not _has_encoding(call):
                unclear.append(f"{file.relative_to(PACKAGE)}:{call.lineno}")
    assert unclear == []


def _opens_text(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    binary = any(isinstance(mode, str) and "b" in mode for mode in given)
    return name in ("read_text", "write_text") or (name == "open" and not binary and not _of_a_descriptor(call))


def _of_a_descriptor(call):
    """`os.open`, and members of an archive, which are binary."""
    return ast.unparse(call.func) in ("os.open", "archive.open")


def _has_encoding(call):
    return any(keyword.arg == "encoding" for keyword in call.keywords)


def test_a_training_runs_where_the_locale_is_not_utf_8(store):
    """Shipped configs have λ and π in their comments."""
    command = [sys.executable, "-m", "lightning_unlearn", *TOY_FIT.split()]
    done = subprocess.run(command, env=os.environ | ASCII, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [model.name for model in mlflow.MlflowClient().search_registered_models()] == ["concept.ToyLine-v0"]


def test_output_degrades_where_the_terminal_lacks_a_character(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setitem(cli.COMMANDS, "λ → \udcff", ("nowhere", "a name that no ASCII terminal can show"))
    cli.main(["--help"])
    sys.stdout.flush()
    assert r"\u03bb \u2192 \udcff" in written.getvalue().decode("ascii")


@pytest.mark.parametrize("arguments", [["--help"], ["gc"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(store, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lightning_unlearn", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def odd_folder(tmp_path, template_store, monkeypatch):
    """A working directory whose name means something to URIs and shells, with an empty store."""
    folder = tmp_path / "it's 100%20 #1 ü & more?"
    (folder / "mlruns").mkdir(parents=True)
    (folder / "mlruns" / "mlflow.db").write_bytes(template_store.read_bytes())
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_store_works_in_a_folder_of_any_name(odd_folder, capsys):
    cli.main(TOY_FIT.split())
    printed = capsys.readouterr().out
    uri = "models:/concept.ToyLine-v0@update-1"
    assert registry.load_policy(uri).card.method == "concept"
    cli.main(["verify", uri])
    cli.main(["gc", "--yes"])  # the checkpoint of the finished run
    capsys.readouterr()
    cli.main(["gc"])
    assert "Nothing in" in capsys.readouterr().out
    cli.main(["models", "list"])
    assert "are not in this store's folder" not in capsys.readouterr().out
    shown = printed.partition("Open it with: ")[2].splitlines()[0]
    uri = shlex.split(shown)[shlex.split(shown).index("--backend-store-uri") + 1]
    assert make_url(uri).database == str(odd_folder / "mlruns" / "mlflow.db")
    made = {path.relative_to(odd_folder).parts[0] for path in odd_folder.rglob("*")}
    assert made == {"mlruns"}


def test_options_in_the_uri_of_a_database_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a question mark, which begins the options of a database URI: write %3F"):
        open_store(f"sqlite:///{tmp_path}/why?/mlflow.db")
    assert [*tmp_path.iterdir()] == []
