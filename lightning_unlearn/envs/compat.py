"""The only importer of safety_gymnasium: makes release 1.0.0 importable on Python 3.11-3.13 and builds its tasks.

Importing this module imports safety_gymnasium, once, quietly, and without a trace in the global logging, warning or
dataclass state. Environments that others make with `safety_gymnasium.make` in the same process do not change.
"""

import contextlib
import copy
import dataclasses
import difflib
import importlib
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.envs.toy import ENV_ID as TOY_ID
from lightning_unlearn.processes import working_directory_importable

_BANNER = "PYGAME_HIDE_SUPPORT_PROMPT"
_SUPPORTED = re.compile(
    r"Safety(?:Point|Car|Racecar|Doggo|Ant)((?:Goal|Button|Push|Circle|Race|FadingEasy|FadingHard)[012]|Run0)-v0"
)
_VELOCITY = re.compile(r"Safety(HalfCheetah|Hopper|Swimmer|Walker2d|Ant|Humanoid)Velocity-v[01]")
_SUPPORTED_IN_WORDS = (
    "the agents Point, Car, Racecar, Doggo and Ant with Goal, Button, Push, Circle, Race, FadingEasy, FadingHard (0-2) "
    "and Run0, and the velocity tasks"
)
_MODELS = Path(__file__).parent / "models"
"""Models of Gymnasium that MuJoCo 3 refuses, converted once."""
_REFUSED = {
    "Gymnasium-": "wraps the task without Gymnasium in its id: use that",
    "Vision-": "observes pictures: use the task without Vision in its id",
    "Debug-": "is steered by keys: use the task without Debug in its id",
}
"""Part of an id → why such tasks of Safety-Gymnasium are refused."""


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager: set `owner.name` to `value`, and restore the original value at the end."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _with_array_factories(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `dataclass` decorator so that, as in Python 3.10, an ndarray may be a default, which is shared."""

    def share_arrays(cls: type) -> type:
        for name in inspect.get_annotations(cls):
            default = cls.__dict__.get(name)
            if isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=partial(lambda array: array, default)))
        return cls

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def decorate(decorated: type) -> type:
            return original(share_arrays(decorated), **options)

        return decorate if cls is None else decorate(cls)

    return dataclass


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    before = os.environ.get(_BANNER)
    os.environ[_BANNER] = "1"
    try:
        yield
    finally:
        os.environ.pop(_BANNER)
        if before is not None:
            os.environ[_BANNER] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: swallow what dependencies print, warn and log while they are imported."""
    root, printed = logging.getLogger(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_banner())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        # With a handler in place, `logging.warning` of a dependency does not install its own for good.
        stack.enter_context(swapped(root, "handlers", [logging.NullHandler()]))
        stack.enter_context(swapped(root, "level", root.level))
        warnings.simplefilter("ignore")
        yield


with _quiet(), swapped(dataclasses, "dataclass", _with_array_factories(dataclasses.dataclass)):
    safety_gymnasium = importlib.import_module("safety_gymnasium")

import gymnasium  # noqa: E402 (after safety_gymnasium, so that its own imports stay quiet)
import mujoco  # noqa: E402
from gymnasium import registry  # noqa: E402
from gymnasium.envs.mujoco import MujocoEnv  # noqa: E402
from safety_gymnasium import tasks  # noqa: E402
from safety_gymnasium.bases.base_task import BaseTask  # noqa: E402
from safety_gymnasium.utils.common_utils import ResamplingError  # noqa: E402
from safety_gymnasium.utils.registration import safe_registry  # noqa: E402
from safety_gymnasium.utils.task_utils import get_body_xvelp, get_task_class_name  # noqa: E402

__all__ = [
    "BaseTask",
    "ResamplingError",
    "get_body_xvelp",
    "gymnasium",
    "is_navigation",
    "make_original",
    "make_task",
    "navigation_ids",
    "navigation_tasks",
    "original_vector",
    "refused_as_value_error",
    "refused_ids",
    "registered_id",
    "registered_spec",
    "safety_gymnasium",
    "swapped",
    "velocity_ids",
]


def registered_id(env_id: str) -> str:
    """Return the id as Gymnasium's registry has it, without the module before a colon, which is imported.

    As in `gymnasium.make`, importing the module of `module:Id-v0` registers the environment. Modules of the working
    directory are found, too.

    Raises:
        ValueError: There is no such module.
    """
    module, _, name = env_id.rpartition(":")
    if module and env_id not in registry:
        with working_directory_importable():
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                    raise  # the module is there, and imports another one that is not
                raise ValueError(f"environment {env_id!r}: there is no module {module!r} here") from None
    return name if module and env_id not in registry else env_id


def navigation_ids() -> list[str]:
    """Return the ids of the registered tasks that `make_task` builds."""
    return [env_id for env_id in registry if _SUPPORTED.fullmatch(env_id)]


def navigation_tasks() -> dict[str, list[str]]:
    """Return the names of the navigation tasks, such as Goal1, each with its id for every agent."""
    tasks_: dict[str, list[str]] = {}
    for env_id in registry:
        if match := _SUPPORTED.fullmatch(env_id):
            tasks_.setdefault(match[1], []).append(env_id)
    return tasks_


def velocity_ids() -> list[str]:
    """Return the ids of the registered velocity tasks."""
    return [env_id for env_id in registry if _VELOCITY.fullmatch(env_id)]


def refused_ids() -> dict[str, list[str]]:
    """Return the reasons why registered tasks of Safety-Gymnasium are refused, each with the ids."""
    ids: dict[str, list[str]] = {}
    for env_id, spec in registry.items():
        if ("task_id" in spec.kwargs or env_id in safe_registry) and env_id not in {*navigation_ids(), *velocity_ids()}:
            ids.setdefault(next(why for part, why in _REFUSED.items() if part in env_id), []).append(env_id)
    return ids


def is_navigation(env_id: str) -> bool:
    """Return True if an id is registered as a task of safety_gymnasium's builder, supported or not."""
    env_id = registered_id(env_id)
    return env_id in registry and "task_id" in registry[env_id].kwargs


