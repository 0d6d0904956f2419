import gc
import subprocess
import sys
from types import SimpleNamespace

import help_texts
import pytest

from lightning_unlearn import cli


def test_help_names_every_command(capsys):
    cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fitt"])
    assert stopped.value.code == 2
    assert "unknown command 'fitt'" in capsys.readouterr().err


def test_garbage_is_collected_again_once_a_command_is_imported(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "broken", ("lightning_unlearn.no_such_module", ""))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["broken"])
    assert gc.isenabled()


def test_top_level_help_loads_nothing_heavy():
    program = (
        "import sys; from lightning_unlearn.cli import main; main(['--help']); "
        "print(sorted({'torch', 'lightning', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["fit"], ["evaluate"], ["probe", "collect"], ["import", "sb3"]], ids=" ".join)
def test_help_of_a_command_loads_nothing_heavy(words):
    program = (
        "import atexit, sys; from lightning_unlearn.cli import main; "
        "atexit.register(lambda: print(sorted({'torch', 'lightning', 'mlflow', 'numpy'} & set(sys.modules)))); "
        f"main({[*words, '-h']})"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"usage: lightning-unlearn {' '.join(words)} ")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse of another Python lays help out otherwise")
def test_stored_help_is_what_the_parsers_print(tmp_path):
    subprocess.run([sys.executable, help_texts.__file__, tmp_path], check=True)  # help lists the classes of a process
    made, stored = ({f.name: f.read_text(encoding="utf-8") for f in at.iterdir()} for at in (tmp_path, cli.HELP_TEXTS))
    assert {name for name in made | stored if made.get(name) != stored.get(name)} == set(), "run tests/help_texts.py"


OTHERS = """
import lightning.pytorch as pl
from lightning_unlearn.envs.concepts import Concept


class Failing(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        open("/nowhere/at/all")


class Doubtful(Concept):
    def __call__(self, transitions):
        raise ValueError("a doubt of my own")
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.callbacks", "[{class_path: others.Failing}]"], FileNotFoundError),
        (["--data.concept", "others.Doubtful"], ValueError),
    ],
)
def test_errors_of_others_code_keep_their_traceback(store, tmp_path, monkeypatch, capsys, options, expected):
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.delitem(sys.modules, "others", raising=False)
    chain = [part for file in ("base", "method/unsafe", "smoke") for part in ("-c", f"{file}.yaml")]
    with pytest.raises(expected) as caught:
        cli.main(["fit", *chain, *options])
    assert "lightning-unlearn: error" not in capsys.readouterr().err
    links = [caught.value, caught.value.__cause__]
    files = {frame.path.name for link in links if link for frame in pytest.ExceptionInfo.from_exception(link).traceback}
    assert "others.py" in files


def test_a_mistake_of_this_package_keeps_its_traceback(monkeypatch):
    namespace = {"__name__": "lightning_unlearn.mistaken"}
    exec("import numpy as np\ndef main(options): np.zeros(2) + np.zeros(3)", namespace)
    monkeypatch.setitem(sys.modules, "lightning_unlearn.mistaken", SimpleNamespace(main=namespace["main"]))
    monkeypatch.setitem(cli.COMMANDS, "mistaken", ("lightning_unlearn.mistaken", ""))
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        cli.main(["mistaken"])
