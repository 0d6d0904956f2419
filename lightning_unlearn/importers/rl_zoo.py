"""Where rl-zoo3 puts an agent of Stable-Baselines3 and what belongs to it.

`<run>/<env>.zip` is the final agent, `<run>/best_model.zip` the best one; `<run>/<env>/` holds `vecnormalize.pkl`,
`config.yml` and `args.yml`.
"""

from pathlib import Path
from typing import Any

from lightning_unlearn.safe_files import read_yaml

_MAX_BYTES = 1 << 16
_WRAPPERS = ("env_wrapper", "frame_stack", "vec_env_wrapper")
"""Options of config.yml that change what an agent sees or what its actions do."""
_NOTHING: tuple[Any, ...] = (None, "", [], {}, 0, 1, "None")


def find(path: Path) -> tuple[Path, Path | None]:
    """Find an agent's zip and the VecNormalize that rl-zoo3 saved with it.

    Args:
        path: The zip, with or without its ending, or a run's folder of rl-zoo3, whose final agent is preferred.

    Returns:
        The zip, and the `vecnormalize.pkl` of its run where there is one.

    Raises:
        ValueError: The folder holds no agent or several, or the agent was trained behind a wrapper.
    """
    whole = path.is_dir()
    if whole:
        path = _in_folder(path)
    elif not path.exists() and Path(f"{path}.zip").exists():
        path = Path(f"{path}.zip")
    marks = ("args.yml", "config.yml", "vecnormalize.pkl") if whole else ("args.yml",)
    beside = {file.parent for mark in marks for file in path.parent.glob(f"*/{mark}")}
    home = beside.pop() if len(beside) == 1 else path.parent if whole else None
    if home is None:
        return path, None
    if (home / "config.yml").is_file():
        _require_no_wrapper(home / "config.yml")
    statistics = home / "vecnormalize.pkl"
    return path, statistics if statistics.is_file() else None


def _in_folder(folder: Path) -> Path:
    final = [agent for agent in sorted(folder.glob("*.zip")) if (folder / agent.stem).is_dir()]
    found = final or sorted(folder.glob("best_model.zip")) or sorted(folder.glob("*.zip"))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} agents (*.zip), not one: name the file of the one you mean.")
    return found[0]


def _require_no_wrapper(config: Path) -> None:
    try:
        content = read_yaml(config, _MAX_BYTES)
        while isinstance(content, list) and len(content) == 1:
            content = content[0]
        options = dict(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config} is no configuration of rl-zoo3: {str(error)[:200]}") from error
    for name in _WRAPPERS:
        if options.get(name) not in _NOTHING:
            raise ValueError(
                f"the agent cannot be imported: {config} has {name}: {str(options[name])[:200]}, which changes what "
                "the agent sees or does. Register an environment that is wrapped so, and copy the agent's zip out of "
                "this folder to import it for that environment."
            )