def registered_spec(env_id: str) -> Any:
    """Return the Gymnasium registration of a supported navigation task.

    Raises:
        ValueError: The id is unknown (the nearest ones are named), or it is none of the supported tasks.
    """
    given, env_id = env_id, registered_id(env_id)
    if env_id not in registry:
        if module := given.rpartition(":")[0]:
            package = module.partition(".")[0]
            code = {name: getattr(spec.entry_point, "__module__", spec.entry_point) for name, spec in registry.items()}
            own = [name for name, place in code.items() if re.match(rf"{re.escape(package)}[.:]", f"{place}.")]
            raise ValueError(
                f"unknown environment {given!r}: the module {module!r} is there, and registers "
                f"{', '.join(difflib.get_close_matches(env_id, own, n=10, cutoff=0.0)) or 'none'}."
            )
        known = [*navigation_ids(), TOY_ID, *velocity_ids()]
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.0)
        raise ValueError(
            f"unknown environment {env_id!r}; the nearest are {', '.join(near)}. Name one of your own module:Id-v0, "
            "where importing the module registers it."
        )
    if not _SUPPORTED.fullmatch(env_id):
        plain = re.sub("(Vision|Debug|Gymnasium)+-", "-", env_id)
        hint = f": use {plain}" if _SUPPORTED.fullmatch(plain) else ""
        raise ValueError(
            f"{env_id} is not supported; supported are {_SUPPORTED_IN_WORDS}, without pictures or keys{hint}"
        )
    return registry[env_id]


def make_task(env_id: str) -> BaseTask:
    """Build a task object as `safety_gymnasium.make(env_id)` does, not yet reset.

    Raises:
        ValueError: The id is not supported, or the installed MuJoCo refuses the agent's XML.
    """
    spec = registered_spec(env_id)
    task_class = getattr(tasks, get_task_class_name(spec.kwargs["task_id"]))
    with refused_as_value_error(env_id), warnings.catch_warnings():
        # Agents pass one-element arrays as scalars, which numpy deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        task = task_class(config=copy.deepcopy(spec.kwargs["config"]))
    task.build_observation_space()
    return task


def make_original(env_id: str) -> gymnasium.Env:
    """Make the registered environment itself; a step returns six values if safety_gymnasium registered it.

    Raises:
        ValueError: The installed MuJoCo refuses its XML.
    """
    known = registered_id(env_id)
    maker = safety_gymnasium if known in safe_registry else gymnasium
    refusal = refused_as_value_error(env_id) if known in safe_registry else contextlib.nullcontext()
    converting = swapped(
        MujocoEnv, "_initialize_simulation", partialmethod(_initialise, MujocoEnv._initialize_simulation)
    )
    with refusal, converting, working_directory_importable(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # some of the versions have a successor
        return maker.make(known, autoreset=False, disable_env_checker=True)


def _initialise(env: MujocoEnv, original: Callable[[MujocoEnv], None]) -> None:
    """Let Gymnasium's Swimmer, Hopper and Walker2d read a file that MuJoCo 3 accepts; it equals the original one."""
    ours = _MODELS / Path(env.fullpath).name
    if Path(env.fullpath).parent.parent == Path(inspect.getfile(MujocoEnv)).parent and ours.is_file():
        env.fullpath = str(ours)
    original(env)


def original_vector(env_id: str, num_envs: int) -> Any:
    """Make the original environments by `safety_gymnasium.vector.make`, each in a process of its own.

    Raises:
        RuntimeError: The world is replaced in this process, so that the forked processes would not run the originals.
    """
    if safety_gymnasium.bases.underlying.World is not safety_gymnasium.world.World:
        raise RuntimeError("safety_gymnasium's World is replaced: build the vector outside of a reset")
    return importlib.import_module("safety_gymnasium.vector").make(env_id, num_envs=num_envs)


@contextlib.contextmanager
def refused_as_value_error(env_id: str) -> Iterator[None]:
    """Context manager: name the environment and the MuJoCo release if that refuses the scene's XML.

    Raises:
        ValueError: MuJoCo could not compile the scene.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"MuJoCo {mujoco.__version__} refuses the XML of {env_id} ({error}); supported are {_SUPPORTED_IN_WORDS}"
        ) from error
