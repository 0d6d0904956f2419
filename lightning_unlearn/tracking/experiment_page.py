"""How MLflow's UI shows an experiment: in the view "Model training", with a saved view of the runs' key figures.

MLflow 3 opens an experiment as one of GenAI, with traces in place of runs, unless a tag says what it is. Which columns
the table of runs has is kept by the browser; a saved view, also a tag, brings its own. The menu "Views" of the table
lists it, and `key_figures_page` is its address.
"""

import json

KIND, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag that says what an experiment is, and its value for the view "Model training"."""
PRIMARY_METRIC = "mlflow.experiment.primaryMetric.name"
"""The tag that names the metric by which the UI colours comparisons of runs."""
VIEW = "key-figures"
"""Id of the saved view."""
KEY_FIGURES = (
    "tags.`method`",
    "params.`seed_everything`",
    "tags.`repair.verdict`",
    "tags.`repair.return_share`",
    "tags.`repair.cost`",
    "metrics.`rollout/episode_return`",
    "metrics.`rollout/episode_cost`",
    "metrics.`rollout/c_forget_rate`",
    "attributes.`Models`",
)
"""Columns of that view, as the UI names them; it shows metrics before tags, so that few metrics are among them.

Those of the verdict are empty until `keep_best` has judged the run.
"""
TRAINING_VIEW = "workflowType=machine_learning"
"""Query of an address in the view "Model training": without it the UI opens the view that it showed last."""
NOTE = "mlflow.note.content"
"""The tag that holds a run's description."""
_CREATED = 1_767_225_600_000
"""Date of the view, in milliseconds since 1970; a constant, so that equal stores have equal tags."""


def page_tags() -> dict[str, str]:
    """Return the tags of an experiment that MLflow's UI goes by."""
    state = json.dumps({"selectedColumns": KEY_FIGURES})
    view = {"name": "Key figures", "createdAt": _CREATED, "updatedAt": _CREATED, "state": state}
    return {
        KIND: MODEL_TRAINING,
        PRIMARY_METRIC: "rollout/episode_return",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def key_figures_page(server: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs with the columns of `KEY_FIGURES`.

    Args:
        server: Address of the MLflow server.
        experiment_id: The experiment.
    """
    address = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{address}?{TRAINING_VIEW}&viewStateShareKey={VIEW}"
