"""Measures of the code: how many modules, how long functions are, how often a helper has one caller.

    python tests/house.py [FOLDER]          print the measures of a checkout, by default of this one
    python tests/house.py --walk [FOLDER]   print the package's files that a rollout and its update pass, too

The walk trains two updates in a process of its own, with the package of the Python that runs this script.
"""

import ast
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parent.parent
PACKAGE = "lightning_unlearn"
ODD_OPENINGS = ("What", "Of", "Whether", "Where")
"""First words of docstrings that do not say what a function does or returns."""


@dataclass(frozen=True)
class Function:
    """A function or method of the package."""

    path: Path
    name: str
    lines: int
    """Of its body, without signature and docstring."""
    callers: int
    """Places in its file that use its name; only counted for private functions."""

    @property
    def is_private(self) -> bool:
        """Begins with one underscore."""
        return self.name.startswith("_") and not self.name.startswith("__")


@dataclass(frozen=True)
class House:
    """The measures of one checkout."""

    modules: int
    package_lines: int
    test_lines: int
    readme_bytes: int
    functions: list[Function]
    repeated_names: dict[str, int]
    """Module name → how many modules have it; names other than `__init__` that occur twice or more."""
    odd_docstrings: list[str]

    @property
    def single_caller_share(self) -> float:
        """Private functions with one caller, as a share of all functions."""
        return sum(f.is_private and f.callers == 1 for f in self.functions) / len(self.functions)

    @property
    def function_lines(self) -> tuple[float, float, int]:
        """Median, 90 % quantile and largest number of lines of a function."""
        lines = [f.lines for f in self.functions]
        return median(lines), quantiles(lines, n=10)[-1], max(lines)

    def __str__(self) -> str:
        middle, most, longest = self.function_lines
        repeated = ", ".join(f"{name} x{count}" for name, count in sorted(self.repeated_names.items())) or "none"
        return "\n".join(
            (
                f"modules in the package                     {self.modules}",
                f"lines in the package                       {self.package_lines}",
                f"functions                                  {len(self.functions)}",
                f"private functions with a single caller     {self.single_caller_share:.1%} of all functions",
                f"lines of a function: median / 90 % / max   {middle:g} / {most:g} / {longest}",
                f"module names that occur more than once     {repeated}",
                f"docstrings that begin with {'/'.join(ODD_OPENINGS)}  {len(self.odd_docstrings)}",
                f"README                                     {self.readme_bytes} bytes",
                f"test lines                                 {self.test_lines}",
            )
        )


def measure(root: Path = ROOT) -> House:
    """Count everything in a checkout."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    names = Counter(path.stem for path in files if path.stem != "__init__")
    return House(
        modules=len(files),
        package_lines=sum(map(_count_lines, files)),
        test_lines=sum(map(_count_lines, (root / "tests").rglob("*.py"))),
        readme_bytes=(root / "README.md").stat().st_size,
        functions=[function for path, tree in trees.items() for function in _functions(path, tree)],
        repeated_names={name: count for name, count in names.items() if count > 1},
        odd_docstrings=[line for tree in trees.values() for line in _first_lines(tree) if _is_odd(line)],
    )


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _functions(path: Path, tree: ast.Module) -> list[Function]:
    uses = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [Function(path, node.name, _body_lines(node), uses[node.name]) for node in defined]


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _first_lines(tree: ast.Module) -> list[str]:
    """First lines of all docstrings, also of those under constants and fields."""
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [text.strip().partition("\n")[0] for text in texts]


def _is_odd(line: str) -> bool:
    return line.partition(" ")[0].rstrip(",.:") in ODD_OPENINGS


# ---- the walk of one update ------------------------------------------------------------------------------------

CHAIN = ("base", "env/point_goal1", "method/concept")
SMALL = ("--n_envs=2", "--horizon=64", "--updates=2", "--save_points=[2]", "--data.workers=1", "--torch_threads=1")
REGISTERED = "create_model_version"
"""MLflow's function that ends the walk: its store has the model then."""


def walk() -> list[str]:
    """Files of the package that run a function between the first training step and the registered model."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, Path(__file__).resolve(), "--traced", f"{scratch}/files"]
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(scratch, "files").read_text(encoding="utf-8"))


def trace_update(out: str) -> None:
    """Train two updates in this process; write the names of the files passed from the first training step on.

    The first rollout is collected before that step, the second one after it.
    """
    from lightning.pytorch import Trainer

    from lightning_unlearn.cli import main

    package, found, walking = f"/{PACKAGE}/", set(), False

    def watch(frame, event, _argument):
        nonlocal walking
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and package in file:
            walking = walking or name == "training_step"
            if walking:
                found.add(file.rpartition(package)[2])
        elif event == "return" and name == REGISTERED and "sqlalchemy_store" in file:
            sys.setprofile(None)

    def fit(*args, **kwargs):
        sys.setprofile(watch)
        return original(*args, **kwargs)

    original, Trainer.fit = Trainer.fit, fit
    main(["fit", *(part for name in CHAIN for part in ("-c", f"configs/{name}.yaml")), *SMALL])
    sys.setprofile(None)
    Path(out).write_text(json.dumps(sorted(found)), encoding="utf-8")


def run(args: list[str]) -> None:
    """Print what was asked for."""
    if args[:1] == ["--traced"]:
        trace_update(args[1])
        return
    folders = [arg for arg in args if arg != "--walk"]
    print(measure(Path(folders[0]) if folders else ROOT))
    if "--walk" in args:
        passed = walk()
        print(f"files that a rollout and its update pass  {len(passed)}\n  " + "\n  ".join(passed))


if __name__ == "__main__":
    run(sys.argv[1:])
