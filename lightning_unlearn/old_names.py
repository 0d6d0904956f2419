"""Names that files of earlier versions hold, and what they are called today.

Stored configs, concept cards and checkpoints name classes and keys. To move or rename one of them, add a line to the
table below in the same commit; everything that reads old files looks here:

- `PATHS`: a class, or a whole module, that configs, concept cards or the command line may name. Config files, command
  lines, a stored run's `config.yaml` and the concept of a model's card are read with today's paths.
- `CHECKPOINT_KEYS`: a callback whose class was renamed (Lightning stores its state under the class's name), the data
  module, or any other key of a checkpoint. Checkpoints are read with today's keys.
- `REMOVED_OPTIONS`: an option of a class that a stored config may hold. It is read and ignored.
- `REMOVED_CHOICES`: an option that is gone since one of its values is left. That value is read and ignored, in configs
  and on command lines; the others are refused with the reason.

The loader that stored MLmodel files name, `lightning_unlearn.registry._load_pyfunc`, has no line: it stays where it is,
because MLflow imports it by itself. `tests/test_old_names.py` checks that every new path exists.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

PATHS: dict[str, str] = {}
"""Old path of a module or class → its path today.

    "lightning_unlearn.envs.concept": "lightning_unlearn.envs.concepts",
    "lightning_unlearn.methods.ppo.Plain": "lightning_unlearn.methods.dual_head_ppo.DualHeadPPO",

What is inside follows: the first of these lines also covers `lightning_unlearn.envs.concept.Disc`. The longest match
counts. The new path is the final one: change older lines when a target moves again.
"""

CHECKPOINT_KEYS: dict[str, str] = {
    "callbacks/Durability": "callbacks/UpdateCheckpoint",
}
"""Old key of a checkpoint → its key today, both from the top, with a slash between nested keys.

    "RolloutData/learner": "RolloutData/collector",
    "state_dict/policy.value.weight": "state_dict/policy.reward_value.weight",
"""

REMOVED_OPTIONS: dict[str, dict[str, Any]] = {
    "lightning_unlearn.methods.repedit.RepEdit": {"lr": 3e-4, "ent_coef": 0.03, "ppo_epochs": 6, "batch_size": 256},
    "lightning_unlearn.methods.trajectory_decremental.TrajectoryDecremental": {"ent_coef": 0.03, "ppo_epochs": 6},
}
"""Path of a class, as it is today → options without effect that it once had, and their defaults."""


@dataclass(frozen=True)
class RemovedChoice:
    """An option that is gone, and its values."""

    left: str
    """The value that asks for what happens now in any case."""
    reasons: Mapping[str, str]
    """Every other value → why it is refused."""


REMOVED_CHOICES: dict[str, RemovedChoice] = {
    "data.collector": RemovedChoice(
        "lean",
        {
            "stock": "TorchRL's stock collector gave the same rollouts, more slowly",
            "ray": "one rollout is no longer spread over a cluster; a study spreads trainings (study --executor ray)",
        },
    )
}
"""Option, nested keys joined with dots → its values."""

_OUR_PATH = re.compile(r"\blightning_unlearn(?:\.\w+)+")


def with_current_paths(text: str) -> str:
    """Replace old paths of modules and classes in a text, such as a config, by today's."""

    def current(found: re.Match[str]) -> str:
        path = found[0]
        matches = [old for old in PATHS if path == old or path.startswith(f"{old}.")]
        longest = max(matches, key=len, default="")
        return PATHS.get(longest, "") + path.removeprefix(longest)

    return _OUR_PATH.sub(current, text)


def with_current_keys(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Rename the old keys of a checkpoint, in place; returns it."""
    for old, new in CHECKPOINT_KEYS.items():
        (*outer, name), (*new_outer, new_name) = old.split("/"), new.split("/")
        source: Any = checkpoint
        for key in outer:
            source = source.get(key) if isinstance(source, dict) else None
        if isinstance(source, dict) and name in source:
            value, target = source.pop(name), checkpoint
            for key in new_outer:
                target = target.setdefault(key, {})
            target[new_name] = value
    return checkpoint


def without_removed_options(config: str) -> str:
    """Leave `REMOVED_OPTIONS` out of a config, given as YAML; a config without them stays as it is."""
    if not any(path in config for path in REMOVED_OPTIONS):
        return config
    try:
        content = yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError):
        return config  # the parser reports it
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(options := model.get("init_args"), dict):
        return config
    removed = REMOVED_OPTIONS.get(str(model.get("class_path")), {})
    if not removed.keys() & options.keys():
        return config
    model["init_args"] = {name: value for name, value in options.items() if name not in removed}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def drop_removed_choices(options: Any) -> None:
    """Remove `REMOVED_CHOICES` from a parsed config or from flat options.

    Raises:
        ValueError: One of them has a value that asks for something that no longer exists.
    """
    for name, choice in REMOVED_CHOICES.items():
        value = options.pop(name, choice.left)
        if value != choice.left:
            reason = choice.reasons.get(str(value), "the option no longer exists")
            raise ValueError(f"{name}={value} is not possible: {reason}. Leave the option out.")
