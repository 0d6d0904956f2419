"""Who may import whom (the rooms and their doors), checked over the import statements."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_unlearn"
ROOMS = {
    "keys": set(),
    "arithmetic": set(),
    "seeds": set(),
    "options": set(),
    "torch_modes": set(),
    "process_state": {"torch_modes"},
    "untrusted": set(),
    "children": set(),
    "envs": {"keys", "seeds", "children"},
    "policies": {"keys", "untrusted"},
    "objectives": {"keys"},
    "collection": {"envs", "policies", "keys", "seeds", "untrusted", "children"},
    "processes": set(),
    "addresses": set(),
    "schema": {"addresses"},
    "relocation": {"processes", "addresses"},
    "store": {"processes", "addresses", "schema", "relocation"},
    "model_files": {"policies", "untrusted"},
    "versions": {"policies", "store", "model_files"},
    "registry": {"policies", "store", "model_files", "versions", "torch_modes", "addresses"},
    "verify": {"registry", "model_files", "policies", "options", "untrusted"},
    "runs": {"processes", "store", "addresses"},
    "checkpoints": {"policies"},
    "methods": {"collection", "policies", "objectives", "registry", "envs", "keys", "seeds", "arithmetic"},
    "audits": {"methods", "envs", "policies", "objectives", "registry", "runs", "collection", "keys", "seeds"}
    | {"options", "untrusted"},
    "callbacks": {"objectives", "collection", "registry", "runs", "store", "processes", "policies", "keys", "seeds"}
    | {"arithmetic"},
    "configuration": {"methods", "callbacks", "options", "untrusted"},
    "resumption": {"checkpoints", "configuration", "store"},
    "keep_best": {"audits", "callbacks", "collection", "envs", "policies", "registry", "runs", "seeds", "store"},
    "training": {
        "addresses",
        "audits",
        "keep_best",
        "methods",
        "callbacks",
        "envs",
        "registry",
        "collection",
        "configuration",
        "checkpoints",
        "resumption",
        "process_state",
        "processes",
        "trainer_options",
    },
    "trainer_options": {"callbacks"},
    "api": {
        "training",
        "audits",
        "callbacks",
        "configuration",
        "envs",
        "process_state",
        "foreign",
        "methods",
        "registry",
        "policies",
        "seeds",
    },
    "foreign": {
        "methods",
        "objectives",
        "collection",
        "policies",
        "registry",
        "runs",
        "envs",
        "options",
        "keys",
        "seeds",
    }
    | {"untrusted", "torch_modes"},
    "housekeeping": {"audits", "registry", "versions", "runs", "store", "model_files", "resumption", "processes"}
    | {"policies", "options", "untrusted"},
    "reproduce": {"training", "audits", "envs", "registry", "resumption", "policies", "options"} | {"arithmetic"},
    "quickstart": {"training", "configuration", "audits", "registry", "runs", "policies", "seeds", "options"},
    "study": {
        "training",
        "trainer_options",
        "configuration",
        "methods",
        "callbacks",
        "collection",
        "audits",
        "registry",
        "runs",
        "policies",
    }
    | {"addresses", "checkpoints", "cli", "options", "processes", "store", "untrusted", "envs", "children"},
    "bench": {"training", "configuration", "audits", "methods", "collection", "envs", "policies", "objectives"}
    | {"keys", "seeds", "options", "processes", "registry"},
    "cli": {"addresses", "process_state", "quickstart", "training"},
    "__main__": {"cli"},
}
NO_TRAINER_OR_STORE = ("envs", "policies", "objectives", "keys", "seeds", "torch_modes")


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
