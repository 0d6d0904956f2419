"""Command-line options: a parser that reports errors in one line and names the option nearest to an unknown one."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse import Path as ConfigPath

from lightning_unlearn.old_names import with_current_paths
from lightning_unlearn.published_options import MODEL_OPTIONS


@contextmanager
def utf8_configs() -> Iterator[None]:
    """Read config files as UTF-8 inside the block: jsonargparse uses the encoding of the locale, without an option."""
    original = ConfigPath.read_text

    def read_utf8(self: ConfigPath) -> str:
        return with_current_paths(Path(self.absolute).read_text(encoding="utf-8"))

    ConfigPath.read_text = read_utf8  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigPath.read_text = original  # type: ignore[method-assign]


def with_current_names(args: Iterable[str] | None) -> list[str] | None:
    """Return options with the present paths of classes that have moved; None, the process's own, stay None."""
    return args if args is None else [with_current_paths(arg) for arg in args]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested keys with dots, leaving out the names of the config files themselves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" != "config":
            flat[f"{prefix}{key}"] = value
    return flat


class CommandParser(ArgumentParser):
    """A parser that refuses abbreviations and raises a `ValueError` for a bad option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; one with a published spelling in `MODEL_OPTIONS` gets its present name, too."""
        if args and (name := MODEL_OPTIONS.get(args[0])):
            kwargs |= {"dest": args[0].removeprefix("--"), "metavar": name.removeprefix("--").upper()}
            args = (f"{name}s" if "nargs" in kwargs else name, *args)
        return super().add_argument(*args, **kwargs)

    @utf8_configs()
    def parse_args(self, args: Iterable[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse options, and the config files that they name as UTF-8."""
        return super().parse_args(with_current_names(args), *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a bad option.

        Raises:
            ValueError: Always, except in the parser's own trials of nested values, which it handles itself.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        known = [name.removeprefix("--") for action in self._actions for name in action.option_strings]
        text = " ".join(message.split())
        if no_number := _NO_NUMBER.search(text):
            text = f"--{no_number[1]} {no_number[2]} is not possible: use a number."
        raise ValueError(text + suggestion(message, known)) from ex


_UNKNOWN = re.compile(r"(?:[Oo]ption '|unrecognized arguments: --)([\w.]+)")
"""An unknown key in a parser's message; its other keys are known, and their values impossible."""
_NO_NUMBER = re.compile(r"""Parser key "([\w.]+)": .*Expected a <class 'float'>.* value: (.+)""")
"""The key and its value in the message about a float that is none, such as nan, which YAML reads as a text."""


def suggestion(message: str, known: Sequence[str]) -> str:
    """Return the known key nearest to an unknown one in a parser's message, as a question; empty if none is near."""
    for key in _UNKNOWN.findall(message):
        begun = [name for name in known if name.startswith(key)]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.7) or begun
        if near and near[0] != key:
            return f"\nDid you mean {near[0]}?"
    return ""


def require_at_least(smallest: int, **values: int) -> None:
    """Refuse numbers that are too small.

    Raises:
        ValueError: One of them is.
    """
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"{name}={value} is not possible: use at least {smallest}.")


def choose(command: str, subcommands: Sequence[str], args: Sequence[str]) -> tuple[str, list[str]]:
    """Return the subcommand and the options after it; a request for help prints the choices.

    Raises:
        ValueError: The first argument is none of `subcommands`.
    """
    usage = f"lightning-unlearn {command} {'|'.join(subcommands)} [options]"
    name, *options = [*args] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {usage}")
        raise SystemExit(0)
    if name not in subcommands:
        near = difflib.get_close_matches(name, subcommands, n=1)
        raise ValueError(f"unknown: {command} {name}. Use {usage}" + (f"\nDid you mean {near[0]}?" if near else ""))
    return name, options
