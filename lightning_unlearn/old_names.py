"""Names that files of earlier versions hold, and what they are called today.

Stored configs, concept cards and checkpoints name classes and keys. To move or rename one of them, add a line to the
table below in the same commit; everything that reads old files looks here:

- `PATHS`: a class, or a whole module, that configs, concept cards or the command line may name. Config files, command
  lines, a stored run's `config.yaml` and the concept of a model's card are read with today's paths.
- `CHECKPOINT_KEYS`: a callback whose class was renamed (Lightning stores its state under the class's name), the data
  module, or any other key of a checkpoint. Checkpoints are read with today's keys.

The loader that stored MLmodel files name, `lightning_unlearn.registry._load_pyfunc`, has no line: it stays where it is,
because MLflow imports it by itself. `tests/test_old_names.py` checks that every new path exists.
"""

import re
from collections.abc import Mapping
from typing import Any

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

_OUR_PATH = re.compile(r"\blightning_unlearn(?:\.\w+)+")


def with_current_paths(text: str) -> str:
    """Replace old paths of modules and classes in a text, such as a config, by today's."""
    return _OUR_PATH.sub(lambda path: _current(path[0]), text)


def _current(path: str) -> str:
    matches = [old for old in PATHS if path == old or path.startswith(f"{old}.")]
    longest = max(matches, key=len, default="")
    return PATHS.get(longest, "") + path.removeprefix(longest)


def with_current_keys(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Rename the old keys of a checkpoint, in place; returns it."""
    for old, new in CHECKPOINT_KEYS.items():
        *folders, name = old.split("/")
        place = _inside(checkpoint, folders)
        if isinstance(place, dict) and name in place:
            value = place.pop(name)
            *folders, name = new.split("/")
            target: Any = checkpoint
            for folder in folders:
                target = target.setdefault(folder, {})
            target[name] = value
    return checkpoint


def _inside(nested: Any, keys: list[str]) -> Any:
    for key in keys:
        nested = nested.get(key) if isinstance(nested, Mapping) else None
    return nested
