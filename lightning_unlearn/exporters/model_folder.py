"""The `export folder` command: a model folder in the style of the Hugging Face Hub.

It holds the weights (`policy.safetensors`, `policy.json`), the model card `README.md`, the training's `config.yaml`,
the measured episodes (`episodes.csv`), a figure and a video. `lightning_unlearn.load_policy` reads it, and so does
every option that names a model.
"""

import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from jsonargparse import Namespace

from lightning_unlearn.audits import repair_pairs
from lightning_unlearn.audits.audited_models import require_fit
from lightning_unlearn.audits.figures import before_after_figure, save_png
from lightning_unlearn.audits.outputs import add_store_option
from lightning_unlearn.audits.policy_comparison import evaluate_in, median_episode, per_episode
from lightning_unlearn.audits.statistics import mean_interval
from lightning_unlearn.audits.top_view import has_map
from lightning_unlearn.audits.verdict import USUAL_LIMIT, Verdict, as_table, judge
from lightning_unlearn.audits.videos import Shot, VideoOptions, VideoRecorder
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import RECORDED, add_concept_option, parse_with_concept, resolve_concept
from lightning_unlearn.exporters import hub
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.policies.files import ModelCard, StoredPolicy, save_policy
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import open_store

BEFORE, AFTER = "before", "after"
FIGURE, VIDEO = "before_after.png", "episode"
METRICS = {"reward": "return", "cforget_sum": "c_forget", "cost_sum": "cost", "episode_length": "steps"}
"""Column of the episodes → metric of the card's metadata, each the mean of an episode."""
_NOT_PUBLISHED = ("tracking_uri", "resume")
"""Options that say where a training was executed, with addresses of somebody's machine."""


@dataclass(frozen=True)
class Measured:
    """Deterministic episodes of the model and its expert, on the same layouts."""

    tables: dict[str, pd.DataFrame]
    """`before` and `after`; only `after` for a model that is its own expert."""
    shots: list[Shot]
    """The episode of each that the video shows: the one of the first's median cost."""
    verdict: Verdict | None
    """None without `before`."""


def main(args: Sequence[str]) -> None:
    """Measure the model beside its expert, write the folder, and upload it if asked."""
    options, concept = parse_with_concept(_parser(), args)
    out = Path(options.out)
    if out.exists():
        raise ValueError(f"--out {options.out} exists already: name another folder, or remove it.")
    if not re.fullmatch(r"\w[\w.-]*", options.license, re.ASCII):
        raise ValueError(f"--license {options.license} is not possible: use the Hub's name of a licence, such as mit.")
    if options.cost_limit is not None and not 0 <= options.cost_limit < math.inf:
        raise ValueError(f"--cost_limit {options.cost_limit} is not possible: use a number of at least 0.")
    require_at_least(1, workers=options.workers)
    evaluation_layouts(options.episodes)
    client = None if options.push is None else hub.signed_in(options.push)
    open_store(options.tracking_uri)
    uri = registry.pinned(options.model)
    stored = registry.load_policy(uri)
    env_id = stored.card.env or options.env
    if not env_id:
        raise ValueError(f"--env is missing: {uri} does not record its task.")
    stored = replace(stored, card=replace(stored.card, env=env_id))
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    concept = resolve_concept(concept, [stored.card.concept])
    with closing(make_env(env_id, options.episodes, concept, min(options.workers, options.episodes))) as env:
        measured = measure(env, stored, uri, options)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
                write(Path(scratch, out.name), env, stored, uri, measured, options)
                os.replace(Path(scratch, out.name), out)
        except OSError as error:
            reason = f"--out {options.out} cannot be written ({error.strerror}): name another folder."
            raise ValueError(reason) from error
    print(f'{out}: {", ".join(sorted(file.name for file in out.iterdir()))}\n  load_policy("{out}")')
    print(measured.verdict.in_words() if measured.verdict else "The model is its own expert: there is no before.")
    if client is not None:
        print(hub.upload(client, out, options.push))


def measure(env: BatchedEnv, stored: StoredPolicy, uri: str, options: Any) -> Measured:
    """Run the model and the expert that its training started from.

    Raises:
        ValueError: No expert is known, or a model does not fit the task.
    """
    given = {key: getattr(options, key) for key in ("expert", "tracking_uri")}
    task = {"env": stored.card.env, "mean_scale": 1.0}
    (pair,) = repair_pairs.gather(Namespace(models=[uri], seed=[options.seed], **task, **given))
    policies = {BEFORE: pair.expert, AFTER: pair.model}
    if pair.expert.digest == pair.model.digest:
        del policies[BEFORE]
    for model in policies.values():
        require_fit(model.policy, env.simulator, "model", model.uri)
    layouts, drawn = evaluation_layouts(options.episodes), has_map(env.simulator.top_view())
    found = {
        name: evaluate_in(env, model.policy, layouts, keep_scenes=drawn, label=name) for name, model in policies.items()
    }
    tables = {name: per_episode(evaluation.episodes) for name, evaluation in found.items()}
    shown = median_episode(next(iter(found.values())))
    shots = [
        Shot(f"{name}: {model.family or 'policy'}", model.policy, found[name].episodes, shown)
        for name, model in policies.items()
    ]
    run, limit = training_run(uri), options.cost_limit
    if limit is None:
        limit = USUAL_LIMIT if run is None or run.cost_limit is None else run.cost_limit
    verdict = judge(tables[AFTER], tables[BEFORE], limit) if BEFORE in tables else None
    return Measured(tables, shots, verdict)


