"""Config files and options: where files are found, short names of options, and errors that say what was meant."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from lightning_unlearn.options import flatten, suggestion, utf8_configs, with_current_names
from lightning_unlearn.safe_files import read_bytes

SHORT_NAMES = {
    "env": "data.env",
    "seed": "seed_everything",
    "n_envs": "data.num_envs",
    "horizon": "data.horizon",
    "updates": "trainer.max_epochs",
    "unsafe_updates": "model.unsafe_updates",
    "lr": "model.lr",
    "ent_coef": "model.ent_coef",
    "ppo_epochs": "model.ppo_epochs",
    "dataset_episodes": "model.dataset_episodes",
    "decremental_epochs_per_update": "model.decremental_epochs_per_update",
    "decremental_bc_coef": "model.decremental_bc_coef",
    "decremental_value_coef": "model.decremental_value_coef",
    "decremental_ent_coef": "model.decremental_ent_coef",
    "recollect_every": "model.recollect_every",
    "batch_size": "model.batch_size",
    "kp": "pid.kp",
    "ki": "pid.ki",
    "kd": "pid.kd",
    "lambda_init": "pid.lambda_init",
    "lambda_max": "pid.lambda_max",
    "integral_max": "pid.integral_max",
    "target_cost": "pid.target_cost",
    "cost_limit": "pid.cost_limit",
    "repedit_artifact": "model.repedit_artifact",
    "repedit_alpha": "model.repedit_alpha",
    "repedit_beta": "model.repedit_beta",
    "repedit_tau": "model.repedit_tau",
    "repedit_use_artifact_tau": "model.repedit_use_artifact_tau",
    "repedit_tau_quantile": "model.repedit_tau_quantile",
}
"""Options of the published training scripts, by the name they have there."""
SWITCHES = ("model.repedit_use_artifact_tau",)
"""Options that stand for `true` where no value follows them."""
_EITHER = ("--pid.target_cost", "--pid.cost_limit")
_MAX_BYTES, _MAX_DEPTH = 1 << 20, 32


class ConfigParser(LightningArgumentParser):
    """Refuses abbreviations, and names the nearest valid key when one is unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_config_option(self) -> None:
        """The option that names config files."""
        self.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file; later ones win")

    @utf8_configs()
    def parse_args(self, args: Iterable[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse options, and the config files among them as UTF-8."""
        return super().parse_args(with_current_names(args), *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a bad option or file.

        Raises:
            ValueError: At the top; the parser's own trials of nested values end as it wants them to.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ValueError(message + suggestion(message, self._known())) from ex

    def _known(self) -> list[str]:
        from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
        from lightning_unlearn.callbacks.weight_average import WeightAverage
        from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
        from lightning_unlearn.methods.localized_concept import LocalizedConcept
        from lightning_unlearn.methods.off_policy_concept import OffPolicyConcept
        from lightning_unlearn.methods.repedit import RepEdit
        from lightning_unlearn.methods.trajectory_decremental import TrajectoryDecremental

        keys = [action.dest for action in self._actions] + list(SHORT_NAMES)
        methods = (DualHeadPPO, LocalizedConcept, OffPolicyConcept, TrajectoryDecremental, RepEdit)
        callbacks = (("pid", PIDLagrangian), ("average", WeightAverage))
        for group, cls in (*(("model", method) for method in methods), *callbacks):
            names = list(inspect.signature(cls).parameters)
            keys += [f"{group}.{name}" for name in names] + names
        return keys + [key.rpartition(".")[2] for key in keys]


def expand(args: Sequence[str]) -> list[str]:
    """Options as the parser wants them: short names in full, save points as one list, config files where they are."""
    expanded: list[str] = []
    values = iter(_split_equals(args))
    for arg in values:
        if arg in ("-c", "--config"):
            expanded += [arg, str(find_config(next(values, "")))]
        elif arg.startswith("--"):
            expanded.append("--" + SHORT_NAMES.get(arg[2:], arg[2:]))
        else:
            expanded.append(arg)
    return _turn_on(_join_save_points(_leave_out_other(expanded)))


def shipped_config(name: str) -> Path:
    """The shipped config file of this name, whatever files the working directory has.

    Raises:
        ValueError: None is shipped under this name.
    """
    path = shipped_configs() / name
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ValueError(f"{path.stem!r} is unknown: use one of {known}.")
    return path


def find_config(name: str) -> Path:
    """A config file: on disk, else the one that the package ships under this name.

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
    """Which config file has the key that a parser's message complains about; empty if it was given as an option.

    If something required is missing, it is all the files that were read, in order.

    Args:
        message: The parser's, such as `Parser key "data.horizon": …`.
        args: Options in full, with the config files among them.
    """
    files = [file for option, file in pairwise(args) if option in ("-c", "--config")]
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
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except yaml.YAMLError:
            continue  # a tag, which the message is about
        inside = flatten(content) if isinstance(content, Mapping) else {}
        if any(key.startswith(keys[0]) and keys[-1] in key.split(".") for key in inside):
            return f"\nThe key is in {file}."
    return ""


def _stands_in(file: str) -> str:
    """Say so if a file was found in the working directory, and one is shipped under the same name."""
    shipped = shipped_configs() / file.removeprefix("configs/")
    other = not Path(file).is_absolute() and shipped.is_file() and not shipped.samefile(file)
    return " (of the working directory, in place of the shipped one)" if other else ""


def _require_plain(path: Path) -> None:
    """Refuse, before it is built, what no config needs: PyYAML crashes on deep nesting, and aliases multiply."""
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
    """The folder of shipped configs: inside an installed package, beside the package in a clone."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _split_equals(args: Sequence[str]) -> Iterator[str]:
    for arg in args:
        if arg.startswith("--") and "=" in arg:
            yield from arg.split("=", 1)
        else:
            yield arg


def _leave_out_other(args: list[str]) -> list[str]:
    """Of two options that say the same thing, the one that is given replaces the other, which a config file may set."""
    given = [option for option in _EITHER if any(arg.partition("=")[0] == option for arg in args)]
    return [
        *args,
        *(part for option in _EITHER if len(given) == 1 and option not in given for part in (option, "null")),
    ]


def _turn_on(args: list[str]) -> list[str]:
    """A switch with no value after it → the switch and `true`."""
    result: list[str] = []
    for arg, following in pairwise([*args, "--"]):
        result.append(arg)
        if arg[2:] in SWITCHES and following.startswith("-"):
            result.append("true")
    return result


def _join_save_points(args: list[str]) -> list[str]:
    """`--save_points 50 100` → `--save_points [50,100]`."""
    if "--save_points" not in args:
        return args
    start = args.index("--save_points") + 1
    stop = start
    while stop < len(args) and args[stop].isdigit():
        stop += 1
    return args[:start] + ([f"[{','.join(args[start:stop])}]"] if stop > start else []) + args[stop:]
