"""Who may import whom (the rooms and their doors), checked over the import statements."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_unlearn"
ROOMS = {
    "keys": set(),
    "arithmetic": set(),
    "seeding": set(),
    "options": set(),
    "torch_modes": set(),
    "process_state": {"torch_modes"},
    "safe_files": set(),
    "children": set(),
    "processes": set(),
    "envs": {"keys", "seeding", "children"},
    "policies": {"keys", "safe_files"},
    "losses": {"keys"},
    "collectors": {"envs", "policies", "keys", "seeding", "safe_files", "children"},
    "tracking": {"policies", "options", "processes", "safe_files", "torch_modes"},
    "registry": {"tracking"},
    "methods": {"collectors", "policies", "losses", "tracking", "envs", "keys", "seeding", "arithmetic"},
    "audits": {"methods", "envs", "policies", "losses", "tracking", "collectors", "keys", "seeding", "options"}
    | {"safe_files"},
    "report": {"audits", "tracking", "envs", "policies", "options", "seeding"},
    "callbacks": {"losses", "collectors", "tracking", "processes", "policies", "keys", "seeding", "arithmetic"},
    "configuration": {"methods", "callbacks", "options", "safe_files"},
    "resumption": {"configuration", "tracking"},
    "keep_best": {"audits", "callbacks", "collectors", "envs", "policies", "tracking", "seeding"},
    "trainer_options": {"callbacks"},
    "training": {
        "audits",
        "keep_best",
        "methods",
        "callbacks",
        "envs",
        "tracking",
        "collectors",
        "configuration",
        "resumption",
        "process_state",
        "processes",
        "trainer_options",
    },
    "importers": {"methods", "losses", "collectors", "policies", "tracking", "envs", "options", "keys", "seeding"}
    | {"safe_files", "torch_modes"},
    "api": {
        "training",
        "audits",
        "callbacks",
        "configuration",
        "envs",
        "process_state",
        "importers",
        "methods",
        "tracking",
        "policies",
        "seeding",
    },
    "housekeeping": {"audits", "tracking", "resumption", "processes", "policies", "options", "safe_files"},
    "reproduce": {"training", "audits", "envs", "tracking", "resumption", "policies", "options", "arithmetic"},
    "quickstart": {"training", "configuration", "audits", "report", "tracking", "policies", "seeding", "options"},
    "study": {
        "training",
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
        "options",
        "processes",
        "safe_files",
        "envs",
        "children",
    },
    "benchmark": {"training", "configuration", "audits", "methods", "collectors", "envs", "policies", "losses"}
    | {"keys", "seeding", "options", "processes", "tracking"},
    "cli": {"process_state", "quickstart", "training", "tracking"},
    "__main__": {"cli"},
}
NO_TRAINER_OR_STORE = ("envs", "policies", "losses", "keys", "seeding", "torch_modes")


def files():
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "lightning_unlearn":
                yield from (f"lightning_unlearn.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    here = room(path)
    names = list(imported(path))
    ours = {name.split(".")[1] for name in names if name.startswith("lightning_unlearn.")} - {here}
    assert ours <= ROOMS[here], f"{here} must not import {ours - ROOMS[here]}"
    if here in NO_TRAINER_OR_STORE:
        assert not {name.split(".")[0] for name in names} & {"lightning", "mlflow"}


def test_only_one_audit_trains():
    """An audit asks a question of a stored model and never trains it by accident."""
    training = {p.name for p in files() if room(p) == "audits" and any(".methods." in n for n in imported(p))}
    assert training <= {"relearning.py"}


def test_safety_gymnasium_has_one_door():
    doors = {str(p.relative_to(PACKAGE)) for p in files() if any(n.startswith("safety_gymnasium") for n in imported(p))}
    assert doors == {"envs/compat.py"}


def test_help_needs_no_heavy_library():
    heavy = {"torch", "lightning", "mlflow", "torchrl", "numpy"}
    for name in ("cli.py", "__main__.py"):
        assert not {n.split(".")[0] for n in imported(PACKAGE / name)} & heavy