def write(folder: Path, env: BatchedEnv, stored: StoredPolicy, uri: str, measured: Measured, options: Any) -> None:
    """Write all files of the folder, which is made."""
    save_policy(folder, stored.policy, stored.card)
    config = yaml.safe_dump(training_config(stored, uri), sort_keys=False)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    episodes = [table.assign(Policy=name) for name, table in measured.tables.items()]
    pd.concat(episodes).to_csv(folder / "episodes.csv", index=False)
    if measured.verdict is not None:
        figure = before_after_figure(measured.tables[BEFORE], measured.tables[AFTER], measured.verdict.cost_limit)
        save_png(figure, folder / FIGURE)
    try:
        recorder = VideoRecorder(folder, stored.card.env, VideoOptions(), env.simulator)
    except ValueError:
        print(f"No video: MuJoCo cannot render here, and {stored.card.env} has no map to draw.")
    else:
        with closing(recorder):
            recorder.write(VIDEO, measured.shots)
        print(f"{VIDEO}.gif: {recorder.renderer}")
    (folder / "README.md").write_text(model_card(folder, stored, uri, measured, options), encoding="utf-8")


def training_run(uri: str) -> StoredRun | None:
    """Return the run that registered a model; None for a model that is shipped, or a file."""
    try:
        return runs.find_run(str(registry.registered_version(uri).run_id))
    except ValueError:
        return None


def training_config(stored: StoredPolicy, uri: str) -> dict[str, Any]:
    """Return the config of the run that trained a model; without one, what the model's own description says."""
    run = training_run(uri)
    if run is None or not runs.stored_options(run.run_id):
        return {"card": asdict(stored.card), "policy": asdict(stored.policy.config)}
    config = yaml.safe_load(runs.stored_config(run.run_id))
    return {name: value for name, value in config.items() if name not in _NOT_PUBLISHED}


def model_card(folder: Path, stored: StoredPolicy, uri: str, measured: Measured, options: Any) -> str:
    """Return the model card, Markdown behind YAML metadata as the Hub reads it."""
    card, policy = stored.card, stored.policy
    templates = Environment(
        loader=PackageLoader("lightning_unlearn.exporters"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("model_card.md").render(
        metadata=yaml.safe_dump(metadata(card, measured.tables, options.license), sort_keys=False),
        card=card,
        facts={name: _in_a_cell(value) for name, value in asdict(card).items()},
        policy=policy,
        dtype=str(policy.observation_dtype).removeprefix("torch."),
        uri=uri if uri.startswith(("models:", "runs:", "zoo:")) else Path(uri).name,
        verdict=measured.verdict,
        table=as_table(measured.tables),
        files={file.name for file in folder.iterdir()},
        episodes=options.episodes,
        license=options.license,
        repository=options.push,
        name=folder.name,
    )


def metadata(card: ModelCard, tables: Mapping[str, pd.DataFrame], licence: str) -> dict[str, Any]:
    """Return the metadata of a card. Its `model-index` holds each mean with its 95 % interval over episodes."""
    metrics = [
        {"type": metric, "name": f"{metric}, {name}", "value": round(float(table[column].mean()), 4)}
        | {"args": {"episodes": len(table), "interval_95": interval(table[column])}}
        for name, table in tables.items()
        for column, metric in METRICS.items()
    ]
    task = {"type": "reinforcement-learning", "name": "reinforcement learning"}
    return {
        "license": licence,
        "library_name": "lightning-unlearn",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "machine-unlearning", "safe-rl", *filter(None, (card.method, card.env))],
        "model-index": [
            {
                "name": "-".join(filter(None, (card.method, card.env))),
                "results": [{"task": task, "dataset": {"type": card.env, "name": card.env}, "metrics": metrics}],
            }
        ],
    }


def interval(values: pd.Series) -> list[float] | None:
    """Return the ends of a mean's 95 % interval over episodes; None with one episode."""
    found = mean_interval(values.to_numpy(float))
    return None if found is None else [round(found.low, 4), round(found.high, 4)]


def _in_a_cell(value: object) -> str:
    """Return a value as one cell of a Markdown table, in code so that nothing in it is markup; empty if unknown."""
    text = " ".join(str(value).split()).replace("|", "/").replace("`", "'")[:300]
    return "" if value in ("", -1) else f"`{text}`"


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn export folder", description=__doc__)
    add = parser.add_argument
    add("model", type=str, help="URI, folder or file of the model")
    add("--out", type=str, required=True, help="the new folder")
    expert = "the expert to compare with; default: the one that the model's training started from, else that of --seed"
    add("--expert", type=str | None, default=None, help=expert)
    add("--env", type=str, default="", help="the task, for a model that does not record it")
    add("--seed", type=int, default=0, help="training seed of the expert, for a model that does not record its own")
    add("--episodes", type=int, default=50, help="layouts, one episode each")
    limit = "limit on C_forget of an episode; default: the one of the model's training, else 25"
    add("--cost_limit", type=float | None, default=None, help=limit)
    add_concept_option(parser, ", or recorded, what the model records")
    parser.set_defaults({"concept": RECORDED})
    add("--license", type=str, default="unknown", help="licence of the weights by the Hub's name, such as mit")
    push = "upload to OWNER/NAME on the Hugging Face Hub, public if it is new; needs HF_TOKEN"
    add("--push", type=str | None, default=None, help=push)
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add_store_option(parser)
    return parser
