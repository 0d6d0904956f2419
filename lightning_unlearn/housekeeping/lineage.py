"""Which runs started from a version of a registered model."""

import re
from collections.abc import Sequence

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from lightning_unlearn.housekeeping.inventory import is_deleted, model_id
from lightning_unlearn.tracking.registry import save_point_aliases

SOURCE = "source"
"""The tag of a run that holds the URI of what it started from."""
_LATEST = "latest"


def derived_from(version: ModelVersion, runs: Sequence[Run], versions: Sequence[ModelVersion]) -> list[Run]:
    """Runs, deleted ones apart, that started from a version.

    An alias is followed to where it pointed when the run started, as far as versions tell: `latest`, `update-<n>` and
    `seed-<s>-update-<n>` are the newest of that time; any other points where it does now.
    """
    return [
        run for run in runs if not is_deleted(run) and any(_is(uri, version, run, versions) for uri in _sources(run))
    ]


def _sources(run: Run) -> list[str]:
    return str(run.data.tags.get(SOURCE, "")).split()


def _is(uri: str, version: ModelVersion, run: Run, versions: Sequence[ModelVersion]) -> bool:
    kind, _, rest = uri.partition(":")
    rest = rest.lstrip("/")
    if kind == "runs":
        return rest == f"{version.run_id}/update-{version.tags.get('update')}"
    if kind != "models":
        return False
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return name == version.name and _pointed(alias, version, run, versions)
    name, _, number = rest.partition("/")
    if number == _LATEST:
        return name == version.name and _pointed(_LATEST, version, run, versions)
    return (name, number) == (version.name, str(version.version)) or rest == model_id(version)


def _pointed(alias: str, version: ModelVersion, run: Run, versions: Sequence[ModelVersion]) -> bool:
    """Whether an alias of the version's registered model pointed to it when a run started."""
    if alias != _LATEST and not re.fullmatch(r"(seed-\d+-)?update-\d+", alias):
        return alias in version.aliases
    there = [v for v in versions if v.name == version.name and v.creation_timestamp <= run.info.start_time]
    named = [
        int(v.version)
        for v in there
        if alias == _LATEST or alias in save_point_aliases(v.tags.get("seed"), v.tags.get("update"))
    ]
    return max(named, default=0) == int(version.version)
