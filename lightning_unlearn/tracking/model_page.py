"""The descriptions of registered models and their versions, Markdown that MLflow's UI shows: a short model card each.

A description has a head, a section `## Before and after`, which is written anew when a version has been measured, and a
section `## Use`. Texts that somebody added to the head or to the last section stay.
"""

from urllib.parse import quote

import mlflow
from mlflow.entities import Run

from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking.experiment_page import TRAINING_VIEW
from lightning_unlearn.tracking.store import writing

BEFORE_AFTER, USE = "## Before and after", "## Use"
_ROLLOUT = {
    "rollout/episode_return": "episode return",
    "rollout/episode_cost": "episode cost",
    "rollout/c_forget_rate": "C_forget a step",
}
"""Metric of a training → its row in the table of before and after."""
_USE = """{heading}

    lightning-unlearn evaluate --env {env} --models {uri}
    mlflow models serve --env-manager local -m {uri} -p 5001
    mlflow models predict --env-manager local -m {uri} -i observations.json

From Python: `lightning_unlearn.load_policy("{uri}")`, or `mlflow.pyfunc.load_model("{uri}")`. A store that is not the
default one is named by `MLFLOW_TRACKING_URI`. `--env-manager local` runs in the active environment, which must have
lightning-unlearn: no package index has it, so that MLflow cannot build one.

`serve` and `predict` read JSON, one row of numbers an observation: `{{"inputs": [[0.1, 0.2]]}}`, or pandas' format,
`{{"dataframe_split": {{"data": [[0.1, 0.2]]}}}}`. They return one row an observation: the deterministic action."""
_LONGEST = 300
"""Characters of a fact; databases have room for 5000 in a description."""


def model_description(card: ModelCard, uri: str) -> str:
    """Return the description of a new registered model.

    Args:
        card: That of its first version.
        uri: The model's newest version.
    """
    head = (
        f"Policies of `{card.method}` for `{card.env}`, of all training seeds. Each version is a save point.\n\n"
        "| alias | version |\n|---|---|\n"
        "| `update-N` | the newest one after update N |\n"
        "| `seed-S-update-N` | that of one training seed |\n"
        "| `selected`, `seed-S-selected` | the chosen ones: cost within the limit, then return |"
    )
    return f"{head}\n\n{_use(card, uri)}"


def version_description(card: ModelCard, uri: str, run_id: str) -> str:
    """Return the description of a new version, with the first and the latest rollout of its training.

    Args:
        card: The version's card.
        uri: The version.
        run_id: The run that registers it.
    """
    run = mlflow.MlflowClient().get_run(run_id)
    page = f"[{run.info.run_name}](#/experiments/{run.info.experiment_id}/runs/{run_id}?{TRAINING_VIEW})"
    facts = {
        "method": f"`{card.method}`",
        "environment": f"`{card.env}`",
        "behaviour to forget": f"`{card.concept}`" if card.concept else "",
        "training seed": str(card.seed),
        "update": str(card.update),
        "environment steps": f"{card.env_steps:,}",
        "started from": run.data.tags.get("source", ""),
        "run": page,
        "note": card.note,
    }
    rows = "\n".join(f"| {name} | {value.replace('|', '/')[:_LONGEST]} |" for name, value in facts.items() if value)
    head = f"| `{uri}` | |\n|---|---|\n{rows}"
    rollouts = _rollouts(run)
    return "\n\n".join([head, *([f"{BEFORE_AFTER}\n\n{rollouts}"] if rollouts else []), _use(card, uri)])


def _rollouts(run: Run) -> str:
    """The first and the latest rollout of a training, as a table; empty if there was none."""
    client, rows = mlflow.MlflowClient(), []
    for metric, measure in _ROLLOUT.items():
        if metric in run.data.metrics:
            points = sorted(client.get_metric_history(run.info.run_id, metric), key=lambda point: point.step)
            rows.append(f"| {measure} | {points[0].value:.3g} | {points[-1].value:.3g} |")
    if not rows:
        return ""
    head = "In training, with the noise of exploration:\n\n| | first rollout | latest rollout |\n|---|---|---|\n"
    return head + "\n".join(rows)


def _use(card: ModelCard, uri: str) -> str:
    return _USE.format(heading=USE, env=card.env, uri=uri)


def image(run_id: str, artifact: str, title: str) -> str:
    """Return the Markdown of a picture among a run's artifacts, as MLflow's server delivers it."""
    return f"![{title}](get-artifact?path={quote(artifact, safe='')}&run_uuid={run_id})"


def with_before_and_after(description: str, section: str) -> str:
    """Return a description with this section `## Before and after` in place of what it had."""
    head, _, use = description.partition(USE)
    head = head.partition(BEFORE_AFTER)[0].strip()
    parts = [head, f"{BEFORE_AFTER}\n\n{section.strip()}", USE + use if use else ""]
    return "\n\n".join(part for part in parts if part)


def describe_before_and_after(name: str, version: str, section: str) -> None:
    """Write this section into the descriptions of a version and, named as that version's, of its registered model."""
    client = mlflow.MlflowClient()
    with writing():
        text = client.get_model_version(name, version).description or ""
        client.update_model_version(name, version, with_before_and_after(text, section))
        text = client.get_registered_model(name).description or ""
        named = f"Of [version {version}](#/models/{quote(name)}/versions/{version}):\n\n{section}"
        client.update_registered_model(name, with_before_and_after(text, named))
