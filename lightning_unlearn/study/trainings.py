"""Resolve each method of a study in each environment: its chain of config files becomes one config."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.configuration import find_config, shipped_config
from lightning_unlearn.fit import FitCLI
from lightning_unlearn.methods.repedit import RepEdit
from lightning_unlearn.old_names import REMOVED_CHOICES, REMOVED_OPTIONS
from lightning_unlearn.safe_files import sha256
from lightning_unlearn.study.schema import AUDITS, RANDOM, Method, Study, require_distinct
from lightning_unlearn.study.steps import Workload
from lightning_unlearn.trainer_options import require_possible

AUTO = "auto"
EPISODE_STEPS = 1000
"""Steps of an episode in most tasks; used for estimates of duration only."""
REPLAY_COST_FACTOR = 3
"""Duration of an update that learns from a replay buffer over that of an on-policy update, with shipped settings."""
_MACHINE_KEYS = ("config", "tracking_uri", "torch_threads", "resume")
"""Keys of a config that do not change results, and are no part of the cache key."""


@dataclass(frozen=True)
class PlannedTraining:
    """A method in an environment."""

    name: str
    env_id: str
    config: Mapping[str, Any]
    """Resolved config."""
    text: str
    """Resolved config as YAML."""
    source: str | None
    """Source of the weights: None (random), a method of the study, or a model URI or file if `foreign`."""
    foreign: bool
    save_points: tuple[int, ...]
    edits: bool
    """It puts an editor into the latent along a direction."""
    takes_direction: bool
    """It waits for the probe's direction."""

    @property
    def facts(self) -> str:
        """Content of the cache key: the resolved config without what only the machine decides, and its artifact.

        Keys without a value are left out, so that a new option that is off keeps old results valid. Removed options
        have the values that they had when the first results were stored.
        """
        kept = {key: value for key, value in self.config.items() if key not in _MACHINE_KEYS}
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "workers"}
        kept["data"]["collector"] = REMOVED_CHOICES["data.collector"].left
        model = self.config["model"]
        kept["model"] = model | {"init_args": REMOVED_OPTIONS.get(model["class_path"], {}) | model["init_args"]}
        artifact = model["init_args"].get("repedit_artifact")
        content = sha256(Path(artifact)) if artifact and Path(artifact).is_file() else ""
        return json.dumps(_without_nulls(kept), sort_keys=True, default=str) + content

    @property
    def num_envs(self) -> int:
        """Environments side by side."""
        return int(self.config["data"]["num_envs"])

    @property
    def updates(self) -> int:
        """Number of updates."""
        return int(self.config["trainer"]["max_epochs"])

    @property
    def concept(self) -> str:
        """Concept to forget, as an option: `auto`, an info key, or a class and its arguments as JSON."""
        concept = self.config["data"]["concept"]
        return concept if isinstance(concept, str) else json.dumps(concept, sort_keys=True)

    @property
    def work(self) -> Workload:
        """Environment steps of the training."""
        options, updates = self.config["model"]["init_args"], self.updates
        steps = updates * self.num_envs * int(self.config["data"]["horizon"])
        if self.edits:
            return Workload(rolled=steps)
        if "recollect_every" in options:
            collections = -(-updates // int(options["recollect_every"]))
            return Workload(rolled=collections * int(options["dataset_episodes"]) * EPISODE_STEPS)
        return Workload(trained=REPLAY_COST_FACTOR * steps if "capacity" in options else steps)


def resolve(study: Study) -> dict[str, list[PlannedTraining]]:
    """Return the trainings of each environment id, in the order of the file.

    Raises:
        ValueError: A method, an environment or an option is unknown, or names repeat.
    """
    found = {env: [_training(study, env, method) for method in study.methods] for env in study.envs}
    for trainings in found.values():
        require_distinct("methods", [training.name for training in trainings])
        for training in trainings:
            if training.env_id != trainings[0].env_id:
                raise ValueError(
                    f"methods: {training.name} is of {training.env_id}, others of {trainings[0].env_id}: leave "
                    "data.env out of the options and list the environment under envs."
                )
    require_distinct("envs", [trainings[0].env_id for trainings in found.values()])
    return {trainings[0].env_id: trainings for trainings in found.values()}


class _ConfigOnly(FitCLI):
    """Parses and checks the options, and builds nothing."""

    def before_instantiate_classes(self) -> None:
        """Check what can be checked without building anything."""
        require_possible(self.config.trainer)

    def instantiate_classes(self) -> None:
        """Build nothing."""


def _training(study: Study, env: str, method: Method) -> PlannedTraining:
    try:
        cli = _ConfigOnly(_arguments(study, env, method))
    except ValueError as error:
        raise ValueError(f"methods: {method.name or method.config} in {env}: {error}") from error
    config = cli.config.as_dict()
    options, last_update = config["model"]["init_args"], int(config["trainer"]["max_epochs"])
    name, own_source = options["method"], options.get("source")
    if not re.fullmatch(r"[a-z]\w*", name) or name in (*AUDITS, RANDOM):
        raise ValueError(
            f"methods: the name {name!r} is not possible: use small letters, digits and underscores, and none "
            f"of {', '.join((*AUDITS, RANDOM))}."
        )
    edits = config["model"]["class_path"].endswith(f".{RepEdit.__name__}")
    return PlannedTraining(
        name=name,
        env_id=config["data"]["env"],
        config=config,
        text=str(cli.parser.dump(cli.config, skip_none=False)),
        source=method.source or ("unsafe" if own_source == AUTO else own_source),
        foreign=method.source is None and own_source not in (None, AUTO),
        save_points=tuple(config["save_points"] or [last_update]),
        edits=edits,
        takes_direction=edits and options["repedit_artifact"] is None and options["direction"] == "probe",
    )


def _arguments(study: Study, env: str, method: Method) -> list[str]:
    """Return the arguments of `fit` that make a training's config."""
    base, overlays = str(shipped_config("base.yaml")), study.overlays
    chain = [base, _config("env", env, "envs"), _config("method", method.config, "methods"), *overlays]
    named = {} if method.name is None else {"model.method": method.name}
    options = named | dict(method.options)
    return [
        *(part for config in chain for part in ("-c", config)),
        *(
            part
            for key, value in options.items()
            for part in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
        ),
    ]


def _config(folder: str, name: str, where: str) -> str:
    """Find a config file: `concept` is the shipped `method/concept.yaml`."""
    if name.endswith((".yaml", ".yml")):
        return str(find_config(name))
    try:
        return str(shipped_config(f"{folder}/{name}.yaml"))
    except ValueError as error:
        raise ValueError(f"{where}: {error} Or name a config file.") from error


def _without_nulls(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    return {key: _without_nulls(value) for key, value in config.items() if value is not None}
