"""What each method of a study comes to in each environment, once its chain of config files is resolved."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.configuration import find_config, shipped_config
from lightning_unlearn.fit import FitCLI
from lightning_unlearn.methods.repedit import RepEdit
from lightning_unlearn.old_names import REMOVED_CHOICES, REMOVED_OPTIONS
from lightning_unlearn.safe_files import sha256
from lightning_unlearn.study.schema import AUDITS, RANDOM, Method, Study, require_distinct
from lightning_unlearn.study.steps import Work
from lightning_unlearn.trainer_options import require_possible

AUTO = "auto"
EPISODE_STEPS = 1000
"""Of most tasks; only tells how long something will take."""
_OF_THE_MACHINE = ("config", "tracking_uri", "torch_threads", "resume")


@dataclass(frozen=True)
class Training:
    """A method in an environment."""

    name: str
    env_id: str
    config: Mapping[str, Any]
    """Resolved."""
    text: str
    """The same, as YAML."""
    source: str | None
    """Of the weights: None (random), another method of the study, or a model URI or file where `foreign`."""
    foreign: bool
    save_points: tuple[int, ...]
    edits: bool
    """It puts an editor into the latent along a direction."""
    takes_direction: bool
    """It waits for the probe's direction."""

    @property
    def facts(self) -> str:
        """What its result depends on, as text: the resolved config without what only the machine decides."""
        kept = {key: value for key, value in self.config.items() if key not in _OF_THE_MACHINE}
        # Results of before an option was removed stay valid.
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "workers"}
        kept["data"]["collector"] = REMOVED_CHOICES["data.collector"].left
        model = self.config["model"]
        kept["model"] = model | {"init_args": REMOVED_OPTIONS.get(model["class_path"], {}) | model["init_args"]}
        artifact = model["init_args"].get("repedit_artifact")
        content = sha256(Path(artifact)) if artifact and Path(artifact).is_file() else ""
        return json.dumps(_without_nothing(kept), sort_keys=True, default=str) + content

    @property
    def num_envs(self) -> int:
        """Environments side by side."""
        return int(self.config["data"]["num_envs"])

    @property
    def updates(self) -> int:
        """How many it makes."""
        return int(self.config["trainer"]["max_epochs"])

    @property
    def concept(self) -> str:
        """What it forgets, as an option has it: `auto`, an info key, or a class and its arguments as JSON."""
        concept = self.config["data"]["concept"]
        return concept if isinstance(concept, str) else json.dumps(concept, sort_keys=True)

    @property
    def work(self) -> Work:
        """Environment steps that it makes."""
        about, updates = self.config["model"]["init_args"], self.updates
        steps = updates * self.num_envs * int(self.config["data"]["horizon"])
        if self.edits:
            return Work(rolled=steps)
        if "recollect_every" in about:
            collections = -(-updates // int(about["recollect_every"]))
            return Work(rolled=collections * int(about["dataset_episodes"]) * EPISODE_STEPS)
        return Work(trained=_OF_THE_PAST * steps if "capacity" in about else steps)


_OF_THE_PAST = 3
"""How many times as long an update takes that learns from a replay, with the shipped settings."""


def _without_nothing(config: Any) -> Any:
    """Without the keys that say nothing: a new option that is off leaves old results valid."""
    if not isinstance(config, Mapping):
        return config
    return {key: _without_nothing(value) for key, value in config.items() if value is not None}


class _ConfigOnly(FitCLI):
    """Parses and checks the options, and builds nothing."""

    def before_instantiate_classes(self) -> None:
        """Check what can be checked without building anything."""
        require_possible(self.config.trainer)

    def instantiate_classes(self) -> None:
        """Nothing is built."""


def resolve(study: Study) -> dict[str, list[Training]]:
    """The trainings of each environment, by its id, in the order of the file.

    Raises:
        ValueError: A method or an environment is unknown, an option is, or names repeat.
    """
    found = {env: [_training(study, env, method) for method in study.methods] for env in study.envs}
    for trainings in found.values():
        require_distinct("methods", [training.name for training in trainings])
        _require_one_env(trainings)
    require_distinct("envs", [trainings[0].env_id for trainings in found.values()])
    return {trainings[0].env_id: trainings for trainings in found.values()}


def _require_one_env(trainings: Sequence[Training]) -> None:
    for training in trainings:
        if training.env_id != trainings[0].env_id:
            raise ValueError(
                f"methods: {training.name} is of {training.env_id}, others of {trainings[0].env_id}: leave data.env "
                "out of the options and list the environment under envs."
            )


def _require_possible_name(training: Training) -> None:
    if not re.fullmatch(r"[a-z]\w*", training.name) or training.name in (*AUDITS, RANDOM):
        raise ValueError(
            f"methods: the name {training.name!r} is not possible: use small letters, digits and underscores, and none "
            f"of {', '.join((*AUDITS, RANDOM))}."
        )


def _training(study: Study, env: str, method: Method) -> Training:
    try:
        cli = _ConfigOnly([*_chain(study, env, method), *_options(method)])
    except ValueError as error:
        raise ValueError(f"methods: {method.name or method.config} in {env}: {error}") from error
    config = cli.config.as_dict()
    about, last = config["model"]["init_args"], int(config["trainer"]["max_epochs"])
    own = about.get("source")
    source = method.source or ("unsafe" if own == AUTO else own)
    cls = config["model"]["class_path"]
    edits = cls.endswith(f".{RepEdit.__name__}")
    training = Training(
        name=about["method"],
        env_id=config["data"]["env"],
        config=config,
        text=str(cli.parser.dump(cli.config, skip_none=False)),
        source=source,
        foreign=method.source is None and own not in (None, AUTO),
        save_points=tuple(config["save_points"] or [last]),
        edits=edits,
        takes_direction=edits and about["repedit_artifact"] is None and about["direction"] == "probe",
    )
    _require_possible_name(training)
    return training


def _chain(study: Study, env: str, method: Method) -> list[str]:
    names = [
        str(shipped_config("base.yaml")),
        _config("env", env, "envs"),
        _config("method", method.config, "methods"),
        *study.overlays,
    ]
    return [part for name in names for part in ("-c", name)]


def _config(folder: str, name: str, where: str) -> str:
    """A config file: `concept` is the shipped `method/concept.yaml`."""
    if name.endswith((".yaml", ".yml")):
        return str(find_config(name))
    try:
        return str(shipped_config(f"{folder}/{name}.yaml"))
    except ValueError as error:
        raise ValueError(f"{where}: {error} Or name a config file.") from error


def _options(method: Method) -> Iterator[str]:
    named = {} if method.name is None else {"model.method": method.name}
    for key, value in (named | dict(method.options)).items():
        yield from (f"--{key}", value if isinstance(value, str) else json.dumps(value))
