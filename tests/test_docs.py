"""README and pages: commands parse, examples run, links and names resolve. The Markdown itself is the list."""

import importlib.util
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import click
import jsonargparse
import mlflow
import pytest
import yaml

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits import headline
from lightning_unlearn.audits.suite_tables import COLUMNS
from lightning_unlearn.configuration import shipped_configs
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking import store as tracking_store

ROOT = Path(__file__).parents[1]
PLACES = [ROOT / ".github", ROOT / "mlruns" / "results"]
PAGES = sorted([ROOT / "README.md", *(ROOT / "mlruns").glob("*.md"), *(p for at in PLACES for p in at.rglob("*.md"))])
pytestmark = pytest.mark.skipif(not all(at.is_dir() for at in PLACES), reason="the pages are in the repository only")
METRICS = ROOT / ".github/docs/metrics.md"
NOTEBOOK = ROOT / ".github/docs/examples/own_sb3_agent.py"
OTHERS = {"uv", "jupyter", "printf", "export", "git", "cd", "ruff", "mypy", "pre-commit", "deptry", "pdoc"}
"""Programs whose options are not checked."""
READ_ONLY = ("envs list", "runs list", "models list", "gc", "verify")
"""Commands that are run as they stand: they change nothing and take a second."""
SHORT = ["--horizon", "32", "--data.workers", "1", "--model.critic_steps", "2", "--model.steps", "2"]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages):
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if found[1] in languages:
                yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


SHELL = list(blocks("", "bash", "sh", "shell"))
PYTHON, YAML = list(blocks("python")), list(blocks("yaml"))


def commands(text) -> Iterator[list[str]]:
    """The commands of a shell block, each as its words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        separator = ""
        for is_separator, group in groupby(words, lambda word: set(word) <= set("&|;<>")):
            if is_separator:
                separator = "".join(group)
            elif separator not in (">", "<"):
                yield list(group)


def without_runner(words):
    """A command without `uv run` and its options in front."""
    if words[:2] != ["uv", "run"]:
        return words
    words = words[2:]
    while words[0].startswith("--"):
        words = words[2 if words[0] in ("--group", "--extra", "--with") else 1 :]
    return words


def ours():
    """Every different command of this package: its words → where it stands."""
    found = {}
    for block in SHELL:
        for words in map(without_runner, commands(block.text)):
            if words[0] == "lightning-unlearn":
                found.setdefault(tuple(words[1:]), str(block))
    return found


def others():
    """Every different command of another program."""
    found = {}
    for block in SHELL:
        for words in map(without_runner, commands(block.text)):
            if words[0] not in ("lightning-unlearn", *OTHERS):
                found.setdefault(tuple(words), str(block))
    return found


class Parsed(BaseException):
    """Ends a command once its own parser has taken its options."""

    def __init__(self, options):
        self.options = options


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Runs a command up to the end of its parser, and returns what that found."""
    original, depth = jsonargparse.ArgumentParser.parse_args, []

    def parse_args(self, *args, **kwargs):
        depth.append(self)
        try:
            options = original(self, *args, **kwargs)
        finally:
            depth.pop()
        if not depth:
            raise Parsed(options)
        return options

    def run(*words):
        with pytest.raises(Parsed) as parsed:
            cli.main(words)
        return parsed.value.options

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_args)
    return run


def names(found):
    return [f"{where} {' '.join(words)[:60]}" for words, where in found.items()]


@pytest.mark.parametrize("words", ours(), ids=names(ours()))
def test_commands_parse(parse, words):
    parse(*words)


@pytest.mark.filterwarnings("ignore")  # what those programs' own modules warn of
@pytest.mark.parametrize("words", others(), ids=names(others()))
def test_commands_of_other_programs_parse(words):
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        assert rest[1] == "pip" or importlib.util.find_spec(rest[1])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
        assert all((ROOT / arg).is_file() for arg in rest if arg.startswith("tests/"))
    elif program != "pytest":
        command, name = (
            pytest.importorskip({"mlflow": "mlflow.cli", "ray": "ray.scripts.scripts"}[program]).cli,
            program,
        )
        while isinstance(command, click.Group):
            name, *rest = rest
            command = command.get_command(click.Context(command), name)
        command.make_context(name, rest)


