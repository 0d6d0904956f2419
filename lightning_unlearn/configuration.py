"""Config files and options of `fit`: where files are found, how options are written, and where a wrong key is."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from lightning_unlearn.old_names import without_removed_options
from lightning_unlearn.options import flatten, suggestion, utf8_configs, with_current_names
from lightning_unlearn.published_options import FIT_OPTIONS, SWITCHES, WITHOUT_EFFECT
from lightning_unlearn.safe_files import read_bytes

_EITHER = ("--pid.target_cost", "--pid.cost_limit")
"""Two options for the same thing."""
_FILE_OPTIONS = ("-c", "--config")
_ALWAYS_SHOWN = ("trainer.max_epochs", "model.help")
"""Options that the short help shows although they begin or end like those that it leaves out."""
_MAX_BYTES, _MAX_DEPTH = 1 << 20, 32


_ALTERNATIVES = re.compile(
    r"(?P<indent> *)Does not validate against any of the Union subtypes\n *Subtypes: .*\n *Errors:\n"
    r"(?P<reason>(?:.*\n)+?) *- Expected a <class 'NoneType'>\n *Given value type: .*\n *Given value: .*"
)


class _WholeHelp(argparse.Action):
    """Prints the help of all options, and ends."""

    def __init__(self, option_strings: Sequence[str], help: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.hidden_help = ()  # type: ignore[attr-defined]
        parser.print_help()
        parser.exit()


class ConfigParser(LightningArgumentParser):
    """Refuses abbreviations, and names the nearest valid key when one is unknown."""

    hidden_help: tuple[str, ...] = ()
    """Beginnings of options that the short help leaves out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def shorten_help(self, *hidden: str) -> None:
        """Leave options that begin so, and those that show help of a class, out of `--help`; `--help_all` has them."""
        self.hidden_help = hidden
        self.add_argument(
            "--help_all", action=_WholeHelp, help="show the help of all options, Lightning's too, and exit"
        )

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Format the help, without the options of `shorten_help`."""
        hidden = [action for action in self._actions if self._is_hidden(action)]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return str(super().format_help(*args, **kwargs))
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text

    def _is_hidden(self, action: argparse.Action) -> bool:
        if not self.hidden_help or action.dest in _ALWAYS_SHOWN:
            return False
        return action.dest.startswith(self.hidden_help) or action.dest.endswith(".help")

    def add_config_option(self) -> None:
        """Add the option that names config files."""
        self.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file; later ones win")

    @utf8_configs()
    def parse_args(self, args: Iterable[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse options, and the config files among them as UTF-8."""
        return super().parse_args(with_current_names(args), *others, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse the text of a config file, without the options that earlier versions had."""
        return super().parse_string(without_removed_options(content), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a bad option or file.

        Raises:
            ValueError: At the top level; nested parsers end as jsonargparse expects it.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ValueError(without_alternatives(message) + suggestion(message, self._known())) from ex

    def _known(self) -> list[str]:
        from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
        from lightning_unlearn.callbacks.weight_average import WeightAverage

        keys = [action.dest for action in self._actions] + list(FIT_OPTIONS)
        callbacks = (("pid", PIDLagrangian), ("average", WeightAverage))
        for group, cls in (*(("model", method) for method in method_classes()), *callbacks):
            names = [
                name for name, taken in inspect.signature(cls).parameters.items() if taken.kind != taken.VAR_KEYWORD
            ]
            keys += [f"{group}.{name}" for name in names] + names
        return keys + [key.rpartition(".")[2] for key in keys]


def without_alternatives(message: str) -> str:
    """Keep of a message about an option that may also be null only the reason why its value is refused."""

    def reason(found: re.Match[str]) -> str:
        text = textwrap.dedent(found["reason"].replace("- ", "  ", 1))
        return textwrap.indent(text.rstrip(), found["indent"])

    return _ALTERNATIVES.sub(reason, message)


def method_classes() -> tuple[type, ...]:
    """Import and return the classes of methods; the parser then knows them by their names alone, without a module."""
    from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
    from lightning_unlearn.methods.localized_concept import LocalizedConcept
    from lightning_unlearn.methods.off_policy_concept import OffPolicyConcept
    from lightning_unlearn.methods.repedit import RepEdit
    from lightning_unlearn.methods.trajectory_decremental import TrajectoryDecremental

    return DualHeadPPO, LocalizedConcept, OffPolicyConcept, TrajectoryDecremental, RepEdit


def expand(args: Sequence[str]) -> list[str]:
    """Write options as the parser takes them: in full, save points as one list, config files by their paths.

    `base.yaml` comes before other config files, unless it is one of them. Published options without effect are left
    out, with a line that says so.
    """
    given: list[str] = []
    values = iter(_split_equals(args))
    for arg in values:
        given += [arg, str(find_config(next(values, "")))] if arg in _FILE_OPTIONS else [arg]
    expanded = [
        f"--{FIT_OPTIONS.get(arg[2:], arg[2:])}" if arg.startswith("--") else arg for arg in _without_idle(given)
    ]
    return _turn_on(_join_save_points(_leave_out_other(_with_base(expanded))))


def _with_base(args: list[str]) -> list[str]:
    base = shipped_config("base.yaml")
    files = [Path(file) for option, file in pairwise(args) if option in _FILE_OPTIONS]
    has_base = any(file.samefile(base) for file in files)
    return ["--config", str(base), *args] if files and not has_base else args


def _without_idle(args: Sequence[str]) -> list[str]:
    """Leave out published options without effect on the method, and print a line about them."""
    method = _method_class(args)
    idle = [f"--{option}" for option in WITHOUT_EFFECT.get(method, ()) if f"--{option}" in args]
    if not idle:
        return [*args]
    print(f"{', '.join(idle)}: without effect on the method {method}, left out.")
    return [arg for before, arg in pairwise(["", *args]) if arg not in idle and before not in idle]


def _method_class(args: Sequence[str]) -> str:
    """Name of the method's class, from the last config file or option that names one; empty if none does."""
    path = ""
    for option, value in pairwise(args):
        if option in ("--model", "--model.class_path"):
            path = value
        elif option in _FILE_OPTIONS:
            model = _read_yaml(Path(value)).get("model")
            path = str(model.get("class_path") or path) if isinstance(model, Mapping) else str(model or path)
    return path.rpartition(".")[2]


def names_task(args: Sequence[str]) -> bool:
    """Return whether an option or a config file names the environment.

    Args:
        args: Options in full, with the config files among them.
    """
    if "--data.env" in args or "--data" in args:
        return True
    contents = [_read_yaml(Path(file)).get("data") for option, file in pairwise(args) if option in _FILE_OPTIONS]
    return any(isinstance(data, Mapping) and "env" in data for data in contents)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """Content of a config file; empty if it is no mapping or has a tag, which the parser refuses."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, Mapping) else {}


def shipped_config(name: str) -> Path:
    """Return the shipped config file of this name, whatever files the working directory has.

    Raises:
        ValueError: None is shipped under this name.
    """
    path = shipped_configs() / name
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ValueError(f"{path.stem!r} is unknown: use one of {known}.")
    return path


def find_config(name: str) -> Path:
    """Return a config file: the one on disk, or else the shipped one of this name.

    Raises:
        ValueError: There is no such file, or it is no config.
    """
    places = [Path(name), shipped_configs() / name, shipped_configs() / name.removeprefix("configs/")]
    for place in places:
        if place.is_file():
            _require_plain(place)
            return place
    shipped = ", ".join(sorted(str(p.relative_to(shipped_configs())) for p in shipped_configs().rglob("*.yaml")))
    raise ValueError(f"--config {name} was not found, neither here nor among the shipped ones: {shipped}.")


_KEYS = re.compile(r"(?:[Kk]ey \"|[Gg]roup '|[Oo]ption ')([\w.]+)")
"""Keys that a parser's message names, from the outermost to the innermost."""
_MISSING = "required"
"""In a parser's message about what was not given."""


def origin(message: str, args: Sequence[str]) -> str:
    """Return a sentence on the config file that has a wrong key; empty if the key was given as an option.

    If a required option is missing, the sentence lists all the files that were read, in order.

    Args:
        message: The parser's message, such as `Parser key "data.horizon": …`.
        args: Options in full, with the config files among them.
    """
    files = [file for option, file in pairwise(args) if option in _FILE_OPTIONS]
    if _MISSING in message and files:
        return (
            "\nThat is in none of the config files read: "
            + ", ".join(f"{file}{_stands_in(file)}" for file in files)
            + "."
        )
    keys = ".".join(_KEYS.findall(message)).split(".")
    if any(arg.startswith(f"--{keys[0]}") and arg.endswith(keys[-1]) for arg in args):
        return ""
    for file in reversed(files):
        if any(key.startswith(keys[0]) and keys[-1] in key.split(".") for key in flatten(_read_yaml(Path(file)))):
            return f"\nThe key is in {file}."
    return ""


def _stands_in(file: str) -> str:
    """Return a remark if a file of the working directory has the name of a shipped one."""
    shipped = shipped_configs() / file.removeprefix("configs/")
    other = not Path(file).is_absolute() and shipped.is_file() and not shipped.samefile(file)
    return " (of the working directory, in place of the shipped one)" if other else ""


def _require_plain(path: Path) -> None:
    """Refuse deep nesting, on which PyYAML crashes, and aliases, which multiply, before the content is built."""
    depth = keys = 0
    try:
        for event in yaml.parse(read_bytes(path, _MAX_BYTES).decode(), Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias (*name): write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            keys += isinstance(event, yaml.ScalarEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if not keys:
            raise ValueError("it holds no options")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error


def shipped_configs() -> Path:
    """Return the folder of shipped configs: inside an installed package, beside the package in a clone."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _split_equals(args: Sequence[str]) -> Iterator[str]:
    for arg in args:
        if arg.startswith("--") and "=" in arg:
            yield from arg.split("=", 1)
        else:
            yield arg


def _leave_out_other(args: list[str]) -> list[str]:
    """Set one of two options for the same thing to null if the other is given: a config file may have set it."""
    given = [option for option in _EITHER if any(arg.partition("=")[0] == option for arg in args)]
    return [
        *args,
        *(part for option in _EITHER if len(given) == 1 and option not in given for part in (option, "null")),
    ]


def _turn_on(args: list[str]) -> list[str]:
    """Add `true` after a switch without a value."""
    result: list[str] = []
    for arg, following in pairwise([*args, "--"]):
        result.append(arg)
        if arg[2:] in SWITCHES and following.startswith("-"):
            result.append("true")
    return result


def _join_save_points(args: list[str]) -> list[str]:
    """Turn `--save_points 50 100` into `--save_points [50,100]`."""
    if "--save_points" not in args:
        return args
    start = args.index("--save_points") + 1
    stop = start
    while stop < len(args) and args[stop].isdigit():
        stop += 1
    return args[:start] + ([f"[{','.join(args[start:stop])}]"] if stop > start else []) + args[stop:]
