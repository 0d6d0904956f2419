"""Who may import whom (the rooms and their doors), checked over import statements and over imports by string."""

import ast
import re
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_unlearn"
ROOMS = {
    "keys": set(),
    "old_names": set(),
    "seeding": set(),
    "options": {"old_names", "published_options"},
    "global_state": set(),
    "safe_files": set(),
    "processes": set(),
    "envs": {"keys", "seeding", "safe_files", "processes", "options"},
    "policies": {"keys", "safe_files", "old_names"},
    "losses": {"keys"},
    "collectors": {"envs", "policies", "keys", "seeding", "safe_files", "processes"},
    "tracking": {"policies", "options", "processes", "safe_files", "global_state", "old_names"},
    "registry": {"tracking"},
    "methods": {"collectors", "policies", "losses", "tracking", "envs", "keys", "seeding"},
    "audits": {"methods", "envs", "policies", "losses", "tracking", "collectors", "keys", "seeding", "options"}
    | {"safe_files"},
    "report": {"audits", "collectors", "tracking", "envs", "options", "seeding"},
    "callbacks": {"losses", "collectors", "tracking", "processes", "policies", "keys", "seeding"},
    "published_options": set(),
    "configuration": {"methods", "callbacks", "options", "safe_files", "old_names", "published_options"},
    "resume": {"tracking", "old_names"},
    "keep_best": {"audits", "callbacks", "collectors", "envs", "policies", "tracking", "seeding"},
    "trainer_options": {"callbacks"},
    "fit": {
        "audits",
        "keep_best",
        "methods",
        "old_names",
        "callbacks",
        "envs",
        "tracking",
        "collectors",
        "configuration",
        "options",
        "policies",
        "resume",
        "processes",
        "trainer_options",
    },
    "exporters": {"audits", "envs", "importers", "tracking", "policies", "options", "safe_files", "seeding"},
    "importers": {"methods", "losses", "collectors", "policies", "tracking", "envs", "options", "keys", "seeding"}
    | {"safe_files"},
    "api": {
        "fit",
        "audits",
        "callbacks",
        "configuration",
        "envs",
        "global_state",
        "importers",
        "methods",
        "tracking",
        "policies",
        "seeding",
    },
    "reproduce": {"fit", "audits", "envs", "tracking", "resume", "policies", "options", "seeding"},
    "quickstart": {"fit", "configuration", "audits", "report", "tracking", "policies", "seeding", "options"},
    "study": {
        "fit",
        "trainer_options",
        "configuration",
        "methods",
        "callbacks",
        "collectors",
        "audits",
        "report",
        "tracking",
        "policies",
        "cli",
        "old_names",
        "options",
        "processes",
        "safe_files",
        "envs",
    },
    "benchmark": {"fit", "configuration", "audits", "methods", "collectors", "envs", "policies", "losses"}
    | {"keys", "seeding", "options", "processes", "tracking"},
    "cli": {"global_state", "quickstart", "fit", "tracking"},
    "__main__": {"cli"},
}
NO_TRAINER_OR_STORE = ("envs", "policies", "losses", "keys", "seeding", "global_state")
MLFLOW = ("tracking", "callbacks", "report", "study")
"""Rooms that may import mlflow."""
DISPATCHES = "cli.py"
"""Its table names every command's module as text, which is imported for that command only."""
OURS = re.compile(r"lightning_unlearn(\.[a-z_]\w*)+")


def files():
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names of modules in import statements, and in calls and options that import by a string."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "lightning_unlearn":
                yield from (f"lightning_unlearn.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
    yield from named_in_strings(tree)


def named_in_strings(tree):
    """Modules by `import_module("…")`, and by `-m …` in a command line for another process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from texts(node.args[:1])
        elif isinstance(node, ast.List | ast.Tuple):
            yield from (name for flag, name in pairwise(texts(node.elts)) if flag == "-m")


def called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def texts(nodes):
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def modules(tree):
    """Our modules that any string of a file is the name of."""
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {text for text in found if OURS.fullmatch(text)}


def neighbours(path):
    """Other rooms that a file imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("lightning_unlearn.")} - {room(path)}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    here, top = room(path), {name.split(".")[0] for name in imported(path)}
    assert neighbours(path) <= ROOMS[here], f"{here} must not import {neighbours(path) - ROOMS[here]}"
    if here in NO_TRAINER_OR_STORE:
        assert not top & {"lightning", "mlflow"}
    assert here in MLFLOW or "mlflow" not in top
    assert path.name == "compat.py" or "safety_gymnasium" not in top


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("importlib.import_module('lightning_unlearn.api')", ["lightning_unlearn.api"]),
        ("__import__('mlflow.pyfunc')", ["mlflow.pyfunc"]),
        ("subprocess.run([sys.executable, '-m', 'lightning_unlearn.study.jobs'])", ["lightning_unlearn.study.jobs"]),
        ("import_module(name)", []),
    ],
)
def test_imports_by_string_are_seen(code, names):
    assert list(named_in_strings(ast.parse(code))) == names


def test_every_room_is_known_and_no_rule_is_left_over():
    assert {room(path) for path in files()} | {"__init__"} == {*ROOMS, "__init__"}


def test_no_room_imports_itself_by_way_of_others():
    """Of the imports that there are, not only of those that are allowed."""
    graph = {here: set() for here in ROOMS}
    for path in files():
        graph[room(path)] |= neighbours(path)
    assert list(TopologicalSorter(graph).static_order())


def test_every_command_is_a_module_of_its_own():
    named = modules(ast.parse((PACKAGE / DISPATCHES).read_text()))
    assert len(named) > 15
    for name in named:
        place = PACKAGE.parent / name.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), name


def test_only_one_audit_trains():
    """An audit asks a question of a stored model and never trains it by accident."""
    training = {p.name for p in files() if room(p) == "audits" and any(".methods." in n for n in imported(p))}
    assert training <= {"relearn_attacks.py"}


def test_help_needs_no_heavy_library():
    heavy = {"torch", "lightning", "mlflow", "torchrl", "numpy"}
    for name in ("cli.py", "__main__.py"):
        assert not {n.split(".")[0] for n in imported(PACKAGE / name)} & heavy
