"""What the store's evaluations say of a model, which they know by its weights."""

from typing import Any

from mlflow.exceptions import MlflowException

from lightning_unlearn.audits.evaluate import KIND
from lightning_unlearn.audits.subjects import weights_digest
from lightning_unlearn.audits.suite_files import METADATA, SUMMARY_JSON
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.safe_files import parse_json
from lightning_unlearn.tracking import runs

COLUMNS = ("Reward", "RewardStd", "Cost_Sum", "CostStd", "Cost_Free_Share", "C_forget_Rate", "KL_vs_Unsafe", "Layouts")
_SUITE = "policy-suite"
_DAMAGED = (MlflowException, OSError, ValueError, KeyError, TypeError, AttributeError)


def newest_evaluation(env_id: str, policy: ActorCritic) -> dict[str, Any]:
    """Numbers of the newest finished evaluation of these weights, with its run; empty if there is none."""
    if not env_id:  # of the published layout: it does not say
        return {}
    digest = weights_digest(policy)
    finished = [run for run in runs.stored_runs(env_id) if run.audit == _SUITE and run.status == "FINISHED"]
    for run in reversed(finished):
        if row := _row(run.run_id, digest):
            return {"run": run.run_id} | {column: row.get(column) for column in COLUMNS}
    return {}


def _row(run_id: str, digest: str) -> dict[str, Any]:
    """The row of these weights in an evaluation; empty where it has none, or its files are damaged or gone."""
    try:
        paths = {path.rpartition("/")[2]: path for path in runs.artifact_paths(run_id, f"eval/{KIND}")}
        metadata, summary = (parse_json(runs.read_artifact(run_id, paths[name])) for name in (METADATA, SUMMARY_JSON))
        labels = [label for label, about in metadata["models"].items() if about["weights_sha256"] == digest]
        return next((dict(row) for row in summary["models"] if row["Model"] in labels), {})
    except _DAMAGED:
        return {}
