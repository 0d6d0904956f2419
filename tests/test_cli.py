import subprocess
import sys

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


def test_top_level_help_loads_nothing_heavy():
    program = (
        "import sys; from lightning_unlearn.cli import main; main(['--help']); "
        "print(sorted({'torch', 'lightning', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