@pytest.mark.parametrize("block", SHELL, ids=map(str, SHELL))
def test_shell_blocks_have_no_mistake_in_their_syntax(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("block", YAML, ids=map(str, YAML))
def test_config_files_parse(parse, tmp_path, block):
    (tmp_path / "shown.yaml").write_text(block.text)
    if "methods" in yaml.safe_load(block.text):
        from lightning_unlearn.study.schema import read_study

        read_study(parse("study", "-c", "shown.yaml").as_dict())
    else:
        chain = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/concept.yaml"]
        parse("fit", *chain, "-c", "shown.yaml")


def register(text):
    """Register a policy under every `models:` name in a text."""
    shown = re.findall(r"models:/(\w+)\.([\w-]+)(?:@(?:seed-(\d+)-)?update-(\d+))?", text)
    for method, env, seed, update in set(shown):
        with mlflow.start_run(experiment_id=tracking_store.experiment_id(env)) as run:
            card = lu.ModelCard(method, env, seed=int(seed or 0), update=int(update or 1))
            registry.register_policy(lu.load_policy(f"zoo:unsafe.{env}"), card, run.info.run_id)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("block", PYTHON, ids=map(str, PYTHON))
def test_python_blocks_run(store, block, monkeypatch):
    """As they stand, but for the number of updates and episodes."""
    assert len([line for line in block.text.splitlines() if line.strip()]) < 12
    repair, evaluate, wrap = lu.repair, lu.evaluate, lu.wrap
    short = {"updates": 1, "options": SHORT}
    monkeypatch.setattr(lu, "repair", lambda policy, env, **given: repair(policy, env, **given | short), raising=False)
    once = {"episodes": 1, "workers": 1}
    monkeypatch.setattr(
        lu, "evaluate", lambda policy, env, **given: evaluate(policy, env, **given | once), raising=False
    )
    for name in ("elicit", "patch", "weight_path"):
        audit = getattr(lu, name)
        monkeypatch.setattr(lu, name, lambda *pair, audit=audit, **given: audit(*pair, **given | once), raising=False)
    few = {"warm_up_rollouts": 2}
    monkeypatch.setattr(lu, "wrap", lambda network, env, **given: wrap(network, env, **given | few), raising=False)
    monkeypatch.setattr("lightning_unlearn.importers.torch_module.HORIZON", 64)
    register(block.text)
    exec(compile(block.text, str(block), "exec"), {})


def test_python_blocks_show_every_function():
    shown = "".join(block.text for block in PYTHON)
    assert [name for name in lu.__all__ if f"lu.{name}(" not in shown] == []


@pytest.mark.parametrize("words", [words for words in ours() if " ".join(words).startswith(READ_ONLY)], ids=" ".join)
def test_commands_that_only_read_run(store, words, capsys):
    register("models:/concept.SafetyPointGoal1-v0@update-150")
    cli.main(words)
    assert capsys.readouterr().out


@pytest.mark.parametrize("script", sorted({*NOTEBOOK.parent.glob("*.py")} - {NOTEBOOK}), ids=lambda path: path.name)
def test_example_scripts_run(tmp_path, script):
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr


def test_the_notebook_runs(tmp_path):
    """All cells in order, with few steps."""
    pytest.importorskip("stable_baselines3", reason="the extra `sb3` is not installed")
    cells, numbers = NOTEBOOK.read_text(), "STEPS, UPDATES, EPISODES = "
    assert cells.count("\n# %%\n") == 10
    shutil.copy(NOTEBOOK.with_name("own_environment.py"), tmp_path)
    (tmp_path / NOTEBOOK.name).write_text(re.sub(rf"^{numbers}.*", f"{numbers}1024, 1, 4", cells, flags=re.MULTILINE))
    ran = subprocess.run(
        [sys.executable, NOTEBOOK.name], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.split()[-1]) < 1e-5, "Stable-Baselines3 does not act as the repaired policy"


def headings(page):
    """The anchors that GitHub gives to a page's headings."""
    for _, heading in re.findall(r"^(#+) (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"(https?|mailto):", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in headings(file)):
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_modules_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for name in set(re.findall(r"\blightning_unlearn(?:\.\w+)+", text)):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    top = "|".join(("configs", "tests", "lightning_unlearn", r"\.github", r"\.ci", "mlruns/results"))
    for path in set(re.findall(rf"`((?:{top})/[\w./-]+)`", text)):
        if not (ROOT / path).exists():
            missing.append(path)
    assert missing == []


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {(page.parent / link) for page in new for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())}
        new = {link.resolve() for link in links} - reached
    docs = {page for page in PAGES if page.parent.name == "docs" or "results" in page.parts}
    assert docs - reached == set()


def test_the_glossary_has_every_column_and_metric():
    text = METRICS.read_text(encoding="utf-8")
    source = "".join(path.read_text() for path in (ROOT / "lightning_unlearn").rglob("*.py"))
    logged = set(re.findall(r'"((?:rollout|lagrangian|train|decremental|repair|time)/\w+)"', source))
    assert [name for name in [*COLUMNS, *headline.COLUMNS, *sorted(logged)] if f"`{name}`" not in text] == []


def test_shipped_configs_are_named_as_they_are():
    """A config file that a page names in passing is there."""
    for page in PAGES:
        for name in re.findall(r"`((?:method|env)/\w+\.yaml)`", page.read_text()):
            assert (shipped_configs() / name).is_file(), f"{page.name}: {name}"


def test_overrides_are_those_of_the_project():
    """The `printf` line of the page writes what `pyproject.toml` lists for uv."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"(.+?)"', re.search(r"override-dependencies = \[(.*?)\]", project, re.DOTALL)[1])
    (shown,) = (words[2:] for block in SHELL for words in commands(block.text) if words[0] == "printf")
    assert sorted(shown) == sorted(listed)
